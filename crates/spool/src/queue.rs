//! The log as its users see it.

use std::{
    collections::VecDeque,
    fmt,
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    committer::Committer,
    directory,
    disk::{Disk, RealDisk},
    error::{SpoolError, SpoolErrorKind},
    format::{HEADER_BYTES, Note, RECORD_HEAD_BYTES, RecordHead},
    log::{Cursor, Log, Segment, State},
    recovery::{self, Recovered},
    scan::{Item, Scan},
};

/// Records that wait to be committed, at most.
const WAITING_MAX: usize = 4096;

/// Most records, and most bytes, that are read ahead.
const AHEAD_RECORDS: usize = 256;
const AHEAD_BYTES: usize = 1 << 20;

/// How many bytes several logs may take together.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    max: u64,
}

impl Budget {
    /// A budget of `max_bytes`.
    pub fn new(max_bytes: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), max: max_bytes })
    }

    /// What is taken of it, in bytes.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// All of it, in bytes.
    pub fn max(&self) -> u64 {
        self.max
    }

    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.used() + bytes <= self.max
    }

    pub(crate) fn take(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// How a log is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// Length at which a new segment is begun, in bytes. Space is freed segment by segment.
    pub segment_bytes: u64,
    /// Nothing is appended while the disk has less than this left, in bytes.
    pub min_free_bytes: u64,
    /// What it shares with other logs.
    pub budget: Arc<Budget>,
}

/// Something that happens in a log.
#[derive(Debug)]
pub enum Happening<'a> {
    /// Records were fsynced together.
    Committed {
        /// How many.
        records: usize,
        /// Their length on the disk.
        bytes: u64,
        /// How long the fsync took.
        sync: Duration,
    },
    /// Records could not be stored; those who wait for them were told.
    CommitFailed {
        /// Why.
        error: &'a SpoolError,
    },
    /// Something is damaged, and was set aside.
    Corrupt {
        /// The file.
        file: &'a Path,
        /// What is wrong with it.
        detail: String,
    },
}

/// Who is told what happens in a log. Called on the log's own threads.
pub(crate) type Happens = Arc<dyn Fn(&Happening<'_>) + Send + Sync>;

/// The proof that a record is fsynced.
#[derive(Debug)]
#[must_use = "whoever waits for the record can be told that it is stored"]
pub struct Ticket {
    pub(crate) number: u64,
}

impl Ticket {
    /// The record's number in its log.
    pub fn seq(&self) -> u64 {
        self.number
    }
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    number: u64,
    offset: u64,
}

impl Place {
    /// The record's number in its log.
    pub fn seq(&self) -> u64 {
        self.number
    }
}

/// A record as it was found.
#[derive(Debug, Clone)]
pub struct Record {
    /// Where it is.
    pub place: Place,
    /// When it was appended, to the millisecond.
    pub at: SystemTime,
    /// What was appended.
    pub payload: Bytes,
    /// Attempts with it that ended without success.
    pub failures: u32,
    /// Attempts in the midst of which an earlier process ended.
    pub crashes: u32,
}

/// What the committer is asked for.
pub(crate) enum Order {
    Append { payload: Bytes, permit: OwnedSemaphorePermit, answer: oneshot::Sender<Result<Ticket, SpoolError>> },
    Note { number: u64, note: Note, written: Option<oneshot::Sender<()>> },
    Close(oneshot::Sender<()>),
}

pub(crate) struct Shared {
    pub(crate) log: Mutex<Log>,
    pub(crate) orders: Mutex<VecDeque<Order>>,
    pub(crate) ordered: Condvar,
    /// Wakes those who wait for a record.
    pub(crate) readable: Notify,
    pub(crate) disk: Box<dyn Disk>,
    pub(crate) options: Options,
    pub(crate) happens: Happens,
    room: Arc<Semaphore>,
    /// Read, and not given out yet.
    ahead: Mutex<VecDeque<Record>>,
    /// Held by the one who reads.
    reading: Mutex<()>,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A log in one directory. Clones are the same log.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<Shared>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("dir", &locked(&self.shared.log).dir).finish_non_exhaustive()
    }
}

