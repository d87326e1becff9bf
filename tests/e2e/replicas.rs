//! Several hookgate processes that share one Redis: an event is published once, whoever gets it and however often.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::join_all;
use hookgate_testkit::{
    nats::{NatsConfig, NatsServer},
    redis::{RedisConfig, RedisServer},
};
use serde_json::json;

use crate::relay::{OPENCLAW, Relay, TO_FILE, finished, finished_id, run_to_end, shared_in, to_nats};

/// How often each id occurs.
fn counted(ids: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for id in ids {
        *counts.entry(id).or_default() += 1;
    }
    counts
}

/// Posts each event to every replica at the same time, several times over.
async fn posted_to_all_it_is_stored_once(replicas: usize, events: usize) {
    const TIMES_EACH: usize = 4;
    let redis = RedisServer::start(&RedisConfig::default()).await;
    let server = NatsServer::start(NatsConfig::default()).await;
    // A window too short to help: what is stored once here is so by our doing.
    let stream = json!({ "name": "HOOKS", "subjects": ["openclaw.>"], "duplicate_window": 100_000_000 });
    server.wire().await.create_stream(&stream).await;
    let tables = format!(
        "{OPENCLAW}{}{TO_FILE}{}[[routes]]\nto = [{{ sink = \"js\", subject = \"openclaw.{{attr.job}}\" }}]\n",
        shared_in(&redis.url()),
        to_nats(&server.url()).split("[[routes]]").next().expect("a sink"),
    );
    let relays = join_all((0..replicas).map(|_| Relay::start(&tables))).await;
    let relays: Arc<[Relay]> = relays.into();
    for relay in relays.iter() {
        relay.wait_until_ready().await;
        assert!(relay.dedup_is_up().await);
    }
    let mut delivered = 0;
    // Some events at a time: each of them meets all replicas at once.
    for batch in (0..events).collect::<Vec<_>>().chunks(10) {
        let posts = batch.iter().flat_map(|number| (0..replicas * TIMES_EACH).map(move |place| (*number, place)));
        let posts = posts.map(|(number, place)| {
            let relays = Arc::clone(&relays);
            tokio::spawn(async move { relays[place % relays.len()].post(finished(number)).await })
        });
        for answer in join_all(posts.collect::<Vec<_>>()).await {
            let answer = answer.expect("no panic");
            assert_eq!(answer.status, 200, "{}", answer.text());
            delivered += usize::from(answer.json()["outcome"] == "delivered");
        }
    }
    assert_eq!(delivered, events, "each was delivered by one and a duplicate to all others");
    let expected = counted((0..events).map(finished_id));
    let in_files = relays.iter().flat_map(Relay::stored);
    assert_eq!(counted(in_files.map(|line| line["id"].as_str().expect("an id").to_owned())), expected);
    let in_stream = server.wire().await.read_stream("HOOKS").await;
    assert_eq!(counted(in_stream.iter().map(|message| message.header("ce-id").expect("an id").to_owned())), expected);
    let used = relays.iter().filter(|relay| !relay.stored().is_empty()).count();
    assert_eq!(used, replicas, "and all had their part in it");
    let mut wire = redis.wire().await;
    let keys = wire.keys().await;
    assert_eq!(keys.len(), events);
    for key in keys {
        assert!(wire.integer(&["PTTL", &key]).await > 0, "{key} would stay for ever");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_store_an_event_once() {
    posted_to_all_it_is_stored_once(2, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_store_an_event_once() {
    posted_to_all_it_is_stored_once(3, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_shared_store_they_do_not() {
    // What the two tests above would show if they could not fail.
    let tables = format!("{OPENCLAW}{TO_FILE}");
    let (one, other) = (Relay::start(&tables).await, Relay::start(&tables).await);
    assert_eq!(one.post(finished(1)).await.json()["outcome"], "delivered");
    assert_eq!(other.post(finished(1)).await.json()["outcome"], "delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_process_knows_what_it_accepted() {
    let redis = RedisServer::start(&RedisConfig::default()).await;
    let tables = format!("{OPENCLAW}{TO_FILE}{}", shared_in(&redis.url()));
    let mut relay = Relay::start(&tables).await;
    assert_eq!(relay.post(finished(1)).await.json()["outcome"], "delivered");
    relay.terminate();
    assert!(relay.wait().await.success());
    let next = Relay::start(&tables).await;
    assert_eq!(next.post(finished(1)).await.json()["outcome"], "duplicate");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_repeats_asks_redis_a_few_times() {
    let redis = RedisServer::start(&RedisConfig::default()).await;
    let tables = format!("{OPENCLAW}{TO_FILE}{}", shared_in(&redis.url()));
    let relays: Arc<[Relay]> = join_all((0..2).map(|_| Relay::start(&tables))).await.into();
    let sets = async || redis.wire().await.calls().await.get("set").copied().unwrap_or_default();
    let before = sets().await;
    let senders = (0..32).map(|sender| {
        let relays = Arc::clone(&relays);
        tokio::spawn(async move {
            for _ in 0..100 {
                assert_eq!(relays[sender % 2].post(finished(1)).await.status, 200);
            }
        })
    });
    for sender in join_all(senders.collect::<Vec<_>>()).await {
        sender.expect("no panic");
    }
    let asked = sets().await - before;
    // A claim and a commit, and the other's claims until then, which are 10 ms and more apart.
    assert!((3..50).contains(&asked), "{asked} for 3200 repeats");
    assert_eq!(relays.iter().map(|relay| relay.stored().len()).sum::<usize>(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_looks_at_redis_and_warns_of_a_policy_that_forgets() {
    let extra = "maxmemory 100mb\nmaxmemory-policy allkeys-lru\n".to_owned();
    let mut redis = RedisServer::start(&RedisConfig { extra, ..RedisConfig::default() }).await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let tables = format!("{OPENCLAW}{TO_FILE}{}", shared_in(&redis.url()));
    std::fs::write(dir.path().join("relay.toml"), tables).expect("a writable directory");
    let checked = run_to_end(dir.path(), &["check"], &[]);
    let told = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success() && told.contains("ok      dedup.redis"), "{told}");
    assert!(told.contains("WARNING dedup.redis: maxmemory-policy is allkeys-lru"), "{told}");
    redis.kill();
    let checked = run_to_end(dir.path(), &["check", "--json"], &[]);
    let told = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(!checked.status.success() && told.contains(&redis.address()), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_used_is_refused_before_anything_starts() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (table, said) in [
        ("[dedup.redis]\nurl = 'http://hunter2@a'\n", "dedup.redis"),
        ("[dedup.redis]\nurl = { env = 'NOT_SET' }\n", "NOT_SET"),
        ("[dedup.redis]\nurl = 'redis://a'\ntopology = 'sentinel'\n", "dedup.redis.master"),
        ("[dedup.redis]\nurl = 'redis://a'\ntimeout = '5s'\n", "dedup.redis.timeout"),
        ("[dedup.redis]\nurls = 'redis://a'\n", "did you mean \"url\""),
        ("[sources.openclaw.dedup]\non_outage = 'refuse'\n", "sources.openclaw.dedup.on_outage"),
    ] {
        std::fs::write(dir.path().join("relay.toml"), format!("{OPENCLAW}{TO_FILE}{table}")).expect("writable");
        let run = run_to_end(dir.path(), &["run"], &[]);
        let told = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(!run.status.success() && told.contains(said) && !told.contains("hunter2"), "{table}: {told}");
    }
}
