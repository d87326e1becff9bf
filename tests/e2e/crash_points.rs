//! hookgate killed at each step of an event's way: what the sender is told then and later, and how often the event is stored.
//!
//! Nothing in the program knows of this. Proxies before Redis and NATS hold it at the step, and then it gets SIGKILL; what the
//! sender tries again goes to another process.

use futures_util::future::join_all;
use hookgate_testkit::{
    http::send_raw,
    nats::{NatsConfig, NatsServer},
    process::wait_until,
    proxy::{FaultProxy, ProxyMode},
    redis::{RedisConfig, RedisServer},
};
use serde_json::json;

use crate::relay::{LIMIT, OPENCLAW, Relay, committed, finished, post, to_nats};

/// Where the process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    BeforeClaim,
    AfterClaim,
    BeforeAck,
    BeforeCommit,
    AfterCommit,
}

/// Whether the broker drops what it has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broker {
    KnowsIds,
    /// Like Kafka and AMQP.
    DoesNot,
}

/// What the program does wrong, if anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    AsItIs,
    /// It remembers an event as accepted before it publishes it.
    MarksFirst,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    point: Point,
    /// Whether the sender had its answer.
    answered: bool,
    /// The status of a repeat that is sent at once.
    at_once: u16,
    /// The status of one that is sent after the lease.
    later: u16,
    copies: usize,
}

impl Row {
    /// The one thing that must never be.
    fn is_a_loss(&self) -> bool {
        (self.answered || self.at_once == 200 || self.later == 200) && self.copies == 0
    }
}

/// The deadline of the process that is killed. Its lease is two seconds longer.
const DEADLINE: &str = "2s";

async fn crash_at(point: Point, broker: Broker, program: Program) -> Row {
    let redis = RedisServer::start(&RedisConfig::default()).await;
    let nats = NatsServer::start(NatsConfig::default()).await;
    let window_ns: u64 = match broker {
        Broker::KnowsIds => 120_000_000_000,
        Broker::DoesNot => 100_000_000,
    };
    let stream = json!({ "name": "HOOKS", "subjects": ["openclaw.>"], "duplicate_window": window_ns });
    nats.wire().await.create_stream(&stream).await;
    let to_redis = FaultProxy::start(redis.address()).await;
    let to_broker = FaultProxy::start(format!("127.0.0.1:{}", nats.port())).await;
    let forger = FaultProxy::start(redis.address()).await;
    let usual = match program {
        Program::AsItIs => ProxyMode::Pass,
        // The claim says what only a commit should say.
        Program::MarksFirst => ProxyMode::Rewrite { from: b"1P", to: b"1C" },
    };
    to_redis.set_mode(usual).await;
    forger.set_mode(usual).await;
    let tables = |redis: &FaultProxy, broker: String| {
        let redis = format!("[dedup.redis]\nurl = \"redis://{}\"\ntimeout = \"1s\"\n", redis.address());
        format!("{OPENCLAW}{redis}{}", to_nats(&broker))
    };
    let mut victim = Relay::start_with(
        &tables(&to_redis, format!("nats://{}", to_broker.address())),
        &[("HOOKGATE_SERVER__REPLY_DEADLINE", DEADLINE)],
    )
    .await;
    let other = Relay::start_with(&tables(&forger, nats.url()), &[("HOOKGATE_SERVER__REPLY_DEADLINE", "500ms")]).await;
    victim.wait_until_ready().await;
    other.wait_until_ready().await;
    assert!(victim.dedup_is_up().await && other.dedup_is_up().await);

    // Held at the step before, so that it can be let on to the very point.
    match point {
        Point::BeforeClaim => to_redis.set_mode(ProxyMode::BlackHole).await,
        Point::AfterClaim | Point::BeforeCommit | Point::AfterCommit => {
            to_broker.set_mode(ProxyMode::BlackHole).await;
        }
        Point::BeforeAck => to_broker.set_mode(ProxyMode::SwallowReplies).await,
    }
    let address = victim.address();
    let first = tokio::spawn(async move { send_raw(address, &post(finished(1)), LIMIT).await });
    let mut wire = redis.wire().await;
    let stored = async || nats.wire().await.read_stream("HOOKS").await.len();
    match point {
        Point::BeforeClaim => {
            let received = r#"hookgate_events_received_total{source="openclaw"}"#;
            wait_until(LIMIT, "the event is there", async || victim.metric(received).await == 1.0).await;
            assert!(wire.keys().await.is_empty());
        }
        Point::AfterClaim | Point::BeforeCommit | Point::AfterCommit => {
            wait_until(LIMIT, "it is claimed", async || wire.keys().await.len() == 1).await;
            assert_eq!(stored().await, 0);
        }
        Point::BeforeAck => wait_until(LIMIT, "it is stored", async || stored().await == 1).await,
    }
    match point {
        Point::BeforeCommit => {
            to_redis.set_mode(ProxyMode::BlackHole).await;
            to_broker.set_mode(ProxyMode::Pass).await;
            wait_until(LIMIT, "it is answered", async || first.is_finished()).await;
        }
        Point::AfterCommit => {
            to_broker.set_mode(ProxyMode::Pass).await;
            wait_until(LIMIT, "it is committed and answered", async || {
                committed(&mut wire).await == 1 && first.is_finished()
            })
            .await;
        }
        _ => {}
    }
    victim.kill();
    // What a dead process left in a proxy is as gone as in a dead network.
    drop((to_redis, to_broker));
    // Otherwise the sender's connection is reset.
    let answered = first.await.expect("no panic").is_ok_and(|answer| answer.status == 200);

    let at_once = other.post(finished(1)).await.status;
    let mut later = 0;
    wait_until(LIMIT, "the lease is over", async || {
        later = other.post(finished(1)).await.status;
        later == 200
    })
    .await;
    Row { point, answered, at_once, later, copies: stored().await }
}

