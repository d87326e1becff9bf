//! Several hookgate processes, real Redis, a real broker, senders that repeat as senders do, and somebody who kills, freezes
//! and restarts all of them. Afterwards the senders' history is held against what the broker has.

mod broker;
mod history;
mod senders;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use futures_util::future::join_all;
use hookgate_testkit::{
    process::wait_until,
    redis::{RedisConfig, RedisServer},
    volume::Volume,
};
use serde_json::Value;
use tokio::time::sleep;

pub(crate) use self::history::{Told, Verdict};
use self::{
    broker::Broker,
    history::{History, Stored},
    senders::{SENDERS, Senders, body},
};
use crate::relay::{LIMIT, OPENCLAW, Relay, finished_id};

pub(crate) const RELAYS: usize = 3;

/// After the last fault everything has to be as if nothing had been, within this time.
const HEALED_WITHIN: Duration = Duration::from_secs(60);

/// Numbers from here on no sender uses.
const CANARIES: usize = u16::MAX as usize * 1000;

/// More than any of this should take.
const RESIDENT_BYTES_MAX: f64 = 256.0 * 1024.0 * 1024.0;

/// Which broker a world has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Nats,
    Rabbit,
    #[cfg(feature = "kafka")]
    Kafka,
}

/// What is done to the processes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    KillRelay(usize),
    StopRelay(usize),
    PauseRelay(usize),
    KillBroker,
    PauseBroker,
    CutBroker,
    /// The broker takes what is published and has no place for it.
    LoseTheWay,
    KillRedis,
    PauseRedis,
    FlushRedis,
    /// The broker is away, so that what is in flight waits for it, and then a process dies.
    KillBrokerKillRelay(usize),
    /// The broker is away, and one process has no room to keep what comes.
    FillDiskKillBroker(usize),
}

impl Fault {
    pub(crate) fn by(rng: &mut Rng) -> Self {
        let relay = rng.usize(..RELAYS);
        match rng.u8(..15) {
            0..=2 => Self::KillRelay(relay),
            3 => Self::StopRelay(relay),
            4 => Self::PauseRelay(relay),
            5 => Self::KillBroker,
            6 => Self::PauseBroker,
            7 => Self::CutBroker,
            8 => Self::LoseTheWay,
            9 => Self::KillRedis,
            10 => Self::PauseRedis,
            11 => Self::FlushRedis,
            12 => Self::FillDiskKillBroker(relay),
            _ => Self::KillBrokerKillRelay(relay),
        }
    }
}

pub(crate) struct World {
    redis: RedisServer,
    broker: Broker,
    relays: Vec<Relay>,
    /// Where each relay's spool is, if disks can be made here.
    disks: Vec<Volume>,
    environments: Vec<Vec<(String, String)>>,
    /// How often a process was killed; each time what it was about to write to its trail may be gone.
    kills: usize,
    broker_kills: usize,
}

impl World {
    /// With the program under test.
    pub(crate) async fn start(kind: Kind) -> Self {
        Self::start_of(kind, env!("CARGO_BIN_EXE_hookgate").into(), &[]).await
    }

    /// With the program at `program`, in this environment.
    pub(crate) async fn start_of(kind: Kind, program: PathBuf, environment: &[(&str, &str)]) -> Self {
        let redis = RedisServer::start(&RedisConfig::default()).await;
        let broker = Broker::start(kind).await;
        let tables = format!(
            "{OPENCLAW}[audit]\ndir = \"trail\"\n[spool]\ndir = \"spool\"\nmin_free = \"1 MiB\"\n[dedup.redis]\nurl = \"redis://{}\"\n{}",
            redis.address(),
            broker.tables()
        );
        let disks: Result<Vec<_>, _> = (0..RELAYS).map(|_| Volume::with_power_switch(64 << 20)).collect();
        let disks = disks.unwrap_or_else(|why| {
            eprintln!("SKIPPED: no disk becomes full: {why}");
            Vec::new()
        });
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let environments: Vec<Vec<_>> = (0..RELAYS)
            .map(|relay| {
                let deadline = owned(("HOOKGATE_SERVER__REPLY_DEADLINE", "1s"));
                let spool = disks.get(relay).map(|disk: &Volume| {
                    owned(("HOOKGATE_SPOOL__DIR", &disk.path().join("spool").display().to_string()))
                });
                environment.iter().copied().map(owned).chain([deadline]).chain(spool).collect()
            })
            .collect();
        let relays =
            join_all(environments.iter().map(|environment| Relay::start_of(&program, &tables, environment))).await;
        Self { redis, broker, relays, disks, environments, kills: 0, broker_kills: 0 }
    }

