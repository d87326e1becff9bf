//! The thread that owns the files: it writes what is waiting in one go, syncs once, and then answers everybody.

use std::{
    fs::{self, File},
    io::{self, Write},
    mem,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::{
    error::{SpoolError, SpoolErrorKind},
    format::{ENTRY_BYTES, HEADER_BYTES, Header, Note, encode_entry, encode_record},
    log::Segment,
    queue::{Happening, Order, Shared, Ticket, locked},
    recovery::{delete, mark_clean},
};

/// Most records in one go, and the length at which no further one is taken up.
const BATCH_RECORDS_MAX: usize = 2048;
const BATCH_BYTES_MAX: usize = 4 << 20;

/// How often the thread looks around when nobody wants anything.
const IDLE: Duration = Duration::from_secs(1);

/// Age at which a new segment is begun, so that what the oldest one says about the age of its records is true.
const SEGMENT_AGE_MAX: Duration = Duration::from_secs(60);

/// How long a segment of which everything is done stays open for what may come.
const LINGER: Duration = Duration::from_secs(5);

pub(crate) struct Committer {
    shared: Arc<Shared>,
    active: Option<Active>,
    last_append: Instant,
    journal_dirty_since: Option<Instant>,
}

/// The segment that is appended to.
struct Active {
    file: File,
    epoch: u64,
    begun: Instant,
    /// How far it is fsynced.
    len: u64,
}

struct Waiting {
    payload: Bytes,
    _permit: OwnedSemaphorePermit,
    answer: oneshot::Sender<Result<Ticket, SpoolError>>,
}

impl Committer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, active: None, last_append: Instant::now(), journal_dirty_since: None }
    }

    /// Works until the log is closed or nobody has it any more.
    pub(crate) fn run(mut self) {
        loop {
            let (mut batch, mut bytes, mut notes, mut close) = (Vec::new(), 0, Vec::new(), None);
            {
                let mut orders = locked(&self.shared.orders);
                if orders.is_empty() && !locked(&self.shared.log).closed {
                    let waited = self.shared.ordered.wait_timeout(orders, IDLE);
                    orders = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(orders, _)| orders);
                }
                while batch.len() < BATCH_RECORDS_MAX && bytes < BATCH_BYTES_MAX && close.is_none() {
                    match orders.pop_front() {
                        None => break,
                        // A record that nobody waits for any more would only be a duplicate of its repeat.
                        Some(Order::Append { answer, .. }) if answer.is_closed() => {}
                        Some(Order::Append { payload, permit, answer }) => {
                            bytes += payload.len();
                            batch.push(Waiting { payload, _permit: permit, answer });
                        }
                        Some(Order::Note { number, note, written }) => notes.push((number, note, written)),
                        Some(Order::Close(answer)) => close = Some(answer),
                    }
                }
                if batch.is_empty() && notes.is_empty() && close.is_none() && locked(&self.shared.log).closed {
                    return;
                }
            }
            locked(&self.shared.log).busy_since = Some(Instant::now());
            let idle = batch.is_empty() && notes.is_empty();
            if !notes.is_empty() {
                self.note(notes);
            }
            if !batch.is_empty() {
                self.commit(batch);
            }
            if idle {
                self.look_around();
            }
            self.sync_journals(close.is_some());
            self.delete_finished();
            locked(&self.shared.log).busy_since = None;
            if let Some(answer) = close {
                self.close();
                // Whoever asked may have gone.
                let _ = answer.send(());
                return;
            }
        }
    }

    fn commit(&mut self, batch: Vec<Waiting>) {
        let stored = self.store(&batch);
        self.last_append = Instant::now();
        match stored {
            Ok(first) => {
                locked(&self.shared.log).failure = None;
                for (number, waiting) in (first..).zip(batch) {
                    let _ = waiting.answer.send(Ok(Ticket { number }));
                }
                self.shared.readable.notify_waiters();
            }
            Err(error) => {
                (self.shared.happens)(&Happening::CommitFailed { error: &error });
                locked(&self.shared.log).failure = Some(error.clone());
                for waiting in batch {
                    let _ = waiting.answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// Stores a batch and returns the number of its first record.
    fn store(&mut self, batch: &[Waiting]) -> Result<u64, SpoolError> {
        let options = &self.shared.options;
        let length: usize = batch.iter().map(|waiting| (waiting.payload.len() + 40).next_multiple_of(8)).sum();
        self.check_room(length as u64)?;
        let worn = |active: &Active| active.len >= options.segment_bytes || active.begun.elapsed() > SEGMENT_AGE_MAX;
        if self.active.as_ref().is_some_and(worn) {
            self.seal();
        }
        match self.write(batch) {
            // The kernel has forgotten what it could not write, but we have not: once more, into another file.
            Err(Failed::Sync(_)) => self.write(batch).map_err(Failed::into_inner),
            written => written.map_err(Failed::into_inner),
        }
    }

    fn check_room(&self, bytes: u64) -> Result<(), SpoolError> {
        let (options, dir) = (&self.shared.options, locked(&self.shared.log).dir.clone());
        if !options.budget.has_room(bytes + HEADER_BYTES) {
            let what = format!("the spool in {} has its {} bytes (max_size)", dir.display(), options.budget.max());
            return Err(SpoolError::new(SpoolErrorKind::Full, what));
        }
        let free = self.shared.disk.free_bytes(&dir).map_err(|source| SpoolError::writing("look at", &dir, source))?;
        if free < options.min_free_bytes.saturating_add(bytes) {
            let what =
                format!("the disk of {} has {free} bytes left, less than it shall keep (min_free)", dir.display());
            return Err(SpoolError::new(SpoolErrorKind::Full, what));
        }
        Ok(())
    }

    fn write(&mut self, batch: &[Waiting]) -> Result<u64, Failed> {
        let mut active = match self.active.take() {
            Some(active) => active,
            None => self.begin().map_err(Failed::Other)?,
        };
        let (path, first) = {
            let log = locked(&self.shared.log);
            (log.segments.back().expect("the active one is there").path.clone(), log.next)
        };
        let mut bytes = Vec::new();
        let now = now_ms();
        for (number, waiting) in (first..).zip(batch) {
            encode_record(&mut bytes, active.epoch, number, now, &waiting.payload);
        }
        let disk = &self.shared.disk;
        if let Err(source) = disk.write_at(&active.file, &bytes, active.len) {
            let error = SpoolError::writing("write to", &path, source);
            // What is half written must not stand before the next record.
            match disk.truncate(&active.file, active.len).and_then(|()| disk.sync(&active.file)) {
                Ok(()) => self.active = Some(active),
                Err(_) => self.abandon(),
            }
            return Err(Failed::Other(error));
        }
        let begun = Instant::now();
        if let Err(source) = disk.sync(&active.file) {
            self.abandon();
            return Err(Failed::Sync(SpoolError::writing("fsync", &path, source)));
        }
        let (records, length) = (batch.len(), bytes.len() as u64);
        active.len += length;
        {
            let mut log = locked(&self.shared.log);
            log.next = first + records as u64;
            let segment = log.segments.back_mut().expect("the active one is there");
            segment.push(records as u64);
            segment.len = active.len;
        }
        self.shared.options.budget.take(length);
        self.active = Some(active);
        (self.shared.happens)(&Happening::Committed { records, bytes: length, sync: begun.elapsed() });
        Ok(first)
    }

    /// Begins a segment. It outlasts a crash before anything is in it.
    fn begin(&mut self) -> Result<Active, SpoolError> {
        let (first, dir) = {
            let log = locked(&self.shared.log);
            (log.next, log.dir.clone())
        };
        let path = dir.join(format!("sp-{first:020}.seg"));
        let (epoch, made_ms) = (fastrand::u64(..), now_ms());
        let disk = &self.shared.disk;
        // One that was abandoned before anything was in it has the same name.
        if path.exists() {
            let aside = crate::directory::quarantine_path(&dir, &format!("sp-{first:020}.abandoned"))?;
            fs::rename(&path, &aside).map_err(|source| SpoolError::writing("rename", &path, source))?;
        }
        let make = || -> io::Result<File> {
            let file = disk.create(&path)?;
            disk.write_at(&file, &Header { first, epoch, made_ms }.encode(), 0)?;
            disk.sync(&file)?;
            File::create(path.with_extension("ack"))?;
            disk.sync_dir(&dir)?;
            Ok(file)
        };
        let file = make().map_err(|source| {
            // Of no use to anybody.
            let _ = fs::remove_file(&path);
            let _ = fs::remove_file(path.with_extension("ack"));
            SpoolError::writing("begin", &path, source)
        })?;
        let mut log = locked(&self.shared.log);
        if log.segments.back().is_some_and(|last| last.first == first) {
            log.segments.pop_back();
        }
        log.segments.push_back(Segment::new(first, epoch, path, made_ms));
        log.active = true;
        self.shared.options.budget.take(HEADER_BYTES);
        Ok(Active { file, epoch, begun: Instant::now(), len: HEADER_BYTES })
    }

    /// Appends nothing more to the active segment.
    fn seal(&mut self) {
        self.active = None;
        locked(&self.shared.log).active = false;
    }

    /// The same, for one whose end is not known any more. Its descriptor is not used again.
    fn abandon(&mut self) {
        self.seal();
    }

    fn note(&mut self, notes: Vec<(u64, Note, Option<oneshot::Sender<()>>)>) {
        let mut answers = Vec::new();
        let mut entries: Vec<(std::path::PathBuf, Vec<u8>)> = Vec::new();
        let mut for_good = false;
        {
            let mut log = locked(&self.shared.log);
            for (number, note, written) in notes {
                if let Some(segment) = log.segment_of(number) {
                    let fresh = note != Note::Done || segment.set_done(number);
                    let (journal, entry) = (segment.journal(), encode_entry(segment.epoch, number, note));
                    if fresh {
                        match entries.iter_mut().find(|(path, _)| *path == journal) {
                            Some((_, bytes)) => bytes.extend_from_slice(&entry),
                            None => entries.push((journal, entry.to_vec())),
                        }
                    }
                    log.note(number, note);
                }
                for_good |= note == Note::Done && written.is_some();
                answers.extend(written);
            }
        }
        for (path, bytes) in entries {
            // What is not in the journal is published again, with its id: no reason to stop.
            if let Ok(journal) = fs::OpenOptions::new().append(true).create(true).open(&path) {
                let end = journal.metadata().map_or(0, |metadata| metadata.len());
                // Behind a torn entry no other would be found.
                let whole = end - end % ENTRY_BYTES as u64;
                let _ = journal.set_len(whole).and_then(|()| (&journal).write_all(&bytes));
                if for_good {
                    let _ = journal.sync_data();
                }
            }
        }
        self.journal_dirty_since.get_or_insert_with(Instant::now);
        for answer in answers {
            let _ = answer.send(());
        }
    }

    /// Fsyncs the journals from time to time: what is lost of them is published again.
    fn sync_journals(&mut self, now: bool) {
        let due = self.journal_dirty_since.is_some_and(|since| now || since.elapsed() > IDLE);
        if due {
            self.journal_dirty_since = None;
            let journals: Vec<_> = locked(&self.shared.log)
                .segments
                .iter()
                .filter(|segment| segment.remaining > 0)
                .map(Segment::journal)
                .collect();
            for path in journals {
                let _ = File::open(&path).and_then(|file| file.sync_data());
            }
        }
    }

    /// What is done when nobody wants anything.
    fn look_around(&mut self) {
        let lingered = self.last_append.elapsed() > LINGER;
        let (empty, failed) = {
            let log = locked(&self.shared.log);
            let empty = log.active
                && log.segments.back().is_some_and(|segment| segment.remaining == 0 && segment.end > segment.first);
            (empty, log.failure.is_some())
        };
        if empty && lingered {
            self.seal();
        }
        if failed {
            // Does it work again? Nobody should have to try it with an event.
            let tried = self.check_room(1 << 16).and_then(|()| match self.active.take() {
                Some(active) => Ok(active),
                None => self.begin(),
            });
            match tried {
                Ok(active) => {
                    self.active = Some(active);
                    locked(&self.shared.log).failure = None;
                }
                Err(error) => locked(&self.shared.log).failure = Some(error),
            }
        }
    }

    fn delete_finished(&self) {
        let (finished, dir) = {
            let mut log = locked(&self.shared.log);
            (log.take_finished(), log.dir.clone())
        };
        for segment in finished {
            let journal = segment.journal();
            let gone = segment.path.with_extension("gone");
            // First of all it is said that this is no loss.
            if fs::rename(&journal, &gone).and_then(|()| self.shared.disk.sync_dir(&dir)).is_err() {
                let _ = File::create(&gone);
            }
            let (budget, empty) = (Arc::clone(&self.shared.options.budget), segment.end == segment.first);
            let work = move || {
                delete(&segment.path);
                delete(&gone);
                budget.give_back(segment.len);
            };
            if empty {
                // Its name is used again at once.
                work();
                continue;
            }
            // Not on this thread, on which everybody waits.
            let _ = thread::Builder::new().name("spool-delete".to_owned()).spawn(work);
        }
    }

    fn close(&mut self) {
        self.seal();
        self.sync_journals(true);
        self.delete_finished();
        let (dir, next) = {
            let mut log = locked(&self.shared.log);
            log.closed = true;
            (log.dir.clone(), log.next)
        };
        // Without the marker the next start looks more closely, that is all.
        let _ = mark_clean(&dir, &*self.shared.disk, next);
        mem::take(&mut *locked(&self.shared.orders));
        self.shared.readable.notify_waiters();
    }
}

/// Why a batch was not stored.
enum Failed {
    /// Its fsync failed: it may be stored anew.
    Sync(SpoolError),
    Other(SpoolError),
}

impl Failed {
    fn into_inner(self) -> SpoolError {
        match self {
            Self::Sync(error) | Self::Other(error) => error,
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
