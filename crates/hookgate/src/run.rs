//! `hookgate run`: start, supervision, and a shutdown in which no accepted event is lost and no sender is told 503.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use hookgate_core::{
    drain::Drain,
    event::SourceId,
    limits::Deadline,
    observe::{Observation, Observer},
    pipeline::Pipeline,
    publisher::Publisher,
    sink::Target,
    source::Source,
    spool::Spool,
};
use hookgate_http::{Ingress, Limits, Server, Tls, admin};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    assemble::{self, Parts},
    config::{Config, Problems},
    spool::LocalSpool,
    telemetry::{self, Telemetry, millis},
};

/// Why a command could not do its work.
pub(crate) enum Failure {
    /// The config cannot be used.
    Config(Problems),
    /// Something else.
    Run(anyhow::Error),
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Config(problems)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Run(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Run(error.into())
    }
}

/// How often key sets are looked at. Issuers publish a new key days before they use it.
const DOCUMENT_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// How long one may take; nobody waits for it.
const DOCUMENT_LIMIT: Duration = Duration::from_secs(5);

/// How often a sink that could not be asked about its destinations is asked again, and how long it may take.
const REVIEW_INTERVAL: Duration = Duration::from_secs(5);
const REVIEW_LIMIT: Duration = Duration::from_secs(5);

/// How often the certificate's files are looked at.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(2);

/// How long the sinks may take to close, and the admin port after them.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT; a second one ends the process at once.
pub(crate) async fn run(config: Config) -> Result<(), Failure> {
    // First of all: as PID 1 in a container an unhandled SIGTERM is ignored.
    let mut signals = Signals::install().context("install the signal handlers")?;
    telemetry::start_log(&config.log);
    let Parts { sources, router, mut secrets, tls, fetcher } = assemble::prepare(&config)?;
    for source in &sources {
        for warning in source.warnings(SystemTime::now()) {
            tracing::warn!(source = %source.id(), warning, "a source is set up unwisely");
        }
    }
    let telemetry = Telemetry::new(&sources, &assemble::sink_ids(&config), config.dedup.redis.is_some());
    let observer: Arc<dyn Observer> = Arc::clone(&telemetry) as _;

    let admin = bind(config.admin.listen, "admin.listen", Limits::ADMIN, &observer)?;
    let public =
        bind(config.server.listen, "server.listen", Limits::from(&config.server), &observer)?.with_tls(tls.clone());
    let spool = open_spool(&config, &observer).await?;
    let port = spool.as_ref().map(|spool| Arc::clone(spool) as Arc<dyn Spool>);
    let (pipeline, releaser) =
        assemble::connect(&config, router, &mut secrets, port, Arc::new(fetcher), &observer).await?;
    let pipeline = Arc::new(pipeline);
    telemetry.started(Arc::clone(&pipeline.dedup.memory), spool.clone());
    let ingress = Ingress::new(Arc::clone(&pipeline), &config.server);

    let stops = Stops::default();
    let background = TaskTracker::new();
    let drains = TaskTracker::new();
    if let (Some(spool), Some(table)) = (&spool, &config.spool) {
        let ids: Arc<[SourceId]> = sources.iter().map(|source| source.id().clone()).collect();
        for publisher in &pipeline.publishers {
            let drain = Drain {
                backlog: spool.backlog(publisher.id()),
                spool: Arc::clone(spool) as Arc<dyn Spool>,
                publisher: Arc::clone(publisher),
                sources: Arc::clone(&ids),
                limits: table.limits(),
                observer: Arc::clone(&observer),
            };
            drains.spawn(drain.run(stops.drains.clone()));
        }
    }
    drains.close();
    background.spawn(secrets.keep_fresh(Arc::clone(&observer), stops.background.clone()));
    background.spawn(Arc::clone(&telemetry).keep_up(stops.background.clone()));
    for publisher in &pipeline.publishers {
        let targets = pipeline.router.examples(publisher.id());
        background.spawn(review(Arc::clone(publisher), targets, Arc::clone(&observer), stops.background.clone()));
    }
    background.spawn(keep_documents(Arc::clone(&pipeline), sources.clone(), stops.background.clone()));
    background.spawn(keep_certificates(tls, stops.background.clone()));
    if let Some(releaser) = releaser {
        background.spawn(releaser.run(stops.background.clone()));
    }
    let admin_address = admin.local_addr().context("read the admin port")?;
    let admin_routes = admin::router(Arc::clone(&telemetry) as _);
    let admin = tokio::spawn(admin.serve(admin_routes, stops.admin.clone(), stops.admin_abort.clone()));
    let address = public.local_addr().context("read the public port")?;
    let public = tokio::spawn(public.serve(ingress.router(&sources), stops.public.clone(), stops.public_abort.clone()));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %address, admin = %admin_address, "hookgate is up");

    signals.next().await;
    tokio::spawn(async move {
        signals.next().await;
        tracing::warn!("second signal: exiting at once");
        std::process::exit(130);
    });
    shut_down(&config, &telemetry, &pipeline, &stops, public, &drains).await;
    if let Some(spool) = spool {
        within(CLOSE_LIMIT, "closing the spool", spool.close()).await;
    }
    // The admin port goes last, so that the final scrape sees how it ended.
    stops.background.cancel();
    background.close();
    stops.admin.cancel();
    within(CLOSE_LIMIT, "admin port", admin).await;
    stops.admin_abort.cancel();
    within(CLOSE_LIMIT, "background tasks", background.wait()).await;
    tracing::info!("hookgate has stopped");
    Ok(())
}