    async fn start_again(&mut self, relay: usize) {
        self.relays[relay].start_again_in(&self.environments[relay]).await;
    }

    async fn suffer(&mut self, fault: Fault, rng: &mut Rng) {
        let moment = Duration::from_millis(rng.u64(200..1500));
        self.kills += usize::from(matches!(fault, Fault::KillRelay(_) | Fault::KillBrokerKillRelay(_)));
        self.broker_kills += usize::from(matches!(
            fault,
            Fault::KillBroker | Fault::KillBrokerKillRelay(_) | Fault::FillDiskKillBroker(_)
        ));
        match fault {
            Fault::KillRelay(relay) => {
                self.relays[relay].kill();
                self.start_again(relay).await;
            }
            Fault::StopRelay(relay) => {
                self.relays[relay].terminate();
                self.relays[relay].wait().await;
                self.start_again(relay).await;
            }
            Fault::PauseRelay(relay) => {
                self.relays[relay].pause();
                sleep(moment * 2).await;
                self.relays[relay].resume();
            }
            Fault::KillBroker => {
                self.broker.kill();
                sleep(moment).await;
                self.broker.restart().await;
            }
            Fault::PauseBroker => self.broker.pause(moment).await,
            Fault::CutBroker => self.broker.cut_connections().await,
            Fault::LoseTheWay => self.broker.lose_its_way(moment).await,
            Fault::KillRedis => {
                self.redis.kill();
                sleep(moment).await;
                self.redis.restart().await;
            }
            Fault::PauseRedis => {
                self.redis.pause();
                sleep(moment).await;
                self.redis.resume();
            }
            Fault::FlushRedis => {
                self.redis.wire().await.command(&["FLUSHALL"]).await;
            }
            Fault::KillBrokerKillRelay(relay) => {
                self.broker.kill();
                sleep(Duration::from_millis(300)).await;
                self.relays[relay].kill();
                self.broker.restart().await;
                self.start_again(relay).await;
            }
            Fault::FillDiskKillBroker(relay) => {
                let Some(disk) = self.disks.get(relay) else { return };
                disk.fill(0);
                self.broker.kill();
                sleep(moment).await;
                self.broker.restart().await;
                disk.empty();
            }
        }
    }

