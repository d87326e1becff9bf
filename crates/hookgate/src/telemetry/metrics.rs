//! Metrics for Prometheus. Every series is made at the start, so that the first failure is an increase from zero, and
//! every handle is kept, so that an event costs additions and no label formatting.

use std::{
    collections::HashMap,
    ops::RangeInclusive,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use hookgate_core::{
    auth::{AuthFailure, Credential, Proof},
    dedup::StoreReason,
    event::{SinkId, SourceId},
    observe::{
        AttemptResult, ClientState, DedupOperation, DedupResult, Observation, Observer, Outcome, ProxyHeaderFailure,
        Rejection, ReplayResult, RouteResult, TlsFailure,
    },
    spool::SpoolReason,
};
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::spool::{self, LocalSpool, SinkSpool};

/// Status codes that hookgate answers with, 499 standing for a client that was gone before its answer.
const CODES: [u16; 18] = [200, 201, 202, 204, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 499, 500, 503, 504];

/// Answers by whose doing they are; the last takes what is in no other.
const ANSWERS: [(RangeInclusive<u16>, &str); 4] =
    [(200..=299, "accepted"), (499..=499, "client_gone"), (400..=499, "refused"), (500..=599, "failed")];

/// The label of requests to a path that is nobody's.
const UNKNOWN_SOURCE: &str = "unknown";

const SECONDS_TO_ANSWER: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const SECONDS_TO_PUBLISH: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
const SECONDS_TO_CLAIM: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];
const SECONDS_TO_DELIVER: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 900.0, 3600.0];
const BODY_BYTES: &[f64] =
    &[256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];

pub(super) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: metrics_process::Collector,
    series: Series,
}

/// The handles of all series.
struct Series {
    /// Those of the config and of the ones before it, by their indices.
    sources: ArcSwap<Vec<Option<Arc<SourceMetrics>>>>,
    /// For paths that are nobody's.
    unknown_source: Arc<SourceMetrics>,
    /// The same, at their indices.
    sinks: ArcSwap<Vec<Arc<SinkMetrics>>>,
    /// Those of the config, by their names.
    routes: ArcSwap<HashMap<Arc<str>, Vec<Counter>>>,
    connections: Gauge,
    connections_accepted: Counter,
    accept_failures: Counter,
    proxy_headers_refused: Vec<Counter>,
    tls_failures: Vec<Counter>,
    /// Only where there is a certificate: one that ends at 0 has ended.
    certificate_expires: OnceLock<Gauge>,
    requests_in_flight: Gauge,
    dedup_checks: Vec<Counter>,
    dedup_entries: Gauge,
    /// Only where there is one: a gauge that is 0 for good would raise an alarm.
    dedup_store: Option<DedupStoreMetrics>,
    secrets_replaced: Counter,
    keys_fetched: Counter,
    key_fetches_failed: Counter,
    draining: Gauge,
    spool_limit: Gauge,
    config_replaced: Counter,
    config_kept: Counter,
    config_good: Gauge,
    config_changed_at: Gauge,
    restart_required: Gauge,
    audit_failures: Counter,
    audit_lost: Counter,
    runtime_lag: Histogram,
    panics: Counter,
    #[cfg_attr(
        not(feature = "otlp"),
        expect(dead_code, reason = "every build has the series, so that dashboards find it")
    )]
    spans_dropped: Counter,
}

struct SourceMetrics {
    requests: Vec<Counter>,
    request_seconds: Vec<Histogram>,
    rejections: Vec<Counter>,
    refusals: Vec<Counter>,
    verified: Vec<(Credential, Counter)>,
    unverified: Counter,
    handshakes_answered: Counter,
    handshakes_refused: Counter,
    handshakes_failed: Counter,
    payload_mismatches: Counter,
    received: Counter,
    outcomes: Vec<Counter>,
    in_flight: Gauge,
    body_bytes: Histogram,
    end_to_end: Histogram,
    end_to_end_spooled: Histogram,
    last_received: Gauge,
}

struct DedupStoreMetrics {
    seconds: Vec<Histogram>,
    errors: Vec<Counter>,
    commit_failures: Counter,
    up: Gauge,
}

struct SinkMetrics {
    attempts: Vec<Counter>,
    attempt_seconds: Histogram,
    in_flight: Gauge,
    retries: Counter,
    failures: Counter,
    best_effort_failures: Counter,
    up: Gauge,
    connects: Counter,
    last_success: Gauge,
    /// Only of those whose client library tells.
    client: OnceLock<ClientMetrics>,
    circuit_open: Gauge,
    spool: SpoolMetrics,
}

/// What one sink has in the spool.
struct SpoolMetrics {
    appended: Counter,
    append_failures: Vec<Counter>,
    replays: Vec<Counter>,
    dead_letters: Vec<Counter>,
    sync_seconds: Histogram,
    corrupt: Counter,
    bytes: Gauge,
    events: Gauge,
    segments: Gauge,
    quarantined: Gauge,
    oldest: Gauge,
    writable: Gauge,
    dead_events: Gauge,
}

