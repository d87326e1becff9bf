//! What can go wrong with NATS, and what that means to the caller: one table for each place that an answer comes from.
//!
//! The library's errors repeat their source in their own text, so that a chain of them says everything twice. Here they are
//! taken apart into [`Cause`]s: each says one thing, in words for the operator.

use std::{error::Error, io, sync::Arc};

use async_nats::{
    ConnectErrorKind, ServerError,
    jetstream::{
        self, ErrorCode,
        context::{
            GetStreamError, GetStreamErrorKind, PublishError as NatsPublishError,
            PublishErrorKind as NatsPublishErrorKind, RequestError, RequestErrorKind,
        },
        publish::PublishAck,
    },
};
use hookgate_core::{
    event::SinkId,
    sink::{
        Position, PublishError, PublishErrorKind, PublishReason, Verdict,
        verdict::{misconfigured, rejected, throttled, unavailable, unknown},
    },
};
use rustls::AlertDescription;

use crate::access::AccessError;

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action}: {words}")]
pub(crate) struct Disconnected {
    pub(crate) verdict: Verdict,
    /// What was being done, and with which server.
    action: String,
    /// The deepest cause: the server's own words, or the system's.
    words: String,
}

impl Disconnected {
    /// Before the first attempt has ended.
    pub(crate) fn not_yet(servers: &str) -> Self {
        let verdict = unavailable(PublishReason::ConnectionLost);
        Self { verdict, action: format!("connecting to {servers}"), words: "no answer yet".to_owned() }
    }

    /// An attempt to connect failed.
    pub(crate) fn refused(server: &str, error: &async_nats::ConnectError) -> Self {
        let words = root_cause(error).to_string();
        Self::dialling(server, connect_verdict(error), words.trim_start_matches("nats: ").to_owned())
    }

    /// The server let us in and then said this.
    pub(crate) fn denied(server: &str, words: &str) -> Self {
        Self::dialling(server, server_verdict(words), words.to_owned())
    }

    /// Nothing came in time.
    pub(crate) fn silent(server: &str) -> Self {
        Self::dialling(server, unavailable(PublishReason::ConnectionLost), "no answer in time".to_owned())
    }

    /// What we need for it cannot be used any more.
    pub(crate) fn unprepared(server: &str, error: &AccessError) -> Self {
        let reason = if error.is_about_tls() { PublishReason::Tls } else { PublishReason::Auth };
        let words = match error.source() {
            Some(_) => format!("{error}: {}", root_cause(error)),
            None => error.to_string(),
        };
        Self::dialling(server, misconfigured(reason), words)
    }

    /// A connection ended; `words` is what the server had complained about last.
    pub(crate) fn lost(server: &str, words: Option<&str>) -> Self {
        let verdict = words.map_or(unavailable(PublishReason::ConnectionLost), server_verdict);
        let words = words.unwrap_or("it ended without a word").to_owned();
        Self { verdict, action: format!("the connection to {server} is lost"), words }
    }

    /// Of two servers' refusals the one that tells the operator more: one that waiting does not mend.
    pub(crate) fn or_more_telling(self, other: Self) -> Self {
        match other.verdict.kind {
            PublishErrorKind::Misconfigured => other,
            _ => self,
        }
    }

    fn dialling(server: &str, verdict: Verdict, words: String) -> Self {
        Self { verdict, action: format!("connect to {server}"), words }
    }
}

/// Why a publish gave no receipt, or a probe no all-clear.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    #[error(transparent)]
    Disconnected(Arc<Disconnected>),
    #[error("the sink is closed")]
    Closed,
    #[error("the connection to {server} broke before the acknowledgement")]
    Broken { server: Arc<str> },
    #[error("no answer came before the deadline")]
    NoAnswer,
    #[error("the deadline passed before the message could be sent")]
    NotSent,
    #[error("no JetStream stream listens on subject {subject:?}; add it to the subjects of stream {stream:?}")]
    NoResponders { subject: String, stream: Arc<str> },
    #[error("stream {stream:?} answered")]
    Refused { stream: Arc<str>, source: jetstream::Error },
    #[error("subject {subject:?} goes to stream {stored_in:?}, not to {stream:?}")]
    OtherStream { subject: String, stored_in: String, stream: Arc<str> },
    #[error("stream {stream:?} calls the message a duplicate of none: it may not be stored")]
    DuplicateOfNothing { stream: Arc<str> },
    #[error("the answer is no acknowledgement: {words}")]
    NotAnAck { words: String },
    #[error("the server said: {words}")]
    Denied { words: Arc<str> },
    #[error("{words}")]
    TooLarge { words: String },
    #[error("{subject:?} is no subject to publish to")]
    NotASubject { subject: String },
    #[error("header {name:?} cannot be sent")]
    NotAHeader { name: String },
    #[error("stream {stream:?} does not exist on {server}; create it with: nats stream add {stream} --subjects=…")]
    NoStream { stream: Arc<str>, server: Arc<str> },
    #[error("stream {stream:?} {trouble}; mend it with: nats stream edit {stream}")]
    UnusableStream { stream: Arc<str>, trouble: &'static str },
    #[error("JetStream is not enabled on {server} for this account")]
    NoJetStream { server: Arc<str> },
    #[error("the library failed: {words}")]
    Library { words: String },
}

