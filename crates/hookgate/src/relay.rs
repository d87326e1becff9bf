//! What serves events, and how a changed config takes its place without a restart.
//!
//! A config is put in place as a whole: its sources, routes and sinks become a pipeline of their own, and the ingress changes
//! over between two requests. What has come already goes to its end under the config that it began with. Sinks whose tables are
//! the same keep their connections; what is remembered, kept on the disk and counted goes on in any case.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use figment::value::Value;
use hookgate_core::{
    auth::Fetch,
    dedup::Dedup,
    drain::Drain,
    event::{SinkId, SourceId},
    limits::{Deadline, Turns},
    observe::{Chain, Observation, Observer},
    pipeline::Pipeline,
    publisher::Publisher,
    route::Router,
    sink::Target,
    source::Source,
    spool::Spool,
};
use hookgate_http::{Ingress, admin::Reloaded};
use sha2::{Digest, Sha256};
use tokio::{
    signal::unix::Signal,
    sync::{mpsc, oneshot, watch},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    assemble::{self, Ids, Parts},
    config::{Config, Problems},
    run::{CLOSE_LIMIT, Failure},
    secrets::Secrets,
    sinks::SinkConfig,
    spool::LocalSpool,
    telemetry::Telemetry,
    workers::Workers,
};

/// How often key sets are looked at. Issuers publish a new key days before they use it.
const DOCUMENT_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// How long one may take; nobody waits for it.
const DOCUMENT_LIMIT: Duration = Duration::from_secs(5);

/// How often a sink that could not be asked about its destinations is asked again, and how long it may take.
const REVIEW_INTERVAL: Duration = Duration::from_secs(5);
const REVIEW_LIMIT: Duration = Duration::from_secs(5);

/// How often the config's file is looked at. It is polled, not watched: Kubernetes swaps a symlink above it, and editors put
/// another file in its place. It is read once it has stayed the same from one look to the next, so that half a file is none.
const FILE_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is looked whether a sink that is not wanted any more can be closed.
const RETIRE_INTERVAL: Duration = Duration::from_millis(250);

/// What outlasts every config.
pub(crate) struct Fixed {
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) secrets: Secrets,
    pub(crate) spool: Option<Arc<LocalSpool>>,
    pub(crate) dedup: Dedup,
    pub(crate) fetch: Arc<dyn Fetch>,
    pub(crate) turns: Arc<Turns>,
    /// What events have started, under whatever config: it is waited for at the end.
    pub(crate) events: TaskTracker,
    /// Tasks that end with the process, and what ends them.
    pub(crate) background: TaskTracker,
    pub(crate) stop_background: CancellationToken,
    /// Tasks that empty the spool, and what ends them.
    pub(crate) drains: TaskTracker,
    pub(crate) stop_drains: CancellationToken,
}

impl Fixed {
    fn observer(&self) -> Arc<dyn Observer> {
        Arc::clone(&self.telemetry) as _
    }

    async fn connect(&self, id: &SinkId, table: &SinkConfig) -> anyhow::Result<Arc<Publisher>> {
        assemble::connect_sink(id, table, &self.secrets, &self.workers, &self.observer()).await
    }

    fn pipeline(&self, config: &Config, router: Router, publishers: Vec<Option<Arc<Publisher>>>) -> Arc<Pipeline> {
        Arc::new(Pipeline {
            router,
            dedup: self.dedup.clone(),
            publishers,
            spool: self.spool.clone().map(|spool| spool as Arc<dyn Spool>),
            fetch: Arc::clone(&self.fetch),
            observer: self.observer(),
            reply_deadline: config.server.reply_deadline,
            turns: Arc::clone(&self.turns),
            tasks: self.events.clone(),
        })
    }
}

/// What serves events.
pub(crate) struct Relay {
    fixed: Fixed,
    ingress: Arc<Ingress>,
    config: Config,
    /// The config that the process began with: much of it stays in force.
    first: Value,
    /// Sinks that are not as the config says, since their old selves have what they need.
    held: BTreeSet<String>,
    ids: Ids,
    pipeline: Arc<Pipeline>,
    /// Ends the tasks that belong to this config alone; the end of the background does too.
    stop: CancellationToken,
    /// Where the drain of each sink, by its index, is told of another publisher.
    drains: BTreeMap<usize, watch::Sender<Arc<Publisher>>>,
    sources: watch::Sender<Arc<[SourceId]>>,
}