struct ClientMetrics {
    queued_messages: Gauge,
    queued_bytes: Gauge,
    brokers_up: Gauge,
    round_trip_p99: Gauge,
}

impl Metrics {
    pub(super) fn new(shares_dedup: bool) -> Self {
        let buckets = |builder: PrometheusBuilder, name: &str, values| {
            builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), values).expect("the buckets are not empty")
        };
        let builder = PrometheusBuilder::new();
        let builder = buckets(builder, "hookgate_http_request_duration_seconds", SECONDS_TO_ANSWER);
        let builder = buckets(builder, "hookgate_http_request_body_bytes", BODY_BYTES);
        let builder = buckets(builder, "hookgate_event_end_to_end_seconds", SECONDS_TO_DELIVER);
        let builder = buckets(builder, "hookgate_spool_fsync_duration_seconds", SECONDS_TO_CLAIM);
        let builder = buckets(builder, "hookgate_publish_duration_seconds", SECONDS_TO_PUBLISH);
        let builder = buckets(builder, "hookgate_dedup_operation_duration_seconds", SECONDS_TO_CLAIM);
        let builder = buckets(builder, "hookgate_runtime_lag_seconds", SECONDS_TO_CLAIM);
        let recorder = builder.build_recorder();
        let process = metrics_process::Collector::default();
        // Handles belong to the recorder that is current when they are made.
        let series = metrics::with_local_recorder(&recorder, || {
            describe();
            process.describe();
            gauge!("hookgate_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
            Series::new(shares_dedup)
        });
        Self { handle: recorder.handle(), recorder, process, series }
    }

    /// Makes the series of `sinks`, each at its index, that are not there yet.
    pub(super) fn make_room(&self, sinks: &[SinkId]) {
        metrics::with_local_recorder(&self.recorder, || {
            let mut all = self.series.sinks.load().to_vec();
            let known = all.len();
            all.extend(sinks.iter().skip(known).map(|id| Arc::new(SinkMetrics::new(id.name()))));
            self.series.sinks.store(Arc::new(all));
        });
    }

    /// Makes the series of what a config has; those that are there already go on. `sources` with everything that can verify
    /// their requests.
    pub(super) fn adopt(&self, sources: &[(SourceId, Vec<Credential>)], routes: &[Arc<str>]) {
        metrics::with_local_recorder(&self.recorder, || {
            let series = &self.series;
            let mut all_sources = series.sources.load().to_vec();
            for (id, credentials) in sources {
                all_sources.resize(all_sources.len().max(id.index() + 1), None);
                all_sources[id.index()] = Some(Arc::new(SourceMetrics::new(id.name(), credentials)));
            }
            series.sources.store(Arc::new(all_sources));
            let count = |route: &Arc<str>, result: &RouteResult| counter!("hookgate_route_events_total", "route" => route.to_string(), "result" => result.label());
            let counters = |route: &Arc<str>| RouteResult::ALL.iter().map(|result| count(route, result)).collect();
            let mut all_routes = HashMap::clone(&series.routes.load());
            all_routes.extend(routes.iter().map(|route| (Arc::clone(route), counters(route))));
            series.routes.store(Arc::new(all_routes));
        });
    }

    /// What counts the lines of the audit trail that cannot be written.
    pub(super) fn audit_failures(&self) -> Counter {
        self.series.audit_failures.clone()
    }

    /// So many lines of it found no place in its queue, so far.
    pub(super) fn audit_lost(&self, lines: u64) {
        self.series.audit_lost.absolute(lines);
    }

    /// What counts the spans that are not exported.
    #[cfg(feature = "otlp")]
    pub(super) fn spans_dropped(&self) -> Counter {
        self.series.spans_dropped.clone()
    }

    pub(super) fn draining(&self) {
        self.series.draining.set(1.0);
    }

    /// A timer was late by this much.
    pub(super) fn runtime_lag(&self, lag: Duration) {
        self.series.runtime_lag.record(lag);
    }

    /// What counts panics.
    pub(super) fn panics(&self) -> Counter {
        self.series.panics.clone()
    }

    /// Folds the histograms' samples into their buckets.
    pub(super) fn fold(&self) {
        self.handle.run_upkeep();
    }

    pub(super) fn render(&self, dedup_entries: usize, spool: Option<&LocalSpool>) -> String {
        if let Some(spool) = spool {
            self.series.spool_limit.set(spool.max_bytes() as f64);
            for state in spool.state() {
                self.sink(&state.sink).spool.set(&state);
            }
        }
        self.series.dedup_entries.set(dedup_entries as f64);
        metrics::with_local_recorder(&self.recorder, || self.process.collect());
        self.handle.render()
    }

    fn source(&self, source: Option<&SourceId>) -> Arc<SourceMetrics> {
        let sources = self.series.sources.load();
        let known = source.and_then(|source| sources.get(source.index())?.as_ref());
        Arc::clone(known.unwrap_or(&self.series.unknown_source))
    }

    fn sink(&self, sink: &SinkId) -> Arc<SinkMetrics> {
        Arc::clone(&self.series.sinks.load()[sink.index()])
    }
}

