//! What the port promises, kept by real servers in every form that they come in.

mod common;

use std::time::Duration;

use hookgate_core::{
    dedup::{ClaimStore, Held, Holder, Owner},
    secret::literal,
};
use hookgate_redis::inspect;
use hookgate_testkit::{
    process::wait_until,
    redis::{MASTER_NAME, RedisCluster, RedisConfig, RedisSentinel, RedisServer, RedisTls},
    tls::Pki,
};

use common::{Bench, LEASE, LIMIT, WINDOW, body, config, key};

/// What a user of ours may do in Redis; the documentation says so too.
const RIGHTS: &str = "~hookgate:* +set +get +del +eval +evalsha +script|load +ping";

/// Everything that the port promises, on `store`.
async fn assert_claims_work(store: &dyn ClaimStore) {
    // Enough that each node of a cluster has some.
    for number in 0..30 {
        let key = key(&number.to_string());
        let (one, other) = (Owner::random(), Owner::random());
        let claim = async |owner| store.claim(key, owner, LEASE).await.expect("an answer");
        let holder = async |owner| match claim(owner).await {
            Held::ByOther { holder, lease } => {
                assert_eq!(lease, LEASE, "it is told for how long");
                holder
            }
            found => panic!("{found:?}"),
        };
        assert_eq!(claim(one).await, Held::ByUs);
        assert_eq!(claim(one).await, Held::ByUs, "claiming again is the same claim");
        let of_one = holder(other).await;
        store.release(key, other).await.expect("done");
        assert_eq!(holder(other).await, of_one, "nobody releases another's");
        store.release(key, one).await.expect("done");
        assert_eq!(claim(other).await, Held::ByUs, "released");

        let take_over = async |from: &Holder| store.take_over(key, from, one, LEASE).await.expect("an answer");
        assert!(!take_over(&of_one).await, "it is not the claim that was seen");
        let of_other = holder(one).await;
        assert!(take_over(&of_other).await);
        assert!(take_over(&of_other).await, "a take-over whose answer was lost is made again");
        assert_eq!(claim(one).await, Held::ByUs);
        store.release(key, other).await.expect("done");
        let of_one = holder(other).await;

        store.commit(&[(key, body())], WINDOW).await.expect("done");
        assert_eq!(claim(one).await, Held::Accepted(body()));
        store.release(key, one).await.expect("done");
        assert!(!take_over(&of_one).await);
        assert_eq!(claim(other).await, Held::Accepted(body()), "what is accepted stays so");
    }
    let many: Vec<_> = (0..300).map(|number| (key(&format!("many {number}")), body())).collect();
    store.commit(&many, WINDOW).await.expect("done");
    for (key, _) in many {
        assert_eq!(store.claim(key, Owner::random(), LEASE).await.expect("an answer"), Held::Accepted(body()));
    }
}

#[tokio::test]
async fn a_server_alone_keeps_the_promise() {
    let server = RedisServer::start(&RedisConfig::default()).await;
    let bench = Bench::start(&format!("url = '{}'", server.url())).await;
    assert_claims_work(&bench.store).await;
    assert_eq!(bench.told.lines(), ["dedup_store_up"]);
}

#[tokio::test]
async fn every_key_has_an_end_and_one_size() {
    let server = RedisServer::start(&RedisConfig::default()).await;
    let bench = Bench::start(&format!("url = '{}'\nprefix = 'relay-7:'", server.url())).await;
    assert_claims_work(&bench.store).await;
    bench.claim(&"x".repeat(100_000), Owner::random()).await.expect("an answer");
    let mut wire = server.wire().await;
    let keys = wire.keys().await;
    assert_eq!(keys.len(), 331);
    for key in keys {
        assert!(key.starts_with("relay-7:") && key.len() == "relay-7:".len() + 22, "{key}");
        let end = wire.integer(&["PTTL", &key]).await;
        assert!(end > 0 && end <= i64::try_from(WINDOW.as_millis()).expect("small"), "{key} ends in {end} ms");
    }
}

#[tokio::test]
async fn a_claim_ends_with_its_lease_and_an_accepted_event_with_its_window() {
    let server = RedisServer::start(&RedisConfig::default()).await;
    let bench = Bench::start(&format!("url = '{}'", server.url())).await;
    let short = Duration::from_millis(50);
    assert_eq!(bench.store.claim(key("1"), Owner::random(), short).await.expect("an answer"), Held::ByUs);
    bench.store.commit(&[(key("2"), body())], short).await.expect("done");
    for id in ["1", "2"] {
        wait_until(LIMIT, "it is forgotten", async || {
            bench.claim(id, Owner::random()).await.expect("an answer") == Held::ByUs
        })
        .await;
    }
}

#[tokio::test]
async fn of_many_at_once_exactly_one_gets_the_claim() {
    let server = RedisServer::start(&RedisConfig::default()).await;
    let one = Bench::start(&format!("url = '{}'", server.url())).await;
    let other = Bench::start(&format!("url = '{}'", server.url())).await;
    for round in 0..20 {
        let key = key(&round.to_string());
        let claims = (0..20).map(|number| {
            let store = if number % 2 == 0 { &one.store } else { &other.store };
            store.claim(key, Owner::random(), LEASE)
        });
        let found = futures_util::future::join_all(claims).await;
        let ours = found.iter().filter(|held| matches!(held, Ok(Held::ByUs))).count();
        assert_eq!(ours, 1, "{found:?}");
    }
}