    /// Lets `faults` happen while senders send, heals everything, and returns what each side says.
    async fn run(&mut self, seed: u64, faults: impl Iterator<Item = Fault>) -> (History, Stored) {
        let mut rng = Rng::with_seed(seed);
        let senders = Arc::new(Senders {
            addresses: self.relays.iter().map(Relay::address).collect(),
            history: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let sending: Vec<_> = (0..SENDERS)
            .map(|sender| {
                let (senders, rng) = (Arc::clone(&senders), rng.fork());
                tokio::spawn(async move { senders.send(sender, rng).await })
            })
            .collect();
        for fault in faults {
            sleep(Duration::from_millis(rng.u64(200..800))).await;
            self.suffer(fault, &mut rng).await;
        }
        senders.over.store(true, Ordering::Relaxed);
        for sender in sending {
            sender.await.expect("no panic");
        }
        for relay in &self.relays {
            wait_until(HEALED_WITHIN, "the spool is empty again", async || {
                relay.metric("hookgate_spool_events{sink=\"out\"}").await == 0.0
            })
            .await;
            assert_eq!(relay.metric("hookgate_dead_letters{sink=\"out\"}").await, 0.0);
        }
        let history = senders.history.lock().expect("no panic").clone();
        let number = |id: &str| id.rsplit_once('=').expect("its last part").1.parse().expect("a number");
        let stored = self.broker.held().await.into_iter().map(|held| {
            let number: usize = number(&held.id);
            (number, held.body == body(number).as_bytes() && held.id == finished_id(number))
        });
        (history, stored.collect())
    }

    /// Lets `faults` happen while senders send, heals everything, and judges. With `audit`, what the processes wrote to their
    /// trails is held against the broker too.
    pub(crate) async fn judge(&mut self, seed: u64, faults: impl Iterator<Item = Fault>, audit: bool) -> Verdict {
        let (history, stored) = self.run(seed, faults).await;
        if audit {
            self.assert_audited(&history).await;
        }
        self.assert_healed().await;
        Verdict::of(&history, &stored)
    }

    /// That the trail of the processes has the place of every acknowledged event, and that the event is there.
    async fn assert_audited(&self, history: &History) {
        let held: HashMap<u64, String> =
            self.broker.held().await.into_iter().filter_map(|held| Some((held.offset?, held.id))).collect();
        if held.is_empty() {
            return;
        }
        let (mut audited, mut elsewhere) = (HashSet::new(), Vec::new());
        for file in self.relays.iter().flat_map(|relay| std::fs::read_dir(relay.dir().join("trail")).expect("a trail"))
        {
            let lines = std::fs::read_to_string(file.expect("a file").path()).expect("readable");
            for entry in lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
                if entry["step"] == "stored" {
                    let (id, offset) = (entry["event_id"].as_str().expect("an id"), entry["offset"].as_u64());
                    if held.get(&offset.expect("a place")).map(String::as_str) != Some(id) {
                        elsewhere.push(entry.to_string());
                    }
                    audited.insert(id.to_owned());
                }
            }
        }
        let acknowledged = history.iter().filter(|(_, told)| told.iter().any(|told| told.is_success()));
        let without = acknowledged.filter(|(number, _)| !audited.contains(&finished_id(**number))).count();
        eprintln!("{} events have a place in the trail, {without} acknowledged ones have none", audited.len());
        assert!(without <= self.kills * SENDERS, "{without} have none after {} kills", self.kills);
        // NATS before 2.10.23 can forget what it acknowledged last when it is killed, and give its place to another message.
        assert!(elsewhere.len() <= self.broker_kills * SENDERS, "after {} kills: {elsewhere:?}", self.broker_kills);
    }

    /// That every process works as before, and that nothing has piled up.
    async fn assert_healed(&self) {
        for relay in &self.relays {
            let number = CANARIES + usize::from(relay.address().port());
            wait_until(LIMIT, "an event is delivered at once again", async || {
                relay.post(body(number)).await.json()["outcome"] != "spooled"
            })
            .await;
            let metrics = relay.metrics().await;
            let sum = |name: &str| {
                metrics.iter().filter(|(series, _)| series.starts_with(name)).map(|(_, value)| value).sum::<f64>()
            };
            assert_eq!(sum("hookgate_events_received_total"), sum("hookgate_events_total"), "each ends in one way");
            assert!(metrics["process_resident_memory_bytes"] < RESIDENT_BYTES_MAX, "{metrics:?}");
            assert!(metrics["process_open_fds"] < 200.0, "{}", metrics["process_open_fds"]);
        }
        let mut wire = self.redis.wire().await;
        for key in wire.keys().await {
            // One that has ended meanwhile is answered with -2.
            assert_ne!(wire.integer(&["PTTL", &key]).await, -1, "{key} would stay for ever");
        }
    }

    /// The same, and what the processes count.
    pub(crate) async fn count(&mut self, seed: u64, faults: impl Iterator<Item = Fault>) -> (History, Counts) {
        let (history, _) = self.run(seed, faults).await;
        let mut counts = Counts::default();
        for relay in &self.relays {
            for (series, value) in relay.metrics().await {
                let of = |outcome: &str| {
                    series == format!("hookgate_events_total{{source=\"openclaw\",outcome=\"{outcome}\"}}")
                };
                if series == "hookgate_events_received_total{source=\"openclaw\"}" {
                    counts.received += value;
                }
                if ["delivered", "spooled", "duplicate"].into_iter().any(of) {
                    counts.accepted += value;
                }
            }
        }
        (history, counts)
    }
}

/// What the processes say of a run, all together.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) received: f64,
    pub(crate) accepted: f64,
}
