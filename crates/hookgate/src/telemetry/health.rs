//! Whether the process is alive and whether it should be sent events.
//!
//! Readiness does not follow a broker that was reached once: all replicas share it, so its outage would take every one of
//! them out of service, and the load balancer's own 503 tells a sender less than ours.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hookgate_core::{
    event::SinkId,
    observe::{Observation, Observer},
};
use hookgate_http::admin::{PartReadiness, Readiness, SpoolReadiness};

/// How old the last tick of each worker may be. Older means that its runtime stands still.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// How long a start waits for every sink's first connection. Wrong credentials keep a rollout from replacing good pods;
/// a broker that is down for longer than this must not.
const FIRST_CONTACT_LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Health {
    begun: Instant,
    started: AtomicBool,
    draining: AtomicBool,
    /// Of each worker, in milliseconds after `begun`.
    last_ticks: Box<[AtomicU64]>,
    sinks: Mutex<Vec<PartHealth>>,
    /// Whether the config's file can be used.
    config: Mutex<PartHealth>,
    /// The dedup store that replicas share, if they do. Readiness does not depend on it: hookgate answers without.
    dedup: Option<Mutex<PartHealth>>,
}

/// A broker, or the dedup store.
struct PartHealth {
    name: String,
    up: bool,
    ever_up: bool,
    cause: Option<String>,
    since: Instant,
    /// Whether the config has it.
    wanted: bool,
}

impl Health {
    pub(super) fn new(shares_dedup: bool, workers: usize) -> Self {
        let begun = Instant::now();
        Self {
            begun,
            started: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            last_ticks: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            sinks: Mutex::default(),
            config: Mutex::new(PartHealth { up: true, cause: None, ..PartHealth::new("config", begun) }),
            dedup: shares_dedup.then(|| Mutex::new(PartHealth::new("dedup", begun))),
        }
    }

    /// Makes room for `sinks`, each at its index. None of them matters before a config has it.
    pub(super) fn make_room(&self, sinks: &[SinkId]) {
        let (mut all, now) = (lock(&self.sinks), Instant::now());
        let known = all.len();
        all.extend(
            sinks.iter().skip(known).map(|sink| PartHealth { wanted: false, ..PartHealth::new(sink.name(), now) }),
        );
    }

    /// `sinks` are those of the config; what is known of others does not matter any more.
    pub(super) fn adopt(&self, sinks: &[SinkId]) {
        for known in lock(&self.sinks).iter_mut() {
            known.wanted = sinks.iter().any(|sink| sink.name() == known.name);
        }
    }

    pub(super) fn started(&self) {
        self.started.store(true, Ordering::Release);
    }

    pub(super) fn draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(super) fn tick(&self, worker: usize) {
        self.last_ticks[worker].store(self.age_ms(), Ordering::Release);
    }

    pub(super) fn live(&self) -> bool {
        let now = self.age_ms();
        let age = |tick: &AtomicU64| Duration::from_millis(now.saturating_sub(tick.load(Ordering::Acquire)));
        self.last_ticks.iter().all(|tick| age(tick) < STALLED_AFTER)
    }

    /// `spool` is `Some` where there is one, with what is wrong with it.
    pub(super) fn ready(&self, spool: Option<Option<String>>) -> Readiness {
        let sinks = lock(&self.sinks);
        // What can be spooled can be accepted, whatever the sinks do.
        let spools = matches!(spool, Some(None));
        let all_met = spools
            || sinks.iter().all(|sink| sink.ever_up || !sink.wanted)
            || self.begun.elapsed() > FIRST_CONTACT_LIMIT;
        let reason = if self.draining.load(Ordering::Acquire) {
            Some("draining")
        } else if !self.started.load(Ordering::Acquire) {
            Some("starting")
        } else if !all_met {
            Some("a sink has not been reached since the start")
        } else {
            None
        };
        let sinks = sinks.iter().filter(|sink| sink.wanted).map(PartHealth::show).collect();
        let config = Some(lock(&self.config).show()).filter(|config| !config.up);
        let dedup = self.dedup.as_ref().map(|dedup| lock(dedup).show());
        let spool = spool.map(|cause| SpoolReadiness { up: cause.is_none(), cause });
        Readiness { ready: reason.is_none(), reason, version: env!("CARGO_PKG_VERSION"), config, sinks, dedup, spool }
    }

