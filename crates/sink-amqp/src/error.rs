//! What can go wrong with a broker, and what that means to the caller: one table for each place that an answer comes from.
//!
//! The library's errors repeat their source in their own text, so that a chain of them says everything twice. Here they are
//! taken apart into [`Cause`]s: each says one thing, in words for the operator.

use std::{error::Error, io, sync::Arc};

use hookgate_core::{
    event::SinkId,
    sink::{
        PublishError, PublishErrorKind, PublishReason, Verdict,
        verdict::{misconfigured, rejected, throttled, unavailable, unknown},
    },
};
use lapin::{ErrorKind, protocol::AMQPError};
use rustls::AlertDescription;

use crate::access::AccessError;

/// Reply codes of the protocol. Source: AMQP 0-9-1 specification, section 1.1, constants.
mod reply {
    pub(super) const CONTENT_TOO_LARGE: u16 = 311;
    pub(super) const ACCESS_REFUSED: u16 = 403;
    pub(super) const NOT_FOUND: u16 = 404;
    pub(super) const PRECONDITION_FAILED: u16 = 406;
    pub(super) const NOT_ALLOWED: u16 = 530;
}

/// Why there is no connection, or none that takes messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action}: {words}")]
pub(crate) struct Disconnected {
    pub(crate) verdict: Verdict,
    /// What was being done, and with which broker.
    action: String,
    /// The deepest cause: the broker's own words, or the system's.
    words: String,
}

impl Disconnected {
    /// Before the first attempt has ended.
    pub(crate) fn not_yet() -> Self {
        Self {
            verdict: unavailable(PublishReason::ConnectionLost),
            action: "connecting to the broker".to_owned(),
            words: "no answer yet".to_owned(),
        }
    }

    /// An attempt to connect failed.
    pub(crate) fn refused(broker: &str, error: &lapin::Error) -> Self {
        let (verdict, words) = connection_verdict(error);
        Self::dialling(broker, verdict, words)
    }

    /// Nothing came in time.
    pub(crate) fn silent(broker: &str) -> Self {
        Self::dialling(broker, unavailable(PublishReason::ConnectionLost), "no answer in time".to_owned())
    }

    /// What we need for a connection cannot be used any more.
    pub(crate) fn unprepared(error: &AccessError) -> Self {
        let reason = if error.is_about_tls() { PublishReason::Tls } else { PublishReason::Auth };
        let words = match error.source() {
            Some(_) => format!("{error}: {}", root_cause(error)),
            None => error.to_string(),
        };
        Self { verdict: misconfigured(reason), action: "prepare a connection".to_owned(), words }
    }

    /// A connection ended.
    pub(crate) fn lost(broker: &str, error: Option<&lapin::Error>) -> Self {
        let (verdict, words) = match error {
            Some(error) => connection_verdict(error),
            None => (unavailable(PublishReason::ConnectionLost), "it ended without a word".to_owned()),
        };
        Self { verdict, action: format!("the connection to {broker} is lost"), words }
    }

    /// The broker is short of something and takes no messages on this connection.
    pub(crate) fn blocked(broker: &str, words: &str) -> Self {
        Self { verdict: throttled(), action: format!("{broker} has blocked the connection"), words: words.to_owned() }
    }

    /// Of two brokers' refusals the one that tells the operator more: one that waiting does not mend.
    pub(crate) fn or_more_telling(self, other: Self) -> Self {
        match other.verdict.kind {
            PublishErrorKind::Misconfigured => other,
            _ => self,
        }
    }

    fn dialling(broker: &str, verdict: Verdict, words: String) -> Self {
        Self { verdict, action: format!("connect to {broker}"), words }
    }
}

