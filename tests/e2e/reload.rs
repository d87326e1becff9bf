//! A changed config takes the place of the one that is served, and no sender notices.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hookgate_testkit::{
    http::{Connection, request},
    nats::{NatsConfig, NatsServer},
    process::wait_until,
    proxy::FaultProxy,
};

use crate::relay::{LIMIT, OPENCLAW, Relay, TO_FILE, create_stream, finished, finished_id, post, to_nats};

/// A config that sends every event to two subjects, which both begin with `name`.
fn twice(server: &str, name: &str) -> String {
    let routes = to_nats(server).replace(
        "to = [{ sink = \"js\", subject = \"openclaw.{attr.job}\" }]",
        &format!(
            "to = [{{ sink = \"js\", subject = \"openclaw.{name}.one\" }}, {{ sink = \"js\", subject = \"openclaw.{name}.two\" }}]"
        ),
    );
    assert!(routes.contains(".two"), "{routes}");
    format!("{OPENCLAW}{routes}")
}

async fn broker() -> NatsServer {
    let server = NatsServer::start(NatsConfig::default()).await;
    create_stream(&server).await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn while_good_and_bad_configs_alternate_no_request_fails_and_none_sees_half_of_one() {
    const SENDERS: usize = 8;
    let server = broker().await;
    let relay = Arc::new(Relay::start(&twice(&server.url(), "a")).await);
    relay.wait_until_ready().await;
    let (over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let (relay, over, sent) = (Arc::clone(&relay), Arc::clone(&over), Arc::clone(&sent));
            tokio::spawn(async move {
                let mut connection = Connection::open(relay.address()).await.expect("it listens");
                while !over.load(Ordering::Relaxed) {
                    let number = sent.fetch_add(1, Ordering::Relaxed);
                    let answer = connection.request(&post(finished(number)), LIMIT).await.expect("an answer");
                    assert_eq!(answer.json()["outcome"], "delivered", "event {number}");
                }
            })
        })
        .collect();
    let mut rounds = 0;
    while sent.load(Ordering::Relaxed) < 3000 || rounds < 30 {
        let round = rounds;
        rounds += 1;
        let name = ["b", "a"][round % 2];
        relay.rewrite(&twice(&server.url(), name));
        let answer = relay.reload().await;
        assert_eq!((answer.status, &answer.json()["changed"]), (200, &true.into()), "{}", answer.text());
        relay.rewrite(&twice(&server.url(), "c").replace("sink = \"js\"", "sink = \"jsx\""));
        let refused = relay.reload().await;
        assert_eq!(refused.status, 422);
        assert!(refused.text().contains("did you mean") || refused.text().contains("known: js"), "{}", refused.text());
    }
    over.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.expect("every one is delivered");
    }
    let mut subjects: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for message in server.wire().await.read_stream("HOOKS").await {
        let id = message.header("ce-id").expect("an id").to_owned();
        assert!(subjects.entry(id).or_default().insert(message.subject.clone()), "there twice");
    }
    let whole = |name: &str| BTreeSet::from(["one", "two"].map(|leg| format!("openclaw.{name}.{leg}")));
    assert!(subjects.values().all(|subjects| *subjects == whole("a") || *subjects == whole("b")), "half a config");
    for name in ["a", "b"] {
        assert!(subjects.values().any(|subjects| *subjects == whole(name)), "{name} was never in use");
    }
    let sent = sent.load(Ordering::Relaxed);
    assert_eq!(subjects.len(), sent);
    assert_eq!(relay.metric("hookgate_config_reloads_total{result=\"ok\"}").await, rounds as f64);
    assert_eq!(relay.metric("hookgate_events_received_total{source=\"openclaw\"}").await, sent as f64);
}

