//! What becomes of events when Redis does not do its part: none is lost, the answers are those that the source asked for, and
//! there are no more copies than one for each time that Redis was of no help.

use std::{collections::BTreeMap, time::Duration};

use hookgate_testkit::{
    http::{Response, request, send_raw},
    nats::{NatsConfig, NatsServer},
    process::wait_until,
    proxy::{FaultProxy, ProxyMode},
    redis::{MASTER_NAME, RedisConfig, RedisSentinel, RedisServer, RedisWire},
};

use crate::relay::{
    LIMIT, OPENCLAW, Relay, TO_FILE, TOKEN, committed, create_stream, finished, finished_id, post, shared_in, to_nats,
};

/// A source whose events are refused while Redis does not answer.
const STRICT: &str = r#"
    [sources.strict]
    path = "/strict"
    preset = "openclaw"
    verify = [{ scheme = "bearer", secrets = [{ env = "OPENCLAW_TOKEN" }] }]
    dedup = { on_outage = "refuse" }
"#;

const COMMIT_FAILURES: &str = "hookgate_dedup_commit_failures_total";
const BYPASSED: &str = r#"hookgate_dedup_checks_total{result="bypassed"}"#;

fn tables(redis: &str) -> String {
    format!("{OPENCLAW}{STRICT}{TO_FILE}{}", shared_in(redis))
}

fn post_to(path: &str, body: &str) -> Vec<u8> {
    let authorization = format!("Bearer {TOKEN}");
    request(
        "POST",
        path,
        &[("authorization", authorization.as_str()), ("content-type", "application/json")],
        body.as_bytes(),
    )
}

impl Relay {
    async fn post_strict(&self, number: usize) -> Response {
        self.send(&post_to("/strict", &finished(number))).await
    }

    /// How often it has stored each event.
    fn copies(&self) -> BTreeMap<String, usize> {
        let mut copies = BTreeMap::new();
        for line in self.stored() {
            let id = format!("{} {}", line["source"].as_str().expect("a source"), line["id"].as_str().expect("an id"));
            *copies.entry(id).or_default() += 1;
        }
        copies
    }

    /// How many operations on Redis took longer than 100 ms.
    async fn slow_operations(&self) -> f64 {
        let metrics = self.metrics().await;
        let slow = |operation: &&str| {
            let name = "hookgate_dedup_operation_duration_seconds";
            let (all, quick) = (format!("{name}_count{{"), format!("{name}_bucket{{"));
            metrics[&format!("{all}operation=\"{operation}\"}}")]
                - metrics[&format!("{quick}operation=\"{operation}\",le=\"0.1\"}}")]
        };
        ["claim", "commit", "release"].iter().map(slow).sum()
    }

    async fn wait_until_dedup_is(&self, up: bool) {
        wait_until(LIMIT, &format!("dedup store up = {up}"), async || self.dedup_is_up().await == up).await;
        assert_eq!(self.metric("hookgate_dedup_store_up").await, f64::from(u8::from(up)));
    }
}

/// Two processes that share a Redis; the first reaches it through a proxy.
struct Pair {
    redis: RedisServer,
    proxy: FaultProxy,
    one: Relay,
    other: Relay,
}

impl Pair {
    async fn start() -> Self {
        let redis = RedisServer::start(&RedisConfig::default()).await;
        let proxy = FaultProxy::start(redis.address()).await;
        let one = Relay::start(&tables(&format!("redis://{}", proxy.address()))).await;
        let other = Relay::start(&tables(&redis.url())).await;
        for relay in [&one, &other] {
            relay.wait_until_dedup_is(true).await;
        }
        Self { redis, proxy, one, other }
    }

    /// How often the two have stored event `number` of `source` together.
    fn copies(&self, source: &str, number: usize) -> usize {
        let id = format!("{source} {}", finished_id(number));
        [&self.one, &self.other].iter().map(|relay| relay.copies().get(&id).copied().unwrap_or_default()).sum()
    }