/// Why a publish gave no receipt, or a probe no all-clear.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cause {
    #[error(transparent)]
    Disconnected(Arc<Disconnected>),
    #[error("the sink is closed")]
    Closed,
    #[error("the connection to {broker} broke before the acknowledgement")]
    Broken { broker: Arc<str> },
    #[error("no answer came before the deadline")]
    NoAnswer,
    #[error("the deadline passed before the message could be sent")]
    NotSent,
    #[error("all channels are busy, each with another exchange")]
    NoChannel,
    #[error("the channel closed before the message was sent ({words})")]
    ChannelClosed { words: Arc<str> },
    #[error("the channel closed before the acknowledgement ({words})")]
    ChannelBroken { words: Arc<str> },
    #[error("the broker said: {words}")]
    Refused { code: u16, words: Arc<str> },
    #[error("exchange {exchange:?} routes {routing_key:?} to no queue ({words}); bind a queue to it")]
    Unroutable { exchange: String, routing_key: String, words: Arc<str> },
    #[error(
        "a queue that exchange {exchange:?} routes {routing_key:?} to refuses the message; it is full, or its node is down"
    )]
    Nacked { exchange: String, routing_key: String },
    #[error("the body has {bytes} bytes, more than the {bytes_max} that {whose} takes")]
    TooLarge { bytes: u64, bytes_max: u64, whose: &'static str },
    #[error("the headers have {bytes} bytes, more than the {bytes_max} that the broker takes")]
    HeadersTooLarge { bytes: usize, bytes_max: usize },
    #[error("{target:?} is no exchange with a routing key")]
    NotADestination { target: String },
    #[error("header {name:?} cannot be sent")]
    NotAHeader { name: String },
}

impl Cause {
    /// What it means to the caller.
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Self::Disconnected(disconnected) => disconnected.verdict,
            Self::Closed => unavailable(PublishReason::ConnectionLost),
            Self::Broken { .. } | Self::ChannelBroken { .. } => unknown(PublishReason::ConnectionLost),
            Self::NoAnswer => unknown(PublishReason::Timeout),
            Self::NotSent => unavailable(PublishReason::Timeout),
            Self::NoChannel => throttled(),
            Self::ChannelClosed { .. } => unavailable(PublishReason::ConnectionLost),
            Self::Refused { code, .. } => refusal_verdict(*code),
            Self::Unroutable { .. } | Self::NotADestination { .. } => misconfigured(PublishReason::NoDestination),
            // A queue with a maximum length and `reject-publish`, or one without its leader. Of several queues that it
            // is routed to, another may have stored it.
            Self::Nacked { .. } => unavailable(PublishReason::Full),
            Self::TooLarge { .. } | Self::HeadersTooLarge { .. } => rejected(PublishReason::TooLarge),
            Self::NotAHeader { .. } => rejected(PublishReason::Other),
        }
    }

    pub(crate) fn into_error(self, sink: &SinkId) -> PublishError {
        let Verdict { kind, reason } = self.verdict();
        PublishError::new(sink, kind, reason).because(self)
    }
}

/// Why the broker has closed a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChannelEnd {
    /// It will do the same for the next message: no such exchange, no right to publish to it.
    Refusal { code: u16, words: Arc<str> },
    /// A message was longer than this.
    TooLarge { bytes_max: u64, words: Arc<str> },
    /// The connection is gone, or something that is not said.
    Other { words: Arc<str> },
}

impl ChannelEnd {
    pub(crate) fn of(error: &lapin::Error) -> Self {
        let ErrorKind::ProtocolError(told) = error.kind() else {
            return Self::Other { words: words_of(error).into() };
        };
        let words: Arc<str> = told.get_message().as_str().into();
        match told.get_id() {
            code @ (reply::NOT_FOUND | reply::ACCESS_REFUSED) => Self::Refusal { code, words },
            reply::PRECONDITION_FAILED | reply::CONTENT_TOO_LARGE => match largest_body(&words) {
                Some(bytes_max) => Self::TooLarge { bytes_max, words },
                None => Self::Other { words },
            },
            _ => Self::Other { words },
        }
    }

    /// What it means to a message that was not sent.
    pub(crate) fn before_sending(&self) -> Cause {
        match self {
            Self::Refusal { code, words } => Cause::Refused { code: *code, words: Arc::clone(words) },
            Self::TooLarge { words, .. } | Self::Other { words } => Cause::ChannelClosed { words: Arc::clone(words) },
        }
    }

