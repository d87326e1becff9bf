//! Everything is killed, frozen, cut off and restarted by a schedule that a seed decides, and nothing that was acknowledged is
//! lost.
//!
//! `HOOKGATE_NEMESIS_SECONDS` says for how long (30), `HOOKGATE_NEMESIS_SEED` which schedule (a new one each time; a failure
//! tells it).

use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::world::{Fault, Kind, RELAYS, Told, Verdict, World};

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

async fn suffer(kind: Kind) -> Verdict {
    let seed = from_environment("HOOKGATE_NEMESIS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let span = Duration::from_secs(from_environment("HOOKGATE_NEMESIS_SECONDS").unwrap_or(30));
    eprintln!("{kind:?}: HOOKGATE_NEMESIS_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut world = World::start(kind).await;
    let begun = Instant::now();
    let faults = std::iter::from_fn(|| {
        let fault = Fault::by(&mut rng);
        eprintln!("{kind:?}: {:>6.1} s {fault:?}", begun.elapsed().as_secs_f64());
        (begun.elapsed() < span).then_some(fault)
    });
    let verdict = world.judge(seed, faults, true).await;
    eprintln!("{kind:?}: {verdict}");
    assert!(verdict.is_at_least_once(), "HOOKGATE_NEMESIS_SEED={seed}: {verdict:?}");
    assert!(verdict.acknowledged > 500, "{verdict:?}");
    verdict
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_nothing_that_was_acknowledged_is_lost_and_nothing_is_there_twice() {
    let verdict = suffer(Kind::Nats).await;
    assert!(verdict.is_exactly_once(), "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_rabbitmq_has_all_that_was_acknowledged() {
    suffer(Kind::Rabbit).await;
}

#[cfg(feature = "kafka")]
#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_kafka_has_all_that_was_acknowledged() {
    suffer(Kind::Kafka).await;
}

/// What an operator does every day must not be seen by anybody.
#[tokio::test(flavor = "multi_thread")]
async fn while_one_process_after_the_other_is_stopped_and_started_no_sender_is_refused() {
    let mut world = World::start(Kind::Nats).await;
    let (history, _) = world.count(1, (0..6).map(|round| Fault::StopRelay(round % RELAYS))).await;
    let refused = |told: &&Told| matches!(told, Told::Status { .. }) && !told.is_success();
    let (refused, reset): (Vec<_>, Vec<_>) = (
        history.values().flatten().filter(refused).collect(),
        history.values().flatten().filter(|told| **told == Told::Nothing).collect(),
    );
    assert!(refused.is_empty(), "{refused:?}");
    // Between the last look into the backlog and the end of the port the kernel takes connections and resets them.
    assert!(reset.len() <= 1, "{} attempts were reset", reset.len());
    assert!(history.len() > 500, "{}", history.len());
}

/// While none of them dies, the processes have counted what their senders were told.
#[tokio::test(flavor = "multi_thread")]
async fn the_counters_agree_with_what_senders_were_told() {
    let mut world = World::start(Kind::Nats).await;
    let faults = [Fault::CutBroker, Fault::KillBroker, Fault::FlushRedis, Fault::KillRedis, Fault::PauseBroker];
    let (history, counts) = world.count(1, faults.into_iter()).await;
    let (mut received, mut accepted) = (0.0, 0.0);
    for told in history.values().flatten() {
        assert_ne!(*told, Told::Nothing, "no process was hurt");
        received += 1.0;
        accepted += f64::from(u8::from(told.is_success()));
    }
    assert_eq!((counts.received, counts.accepted), (received, accepted));
    assert!(received > 500.0, "{received}");
}
