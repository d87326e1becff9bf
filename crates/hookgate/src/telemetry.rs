//! What is seen from outside: metrics, logs, traces and readiness, all fed by the one stream of observations.

mod audit;
#[cfg(test)]
mod catalogue;
mod health;
mod log;
mod metrics;
mod traces;

use std::{
    io, panic,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hookgate_core::{
    dedup::Memory,
    event::SinkId,
    observe::{Observation, Observer},
    source::Source,
};
#[cfg(feature = "otlp")]
use hookgate_http::Fetcher;
use hookgate_http::admin::{Readiness, Reloaded, Status};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

#[cfg(feature = "otlp")]
use crate::secrets::Secrets;
use crate::{assemble::Ids, config::LogConfig, relay::ReloadRequest, shelf, spool::LocalSpool};

#[cfg(feature = "otlp")]
use self::traces::export::Export;
use self::{audit::Audit, health::Health, log::Log, metrics::Metrics};

pub(crate) use self::{
    audit::{AuditConfig, find as find_in_audit},
    log::{millis, start_log},
    traces::TracesConfig,
};

/// The program's observer.
pub(crate) struct Telemetry {
    metrics: Metrics,
    log: Log,
    audit: Option<Audit>,
    #[cfg(feature = "otlp")]
    export: OnceLock<Export>,
    health: Health,
    memory: OnceLock<Arc<Memory>>,
    spool: OnceLock<Arc<LocalSpool>>,
    reloads: OnceLock<mpsc::Sender<ReloadRequest>>,
}

impl Telemetry {
    /// `shares_dedup` says whether there is a dedup store besides the memory, and `workers` how many tell of their lag.
    ///
    /// # Errors
    /// When the audit trail cannot be written.
    pub(crate) fn new(
        shares_dedup: bool,
        workers: usize,
        log: &LogConfig,
        audit: Option<&AuditConfig>,
    ) -> io::Result<Arc<Self>> {
        let metrics = Metrics::new(shares_dedup);
        let audit = audit.map(|config| Audit::start(config, metrics.audit_failures())).transpose()?;
        Ok(Arc::new(Self {
            metrics,
            log: Log::new(log),
            audit,
            #[cfg(feature = "otlp")]
            export: OnceLock::new(),
            health: Health::new(shares_dedup, workers),
            memory: OnceLock::new(),
            spool: OnceLock::new(),
            reloads: OnceLock::new(),
        }))
    }

    /// Exports spans as `config` says, with `fetcher`. Called on a thread of the runtime that its requests are to run on.
    #[cfg(feature = "otlp")]
    pub(crate) fn export_spans(
        &self,
        config: &TracesConfig,
        fetcher: &Fetcher,
        secrets: &Secrets,
    ) -> anyhow::Result<()> {
        let export = Export::start(config, fetcher.clone(), secrets, self.metrics.spans_dropped())?;
        self.export.get_or_init(|| export);
        Ok(())
    }

    /// Waits until the spans are exported, if they are, but not long.
    pub(crate) async fn flush_spans(self: Arc<Self>) {
        #[cfg(feature = "otlp")]
        {
            // It waits for a thread of its own.
            let flushed = tokio::task::spawn_blocking(move || self.export.get().map(Export::flush));
            let _flushed = flushed.await;
        }
    }

    /// Gets ready to observe what has a place in `ids`.
    pub(crate) fn make_room(&self, ids: &Ids) {
        self.metrics.make_room(ids.sinks());
        self.log.make_room(ids.sources().len(), ids.sinks().len());
        self.health.make_room(ids.sinks());
    }

    /// Shows what a config has, for which there is room.
    pub(crate) fn adopt(&self, sources: &[Arc<Source>], sinks: &[SinkId], routes: &[Arc<str>]) {
        let credentials: Vec<_> =
            sources.iter().map(|source| (source.id().clone(), source.verifier().credentials())).collect();
        self.metrics.adopt(&credentials, routes);
        self.health.adopt(sinks);
    }

    /// Who is asked to reload the config.
    pub(crate) fn reloads_by(&self, requests: mpsc::Sender<ReloadRequest>) {
        self.reloads.get_or_init(|| requests);
    }

    /// Everything is connected: readiness follows the sinks from here.
    pub(crate) fn started(&self, memory: Arc<Memory>, spool: Option<Arc<LocalSpool>>) {
        self.memory.get_or_init(|| memory);
        if let Some(spool) = spool {
            self.spool.get_or_init(|| spool);
        }
        self.health.started();
    }

    /// No new events should be sent here.
    pub(crate) fn draining(&self) {
        self.health.draining();
        self.metrics.draining();
    }

    /// A timer of `worker` was late by this much.
    pub(crate) fn runtime_lag(&self, worker: usize, lag: Duration) {
        self.health.tick(worker);
        self.metrics.runtime_lag(lag);
    }

    /// Counts panics from now on, and tells them as before.
    pub(crate) fn count_panics(&self) {
        let (panics, tell) = (self.metrics.panics(), panic::take_hook());
        panic::set_hook(Box::new(move |panicked| {
            panics.increment(1);
            tell(panicked);
        }));
    }

    /// Writes what is left of the audit trail.
    pub(crate) async fn close_audit(self: Arc<Self>) {
        let close = move || self.audit.as_ref().map(Audit::close);
        let _closed = tokio::task::spawn_blocking(close).await;
    }

    /// Keeps the metrics small until `stop`.
    pub(crate) async fn keep_up(self: Arc<Self>, stop: CancellationToken) {
        /// Long enough to cost little.
        const INTERVAL: Duration = Duration::from_secs(1);
        while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
            // Until its histogram is folded every sample is kept, megabytes a second where there is much to do; and the more there are,
            // the longer the processor is taken from others.
            let telemetry = Arc::clone(&self);
            let _folded = tokio::task::spawn_blocking(move || telemetry.metrics.fold()).await;
        }
    }
}

impl Observer for Telemetry {
    fn observe(&self, observation: &Observation<'_>) {
        self.metrics.observe(observation);
        self.log.observe(observation);
        if let Some(audit) = &self.audit {
            audit.observe(observation);
        }
        #[cfg(feature = "otlp")]
        if let Some(export) = self.export.get() {
            export.observe(observation);
        }
        self.health.observe(observation);
    }
}

impl Status for Telemetry {
    fn live(&self) -> bool {
        self.health.live()
    }

    fn ready(&self) -> Readiness {
        self.health.ready(self.spool.get().map(|spool| spool.trouble()))
    }

    fn spool(&self, request: Bytes) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async move {
            match self.spool.get() {
                Some(spool) => shelf::answer(spool, &request).await,
                None => Err("there is no [spool] in the config".to_owned()),
            }
        })
    }

    fn reload(&self) -> BoxFuture<'_, Result<Reloaded, String>> {
        Box::pin(async move {
            let stopping = || "hookgate is starting or stopping\n".to_owned();
            let (answer, answered) = oneshot::channel();
            let requests = self.reloads.get().ok_or_else(stopping)?;
            requests.send(answer).await.map_err(|_| stopping())?;
            answered.await.map_err(|_| stopping())?
        })
    }

    fn metrics(&self) -> String {
        let entries = self.memory.get().map_or(0, |memory| memory.len());
        if let Some(audit) = &self.audit {
            self.metrics.audit_lost(audit.lost());
        }
        self.metrics.render(entries, self.spool.get().map(Arc::as_ref))
    }
}
