//! Logs: state changes at info and above, one line for each event at debug.
//!
//! Never bodies, headers, queries, signatures or secrets: none of them is in an observation.

use std::{
    io::IsTerminal,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use governor::{DefaultDirectRateLimiter, RateLimiter};
use hookgate_core::{
    auth::AuthFailure,
    event::{SinkId, SourceId},
    observe::{AttemptResult, Chain, DedupOperation, Observation, Observer, Outcome, ProxyHeaderFailure, TlsFailure},
    sink::PublishError,
    spool::SpoolReason,
};
use tracing_subscriber::EnvFilter;

use crate::config::{EventLevel, LogConfig, LogFormat};

/// Libraries that are silent unless `log.level` names them. The words of the NATS and AMQP clients are said by the sinks, once,
/// and in the operator's terms; the AMQP client logs bodies of returned messages besides. The HTTP/2 library logs every header at `trace`, credentials and query tokens among them.
const SILENT: &str = "async_nats=off,lapin=off,h2=off,hyper=off";

/// Begins to log to stderr.
pub(crate) fn start_log(config: &LogConfig) {
    let filter = EnvFilter::builder().parse_lossy(format!("{SILENT},{}", config.level.0));
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Pretty => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    }
}

/// At most one warning of a kind in this time: a broker outage fails every event alike.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct Log {
    begun: Instant,
    events: EventLevel,
    /// How many lines of events there may be.
    events_rate: Option<DefaultDirectRateLimiter>,
    events_suppressed: AtomicU64,
    /// At the index of each source.
    sources: ArcSwap<Vec<Arc<SourceLimiters>>>,
    /// At the index of each sink, for each result of an attempt.
    failures: ArcSwap<Vec<Arc<[Limiter; AttemptResult::ALL.len()]>>>,
    /// For each operation on the dedup store.
    dedup: [Limiter; DedupOperation::ALL.len()],
    accept_failures: Limiter,
    /// For each reason.
    proxy_headers: [Limiter; ProxyHeaderFailure::ALL.len()],
    /// For each reason.
    tls_failures: [Limiter; TlsFailure::ALL.len()],
    /// For each reason.
    spool_failures: [Limiter; SpoolReason::ALL.len()],
    spool_notices: Limiter,
}

struct SourceLimiters {
    /// For each reason.
    refusals: [Limiter; AuthFailure::ALL.len()],
    /// Some handshakes need no proof, so anybody can have them answered.
    handshakes: Limiter,
    mismatches: Limiter,
}

impl SourceLimiters {
    fn new() -> Self {
        let refusals = std::array::from_fn(|_| Limiter::default());
        Self { refusals, handshakes: Limiter::default(), mismatches: Limiter::default() }
    }
}

impl Log {
    pub(super) fn new(config: &LogConfig) -> Self {
        Self {
            begun: Instant::now(),
            events: config.events,
            events_rate: config.events_max.map(|rate| RateLimiter::direct(rate.quota())),
            events_suppressed: AtomicU64::new(0),
            sources: ArcSwap::default(),
            failures: ArcSwap::default(),
            dedup: std::array::from_fn(|_| Limiter::default()),
            accept_failures: Limiter::default(),
            proxy_headers: std::array::from_fn(|_| Limiter::default()),
            tls_failures: std::array::from_fn(|_| Limiter::default()),
            spool_failures: std::array::from_fn(|_| Limiter::default()),
            spool_notices: Limiter::default(),
        }
    }

    /// Makes room for so many sources and sinks.
    pub(super) fn make_room(&self, sources: usize, sinks: usize) {
        let (mut all_sources, mut failures) = (self.sources.load().to_vec(), self.failures.load().to_vec());
        all_sources.resize_with(sources.max(all_sources.len()), || Arc::new(SourceLimiters::new()));
        failures.resize_with(sinks.max(failures.len()), || Arc::new(std::array::from_fn(|_| Limiter::default())));
        self.sources.store(Arc::new(all_sources));
        self.failures.store(Arc::new(failures));
    }

    /// Whether one more event has a line, and how many had none since the last that did.
    fn next_event(&self) -> Option<u64> {
        if self.events_rate.as_ref().is_some_and(|rate| rate.check().is_err()) {
            self.events_suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.events_suppressed.swap(0, Ordering::Relaxed))
    }

    fn source(&self, source: &SourceId) -> Arc<SourceLimiters> {
        Arc::clone(&self.sources.load()[source.index()])
    }

