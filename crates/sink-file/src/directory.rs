//! The directory of the files: who owns it, which files are in it, and what the next one is called.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access, statvfs};

use crate::{
    error::Failure,
    segment::{Segment, set_aside_torn, whole_lines},
};

/// The file whose lock says that the directory is ours. It holds the number of the newest file ever begun, so that no
/// name is used twice, even when a consumer has taken all files away.
const LOCK_FILE: &str = "hookgate.lock";

/// Free space below which a probe fails, in bytes: less than this and the next large event will not fit.
const FREE_BYTES_MIN: u64 = 64 * 1024;

/// A directory that this sink alone writes to, until it is dropped.
pub(crate) struct Directory {
    path: PathBuf,
    lock: File,
    newest: u64,
}

/// The newest file as it was found, ready to go on with.
pub(crate) struct Resumed {
    pub(crate) segment: Segment,
    /// What a crash had left at its end, if anything.
    pub(crate) mended: Option<Mended>,
}

/// A line that was written in part and has been set aside.
pub(crate) struct Mended {
    pub(crate) file: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) set_aside: PathBuf,
}

impl fmt::Display for Mended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, set_aside) = (self.file.display(), self.set_aside.display());
        write!(f, "{} bytes of {file} are now in {set_aside}", self.bytes)
    }
}

impl Directory {
    /// Takes possession of the directory at `path`, which exists.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |source| Failure::directory(path, source);
        let lock_path = path.join(LOCK_FILE);
        let mut lock =
            owned(OpenOptions::new().read(true).write(true).create(true)).open(&lock_path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Failure::Locked { lock: lock_path }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let mut noted = String::new();
        lock.read_to_string(&mut noted).map_err(failed)?;
        let newest = newest_file(path).map_err(failed)?.max(noted.trim().parse().unwrap_or(0));
        Ok(Self { path: path.to_owned(), lock, newest })
    }

    /// The number of the newest file ever begun here, or 0.
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// Leaves out every number up to and including `number`.
    pub(crate) fn skip_to(&mut self, number: u64) {
        self.newest = self.newest.max(number);
    }

    /// The newest file, mended if a crash has torn its last line; `None` when it is not there.
    pub(crate) fn resume(&self) -> io::Result<Option<Resumed>> {
        let path = self.path.join(file_name(self.newest));
        let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let whole = whole_lines(&file)?;
        let torn = file.metadata()?.len() - whole;
        let mut mended = None;
        if torn > 0 {
            let set_aside = set_aside_torn(&mut file, &path, whole)?;
            mended = Some(Mended { file: path.clone(), bytes: torn, set_aside });
        }
        // Whoever made this file may not have lived to make it last.
        file.sync_all()?;
        sync_directory(&self.path)?;
        Ok(Some(Resumed { segment: Segment::new(file, path, whole), mended }))
    }

    /// Whether it is still the one that we have locked.
    pub(crate) fn is_there(&self) -> bool {
        self.lock.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
    }

    /// Begins the next file. It outlasts a crash before anything is in it.
    pub(crate) fn begin(&mut self) -> Result<Segment, Failure> {
        loop {
            let number = self.newest + 1;
            let path = self.path.join(file_name(number));
            let failed = |source| Failure::Begin { file: path.clone(), source };
            self.note(number).map_err(failed)?;
            let file = match create_new(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    self.newest = number;
                    continue;
                }
                Err(error) => return Err(failed(error)),
            };
            if let Err(source) = file.sync_all().and_then(|()| sync_directory(&self.path)) {
                // An empty file is of no use to anybody; if it stays all the same, its name is passed over.
                let _ = fs::remove_file(&path);
                return Err(failed(source));
            }
            self.newest = number;
            return Ok(Segment::new(file, path, 0));
        }
    }

    fn note(&self, number: u64) -> io::Result<()> {
        self.lock.write_all_at(format!("{number:08}\n").as_bytes(), 0)?;
        self.lock.sync_data()
    }
}

/// Makes the directory at `path` and all above it, each lasting before the next is made in it.
pub(crate) fn make(path: &Path) -> Result<(), Failure> {
    let failed = |source| Failure::directory(path, source);
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if parent == Path::new("") => Path::new("."),
        Some(parent) => parent,
        None => return Err(failed(ErrorKind::NotFound.into())),
    };
    make(parent)?;
    match DirBuilder::new().mode(0o750).create(path) {
        // Somebody else was faster, or it is no directory, which using it will tell.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made.and_then(|()| sync_directory(parent)).map_err(failed),
    }
}

/// Whether a line could be written to the directory at `path` now, as far as one can tell without writing.
pub(crate) fn probe(path: &Path) -> Result<(), Failure> {
    let failed = |error: rustix::io::Errno| Failure::directory(path, error.into());
    access(path, Access::WRITE_OK | Access::EXEC_OK).map_err(failed)?;
    let space = statvfs(path).map_err(failed)?;
    let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
    match free_bytes < FREE_BYTES_MIN {
        true => Err(Failure::NoRoom { dir: path.to_owned(), free_bytes }),
        false => Ok(()),
    }
}

/// Makes the file at `path`, which must not exist.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    owned(OpenOptions::new().read(true).write(true).create_new(true)).open(path)
}

/// What is made is for its owner and group: bodies hold what senders confide to their receiver, tokens at times.
fn owned(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(0o640)
}

/// A name that is not on the disk is lost in a crash, however well its file was synced.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn newest_file(path: &Path) -> io::Result<u64> {
    let mut newest = 0;
    for entry in fs::read_dir(path)? {
        newest = newest.max(entry?.file_name().to_str().and_then(file_number).unwrap_or(0));
    }
    Ok(newest)
}

fn file_name(number: u64) -> String {
    format!("events-{number:08}.jsonl")
}

/// The number in a name that [`file_name`] gives.
fn file_number(name: &str) -> Option<u64> {
    let number = name.strip_prefix("events-")?.strip_suffix(".jsonl")?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_have_a_number() {
        for number in [1, 42, 99_999_999, 100_000_000] {
            assert_eq!(file_number(&file_name(number)), Some(number));
        }
        for foreign in
            ["events-1.jsonl", "events-00000001.jsonl.gz", "events-+0000001.jsonl", "events-.jsonl", ".jsonl"]
        {
            assert_eq!(file_number(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn names_are_given_once_even_when_all_files_were_taken_away() {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let mut directory = Directory::open(dir.path()).expect("it is ours");
        directory.begin().expect("it can be begun");
        let second = directory.begin().expect("it can be begun");
        assert_eq!(&**second.name(), "events-00000002.jsonl");
        for number in 1..=2 {
            fs::remove_file(dir.path().join(file_name(number))).expect("it is there");
        }
        drop(directory);
        let mut directory = Directory::open(dir.path()).expect("it is ours again");
        assert_eq!(&**directory.begin().expect("it can be begun").name(), "events-00000003.jsonl");
    }
}
