//! The port to the local disk: where a message waits that its broker did not take in time, and the ticket that proves it.
//!
//! What is behind it keeps bytes and knows nothing of events; how a message becomes bytes is [`crate::envelope`]'s.

use std::{fmt, time::SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::{
    event::{EventKey, SinkId},
    message::Message,
    observe::labels,
};

/// A durable store with two queues for each sink.
pub trait Spool: Send + Sync + 'static {
    /// Appends `record` to a queue of `sink`, and returns its number there once it is fsynced.
    ///
    /// # Errors
    /// When it is not on the disk. It may be found there all the same after a crash.
    ///
    /// # Cancel safety
    /// Dropping the future may still store the record.
    fn append<'a>(&'a self, sink: &'a SinkId, shelf: Shelf, record: Bytes) -> BoxFuture<'a, Result<u64, SpoolError>>;
}

/// Which queue of a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shelf {
    /// What waits to be published.
    Backlog,
    /// What is not tried again until an operator says so.
    Dead,
}

/// What waits to be published to one sink.
pub trait Backlog: Send + Sync + 'static {
    /// Where a record is.
    type Place: Copy + Ord + fmt::Debug + Send + Sync + 'static;

    /// The next record, oldest first; waits for one.
    ///
    /// # Errors
    /// When the disk cannot be read.
    ///
    /// # Cancel safety
    /// No record is lost.
    fn next(&self) -> BoxFuture<'_, Result<Waiting<Self::Place>, SpoolError>>;

    /// A record that was given out before; `None` when it was done with meanwhile.
    ///
    /// # Errors
    /// When the disk cannot be read.
    fn read(&self, place: Self::Place) -> BoxFuture<'_, Result<Option<Waiting<Self::Place>>, SpoolError>>;

    /// An attempt begins. Returns once that outlasts the process, so that a record which ends the process is found out.
    fn begun(&self, place: Self::Place) -> BoxFuture<'_, ()>;

    /// An attempt ended without success.
    fn failed(&self, place: Self::Place);

    /// The record is not needed any more.
    fn done(&self, place: Self::Place);
}

/// A record that waits.
#[derive(Debug, Clone)]
pub struct Waiting<P> {
    /// Where it is.
    pub place: P,
    /// When it was appended.
    pub at: SystemTime,
    /// What was appended.
    pub record: Bytes,
    /// Attempts that ended without success.
    pub failures: u32,
    /// Attempts in the midst of which the process ended.
    pub crashes: u32,
}

labels! {
    /// Why the spool did not take a record.
    SpoolReason {
        /// The spool has its size, or the disk has too little left.
        Full => "full",
        /// The disk does not do what it is told.
        Io => "io_error",
        /// It did not answer in time.
        Timeout => "timeout",
        /// It is being closed.
        Closed => "closed",
    }
}

/// Why the spool did not do its part.
#[derive(Debug, Clone, thiserror::Error)]
#[error("spool: {detail}")]
pub struct SpoolError {
    /// What happened, for the metrics.
    pub reason: SpoolReason,
    /// What happened, for the operator.
    pub detail: String,
}

/// The spool's proof that it has a message on the disk.
///
/// Like a [`crate::sink::Receipt`] it is bound to its message: it cannot stand in for another leg or another event.
#[derive(Debug)]
#[must_use = "a ticket that is dropped is an event that is refused and published all the same"]
pub struct Ticket {
    event: EventKey,
    leg: usize,
    number: u64,
}

impl Ticket {
    /// `message` is fsynced under `number`, which only a successful [`Spool::append`] tells.
    pub(crate) fn fsynced(message: &Message, number: u64) -> Self {
        Self { event: message.event.key, leg: message.leg.index, number }
    }

    /// Its number in the queue.
    pub fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn is_for(&self, event: EventKey, leg: usize) -> bool {
        self.event == event && self.leg == leg
    }
}