async fn table(broker: Broker) -> Vec<Row> {
    let points = [Point::BeforeClaim, Point::AfterClaim, Point::BeforeAck, Point::BeforeCommit, Point::AfterCommit];
    join_all(points.map(|point| crash_at(point, broker, Program::AsItIs))).await
}

fn row(point: Point, answered: bool, at_once: u16, copies: usize) -> Row {
    Row { point, answered, at_once, later: 200, copies }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_nothing_is_lost_and_a_broker_that_knows_ids_stores_it_once() {
    let rows = table(Broker::KnowsIds).await;
    assert_eq!(
        rows,
        [
            row(Point::BeforeClaim, false, 200, 1),
            row(Point::AfterClaim, false, 503, 1),
            row(Point::BeforeAck, false, 503, 1),
            row(Point::BeforeCommit, true, 503, 1),
            row(Point::AfterCommit, true, 200, 1),
        ]
    );
    assert!(!rows.iter().any(Row::is_a_loss));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_nothing_is_lost_and_a_broker_that_does_not_stores_it_twice_at_most() {
    let rows = table(Broker::DoesNot).await;
    assert_eq!(
        rows,
        [
            row(Point::BeforeClaim, false, 200, 1),
            row(Point::AfterClaim, false, 503, 1),
            row(Point::BeforeAck, false, 503, 2),
            row(Point::BeforeCommit, true, 503, 2),
            row(Point::AfterCommit, true, 200, 1),
        ]
    );
    assert!(!rows.iter().any(Row::is_a_loss));
}

/// What the two tests above are for: a program that marks first passes for right until it is killed between claim and publish.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_marks_an_event_as_seen_before_it_publishes_is_caught() {
    let row = crash_at(Point::AfterClaim, Broker::KnowsIds, Program::MarksFirst).await;
    assert_eq!(row, Row { point: Point::AfterClaim, answered: false, at_once: 200, later: 200, copies: 0 });
    assert!(row.is_a_loss());
}