impl Series {
    fn new(shares_dedup: bool) -> Self {
        let reloads = |result| counter!("hookgate_config_reloads_total", "result" => result);
        let config_good = gauge!("hookgate_config_last_reload_successful");
        let config_changed_at = gauge!("hookgate_config_last_reload_timestamp_seconds");
        config_good.set(1.0);
        config_changed_at.set(now());
        let fetches = |result| counter!("hookgate_key_fetches_total", "result" => result);
        let proxy_header =
            |reason: &ProxyHeaderFailure| counter!("hookgate_proxy_header_failures_total", "reason" => reason.label());
        let tls_failure =
            |reason: &TlsFailure| counter!("hookgate_tls_handshake_failures_total", "reason" => reason.label());
        let check = |result: &DedupResult| counter!("hookgate_dedup_checks_total", "result" => result.label());
        Self {
            sources: ArcSwap::default(),
            unknown_source: Arc::new(SourceMetrics::new(UNKNOWN_SOURCE, &[])),
            sinks: ArcSwap::default(),
            routes: ArcSwap::default(),
            connections: gauge!("hookgate_http_connections"),
            connections_accepted: counter!("hookgate_http_connections_accepted_total"),
            accept_failures: counter!("hookgate_http_accept_failures_total"),
            proxy_headers_refused: ProxyHeaderFailure::ALL.iter().map(proxy_header).collect(),
            tls_failures: TlsFailure::ALL.iter().map(tls_failure).collect(),
            certificate_expires: OnceLock::new(),
            requests_in_flight: gauge!("hookgate_http_requests_in_flight"),
            dedup_checks: DedupResult::ALL.iter().map(check).collect(),
            dedup_entries: gauge!("hookgate_dedup_entries"),
            dedup_store: shares_dedup.then(DedupStoreMetrics::new),
            secrets_replaced: counter!("hookgate_secrets_replaced_total"),
            keys_fetched: fetches("ok"),
            key_fetches_failed: fetches("error"),
            draining: gauge!("hookgate_draining"),
            spool_limit: gauge!("hookgate_spool_limit_bytes"),
            config_replaced: reloads("ok"),
            config_kept: reloads("error"),
            config_good,
            config_changed_at,
            restart_required: gauge!("hookgate_config_restart_required"),
            audit_failures: counter!("hookgate_audit_write_failures_total"),
            audit_lost: counter!("hookgate_audit_lines_dropped_total"),
            runtime_lag: histogram!("hookgate_runtime_lag_seconds"),
            panics: counter!("hookgate_panics_total"),
            spans_dropped: counter!("hookgate_trace_spans_dropped_total"),
        }
    }
}

impl SourceMetrics {
    fn new(source: &str, credentials: &[Credential]) -> Self {
        let source = source.to_owned();
        let outcome = |outcome: &Outcome| counter!("hookgate_events_total", "source" => source.clone(), "outcome" => outcome.label());
        let rejection = |reason: &'static str| counter!("hookgate_http_rejections_total", "source" => source.clone(), "reason" => reason);
        let verified = |scheme: &'static str, secret: &str| counter!("hookgate_sender_verified_total", "source" => source.clone(), "scheme" => scheme, "secret" => secret.to_owned());
        let handshakes = |result: &'static str| counter!("hookgate_handshakes_total", "source" => source.clone(), "result" => result);
        let seconds = |outcome: &'static str| histogram!("hookgate_http_request_duration_seconds", "source" => source.clone(), "outcome" => outcome);
        let request = |code: &u16| counter!("hookgate_http_requests_total", "source" => source.clone(), "code" => code.to_string());
        Self {
            requests: CODES.iter().map(request).collect(),
            request_seconds: ANSWERS.iter().map(|(_, answer)| seconds(answer)).collect(),
            rejections: Rejection::ALL.iter().map(|reason| rejection(reason.label())).collect(),
            refusals: AuthFailure::ALL.iter().map(|reason| rejection(reason.label())).collect(),
            verified: credentials
                .iter()
                .map(|credential| (credential.clone(), verified(credential.scheme, &credential.secret)))
                .collect(),
            unverified: verified("none", "none"),
            handshakes_answered: handshakes("answered"),
            handshakes_refused: handshakes("refused"),
            handshakes_failed: handshakes("failed"),
            payload_mismatches: counter!("hookgate_dedup_payload_mismatch_total", "source" => source.clone()),
            received: counter!("hookgate_events_received_total", "source" => source.clone()),
            outcomes: Outcome::ALL.iter().map(outcome).collect(),
            in_flight: gauge!("hookgate_events_in_flight", "source" => source.clone()),
            body_bytes: histogram!("hookgate_http_request_body_bytes", "source" => source.clone()),
            end_to_end: histogram!("hookgate_event_end_to_end_seconds", "source" => source.clone(), "path" => "direct"),
            end_to_end_spooled: histogram!("hookgate_event_end_to_end_seconds", "source" => source.clone(), "path" => "spool"),
            last_received: gauge!("hookgate_last_event_received_timestamp_seconds", "source" => source.clone()),
        }
    }
}