impl Relay {
    /// Sets up what `config` says. Nothing is served before [`Self::ingress`] is.
    pub(crate) async fn start(config: Config, ids: Ids, parts: Parts, fixed: Fixed) -> anyhow::Result<Self> {
        let Parts { sources, router, .. } = parts;
        let mut publishers = Vec::new();
        for id in ids.sinks() {
            publishers.push(Some(fixed.connect(id, &config.sinks[id.name()]).await?));
        }
        let pipeline = fixed.pipeline(&config, router, publishers);
        let ingress = Ingress::new(Arc::clone(&pipeline), &sources, &config.server);
        let (known, _) = watch::channel(ids.sources().into());
        let (stop, drains) = (fixed.stop_background.child_token(), BTreeMap::new());
        let (first, held) = (config.as_written().clone(), BTreeSet::new());
        let mut relay = Self { fixed, ingress, config, first, held, ids, pipeline, stop, drains, sources: known };
        relay.begin(&sources);
        Ok(relay)
    }

    pub(crate) fn ingress(&self) -> &Arc<Ingress> {
        &self.ingress
    }

    pub(crate) fn pipeline(&self) -> &Arc<Pipeline> {
        &self.pipeline
    }

    /// Puts `config` in place of the one that is served. With an error that one is served on, and no more has changed than that
    /// names have got their places.
    async fn replace(&mut self, mut config: Config) -> Result<Reloaded, Failure> {
        if config.as_written() == self.config.as_written() {
            return Ok(Reloaded { changed: false, restart_required: self.restart_required() });
        }
        // Events have spans of ours as long as there is who exports them: that is set up at the start only.
        config.traces.clone_from(&self.config.traces);
        self.ids.extend(&config);
        let Parts { sources, router, .. } = assemble::prepare(&config, &self.ids, &self.fixed.secrets)?;
        // What is observed must have its place before anything can happen.
        self.fixed.telemetry.make_room(&self.ids);
        if let Some(spool) = self.fixed.spool.clone() {
            let all = self.ids.sinks().to_vec();
            tokio::task::spawn_blocking(move || spool.adopt(&all)).await.context("open the spool")??;
        }
        let (publishers, held) = self.publishers(&config).await?;
        self.held.extend(held);
        self.held.retain(|name| config.sinks.contains_key(name));
        let sinks: Vec<SinkId> = config.sinks.keys().map(|name| self.ids.sink(name)).collect();
        let routes: Vec<_> = router.names().cloned().collect();
        self.fixed.telemetry.adopt(&sources, &sinks, &routes);
        let pipeline = self.fixed.pipeline(&config, router, publishers);
        self.sources.send_replace(self.ids.sources().into());
        self.ingress.replace(Arc::clone(&pipeline), &sources);
        let before = std::mem::replace(&mut self.pipeline, pipeline);
        let stop = self.fixed.stop_background.child_token();
        std::mem::replace(&mut self.stop, stop).cancel();
        self.config = config;
        self.begin(&sources);
        self.retire(&before);
        Ok(Reloaded { changed: true, restart_required: self.restart_required() })
    }

    /// What of the config takes effect at the next start only.
    fn restart_required(&self) -> Vec<String> {
        let mut keys = self.config.needing_restart(&self.first);
        keys.extend(self.held.iter().map(|name| format!("sinks.{name}")));
        keys
    }

