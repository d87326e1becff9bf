//! Makes spans of what is observed and has them exported over OTLP.
//!
//! A span is made when what it tells of is over, from the observation alone: nothing is kept in between, so nothing can pile
//! up or be forgotten. What exports them is a thread of its own behind a queue with a bound; events never wait for it.

use std::{
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use hookgate_core::{
    auth::Proof,
    event::Event,
    observe::{Observation, Observer, Outcome},
    secret::SecretSlot,
    trace,
};
use hookgate_http::Fetcher;
use http::{HeaderName, HeaderValue, Request, Response};
use metrics::Counter;
use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    resource::EnvResourceDetector,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor},
};
use tokio::runtime::Handle;

use super::TracesConfig;
use crate::{secrets::Secrets, telemetry::audit};

/// Spans that wait or are being sent, at most: some 10 MB.
const QUEUE_MAX: usize = 8192;

/// Spans in one request.
const BATCH_MAX: usize = 512;

/// How long a span waits for others before it is sent.
const BATCH_DELAY: Duration = Duration::from_secs(1);

/// How long the collector may take to answer one request. All attempts for one batch together have twice that.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How long the end of the process waits for the collector.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// Longest answer that is read; it is a few bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Takes spans. The thread behind it ends with [`Self::flush`].
pub(in crate::telemetry) struct Export {
    processor: BatchSpanProcessor,
    /// Spans that were taken and are not done with. Never above what the processor has room for, so that it drops none by itself.
    waiting: Arc<AtomicUsize>,
    dropped: Counter,
    scope: InstrumentationScope,
}

