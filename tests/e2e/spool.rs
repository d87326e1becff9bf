//! What the spool is for: a sender that never repeats loses nothing to a broker that is down, nor to a crash of ours while it is.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use hookgate_testkit::{
    http::Connection,
    nats::{NatsConfig, NatsServer},
    process::wait_until,
};

use crate::relay::{LIMIT, OPENCLAW, Relay, TO_FILE, create_stream, finished, finished_id, post, run_to_end, to_nats};

/// As long as it takes on a busy machine to publish what waits.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);

const SPOOL: &str = "[spool]\ndir = \"spool\"\nmin_free = \"1 MiB\"\ndrain_rate = 5000\n";

fn tables(server: &NatsServer, spool: &str) -> String {
    format!("{OPENCLAW}{spool}{}", to_nats(&server.url()))
}

/// A deadline that tests need not wait long for.
const SOON: &[(&str, &str)] = &[("HOOKGATE_SERVER__REPLY_DEADLINE", "1s")];

async fn dead_broker() -> NatsServer {
    let mut server = NatsServer::start(NatsConfig::default()).await;
    create_stream(&server).await;
    server.kill();
    server
}

/// How often each event is in the stream.
async fn copies(server: &NatsServer) -> BTreeMap<String, usize> {
    let mut copies = BTreeMap::new();
    for message in server.wire().await.read_stream("HOOKS").await {
        *copies.entry(message.header("ce-id").expect("an id").to_owned()).or_default() += 1;
    }
    copies
}

async fn wait_until_drained(relay: &Relay) {
    wait_until(DRAINED_WITHIN, "the spool is empty", async || {
        relay.metric("hookgate_spool_events{sink=\"js\"}").await == 0.0
    })
    .await;
}

fn each_once(numbers: impl IntoIterator<Item = usize>) -> BTreeMap<String, usize> {
    numbers.into_iter().map(|number| (finished_id(number), 1)).collect()
}

