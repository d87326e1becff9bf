//! Several hookgate processes, real Redis, real NATS, senders that repeat as senders do, and somebody who kills, freezes and
//! restarts all of them by a schedule that a seed decides. Afterwards the senders' history is held against what is stored.
//!
//! `HOOKGATE_NEMESIS_SECONDS` says for how long (30), `HOOKGATE_NEMESIS_SEED` which schedule (a new one each time; a failure
//! tells it).

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use fastrand::Rng;
use futures_util::future::join_all;
use hookgate_testkit::{
    http::send_raw,
    nats::{NatsConfig, NatsServer},
    process::wait_until,
    proxy::{FaultProxy, ProxyMode},
    redis::{RedisConfig, RedisServer},
};
use tokio::time::sleep;

use crate::relay::{LIMIT, OPENCLAW, Relay, create_stream, finished_id, post, to_nats};

const RELAYS: usize = 3;
const SENDERS: usize = 12;

/// A sender gives up on an answer after this time: longer than the deadline, shorter than the longest pause of a process.
const PATIENCE: Duration = Duration::from_secs(3);

/// After the last fault everything has to be as if nothing had been, within this time.
const HEALED_WITHIN: Duration = Duration::from_secs(60);

/// What a sender was told about one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Status {
        code: u16,
        retry_after: bool,
    },
    /// Reset, refused or no answer: nobody knows.
    Nothing,
}

impl Told {
    fn is_success(self) -> bool {
        matches!(self, Self::Status { code: 200..=299, .. })
    }
}

/// Of each event, what was told about every attempt.
type History = BTreeMap<usize, Vec<Told>>;

/// What the stream holds: the numbers of the events, whether their bodies are what was sent.
type Stored = Vec<(usize, bool)>;

/// What is wrong, as sets of events.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    acknowledged: usize,
    /// There, though no attempt was told to be good.
    recovered: usize,
    /// Acknowledged and not there.
    lost: Vec<usize>,
    /// There more often than once.
    duplicated: Vec<usize>,
    /// There and never sent, or not as it was sent.
    unexpected: Vec<usize>,
    /// Answers that no fault explains.
    wrong_answers: Vec<(usize, Told)>,
}

impl Verdict {
    fn of(history: &History, stored: &Stored) -> Self {
        let mut verdict = Self::default();
        let mut copies: BTreeMap<usize, usize> = BTreeMap::new();
        for (number, intact) in stored {
            *copies.entry(*number).or_default() += 1;
            if !intact || !history.contains_key(number) {
                verdict.unexpected.push(*number);
            }
        }
        for (number, attempts) in history {
            let copies = copies.get(number).copied().unwrap_or_default();
            let acknowledged = attempts.iter().any(|told| told.is_success());
            verdict.acknowledged += usize::from(acknowledged);
            verdict.recovered += usize::from(!acknowledged && copies > 0);
            if acknowledged && copies == 0 {
                verdict.lost.push(*number);
            }
            if copies > 1 {
                verdict.duplicated.push(*number);
            }
            for told in attempts {
                let expected = match told {
                    Told::Nothing => true,
                    Told::Status { code: 200 | 202, .. } => true,
                    Told::Status { code: 503 | 504, retry_after } => *retry_after,
                    Told::Status { .. } => false,
                };
                if !expected {
                    verdict.wrong_answers.push((*number, *told));
                }
            }
        }
        verdict
    }

    fn is_good(&self) -> bool {
        let Self { lost, duplicated, unexpected, wrong_answers, .. } = self;
        lost.is_empty() && duplicated.is_empty() && unexpected.is_empty() && wrong_answers.is_empty()
    }
}

fn body(number: usize) -> String {
    let filler = "x".repeat(number * 7919 % 900);
    format!(
        r#"{{"jobId":"job-{}","action":"finished","runAtMs":{number},"status":"ok","summary":"{filler}"}}"#,
        number % 7
    )
}

/// When a sender tries again, in milliseconds.
const PROFILES: [&[u64]; 3] = [
    // GitHub, OpenClaw.
    &[],
    &[100, 300, 300],
    &[200, 400, 800, 1600, 3200],
];

struct Senders {
    addresses: Vec<SocketAddr>,
    history: Mutex<History>,
    over: AtomicBool,
}