/// Opens the spool, on a thread that may wait for the disk.
async fn open_spool(config: &Config, observer: &Arc<dyn Observer>) -> anyhow::Result<Option<Arc<LocalSpool>>> {
    let Some(table) = config.spool.clone() else { return Ok(None) };
    let (sinks, observer) = (assemble::sink_ids(config), Arc::clone(observer));
    let opened = tokio::task::spawn_blocking(move || LocalSpool::open(&table, &sinks, &observer));
    Ok(Some(Arc::new(opened.await.context("open the spool")??)))
}

/// Fetches the key sets of token issuers at the start, so that the first requests seldom wait for them, and looks for new keys
/// from time to time.
async fn keep_documents(pipeline: Arc<Pipeline>, sources: Vec<Arc<Source>>, stop: CancellationToken) {
    loop {
        let wanted = sources.iter().flat_map(|source| source.verifier().documents());
        let fetches = wanted.map(|document| pipeline.fetch(document, Deadline::after(DOCUMENT_LIMIT)));
        futures_util::future::join_all(fetches).await;
        if stop.run_until_cancelled(sleep(DOCUMENT_INTERVAL)).await.is_none() {
            return;
        }
    }
}

/// Tells, as soon as the sink can be asked, what is unwise about where its events go.
async fn review(publisher: Arc<Publisher>, targets: Vec<Target>, observer: Arc<dyn Observer>, stop: CancellationToken) {
    loop {
        if let Ok(found) = publisher.sink().review(&targets, Deadline::after(REVIEW_LIMIT)).await {
            for detail in &found {
                let (sink, message) = (publisher.id(), "a destination is set up unwisely");
                observer.observe(&Observation::SinkNotice { sink, message, detail });
            }
            return;
        }
        if stop.run_until_cancelled(sleep(REVIEW_INTERVAL)).await.is_none() {
            return;
        }
    }
}

/// Puts renewed certificates in place.
async fn keep_certificates(tls: Option<Tls>, stop: CancellationToken) {
    let Some(tls) = tls else { return };
    while stop.run_until_cancelled(sleep(CERTIFICATE_INTERVAL)).await.is_some() {
        let files = tls.clone();
        let Ok(refreshed) = tokio::task::spawn_blocking(move || files.refresh()).await else { continue };
        match refreshed {
            None => {}
            Some(Ok(())) => tracing::info!("a changed certificate is in use"),
            Some(Err(cause)) => {
                tracing::warn!(cause, "the changed certificate cannot be used; the one from before stays")
            }
        }
    }
}

/// What tells each part to stop, in the order of the shutdown.
#[derive(Default)]
struct Stops {
    public: CancellationToken,
    drains: CancellationToken,
    public_abort: CancellationToken,
    background: CancellationToken,
    admin: CancellationToken,
    admin_abort: CancellationToken,
}

async fn shut_down(
    config: &Config,
    telemetry: &Telemetry,
    pipeline: &Pipeline,
    stops: &Stops,
    public: tokio::task::JoinHandle<()>,
    drains: &TaskTracker,
) {
    // Not ready, but serving on: load balancers learn of it later than we do, and a refused request would be lost.
    telemetry.draining();
    let drain_delay = config.server.drain_delay;
    tracing::info!(drain_delay_ms = millis(drain_delay), "draining: not ready, still serving");
    sleep(drain_delay).await;

    // From here on connections are refused, the one failure that OpenClaw retries.
    stops.public.cancel();
    let limit = Deadline::after(config.server.shutdown_timeout);
    within(limit.remaining(), "requests in flight", public).await;
    stops.public_abort.cancel();

    // Publishes whose clients have gone, and the legs that nobody waited for.
    pipeline.tasks.close();
    within(limit.remaining().max(config.server.reply_deadline), "publishes in flight", pipeline.tasks.wait()).await;

    stops.drains.cancel();
    within(limit.remaining().max(config.server.reply_deadline), "publishes from the spool", drains.wait()).await;

    let deadline = Deadline::after(CLOSE_LIMIT);
    for publisher in &pipeline.publishers {
        let closed = publisher.sink().close(deadline);
        within(deadline.remaining(), "closing a sink", closed).await;
    }
}

/// Waits for a phase of the shutdown, but not past its limit.
async fn within(limit: Duration, phase: &'static str, done: impl Future) {
    if tokio::time::timeout(limit, done).await.is_err() {
        tracing::warn!(phase, limit_ms = millis(limit), "a phase of the shutdown took too long and was cut short");
    }
}

fn bind(
    address: std::net::SocketAddr,
    key: &str,
    limits: Limits,
    observer: &Arc<dyn Observer>,
) -> anyhow::Result<Server> {
    Server::bind(address, limits, Arc::clone(observer)).with_context(|| format!("listen on {address} ({key})"))
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! { _ = self.terminate.recv() => {}, _ = self.interrupt.recv() => {} }
    }
}
