//! What the store makes of a Redis that does not do its part: why an operation fails, that it fails soon, and that the store
//! comes back by itself.

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hookgate_core::{
    dedup::{ClaimStore, Held, Owner, StoreReason},
    secret::{Secret, SecretOrigin, SecretRef, SecretSlot, literal},
};
use hookgate_testkit::{
    process::wait_until,
    proxy::{FaultProxy, ProxyMode},
    recorder::Recorder,
    redis::{RedisCluster, RedisConfig, RedisServer, RedisValue},
};

use common::{Bench, LIMIT, WINDOW, body, key};

async fn start() -> (RedisServer, Bench) {
    let server = RedisServer::start(&RedisConfig::default()).await;
    let bench = Bench::start(&format!("url = '{}'", server.url())).await;
    (server, bench)
}

/// A server, and a store that reaches it through a proxy and waits for `timeout`.
async fn start_behind_a_proxy(timeout: &str) -> (RedisServer, FaultProxy, Bench) {
    let server = RedisServer::start(&RedisConfig::default()).await;
    let proxy = FaultProxy::start(server.address()).await;
    let bench = Bench::start(&format!("url = 'redis://{}'\ntimeout = '{timeout}'", proxy.address())).await;
    bench.wait_until_up().await;
    (server, proxy, bench)
}

impl Bench {
    /// The reason of a claim that fails.
    async fn reason(&self) -> Option<StoreReason> {
        self.claim("any", Owner::random()).await.err().map(|error| error.reason)
    }

    async fn wait_until_down(&self) {
        wait_until(LIMIT, "the store is down", async || {
            self.told.lines().last().is_some_and(|line| line.starts_with("dedup_store_down"))
        })
        .await;
    }