impl Senders {
    async fn attempt(&self, number: usize, at: usize) -> Told {
        let answer = send_raw(self.addresses[at % RELAYS], &post(body(number)), PATIENCE).await;
        let told = match answer {
            Ok(answer) => Told::Status { code: answer.status, retry_after: answer.header("retry-after").is_some() },
            Err(_) => Told::Nothing,
        };
        self.history.lock().expect("no panic").entry(number).or_default().push(told);
        told
    }

    /// Sends events one after the other until it is over.
    async fn send(&self, sender: usize, mut rng: Rng) {
        let pauses = PROFILES[sender % PROFILES.len()];
        for number in (0..).map(|event| event * SENDERS + sender) {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            let at = rng.usize(..RELAYS);
            let mut told = match rng.u8(..20) {
                // A sender that does not know what it has sent.
                0 => {
                    let (one, other) = tokio::join!(self.attempt(number, at), self.attempt(number, at + 1));
                    if one.is_success() { one } else { other }
                }
                _ => self.attempt(number, at).await,
            };
            for pause in pauses {
                if told.is_success() {
                    break;
                }
                sleep(Duration::from_millis(*pause)).await;
                told = self.attempt(number, rng.usize(..RELAYS)).await;
            }
            if told.is_success() && rng.u8(..10) == 0 {
                self.attempt(number, rng.usize(..RELAYS)).await;
            }
            sleep(Duration::from_millis(rng.u64(5..25))).await;
        }
    }
}

/// What is done to the processes.
#[derive(Debug, Clone, Copy)]
enum Fault {
    KillRelay(usize),
    StopRelay(usize),
    PauseRelay(usize),
    KillBroker,
    PauseBroker,
    KillRedis,
    PauseRedis,
    FlushRedis,
    /// The broker is away, so that what is in flight waits for it, and then a process dies.
    KillBrokerKillRelay(usize),
}

impl Fault {
    fn by(rng: &mut Rng) -> Self {
        let relay = rng.usize(..RELAYS);
        match rng.u8(..12) {
            0..=2 => Self::KillRelay(relay),
            3 => Self::StopRelay(relay),
            4 => Self::PauseRelay(relay),
            5 => Self::KillBroker,
            6 => Self::PauseBroker,
            7 => Self::KillRedis,
            8 => Self::PauseRedis,
            9 => Self::FlushRedis,
            _ => Self::KillBrokerKillRelay(relay),
        }
    }
}

struct World {
    redis: RedisServer,
    /// Between the processes and Redis.
    to_redis: FaultProxy,
    nats: NatsServer,
    relays: Vec<Relay>,
}

const ENVIRONMENT: &[(&str, &str)] = &[("HOOKGATE_SERVER__REPLY_DEADLINE", "1s")];

impl World {
    async fn start() -> Self {
        let redis = RedisServer::start(&RedisConfig::default()).await;
        let to_redis = FaultProxy::start(redis.address()).await;
        let nats = NatsServer::start(NatsConfig::default()).await;
        create_stream(&nats).await;
        let tables = format!(
            "{OPENCLAW}[spool]\ndir = \"spool\"\nmin_free = \"1 MiB\"\n[dedup.redis]\nurl = \"redis://{}\"\n{}",
            to_redis.address(),
            to_nats(&nats.url())
        );
        let relays = join_all((0..RELAYS).map(|_| Relay::start_with(&tables, ENVIRONMENT))).await;
        Self { redis, to_redis, nats, relays }
    }

