//! Reads a segment record by record, with bounded memory, and finds its way past damage.

use std::{fs::File, io, os::unix::fs::FileExt};

use bytes::Bytes;

use crate::format::{RECORD_HEAD_BYTES, RecordHead, record_bytes};

/// What comes next in a segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Record {
        number: u64,
        at_ms: u64,
        offset: u64,
        payload: Bytes,
    },
    /// The bytes from `start` to `end` are no record; there is a valid one behind them, or `end` is the end.
    Damage {
        start: u64,
        end: u64,
    },
}

/// Bytes looked at once in the search for the next valid record.
const CHUNK_BYTES: usize = 1 << 20;

pub(crate) struct Scan<'a> {
    file: &'a File,
    epoch: u64,
    /// Where the next record begins.
    offset: u64,
    limit: u64,
    /// No record before this number is believed.
    expected: u64,
}

impl<'a> Scan<'a> {
    /// From `offset` to `limit`, where the first record is not before number `expected`.
    pub(crate) fn new(file: &'a File, epoch: u64, offset: u64, limit: u64, expected: u64) -> Self {
        Self { file, epoch, offset, limit, expected }
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next item; `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Item>> {
        if self.offset >= self.limit {
            return Ok(None);
        }
        if let Some(item) = self.record_at(self.offset, true)? {
            return Ok(Some(self.pass(item)));
        }
        let start = self.offset;
        self.offset = self.next_valid(start)?.unwrap_or(self.limit);
        Ok(Some(Item::Damage { start, end: self.offset }))
    }

    fn pass(&mut self, item: Item) -> Item {
        if let Item::Record { number, ref payload, offset, .. } = item {
            self.offset = offset + record_bytes(payload.len() as u64);
            self.expected = number + 1;
        }
        item
    }

    /// The record at `offset`, if there is a valid one. `in_order`: it must have the very number that is expected.
    fn record_at(&self, offset: u64, in_order: bool) -> io::Result<Option<Item>> {
        if offset + RECORD_HEAD_BYTES as u64 > self.limit {
            return Ok(None);
        }
        let mut head = [0; RECORD_HEAD_BYTES];
        self.file.read_exact_at(&mut head, offset)?;
        let head = RecordHead::decode(&head);
        let follows = if in_order { head.number == self.expected } else { head.number > self.expected };
        let end = offset + record_bytes(u64::from(head.length));
        if !head.is_of(self.epoch) || !follows || end > self.limit {
            return Ok(None);
        }
        let mut payload = vec![0; head.length as usize];
        self.file.read_exact_at(&mut payload, offset + RECORD_HEAD_BYTES as u64)?;
        let valid = head.matches(&payload);
        let record = Item::Record { number: head.number, at_ms: head.at_ms, offset, payload: payload.into() };
        Ok(valid.then_some(record))
    }

    /// Where the next valid record behind `start` begins. Records begin at multiples of 8.
    fn next_valid(&mut self, start: u64) -> io::Result<Option<u64>> {
        let mut chunk_start = start + 8;
        let mut chunk = Vec::new();
        while chunk_start + RECORD_HEAD_BYTES as u64 <= self.limit {
            let length = (self.limit - chunk_start).min(CHUNK_BYTES as u64) as usize;
            chunk.resize(length, 0);
            self.file.read_exact_at(&mut chunk, chunk_start)?;
            let last = length.saturating_sub(RECORD_HEAD_BYTES);
            for at in (0..=last).step_by(8) {
                let head = RecordHead::decode(&chunk[at..at + RECORD_HEAD_BYTES]);
                let offset = chunk_start + at as u64;
                if head.is_of(self.epoch)
                    && let Some(Item::Record { number, .. }) = self.record_at(offset, false)?
                {
                    self.expected = number;
                    return Ok(Some(offset));
                }
            }
            chunk_start += (last + 8) as u64 / 8 * 8;
        }
        Ok(None)
    }
}