impl Cause {
    /// What it means to the caller.
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Self::Disconnected(disconnected) => disconnected.verdict,
            Self::Closed => unavailable(PublishReason::ConnectionLost),
            Self::Broken { .. } => unknown(PublishReason::ConnectionLost),
            Self::NoAnswer => unknown(PublishReason::Timeout),
            Self::NotSent => unavailable(PublishReason::Timeout),
            Self::Refused { source, .. } => jetstream_verdict(source.error_code()),
            // Old servers said it of a message that a leader change had lost: it may be stored or not.
            // Source: nats-server#6415, mended January 2025.
            Self::DuplicateOfNothing { .. } => unknown(PublishReason::Other),
            // Whoever listens on the subject beside the stream can answer first.
            Self::NotAnAck { .. } => unknown(PublishReason::Other),
            Self::NoResponders { .. }
            | Self::OtherStream { .. }
            | Self::NotASubject { .. }
            | Self::NoStream { .. }
            | Self::UnusableStream { .. }
            | Self::NoJetStream { .. } => misconfigured(PublishReason::NoDestination),
            Self::Denied { words } => server_verdict(words),
            Self::TooLarge { .. } => rejected(PublishReason::TooLarge),
            Self::NotAHeader { .. } => rejected(PublishReason::Other),
            Self::Library { .. } => unavailable(PublishReason::Other),
        }
    }

    /// The library's refusal to send.
    pub(crate) fn of_sending(error: &NatsPublishError, subject: &str, server: &Arc<str>) -> Self {
        let words = root_cause(error).to_string();
        let channel_closed = error.source().is_some_and(|source| !source.is::<async_nats::SubjectError>());
        match error.kind() {
            NatsPublishErrorKind::MaxPayloadExceeded => Self::TooLarge { words },
            NatsPublishErrorKind::TimedOut => Self::NotSent,
            // Nothing was sent, but it is the same fault as a connection that breaks a moment later.
            NatsPublishErrorKind::Other if channel_closed => {
                Self::Disconnected(Arc::new(Disconnected::lost(server, None)))
            }
            NatsPublishErrorKind::Other => Self::NotASubject { subject: subject.to_owned() },
            _ => Self::Library { words },
        }
    }

    /// An answer that is no acknowledgement.
    pub(crate) fn of_answer(error: &NatsPublishError, subject: &str, stream: &Arc<str>, server: &Arc<str>) -> Self {
        match error.kind() {
            NatsPublishErrorKind::StreamNotFound => {
                Self::NoResponders { subject: subject.to_owned(), stream: Arc::clone(stream) }
            }
            NatsPublishErrorKind::BrokenPipe => Self::Broken { server: Arc::clone(server) },
            NatsPublishErrorKind::TimedOut => Self::NoAnswer,
            _ => match error.source().and_then(|source| source.downcast_ref::<jetstream::Error>()) {
                Some(source) => Self::Refused { stream: Arc::clone(stream), source: source.clone() },
                None => Self::NotAnAck { words: root_cause(error).to_string() },
            },
        }
    }

    /// Why a stream could not be looked up.
    pub(crate) fn of_look_up(error: &GetStreamError, stream: Arc<str>, server: Arc<str>) -> Self {
        match error.kind() {
            GetStreamErrorKind::JetStream(source) => match source.error_code() {
                ErrorCode::STREAM_NOT_FOUND => Self::NoStream { stream, server },
                ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                    Self::NoJetStream { server }
                }
                _ => Self::Refused { stream, source },
            },
            GetStreamErrorKind::EmptyName | GetStreamErrorKind::InvalidStreamName => Self::NoStream { stream, server },
            GetStreamErrorKind::Request => {
                let request = error.source().and_then(|source| source.downcast_ref::<RequestError>());
                match request.map(RequestError::kind) {
                    // Without JetStream nobody listens for its requests.
                    Some(RequestErrorKind::NoResponders) => Self::NoJetStream { server },
                    Some(RequestErrorKind::TimedOut) => Self::NoAnswer,
                    _ => Self::Disconnected(Arc::new(Disconnected::lost(&server, None))),
                }
            }
        }
    }

    /// Whether a change of leader can look like this too, for a moment.
    pub(crate) fn may_pass_at_once(&self) -> bool {
        match self {
            Self::NoResponders { .. } | Self::NoJetStream { .. } => true,
            Self::Disconnected(_)
            | Self::Closed
            | Self::Broken { .. }
            | Self::NoAnswer
            | Self::NotSent
            | Self::Refused { .. }
            | Self::OtherStream { .. }
            | Self::DuplicateOfNothing { .. }
            | Self::NotAnAck { .. }
            | Self::Denied { .. }
            | Self::TooLarge { .. }
            | Self::NotASubject { .. }
            | Self::NotAHeader { .. }
            | Self::NoStream { .. }
            | Self::UnusableStream { .. }
            | Self::Library { .. } => false,
        }
    }

    /// As an error of `sink`.
    pub(crate) fn into_error(self, sink: &SinkId) -> PublishError {
        let Verdict { kind, reason } = self.verdict();
        PublishError::new(sink, kind, reason).because(self)
    }
}