    async fn suffer(&mut self, fault: Fault, rng: &mut Rng) {
        let moment = Duration::from_millis(rng.u64(200..1500));
        match fault {
            Fault::KillRelay(relay) => {
                self.relays[relay].kill();
                self.relays[relay].start_again(ENVIRONMENT).await;
            }
            Fault::StopRelay(relay) => {
                self.relays[relay].terminate();
                self.relays[relay].wait().await;
                self.relays[relay].start_again(ENVIRONMENT).await;
            }
            Fault::PauseRelay(relay) => {
                self.relays[relay].pause();
                sleep(moment * 2).await;
                self.relays[relay].resume();
            }
            Fault::KillBroker => {
                self.nats.kill();
                sleep(moment).await;
                self.nats.restart().await;
            }
            Fault::PauseBroker => {
                self.nats.pause();
                sleep(moment).await;
                self.nats.resume();
            }
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
                self.nats.kill();
                sleep(Duration::from_millis(300)).await;
                self.relays[relay].kill();
                self.nats.restart().await;
                self.relays[relay].start_again(ENVIRONMENT).await;
            }
        }
    }

    /// Lets `faults` happen while senders send, heals everything, and judges.
    async fn judge(&mut self, seed: u64, faults: impl Iterator<Item = Fault>) -> Verdict {
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
                relay.metric("hookgate_spool_events{sink=\"js\"}").await == 0.0
            })
            .await;
            assert_eq!(relay.metric("hookgate_dead_letters{sink=\"js\"}").await, 0.0);
            // A number that no sender uses.
            let number = usize::from(u16::MAX) * 1000 + usize::from(relay.address().port());
            wait_until(LIMIT, "an event is delivered at once again", async || {
                relay.post(body(number)).await.json()["outcome"] != "spooled"
            })
            .await;
        }
        let mut wire = self.redis.wire().await;
        for key in wire.keys().await {
            assert!(wire.integer(&["PTTL", &key]).await > 0, "{key} would stay for ever");
        }
        let history = senders.history.lock().expect("no panic").clone();
        let messages = self.nats.wire().await.read_stream("HOOKS").await;
        let stored = messages.iter().filter_map(|message| {
            let id = message.header("ce-id").expect("an id");
            let number: usize = id.rsplit_once('=').expect("its last part").1.parse().expect("a number");
            let intact = message.payload == body(number) && id == finished_id(number);
            (number < usize::from(u16::MAX) * 1000).then_some((number, intact))
        });
        Verdict::of(&history, &stored.collect())
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_nothing_that_was_acknowledged_is_lost_and_nothing_is_there_twice() {
    let seed = from_environment("HOOKGATE_NEMESIS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let span = Duration::from_secs(from_environment("HOOKGATE_NEMESIS_SECONDS").unwrap_or(30));
    eprintln!("HOOKGATE_NEMESIS_SEED={seed}");
    let (begun, mut rng) = (Instant::now(), Rng::with_seed(seed));
    let mut world = World::start().await;
    let faults = std::iter::from_fn(|| {
        let fault = Fault::by(&mut rng);
        eprintln!("{:>6.1} s {fault:?}", begun.elapsed().as_secs_f64());
        (begun.elapsed() < span).then_some(fault)
    });
    let verdict = world.judge(seed, faults).await;
    eprintln!("{verdict:?}");
    assert!(verdict.is_good(), "HOOKGATE_NEMESIS_SEED={seed}: {verdict:?}");
    assert!(verdict.acknowledged > 500, "{verdict:?}");
}

/// What the test above is for: a program that marks an event as seen before it publishes it loses some. Nobody has to build it:
/// a proxy forges each claim into what only a commit should say.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_marks_first_is_caught() {
    let mut world = World::start().await;
    world.to_redis.set_mode(ProxyMode::Rewrite { from: b"1P", to: b"1C" }).await;
    let faults = (0..6).map(|round| Fault::KillBrokerKillRelay(round % RELAYS));
    let verdict = world.judge(1, faults).await;
    assert!(!verdict.lost.is_empty(), "{verdict:?}");
}

#[test]
fn the_judge_sees_each_kind_of_wrong() {
    let ok = Told::Status { code: 200, retry_after: false };
    let refused = Told::Status { code: 503, retry_after: true };
    let of = |attempts: &[Told], stored: &[(usize, bool)]| {
        Verdict::of(&History::from([(1, attempts.to_vec())]), &stored.to_vec())
    };
    assert!(of(&[refused, ok], &[(1, true)]).is_good());
    assert!(of(&[refused, Told::Nothing], &[]).is_good());
    assert_eq!(of(&[Told::Nothing], &[(1, true)]).recovered, 1);
    assert_eq!(of(&[refused, ok], &[]).lost, [1]);
    assert_eq!(of(&[ok], &[(1, true), (1, true)]).duplicated, [1]);
    assert_eq!(of(&[ok], &[(1, false)]).unexpected, [1]);
    assert_eq!(of(&[ok], &[(1, true), (2, true)]).unexpected, [2]);
    for code in [301, 401, 500] {
        assert_eq!(of(&[Told::Status { code, retry_after: false }], &[]).wrong_answers.len(), 1, "{code}");
    }
    assert_eq!(of(&[Told::Status { code: 503, retry_after: false }], &[]).wrong_answers.len(), 1);
}