impl SourceMetrics {
    /// Counts each secret of `proof`. There are few, and their handles are kept: nothing is formatted.
    fn verified_by(&self, proof: &Proof) {
        let Proof::Verified(credentials) = proof else { return self.unverified.increment(1) };
        for credential in credentials {
            if let Some((_, counter)) = self.verified.iter().find(|(known, _)| known == credential) {
                counter.increment(1);
            }
        }
    }
}

impl DedupStoreMetrics {
    fn new() -> Self {
        let seconds = |operation: &DedupOperation| histogram!("hookgate_dedup_operation_duration_seconds", "operation" => operation.label());
        let errors = |reason: &StoreReason| counter!("hookgate_dedup_store_errors_total", "reason" => reason.label());
        Self {
            seconds: DedupOperation::ALL.iter().map(seconds).collect(),
            errors: StoreReason::ALL.iter().map(errors).collect(),
            commit_failures: counter!("hookgate_dedup_commit_failures_total"),
            up: gauge!("hookgate_dedup_store_up"),
        }
    }

    fn observe(&self, observation: &Observation<'_>) {
        match observation {
            Observation::DedupOperated { operation, events, elapsed, error } => {
                self.seconds[operation.index()].record(*elapsed);
                if let Some(error) = error {
                    self.errors[error.reason.index()].increment(1);
                    if *operation == DedupOperation::Commit {
                        self.commit_failures.increment(*events as u64);
                    }
                }
            }
            Observation::DedupStoreUp => self.up.set(1.0),
            Observation::DedupStoreDown { .. } => self.up.set(0.0),
            _ => {}
        }
    }
}

impl SinkMetrics {
    fn new(sink: &str) -> Self {
        let sink = sink.to_owned();
        let failures =
            |required| counter!("hookgate_publish_failures_total", "sink" => sink.clone(), "required" => required);
        let attempt = |result: &AttemptResult| counter!("hookgate_publish_attempts_total", "sink" => sink.clone(), "result" => result.label());
        Self {
            attempts: AttemptResult::ALL.iter().map(attempt).collect(),
            attempt_seconds: histogram!("hookgate_publish_duration_seconds", "sink" => sink.clone()),
            in_flight: gauge!("hookgate_publish_in_flight", "sink" => sink.clone()),
            retries: counter!("hookgate_publish_retries_total", "sink" => sink.clone()),
            failures: failures("true"),
            best_effort_failures: failures("false"),
            up: gauge!("hookgate_sink_up", "sink" => sink.clone()),
            connects: counter!("hookgate_sink_connects_total", "sink" => sink.clone()),
            last_success: gauge!("hookgate_sink_last_success_timestamp_seconds", "sink" => sink.clone()),
            client: OnceLock::new(),
            circuit_open: gauge!("hookgate_sink_circuit_open", "sink" => sink.clone()),
            spool: SpoolMetrics::new(&sink),
        }
    }
}

impl SpoolMetrics {
    fn new(sink: &str) -> Self {
        let sink = sink.to_owned();
        let gauge = |name: &'static str| gauge!(name, "sink" => sink.clone());
        let appends =
            |result: &'static str| counter!("hookgate_spool_appends_total", "sink" => sink.clone(), "result" => result);
        let replays = |result: &ReplayResult| counter!("hookgate_spool_replays_total", "sink" => sink.clone(), "result" => result.label());
        let dead = |reason: &AttemptResult| counter!("hookgate_dead_letters_total", "sink" => sink.clone(), "reason" => reason.label());
        Self {
            appended: appends("ok"),
            append_failures: SpoolReason::ALL.iter().map(|reason| appends(reason.label())).collect(),
            replays: ReplayResult::ALL.iter().map(replays).collect(),
            dead_letters: AttemptResult::ALL.iter().map(dead).collect(),
            sync_seconds: histogram!("hookgate_spool_fsync_duration_seconds", "sink" => sink.clone()),
            corrupt: counter!("hookgate_spool_corrupt_records_total", "sink" => sink.clone()),
            bytes: gauge("hookgate_spool_bytes"),
            events: gauge("hookgate_spool_events"),
            segments: gauge("hookgate_spool_segments"),
            quarantined: gauge("hookgate_spool_quarantined_segments"),
            oldest: gauge("hookgate_spool_oldest_event_timestamp_seconds"),
            writable: gauge("hookgate_spool_writable"),
            dead_events: gauge("hookgate_dead_letters"),
        }
    }

    fn set(&self, state: &SinkSpool) {
        let SinkSpool { backlog, dead, .. } = state;
        self.bytes.set(backlog.bytes as f64);
        self.events.set(backlog.events as f64);
        self.segments.set(backlog.segments as f64);
        self.quarantined.set((backlog.quarantined + dead.quarantined) as f64);
        self.oldest.set(spool::seconds(backlog.oldest));
        self.writable.set(if backlog.writable { 1.0 } else { 0.0 });
        self.dead_events.set(dead.events as f64);
    }
}

