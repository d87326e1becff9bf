//! The bytes on the disk, version 1. All numbers are little endian; checksums are CRC-32C.
//!
//! - A segment `sp-<first number>.seg` begins with 64 bytes: `"HGSPOOL\0"`, version u16, length of this header u16, zero u32,
//!   first number u64, epoch u64 (random), time of making u64 (ms), zeros, and at 60 the checksum of what is before it.
//! - A record: length of the payload u32, checksum u32 (of the length and of all that follows), the epoch's lower half u32,
//!   flags u32 (zero), number u64, time of appending u64 (ms), the payload, and zeros up to a multiple of 8. The epoch keeps
//!   what another file left in the same blocks from being believed.
//! - A journal `sp-<first number>.ack` beside it: entries of 16 bytes, number u64, kind u8, zeros, and at 12 the checksum of
//!   what is before it and of the segment's epoch. It is renamed to `.gone` before its segment is deleted.

use bytes::Bytes;
use crc32c::{crc32c, crc32c_append};

pub(crate) const MAGIC: &[u8; 8] = b"HGSPOOL\0";
pub(crate) const VERSION: u16 = 1;
pub(crate) const HEADER_BYTES: u64 = 64;
pub(crate) const RECORD_HEAD_BYTES: usize = 32;
pub(crate) const ENTRY_BYTES: usize = 16;

/// What a segment's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) first: u64,
    pub(crate) epoch: u64,
    pub(crate) made_ms: u64,
}

/// What the first bytes of a file are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Beginning {
    Ours(Header),
    Newer(u16),
    Damaged,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Header {
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&64_u16.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.made_ms.to_le_bytes());
        let sum = crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Beginning {
        if bytes.len() < HEADER_BYTES as usize || &bytes[..8] != MAGIC {
            return Beginning::Damaged;
        }
        let sound = crc32c(&bytes[..60]) == u32_at(bytes, 60);
        match u16_at(bytes, 8) {
            // A newer header may have its checksum elsewhere.
            version if version > VERSION => Beginning::Newer(version),
            _ if !sound => Beginning::Damaged,
            _ => {
                Beginning::Ours(Self { first: u64_at(bytes, 16), epoch: u64_at(bytes, 24), made_ms: u64_at(bytes, 32) })
            }
        }
    }
}

/// What stands before a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHead {
    pub(crate) length: u32,
    pub(crate) sum: u32,
    pub(crate) epoch_low: u32,
    pub(crate) number: u64,
    pub(crate) at_ms: u64,
    flags: u32,
}

/// Length of a record on the disk.
pub(crate) fn record_bytes(payload: u64) -> u64 {
    (RECORD_HEAD_BYTES as u64 + payload).next_multiple_of(8)
}

fn epoch_low(epoch: u64) -> u32 {
    (epoch & u64::from(u32::MAX)) as u32
}

impl RecordHead {
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        Self {
            length: u32_at(bytes, 0),
            sum: u32_at(bytes, 4),
            epoch_low: u32_at(bytes, 8),
            flags: u32_at(bytes, 12),
            number: u64_at(bytes, 16),
            at_ms: u64_at(bytes, 24),
        }
    }

    pub(crate) fn is_of(&self, epoch: u64) -> bool {
        self.epoch_low == epoch_low(epoch)
    }

    pub(crate) fn matches(&self, payload: &[u8]) -> bool {
        self.sum == self.checksum(payload)
    }

    fn checksum(&self, payload: &[u8]) -> u32 {
        let mut head = [0; RECORD_HEAD_BYTES - 4];
        head[..4].copy_from_slice(&self.length.to_le_bytes());
        head[4..8].copy_from_slice(&self.epoch_low.to_le_bytes());
        head[8..12].copy_from_slice(&self.flags.to_le_bytes());
        head[12..20].copy_from_slice(&self.number.to_le_bytes());
        head[20..28].copy_from_slice(&self.at_ms.to_le_bytes());
        crc32c_append(crc32c(&head), payload)
    }
}

/// Appends a record to `bytes`.
pub(crate) fn encode_record(bytes: &mut Vec<u8>, epoch: u64, number: u64, at_ms: u64, payload: &Bytes) {
    let length = u32::try_from(payload.len()).expect("a payload is checked before it gets here");
    let mut head = RecordHead { length, sum: 0, epoch_low: epoch_low(epoch), number, at_ms, flags: 0 };
    head.sum = head.checksum(payload);
    bytes.extend_from_slice(&head.length.to_le_bytes());
    bytes.extend_from_slice(&head.sum.to_le_bytes());
    bytes.extend_from_slice(&head.epoch_low.to_le_bytes());
    bytes.extend_from_slice(&head.flags.to_le_bytes());
    bytes.extend_from_slice(&head.number.to_le_bytes());
    bytes.extend_from_slice(&head.at_ms.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

/// What a journal says about a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    /// It is not needed any more.
    Done,
    /// An attempt with it begins.
    Begun,
    /// That attempt ended without success.
    Failed,
}

pub(crate) fn encode_entry(epoch: u64, number: u64, note: Note) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8] = match note {
        Note::Done => 1,
        Note::Begun => 2,
        Note::Failed => 3,
    };
    let sum = crc32c_append(crc32c(&bytes[..12]), &epoch.to_le_bytes());
    bytes[12..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// `None` for what a crash has left of one, or damage.
pub(crate) fn decode_entry(epoch: u64, bytes: &[u8]) -> Option<(u64, Note)> {
    let sum = crc32c_append(crc32c(&bytes[..12]), &epoch.to_le_bytes());
    let note = match bytes[8] {
        1 => Note::Done,
        2 => Note::Begun,
        3 => Note::Failed,
        _ => return None,
    };
    (sum == u32_at(bytes, 12)).then_some((u64_at(bytes, 0), note))
}