/// As the kubelet does it: the file is a link to a link, and the one in the middle is replaced.
fn swap(dir: &Path, version: &str, config: &str) {
    std::fs::create_dir(dir.join(version)).expect("a writable directory");
    std::fs::write(dir.join(version).join("relay.toml"), config).expect("a writable directory");
    symlink(version, dir.join("..data_tmp")).expect("a writable directory");
    std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).expect("a writable directory");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_map_that_is_swapped_is_in_use_within_five_seconds() {
    let relay = Relay::start(&format!("{OPENCLAW}{TO_FILE}")).await;
    let with_other = OPENCLAW.replace("sources.openclaw", "sources.other").replace("/openclaw/webhook", "/other");
    swap(relay.dir(), "..first", &relay.config(&format!("{OPENCLAW}{TO_FILE}")));
    std::fs::remove_file(relay.dir().join("relay.toml")).expect("it is there");
    symlink("..data/relay.toml", relay.dir().join("relay.toml")).expect("a writable directory");
    swap(relay.dir(), "..second", &relay.config(&format!("{OPENCLAW}{with_other}{TO_FILE}")));
    let begun = Instant::now();
    let to_other = String::from_utf8(post(finished(1))).expect("text").replacen("/openclaw/webhook", "/other", 1);
    wait_until(Duration::from_secs(5), "the new source is there", async || {
        relay.send(to_other.as_bytes()).await.status == 200
    })
    .await;
    eprintln!("in use after {:?}", begun.elapsed());
    assert_eq!(relay.post(finished(2)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_mistakes_changes_nothing_and_is_told_until_it_is_mended() {
    let mut relay = Relay::start(&format!("{OPENCLAW}{TO_FILE}")).await;
    let good = "hookgate_config_last_reload_successful";
    assert_eq!(relay.metric(good).await, 1.0);
    relay.rewrite(&format!("{OPENCLAW}{TO_FILE}[sevrer]\n"));
    relay.hang_up();
    wait_until(LIMIT, "it is told", async || relay.metric(good).await == 0.0).await;
    assert!(
        relay.log().contains("the changed config cannot be used") && relay.log().contains("sevrer"),
        "{}",
        relay.log()
    );
    let (status, ready) = relay.ready().await;
    assert_eq!(status, 200, "what is served is good");
    assert!(ready["config"]["cause"].as_str().is_some_and(|cause| cause.contains("sevrer")), "{ready}");
    assert_eq!(relay.post(finished(1)).await.status, 200);
    relay.rewrite(&format!("{OPENCLAW}{TO_FILE}"));
    relay.hang_up();
    wait_until(LIMIT, "it is mended", async || relay.metric(good).await == 1.0).await;
    assert!(relay.ready().await.1["config"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_taken_away_is_told_to_come_back_at_first() {
    let relay = Relay::start(&format!("{OPENCLAW}{TO_FILE}")).await;
    assert_eq!(relay.post(finished(1)).await.status, 200);
    let other = OPENCLAW.replace("sources.openclaw", "sources.other").replace("/openclaw/webhook", "/other");
    relay.rewrite(&format!("{other}{TO_FILE}"));
    assert_eq!(relay.reload().await.status, 200);
    let answer = relay.post(finished(2)).await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (503, Some("source-removed")));
    assert!(answer.header("retry-after").is_some());
    assert_eq!(relay.send(&request("POST", "/nowhere", &[], b"")).await.status, 404);
    relay.rewrite(&format!("{OPENCLAW}{other}{TO_FILE}"));
    assert_eq!(relay.reload().await.status, 200);
    assert_eq!(relay.post(finished(2)).await.status, 200);
    assert_eq!(relay.post(finished(1)).await.json()["outcome"], "duplicate", "what was accepted is not forgotten");
    assert_eq!(
        relay.metric("hookgate_events_total{source=\"openclaw\",outcome=\"delivered\"}").await,
        2.0,
        "and counted on"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_whose_table_is_the_same_keeps_its_connection_and_a_changed_one_gets_another() {
    let server = broker().await;
    let proxy = FaultProxy::start(format!("127.0.0.1:{}", server.port())).await;
    let tables = format!("{OPENCLAW}{}", to_nats(&format!("nats://{}", proxy.address())));
    // Each worker has one of its own.
    let relay = Relay::start_with(&tables, &[("HOOKGATE_SERVER__THREADS", "2")]).await;
    relay.wait_until_ready().await;
    assert_eq!(proxy.connections_seen(), 2);
    relay.rewrite(&tables.replace("openclaw.{attr.job}", "openclaw.all"));
    assert_eq!(relay.reload().await.json()["changed"], true);
    assert_eq!(relay.post(finished(1)).await.status, 200);
    assert_eq!(proxy.connections_seen(), 2);
    relay.rewrite(&tables.replace("stream = \"HOOKS\"", "stream = \"HOOKS\"\nmax_in_flight = 7"));
    assert_eq!(relay.reload().await.json()["changed"], true);
    wait_until(LIMIT, "the new ones are up and the old ones are closed", async || {
        proxy.connections_seen() == 4 && proxy.connections_live() == 2
    })
    .await;
    assert_eq!(relay.post(finished(2)).await.json()["outcome"], "delivered");
    assert_eq!(server.wire().await.read_stream("HOOKS").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_restart_is_told() {
    let relay = Relay::start(&format!("{OPENCLAW}{TO_FILE}")).await;
    relay.rewrite(&format!("{OPENCLAW}{TO_FILE}[dedup]\nwindow = \"1h\"\n[log]\nlevel = \"debug\"\n"));
    let answer = relay.reload().await;
    assert_eq!(answer.json()["restart_required"], serde_json::json!(["dedup.window", "log.level"]));
    assert_eq!(relay.metric("hookgate_config_restart_required").await, 1.0);
    relay.rewrite(&format!("{OPENCLAW}{}", TO_FILE.replace("dir =", "rotate_at = \"1 MiB\"\ndir =")));
    let answer = relay.reload().await;
    let expected = serde_json::json!(["sinks.events"]);
    assert_eq!(answer.json()["restart_required"], expected, "two cannot have one directory");
    assert_eq!(relay.reload().await.json(), serde_json::json!({ "changed": false, "restart_required": expected }));
    assert_eq!(relay.post(finished(1)).await.status, 200);
}

const SPOOL: &str = "[spool]\ndir = \"spool\"\nmin_free = \"1 MiB\"\n";

async fn held(server: &NatsServer) -> BTreeSet<String> {
    let messages = server.wire().await.read_stream("HOOKS").await;
    messages.iter().map(|message| message.header("ce-id").expect("an id").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_sink_that_is_taken_away_is_still_delivered() {
    let mut server = broker().await;
    let relay = Relay::start(&format!("{OPENCLAW}{SPOOL}{}", to_nats(&server.url()))).await;
    server.kill();
    for number in 0..5 {
        assert_eq!(relay.post(finished(number)).await.status, 202);
    }
    relay.rewrite(&format!("{OPENCLAW}{SPOOL}{TO_FILE}"));
    assert_eq!(relay.reload().await.status, 200);
    assert_eq!(relay.post(finished(5)).await.json()["outcome"], "delivered", "to the new sink");
    assert_eq!(relay.ready().await.1["sinks"].as_array().map(Vec::len), Some(1), "the old one is not shown any more");
    server.restart().await;
    let expected: BTreeSet<_> = (0..5).map(finished_id).collect();
    wait_until(LIMIT, "what waited is delivered", async || held(&server).await == expected).await;
    wait_until(LIMIT, "then the sink is closed", async || relay.log().contains("or was changed, is closed")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_added_has_a_spool_too_and_one_that_is_changed_empties_it() {
    let mut server = broker().await;
    let relay = Relay::start(&format!("{OPENCLAW}{SPOOL}{TO_FILE}")).await;
    server.kill();
    let tables = format!("{OPENCLAW}{SPOOL}{}", to_nats(&server.url()));
    relay.rewrite(&tables);
    assert_eq!(relay.reload().await.status, 200);
    assert_eq!(relay.post(finished(1)).await.status, 202);
    // As if it had been wrong up to now.
    relay.rewrite(&tables.replace("stream = \"HOOKS\"", "stream = \"HOOKS\"\nmax_in_flight = 7"));
    assert_eq!(relay.reload().await.status, 200);
    server.restart().await;
    wait_until(LIMIT, "it is delivered", async || held(&server).await == BTreeSet::from([finished_id(1)])).await;
    assert_eq!(relay.metric("hookgate_spool_appends_total{sink=\"js\",result=\"ok\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_cannot_be_set_up_leaves_no_trace_in_what_comes_after_it() {
    let server = broker().await;
    let relay = Relay::start(&format!("{OPENCLAW}{SPOOL}{TO_FILE}")).await;
    // Two more sinks, the second of which wants what the first one of all has.
    let others = "[sinks.a]\ntype = \"file\"\ndir = \"others\"\n[sinks.b]\ntype = \"file\"\ndir = \"events\"\n";
    relay.rewrite(&format!("{OPENCLAW}{SPOOL}{others}{TO_FILE}"));
    assert_eq!(relay.reload().await.status, 422);
    assert_eq!(relay.post(finished(1)).await.json()["outcome"], "delivered");
    assert_eq!(relay.ready().await.1["sinks"].as_array().map(Vec::len), Some(1), "{}", relay.ready().await.1);
    relay.rewrite(&format!("{OPENCLAW}{SPOOL}{}", to_nats(&server.url())));
    assert_eq!(relay.reload().await.status, 200);
    wait_until(LIMIT, "the new sink is up", async || relay.ready().await.1["sinks"][0]["up"] == true).await;
    assert_eq!(relay.ready().await.1["sinks"][0]["name"], "js");
    assert_eq!(relay.post(finished(2)).await.json()["outcome"], "delivered");
    assert_eq!(relay.metric("hookgate_publish_attempts_total{sink=\"js\",result=\"acked\"}").await, 1.0);
    assert_eq!(held(&server).await, BTreeSet::from([finished_id(2)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_goes_to_where_the_changed_sink_leads() {
    let (mut wrong, right) = (broker().await, broker().await);
    wrong.kill();
    let relay = Relay::start(&format!("{OPENCLAW}{SPOOL}{}", to_nats(&wrong.url()))).await;
    assert_eq!(relay.post(finished(1)).await.status, 202);
    relay.rewrite(&format!("{OPENCLAW}{SPOOL}{}", to_nats(&right.url())));
    assert_eq!(relay.reload().await.status, 200);
    wait_until(LIMIT, "it is delivered there", async || held(&right).await == BTreeSet::from([finished_id(1)])).await;
    wait_until(LIMIT, "the old sink is closed", async || relay.log().contains("or was changed, is closed")).await;
}