    /// The publisher of every sink of `config`, at its index, and the names of those that have to stay as they were.
    async fn publishers(&self, config: &Config) -> anyhow::Result<(Vec<Option<Arc<Publisher>>>, Vec<String>)> {
        let (mut publishers, mut fresh, mut held) = (Vec::new(), Vec::new(), Vec::new());
        for id in self.ids.sinks() {
            let Some(table) = config.sinks.get(id.name()) else {
                publishers.push(None);
                continue;
            };
            let before = self.publisher(id).zip(self.config.sinks.get(id.name()));
            let unchanged = config.sink_as_written(id.name()) == self.config.sink_as_written(id.name());
            let publisher = match before {
                Some((publisher, _)) if unchanged => Arc::clone(publisher),
                Some((publisher, table_before)) if table.is_held_by(table_before) => {
                    held.push(id.to_string());
                    Arc::clone(publisher)
                }
                _ => match self.fixed.connect(id, table).await {
                    Ok(publisher) => {
                        fresh.push(Arc::clone(&publisher));
                        publisher
                    }
                    Err(error) => {
                        for publisher in fresh {
                            publisher.sink().close(Deadline::after(CLOSE_LIMIT)).await;
                        }
                        return Err(error);
                    }
                },
            };
            publishers.push(Some(publisher));
        }
        Ok((publishers, held))
    }

    /// The publisher of `id` in the config that is served.
    fn publisher(&self, id: &SinkId) -> Option<&Arc<Publisher>> {
        self.pipeline.publishers.get(id.index())?.as_ref()
    }

    /// Starts what belongs to the config that has just been put in place.
    fn begin(&mut self, sources: &[Arc<Source>]) {
        for source in sources {
            for warning in source.warnings(SystemTime::now()) {
                tracing::warn!(source = %source.id(), warning, "a source is set up unwisely");
            }
        }
        let Fixed { background, telemetry, .. } = &self.fixed;
        for publisher in self.pipeline.publishers.iter().flatten() {
            let targets = self.pipeline.router.examples(publisher.id());
            let observer: Arc<dyn Observer> = Arc::clone(telemetry) as _;
            background.spawn(review(Arc::clone(publisher), targets, observer, self.stop.clone()));
        }
        // Not the pipeline itself: it goes when its last event has gone.
        let pipeline = Arc::downgrade(&self.pipeline);
        background.spawn(keep_documents(pipeline, sources.to_vec(), self.stop.clone()));
        let (Some(spool), Some(table)) = (&self.fixed.spool, &self.config.spool) else { return };
        for publisher in self.pipeline.publishers.iter().flatten() {
            if let Some(drain) = self.drains.get(&publisher.id().index()) {
                drain.send_replace(Arc::clone(publisher));
                continue;
            }
            let (sender, receiver) = watch::channel(Arc::clone(publisher));
            let drain = Drain {
                backlog: spool.backlog(publisher.id()),
                spool: Arc::clone(spool) as Arc<dyn Spool>,
                publisher: receiver,
                sources: self.sources.subscribe(),
                limits: table.limits(),
                observer: self.fixed.observer(),
            };
            self.fixed.drains.spawn(drain.run(self.fixed.stop_drains.clone()));
            self.drains.insert(publisher.id().index(), sender);
        }
    }

    /// Closes the sinks of `before` that are not wanted any more, once nothing needs them.
    fn retire(&self, before: &Arc<Pipeline>) {
        for publisher in before.publishers.iter().flatten() {
            if self.publisher(publisher.id()).is_some_and(|now| Arc::ptr_eq(now, publisher)) {
                continue;
            }
            let retired = Retired {
                publisher: Arc::clone(publisher),
                pipeline: Arc::downgrade(before),
                drain: self.drains.get(&publisher.id().index()).map(watch::Sender::subscribe),
                spool: self.fixed.spool.clone(),
            };
            self.fixed.background.spawn(retired.close(self.fixed.stop_background.clone()));
        }
    }
}

/// A sink that is not in the config any more, or otherwise.
struct Retired {
    publisher: Arc<Publisher>,
    /// The last config that had it.
    pipeline: Weak<Pipeline>,
    drain: Option<watch::Receiver<Arc<Publisher>>>,
    spool: Option<Arc<LocalSpool>>,
}

impl Retired {
    /// Closes it when its last event has its answer and what waits for it in the spool is published; at `stop` in any case.
    async fn close(self, stop: CancellationToken) {
        while self.is_needed() {
            if stop.run_until_cancelled(sleep(RETIRE_INTERVAL)).await.is_none() {
                break;
            }
        }
        self.publisher.sink().close(Deadline::after(CLOSE_LIMIT)).await;
        tracing::info!(sink = %self.publisher.id(), "a sink that is not in the config any more, or was changed, is closed");
    }

