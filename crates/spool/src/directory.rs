//! Directories that last, and the lock that makes one of them ours.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::error::{SpoolError, SpoolErrorKind};

const LOCK_FILE: &str = "hookgate.lock";

/// Where what is damaged is kept, beside the segments.
pub(crate) const QUARANTINE: &str = "quarantine";

/// A directory that belongs to this process until the lock is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Makes the directory at `dir` if it is not there, and takes possession of it.
    ///
    /// # Errors
    /// `Locked` when another process has it; `Unwritable` when it cannot be made or written to.
    pub fn take(dir: &Path) -> Result<Self, SpoolError> {
        make(dir)?;
        let path = dir.join(LOCK_FILE);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(&path);
        let file = opened.map_err(|source| SpoolError::writing("write to", &path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => {
                let what = format!("{} is locked: another hookgate uses this directory", path.display());
                Err(SpoolError::new(SpoolErrorKind::Locked, what))
            }
            Err(TryLockError::Error(source)) => Err(SpoolError::writing("lock", &path, source)),
        }
    }
}

/// Makes the directory at `path` and all above it, each lasting before the next is made in it.
pub(crate) fn make(path: &Path) -> Result<(), SpoolError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if parent == Path::new("") => Path::new("."),
        Some(parent) => parent,
        None => return Err(SpoolError::writing("make", path, ErrorKind::NotFound.into())),
    };
    make(parent)?;
    match DirBuilder::new().mode(0o750).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made
            .and_then(|()| File::open(parent)?.sync_all())
            .map_err(|source| SpoolError::writing("make", path, source)),
    }
}

/// A name in the quarantine that is not taken.
pub(crate) fn quarantine_path(dir: &Path, name: &str) -> Result<PathBuf, SpoolError> {
    let quarantine = dir.join(QUARANTINE);
    make(&quarantine)?;
    let free = (0_u32..).map(|number| match number {
        0 => quarantine.join(name),
        _ => quarantine.join(format!("{name}-{number}")),
    });
    Ok(free.into_iter().find(|path| !path.exists()).expect("some number is free"))
}

/// How much is in the quarantine.
pub(crate) fn quarantined(dir: &Path) -> u64 {
    fs::read_dir(dir.join(QUARANTINE)).map_or(0, |entries| entries.count() as u64)
}

/// Copies the bytes from `start` to `end` of `file` into the quarantine, and returns where they are once they last.
pub(crate) fn set_aside(dir: &Path, file: &File, name: &str, start: u64, end: u64) -> Result<PathBuf, SpoolError> {
    use std::io::{Read, Seek, SeekFrom};
    let path = quarantine_path(dir, name)?;
    let copy = || -> io::Result<()> {
        let mut source = file.try_clone()?;
        source.seek(SeekFrom::Start(start))?;
        let mut to = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path)?;
        io::copy(&mut source.take(end - start), &mut to)?;
        to.sync_all()?;
        File::open(dir.join(QUARANTINE))?.sync_all()
    };
    copy().map_err(|source| SpoolError::writing("set damaged bytes aside in", &path, source))?;
    Ok(path)
}