impl Export {
    /// Begins to export. `dropped` counts what cannot be.
    ///
    /// # Errors
    /// When `config` cannot be used.
    pub(in crate::telemetry) fn start(
        config: &TracesConfig,
        fetcher: Fetcher,
        secrets: &Secrets,
        dropped: Counter,
    ) -> anyhow::Result<Self> {
        let mut headers = Vec::new();
        for (name, reference) in &config.headers {
            let slot = secrets.resolve(reference).map_err(anyhow::Error::msg)?;
            headers.push((name.parse().with_context(|| format!("headers.{name}"))?, slot));
        }
        let url = config.url().map_err(anyhow::Error::msg)?;
        let client = Client { fetcher: fetcher.with_timeout(ANSWER_LIMIT), headers, runtime: Handle::current() };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url.to_string())
            .with_timeout(2 * ANSWER_LIMIT)
            .build()
            .context("set up the exporter")?;
        Ok(Self::with(exporter, dropped))
    }

    fn with(mut exporter: impl opentelemetry_sdk::trace::SpanExporter + 'static, dropped: Counter) -> Self {
        exporter.set_resource(&resource());
        let waiting = Arc::new(AtomicUsize::new(0));
        let exporter = Counted {
            exporter,
            waiting: Arc::clone(&waiting),
            dropped: dropped.clone(),
            is_failing: AtomicBool::new(false),
        };
        let limits = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .with_scheduled_delay(BATCH_DELAY)
            .build();
        let processor = BatchSpanProcessor::new(exporter, limits);
        let scope = InstrumentationScope::builder("hookgate").with_version(env!("CARGO_PKG_VERSION")).build();
        Self { processor, waiting, dropped, scope }
    }

    /// Exports what waits, but not for long, and ends. Blocks.
    pub(in crate::telemetry) fn flush(&self) {
        if let Err(error) = self.processor.shutdown_with_timeout(FLUSH_LIMIT) {
            let spans = self.waiting.load(Ordering::Relaxed);
            self.dropped.increment(spans as u64);
            tracing::warn!(spans, %error, "the last spans could not be exported");
        }
    }

    fn take(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= QUEUE_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped.increment(1);
            return;
        }
        self.processor.on_end(span);
    }

    /// A span that ends now.
    fn span(&self, name: &'static str, at: trace::SpanContext, state: TraceState, elapsed: Duration) -> SpanData {
        let end_time = SystemTime::now();
        // What is exported although its trace is not sampled is nobody else's concern.
        let flags = TraceFlags::new(at.flags) | TraceFlags::SAMPLED;
        let id = SpanId::from_bytes(at.span.to_be_bytes());
        SpanData {
            span_context: SpanContext::new(TraceId::from_bytes(at.trace.to_be_bytes()), id, flags, false, state),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: end_time.checked_sub(elapsed).unwrap_or(end_time),
            end_time,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

impl Observer for Export {
    fn observe(&self, observation: &Observation<'_>) {
        match observation {
            Observation::EventFinished { source, event, trace, outcome, elapsed, cause } => {
                let Some(own) = trace.context().filter(|own| own.is_sampled() || is_told_anyway(*outcome)) else {
                    return;
                };
                let mut span = self.span("receive", own, state(trace), *elapsed);
                span.span_kind = SpanKind::Server;
                span.parent_span_id = SpanId::from_bytes(trace.sender_span.unwrap_or_default().to_be_bytes());
                span.parent_span_is_remote = trace.sender_span.is_some();
                span.attributes.push(KeyValue::new("hookgate.source", source.to_string()));
                span.attributes.push(KeyValue::new("hookgate.outcome", outcome.label()));
                if let Some(event) = event {
                    span.attributes.extend(of_event(event));
                    span.attributes.push(KeyValue::new("http.request.body.size", length(event.body.len())));
                }
                if is_failure(*outcome) {
                    span.attributes.push(KeyValue::new("error.type", outcome.label()));
                    span.status = Status::error(cause.map_or_else(|| outcome.label().to_owned(), ToString::to_string));
                }
                self.take(span);
            }
            Observation::PublishAttempted { sink, message, position, attempt, result, elapsed } => {
                let (event, leg) = (&*message.event, &message.leg);
                let Some(trace) = &event.trace else { return };
                let Some(receive) = trace.context().filter(|own| own.is_sampled() || position.is_none()) else {
                    return;
                };
                let own = trace::SpanContext { span: fastrand::u64(1..), ..receive };
                let mut span = self.span("publish", own, state(trace), *elapsed);
                span.span_kind = SpanKind::Producer;
                span.parent_span_id = SpanId::from_bytes(receive.span.to_be_bytes());
                span.attributes.push(KeyValue::new("hookgate.source", event.source.to_string()));
                span.attributes.extend(of_event(event));
                span.attributes.extend([
                    KeyValue::new("hookgate.route", leg.route.to_string()),
                    KeyValue::new("hookgate.sink", sink.to_string()),
                    KeyValue::new("messaging.operation.type", "send"),
                    KeyValue::new("messaging.destination.name", leg.target.to_string()),
                    KeyValue::new("messaging.message.id", message.broker_id()),
                    KeyValue::new("hookgate.attempt", i64::from(*attempt)),
                    KeyValue::new("hookgate.result", result.label()),
                    KeyValue::new("hookgate.spooled", matches!(event.proof(), Proof::Spooled)),
                ]);
                match position {
                    Some(position) => span.attributes.extend([
                        KeyValue::new("hookgate.place", position.place.to_string()),
                        KeyValue::new("hookgate.offset", i64::try_from(position.offset).unwrap_or(i64::MAX)),
                    ]),
                    None => {
                        span.attributes.push(KeyValue::new("error.type", result.label()));
                        span.status = Status::error(result.label());
                    }
                }
                self.take(span);
            }
            _ => {}
        }
    }
}

/// Whether an event was not taken on.
fn is_failure(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Delivered | Outcome::Spooled | Outcome::Duplicate | Outcome::Dropped => false,
        Outcome::Unrouted
        | Outcome::Malformed
        | Outcome::RateLimited
        | Outcome::Overloaded
        | Outcome::InProgress
        | Outcome::DedupUnavailable
        | Outcome::Rejected
        | Outcome::Unavailable
        | Outcome::Unknown
        | Outcome::Failed => true,
    }
}

/// Whether it is told of though its trace is not sampled. What is refused since there is too much of it is not: the more of it
/// there is, the less of it has to be known.
fn is_told_anyway(outcome: Outcome) -> bool {
    is_failure(outcome) && !matches!(outcome, Outcome::RateLimited | Outcome::Overloaded)
}

fn of_event(event: &Event) -> [KeyValue; 2] {
    [
        KeyValue::new("hookgate.event.id", event.id.to_string()),
        KeyValue::new("hookgate.event.type", event.event_type.to_string()),
    ]
}

fn length(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The sender's `tracestate`; one that breaks the rules is none.
fn state(trace: &trace::Trace) -> TraceState {
    trace.state.as_deref().and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default()
}

/// What all spans of this process have in common. `OTEL_RESOURCE_ATTRIBUTES`, which operators of collectors know, goes first.
fn resource() -> Resource {
    let own = [
        KeyValue::new("service.name", "hookgate"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", audit::instance()),
    ];
    Resource::builder_empty().with_attributes(own).with_detector(Box::new(EnvResourceDetector::new())).build()
}

/// Counts what comes back from an exporter.
#[derive(Debug)]
struct Counted<E> {
    exporter: E,
    waiting: Arc<AtomicUsize>,
    dropped: Counter,
    is_failing: AtomicBool,
}

impl<E: opentelemetry_sdk::trace::SpanExporter> opentelemetry_sdk::trace::SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exported = self.exporter.export(batch).await;
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        let was_failing = self.is_failing.swap(exported.is_err(), Ordering::Relaxed);
        match &exported {
            Ok(()) if was_failing => tracing::info!("spans are exported again"),
            Ok(()) => {}
            Err(error) => {
                self.dropped.increment(spans as u64);
                if !was_failing {
                    tracing::warn!(%error, "spans cannot be exported and are dropped; events are not affected");
                }
            }
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }
}

/// Sends requests as all others of hookgate are sent. They are driven by the runtime, since the thread that waits for them is
/// none of its own.
#[derive(Debug)]
struct Client {
    fetcher: Fetcher,
    headers: Vec<(HeaderName, Arc<SecretSlot>)>,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        for (name, slot) in &self.headers {
            let mut value = HeaderValue::from_bytes(slot.current().expose())?;
            value.set_sensitive(true);
            request.headers_mut().insert(name.clone(), value);
        }
        let fetcher = self.fetcher.clone();
        Ok(self.runtime.spawn(async move { fetcher.send(request, ANSWER_BYTES_MAX).await }).await??)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::AtomicU64,
        mpsc::{Receiver, Sender, channel},
    };

    use hookgate_core::{event::SourceId, trace::Trace};

    use super::*;

    /// Hands on what it is given, and answers once it is told what.
    #[derive(Debug)]
    struct Fake {
        got: Sender<Vec<SpanData>>,
        answers: Mutex<Receiver<OTelSdkResult>>,
    }

    impl opentelemetry_sdk::trace::SpanExporter for Fake {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let _nobody_looks = self.got.send(batch);
            self.answers.lock().expect("no panic").recv().unwrap_or(Ok(()))
        }
    }

    struct World {
        export: Export,
        got: Receiver<Vec<SpanData>>,
        answers: Sender<OTelSdkResult>,
        dropped: Arc<AtomicU64>,
    }

    impl World {
        fn new() -> Self {
            let ((to_us, got), (answers, to_it)) = (channel(), channel());
            let dropped = Arc::new(AtomicU64::new(0));
            let fake = Fake { got: to_us, answers: Mutex::new(to_it) };
            let export = Export::with(fake, Counter::from_arc(Arc::clone(&dropped)));
            Self { export, got, answers, dropped }
        }

        /// More often than there can be batches.
        fn answer_all(&self) {
            (0..QUEUE_MAX).for_each(|_| self.answers.send(Ok(())).expect("it listens"));
        }

        fn finish(&self, flags: &str, outcome: Outcome) {
            let parent = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
            let trace = Trace { parent, state: None, sender_span: None };
            let (source, elapsed) = (SourceId::new(0, "openclaw"), Duration::from_millis(3));
            let (source, trace) = (&source, &trace);
            let finished =
                Observation::EventFinished { source, event: None, trace, outcome, elapsed, cause: Some(&"why") };
            self.export.observe(&finished);
        }
    }

    #[test]
    fn what_is_sampled_or_went_wrong_is_exported_and_what_is_refused_for_its_number_is_not() {
        let world = World::new();
        for outcome in Outcome::ALL {
            world.finish("00", *outcome);
        }
        world.finish("01", Outcome::Delivered);
        world.answer_all();
        world.export.flush();
        let spans: Vec<SpanData> = world.got.try_iter().flatten().collect();
        let outcome = |span: &SpanData| span.attributes[1].value.to_string();
        let told: Vec<String> = spans.iter().map(outcome).collect();
        assert_eq!(
            told,
            [
                "unrouted",
                "malformed",
                "in_progress",
                "dedup_unavailable",
                "rejected",
                "unavailable",
                "unknown",
                "failed",
                "delivered"
            ]
        );
        assert!(spans.iter().all(|span| span.span_context.is_sampled()), "else no exporter would send it");
        assert_eq!((&spans[0].status, &spans[8].status), (&Status::error("why"), &Status::Unset));
        assert_eq!(spans[0].end_time.duration_since(spans[0].start_time).ok(), Some(Duration::from_millis(3)));
        assert_eq!(world.dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_finds_no_place_and_what_is_not_taken_is_counted() {
        let world = World::new();
        for _ in 0..QUEUE_MAX + 7 {
            world.finish("01", Outcome::Delivered);
        }
        assert_eq!(world.dropped.load(Ordering::Relaxed), 7, "though the first of them are being sent");
        world.answers.send(Err(opentelemetry_sdk::error::OTelSdkError::AlreadyShutdown)).expect("it listens");
        world.answer_all();
        world.export.flush();
        let batches: Vec<usize> = world.got.try_iter().map(|batch| batch.len()).collect();
        assert_eq!(batches.iter().sum::<usize>(), QUEUE_MAX);
        assert_eq!(world.dropped.load(Ordering::Relaxed), 7 + batches[0] as u64);
        assert_eq!(world.export.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_end_does_not_wait_long_for_a_collector_and_counts_what_it_leaves() {
        let world = World::new();
        world.finish("01", Outcome::Delivered);
        let begun = std::time::Instant::now();
        world.export.flush();
        assert!(begun.elapsed() < 2 * FLUSH_LIMIT);
        assert_eq!(world.dropped.load(Ordering::Relaxed), 1);
    }
}
