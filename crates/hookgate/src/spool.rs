//! The spool on the local disk: two queues for each sink, behind core's ports.
//!
//! `<dir>/backlog/<sink>` holds what waits to be published, `<dir>/dead/<sink>` what is not tried again by itself. Each is a log
//! of its own, so that one dead sink holds up no other and its space is freed by itself.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use hookgate_core::{
    config::{self, ByteLimit},
    drain::DrainLimits,
    event::SinkId,
    observe::{Chain, Observation, Observer},
    spool::{Backlog, Shelf, Spool, SpoolError, SpoolReason, Waiting},
};
use hookgate_spool::{self as disk, Budget, Happening, Lock, Options, Place, Queue, SpoolErrorKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `[spool]` table.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SpoolConfig {
    /// The directory; made when it is not there. No default. On a disk that outlasts the process, and for this process alone.
    pub(crate) dir: PathBuf,
    /// What waits to be published may take this much of the disk. Default: 1 GiB, about a million events of 1 KiB.
    #[serde(default = "max_size")]
    pub(crate) max_size: ByteLimit,
    /// Dead letters may take this much of the disk besides. Default: 256 MiB.
    #[serde(default = "max_dead_size")]
    pub(crate) max_dead_size: ByteLimit,
    /// Nothing is appended while the disk has less than this left. Default: 128 MiB, so that others can go on.
    #[serde(default = "min_free")]
    pub(crate) min_free: ByteLimit,
    /// Messages of one sink that are published from the spool at once. Default: 64; live traffic has `max_in_flight` of its sink.
    #[serde(default = "drain_in_flight", deserialize_with = "config::count")]
    pub(crate) drain_in_flight: usize,
    /// Messages of one sink that are published from the spool in a second. Default: 1000, so that a broker which has just come
    /// back has room for live traffic.
    #[serde(default = "drain_rate", deserialize_with = "config::count")]
    pub(crate) drain_rate: usize,
    /// Attempts of a message, while its sink takes others, before it is a dead letter. Default: 20, which take about four minutes.
    #[serde(default = "max_attempts", deserialize_with = "config::count")]
    pub(crate) max_attempts: usize,
}

fn max_size() -> ByteLimit {
    ByteLimit::mib(1024)
}

fn max_dead_size() -> ByteLimit {
    ByteLimit::mib(256)
}

fn min_free() -> ByteLimit {
    ByteLimit::mib(128)
}

fn drain_in_flight() -> usize {
    64
}

fn drain_rate() -> usize {
    1000
}

fn max_attempts() -> usize {
    20
}

impl SpoolConfig {
    fn in_words(&self) -> String {
        format!("open the spool in {} (spool.dir)", self.dir.display())
    }

    /// The names of sinks that have something in the directory and are not among `sinks`: they were taken out of the config.
    pub(crate) fn strangers(&self, sinks: &[SinkId]) -> BTreeSet<String> {
        let shelves = ["backlog", "dead"].map(|shelf| fs::read_dir(self.dir.join(shelf)));
        let names =
            shelves.into_iter().flatten().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| !sinks.iter().any(|sink| sink.name() == name)).collect()
    }

    /// Whether a spool can be kept in the directory, for `hookgate check`: nothing is left behind. Returns what is unwise.
    ///
    /// # Errors
    /// Why nothing can be kept there.
    pub(crate) fn inspect(&self, sinks: &[SinkId]) -> anyhow::Result<Vec<String>> {
        let there = self.dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("."));
        let trial = there.join(format!("hookgate-check-{:016x}", fastrand::u64(..)));
        File::create_new(&trial).and_then(|_| fs::remove_file(&trial)).with_context(|| {
            format!("write to {}, for the spool in {} (spool.dir)", there.display(), self.dir.display())
        })?;
        let stranger = |name| format!("it holds messages for a sink {name:?} that is not in the config");
        let mut warnings: Vec<String> = self.strangers(sinks).into_iter().map(stranger).collect();
        let free = disk::free_bytes(there).with_context(|| format!("look at {}", there.display()))?;
        let wanted = self.max_size.0.saturating_add(self.max_dead_size.0).saturating_add(self.min_free.0);
        if free < wanted {
            warnings.push(format!(
                "the disk has {} left; max_size, max_dead_size and min_free are {} together",
                ByteLimit(free),
                ByteLimit(wanted)
            ));
        }
        Ok(warnings)
    }

    pub(crate) fn limits(&self) -> DrainLimits {
        let bounded = |number| u32::try_from(number).unwrap_or(u32::MAX);
        DrainLimits {
            in_flight: self.drain_in_flight,
            rate: bounded(self.drain_rate),
            attempts: bounded(self.max_attempts),
        }
    }
}