    fn age_ms(&self) -> u64 {
        super::millis(self.begun.elapsed())
    }

    fn set(&self, sink: &SinkId, up: bool, cause: Option<String>) {
        lock(&self.sinks)[sink.index()].set(up, cause);
    }

    fn set_dedup(&self, up: bool, cause: Option<String>) {
        if let Some(dedup) = &self.dedup {
            lock(dedup).set(up, cause);
        }
    }
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PartHealth {
    fn new(name: &str, since: Instant) -> Self {
        Self {
            name: name.to_owned(),
            up: false,
            ever_up: false,
            cause: Some("not connected yet".to_owned()),
            since,
            wanted: true,
        }
    }

    fn set(&mut self, up: bool, cause: Option<String>) {
        if self.up != up {
            self.since = Instant::now();
        }
        self.up = up;
        self.ever_up |= up;
        self.cause = cause;
    }

    fn show(&self) -> PartReadiness {
        PartReadiness {
            name: self.name.clone(),
            up: self.up,
            cause: self.cause.clone(),
            for_seconds: self.since.elapsed().as_secs(),
        }
    }
}

impl Observer for Health {
    fn observe(&self, observation: &Observation<'_>) {
        match observation {
            Observation::SinkUp { sink } => self.set(sink, true, None),
            Observation::SinkDown { sink, cause } => self.set(sink, false, Some(cause.to_string())),
            Observation::ConfigReplaced { .. } => lock(&self.config).set(true, None),
            Observation::ConfigKept { problems } => lock(&self.config).set(false, Some(problems.to_string())),
            Observation::DedupStoreUp => self.set_dedup(true, None),
            Observation::DedupStoreDown { cause } => self.set_dedup(false, Some(cause.to_string())),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_that_was_reached_once_keeps_the_process_ready() {
        let sink = SinkId::new(0, "js");
        let health = Health::new(true, 1);
        health.make_room(std::slice::from_ref(&sink));
        health.adopt(std::slice::from_ref(&sink));
        assert_eq!(health.ready(None).reason, Some("starting"));
        health.started();
        assert!(!health.ready(None).ready, "not reached yet");
        health.observe(&Observation::SinkUp { sink: &sink });
        assert!(health.ready(None).ready);
        health.observe(&Observation::SinkDown { sink: &sink, cause: &"gone" });
        let readiness = health.ready(None);
        assert!(readiness.ready);
        assert_eq!((readiness.sinks[0].up, readiness.sinks[0].cause.as_deref()), (false, Some("gone")));
        assert_eq!(readiness.dedup.map(|dedup| dedup.up), Some(false), "told, and no reason not to be ready");
        health.draining();
        assert_eq!(health.ready(None).reason, Some("draining"));
    }

    #[test]
    fn the_process_is_alive_while_every_worker_is() {
        let mut health = Health::new(false, 2);
        assert!(health.live(), "it has just begun");
        health.begun -= 2 * STALLED_AFTER;
        assert!(!health.live());
        health.tick(0);
        assert!(!health.live(), "the other stands still");
        health.tick(1);
        assert!(health.live());
    }

    #[test]
    fn a_spool_that_can_be_written_to_makes_ready_without_any_sink() {
        let sink = SinkId::new(0, "js");
        let health = Health::new(false, 1);
        health.make_room(std::slice::from_ref(&sink));
        health.adopt(std::slice::from_ref(&sink));
        health.started();
        assert!(health.ready(Some(None)).ready);
        let broken = health.ready(Some(Some("read-only".to_owned())));
        assert!(!broken.ready, "then only a sink does");
        assert_eq!(broken.spool.and_then(|spool| spool.cause).as_deref(), Some("read-only"));
    }
}
