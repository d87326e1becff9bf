//! The port to brokers: what a sink must do, what it may answer, and the receipt that only an acknowledgement earns.
//!
//! A sink makes one attempt and tells the truth about it. Retries, bulkheads and metrics are [`crate::publisher`]'s.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{
    event::{EventKey, SinkId},
    limits::Deadline,
    message::Message,
};

/// A connected sink.
pub trait Sink: Send + Sync + 'static {
    /// What this sink can promise; constant over its life.
    fn capabilities(&self) -> Capabilities;

    /// Publishes `message` and waits until the broker has stored it.
    ///
    /// `deadline` is absolute. When it passes without an answer the outcome is unknown: the message may be stored.
    /// One attempt; the caller retries.
    ///
    /// # Errors
    /// As [`PublishErrorKind`] says.
    ///
    /// # Cancel safety
    /// Dropping the future after the first poll is the same as `Unknown`.
    fn publish<'a>(&'a self, message: &'a Message, deadline: Deadline) -> BoxFuture<'a, Result<Receipt, PublishError>>;

    /// Asks the broker whether events could be published now. Changes nothing there.
    ///
    /// # Errors
    /// What would stop them.
    fn probe(&self, deadline: Deadline) -> BoxFuture<'_, Result<(), PublishError>>;

    /// Looks at the places that events will be sent to, and says what is wrong or unwise about each, as sentences for the
    /// operator. Changes nothing there. A sink whose places cannot be looked at has nothing to say.
    ///
    /// `targets` are examples: an `x` stands for each value of an event.
    ///
    /// # Errors
    /// What keeps it from looking.
    fn review<'a>(
        &'a self,
        targets: &'a [Target],
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Vec<String>, PublishError>> {
        let _ = (targets, deadline);
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Finishes what was accepted and lets go of the broker. Nothing is published afterwards.
    fn close(&self, deadline: Deadline) -> BoxFuture<'_, ()>;
}

/// What a sink can promise beyond an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether the broker stores a message once when it is published twice with one id.
    pub deduplicates: bool,
}

/// What a destination names besides its sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// Nothing: everything goes to one place.
    None,
    /// A subject.
    Subject,
    /// A topic, and the key that chooses a partition of it.
    Topic,
    /// An exchange and a routing key.
    Exchange,
}

/// Where in a sink a message goes, rendered for one event.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The one place that the sink has.
    Whole,
    /// This subject.
    Subject(String),
    /// This topic, in the partition of this key.
    Topic {
        /// The topic.
        topic: String,
        /// The key.
        key: String,
    },
    /// This exchange, with this routing key.
    Exchange {
        /// The exchange; empty for the default one, where the routing key is the name of a queue.
        exchange: String,
        /// The routing key.
        routing_key: String,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("-"),
            Self::Subject(subject) => f.write_str(subject),
            Self::Topic { topic, .. } => f.write_str(topic),
            Self::Exchange { exchange, routing_key } => write!(f, "{exchange}/{routing_key}"),
        }
    }
}

/// The broker's acknowledgement of one message.
///
/// Only a sink makes one, and only from a positive acknowledgement by which the broker says that it has stored the
/// message. It is bound to that message: it cannot stand in for another leg or another event.
#[derive(Debug)]
#[must_use = "a receipt that is dropped is an event that will be published again"]
pub struct Receipt {
    event: EventKey,
    leg: usize,
    position: Position,
}

/// Where the broker keeps a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The stream, file or partition.
    pub place: Arc<str>,
    /// The sequence number or offset in it.
    pub offset: u64,
    /// Whether the broker already had the message and stored nothing.
    pub duplicate: bool,
}

impl Receipt {
    /// The broker has acknowledged `message` and keeps it at `position`.
    pub fn acknowledged(message: &Message, position: Position) -> Self {
        Self { event: message.event.key, leg: message.leg.index, position }
    }

    /// Where the broker keeps the message.
    pub fn position(&self) -> &Position {
        &self.position
    }

    pub(crate) fn is_for(&self, event: EventKey, leg: usize) -> bool {
        self.event == event && self.leg == leg
    }
}