/// The open spool. The directory is ours until it is dropped.
pub(crate) struct LocalSpool {
    _lock: Lock,
    config: SpoolConfig,
    living: Arc<Budget>,
    dead: Arc<Budget>,
    observer: Arc<dyn Observer>,
    /// At the index of each sink.
    sinks: ArcSwap<Vec<Arc<Shelves>>>,
}

struct Shelves {
    sink: SinkId,
    backlog: Queue,
    dead: Queue,
}

/// What one sink has in the spool, for the metrics.
pub(crate) struct SinkSpool {
    pub(crate) sink: SinkId,
    pub(crate) backlog: disk::State,
    pub(crate) dead: disk::State,
}

impl LocalSpool {
    /// Opens the queues of `sinks`, after whatever became of them at the end of the last process. Blocks.
    pub(crate) fn open(config: &SpoolConfig, sinks: &[SinkId], observer: &Arc<dyn Observer>) -> anyhow::Result<Self> {
        let spool = Self {
            _lock: Lock::take(&config.dir).with_context(|| config.in_words())?,
            config: config.clone(),
            living: Budget::new(config.max_size.0),
            dead: Budget::new(config.max_dead_size.0),
            observer: Arc::clone(observer),
            sinks: ArcSwap::default(),
        };
        spool.adopt(sinks)?;
        for name in config.strangers(sinks) {
            let message =
                "the spool holds messages for a sink that is not in the config; put it back and they are published";
            observer.observe(&Observation::SpoolNotice { message, detail: &name });
        }
        Ok(spool)
    }

    /// Opens the queues of those of `sinks`, each at its index, that have none. Blocks.
    pub(crate) fn adopt(&self, sinks: &[SinkId]) -> anyhow::Result<()> {
        let mut all = self.sinks.load().to_vec();
        for sink in &sinks[all.len()..] {
            let (backlog, dead) = (self.queue("backlog", sink, &self.living)?, self.queue("dead", sink, &self.dead)?);
            all.push(Arc::new(Shelves { sink: sink.clone(), backlog, dead }));
        }
        self.sinks.store(Arc::new(all));
        Ok(())
    }

    fn queue(&self, shelf: &str, sink: &SinkId, budget: &Arc<Budget>) -> anyhow::Result<Queue> {
        let path = self.config.dir.join(shelf).join(sink.name());
        let (min_free_bytes, budget) = (self.config.min_free.0, Arc::clone(budget));
        let options = Options { segment_bytes: SEGMENT_BYTES, min_free_bytes, budget };
        let opened = Queue::open(&path, options, happenings(sink.clone(), Arc::clone(&self.observer)));
        let (queue, recovered) = opened.with_context(|| self.config.in_words())?;
        if !recovered.fresh && (!recovered.clean || recovered.events > 0) {
            let (queue, clean, events) = (path.display(), recovered.clean, recovered.events);
            tracing::info!(%queue, clean, events, "{recovered}");
        }
        Ok(queue)
    }

    /// The queue of the sink called `name`.
    pub(crate) fn find(&self, name: &str, shelf: Shelf) -> anyhow::Result<(SinkId, Queue)> {
        let sinks = self.sinks.load();
        let known = || sinks.iter().map(|shelves| shelves.sink.name()).collect::<Vec<_>>();
        let found = sinks.iter().find(|shelves| shelves.sink.name() == name);
        let shelves = found.with_context(|| config::unknown("sink", name, &known()))?;
        let queue = if shelf == Shelf::Dead { &shelves.dead } else { &shelves.backlog };
        Ok((shelves.sink.clone(), queue.clone()))
    }

    /// What waits for each sink, to be emptied.
    pub(crate) fn backlog(&self, sink: &SinkId) -> SinkBacklog {
        SinkBacklog(self.shelves(sink).backlog.clone())
    }

    /// Whether nothing waits for `sink`.
    pub(crate) fn is_empty(&self, sink: &SinkId) -> bool {
        self.shelves(sink).backlog.state().events == 0
    }