impl ClientMetrics {
    fn new(sink: &str) -> Self {
        let gauge = |name: &'static str| gauge!(name, "sink" => sink.to_owned());
        Self {
            queued_messages: gauge("hookgate_sink_client_queued_messages"),
            queued_bytes: gauge("hookgate_sink_client_queued_bytes"),
            brokers_up: gauge("hookgate_sink_client_brokers_up"),
            round_trip_p99: gauge("hookgate_sink_client_round_trip_p99_seconds"),
        }
    }

    fn set(&self, state: &ClientState) {
        self.queued_messages.set(state.queued_messages as f64);
        self.queued_bytes.set(state.queued_bytes as f64);
        self.brokers_up.set(state.brokers_up as f64);
        self.round_trip_p99.set(state.round_trip_p99.as_secs_f64());
    }
}

impl Observer for Metrics {
    fn observe(&self, observation: &Observation<'_>) {
        match observation {
            Observation::ConnectionOpened => {
                self.series.connections.increment(1.0);
                self.series.connections_accepted.increment(1);
            }
            Observation::ConnectionClosed => self.series.connections.decrement(1.0),
            Observation::AcceptFailed { .. } => self.series.accept_failures.increment(1),
            Observation::ProxyHeaderRefused { reason, .. } => {
                self.series.proxy_headers_refused[reason.index()].increment(1)
            }
            Observation::TlsHandshakeFailed { reason, .. } => self.series.tls_failures[reason.index()].increment(1),
            Observation::CertificateServed { expires } => {
                let made = || gauge!("hookgate_tls_certificate_expiry_timestamp_seconds");
                let made = || metrics::with_local_recorder(&self.recorder, made);
                // Not the end of the one before: no comparison holds for NaN, so that nothing is raised or hidden by it.
                let expires = expires.map_or(f64::NAN, |expires| spool::seconds(Some(expires)));
                self.series.certificate_expires.get_or_init(made).set(expires);
            }
            Observation::RequestStarted => self.series.requests_in_flight.increment(1.0),
            Observation::RequestFinished { source, status, elapsed } => {
                self.series.requests_in_flight.decrement(1.0);
                let metrics = self.source(*source);
                if let Some(place) = CODES.iter().position(|code| code == status) {
                    metrics.requests[place].increment(1);
                }
                let answer = ANSWERS.iter().position(|(statuses, _)| statuses.contains(status));
                metrics.request_seconds[answer.unwrap_or(ANSWERS.len() - 1)].record(*elapsed);
            }
            Observation::RequestRejected { source, reason } => {
                self.source(*source).rejections[reason.index()].increment(1)
            }
            Observation::SenderRefused { source, reason } => {
                self.source(Some(source)).refusals[reason.index()].increment(1);
            }
            Observation::SenderVerified { source, proof } => self.source(Some(source)).verified_by(proof),
            Observation::HandshakeAnswered { source, status } => {
                let metrics = self.source(Some(source));
                let counter = if *status < 300 { &metrics.handshakes_answered } else { &metrics.handshakes_refused };
                counter.increment(1);
            }
            Observation::SubscriptionConfirmed { source, error: Some(_) } => {
                self.source(Some(source)).handshakes_failed.increment(1);
            }
            Observation::DocumentFetched { error: None, .. } => self.series.keys_fetched.increment(1),
            Observation::DocumentFetched { error: Some(_), .. } => self.series.key_fetches_failed.increment(1),
            Observation::EventReceived { source, body_bytes } => {
                let metrics = self.source(Some(source));
                metrics.received.increment(1);
                metrics.in_flight.increment(1.0);
                metrics.body_bytes.record(*body_bytes as f64);
                metrics.last_received.set(now());
            }
            Observation::EventFinished { source, outcome, elapsed, .. } => {
                let metrics = self.source(Some(source));
                metrics.in_flight.decrement(1.0);
                metrics.outcomes[outcome.index()].increment(1);
                if *outcome == Outcome::Delivered {
                    metrics.end_to_end.record(*elapsed);
                }
            }
            Observation::RouteDecided { route, result } => {
                if let Some(counters) = self.series.routes.load().get(*route) {
                    counters[result.index()].increment(1);
                }
            }
            Observation::DedupChecked { result } => self.series.dedup_checks[result.index()].increment(1),
            Observation::DedupOperated { .. } | Observation::DedupStoreUp | Observation::DedupStoreDown { .. } => {
                if let Some(store) = &self.series.dedup_store {
                    store.observe(observation);
                }
            }
            Observation::PayloadMismatch { event } => {
                self.source(Some(&event.source)).payload_mismatches.increment(1);
            }
            Observation::PublishStarted { sink } => self.sink(sink).in_flight.increment(1.0),
            Observation::PublishAttempted { sink, attempt, result, elapsed, .. } => {
                let metrics = self.sink(sink);
                metrics.retries.increment(u64::from(*attempt > 1));
                metrics.attempts[result.index()].increment(1);
                metrics.attempt_seconds.record(*elapsed);
                if matches!(result, AttemptResult::Acked | AttemptResult::AckedDuplicate) {
                    metrics.last_success.set(now());
                }
            }
            Observation::PublishFinished { sink, error, required } => {
                let metrics = self.sink(sink);
                metrics.in_flight.decrement(1.0);
                match (error, required) {
                    (None, _) => {}
                    (Some(_), true) => metrics.failures.increment(1),
                    (Some(_), false) => metrics.best_effort_failures.increment(1),
                }
            }
            Observation::SinkUp { sink } => {
                self.sink(sink).up.set(1.0);
                self.sink(sink).connects.increment(1);
            }
            Observation::SinkDown { sink, .. } => self.sink(sink).up.set(0.0),
            Observation::SinkClient { sink, state } => {
                let made = || metrics::with_local_recorder(&self.recorder, || ClientMetrics::new(sink.name()));
                self.sink(sink).client.get_or_init(made).set(state);
            }
            Observation::CircuitChanged { sink, open } => {
                self.sink(sink).circuit_open.set(if *open { 1.0 } else { 0.0 });
            }
            Observation::SpoolAppended { sink, error: None, .. } => self.sink(sink).spool.appended.increment(1),
            Observation::SpoolAppended { sink, error: Some(error), .. } => {
                self.sink(sink).spool.append_failures[error.reason.index()].increment(1);
            }
            Observation::SpoolReplayed { sink, source, result, waited } => {
                self.sink(sink).spool.replays[result.index()].increment(1);
                if *result == ReplayResult::Acked {
                    self.source(Some(source)).end_to_end_spooled.record(*waited);
                }
            }
            Observation::DeadLettered { sink, reason, .. } => {
                self.sink(sink).spool.dead_letters[reason.index()].increment(1);
            }
            Observation::SpoolSynced { sink, elapsed } => self.sink(sink).spool.sync_seconds.record(*elapsed),
            Observation::SpoolCorrupt { sink, .. } => self.sink(sink).spool.corrupt.increment(1),
            Observation::SecretReplaced { .. } => self.series.secrets_replaced.increment(1),
            Observation::ConfigReplaced { restart } => {
                self.series.config_replaced.increment(1);
                self.series.config_good.set(1.0);
                self.series.config_changed_at.set(now());
                self.series.restart_required.set(if restart.is_empty() { 0.0 } else { 1.0 });
            }
            Observation::ConfigKept { .. } => {
                self.series.config_kept.increment(1);
                self.series.config_good.set(0.0);
            }
            Observation::SinkNotice { .. }
            | Observation::SpoolNotice { .. }
            | Observation::DedupStoreNotice { .. }
            | Observation::SecretKept { .. }
            | Observation::CertificateKept { .. }
            | Observation::SubscriptionConfirmed { error: None, .. } => {}
        }
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

fn describe() {
    describe_counter!(
        "hookgate_route_events_total",
        "What routes had to do with events; those that did not match are not counted."
    );
    describe_counter!("hookgate_config_reloads_total", "Changed configs by whether they could be put in place.");
    describe_gauge!(
        "hookgate_config_last_reload_successful",
        "0 while the config's file has problems and an older one is in use."
    );
    describe_counter!("hookgate_audit_write_failures_total", "Lines of the audit trail that the disk did not take.");
    describe_counter!(
        "hookgate_audit_lines_dropped_total",
        "Lines of the audit trail that found no place in its queue."
    );
    describe_counter!(
        "hookgate_trace_spans_dropped_total",
        "Spans that found no place in their queue, or that the collector did not take."
    );
    describe_gauge!("hookgate_config_restart_required", "1 when a change of the config waits for a restart.");
    describe_counter!("hookgate_http_connections_accepted_total", "Connections accepted.");
    describe_counter!("hookgate_http_accept_failures_total", "Connections that could not be accepted.");
    describe_counter!(
        "hookgate_proxy_header_failures_total",
        "Connections closed since they did not begin with a PROXY header as they have to, by reason."
    );
    describe_counter!("hookgate_tls_handshake_failures_total", "TLS handshakes that failed, by reason.");
    describe_counter!("hookgate_http_requests_total", "Requests by source and status; 499 is a client that went away.");
    describe_counter!("hookgate_http_rejections_total", "Requests refused before they became events, by reason.");
    describe_counter!("hookgate_events_received_total", "Authenticated requests that are no handshakes.");
    describe_counter!(
        "hookgate_sender_verified_total",
        "Authenticated requests by the secret that matched; none where the config asks for none."
    );
    describe_counter!("hookgate_handshakes_total", "Requests by which providers make sure of their receiver.");
    describe_counter!("hookgate_key_fetches_total", "Fetches of keys and certificates that verification needs.");
    describe_counter!("hookgate_events_total", "Authenticated requests by what became of them.");
    describe_counter!("hookgate_dedup_checks_total", "What the dedup memory knew of each event.");
    describe_counter!("hookgate_dedup_store_errors_total", "Operations that the shared dedup store failed, by reason.");
    describe_counter!(
        "hookgate_dedup_commit_failures_total",
        "Delivered events that the shared dedup store may not know of."
    );
    describe_counter!(
        "hookgate_dedup_payload_mismatch_total",
        "Events with an id that was accepted with another body."
    );
    describe_gauge!("hookgate_dedup_store_up", "1 while the shared dedup store can be used.");
    describe_counter!("hookgate_publish_attempts_total", "Attempts to publish, by result.");
    describe_counter!("hookgate_publish_retries_total", "Attempts after the first for one message.");
    describe_counter!("hookgate_publish_failures_total", "Messages that were not acknowledged by any attempt.");
    describe_counter!("hookgate_sink_connects_total", "Times that a sink became able to publish.");
    describe_counter!("hookgate_secrets_replaced_total", "Secrets that changed while hookgate ran.");
    describe_gauge!("hookgate_http_connections", "Open connections.");
    describe_gauge!("hookgate_http_requests_in_flight", "Requests being answered.");
    describe_gauge!("hookgate_events_in_flight", "Authenticated requests that have not come to their end.");
    describe_gauge!("hookgate_dedup_entries", "Event ids remembered or in flight in memory.");
    describe_gauge!("hookgate_publish_in_flight", "Messages being published.");
    describe_gauge!("hookgate_sink_up", "1 while a sink can publish.");
    describe_gauge!("hookgate_sink_client_queued_messages", "Messages that a sink's client library holds.");
    describe_gauge!("hookgate_sink_client_queued_bytes", Unit::Bytes, "Their bytes.");
    describe_gauge!("hookgate_sink_client_brokers_up", "Brokers that a sink's client library is connected to.");
    describe_gauge!(
        "hookgate_sink_client_round_trip_p99_seconds",
        Unit::Seconds,
        "Round trips to the slowest of them."
    );
    describe_gauge!("hookgate_sink_circuit_open", "1 while events for a sink go to the spool at once, since it fails.");
    describe_counter!("hookgate_spool_appends_total", "Messages that were to be kept in the spool, by result.");
    describe_counter!("hookgate_spool_replays_total", "Attempts to publish from the spool, by result.");
    describe_counter!("hookgate_dead_letters_total", "Messages that are not tried again by themselves, by reason.");
    describe_counter!("hookgate_spool_corrupt_records_total", "Damaged records found in the spool.");
    describe_gauge!("hookgate_spool_limit_bytes", Unit::Bytes, "What may wait in the spool at most.");
    describe_gauge!("hookgate_spool_bytes", Unit::Bytes, "What the files of a sink's backlog take.");
    describe_gauge!("hookgate_spool_events", "Messages that wait for a sink.");
    describe_gauge!("hookgate_spool_segments", "Files of a sink's backlog.");
    describe_gauge!("hookgate_spool_quarantined_segments", "Damaged pieces that were set aside.");
    describe_gauge!("hookgate_spool_writable", "1 while the spool takes messages for a sink.");
    describe_gauge!("hookgate_dead_letters", "Dead letters of a sink.");
    describe_gauge!("hookgate_draining", "1 while the process shuts down.");
    describe_gauge!("hookgate_build_info", "1, with the version as a label.");
    let timestamp = |name: &'static str, what: &'static str| describe_gauge!(name, Unit::Seconds, what);
    timestamp("hookgate_config_last_reload_timestamp_seconds", "When the config in use was put in place.");
    timestamp(
        "hookgate_tls_certificate_expiry_timestamp_seconds",
        "When the certificate of the public port ends; not there without TLS.",
    );
    timestamp("hookgate_last_event_received_timestamp_seconds", "When a source's last event arrived.");
    timestamp("hookgate_sink_last_success_timestamp_seconds", "When a sink last acknowledged a message.");
    timestamp(
        "hookgate_spool_oldest_event_timestamp_seconds",
        "When the oldest message that waits for a sink was spooled; 0 without one.",
    );
    describe_counter!("hookgate_panics_total", "Defects that stopped what they were in; each is in the log.");
    let seconds = |name: &'static str, what: &'static str| describe_histogram!(name, Unit::Seconds, what);
    seconds(
        "hookgate_runtime_lag_seconds",
        "How late timers are: what has to run waits as long, for CPU or for another task.",
    );
    seconds("hookgate_http_request_duration_seconds", "From a request's head to its answer.");
    seconds(
        "hookgate_event_end_to_end_seconds",
        "From an event's last byte to the last acknowledgement; by the spool, to that of one message.",
    );
    seconds(
        "hookgate_dedup_operation_duration_seconds",
        "One operation of the shared dedup store; a commit is of many events.",
    );
    seconds("hookgate_spool_fsync_duration_seconds", "One fsync of the spool, shared by all that wait for it.");
    seconds("hookgate_publish_duration_seconds", "One attempt to publish.");
    describe_histogram!("hookgate_http_request_body_bytes", Unit::Bytes, "Lengths of authenticated bodies.");
}

#[cfg(test)]
mod tests {
    use hookgate_core::trace::Trace;

    use super::*;

    #[test]
    fn every_series_exists_before_the_first_event() {
        let credential = Credential { scheme: "bearer", secret: "env:OPENCLAW_TOKEN".into() };
        let metrics = Metrics::new(true);
        metrics.make_room(&[SinkId::new(0, "events")]);
        metrics.adopt(&[(SourceId::new(0, "openclaw"), vec![credential])], &["all".into()]);
        let page = metrics.render(0, None);
        for series in [
            r#"hookgate_events_total{source="openclaw",outcome="unavailable"} 0"#,
            r#"hookgate_http_requests_total{source="unknown",code="404"} 0"#,
            r#"hookgate_http_rejections_total{source="openclaw",reason="credential_mismatch"} 0"#,
            r#"hookgate_http_rejections_total{source="openclaw",reason="timestamp_stale"} 0"#,
            r#"hookgate_sender_verified_total{source="openclaw",scheme="bearer",secret="env:OPENCLAW_TOKEN"} 0"#,
            r#"hookgate_handshakes_total{source="openclaw",result="answered"} 0"#,
            r#"hookgate_publish_attempts_total{sink="events",result="timeout"} 0"#,
            r#"hookgate_dedup_checks_total{result="takeover"} 0"#,
            r#"hookgate_dedup_operation_duration_seconds_count{operation="commit"} 0"#,
            r#"hookgate_dedup_store_errors_total{reason="timeout"} 0"#,
            r#"hookgate_dedup_payload_mismatch_total{source="openclaw"} 0"#,
            r#"hookgate_sink_up{sink="events"} 0"#,
            r#"hookgate_proxy_header_failures_total{reason="missing"} 0"#,
            r#"hookgate_tls_handshake_failures_total{reason="refused_by_client"} 0"#,
            r#"hookgate_route_events_total{route="all",result="incomplete"} 0"#,
            r#"hookgate_event_end_to_end_seconds_count{source="openclaw",path="direct"} 0"#,
        ] {
            assert!(page.contains(series), "{series} is missing in:\n{page}");
        }
    }

    #[test]
    fn the_end_of_a_certificate_is_that_of_the_one_in_use() {
        let metrics = Metrics::new(false);
        let served = |unix: u64| {
            let expires = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(unix));
            metrics.observe(&Observation::CertificateServed { expires });
            metrics.render(0, None)
        };
        let name = "hookgate_tls_certificate_expiry_timestamp_seconds";
        assert!(!metrics.render(0, None).contains(&format!("\n{name}")), "one that ends at 0 would have ended");
        assert!(served(1_900_000_000).contains(&format!("\n{name} 1900000000\n")));
        assert!(served(1_950_000_000).contains(&format!("\n{name} 1950000000\n")));
        metrics.observe(&Observation::CertificateKept { cause: &"junk" });
        assert!(metrics.render(0, None).contains(&format!("\n{name} 1950000000\n")));
        metrics.observe(&Observation::CertificateServed { expires: None });
        assert!(metrics.render(0, None).contains(&format!("\n{name} NaN\n")), "the old one's end is not the new one's");
    }

    #[test]
    fn connections_that_come_to_nothing_are_counted_by_reason() {
        let metrics = Metrics::new(false);
        let peer = std::net::Ipv4Addr::LOCALHOST.into();
        metrics.observe(&Observation::ProxyHeaderRefused { peer, reason: ProxyHeaderFailure::TooLarge });
        metrics.observe(&Observation::TlsHandshakeFailed { reason: TlsFailure::Timeout, error: None });
        let page = metrics.render(0, None);
        assert!(page.contains(r#"hookgate_proxy_header_failures_total{reason="too_large"} 1"#), "{page}");
        assert!(page.contains(r#"hookgate_tls_handshake_failures_total{reason="timeout"} 1"#), "{page}");
    }

    #[test]
    fn an_event_is_counted_where_it_belongs() {
        let (source, sink) = (SourceId::new(0, "openclaw"), SinkId::new(0, "events"));
        let metrics = Metrics::new(false);
        metrics.make_room(std::slice::from_ref(&sink));
        metrics.adopt(&[(source.clone(), Vec::new())], &[]);
        metrics.observe(&Observation::EventReceived { source: &source, body_bytes: 10 });
        // What is counted goes on under another config.
        metrics.adopt(&[(source.clone(), Vec::new()), (SourceId::new(1, "other"), Vec::new())], &[]);
        let (event, trace, outcome, elapsed, cause) =
            (None, &Trace::begin(), Outcome::Delivered, Duration::from_millis(3), None);
        metrics.observe(&Observation::EventFinished { source: &source, event, trace, outcome, elapsed, cause });
        let page = metrics.render(1, None);
        assert!(page.contains(r#"hookgate_events_total{source="openclaw",outcome="delivered"} 1"#), "{page}");
        assert!(
            page.contains(r#"hookgate_event_end_to_end_seconds_bucket{source="openclaw",path="direct",le="0.005"} 1"#)
        );
        assert!(page.contains(r#"hookgate_events_in_flight{source="openclaw"} 0"#));
        assert!(page.contains("hookgate_dedup_entries 1"));
        assert!(!page.contains("hookgate_dedup_store_up"), "there is none that could be down");
    }
}