    fn is_needed(&self) -> bool {
        let drains = self.drain.as_ref().is_some_and(|drain| Arc::ptr_eq(&drain.borrow(), &self.publisher));
        let waits = drains && self.spool.as_ref().is_some_and(|spool| !spool.is_empty(self.publisher.id()));
        waits || self.pipeline.strong_count() > 0
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

/// Fetches the key sets of token issuers at the start, so that the first requests seldom wait for them, and looks for new keys
/// from time to time.
async fn keep_documents(pipeline: Weak<Pipeline>, sources: Vec<Arc<Source>>, stop: CancellationToken) {
    while let Some(pipeline) = pipeline.upgrade() {
        let wanted = sources.iter().flat_map(|source| source.verifier().documents());
        let fetches = wanted.map(|document| pipeline.fetch(document, Deadline::after(DOCUMENT_LIMIT)));
        futures_util::future::join_all(fetches).await;
        drop(pipeline);
        if stop.run_until_cancelled(sleep(DOCUMENT_INTERVAL)).await.is_none() {
            return;
        }
    }
}

/// Where the answer to a request for a reload goes; an error is a text for the operator.
pub(crate) type ReloadRequest = oneshot::Sender<Result<Reloaded, String>>;

/// Reads the config anew.
pub(crate) type Load = Arc<dyn Fn() -> Result<Config, Problems> + Send + Sync>;

/// Reloads the config: on SIGHUP, when it is asked to, and when the file changes.
pub(crate) struct Reloader {
    pub(crate) relay: Relay,
    pub(crate) load: Load,
    pub(crate) file: PathBuf,
    pub(crate) hang_up: Signal,
    pub(crate) requests: mpsc::Receiver<ReloadRequest>,
    /// Whether the last one succeeded.
    pub(crate) is_good: bool,
    /// What is in use. Not what the file holds by the time of the first look: it may have changed since it was read.
    pub(crate) loaded: Content,
}

/// The content of a file; `None` where it cannot be read.
pub(crate) type Content = Option<[u8; 32]>;

impl Reloader {
    /// Works until `stop`. A reload that is under way then is finished.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Relay {
        let mut loaded = self.loaded;
        let mut seen = loaded;
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return self.relay,
                _ = self.hang_up.recv() => None,
                Some(answer) = self.requests.recv() => Some(answer),
                () = sleep(FILE_INTERVAL) => {
                    let content = self.look().await;
                    let settled = content == std::mem::replace(&mut seen, content);
                    if content == loaded || !settled {
                        continue;
                    }
                    None
                }
            };
            loaded = self.look().await;
            let outcome = self.reload().await;
            if let Some(answer) = asked {
                // Whoever asked may have gone.
                let _ = answer.send(outcome);
            }
        }
    }

    async fn look(&self) -> Content {
        let file = self.file.clone();
        let content = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
        content.ok()?.ok().map(|content| Sha256::digest(content).into())
    }

    async fn reload(&mut self) -> Result<Reloaded, String> {
        let observer = self.relay.fixed.observer();
        let load = Arc::clone(&self.load);
        let loaded =
            tokio::task::spawn_blocking(move || load()).await.map_err(|_| "the config cannot be read".to_owned())?;
        let replaced = match loaded {
            Ok(config) => self.relay.replace(config).await,
            Err(problems) => Err(problems.into()),
        };
        match replaced {
            Ok(reloaded) => {
                let restart = reloaded.restart_required.as_slice();
                if reloaded.changed || !self.is_good {
                    self.is_good = true;
                    observer.observe(&Observation::ConfigReplaced { restart });
                } else {
                    tracing::info!("the config was read again and says nothing new");
                }
                Ok(reloaded)
            }
            Err(failure) => {
                let problems = match failure {
                    Failure::Config(problems) => problems.to_string(),
                    Failure::Run(error) => format!("{}\n", Chain(&*error)),
                };
                self.is_good = false;
                observer.observe(&Observation::ConfigKept { problems: &problems.trim_end() });
                Err(problems)
            }
        }
    }
}