    fn shelves(&self, sink: &SinkId) -> Arc<Shelves> {
        Arc::clone(&self.sinks.load()[sink.index()])
    }

    /// The state of every queue.
    pub(crate) fn state(&self) -> Vec<SinkSpool> {
        let state = |shelves: &Arc<Shelves>| SinkSpool {
            sink: shelves.sink.clone(),
            backlog: shelves.backlog.state(),
            dead: shelves.dead.state(),
        };
        self.sinks.load().iter().map(state).collect()
    }

    /// Why nothing can be appended now, if so.
    pub(crate) fn trouble(&self) -> Option<String> {
        let sinks = self.sinks.load();
        let mut backlogs = sinks.iter().map(|shelves| shelves.backlog.state());
        backlogs
            .find(|state| !state.writable)
            .map(|state| state.cause.unwrap_or_else(|| "the disk does not answer".to_owned()))
    }

    /// What may be waiting at most, in bytes.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.config.max_size.0
    }

    /// Ends cleanly.
    pub(crate) async fn close(&self) {
        for shelves in self.sinks.load_full().iter() {
            shelves.backlog.close().await;
            shelves.dead.close().await;
        }
    }
}

/// Small enough that space is freed soon, large enough that files stay few.
const SEGMENT_BYTES: u64 = 32 * 1024 * 1024;

fn happenings(sink: SinkId, observer: Arc<dyn Observer>) -> Arc<dyn Fn(&Happening) + Send + Sync> {
    Arc::new(move |happening| match happening {
        Happening::Committed { sync, .. } => {
            observer.observe(&Observation::SpoolSynced { sink: &sink, elapsed: *sync });
        }
        Happening::CommitFailed { error } => {
            let message = "the spool cannot be written to";
            observer.observe(&Observation::SpoolNotice { message, detail: &Chain(*error) });
        }
        Happening::Corrupt { file, detail } => {
            let detail = format!("{}: {detail}", file.display());
            observer.observe(&Observation::SpoolCorrupt { sink: &sink, detail: &detail });
        }
    })
}

impl Spool for LocalSpool {
    fn append<'a>(&'a self, sink: &'a SinkId, shelf: Shelf, record: Bytes) -> BoxFuture<'a, Result<u64, SpoolError>> {
        Box::pin(async move {
            let shelves = self.shelves(sink);
            let queue = match shelf {
                Shelf::Backlog => &shelves.backlog,
                Shelf::Dead => &shelves.dead,
            };
            queue.append(record).await.map(|ticket| ticket.seq()).map_err(|error| failure(&error))
        })
    }
}

/// The backlog of one sink.
pub(crate) struct SinkBacklog(Queue);

impl Backlog for SinkBacklog {
    type Place = Place;

    fn next(&self) -> BoxFuture<'_, Result<Waiting<Place>, SpoolError>> {
        Box::pin(async { self.0.next().await.map(waiting).map_err(|error| failure(&error)) })
    }

    fn read(&self, place: Place) -> BoxFuture<'_, Result<Option<Waiting<Place>>, SpoolError>> {
        Box::pin(async move {
            let read = self.0.read(place).await.map_err(|error| failure(&error))?;
            Ok(read.map(waiting))
        })
    }

    fn begun(&self, place: Place) -> BoxFuture<'_, ()> {
        Box::pin(self.0.begun(place))
    }

    fn failed(&self, place: Place) {
        self.0.failed(place);
    }

    fn done(&self, place: Place) {
        self.0.done(place);
    }
}

fn waiting(record: disk::Record) -> Waiting<Place> {
    let disk::Record { place, at, payload, failures, crashes } = record;
    Waiting { place, at, record: payload, failures, crashes }
}

fn failure(error: &disk::SpoolError) -> SpoolError {
    let reason = match error.kind {
        SpoolErrorKind::Full => SpoolReason::Full,
        SpoolErrorKind::Closed => SpoolReason::Closed,
        _ => SpoolReason::Io,
    };
    SpoolError { reason, detail: Chain(error).to_string() }
}

/// `time` as a Prometheus timestamp.
pub(crate) fn seconds(time: Option<SystemTime>) -> f64 {
    let since = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.unwrap_or(Duration::ZERO).as_secs_f64()
}
