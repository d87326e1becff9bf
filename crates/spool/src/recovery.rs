//! What a start makes of what the last process left: every valid record is kept, everything else is set aside and told.

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    directory::{self, quarantine_path, set_aside},
    disk::Disk,
    error::{SpoolError, SpoolErrorKind},
    format::{Beginning, ENTRY_BYTES, HEADER_BYTES, Header, Note, decode_entry},
    log::{Log, Segment},
    queue::{Happening, Happens},
    scan::{Item, Scan},
};

/// Says that the last process ended cleanly; holds the number of its next record.
pub(crate) const CLEAN: &str = "clean";

/// What a start has found.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// Nothing was there.
    pub fresh: bool,
    /// The last process ended cleanly.
    pub clean: bool,
    /// Records that are not done.
    pub events: u64,
    /// Bytes of a record whose writing a crash had cut short; nobody was told that it is stored.
    pub torn_bytes: u64,
    /// Damaged places.
    pub corrupt: u64,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.clean { "after a clean stop" } else { "after a crash" };
        let Self { events, torn_bytes, corrupt, took, .. } = self;
        write!(f, "the spool was read {how}: {events} records wait")?;
        if *torn_bytes > 0 {
            write!(f, ", {torn_bytes} bytes of an unfinished write were set aside")?;
        }
        if *corrupt > 0 {
            write!(f, ", {corrupt} damaged places were set aside")?;
        }
        write!(f, "; it took {} ms", took.as_millis())
    }
}

struct Recovery<'a> {
    dir: &'a Path,
    disk: &'a dyn Disk,
    happens: &'a Happens,
    found: Recovered,
}

/// Reads the segments in `dir`.
pub(crate) fn recover(dir: &Path, disk: &dyn Disk, happens: &Happens) -> Result<(Log, Recovered), SpoolError> {
    let begun = Instant::now();
    let mut recovery = Recovery { dir, disk, happens, found: Recovered::default() };
    let mut log = recovery.read()?;
    log.quarantined = directory::quarantined(dir);
    let mut found = recovery.found;
    found.events = log.segments.iter().map(|segment| segment.remaining).sum();
    found.took = begun.elapsed();
    Ok((log, found))
}

