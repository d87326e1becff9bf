//! All files of a sink as one log: which file a line goes to, and what happens to a file that fails.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    directory::{self, Directory, Mended},
    error::Failure,
    segment::Segment,
};

/// The files of one sink.
pub(crate) struct Log {
    path: PathBuf,
    rotate_at: u64,
    /// The number of the newest file ever begun; names are not used again, not even in a directory made anew.
    newest: u64,
    /// `None` when it has to be opened anew.
    directory: Option<Directory>,
    /// `None` when the next line begins a new file.
    segment: Option<Segment>,
}

/// Where lines were written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) file: Arc<str>,
    /// Of the first of them.
    pub(crate) offset: u64,
}

/// What became of the newest file when the log was opened.
pub(crate) enum Found {
    /// Nothing that anybody needs to know.
    Sound,
    /// Its last line was torn.
    Mended(Mended),
    /// It cannot be gone on with; it is left as it is and a new one is begun.
    Unusable(Failure),
}

impl Log {
    /// Opens the files in the directory at `path`, which is made if it is not there.
    pub(crate) fn open(path: &Path, rotate_at: u64) -> Result<(Self, Found), Failure> {
        directory::make(path)?;
        let directory = Directory::open(path)?;
        let (segment, found) = match directory.resume() {
            Ok(None) => (None, Found::Sound),
            Ok(Some(resumed)) => (Some(resumed.segment), resumed.mended.map_or(Found::Sound, Found::Mended)),
            Err(source) => (None, Found::Unusable(Failure::directory(path, source))),
        };
        let newest = directory.newest();
        let log = Self { path: path.to_owned(), rotate_at, newest, directory: Some(directory), segment };
        Ok((log, found))
    }

    /// How many of the next lines, which are this long, go into one file; at least one.
    pub(crate) fn fitting(&self, lengths: &[u64]) -> usize {
        let fitting_behind = |used: u64| {
            let ends = lengths.iter().scan(used, |end, length| {
                *end += length;
                Some(*end)
            });
            ends.take_while(|end| *end <= self.rotate_at).count()
        };
        match fitting_behind(self.segment.as_ref().map_or(0, Segment::len)) {
            // What does not fit any more goes into a file of its own.
            0 => fitting_behind(0).max(1),
            count => count,
        }
    }

    /// Writes `lines`, as many as [`Self::fitting`] says, and returns where they are once they are on the disk.
    pub(crate) fn append(&mut self, lines: &[u8]) -> Result<Written, Failure> {
        let fits = |segment: &Segment| segment.len() == 0 || segment.len() + lines.len() as u64 <= self.rotate_at;
        self.segment = self.segment.take().filter(fits);
        match self.append_to_current(lines) {
            // Somebody has tidied up too eagerly. If the directory is still there, a new file mends it.
            Err(Failure::Deleted { .. }) => self.append_to_current(lines),
            written => written,
        }
    }

    /// Whether a line could be written now, as far as one can tell without writing.
    pub(crate) fn probe(&self) -> Result<(), Failure> {
        directory::probe(&self.path)
    }

    fn append_to_current(&mut self, lines: &[u8]) -> Result<Written, Failure> {
        let mut segment = match self.segment.take() {
            Some(segment) => segment,
            None => self.begin()?,
        };
        let written = segment.append(lines).map(|offset| Written { file: Arc::clone(segment.name()), offset });
        match &written {
            Ok(_) | Err(Failure::Write { .. }) => self.segment = Some(segment),
            // The file is abandoned: what is at its end, and what the disk has of it, is not known any more.
            Err(_) => {}
        }
        written
    }

    fn begin(&mut self) -> Result<Segment, Failure> {
        let mut directory = match self.directory.take().filter(Directory::is_there) {
            Some(directory) => directory,
            None => Directory::open(&self.path)?,
        };
        directory.skip_to(self.newest);
        let begun = directory.begin();
        self.newest = directory.newest();
        self.directory = Some(directory);
        begun
    }
}