    /// What holds while Redis is of no help to either: each event is accepted by both and is there, once for each at most;
    /// where the source refuses, it is refused and not there.
    async fn assert_nothing_is_lost_without_redis(&self, numbers: std::ops::Range<usize>) {
        for number in numbers.clone() {
            for relay in [&self.one, &self.other] {
                let answer = relay.post(finished(number)).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert_eq!(relay.post(finished(number)).await.json()["outcome"], "duplicate", "its own memory helps");
                let refused = relay.post_strict(number).await;
                assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("dedup-unavailable")));
                assert!(refused.header("retry-after").is_some());
            }
        }
        for number in numbers {
            assert!((1..=2).contains(&self.copies("openclaw", number)), "{number}: {:?}", self.one.copies());
            assert_eq!(self.copies("strict", number), 0);
        }
    }

    /// What holds again once Redis is back: once for both.
    async fn assert_events_are_stored_once(&self, numbers: std::ops::Range<usize>) {
        for relay in [&self.one, &self.other] {
            relay.wait_until_dedup_is(true).await;
        }
        for number in numbers {
            assert_eq!(self.one.post(finished(number)).await.json()["outcome"], "delivered");
            assert_eq!(self.other.post(finished(number)).await.json()["outcome"], "duplicate");
            assert_eq!(self.other.post_strict(number).await.json()["outcome"], "delivered");
            assert_eq!(self.one.post_strict(number).await.json()["outcome"], "duplicate");
            assert_eq!((self.copies("openclaw", number), self.copies("strict", number)), (1, 1));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn down_at_the_start() {
    let mut redis = RedisServer::start(&RedisConfig::default()).await;
    redis.kill();
    let proxy = FaultProxy::start(redis.address()).await;
    let one = Relay::start(&tables(&redis.url())).await;
    let other = Relay::start(&tables(&redis.url())).await;
    assert_eq!(one.ready().await.0, 200, "it can do its work");
    assert!(!one.dedup_is_up().await);
    let mut pair = Pair { redis, proxy, one, other };
    pair.assert_nothing_is_lost_without_redis(0..20).await;
    pair.redis.restart().await;
    pair.assert_events_are_stored_once(100..105).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_back_without_its_memory() {
    let mut pair = Pair::start().await;
    pair.assert_events_are_stored_once(0..5).await;
    pair.redis.kill();
    for relay in [&pair.one, &pair.other] {
        relay.wait_until_dedup_is(false).await;
    }
    pair.assert_nothing_is_lost_without_redis(10..30).await;
    assert!(pair.one.metric(BYPASSED).await >= 20.0);
    assert!(pair.one.log().contains("dedup store is down"));
    pair.redis.restart().await;
    pair.assert_events_are_stored_once(100..105).await;
    // What was known before is known to those who accepted it, and published once more by the other at most.
    for number in 0..5 {
        assert_eq!(pair.one.post(finished(number)).await.json()["outcome"], "duplicate");
        assert_eq!(pair.other.post(finished(number)).await.status, 200);
        assert!(pair.copies("openclaw", number) <= 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_claim_and_commit() {
    let mut redis = RedisServer::start(&RedisConfig::default()).await;
    let nats = NatsServer::start(NatsConfig::default()).await;
    create_stream(&nats).await;
    let to_broker = FaultProxy::start(format!("127.0.0.1:{}", nats.port())).await;
    let broker = to_nats(&format!("nats://{}", to_broker.address()));
    let relay = Relay::start(&format!("{OPENCLAW}{}{broker}", shared_in(&redis.url()))).await;
    relay.wait_until_ready().await;
    to_broker.set_mode(ProxyMode::BlackHole).await;
    let address = relay.address();
    let posted = tokio::spawn(async move { send_raw(address, &post(finished(1)), LIMIT).await });
    let mut wire = redis.wire().await;
    wait_until(LIMIT, "it is claimed", async || wire.keys().await.len() == 1).await;
    redis.kill();
    to_broker.set_mode(ProxyMode::Pass).await;
    let answer = posted.await.expect("no panic").expect("an answer");
    assert_eq!(
        (answer.status, answer.json()["outcome"].as_str()),
        (200, Some("delivered")),
        "it is delivered: no error"
    );
    wait_until(LIMIT, "the commit has failed", async || relay.metric(COMMIT_FAILURES).await == 1.0).await;
    assert_eq!(nats.wire().await.read_stream("HOOKS").await.len(), 1);
    assert_eq!(relay.post(finished(1)).await.json()["outcome"], "duplicate");
}

#[tokio::test(flavor = "multi_thread")]
async fn paused() {
    let mut pair = Pair::start().await;
    pair.redis.pause();
    pair.assert_nothing_is_lost_without_redis(0..20).await;
    // Of some hundred operations only those waited that showed it. One more may have been under way each time.
    for relay in [&pair.one, &pair.other] {
        assert!((1.0..=6.0).contains(&relay.slow_operations().await), "{}", relay.slow_operations().await);
    }
    pair.redis.resume();
    pair.assert_events_are_stored_once(100..105).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow() {
    let pair = Pair::start().await;
    pair.proxy.set_mode(ProxyMode::Delay(Duration::from_millis(400))).await;
    for number in 0..30 {
        assert_eq!(pair.one.post(finished(number)).await.status, 200);
    }
    let slow = pair.one.slow_operations().await;
    assert!((1.0..=6.0).contains(&slow), "it is not waited for again and again: {slow}");
    pair.proxy.set_mode(ProxyMode::Pass).await;
    pair.assert_events_are_stored_once(100..105).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_reach_of_one_process_and_half_open() {
    let pair = Pair::start().await;
    pair.proxy.set_mode(ProxyMode::BlackHole).await;
    for number in 0..20 {
        assert_eq!(pair.other.post(finished(number)).await.json()["outcome"], "delivered");
        assert_eq!(pair.one.post(finished(number)).await.json()["outcome"], "delivered", "it cannot know");
        assert_eq!(pair.copies("openclaw", number), 2);
    }
    assert_eq!(pair.one.metric(BYPASSED).await, 20.0);
    assert_eq!(pair.other.metric(BYPASSED).await, 0.0);
    pair.proxy.set_mode(ProxyMode::Pass).await;
    pair.assert_events_are_stored_once(100..105).await;
}

/// Faults that a server announces: what makes it refuse, and what mends it.
#[tokio::test(flavor = "multi_thread")]
async fn refusing_to_write() {
    const SHUT_OUT: &[&str] = &["ACL", "SETUSER", "default", "resetpass", ">changed"];
    for (name, cause, cure) in [
        ("a replica", &["REPLICAOF", "127.0.0.1", "1"][..], &["REPLICAOF", "NO", "ONE"][..]),
        (
            "without its replicas",
            &["CONFIG", "SET", "min-replicas-to-write", "1"],
            &["CONFIG", "SET", "min-replicas-to-write", "0"],
        ),
        ("full", &["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]),
        ("a right is gone", &["ACL", "SETUSER", "default", "-set"], &["ACL", "SETUSER", "default", "+set"]),
        ("the password is another", SHUT_OUT, &["ACL", "SETUSER", "default", "nopass"]),
    ] {
        let pair = Pair::start().await;
        let mut wire = pair.redis.wire().await;
        wire.done(cause).await;
        if cause == SHUT_OUT {
            wire.done(&["CLIENT", "KILL", "USER", "default"]).await;
        }
        eprintln!("{name}");
        pair.assert_nothing_is_lost_without_redis(0..5).await;
        for relay in [&pair.one, &pair.other] {
            relay.wait_until_dedup_is(false).await;
        }
        wire.done(cure).await;
        pair.assert_events_are_stored_once(100..103).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flushed_or_evicting() {
    let pair = Pair::start().await;
    pair.assert_events_are_stored_once(0..5).await;
    pair.redis.wire().await.done(&["FLUSHALL"]).await;
    for number in 0..5 {
        // Each knows what it accepted; the other had it from Redis, and remembers that for a while.
        for relay in [&pair.one, &pair.other] {
            assert_eq!(relay.post(finished(number)).await.json()["outcome"], "duplicate");
        }
    }
    assert_eq!(pair.one.post(finished(10)).await.json()["outcome"], "delivered");
    let mut wire = pair.redis.wire().await;
    wait_until(LIMIT, "it is committed", async || committed(&mut wire).await == 1).await;
    wire.done(&["FLUSHALL"]).await;
    assert_eq!(pair.other.post(finished(10)).await.json()["outcome"], "delivered", "nobody can know");
    assert_eq!(pair.copies("openclaw", 10), 2);
}

/// Two processes before a file and JetStream; what the first sends to Redis and to JetStream can be held.
struct Held {
    redis: RedisServer,
    nats: NatsServer,
    to_redis: FaultProxy,
    to_broker: FaultProxy,
    one: Relay,
    other: Relay,
}

impl Held {
    async fn start() -> Self {
        let redis = RedisServer::start(&RedisConfig::default()).await;
        let nats = NatsServer::start(NatsConfig::default()).await;
        let stream =
            serde_json::json!({ "name": "HOOKS", "subjects": ["openclaw.>"], "duplicate_window": 100_000_000 });
        nats.wire().await.create_stream(&stream).await;
        let to_redis = FaultProxy::start(redis.address()).await;
        let to_broker = FaultProxy::start(format!("127.0.0.1:{}", nats.port())).await;
        let tables = |redis: String, broker: String| format!("{OPENCLAW}{}{}", shared_in(&redis), to_nats(&broker));
        let short = [("HOOKGATE_SERVER__REPLY_DEADLINE", "1s")];
        let one = tables(format!("redis://{}", to_redis.address()), format!("nats://{}", to_broker.address()));
        let one = Relay::start_with(&one, &short).await;
        let other = Relay::start_with(&tables(redis.url(), nats.url()), &short).await;
        for relay in [&one, &other] {
            relay.wait_until_ready().await;
            relay.wait_until_dedup_is(true).await;
        }
        Self { redis, nats, to_redis, to_broker, one, other }
    }

    /// Posts an event to the first and holds it between claim and publish. The claim's key.
    async fn hold_one(&self) -> (tokio::task::JoinHandle<std::io::Result<Response>>, RedisWire, String) {
        self.to_broker.set_mode(ProxyMode::BlackHole).await;
        let address = self.one.address();
        let posted = tokio::spawn(async move { send_raw(address, &post(finished(1)), LIMIT).await });
        let mut wire = self.redis.wire().await;
        wait_until(LIMIT, "it is claimed", async || wire.keys().await.len() == 1).await;
        let key = wire.keys().await.remove(0);
        (posted, wire, key)
    }

    async fn copies(&self) -> usize {
        self.nats.wire().await.read_stream("HOOKS").await.len()
    }

    /// Posts the event to the second until it is accepted; how often it was told to come back.
    async fn post_until_accepted(&self) -> usize {
        let mut refused = 0;
        wait_until(LIMIT, "it is accepted", async || match self.other.post(finished(1)).await.status {
            200 => true,
            status => {
                assert_eq!(status, 503);
                refused += 1;
                false
            }
        })
        .await;
        refused
    }
}

/// A clock that steps back by an hour turns what is left of a lease into an hour and more; `PEXPIRE` makes the same of it.
#[tokio::test(flavor = "multi_thread")]
async fn its_clock_steps_back() {
    let mut held = Held::start().await;
    let (posted, mut wire, key) = held.hold_one().await;
    wire.done(&["PEXPIRE", &key, "3605000"]).await;
    held.one.kill();
    assert!(posted.await.expect("no panic").is_err());
    let refused = held.post_until_accepted().await;
    assert!(refused >= 1, "the owner could have been alive");
    assert_eq!(held.copies().await, 1);
    assert_eq!(held.other.metric(r#"hookgate_dedup_checks_total{result="takeover"}"#).await, 1.0);
}

/// One that steps forward ends a lease too early.
#[tokio::test(flavor = "multi_thread")]
async fn its_clock_steps_forward() {
    let held = Held::start().await;
    let (posted, mut wire, key) = held.hold_one().await;
    wire.done(&["PEXPIRE", &key, "1"]).await;
    assert_eq!(held.post_until_accepted().await, 0);
    held.to_broker.set_mode(ProxyMode::Pass).await;
    let first = posted.await.expect("no panic").expect("an answer");
    assert_eq!(first.status, 200, "{}", first.text());
    // One for the lease that was cut short, unless both came within the stream's own window of 100 ms.
    assert!((1..=2).contains(&held.copies().await));
    assert_eq!(held.other.post(finished(1)).await.json()["outcome"], "duplicate");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_stands_still_for_longer_than_its_lease() {
    let mut held = Held::start().await;
    let (posted, mut wire, key) = held.hold_one().await;
    held.one.pause();
    let refused = held.post_until_accepted().await;
    assert!(refused >= 1);
    wait_until(LIMIT, "it is committed", async || committed(&mut wire).await == 1).await;
    held.to_broker.set_mode(ProxyMode::Pass).await;
    held.one.resume();
    let late = posted.await.expect("no panic").expect("an answer");
    assert!(matches!(late.status, 200 | 503 | 504), "{}", late.text());
    assert!((1..=2).contains(&held.copies().await), "one for the lease that was overrun");
    // Its release, or its commit, comes after its answer.
    assert_eq!(held.other.post(finished(1)).await.json()["outcome"], "duplicate");
    let left = wire.text(&["GET", &key]).await.expect("it is still known");
    assert!(left.starts_with("1C"), "whoever was overtaken takes nothing away: {left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn its_answers_are_lost() {
    let held = Held::start().await;
    held.to_redis.set_mode(ProxyMode::SwallowReplies).await;
    let answer = held.one.post(finished(1)).await;
    assert_eq!(answer.json()["outcome"], "delivered", "{}", answer.text());
    assert_eq!(held.other.post(finished(1)).await.json()["outcome"], "duplicate", "claim and commit had arrived");
    assert_eq!(held.copies().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_over_to_a_replica() {
    let mut sentinel = RedisSentinel::start().await;
    let redis =
        format!("[dedup.redis]\nurl = \"{}\"\ntopology = \"sentinel\"\nmaster = \"{MASTER_NAME}\"\n", sentinel.url());
    let tables = format!("{OPENCLAW}{TO_FILE}{redis}");
    let (one, other) = (Relay::start(&tables).await, Relay::start(&tables).await);
    for relay in [&one, &other] {
        relay.wait_until_dedup_is(true).await;
    }
    assert_eq!(one.post(finished(0)).await.json()["outcome"], "delivered");
    sentinel.first_master().kill();
    for number in 1..20 {
        for relay in [&one, &other] {
            assert_eq!(relay.post(finished(number)).await.status, 200);
        }
    }
    sentinel.fail_over().await;
    for relay in [&one, &other] {
        relay.wait_until_dedup_is(true).await;
    }
    assert_eq!(one.post(finished(100)).await.json()["outcome"], "delivered");
    assert_eq!(other.post(finished(100)).await.json()["outcome"], "duplicate");
    let (ones, others) = (one.copies(), other.copies());
    for number in 0..20 {
        let id = format!("openclaw {}", finished_id(number));
        let copies = ones.get(&id).unwrap_or(&0) + others.get(&id).unwrap_or(&0);
        assert!((1..=2).contains(&copies), "{number}: {copies}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_id_of_two_sources_and_ids_of_any_length_do_not_meet() {
    let pair = Pair::start().await;
    for number in [1, 2] {
        assert_eq!(pair.one.post(finished(number)).await.json()["outcome"], "delivered");
        assert_eq!(pair.other.post_strict(number).await.json()["outcome"], "delivered", "another source's");
    }
    let giant = |last: char| finished(3).replace("job-3", &format!("{}{last}", "j".repeat(60_000)));
    assert_eq!(pair.one.post(giant('a')).await.json()["outcome"], "delivered");
    assert_eq!(pair.one.post(giant('b')).await.json()["outcome"], "delivered");
    assert_eq!(pair.other.post(giant('a')).await.json()["outcome"], "duplicate");
    for key in pair.redis.wire().await.keys().await {
        assert_eq!(key.len(), "hookgate:".len() + 22, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_id_with_two_bodies_is_counted_and_dealt_with_as_the_source_says() {
    let redis = RedisServer::start(&RedisConfig::default()).await;
    let new_event = OPENCLAW.replace("openclaw]", "apart]").replace("/openclaw/webhook", "/apart");
    let tables = format!("{}{new_event}dedup = {{ on_mismatch = \"new-event\" }}\n", tables(&redis.url()));
    let (one, other) = (Relay::start(&tables).await, Relay::start(&tables).await);
    let changed = finished(1).replace("\"s\"", "\"another summary\"");
    for path in ["/openclaw/webhook", "/apart"] {
        assert_eq!(one.send(&post_to(path, &finished(1))).await.json()["outcome"], "delivered");
    }
    assert_eq!(other.send(&post_to("/openclaw/webhook", &changed)).await.json()["outcome"], "duplicate");
    let apart = other.send(&post_to("/apart", &changed)).await.json();
    assert_eq!(apart["outcome"], "delivered");
    assert!(apart["event_id"].as_str().is_some_and(|id| id.contains("&body-sha256=")), "{apart}");
    assert_eq!(one.send(&post_to("/apart", &changed)).await.json()["outcome"], "duplicate");
    for source in ["openclaw", "apart"] {
        let series = format!("hookgate_dedup_payload_mismatch_total{{source=\"{source}\"}}");
        assert_eq!(other.metric(&series).await, 1.0, "{source}");
    }
    assert!(other.log().contains("accepted with another body"));
}