    /// Fails many operations and shows that none of them waited.
    async fn assert_fails_at_once(&self) {
        let begun = Instant::now();
        for _ in 0..1000 {
            assert!(self.reason().await.is_some());
        }
        // One that waited would take 150 ms; a thousand take some milliseconds.
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_server_that_comes_later_is_found() {
    let mut server = RedisServer::start(&RedisConfig::default()).await;
    server.kill();
    let bench = Bench::start(&format!("url = '{}'", server.url())).await;
    assert_eq!(bench.reason().await, Some(StoreReason::Disconnected));
    assert!(bench.told.lines()[0].contains(&server.address()), "{:?}", bench.told.lines());
    server.restart().await;
    bench.wait_until_up().await;
    server.kill();
    bench.wait_until_down().await;
    bench.assert_fails_at_once().await;
    server.restart().await;
    bench.wait_until_up().await;
}

#[tokio::test]
async fn a_server_that_falls_silent_costs_three_waits_and_is_found_again() {
    let (mut server, bench) = start().await;
    server.pause();
    for _ in 0..2 {
        assert_eq!(bench.reason().await, Some(StoreReason::Timeout));
    }
    // The third may be the store's own look at a connection that is not in use.
    wait_until(LIMIT, "it gives up", async || bench.reason().await.is_some() && bench.told.lines().len() > 1).await;
    bench.assert_fails_at_once().await;
    server.resume();
    bench.wait_until_up().await;
}

#[tokio::test]
async fn a_server_that_dies_while_nobody_asks_is_missed_all_the_same() {
    let (mut server, bench) = start().await;
    server.pause();
    bench.wait_until_down().await;
    server.resume();
    bench.wait_until_up().await;
}

#[tokio::test]
async fn one_late_answer_does_not_end_the_connection() {
    let (_server, proxy, bench) = start_behind_a_proxy("100ms").await;
    let connections = proxy.connections_seen();
    proxy.set_mode(ProxyMode::Delay(Duration::from_millis(300))).await;
    assert_eq!(bench.reason().await, Some(StoreReason::Timeout));
    proxy.set_mode(ProxyMode::Pass).await;
    bench.wait_until_up().await;
    assert_eq!(proxy.connections_seen(), connections);
}

#[tokio::test]
async fn a_server_that_is_always_late_is_done_without() {
    let (_server, proxy, bench) = start_behind_a_proxy("50ms").await;
    proxy.set_mode(ProxyMode::Delay(Duration::from_millis(200))).await;
    wait_until(LIMIT, "it gives up", async || {
        bench.reason().await.is_some() && bench.told.count("dedup_store_down") > 0
    })
    .await;
    bench.assert_fails_at_once().await;
    proxy.set_mode(ProxyMode::Pass).await;
    bench.wait_until_up().await;
}

#[tokio::test]
async fn a_connection_that_nobody_ends_is_given_up_and_another_is_made() {
    let (_server, proxy, bench) = start_behind_a_proxy("100ms").await;
    let connections = proxy.connections_seen();
    proxy.set_mode(ProxyMode::BlackHole).await;
    bench.wait_until_down().await;
    bench.assert_fails_at_once().await;
    proxy.set_mode(ProxyMode::Pass).await;
    bench.wait_until_up().await;
    assert!(proxy.connections_seen() > connections);
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_found_to_be_ours() {
    let (server, proxy, bench) = start_behind_a_proxy("1s").await;
    let bench = Arc::new(bench);
    proxy.set_mode(ProxyMode::SwallowReplies).await;
    let claiming = tokio::spawn({
        let bench = Arc::clone(&bench);
        async move { bench.claim("lost", Owner::random()).await }
    });
    let mut wire = server.wire().await;
    // Besides the one that was made to see that the store is up.
    wait_until(LIMIT, "the claim is made", async || wire.keys().await.len() == 2).await;
    proxy.set_mode(ProxyMode::Pass).await;
    proxy.cut().await;
    assert_eq!(claiming.await.expect("no panic").expect("an answer, by the next connection"), Held::ByUs);
}

#[tokio::test]
async fn scripts_that_the_server_has_forgotten_are_sent_anew() {
    let (server, bench) = start().await;
    let owner = Owner::random();
    assert_eq!(bench.claim("1", owner).await.expect("an answer"), Held::ByUs);
    server.wire().await.done(&["SCRIPT", "FLUSH"]).await;
    bench.store.release(key("1"), owner).await.expect("done");
    assert_eq!(bench.claim("1", Owner::random()).await.expect("an answer"), Held::ByUs);
}

/// What makes a server refuse to write, the reason that is told, and what mends it.
struct Refusal {
    reason: StoreReason,
    cause: &'static [&'static str],
    cure: &'static [&'static str],
}

#[tokio::test]
async fn a_server_that_refuses_to_write_is_done_without_until_it_does() {
    for Refusal { reason, cause, cure } in [
        Refusal {
            reason: StoreReason::ReadOnly,
            cause: &["REPLICAOF", "127.0.0.1", "1"],
            cure: &["REPLICAOF", "NO", "ONE"],
        },
        Refusal {
            reason: StoreReason::ReadOnly,
            cause: &["CONFIG", "SET", "min-replicas-to-write", "1"],
            cure: &["CONFIG", "SET", "min-replicas-to-write", "0"],
        },
        Refusal {
            reason: StoreReason::Full,
            cause: &["CONFIG", "SET", "maxmemory", "1"],
            cure: &["CONFIG", "SET", "maxmemory", "0"],
        },
        Refusal {
            reason: StoreReason::Auth,
            cause: &["ACL", "SETUSER", "default", "-set"],
            cure: &["ACL", "SETUSER", "default", "+set"],
        },
        Refusal {
            reason: StoreReason::Auth,
            cause: &["ACL", "SETUSER", "default", "resetpass", ">changed"],
            cure: &["ACL", "SETUSER", "default", "nopass"],
        },
    ] {
        let (server, bench) = start().await;
        let mut wire = server.wire().await;
        wire.done(cause).await;
        if cause.contains(&"resetpass") {
            // Who is in stays in until its connection ends.
            wire.done(&["CLIENT", "KILL", "USER", "default"]).await;
        }
        wait_until(LIMIT, "the reason is known", async || bench.reason().await == Some(reason)).await;
        bench.wait_until_down().await;
        bench.assert_fails_at_once().await;
        wire.done(cure).await;
        bench.wait_until_up().await;
    }
}

#[tokio::test]
async fn what_a_server_says_of_many_commits_is_understood_as_of_one() {
    for (reason, cause) in [
        (StoreReason::ReadOnly, ["REPLICAOF", "127.0.0.1", "1"].as_slice()),
        (StoreReason::ReadOnly, &["CONFIG", "SET", "min-replicas-to-write", "1"]),
        (StoreReason::Full, &["CONFIG", "SET", "maxmemory", "1"]),
        (StoreReason::Auth, &["ACL", "SETUSER", "default", "-set"]),
    ] {
        let (server, bench) = start().await;
        server.wire().await.done(cause).await;
        let many: Vec<_> = (0..200).map(|number| (key(&number.to_string()), body())).collect();
        let error = bench.store.commit(&many, WINDOW).await.expect_err("it is refused");
        assert_eq!(error.reason, reason, "{cause:?}");
        let words = std::error::Error::source(&error).expect("what the server said").to_string();
        assert!(words.len() < 300, "of one, not of all: {words}");
        bench.wait_until_down().await;
    }
}

#[tokio::test]
async fn a_server_that_is_busy_with_a_script_is_done_without() {
    let (server, bench) = start().await;
    let mut wire = server.wire().await;
    wire.done(&["CONFIG", "SET", "busy-reply-threshold", "10"]).await;
    let looping = tokio::spawn(async move { wire.command(&["EVAL", "while true do end", "0"]).await });
    bench.wait_until_down().await;
    wait_until(LIMIT, "the reason is known", async || {
        matches!(bench.reason().await, Some(StoreReason::Busy | StoreReason::Timeout))
    })
    .await;
    bench.assert_fails_at_once().await;
    let mut other = server.wire().await;
    wait_until(LIMIT, "the script is ended", async || {
        !matches!(other.command(&["SCRIPT", "KILL"]).await, RedisValue::Error(_))
    })
    .await;
    looping.await.expect("no panic");
    bench.wait_until_up().await;
}

#[tokio::test]
async fn a_new_password_is_used_from_the_next_connection_on() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("password");
    std::fs::write(&file, "old").expect("writable");
    let server = RedisServer::start(&RedisConfig { password: Some("old".to_owned()), ..RedisConfig::default() }).await;
    let config = common::config(&format!("url = '{}'\npassword = {{ file = '{}' }}", server.url(), file.display()));
    // As the program does it: a slot that is filled anew when the file changes.
    let secret = |text: &str| Secret::new(text.as_bytes()).expect("not empty");
    let slot = Arc::new(SecretSlot::new("password", secret("old")));
    let told = Arc::new(Recorder::default());
    let mut resolve = |reference: &SecretRef| match reference.origin {
        SecretOrigin::File(_) => Ok(Arc::clone(&slot)),
        _ => literal(reference),
    };
    let store = hookgate_redis::connect(&config, &mut resolve, Arc::clone(&told) as _).await.expect("usable");
    let claims = async |id: &str| store.claim(key(id), Owner::random(), common::LEASE).await;
    assert_eq!(claims("1").await.expect("an answer"), Held::ByUs);
    let mut wire = server.wire().await;
    wire.done(&["ACL", "SETUSER", "default", "resetpass", ">new"]).await;
    wire.done(&["CLIENT", "KILL", "USER", "default"]).await;
    wait_until(LIMIT, "it is refused", async || {
        claims("2").await.is_err_and(|error| error.reason == StoreReason::Auth)
    })
    .await;
    slot.replace(secret("new")).expect("any form");
    wait_until(LIMIT, "it is let in", async || claims("3").await.is_ok()).await;
    assert!(!told.lines().iter().any(|line| line.contains("new") || line.contains("old")), "{:?}", told.lines());
}

#[tokio::test]
async fn a_cluster_that_lacks_a_node_is_done_without_and_comes_back() {
    let mut cluster = RedisCluster::start().await;
    let bench = Bench::start(&format!("url = '{}'\ntopology = 'cluster'", cluster.urls())).await;
    bench.wait_until_up().await;
    bench.store.commit(&[(key("1"), body())], WINDOW).await.expect("done");
    cluster.nodes()[2].kill();
    wait_until(LIMIT, "it is missed", async || {
        for id in 0..20 {
            if bench.claim(&id.to_string(), Owner::random()).await.is_err() {
                return true;
            }
        }
        false
    })
    .await;
    cluster.nodes()[2].restart().await;
    wait_until(LIMIT, "every node answers again", async || {
        for id in 0..20 {
            if bench.claim(&id.to_string(), Owner::random()).await.is_err() {
                return false;
            }
        }
        true
    })
    .await;
}