impl Recovery<'_> {
    fn read(&mut self) -> Result<Log, SpoolError> {
        let mut log = Log::new(self.dir);
        let files = self.files()?;
        // Before anything is changed.
        for path in files.iter().filter(|path| has(path, "seg")) {
            if let Beginning::Newer(version) = self.beginning(path)?.1 {
                let what = format!(
                    "{} is of version {version}, which this hookgate does not know; use the one that wrote it",
                    path.display()
                );
                return Err(SpoolError::new(SpoolErrorKind::NewerFormat, what));
            }
        }
        let noted = self.take_marker()?;
        self.found.clean = noted.is_some();
        self.found.fresh = noted.is_none() && files.is_empty();
        self.finish_deletions(&files)?;
        let segments: Vec<&PathBuf> = files.iter().filter(|path| has(path, "seg") && path.exists()).collect();
        self.tell_of_missing(&files)?;
        let firsts: Vec<Option<u64>> = segments.iter().map(|path| number(path)).collect();
        for (place, path) in segments.iter().enumerate() {
            let next_first = firsts.get(place + 1).copied().flatten();
            self.segment(path, next_first, noted, &mut log)?;
        }
        let end = log.segments.back().map_or(1, |segment| segment.end);
        log.next = end.max(noted.unwrap_or(1));
        Ok(log)
    }

    fn files(&self) -> Result<Vec<PathBuf>, SpoolError> {
        let listed = fs::read_dir(self.dir).map_err(|source| SpoolError::reading(self.dir, source))?;
        let mut files = Vec::new();
        for entry in listed {
            let path = entry.map_err(|source| SpoolError::reading(self.dir, source))?.path();
            if number(&path).is_some() {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    fn take_marker(&self) -> Result<Option<u64>, SpoolError> {
        let path = self.dir.join(CLEAN);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(SpoolError::reading(&path, error)),
        };
        // From here on it is not true any more.
        let removed = fs::remove_file(&path).and_then(|()| self.disk.sync_dir(self.dir));
        removed.map_err(|source| SpoolError::writing("remove", &path, source))?;
        Ok(text.trim().parse().ok())
    }

    /// A process may have ended between the steps of a deletion.
    fn finish_deletions(&self, files: &[PathBuf]) -> Result<(), SpoolError> {
        for gone in files.iter().filter(|path| has(path, "gone")) {
            delete(&gone.with_extension("seg"));
            delete(gone);
        }
        Ok(())
    }

    fn tell_of_missing(&mut self, files: &[PathBuf]) -> Result<(), SpoolError> {
        let names: BTreeSet<&PathBuf> = files.iter().collect();
        for journal in files.iter().filter(|path| has(path, "ack")) {
            let segment = journal.with_extension("seg");
            if !names.contains(&segment) {
                self.corrupt(&segment, "the file is missing, though it was not done with".to_owned());
                self.move_aside(journal)?;
            }
        }
        Ok(())
    }

    fn beginning(&self, path: &Path) -> Result<(File, Beginning), SpoolError> {
        let failed = |source| SpoolError::reading(path, source);
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        (&file).take(HEADER_BYTES).read_to_end(&mut bytes).map_err(failed)?;
        let beginning = Header::decode(&bytes);
        Ok((file, beginning))
    }

    fn segment(
        &mut self,
        path: &Path,
        next_first: Option<u64>,
        noted: Option<u64>,
        log: &mut Log,
    ) -> Result<(), SpoolError> {
        let failed = |source| SpoolError::reading(path, source);
        let (file, beginning) = self.beginning(path)?;
        let file_len = file.metadata().map_err(failed)?.len();
        let Beginning::Ours(header) = beginning else {
            if next_first.is_none() && !self.found.clean && file_len <= HEADER_BYTES {
                // Its making was cut short: nothing was ever in it.
                self.found.torn_bytes += file_len;
            } else {
                self.corrupt(path, "its header is damaged".to_owned());
            }
            self.move_aside(&path.with_extension("ack"))?;
            return self.move_aside(path);
        };
        let mut segment = Segment::new(header.first, header.epoch, path.to_owned(), header.made_ms);
        let mut lost = Vec::new();
        let mut scan = Scan::new(&file, header.epoch, HEADER_BYTES, file_len, header.first);
        while let Some(item) = scan.next().map_err(failed)? {
            match item {
                // What a later file has anew, since this one was abandoned.
                Item::Record { number, .. } if next_first.or(noted).is_some_and(|next| number >= next) => break,
                Item::Record { number, .. } => {
                    lost.extend(segment.end..number);
                    segment.push(number + 1 - segment.end);
                    segment.len = scan.offset();
                }
                Item::Damage { start, end } if end == file_len => {
                    self.bad_tail(&file, &segment, (start, end), next_first, noted)?;
                }
                Item::Damage { start, end } => self.set_aside(&file, path, start, end)?,
            }
        }
        for number in lost {
            segment.set_done(number);
        }
        self.journal(&mut segment, log)?;
        log.segments.push_back(segment);
        Ok(())
    }

    /// What is behind the last valid record of a segment.
    fn bad_tail(
        &mut self,
        file: &File,
        segment: &Segment,
        (start, end): (u64, u64),
        next_first: Option<u64>,
        noted: Option<u64>,
    ) -> Result<(), SpoolError> {
        let path = &segment.path;
        let followed_by = next_first.or(noted);
        if followed_by == Some(segment.end) {
            // Nothing is missing: it is what a failed write has left of records that were refused or written anew.
            return Ok(());
        }
        if followed_by.is_some() {
            return self.set_aside(file, path, start, end);
        }
        set_aside(self.dir, file, &format!("{}.torn-{start}", name(path)), start, end)?;
        let cut = self.disk.truncate(file, start).and_then(|()| file.sync_all());
        cut.map_err(|source| SpoolError::writing("cut off the unfinished write in", path, source))?;
        self.found.torn_bytes += end - start;
        Ok(())
    }

    fn set_aside(&mut self, file: &File, path: &Path, start: u64, end: u64) -> Result<(), SpoolError> {
        let kept = set_aside(self.dir, file, &format!("{}.damaged-{start}", name(path)), start, end)?;
        self.corrupt(path, format!("bytes {start} to {end} are damaged; a copy is in {}", kept.display()));
        Ok(())
    }

    fn journal(&self, segment: &mut Segment, log: &mut Log) -> Result<(), SpoolError> {
        let path = segment.journal();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(SpoolError::reading(&path, error)),
        };
        let mut entry = [0; ENTRY_BYTES];
        let mut reader = std::io::BufReader::with_capacity(1 << 16, &file);
        while reader.read_exact(&mut entry).is_ok() {
            // An entry that is damaged means one repeat, which carries its id.
            let Some((number, note)) = decode_entry(segment.epoch, &entry) else { continue };
            if number < segment.first || number >= segment.end {
                continue;
            }
            if note == Note::Done {
                segment.set_done(number);
            }
            log.note(number, note);
        }
        for (_, tries) in log.tries.range_mut(segment.first..segment.end) {
            tries.crashes = tries.begun.saturating_sub(tries.failed);
        }
        Ok(())
    }

    fn move_aside(&mut self, path: &Path) -> Result<(), SpoolError> {
        if !path.exists() {
            return Ok(());
        }
        let to = quarantine_path(self.dir, &name(path))?;
        let moved = fs::rename(path, &to).and_then(|()| self.disk.sync_dir(self.dir));
        moved.map_err(|source| SpoolError::writing("set aside", path, source))
    }

    fn corrupt(&mut self, file: &Path, detail: String) {
        self.found.corrupt += 1;
        (self.happens)(&Happening::Corrupt { file, detail });
    }
}

fn has(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The number in the name of a file of ours.
fn number(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.strip_prefix("sp-")?.parse().ok()
}

/// Deletes a file in steps: to free much at once can hold up every other file of a file system for a long time.
pub(crate) fn delete(path: &Path) {
    const STEP_BYTES: u64 = 4 << 20;
    let Ok(file) = OpenOptions::new().write(true).open(path) else { return };
    let mut len = file.metadata().map_or(0, |metadata| metadata.len());
    while len > STEP_BYTES {
        len -= STEP_BYTES;
        if file.set_len(len).is_err() {
            break;
        }
    }
    // What cannot be deleted is found, and deleted, by the next start.
    let _ = fs::remove_file(path);
}

/// Writes a marker that says that `next` is the number of the next record.
pub(crate) fn mark_clean(dir: &Path, disk: &dyn Disk, next: u64) -> Result<(), SpoolError> {
    let path = dir.join(CLEAN);
    let write = || {
        let file = File::create(&path)?;
        file.write_all_at(format!("{next}\n").as_bytes(), 0)?;
        file.sync_all()?;
        disk.sync_dir(dir)
    };
    write().map_err(|source| SpoolError::writing("write", &path, source))
}