#[tokio::test]
async fn what_another_version_wrote_is_never_taken_for_accepted() {
    let server = RedisServer::start(&RedisConfig::default()).await;
    let bench = Bench::start(&format!("url = '{}'", server.url())).await;
    bench.store.commit(&[(key("1"), body())], WINDOW).await.expect("done");
    let mut wire = server.wire().await;
    let name = wire.keys().await.remove(0);
    wire.done(&["SET", &name, "2X:some later form", "PX", "60000"]).await;
    let found = bench.claim("1", Owner::random()).await.expect("an answer");
    let Held::ByOther { holder, .. } = found else { panic!("{found:?}") };
    let owner = Owner::random();
    assert!(bench.store.take_over(key("1"), &holder, owner, LEASE).await.expect("an answer"));
    assert_eq!(bench.claim("1", owner).await.expect("an answer"), Held::ByUs);
}

#[tokio::test]
async fn a_cluster_keeps_the_promise_on_every_node() {
    let cluster = RedisCluster::start().await;
    let bench = Bench::start(&format!("url = '{}'\ntopology = 'cluster'", cluster.urls())).await;
    bench.wait_until_up().await;
    assert_claims_work(&bench.store).await;
    for keys in cluster.keys().await {
        assert!(!keys.is_empty(), "each node has its share");
    }
}

#[tokio::test]
async fn the_master_behind_a_sentinel_keeps_the_promise_and_so_does_the_next() {
    let mut sentinel = RedisSentinel::start().await;
    let toml = format!("url = '{}'\ntopology = 'sentinel'\nmaster = '{MASTER_NAME}'", sentinel.url());
    let bench = Bench::start(&toml).await;
    bench.wait_until_up().await;
    assert_claims_work(&bench.store).await;
    sentinel.fail_over().await;
    bench.wait_until_up().await;
    assert!(bench.claim("new", Owner::random()).await.is_ok());
    let known = sentinel.first_replica().wire().await.keys().await;
    // What had been claimed before may be there or not: replication does not wait.
    assert!(known.len() >= 2, "the new claims are on the new master: {known:?}");
}

#[tokio::test]
async fn tls_with_a_certificate_of_our_own_keeps_the_promise() {
    let pki = Pki::new();
    let path = pki.dir().display();
    let client_ca = Some(pki.path("ca.pem"));
    let tls = Some(RedisTls { cert: pki.path("server.pem"), key: pki.path("server.key"), client_ca });
    let server = RedisServer::start(&RedisConfig { tls, ..RedisConfig::default() }).await;
    let good = format!(
        "url = '{}'\ntls = {{ ca = '{path}/ca.pem', cert = '{path}/client.pem', key = '{path}/client.key' }}",
        server.url()
    );
    let bench = Bench::start(&good).await;
    bench.wait_until_up().await;
    assert_claims_work(&bench.store).await;
    for (wrong, said) in [
        (format!("url = '{}'", server.url()), "certificate"),
        (format!("url = '{}'\ntls = {{ ca = '{path}/ca.pem' }}", server.url()), ""),
    ] {
        let problem = inspect(&config(&wrong), &mut |reference| literal(reference)).await;
        let problem = problem.expect_err("it is not let in");
        assert!(problem.contains(said) && problem.contains(&server.address()), "{problem}");
    }
}

#[tokio::test]
async fn a_user_with_few_rights_suffices_and_one_with_fewer_is_told_what_is_missing() {
    let extra = format!("user relay on >pa:ss {RIGHTS}\nuser weak on >weak ~hookgate:* +set +get +ping\n");
    let password = Some("of the default user".replace(' ', "-"));
    let server = RedisServer::start(&RedisConfig { password, extra, ..RedisConfig::default() }).await;
    let bench = Bench::start(&format!("url = '{}'\nuser = 'relay'\npassword = 'pa:ss'", server.url())).await;
    assert_claims_work(&bench.store).await;
    let in_url = Bench::start(&format!("url = 'redis://relay:pa%3Ass@{}'", server.address())).await;
    assert!(in_url.claim("new", Owner::random()).await.is_ok());
    let inspect = async |login: &str| {
        let config = config(&format!("url = '{}'\n{login}", server.url()));
        inspect(&config, &mut |reference| literal(reference)).await
    };
    assert_eq!(inspect("user = 'relay'\npassword = 'pa:ss'").await, Ok(Vec::new()));
    for (login, said) in [
        ("user = 'weak'\npassword = 'weak'", "evalsha"),
        ("user = 'relay'\npassword = 'hunter2'", "authentication failed"),
        ("", "NOAUTH"),
    ] {
        let problem = inspect(login).await.expect_err("it is not let in");
        assert!(problem.contains(said) && !problem.contains("hunter2"), "{login}: {problem}");
    }
}

#[tokio::test]
async fn a_policy_that_forgets_events_is_warned_of() {
    for (policy, limit, warned) in [
        ("noeviction", "100mb", false),
        ("allkeys-lru", "0", false),
        ("allkeys-lru", "100mb", true),
        ("volatile-ttl", "100mb", true),
    ] {
        let extra = format!("maxmemory-policy {policy}\nmaxmemory {limit}\n");
        let server = RedisServer::start(&RedisConfig { extra, ..RedisConfig::default() }).await;
        let config = config(&format!("url = '{}'", server.url()));
        let warnings = inspect(&config, &mut |reference| literal(reference)).await;
        let warnings = warnings.expect("it can be used");
        assert_eq!(warnings.iter().any(|warning| warning.contains(policy)), warned, "{policy} {limit}: {warnings:?}");
        let bench = Bench::start(&format!("url = '{}'", server.url())).await;
        wait_until(LIMIT, "a start says it too", async || {
            bench.told.count("dedup_store_up") == 1 && bench.told.count("dedup_store_notice") == usize::from(warned)
        })
        .await;
    }
}