/// What the caller may do about a publish that gave no receipt. Closed: every caller decides on each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishErrorKind {
    /// No connection, or the broker cannot store now; the message is not stored. Retry after a pause.
    Unavailable,
    /// The broker asks for less; the message is not stored. Retry after a longer pause.
    Throttled,
    /// The broker will never take this message (too large, say). Retrying is useless.
    Rejected,
    /// No answer: the message may be stored. Retry only with the same id.
    Unknown,
    /// An operator must act (credentials, missing stream). The message is not stored; it may be taken afterwards.
    Misconfigured,
}

impl fmt::Display for PublishErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unavailable => "the broker is unavailable",
            Self::Throttled => "the broker takes no more for now",
            Self::Rejected => "the broker refuses the message for good",
            Self::Unknown => "no answer, the message may be stored",
            Self::Misconfigured => "an operator must act",
        })
    }
}

/// What happened, for the metrics: a closed set of labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishReason {
    /// No answer in time.
    Timeout,
    /// There is no connection, or it broke.
    ConnectionLost,
    /// The stream, subject, topic or exchange does not exist or takes this message from nobody.
    NoDestination,
    /// The stream or disk is full.
    Full,
    /// Larger than the broker takes.
    TooLarge,
    /// Wrong or missing credentials, or no permission.
    Auth,
    /// TLS could not be agreed.
    Tls,
    /// The broker or its client asks for less.
    Throttled,
    /// Something else; the log has it.
    Other,
}

/// What a failure means to the caller: one entry of a sink's table of its broker's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// What the caller may do.
    pub kind: PublishErrorKind,
    /// What happened.
    pub reason: PublishReason,
}

impl Verdict {
    /// Whether waiting mends nothing.
    pub fn needs_an_operator(self) -> bool {
        self.kind == PublishErrorKind::Misconfigured
    }
}

/// The entries of such tables.
pub mod verdict {
    use super::{PublishErrorKind, PublishReason, Verdict};

    /// A failure before anything was sent, or after a clear refusal.
    pub const fn unavailable(reason: PublishReason) -> Verdict {
        Verdict { kind: PublishErrorKind::Unavailable, reason }
    }

    /// The broker, or its client, takes no more for now.
    pub const fn throttled() -> Verdict {
        Verdict { kind: PublishErrorKind::Throttled, reason: PublishReason::Throttled }
    }

    /// The broker will never take it.
    pub const fn rejected(reason: PublishReason) -> Verdict {
        Verdict { kind: PublishErrorKind::Rejected, reason }
    }

    /// It may be stored.
    pub const fn unknown(reason: PublishReason) -> Verdict {
        Verdict { kind: PublishErrorKind::Unknown, reason }
    }

    /// An operator must act.
    pub const fn misconfigured(reason: PublishReason) -> Verdict {
        Verdict { kind: PublishErrorKind::Misconfigured, reason }
    }
}

/// Why a sink cannot begin to connect: something that its config names cannot be used.
///
/// A broker that is down, or refuses us, is not among it: the sink starts and says so when it is asked.
#[derive(Debug, thiserror::Error)]
#[error("set up sink {sink} from its key `{key}`")]
pub struct ConnectError {
    /// The sink.
    pub sink: SinkId,
    /// The key at fault, relative to the sink's table.
    pub key: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl ConnectError {
    /// For the key at fault and what is wrong with it.
    pub fn new(
        sink: &SinkId,
        key: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { sink: sink.clone(), key: key.into(), source: source.into() }
    }
}

/// Why a publish produced no receipt.
#[derive(Debug, thiserror::Error)]
#[error("publish to {sink} failed: {kind}")]
pub struct PublishError {
    /// What the caller may do.
    pub kind: PublishErrorKind,
    /// What happened.
    pub reason: PublishReason,
    /// The sink.
    pub sink: SinkId,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl PublishError {
    /// A failure of `sink` without a deeper cause.
    pub fn new(sink: &SinkId, kind: PublishErrorKind, reason: PublishReason) -> Self {
        Self { kind, reason, sink: sink.clone(), source: None }
    }

    /// The same failure, caused by `source`.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}