impl Queue {
    /// Opens the log in `dir`, which is made if it is not there, and finds out what the last process left. Blocks. Whoever opens
    /// it holds the [`crate::Lock`] of the directory or of one above it.
    ///
    /// # Errors
    /// `NewerFormat`, `Unreadable` or `Unwritable`; nothing is lost then.
    pub fn open(
        dir: &Path,
        options: Options,
        happens: Arc<dyn Fn(&Happening<'_>) + Send + Sync>,
    ) -> Result<(Self, Recovered), SpoolError> {
        Self::open_on(Box::new(RealDisk), dir, options, happens)
    }

    pub(crate) fn open_on(
        disk: Box<dyn Disk>,
        dir: &Path,
        options: Options,
        happens: Happens,
    ) -> Result<(Self, Recovered), SpoolError> {
        directory::make(dir)?;
        let (log, recovered) = recovery::recover(dir, &*disk, &happens)?;
        options.budget.take(log.segments.iter().map(|segment| segment.len).sum());
        let shared = Arc::new(Shared {
            log: Mutex::new(log),
            orders: Mutex::default(),
            ordered: Condvar::new(),
            readable: Notify::new(),
            disk,
            options,
            happens,
            room: Arc::new(Semaphore::new(WAITING_MAX)),
            ahead: Mutex::default(),
            reading: Mutex::default(),
        });
        let committer = Committer::new(Arc::clone(&shared));
        let spawned = thread::Builder::new().name("spool".to_owned()).spawn(move || committer.run());
        spawned.map_err(|source| SpoolError::writing("start a thread for", dir, source))?;
        Ok((Self { shared }, recovered))
    }

    /// Appends `payload`, and returns once it is fsynced, together with all that wait at the same time.
    ///
    /// # Errors
    /// `Full`, `Unwritable` or `Closed`. The record may be found after a crash all the same.
    ///
    /// # Cancel safety
    /// Dropping the future may still store the record.
    pub async fn append(&self, payload: Bytes) -> Result<Ticket, SpoolError> {
        let permit = Arc::clone(&self.shared.room).acquire_owned().await.map_err(|_| SpoolError::closed())?;
        let (answer, answered) = oneshot::channel();
        self.order(Order::Append { payload, permit, answer });
        answered.await.unwrap_or_else(|_| Err(SpoolError::closed()))
    }

    /// The next record that was not given out since the log was opened and is not done, oldest first; waits for one.
    ///
    /// # Errors
    /// `Unreadable`.
    ///
    /// # Cancel safety
    /// No record is passed over.
    pub async fn next(&self) -> Result<Record, SpoolError> {
        loop {
            let readable = self.shared.readable.notified();
            tokio::pin!(readable);
            readable.as_mut().enable();
            if let Some(record) = self.take_ahead() {
                return Ok(record);
            }
            let shared = Arc::clone(&self.shared);
            let read = tokio::task::spawn_blocking(move || shared.read_ahead()).await;
            if !read.unwrap_or(Ok(false))? {
                readable.await;
            }
        }
    }

    fn take_ahead(&self) -> Option<Record> {
        let mut ahead = locked(&self.shared.ahead);
        while let Some(record) = ahead.pop_front() {
            let mut log = locked(&self.shared.log);
            let number = record.place.number;
            if log.segment_of(number).is_some_and(|segment| !segment.is_done(number)) {
                return Some(record);
            }
        }
        None
    }

    /// A record that was given out before; `None` when it is done.
    ///
    /// # Errors
    /// `Unreadable`.
    pub async fn read(&self, place: Place) -> Result<Option<Record>, SpoolError> {
        let shared = Arc::clone(&self.shared);
        let read = tokio::task::spawn_blocking(move || shared.read(place)).await;
        read.unwrap_or_else(|_| Err(SpoolError::closed()))
    }

    /// The record is not needed any more. The journal has it soon after; its space is freed with its segment.
    pub fn done(&self, place: Place) {
        self.order(Order::Note { number: place.number, note: Note::Done, written: None });
    }

    /// The same; returns once it is fsynced.
    pub async fn done_for_good(&self, place: Place) {
        let (written, is_written) = oneshot::channel();
        self.order(Order::Note { number: place.number, note: Note::Done, written: Some(written) });
        // A closed log has written all that it was told.
        let _ = is_written.await;
    }

    /// An attempt with the record begins; returns once that outlasts the process.
    pub async fn begun(&self, place: Place) {
        let (written, is_written) = oneshot::channel();
        self.order(Order::Note { number: place.number, note: Note::Begun, written: Some(written) });
        // A closed log has written all that it was told.
        let _ = is_written.await;
    }

    /// That attempt ended without success.
    pub fn failed(&self, place: Place) {
        self.order(Order::Note { number: place.number, note: Note::Failed, written: None });
    }

    /// Up to `max` records that are not done and come after number `after`, oldest first.
    ///
    /// # Errors
    /// `Unreadable`.
    pub async fn list(&self, after: u64, max: usize) -> Result<Vec<Record>, SpoolError> {
        let shared = Arc::clone(&self.shared);
        let listed = tokio::task::spawn_blocking(move || shared.list(after, max)).await;
        listed.unwrap_or_else(|_| Err(SpoolError::closed()))
    }

    /// Its state now.
    pub fn state(&self) -> State {
        locked(&self.shared.log).state(!self.shared.options.budget.has_room(1 << 16))
    }

    /// Stores what waits, and ends so that the next start knows that nothing is amiss.
    pub async fn close(&self) {
        self.shared.room.close();
        let (answer, answered) = oneshot::channel();
        self.order(Order::Close(answer));
        // A log that was closed before is closed.
        let _ = answered.await;
    }

    fn order(&self, order: Order) {
        let mut orders = locked(&self.shared.orders);
        if !locked(&self.shared.log).closed {
            orders.push_back(order);
            self.shared.ordered.notify_one();
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // One is held by the thread, which ends without a marker when nobody else is left.
        if Arc::strong_count(&self.shared) == 2 {
            locked(&self.shared.log).closed = true;
            self.shared.ordered.notify_one();
        }
    }
}

impl Shared {
    /// Reads the next records ahead; `false` when there are none.
    fn read_ahead(&self) -> Result<bool, SpoolError> {
        let _reading = locked(&self.reading);
        if !locked(&self.ahead).is_empty() {
            return Ok(true);
        }
        loop {
            let Some((path, epoch, len, end, from)) = locked(&self.log).at_cursor() else { return Ok(false) };
            let file = File::open(&path).map_err(|source| SpoolError::reading(&path, source))?;
            let mut scan = Scan::new(&file, epoch, from.offset, len, from.number);
            let (mut records, mut bytes, mut next) = (Vec::new(), 0, from);
            while records.len() < AHEAD_RECORDS && bytes < AHEAD_BYTES {
                match scan.next().map_err(|source| SpoolError::reading(&path, source))? {
                    None => {
                        next = Cursor { number: end, offset: scan.offset(), ..from };
                        break;
                    }
                    Some(Item::Record { number, at_ms, offset, payload }) => {
                        bytes += payload.len();
                        records.push((number, at_ms, offset, payload));
                        next = Cursor { number: number + 1, offset: scan.offset(), ..from };
                    }
                    Some(Item::Damage { start, end: damage_end }) => {
                        self.damaged(&path, &file, (start, damage_end), next.number);
                        next.offset = damage_end;
                    }
                }
            }
            let found: Vec<Record> = {
                let mut log = locked(&self.log);
                log.cursor = next;
                let mut found = Vec::new();
                for (number, at_ms, offset, payload) in records {
                    if log.segment_of(number).is_some_and(|segment| !segment.is_done(number)) {
                        found.push(record(&log, number, at_ms, offset, payload));
                    }
                }
                found
            };
            // Only now, since whoever takes from it holds it first and the log second.
            let mut ahead = locked(&self.ahead);
            ahead.extend(found);
            if !ahead.is_empty() {
                return Ok(true);
            }
        }
    }

    /// Sets aside what a read has found damaged. The records in it are as lost as they are told to be.
    fn damaged(&self, path: &Path, file: &File, (start, end): (u64, u64), first_lost: u64) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let dir = locked(&self.log).dir.clone();
        let kept = directory::set_aside(&dir, file, &format!("{name}.damaged-{start}"), start, end);
        let kept = kept.map_or_else(|error| error.to_string(), |kept| format!("a copy is in {}", kept.display()));
        let detail = format!("bytes {start} to {end}, from record {first_lost} on, are damaged; {kept}");
        locked(&self.log).quarantined = directory::quarantined(&dir);
        (self.happens)(&Happening::Corrupt { file: path, detail });
    }

    fn read(&self, place: Place) -> Result<Option<Record>, SpoolError> {
        let Place { number, offset } = place;
        let path = {
            let mut log = locked(&self.log);
            let Some(segment) = log.segment_of(number).filter(|segment| !segment.is_done(number)) else {
                return Ok(None);
            };
            segment.path.clone()
        };
        let failed = |source| SpoolError::reading(&path, source);
        let file = File::open(&path).map_err(failed)?;
        let mut head = [0; RECORD_HEAD_BYTES];
        file.read_exact_at(&mut head, offset).map_err(failed)?;
        let head = RecordHead::decode(&head);
        let len = file.metadata().map_err(failed)?.len();
        let end = offset + RECORD_HEAD_BYTES as u64 + u64::from(head.length);
        let mut payload = vec![0; if end <= len { head.length as usize } else { 0 }];
        file.read_exact_at(&mut payload, offset + RECORD_HEAD_BYTES as u64).map_err(failed)?;
        if head.number != number || !head.matches(&payload) {
            let what = format!("record {number} in {} is damaged", path.display());
            return Err(SpoolError::new(SpoolErrorKind::Unreadable, what));
        }
        Ok(Some(record(&locked(&self.log), number, head.at_ms, offset, payload.into())))
    }

    fn list(&self, after: u64, max: usize) -> Result<Vec<Record>, SpoolError> {
        let segments: Vec<_> = {
            let log = locked(&self.log);
            let wanted = log.segments.iter().filter(|segment| segment.end > after + 1 && segment.remaining > 0);
            wanted.map(|segment| (segment.path.clone(), segment.epoch, segment.len, segment.first)).collect()
        };
        let mut records = Vec::new();
        for (path, epoch, len, first) in segments {
            let failed = |source| SpoolError::reading(&path, source);
            let file = File::open(&path).map_err(failed)?;
            let mut scan = Scan::new(&file, epoch, HEADER_BYTES, len, first);
            while let Some(item) = scan.next().map_err(failed)? {
                let Item::Record { number, at_ms, offset, payload } = item else { continue };
                let mut log = locked(&self.log);
                if number > after && log.segment_of(number).is_some_and(|segment| !segment.is_done(number)) {
                    records.push(record(&log, number, at_ms, offset, payload));
                    if records.len() == max {
                        return Ok(records);
                    }
                }
            }
        }
        Ok(records)
    }
}

fn record(log: &Log, number: u64, at_ms: u64, offset: u64, payload: Bytes) -> Record {
    let tries = log.tries.get(&number).copied().unwrap_or_default();
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms);
    Record { place: Place { number, offset }, at, payload, failures: tries.failed, crashes: tries.crashes }
}

/// File, epoch, believable length and end of a segment, and where reading goes on in it.
type Behind = (std::path::PathBuf, u64, u64, u64, Cursor);

impl Log {
    /// The first segment with something at or behind the cursor.
    fn at_cursor(&self) -> Option<Behind> {
        let cursor = self.cursor;
        let segment = self.segments.iter().find(|segment| segment.end > cursor.number && segment.remaining > 0)?;
        let Segment { path, epoch, len, end, first, .. } = segment;
        let begin = Cursor { segment: *first, offset: HEADER_BYTES, number: *first };
        let from = if cursor.segment == *first { cursor } else { begin };
        Some((path.clone(), *epoch, *len, *end, from))
    }
}
