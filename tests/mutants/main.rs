//! The tests' test: programs that break the promise in one place each, and whether those who look for that see it.
//!
//! The mutants are one build of a copy of the sources in `target/mutants`, with each mutation behind a variable of the
//! environment: the product itself has no switch for it. A mutation that no longer fits the sources fails the test.

#[cfg(feature = "kafka")]
#[path = "../../crates/sink-kafka/tests/common/topics.rs"]
mod kafka_topics;
mod mutations;
#[path = "../e2e/relay.rs"]
#[expect(dead_code, reason = "the tests of the program use the rest")]
mod relay;
#[path = "../e2e/spooling.rs"]
mod spooling;
#[path = "../e2e/world/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests of the program use the rest")]
mod world;

use hookgate_testkit::volume::Volume;

use crate::{
    mutations::{MUTANT, mutants},
    world::{Fault, Kind, RELAYS, Verdict, World},
};

/// Six times the broker and a process die, which is when most mutants lose something.
async fn judge(kind: Kind, mutant: &str, fault: fn(usize) -> Fault) -> Verdict {
    let mut world = World::start_of(kind, mutants(), &[(MUTANT, mutant)]).await;
    let verdict = world.judge(1, (0..6).map(|round| fault(round % RELAYS)), false).await;
    eprintln!("{mutant}: {verdict}");
    verdict
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_mutation_nothing_is_lost() {
    let verdict = judge(Kind::Nats, "none", Fault::KillBrokerKillRelay).await;
    assert!(verdict.is_exactly_once(), "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_marks_an_event_before_it_is_published_is_caught() {
    let verdict = judge(Kind::Nats, "mark-first", Fault::KillBrokerKillRelay).await;
    assert!(!verdict.lost.is_empty(), "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_answers_before_the_broker_does_is_caught() {
    let verdict = judge(Kind::Nats, "early-ack", Fault::KillBrokerKillRelay).await;
    assert!(!verdict.lost.is_empty(), "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_answers_2xx_for_what_a_replica_has_in_flight_is_caught() {
    let verdict = judge(Kind::Nats, "success-in-flight", Fault::KillBrokerKillRelay).await;
    assert!(!verdict.lost.is_empty(), "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_publishes_without_mandatory_is_caught() {
    let verdict = judge(Kind::Rabbit, "not-mandatory", |_| Fault::LoseTheWay).await;
    assert!(!verdict.lost.is_empty(), "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_answers_before_the_fsync_is_caught() {
    let disk = match Volume::with_power_switch(64 << 20) {
        Ok(disk) => disk,
        Err(why) => return eprintln!("SKIPPED: no power can be cut: {why}"),
    };
    let outcome = spooling::lose_power(disk, &mutants(), &[(MUTANT, "ack-before-fsync")]).await;
    eprintln!("ack-before-fsync: {outcome}");
    assert!(!outcome.lost().is_empty(), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_repeats_an_fsync_on_the_same_descriptor_is_caught() {
    let disk = match Volume::on_failing_disk(64 << 20).await {
        Ok(disk) => disk,
        Err(why) => return eprintln!("SKIPPED: no disk fails: {why}"),
    };
    let outcome = spooling::refuse_writes(disk, &mutants(), &[(MUTANT, "repeated-fsync")]).await;
    eprintln!("repeated-fsync: {outcome}");
    assert!(!outcome.lost().is_empty(), "{outcome:?}");
}
