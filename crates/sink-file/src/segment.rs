//! One file of events: appended to, and left alone once it cannot be trusted.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::error::Failure;

/// The file that is written to.
pub(crate) struct Segment {
    file: File,
    path: PathBuf,
    name: Arc<str>,
    /// Bytes that were fsynced. Where the next line goes: never behind something that has failed.
    len: u64,
}

impl Segment {
    /// Goes on with `file`, of which the first `len` bytes are whole lines and there is nothing behind them.
    pub(crate) fn new(file: File, path: PathBuf, len: u64) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into();
        Self { file, path, name, len }
    }

    /// The file's name, without its directory.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Bytes that it holds.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Writes `lines` behind what is there, and returns the offset of the first once all of them are on the disk.
    ///
    /// # Errors
    /// `Write`: nothing of it is in the file, which can be used on. Every other: the file must not be used again.
    pub(crate) fn append(&mut self, lines: &[u8]) -> Result<u64, Failure> {
        let offset = self.len;
        if let Err(source) = self.file.write_all_at(lines, offset) {
            return Err(self.take_back(source));
        }
        if let Err(source) = self.file.sync_data() {
            return Err(Failure::Sync { file: self.path.clone(), source });
        }
        // A file that has no name any more takes every write and keeps none of them.
        if self.file.metadata().is_ok_and(|metadata| metadata.nlink() == 0) {
            return Err(Failure::Deleted { file: self.path.clone() });
        }
        self.len += lines.len() as u64;
        Ok(offset)
    }

    /// Removes what a failed write has left, so that "not stored" is true and the next line does not follow half of one.
    fn take_back(&self, source: io::Error) -> Failure {
        let file = self.path.clone();
        match self.file.set_len(self.len).and_then(|()| self.file.sync_data()) {
            Ok(()) => Failure::Write { file, source },
            Err(source) => Failure::TakeBack { file, source },
        }
    }
}

/// Bytes looked at once when a file is searched from its end.
const CHUNK_BYTES: u64 = 64 * 1024;

/// The length of `file` up to and including its last newline: what a crash has left of whole lines.
pub(crate) fn whole_lines(file: &File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut chunk = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(CHUNK_BYTES);
        chunk.resize(usize::try_from(end - start).expect("a chunk fits into memory"), 0);
        file.read_exact_at(&mut chunk, start)?;
        if let Some(newline) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + newline as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Moves what follows the first `len` bytes of `file` into a file of its own beside `path`, and returns its path.
///
/// Nobody has a receipt for it, but it is somebody's event in part and not ours to destroy. On an error nothing is lost:
/// it is cut off only once the copy is on the disk.
pub(crate) fn set_aside_torn(file: &mut File, path: &Path, len: u64) -> io::Result<PathBuf> {
    let aside = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".torn-{len}"));
        if number > 1 {
            name.push(format!("-{number}"));
        }
        PathBuf::from(name)
    };
    let mut number = 1;
    let (mut copy, copied_to) = loop {
        let candidate = aside(number);
        match crate::directory::create_new(&candidate) {
            Ok(copy) => break (copy, candidate),
            // The same place was torn before.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    };
    file.seek(SeekFrom::Start(len))?;
    io::copy(&mut file.take(u64::MAX), &mut copy)?;
    copy.sync_all()?;
    file.set_len(len)?;
    file.sync_all()?;
    Ok(copied_to)
}
