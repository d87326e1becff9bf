//! An observer that keeps what happens as lines that a test can compare.
//!
//! A line is the name of the observation and its fields, without times: `publish_attempted sink=events result=acked`.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hookgate_core::{
    auth::{Credential, Proof},
    observe::{Chain, Observation, Observer},
};

/// Keeps every observation.
#[derive(Debug, Default)]
pub struct Recorder {
    lines: Mutex<Vec<String>>,
}

impl Recorder {
    /// Everything so far, in order.
    pub fn lines(&self) -> Vec<String> {
        self.locked().clone()
    }

    /// How many lines begin with `start`.
    pub fn count(&self, start: &str) -> usize {
        self.locked().iter().filter(|line| line.starts_with(start)).count()
    }

    /// Forgets everything so far.
    pub fn clear(&self) {
        self.locked().clear();
    }

    fn locked(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Recorder {
    fn observe(&self, observation: &Observation<'_>) {
        let line = Line(observation).to_string();
        self.locked().push(line);
    }
}

struct Line<'a>(&'a Observation<'a>);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Observation::ConnectionOpened => f.write_str("connection_opened"),
            Observation::ConnectionClosed => f.write_str("connection_closed"),
            Observation::AcceptFailed { error } => write!(f, "accept_failed error={error}"),
            Observation::ProxyHeaderRefused { peer, reason } => {
                write!(f, "proxy_header_refused peer={peer} reason={}", reason.label())
            }
            Observation::TlsHandshakeFailed { reason, error: _ } => {
                write!(f, "tls_handshake_failed reason={}", reason.label())
            }
            Observation::CertificateServed { expires: _ } => f.write_str("certificate_served"),
            Observation::CertificateKept { cause } => write!(f, "certificate_kept cause={cause}"),
            Observation::RequestStarted => f.write_str("request_started"),
            Observation::RequestFinished { source, status, elapsed: _ } => {
                write!(f, "request_finished source={} status={status}", Or(*source))
            }
            Observation::RequestRejected { source, reason } => {
                write!(f, "request_rejected source={} reason={}", Or(*source), reason.label())
            }
            Observation::SenderRefused { source, reason } => {
                write!(f, "sender_refused source={source} reason={}", reason.label())
            }
            Observation::SenderVerified { source, proof } => {
                let names = match proof {
                    Proof::Waived => "-".to_owned(),
                    Proof::Spooled => "spool".to_owned(),
                    Proof::Verified(credentials) => {
                        let name = |credential: &Credential| format!("{}:{}", credential.scheme, credential.secret);
                        credentials.iter().map(name).collect::<Vec<_>>().join("+")
                    }
                };
                write!(f, "sender_verified source={source} by={names}")
            }
            Observation::HandshakeAnswered { source, status } => {
                write!(f, "handshake_answered source={source} status={status}")
            }
            Observation::SubscriptionConfirmed { source, error } => {
                write!(f, "subscription_confirmed source={source} error={}", Or(*error))
            }
            Observation::DocumentFetched { url, error } => write!(f, "document_fetched url={url} error={}", Or(*error)),
            Observation::EventReceived { source, body_bytes } => {
                write!(f, "event_received source={source} body_bytes={body_bytes}")
            }
            Observation::EventFinished { source, event, trace: _, outcome, elapsed: _, cause } => {
                let (id, outcome) = (Or(event.map(|event| &event.id)), outcome.label());
                write!(f, "event_finished source={source} event={id} outcome={outcome} cause={}", Or(*cause))
            }
            Observation::ConfigReplaced { restart } => write!(f, "config_replaced restart={}", restart.join(",")),
            Observation::ConfigKept { problems } => write!(f, "config_kept problems={problems}"),
            Observation::RouteDecided { route, result } => {
                write!(f, "route_decided route={route} result={}", result.label())
            }
            Observation::DedupChecked { result } => write!(f, "dedup_checked result={}", result.label()),
            Observation::DedupOperated { operation, events: _, elapsed: _, error } => {
                let reason = error.map(|error| error.reason);
                write!(f, "dedup_operated operation={} error={}", operation.label(), Or(reason))
            }
            Observation::DedupStoreUp => f.write_str("dedup_store_up"),
            Observation::DedupStoreDown { cause } => write!(f, "dedup_store_down cause={cause}"),
            Observation::DedupStoreNotice { message } => write!(f, "dedup_store_notice message={message}"),
            Observation::PayloadMismatch { event } => write!(f, "payload_mismatch event={}", event.id),
            Observation::PublishStarted { sink } => write!(f, "publish_started sink={sink}"),
            Observation::PublishAttempted { sink, result, .. } => {
                write!(f, "publish_attempted sink={sink} result={}", result.label())
            }
            Observation::PublishFinished { sink, error, required } => {
                let error = error.map(|error| Chain(error).to_string());
                write!(f, "publish_finished sink={sink} error={} required={required}", Or(error))
            }
            Observation::SinkUp { sink } => write!(f, "sink_up sink={sink}"),
            Observation::SinkDown { sink, cause } => write!(f, "sink_down sink={sink} cause={cause}"),
            Observation::SinkClient { sink, state } => {
                write!(f, "sink_client sink={sink} brokers_up={}", state.brokers_up)
            }
            Observation::SinkNotice { sink, message, detail } => {
                write!(f, "sink_notice sink={sink} message={message} detail={detail}")
            }
            Observation::SpoolAppended { sink, error, elapsed: _ } => {
                write!(f, "spool_appended sink={sink} error={}", Or(*error))
            }
            Observation::SpoolReplayed { sink, source, result, waited: _ } => {
                write!(f, "spool_replayed sink={sink} source={source} result={}", result.label())
            }
            Observation::DeadLettered { sink, source, event_id, reason, cause: _ } => {
                write!(f, "dead_lettered sink={sink} source={source} event={event_id} reason={}", reason.label())
            }
            Observation::CircuitChanged { sink, open } => write!(f, "circuit_changed sink={sink} open={open}"),
            Observation::SpoolSynced { sink, elapsed: _ } => write!(f, "spool_synced sink={sink}"),
            Observation::SpoolCorrupt { sink, detail } => write!(f, "spool_corrupt sink={sink} detail={detail}"),
            Observation::SpoolNotice { message, detail } => write!(f, "spool_notice message={message} detail={detail}"),
            Observation::SecretReplaced { name } => write!(f, "secret_replaced name={name}"),
            Observation::SecretKept { name, cause } => write!(f, "secret_kept name={name} cause={cause}"),
        }
    }
}

/// A value, or `-` where there is none.
struct Or<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Or<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use hookgate_core::event::SinkId;

    use super::*;

    #[test]
    fn lines_can_be_compared_and_counted() {
        let recorder = Recorder::default();
        let sink = SinkId::new(0, "events");
        recorder.observe(&Observation::SinkUp { sink: &sink });
        recorder.observe(&Observation::PublishStarted { sink: &sink });
        assert_eq!(recorder.lines(), ["sink_up sink=events", "publish_started sink=events"]);
        assert_eq!(recorder.count("publish_"), 1);
        recorder.clear();
        assert!(recorder.lines().is_empty());
    }
}
