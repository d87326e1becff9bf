//! "What happened to event X" is one lookup.

use hookgate_testkit::{
    nats::{NatsConfig, NatsServer},
    process::wait_until,
};
use serde_json::Value;

use crate::relay::{LIMIT, OPENCLAW, Relay, create_stream, finished, finished_id, run_to_end, to_nats};

/// What the trail has of an event, without the instance.
fn found(relay: &Relay, part: &str) -> Vec<Value> {
    let told = run_to_end(relay.dir(), &["--json", "audit", "find", part], &[]);
    let lines = String::from_utf8(told.stdout).expect("UTF-8");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_of_an_event_is_found_by_its_id_with_its_place_in_the_broker() {
    let mut server = NatsServer::start(NatsConfig::default()).await;
    create_stream(&server).await;
    let tables = format!(
        "{OPENCLAW}[audit]\ndir = \"trail\"\n[spool]\ndir = \"spool\"\nmin_free = \"1 MiB\"\n{}",
        to_nats(&server.url())
    );
    let relay = Relay::start_with(&tables, &[("HOOKGATE_SERVER__REPLY_DEADLINE", "1s")]).await;
    relay.wait_until_ready().await;
    assert_eq!(relay.post(finished(1)).await.json()["outcome"], "delivered");
    assert_eq!(relay.post(finished(1)).await.json()["outcome"], "duplicate");
    server.kill();
    assert_eq!(relay.post(finished(2)).await.json()["outcome"], "spooled");
    server.restart().await;
    wait_until(LIMIT, "the spool is empty", async || relay.metric("hookgate_spool_events{sink=\"js\"}").await == 0.0)
        .await;
    let large = finished(3).replace("\"s\"", &format!("{:?}", "x".repeat(2 << 20)));
    assert_eq!(relay.post(large).await.json()["outcome"], "spooled", "as a dead letter");

    wait_until(LIMIT, "the last line is written", async || found(&relay, &finished_id(3)).len() == 2).await;
    let steps = |number| {
        let told = |entry: &Value| {
            let what = [&entry["outcome"], &entry["reason"], &entry["place"]].into_iter().find_map(Value::as_str);
            format!("{} {}", entry["step"].as_str().expect("a step"), what.expect("what it came to"))
        };
        found(&relay, &finished_id(number)).iter().map(told).collect::<Vec<_>>()
    };
    assert_eq!(steps(1), ["stored HOOKS", "answered delivered", "answered duplicate"]);
    assert_eq!(steps(2), ["answered spooled", "stored HOOKS"]);
    assert_eq!(steps(3), ["dead_lettered too_large", "answered spooled"]);
    let messages = server.wire().await.read_stream("HOOKS").await;
    for (number, spooled) in [(1, false), (2, true)] {
        let entries = found(&relay, &finished_id(number));
        let stored = entries.iter().find(|entry| entry["step"] == "stored").expect("it is stored");
        let message = messages.iter().find(|message| message.sequence == stored["offset"]).expect("it is there");
        assert_eq!(message.header("ce-id"), Some(&*finished_id(number)), "and it is this one");
        assert_eq!((&stored["target"], &stored["spooled"]), (&Value::from(&*message.subject), &Value::from(spooled)));
    }
    let told = run_to_end(relay.dir(), &["audit", "find", &finished_id(1)], &[]);
    let told = String::from_utf8(told.stdout).expect("UTF-8");
    assert!(told.lines().next().is_some_and(|line| line.contains("js has it at HOOKS:1")), "{told}");
    let nothing = run_to_end(relay.dir(), &["audit", "find", "no such event"], &[]);
    assert_eq!(nothing.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trail_that_cannot_be_written_is_told_at_the_start() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("trail"), "a file").expect("writable");
    let config = format!("{OPENCLAW}[audit]\ndir = \"trail\"\n{}", crate::relay::TO_FILE);
    std::fs::write(dir.path().join("relay.toml"), config).expect("writable");
    let ports = [("HOOKGATE_SERVER__LISTEN", "127.0.0.1:0"), ("HOOKGATE_ADMIN__LISTEN", "127.0.0.1:0")];
    let ended = run_to_end(dir.path(), &["run"], &ports);
    let told = String::from_utf8(ended.stderr).expect("UTF-8");
    assert_eq!(ended.status.code(), Some(1), "{told}");
    assert!(told.contains("audit.dir"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_have_lines_of_their_own_where_the_config_says_so_and_no_more_than_it_says() {
    let tables = format!("{OPENCLAW}[log]\nevents = \"info\"\nevents_max = \"2/h\"\n{}", crate::relay::TO_FILE);
    let relay = Relay::start(&tables).await;
    for number in 0..5 {
        assert_eq!(relay.post(finished(number)).await.status, 200);
    }
    let lines = || relay.log().lines().filter(|line| line.contains("\"message\":\"event\"")).count();
    wait_until(LIMIT, "two are told of", async || lines() == 2).await;
    assert!(relay.log().contains("\"outcome\":\"delivered\""));
}