    /// What it means to a message that was sent, has `bytes` and `is_alone` in not being answered.
    ///
    /// Nobody is told which message it was about. If there were others, any of them may have been stored before.
    pub(crate) fn after_sending(&self, bytes: u64, is_alone: bool) -> Cause {
        match self {
            Self::TooLarge { bytes_max, .. } if bytes > *bytes_max => {
                Cause::TooLarge { bytes, bytes_max: *bytes_max, whose: "the broker" }
            }
            Self::Refusal { code, words } if is_alone => Cause::Refused { code: *code, words: Arc::clone(words) },
            Self::Refusal { words, .. } | Self::TooLarge { words, .. } | Self::Other { words } => {
                Cause::ChannelBroken { words: Arc::clone(words) }
            }
        }
    }
}

/// The limit in "message size 9 is larger than configured max size 4".
///
/// Source: RabbitMQ `rabbit_channel.erl`, `check_msg_size`.
fn largest_body(words: &str) -> Option<u64> {
    if !words.contains("message size") {
        return None;
    }
    words.rsplit(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())?.parse().ok()
}

/// What the broker's reason for closing a channel means to a message that was not stored.
fn refusal_verdict(code: u16) -> Verdict {
    match code {
        reply::ACCESS_REFUSED => misconfigured(PublishReason::Auth),
        reply::NOT_FOUND => misconfigured(PublishReason::NoDestination),
        _ => unavailable(PublishReason::Other),
    }
}

/// What a failed attempt to connect means, or the end of a connection, and in which words.
fn connection_verdict(error: &lapin::Error) -> (Verdict, String) {
    let verdict = match error.kind() {
        ErrorKind::ProtocolError(told) => closed_verdict(told),
        ErrorKind::IOError(error) => io_verdict(error),
        ErrorKind::AuthProviderError(_) => misconfigured(PublishReason::Auth),
        _ => unavailable(PublishReason::ConnectionLost),
    };
    (verdict, words_of(error))
}

/// What the broker's reason for closing a connection means.
///
/// Source: RabbitMQ `rabbit_reader.erl`, `auth_fail`, `handle_exception`, `is_over_vhost_connection_limit`.
fn closed_verdict(told: &AMQPError) -> Verdict {
    let words = told.get_message().as_str();
    match told.get_id() {
        // "connection limit (9) is reached", of a vhost, a user or the node.
        reply::NOT_ALLOWED if words.contains("limit") => throttled(),
        reply::NOT_ALLOWED if words.contains("not found") => misconfigured(PublishReason::NoDestination),
        reply::ACCESS_REFUSED | reply::NOT_ALLOWED => misconfigured(PublishReason::Auth),
        _ => unavailable(PublishReason::ConnectionLost),
    }
}

/// TLS comes wrapped as a failure of input and output.
fn io_verdict(error: &io::Error) -> Verdict {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => tls_verdict(tls),
        None => unavailable(PublishReason::ConnectionLost),
    }
}

/// What a failed TLS handshake means: somebody has to mend a certificate, or it may pass.
fn tls_verdict(error: &rustls::Error) -> Verdict {
    let for_good = match error {
        // We do not trust theirs.
        rustls::Error::InvalidCertificate(_) => true,
        // They do not trust ours.
        rustls::Error::AlertReceived(alert) => matches!(
            alert,
            AlertDescription::AccessDenied
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRequired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::DecryptError
                | AlertDescription::HandshakeFailure
                | AlertDescription::NoCertificate
                | AlertDescription::UnknownCA
                | AlertDescription::UnsupportedCertificate
        ),
        _ => false,
    };
    if for_good { misconfigured(PublishReason::Tls) } else { unavailable(PublishReason::Tls) }
}

/// What the operator should read: the broker's own words, or the deepest cause.
fn words_of(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(told) => told.get_message().to_string(),
        _ => root_cause(error).to_string(),
    }
}

/// The error at the bottom of the chain, which says what happened; those above it only repeat it.
pub(crate) fn root_cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest
}

#[cfg(test)]
mod tests;
