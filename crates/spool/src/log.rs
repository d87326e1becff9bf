//! What is known in memory about the segments: which records are done, and how far each file can be believed.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use crate::{
    error::{SpoolError, SpoolErrorKind},
    format::{HEADER_BYTES, Note},
};

/// How long an operation of the disk may be under way before the log counts as not writable.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// The state of one log.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Records that are not done.
    pub events: u64,
    /// What the files of segments take, in bytes.
    pub bytes: u64,
    /// How many segments there are.
    pub segments: u64,
    /// Damaged pieces that were set aside.
    pub quarantined: u64,
    /// When the oldest segment with a record that is not done was begun; no record in it is older, and few are younger by more
    /// than a minute.
    pub oldest: Option<SystemTime>,
    /// Whether the last commit worked and none takes very long.
    pub writable: bool,
    /// What the last commit failed with, if it did.
    pub cause: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) first: u64,
    /// The number behind the last record.
    pub(crate) end: u64,
    pub(crate) epoch: u64,
    pub(crate) path: PathBuf,
    /// How far the file can be believed.
    pub(crate) len: u64,
    pub(crate) made_ms: u64,
    /// Records that are not done.
    pub(crate) remaining: u64,
    done: Vec<u64>,
}

impl Segment {
    pub(crate) fn new(first: u64, epoch: u64, path: PathBuf, made_ms: u64) -> Self {
        Self { first, end: first, epoch, path, len: HEADER_BYTES, made_ms, remaining: 0, done: Vec::new() }
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.path.with_extension("ack")
    }

    /// Takes up the next record.
    pub(crate) fn push(&mut self, count: u64) {
        self.end += count;
        self.remaining += count;
    }

    pub(crate) fn is_done(&self, number: u64) -> bool {
        let bit = number - self.first;
        self.done.get((bit / 64) as usize).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// Whether it was not done before.
    pub(crate) fn set_done(&mut self, number: u64) -> bool {
        if number < self.first || number >= self.end || self.is_done(number) {
            return false;
        }
        let (word, bit) = (((number - self.first) / 64) as usize, (number - self.first) % 64);
        if self.done.len() <= word {
            self.done.resize(word + 1, 0);
        }
        self.done[word] |= 1 << bit;
        self.remaining -= 1;
        true
    }
}

/// Attempts with a record that is not done.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tries {
    pub(crate) begun: u32,
    pub(crate) failed: u32,
    /// Of those begun, the ones that a start of this process found without an end.
    pub(crate) crashes: u32,
}

/// Where reading goes on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cursor {
    /// The first number of the segment that `offset` is in.
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    /// The next record has this number or a later one.
    pub(crate) number: u64,
}

#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) dir: PathBuf,
    /// Oldest first; the last one is appended to if `active`.
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) active: bool,
    /// The number of the next record.
    pub(crate) next: u64,
    /// What [`crate::Queue::next`] gives out next.
    pub(crate) cursor: Cursor,
    pub(crate) tries: BTreeMap<u64, Tries>,
    pub(crate) quarantined: u64,
    pub(crate) failure: Option<SpoolError>,
    pub(crate) busy_since: Option<Instant>,
    pub(crate) closed: bool,
}

impl Log {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            segments: VecDeque::new(),
            active: false,
            next: 1,
            cursor: Cursor::default(),
            tries: BTreeMap::new(),
            quarantined: 0,
            failure: None,
            busy_since: None,
            closed: false,
        }
    }

    pub(crate) fn segment_of(&mut self, number: u64) -> Option<&mut Segment> {
        self.segments.iter_mut().rev().find(|segment| segment.first <= number).filter(|segment| number < segment.end)
    }

    /// Keeps the count of attempts.
    pub(crate) fn note(&mut self, number: u64, note: Note) {
        match note {
            Note::Done => {
                self.tries.remove(&number);
            }
            Note::Begun => self.tries.entry(number).or_default().begun += 1,
            Note::Failed => self.tries.entry(number).or_default().failed += 1,
        }
    }

    /// Takes out the segments that nobody needs any more, in no matter which place.
    pub(crate) fn take_finished(&mut self) -> Vec<Segment> {
        let spare = usize::from(self.active);
        let mut finished = Vec::new();
        let mut place = 0;
        while place + spare < self.segments.len() {
            match self.segments[place].remaining {
                0 => finished.extend(self.segments.remove(place)),
                _ => place += 1,
            }
        }
        finished
    }

    pub(crate) fn state(&self, full_again: bool) -> State {
        let waiting = self.segments.iter().find(|segment| segment.remaining > 0);
        let stalled = self.busy_since.is_some_and(|since| since.elapsed() > STALLED_AFTER);
        let failure = self.failure.as_ref().filter(|failure| failure.kind != SpoolErrorKind::Full || full_again);
        State {
            events: self.segments.iter().map(|segment| segment.remaining).sum(),
            bytes: self.segments.iter().map(|segment| segment.len).sum(),
            segments: self.segments.len() as u64,
            quarantined: self.quarantined,
            oldest: waiting.map(|segment| SystemTime::UNIX_EPOCH + Duration::from_millis(segment.made_ms)),
            writable: failure.is_none() && !stalled && !self.closed,
            cause: failure
                .map(ToString::to_string)
                .or_else(|| stalled.then(|| "an operation of the disk does not come to its end".to_owned())),
        }
    }
}