    fn publish_failed(&self, sink: &SinkId, error: &PublishError, required: bool) {
        let reason = AttemptResult::from(error.reason);
        if let Some(suppressed) = self.failures.load()[sink.index()][reason.index()].pass(self.begun.elapsed()) {
            let (reason, error) = (reason.label(), Chain(error));
            tracing::warn!(%sink, reason, required, suppressed, %error, "an event could not be published");
        }
    }
}

impl Observer for Log {
    fn observe(&self, observation: &Observation<'_>) {
        match observation {
            Observation::EventFinished { source, event, trace, outcome, elapsed, cause } => {
                let (event_id, event_type) =
                    (event.map(|event| event.id.as_str()), event.map(|event| &*event.event_type));
                let (outcome, failed) = (outcome.label(), *outcome == Outcome::Failed);
                let (elapsed_ms, cause) = (millis(*elapsed), cause.map(tracing::field::display));
                if failed {
                    tracing::error!(%source, event_id, outcome, elapsed_ms, "a defect stopped an event; it is not remembered");
                } else if self.events == EventLevel::Info {
                    let Some(suppressed) = self.next_event() else { return };
                    let trace = trace.parent.as_str();
                    tracing::info!(%source, event_id, event_type, outcome, elapsed_ms, cause, trace, suppressed, "event");
                } else {
                    tracing::debug!(%source, event_id, event_type, outcome, elapsed_ms, cause, "event");
                }
            }
            Observation::RequestRejected { source, reason } => {
                let source = source.map_or("unknown", |source| source.name());
                tracing::debug!(source, reason = reason.label(), "request refused");
            }
            Observation::SenderRefused { source, reason } => {
                if let Some(suppressed) = self.source(source).refusals[reason.index()].pass(self.begun.elapsed()) {
                    let (reason, cause) = (reason.label(), reason.to_string());
                    tracing::warn!(%source, reason, cause, suppressed, "a request was refused: its sender is not verified");
                }
            }
            Observation::HandshakeAnswered { source, status } => {
                if let Some(suppressed) = self.source(source).handshakes.pass(self.begun.elapsed()) {
                    tracing::info!(%source, status, suppressed, "a handshake was answered");
                }
            }
            Observation::SubscriptionConfirmed { source, error: None } => {
                tracing::info!(%source, "a subscription was confirmed");
            }
            Observation::SubscriptionConfirmed { source, error: Some(error) } => {
                tracing::warn!(%source, error, "a subscription could not be confirmed");
            }
            Observation::DocumentFetched { url, error: None } => tracing::info!(url, "keys were fetched"),
            Observation::DocumentFetched { url, error: Some(error) } => {
                tracing::warn!(url, error, "keys could not be fetched");
            }
            Observation::PublishFinished { sink, error: Some(error), required } => {
                self.publish_failed(sink, error, *required)
            }
            Observation::SinkUp { sink } => tracing::info!(%sink, "sink is up"),
            Observation::SinkDown { sink, cause } => tracing::warn!(%sink, %cause, "sink is down"),
            Observation::SinkNotice { sink, message, detail } => tracing::warn!(%sink, %detail, "{message}"),
            Observation::DedupOperated { operation, error: Some(error), .. } => {
                if let Some(suppressed) = self.dedup[operation.index()].pass(self.begun.elapsed()) {
                    let (operation, reason, error) = (operation.label(), error.reason.label(), Chain(*error));
                    tracing::warn!(operation, reason, suppressed, %error, "the dedup store was of no help; duplicates are possible");
                }
            }
            Observation::DedupStoreUp => tracing::info!("dedup store is up"),
            Observation::DedupStoreDown { cause } => tracing::warn!(%cause, "dedup store is down"),
            Observation::DedupStoreNotice { message } => tracing::warn!(message, "the dedup store is set up unwisely"),
            Observation::PayloadMismatch { event } => {
                if let Some(suppressed) = self.source(&event.source).mismatches.pass(self.begun.elapsed()) {
                    let (source, event_id) = (&event.source, event.id.as_str());
                    tracing::warn!(%source, event_id, suppressed, "an event has an id that was accepted with another body");
                }
            }
            Observation::SpoolAppended { sink, error: Some(error), .. } => {
                if let Some(suppressed) = self.spool_failures[error.reason.index()].pass(self.begun.elapsed()) {
                    let reason = error.reason.label();
                    tracing::error!(%sink, reason, %error, suppressed, "a message could not be kept in the spool; its sender is told to come back");
                }
            }
            Observation::DeadLettered { sink, source, event_id, reason, cause } => {
                let reason = reason.label();
                tracing::error!(%sink, %source, event_id, reason, %cause, "a message is a dead letter");
            }
            Observation::CircuitChanged { sink, open: true } => {
                tracing::warn!(%sink, "events go to the spool at once, since the sink fails");
            }
            Observation::CircuitChanged { sink, open: false } => {
                tracing::info!(%sink, "events go to the sink again");
            }
            Observation::SpoolCorrupt { sink, detail } => {
                tracing::error!(%sink, detail, "records of the spool are damaged; what is left of them is in its quarantine");
            }
            Observation::SpoolNotice { message, detail } => {
                if let Some(suppressed) = self.spool_notices.pass(self.begun.elapsed()) {
                    tracing::warn!(%detail, suppressed, "{message}");
                }
            }
            Observation::ConfigReplaced { restart: [] } => tracing::info!("a changed config is in use"),
            Observation::ConfigReplaced { restart } => {
                let keys = restart.join(", ");
                tracing::warn!(keys, "a changed config is in use; these keys take effect at the next start");
            }
            Observation::ConfigKept { problems } => {
                tracing::error!(%problems, "the changed config cannot be used; the one from before stays");
            }
            Observation::SecretReplaced { name } => tracing::info!(secret = name, "a changed secret is in use"),
            Observation::SecretKept { name, cause } => {
                tracing::warn!(secret = name, %cause, "a secret cannot be read any more; the value from before stays in use");
            }
            Observation::AcceptFailed { error } => {
                if let Some(suppressed) = self.accept_failures.pass(self.begun.elapsed()) {
                    tracing::warn!(%error, suppressed, "a connection could not be accepted");
                }
            }
            Observation::ProxyHeaderRefused { reason: ProxyHeaderFailure::Closed, .. }
            | Observation::TlsHandshakeFailed { reason: TlsFailure::Closed, .. } => {
                tracing::debug!("a connection ended before it had begun");
            }
            Observation::ProxyHeaderRefused { peer, reason } => {
                if let Some(suppressed) = self.proxy_headers[reason.index()].pass(self.begun.elapsed()) {
                    let reason = reason.label();
                    tracing::warn!(%peer, reason, suppressed, "a connection was closed: it has to begin with a PROXY header");
                }
            }
            Observation::TlsHandshakeFailed { reason, error } => {
                if let Some(suppressed) = self.tls_failures[reason.index()].pass(self.begun.elapsed()) {
                    let (reason, error) = (reason.label(), error.map(tracing::field::display));
                    tracing::warn!(reason, suppressed, error, "a TLS handshake failed");
                }
            }
            Observation::CertificateServed { expires } => {
                let expires = expires.map(|expires| humantime::format_rfc3339_seconds(expires).to_string());
                tracing::info!(expires, "a certificate is in use");
            }
            Observation::CertificateKept { cause } => {
                tracing::warn!(%cause, "the changed certificate cannot be used; the one from before stays");
            }
            Observation::ConnectionOpened
            | Observation::ConnectionClosed
            | Observation::RequestStarted
            | Observation::RequestFinished { .. }
            | Observation::SenderVerified { .. }
            | Observation::EventReceived { .. }
            | Observation::RouteDecided { .. }
            | Observation::DedupChecked { .. }
            | Observation::DedupOperated { error: None, .. }
            | Observation::SinkClient { .. }
            | Observation::SpoolAppended { error: None, .. }
            | Observation::SpoolReplayed { .. }
            | Observation::SpoolSynced { .. }
            | Observation::PublishStarted { .. }
            | Observation::PublishAttempted { .. }
            | Observation::PublishFinished { error: None, .. } => {}
        }
    }
}

/// Whole milliseconds, as a number that every log format shows as one.
pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Lets one through in a while and counts the rest.
#[derive(Default)]
struct Limiter {
    /// When the next one may pass, in milliseconds after the start of the log.
    next_ms: AtomicU64,
    suppressed: AtomicU64,
}

impl Limiter {
    /// `Some` with the number of those held back since the last that passed.
    fn pass(&self, now: Duration) -> Option<u64> {
        let next = self.next_ms.load(Ordering::Relaxed);
        let after = millis(now + WARNING_INTERVAL);
        let passes = millis(now) >= next
            && self.next_ms.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if passes {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_warnings_is_one_line_with_a_count() {
        let limiter = Limiter::default();
        assert_eq!(limiter.pass(Duration::ZERO), Some(0));
        assert_eq!(limiter.pass(Duration::from_secs(1)), None);
        assert_eq!(limiter.pass(Duration::from_secs(9)), None);
        assert_eq!(limiter.pass(Duration::from_secs(10)), Some(2));
    }
}
