//! What can go wrong with standard output, and what that means to the caller.

use std::{io, sync::Arc};

use hookgate_core::{
    event::SinkId,
    sink::{PublishError, PublishErrorKind, PublishReason},
};

/// Why there is no sink.
#[derive(Debug, thiserror::Error)]
#[error("start the thread of the sink {sink}")]
pub struct ConnectError {
    /// The sink.
    pub sink: SinkId,
    pub(crate) source: io::Error,
}

/// What failed. One of them may be the answer to many messages, so it is shared.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Failure {
    /// Nothing of this line, or of one before it, can be taken back.
    #[error("write to standard output: {0}")]
    Write(Arc<io::Error>),
    #[error("write after standard output was closed")]
    Closed,
    #[error("get a place in the queue before the deadline")]
    QueueFull,
    #[error("get it written before the deadline")]
    NoAnswer,
}

impl Failure {
    /// The one table of what a failure means.
    pub(crate) fn into_error(self, sink: &SinkId) -> PublishError {
        let (kind, reason) = match self {
            Self::Write(_) | Self::Closed => (PublishErrorKind::Unavailable, PublishReason::ConnectionLost),
            Self::QueueFull => (PublishErrorKind::Throttled, PublishReason::Throttled),
            Self::NoAnswer => (PublishErrorKind::Unknown, PublishReason::Timeout),
        };
        PublishError::new(sink, kind, reason).because(self)
    }
}