/// Its memory, in bytes.
async fn resident_bytes(relay: &Relay) -> f64 {
    relay.metric("process_resident_memory_bytes").await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_events_to_a_dead_broker_are_all_accepted_and_all_delivered_once_it_is_back() {
    const SENDERS: usize = 100;
    const EVENTS: usize = 10_000;
    let mut server = dead_broker().await;
    let relay = Arc::new(Relay::start_with(&tables(&server, SPOOL), SOON).await);
    relay.wait_until_ready().await;
    assert_eq!(relay.ready().await.1["sinks"][0]["up"], false, "ready without its broker");
    let before = resident_bytes(&relay).await;
    let senders = (0..SENDERS).map(|sender| {
        let relay = Arc::clone(&relay);
        tokio::spawn(async move {
            let mut connection = Connection::open(relay.address()).await.expect("it listens");
            for number in (sender..EVENTS).step_by(SENDERS) {
                let begun = Instant::now();
                let answer = connection.request(&post(finished(number)), LIMIT).await.expect("an answer");
                assert_eq!(
                    (answer.status, answer.json()["outcome"].as_str()),
                    (202, Some("spooled")),
                    "event {number}"
                );
                assert!(begun.elapsed() < Duration::from_secs(4), "event {number}: {:?}", begun.elapsed());
            }
        })
    });
    for sender in join_all(senders.collect::<Vec<_>>()).await {
        sender.expect("every one is accepted");
    }
    assert_eq!(relay.metric("hookgate_spool_appends_total{sink=\"js\",result=\"ok\"}").await, EVENTS as f64);
    assert_eq!(relay.metric("hookgate_sink_circuit_open{sink=\"js\"}").await, 1.0);
    let grown = resident_bytes(&relay).await - before;
    assert!(grown < 64.0 * 1024.0 * 1024.0, "{grown} bytes more than before");
    server.restart().await;
    wait_until_drained(&relay).await;
    assert_eq!(copies(&server).await, each_once(0..EVENTS));
    assert_eq!(relay.post(finished(EVENTS)).await.json()["outcome"], "delivered", "and it goes on without the spool");
    assert_eq!(relay.post(finished(1)).await.json()["outcome"], "duplicate");
    assert_eq!(relay.metric("hookgate_sink_circuit_open{sink=\"js\"}").await, 0.0);
    wait_until(LIMIT, "its space is free", async || relay.metric("hookgate_spool_bytes{sink=\"js\"}").await == 0.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_the_broker_is_down_it_delivers_everything_that_it_accepted() {
    let mut server = dead_broker().await;
    let mut relay = Relay::start_with(&tables(&server, SPOOL), SOON).await;
    let mut number = 0;
    for _ in 0..3 {
        let posts = join_all((number..number + 50).map(|number| relay.post(finished(number)))).await;
        assert!(posts.iter().all(|answer| answer.status == 202));
        number += 50;
        relay.kill();
        relay.start_again(SOON).await;
    }
    assert!(relay.log().contains("the spool was read after a crash: 50 records wait"), "{}", relay.log());
    server.restart().await;
    wait_until_drained(&relay).await;
    assert_eq!(copies(&server).await, each_once(0..number));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stands_still_ends_in_a_202_within_the_deadline() {
    let mut server = NatsServer::start(NatsConfig::default()).await;
    create_stream(&server).await;
    let relay = Relay::start_with(&tables(&server, SPOOL), SOON).await;
    wait_until(LIMIT, "it is connected", async || relay.ready().await.1["sinks"][0]["up"] == true).await;
    assert_eq!(relay.post(finished(0)).await.status, 200);
    server.pause();
    let begun = Instant::now();
    assert_eq!(relay.post(finished(1)).await.json()["outcome"], "spooled");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    server.resume();
    wait_until_drained(&relay).await;
    assert_eq!(copies(&server).await, each_once(0..2), "the attempt that was given up has the same id");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_can_answer_from_the_spool() {
    let server = NatsServer::start(NatsConfig::default()).await;
    create_stream(&server).await;
    let relay = Relay::start(&tables(&server, SPOOL).replace("[[routes]]\n", "[[routes]]\nack = \"spool\"\n")).await;
    for number in 0..20 {
        let answer = relay.post(finished(number)).await;
        assert_eq!((answer.status, answer.json()["outcome"].as_str()), (202, Some("spooled")));
    }
    wait_until_drained(&relay).await;
    assert_eq!(copies(&server).await, each_once(0..20));
    let spooled = r#"hookgate_event_end_to_end_seconds_count{source="openclaw",path="spool"}"#;
    assert_eq!(relay.metric(spooled).await, 20.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_will_never_take_is_a_dead_letter_and_holds_up_nothing() {
    let server = NatsServer::start(NatsConfig::default()).await;
    create_stream(&server).await;
    let large = |number| finished(number).replace("\"s\"", &format!("{:?}", "x".repeat(2 << 20)));
    let relay = Relay::start(&tables(&server, SPOOL)).await;
    wait_until(LIMIT, "it is connected", async || relay.ready().await.1["sinks"][0]["up"] == true).await;
    let answer = relay.post(large(1)).await;
    assert_eq!((answer.status, answer.json()["outcome"].as_str()), (202, Some("spooled")));
    assert_eq!(relay.post(finished(2)).await.status, 200);
    assert_eq!(relay.metric("hookgate_dead_letters{sink=\"js\"}").await, 1.0);
    assert_eq!(relay.metric("hookgate_dead_letters_total{sink=\"js\",reason=\"too_large\"}").await, 1.0);
    drop(relay);

    // The same, when it comes to light only after the answer.
    let relay = Relay::start(&tables(&server, SPOOL).replace("[[routes]]\n", "[[routes]]\nack = \"spool\"\n")).await;
    assert_eq!(relay.post(large(3)).await.status, 202);
    assert_eq!(relay.post(finished(4)).await.status, 202);
    wait_until_drained(&relay).await;
    assert_eq!(copies(&server).await, each_once([2, 4]));
    assert_eq!(relay.metric("hookgate_dead_letters{sink=\"js\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_full_is_told_to_the_sender_and_keeps_what_it_has() {
    let mut server = dead_broker().await;
    let small = SPOOL.replace("min_free", "max_size = \"32 KiB\"\nmin_free");
    let relay = Relay::start_with(&tables(&server, &small), SOON).await;
    let mut accepted = Vec::new();
    let refused = loop {
        let number = accepted.len();
        let answer = relay.post(finished(number)).await;
        match answer.status {
            202 => accepted.push(number),
            _ => break answer,
        }
    };
    assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("destination-unavailable")));
    assert!(refused.header("retry-after").is_some());
    assert!(accepted.len() > 10, "{accepted:?}");
    assert!(relay.metric("hookgate_spool_appends_total{sink=\"js\",result=\"full\"}").await >= 1.0);
    assert!(relay.ready().await.1["spool"]["cause"].as_str().is_some_and(|cause| cause.contains("max_size")));
    server.restart().await;
    wait_until_drained(&relay).await;
    assert_eq!(copies(&server).await, each_once(accepted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_leaves_a_spool_that_the_next_start_knows_to_be_whole() {
    let server = dead_broker().await;
    let mut relay = Relay::start_with(&tables(&server, SPOOL), SOON).await;
    assert_eq!(relay.post(finished(1)).await.status, 202);
    relay.terminate();
    assert!(relay.wait().await.success());
    relay.start_again(SOON).await;
    assert!(relay.log().contains("the spool was read after a clean stop: 1 records wait"), "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_does_not_touch_the_spool_of_the_first() {
    let server = dead_broker().await;
    let relay = Relay::start_with(&tables(&server, SPOOL), SOON).await;
    let ports = [("HOOKGATE_SERVER__LISTEN", "127.0.0.1:0"), ("HOOKGATE_ADMIN__LISTEN", "127.0.0.1:0")];
    let second = run_to_end(relay.dir(), &["run"], &ports);
    let told = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && told.contains("another hookgate uses this directory"), "{told}");
}

/// Runs `hookgate` with these arguments beside `relay`, and returns what it prints.
fn told(relay: &Relay, arguments: &[&str]) -> String {
    let ended = run_to_end(relay.dir(), arguments, &[]);
    let (out, error) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "{arguments:?}: {error}");
    out.into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_replays_and_drops_dead_letters_while_hookgate_runs_and_while_it_does_not() {
    let server = NatsServer::start(NatsConfig::default()).await;
    create_stream(&server).await;
    let large = |number| finished(number).replace("\"s\"", &format!("{:?}", "x".repeat(2 << 20)));
    let mut relay = Relay::start(&tables(&server, SPOOL)).await;
    wait_until(LIMIT, "it is connected", async || relay.ready().await.1["sinks"][0]["up"] == true).await;
    for number in 1..=3 {
        assert_eq!(relay.post(large(number)).await.status, 202);
    }
    let listed = told(&relay, &["dead", "list"]);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(
        listed.starts_with("js 1 ") && listed.contains(&finished_id(1)) && listed.contains("too_large"),
        "{listed}"
    );
    let shown: serde_json::Value = serde_json::from_str(&told(&relay, &["dead", "show", "js", "2"])).expect("JSON");
    assert_eq!(shown["message"]["body"], large(2), "byte for byte");
    assert!(told(&relay, &["dead", "drop", "js", "3"]).starts_with("dropped js 3"));
    assert_eq!(told(&relay, &["dead", "export"]).lines().count(), 2);
    // The broker still does not take it: it comes back.
    assert!(told(&relay, &["dead", "replay", "js", "1"]).starts_with("replayed js 1"));
    wait_until(LIMIT, "it is dead again", async || told(&relay, &["dead", "list"]).contains("js 4 ")).await;
    relay.terminate();
    assert!(relay.wait().await.success());
    assert_eq!(told(&relay, &["dead", "list"]).lines().count(), 2);
    assert!(told(&relay, &["dead", "drop", "js", "--all"]).lines().count() == 2);
    assert_eq!(told(&relay, &["dead", "list"]), "");
    let ended = run_to_end(relay.dir(), &["dead", "show", "js", "2"], &[]);
    assert!(String::from_utf8_lossy(&ended.stderr).contains("there is no message 2 for js"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_what_waits() {
    let mut server = dead_broker().await;
    let mut relay = Relay::start_with(&tables(&server, SPOOL), SOON).await;
    for number in 0..20 {
        assert_eq!(relay.post(finished(number)).await.status, 202);
    }
    assert_eq!(told(&relay, &["spool", "list"]).lines().count(), 20);
    assert_eq!(told(&relay, &["spool", "list", "--limit", "3", "--json"]).lines().count(), 3);
    assert!(told(&relay, &["spool", "drop", "js", "7"]).starts_with("dropped js 7"));
    relay.kill();
    assert_eq!(told(&relay, &["spool", "list"]).lines().count(), 19);
    assert_eq!(told(&relay, &["spool", "replay", "js", "--all"]).lines().count(), 19);
    relay.start_again(SOON).await;
    server.restart().await;
    wait_until_drained(&relay).await;
    assert_eq!(copies(&server).await, each_once((0..20).filter(|number| *number != 6)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_sink_that_left_the_config_is_told_listed_and_kept() {
    let server = dead_broker().await;
    let mut relay = Relay::start_with(&tables(&server, SPOOL), SOON).await;
    assert_eq!(relay.post(finished(1)).await.status, 202);
    relay.kill();
    relay.rewrite(&format!("{OPENCLAW}{SPOOL}{TO_FILE}"));
    assert!(told(&relay, &["spool", "list"]).starts_with("js 1 "));
    assert!(told(&relay, &["spool", "export"]).contains(&finished_id(1)));
    assert!(
        told(&relay, &["check"])
            .contains("WARNING spool: it holds messages for a sink \"js\" that is not in the config")
    );
    relay.start_again(SOON).await;
    assert_eq!(
        told(&relay, &["spool", "list"]),
        "",
        "the process that runs has no such sink, which is no reason to fail"
    );
    relay.kill();
    assert!(told(&relay, &["spool", "drop", "js", "--all"]).starts_with("dropped js 1"));
}
