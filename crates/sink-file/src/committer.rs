//! The thread that owns the files: it writes what is waiting in one go, syncs once, and then answers everybody.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, PoisonError},
};

use hookgate_core::{
    answers::Answers,
    event::SinkId,
    message::Message,
    observe::{Chain, Observation, Observer},
    record,
    sink::Position,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    error::Failure,
    log::{Found, Log, Written},
};

/// Most lines in one go: nobody waits for more than this number of others.
const BATCH_LINES_MAX: usize = 1024;

/// Length at which a batch takes up no further line, in bytes. What memory it needs, and what one fsync has to store.
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Where the line is, or why there is none.
pub(crate) type Appended = Result<Position, Arc<Failure>>;

/// What the thread is asked for.
pub(crate) enum Order {
    /// Write this and say where it is.
    Append(Arc<Handed>, oneshot::Sender<Appended>),
    /// Say whether something could be written.
    Probe(oneshot::Sender<Result<(), Failure>>),
}

/// A message that is handed over, until somebody takes it: the committer to write it, or its publisher to give up.
///
/// Only one of them gets it, and so "not written" is certain.
pub(crate) struct Handed(Mutex<Option<Message>>);

impl Handed {
    pub(crate) fn new(message: Message) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(message))))
    }

    pub(crate) fn take(&self) -> Option<Message> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The thread's state.
pub(crate) struct Committer {
    pub(crate) id: SinkId,
    pub(crate) log: Log,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) answers: Answers<Appended>,
    /// Whether the observer takes the sink to be up.
    pub(crate) up: bool,
    /// Closed when nobody can publish any more; what is in it then is still written.
    pub(crate) orders: mpsc::Receiver<Order>,
    /// Dropped last of all, to say that the directory is free.
    pub(crate) ended: watch::Sender<()>,
}

/// Lines that are written together.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: Vec<Line>,
}

struct Line {
    length: usize,
    answer: oneshot::Sender<Appended>,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.lines.len() >= BATCH_LINES_MAX || self.bytes.len() >= BATCH_BYTES_MAX
    }
}

impl Committer {
    /// Tells the observer that the files are open, and what became of the newest.
    pub(crate) fn begin(&mut self, found: Found) {
        let notice = |message, detail: &(dyn fmt::Display + Sync)| {
            self.observer.observe(&Observation::SinkNotice { sink: &self.id, message, detail });
        };
        match found {
            Found::Sound => {}
            Found::Mended(mended) => notice("a torn last line was set aside", &mended),
            Found::Unusable(failure) => notice("the newest file cannot be used, a new one is begun", &Chain(&failure)),
        }
        self.observer.observe(&Observation::SinkUp { sink: &self.id });
        self.up = true;
    }

    /// Works until the orders are at their end.
    pub(crate) fn run(mut self) {
        while let Some(order) = self.orders.blocking_recv() {
            let mut batch = Batch::default();
            self.take_up(order, &mut batch);
            while !batch.is_full()
                && let Ok(order) = self.orders.try_recv()
            {
                self.take_up(order, &mut batch);
            }
            self.commit(batch);
        }
        drop((self.log, self.answers));
        drop(self.ended);
    }

    fn take_up(&self, order: Order, batch: &mut Batch) {
        match order {
            Order::Probe(answer) => {
                // Whoever asked may have gone.
                let _ = answer.send(self.log.probe());
            }
            // A line that nobody waits for any more would only be a duplicate of its repeat.
            Order::Append(_, answer) if answer.is_closed() => {}
            Order::Append(handed, answer) => {
                if let Some(message) = handed.take() {
                    let start = batch.bytes.len();
                    record::encode(&message, &mut batch.bytes);
                    let length = batch.bytes.len() - start;
                    batch.lines.push(Line { length, answer });
                }
            }
        }
    }

    /// Writes a batch, file by file, and answers each line once its own file is synced.
    fn commit(&mut self, batch: Batch) {
        let (mut bytes, mut lines) = (batch.bytes.as_slice(), batch.lines);
        while !lines.is_empty() {
            let lengths: Vec<u64> = lines.iter().map(|line| line.length as u64).collect();
            let later = lines.split_off(self.log.fitting(&lengths));
            let now = mem::replace(&mut lines, later);
            let (these, rest) = bytes.split_at(now.iter().map(|line| line.length).sum());
            bytes = rest;
            let written = self.log.append(these);
            self.note_health(&written);
            self.answer(now, written);
        }
    }

    /// Tells the observer when writing begins to fail or to work.
    fn note_health(&mut self, written: &Result<Written, Failure>) {
        let sink = &self.id;
        match written {
            Ok(_) if !self.up => self.observer.observe(&Observation::SinkUp { sink }),
            Err(failure) if self.up => {
                let cause = &Chain(failure);
                self.observer.observe(&Observation::SinkDown { sink, cause });
            }
            Ok(_) | Err(_) => {}
        }
        self.up = written.is_ok();
    }

    fn answer(&self, lines: Vec<Line>, written: Result<Written, Failure>) {
        match written {
            Ok(Written { file, mut offset }) => self.answers.give_all(lines.into_iter().map(|line| {
                let position = Position { place: Arc::clone(&file), offset, duplicate: false };
                offset += line.length as u64;
                (line.answer, Ok(position))
            })),
            Err(failure) => {
                let failure = Arc::new(failure);
                self.answers.give_all(lines.into_iter().map(|line| (line.answer, Err(Arc::clone(&failure)))));
            }
        }
    }
}