/// What an acknowledgement for `subject` says, if it speaks for `stream`.
pub(crate) fn position(ack: PublishAck, subject: &str, stream: &Arc<str>) -> Result<Position, Cause> {
    let stream = Arc::clone(stream);
    if ack.stream != *stream {
        return Err(Cause::OtherStream { subject: subject.to_owned(), stored_in: ack.stream, stream });
    }
    // Streams count from 1.
    if ack.sequence == 0 {
        return Err(Cause::DuplicateOfNothing { stream });
    }
    Ok(Position { place: stream, offset: ack.sequence, duplicate: ack.duplicate })
}

/// What JetStream's refusal of a publish means.
///
/// Source: nats-server `server/errors.json`, and where `processJetStreamMsg` in `server/stream.go` uses each.
fn jetstream_verdict(code: ErrorCode) -> Verdict {
    match code {
        // "expected stream does not match", "stream not found", "invalid operation on sealed stream", "no limits".
        ErrorCode::STREAM_NOT_MATCH
        | ErrorCode::STREAM_NOT_FOUND
        | ErrorCode::STREAM_SEALED
        | ErrorCode::NO_LIMITS
        | ErrorCode::JETSTREAM_NOT_ENABLED
        | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => misconfigured(PublishReason::NoDestination),
        // The store's own refusal: maximum messages or bytes exceeded with `discard: new`, or the disk is full.
        ErrorCode::STREAM_STORE_FAILED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED => unavailable(PublishReason::Full),
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            rejected(PublishReason::TooLarge)
        }
        ErrorCode::STREAM_TOO_MANY_REQUESTS => throttled(),
        // The cluster has no leader to store it now.
        ErrorCode::CLUSTER_NOT_AVAILABLE
        | ErrorCode::CLUSTER_NOT_ACTIVE
        | ErrorCode::CLUSTER_NOT_LEADER
        | ErrorCode::CLUSTER_INCOMPLETE
        | ErrorCode::STREAM_OFFLINE
        | ErrorCode::STREAM_OFFLINE_REASON => unavailable(PublishReason::Other),
        // Also "duplicate message id is in process": an earlier attempt of ours is being stored.
        _ => unknown(PublishReason::Other),
    }
}

/// What a server's complaint (`-ERR '…'`) means.
///
/// Source: nats-server `server/errors.go`; NATS documentation, "NATS Protocol", `+OK/ERR`.
fn server_verdict(words: &str) -> Verdict {
    const REFUSES_US: [&str; 4] =
        ["authorization violation", "permissions violation", "authentication expired", "authentication revoked"];
    let lower = words.to_ascii_lowercase();
    let says = |part: &str| lower.contains(part);
    if REFUSES_US.iter().any(|part| says(part)) {
        misconfigured(PublishReason::Auth)
    } else if says("tls required") {
        misconfigured(PublishReason::Tls)
    } else {
        unavailable(PublishReason::ConnectionLost)
    }
}

/// What a failed attempt to connect means.
fn connect_verdict(error: &async_nats::ConnectError) -> Verdict {
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            misconfigured(PublishReason::Auth)
        }
        ConnectErrorKind::Tls => misconfigured(PublishReason::Tls),
        ConnectErrorKind::Io => io_verdict(error),
        ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::ServerParse
        | ConnectErrorKind::MaxReconnects => unavailable(PublishReason::ConnectionLost),
    }
}

/// TLS and complaints of the server come wrapped as failures of input and output.
fn io_verdict(error: &async_nats::ConnectError) -> Verdict {
    let source = error.source();
    if let Some(complaint) = source.and_then(|source| source.downcast_ref::<ServerError>()) {
        return server_verdict(&complaint.to_string());
    }
    let inner = source.and_then(|source| source.downcast_ref::<io::Error>()).and_then(io::Error::get_ref);
    match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
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
                | AlertDescription::NoCertificate
                | AlertDescription::UnknownCA
                | AlertDescription::UnsupportedCertificate
        ),
        _ => false,
    };
    if for_good { misconfigured(PublishReason::Tls) } else { unavailable(PublishReason::Tls) }
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
