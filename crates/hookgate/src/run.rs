//! `hookgate run`: start, supervision, and a shutdown in which no accepted event is lost and no sender is told 503.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use hookgate_core::{
    limits::{Deadline, Turns},
    observe::{Observation, Observer},
    pipeline::Pipeline,
};
use hookgate_http::{Limits, Server, Tls, admin};
use tokio::{
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    assemble::{self, Ids},
    config::{Config, Problems},
    relay::{Fixed, Load, Relay, Reloader},
    secrets::Secrets,
    spool::LocalSpool,
    telemetry::{self, Telemetry, millis},
    workers::Workers,
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

/// How often the certificate's files are looked at.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(2);

/// How long the sinks may take to close, and the admin port after them.
pub(crate) const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Runs `config`, which `load` has read from `file`, on `workers` until SIGTERM or SIGINT; a second one ends the process at once.
/// Long bodies are worked on by the threads of `aside`.
pub(crate) async fn run(
    config: Config,
    load: Load,
    file: PathBuf,
    workers: Workers,
    aside: Handle,
) -> Result<(), Failure> {
    // First of all: as PID 1 in a container an unhandled SIGTERM is ignored.
    let mut signals = Signals::install().context("install the signal handlers")?;
    let hang_up = signal(SignalKind::hangup()).context("install the signal handlers")?;
    telemetry::start_log(&config.log);
    let (ids, secrets) = (Ids::of(&config), Secrets::default());
    let mut parts = assemble::prepare(&config, &ids, &secrets)?;
    // Held here to the end: what else has them may end before.
    let workers = Arc::new(workers);
    let threads = workers.handles().len();
    let shares_dedup = config.dedup.redis.is_some();
    let telemetry = Telemetry::new(shares_dedup, threads, &config.log, config.audit.as_ref())
        .context("begin the audit trail in the directory that audit.dir names")?;
    #[cfg(feature = "otlp")]
    if let Some(traces) = &config.traces {
        telemetry.export_spans(traces, &parts.fetcher, &secrets).context("export spans as [traces] says")?;
    }
    let routes: Vec<_> = parts.router.names().cloned().collect();
    telemetry.count_panics();
    telemetry.make_room(&ids);
    telemetry.adopt(&parts.sources, ids.sinks(), &routes);
    let observer: Arc<dyn Observer> = Arc::clone(&telemetry) as _;

    let stops = Stops::default();
    let admin = bind(config.admin.listen, "admin.listen", Limits::ADMIN, &observer)?;
    let (public, tls) =
        (bind(config.server.listen, "server.listen", Limits::from(&config.server), &observer)?, parts.tls.take());
    let public = public.with_proxy_protocol(parts.proxy_protocol.clone()).with_tls(tls.clone());
    let public = public.with_leaving(Arc::clone(&stops.leaving));
    let spool = open_spool(&config, &observer).await?;
    let (dedup, settlers) = assemble::connect_dedup(&config.dedup, &secrets, &workers, &observer).await?;
    telemetry.started(Arc::clone(&dedup.memory), spool.clone());

    let (background, drains) = (TaskTracker::new(), TaskTracker::new());
    let fixed = Fixed {
        telemetry: Arc::clone(&telemetry),
        workers: Arc::clone(&workers),
        secrets: secrets.clone(),
        spool: spool.clone(),
        dedup,
        fetch: Arc::new(parts.fetcher.clone()),
        // The other half is for events with short bodies.
        turns: Arc::new(Turns::new(threads / 2, aside)),
        events: TaskTracker::new(),
        background: background.clone(),
        stop_background: stops.background.clone(),
        drains: drains.clone(),
        stop_drains: stops.drains.clone(),
    };
    let (drain_delay, shutdown_timeout) = (config.server.drain_delay, config.server.shutdown_timeout);
    let loaded = Some(config.content());
    let relay = Relay::start(config, ids, parts, fixed).await?;
    background.spawn(secrets.keep_fresh(Arc::clone(&observer), stops.background.clone()));
    background.spawn(Arc::clone(&telemetry).keep_up(stops.background.clone()));
    for (number, worker) in workers.handles().iter().enumerate() {
        background.spawn_on(keep_a_timer_near(number, Arc::clone(&telemetry), stops.background.clone()), worker);
    }
    for (settler, worker) in settlers.into_iter().zip(workers.handles()) {
        background.spawn_on(settler.run(stops.background.clone()), worker);
    }
    background.spawn(keep_certificates(tls, Arc::clone(&observer), stops.background.clone()));
    let admin_address = admin.local_addr().context("read the admin port")?;
    let admin_routes = admin::service(Arc::clone(&telemetry) as _);
    let admin = tokio::spawn(admin.serve(admin_routes, stops.admin.clone(), stops.admin_abort.clone()));
    let address = public.local_addr().context("read the public port")?;
    let public = public.with_workers(workers.handles().to_vec());
    let public =
        tokio::spawn(public.serve(relay.ingress().service(), stops.public.clone(), stops.public_abort.clone()));
    let (reloads, requests) = mpsc::channel(1);
    telemetry.reloads_by(reloads);
    let reloader = tokio::spawn(
        Reloader { relay, load, file, hang_up, requests, is_good: true, loaded }.run(stops.reloads.clone()),
    );
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %address, admin = %admin_address, "hookgate is up");

    signals.next().await;
    tokio::spawn(async move {
        signals.next().await;
        tracing::warn!("second signal: exiting at once");
        std::process::exit(130);
    });
    stops.reloads.cancel();
    let relay = reloader.await.context("stop reloading")?;
    let limits = ShutdownLimits { drain_delay, all: shutdown_timeout };
    shut_down(&limits, &telemetry, relay.pipeline(), &stops, public, &drains).await;
    let close_spool = async {
        if let Some(spool) = spool {
            within(CLOSE_LIMIT, "closing the spool", spool.close()).await;
        }
    };
    // At once, so that a collector that hangs makes no stop longer than it may be.
    tokio::join!(close_spool, Arc::clone(&telemetry).flush_spans());
    // The admin port goes last, so that the final scrape sees how it ended.
    stops.background.cancel();
    background.close();
    stops.admin.cancel();
    within(CLOSE_LIMIT, "admin port", admin).await;
    stops.admin_abort.cancel();
    within(CLOSE_LIMIT, "background tasks", background.wait()).await;
    within(CLOSE_LIMIT, "the audit trail", telemetry.close_audit()).await;
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

/// Keeps a timer that is due before any of an event's. tokio wakes its own driver, by a system call, for every timer that is
/// due before all that there were when it last slept: without this one that is more than once for each event. How late it is
/// tells how busy the runtime of `worker` is, and that it comes at all, that it is alive.
async fn keep_a_timer_near(worker: usize, telemetry: Arc<Telemetry>, stop: CancellationToken) {
    /// Less than the time that Redis is given for one operation.
    const NEAR: Duration = Duration::from_millis(100);
    let mut due = Instant::now() + NEAR;
    while stop.run_until_cancelled(sleep_until(due)).await.is_some() {
        telemetry.runtime_lag(worker, due.elapsed());
        due = Instant::now() + NEAR;
    }
}

/// Puts renewed certificates in place, and tells when the one in use ends.
async fn keep_certificates(tls: Option<Tls>, observer: Arc<dyn Observer>, stop: CancellationToken) {
    let Some(tls) = tls else { return };
    observer.observe(&Observation::CertificateServed { expires: tls.expires() });
    while stop.run_until_cancelled(sleep(CERTIFICATE_INTERVAL)).await.is_some() {
        let files = tls.clone();
        let Ok(refreshed) = tokio::task::spawn_blocking(move || files.refresh()).await else { continue };
        match refreshed {
            None => {}
            Some(Ok(())) => observer.observe(&Observation::CertificateServed { expires: tls.expires() }),
            Some(Err(cause)) => observer.observe(&Observation::CertificateKept { cause: &cause }),
        }
    }
}

/// What tells each part to stop, in the order of the shutdown.
#[derive(Default)]
struct Stops {
    /// Set while it still serves.
    leaving: Arc<AtomicBool>,
    reloads: CancellationToken,
    public: CancellationToken,
    drains: CancellationToken,
    public_abort: CancellationToken,
    background: CancellationToken,
    admin: CancellationToken,
    admin_abort: CancellationToken,
}

/// How long the phases of the shutdown may take.
struct ShutdownLimits {
    drain_delay: Duration,
    /// From the end of `drain_delay` on.
    all: Duration,
}

async fn shut_down(
    limits: &ShutdownLimits,
    telemetry: &Telemetry,
    pipeline: &Pipeline,
    stops: &Stops,
    public: tokio::task::JoinHandle<()>,
    drains: &TaskTracker,
) {
    // Not ready, but serving on: load balancers learn of it later than we do, and a refused request would be lost.
    telemetry.draining();
    stops.leaving.store(true, Ordering::Relaxed);
    let drain_delay = limits.drain_delay;
    tracing::info!(drain_delay_ms = millis(drain_delay), "draining: not ready, still serving");
    sleep(drain_delay).await;

    // From here on connections are refused, the one failure that OpenClaw retries.
    stops.public.cancel();
    let limit = Deadline::after(limits.all);
    within(limit.remaining(), "requests in flight", public).await;
    stops.public_abort.cancel();

    // Publishes whose clients have gone, and the legs that nobody waited for.
    pipeline.tasks.close();
    within(limit.remaining().max(pipeline.reply_deadline), "publishes in flight", pipeline.tasks.wait()).await;

    stops.drains.cancel();
    drains.close();
    within(limit.remaining().max(pipeline.reply_deadline), "publishes from the spool", drains.wait()).await;

    let deadline = Deadline::after(CLOSE_LIMIT);
    for publisher in pipeline.publishers.iter().flatten() {
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
