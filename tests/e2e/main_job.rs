//! A webhook as OpenClaw really sent it reaches a file and JetStream, exactly as it was sent, once.

use base64::{Engine, prelude::BASE64_STANDARD};
use hookgate_testkit::{nats::NatsServer, openclaw::captures};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::relay::{OPENCLAW, PATH, Relay, TO_FILE, TOKEN, create_stream, finished, finished_id, to_nats};

/// Sends every capture twice and returns what the answers said, with the hash of each body.
async fn send_all_twice(relay: &Relay) -> Vec<(String, Vec<u8>)> {
    let mut sent: Vec<(String, Vec<u8>)> = Vec::new();
    for capture in captures() {
        let request = capture.request_to(PATH, "hookgate.test", TOKEN);
        let first = relay.send(&request).await;
        assert_eq!(first.status, 200, "{}: {}", capture.name, first.text());
        let id = first.json()["event_id"].as_str().expect("an id").to_owned();
        // Some captures are of one event; they are one here, too.
        let known = sent.iter().any(|(seen, _)| *seen == id);
        assert_eq!(first.json()["outcome"], if known { "duplicate" } else { "delivered" }, "{}", capture.name);
        let again = relay.send(&request).await;
        assert_eq!((again.status, again.json()["outcome"].as_str()), (200, Some("duplicate")), "{}", capture.name);
        if !known {
            sent.push((id, Sha256::digest(&capture.body).to_vec()));
        }
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn every_captured_request_arrives_in_the_file_once_and_byte_for_byte() {
    let relay = Relay::start(&format!("{OPENCLAW}{TO_FILE}")).await;
    let sent = send_all_twice(&relay).await;
    let body = |line: &Value| match (line["body"].as_str(), line["body_base64"].as_str()) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(encoded)) => BASE64_STANDARD.decode(encoded).expect("base64"),
        other => panic!("one of the two: {other:?}"),
    };
    let stored = relay.stored();
    let stored: Vec<_> = stored
        .iter()
        .map(|line| (line["id"].as_str().expect("an id").to_owned(), Sha256::digest(body(line)).to_vec()))
        .collect();
    assert_eq!(stored, sent);
    assert!(sent.len() > 25, "the captures are all there: {}", sent.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_captured_request_arrives_in_jetstream_once_and_byte_for_byte() {
    let server = NatsServer::start(Default::default()).await;
    create_stream(&server).await;
    // All on one thread, where most tests have one for each core.
    let threads = [("HOOKGATE_SERVER__THREADS", "1")];
    let relay = Relay::start_with(&format!("{OPENCLAW}{}", to_nats(&server.url())), &threads).await;
    relay.wait_until_ready().await;
    let sent = send_all_twice(&relay).await;
    let messages = server.wire().await.read_stream("HOOKS").await;
    let stored: Vec<_> = (messages.iter())
        .map(|message| (message.header("ce-id").expect("an id").to_owned(), Sha256::digest(&message.payload).to_vec()))
        .collect();
    assert_eq!(stored, sent);
    for message in &messages {
        let id = message.header("ce-id").expect("an id");
        assert_eq!(message.header("Nats-Msg-Id"), Some(format!("openclaw:{id}").as_str()));
        assert_eq!(message.header("ce-source"), Some("openclaw"));
        assert_eq!(message.header("content-type"), Some("application/json"));
        assert!(message.header("ce-type").is_some_and(|kind| kind.starts_with("openclaw.")));
        let job = message.header("hookgate-attr-job").expect("a job");
        assert_eq!(message.subject, format!("openclaw.{job}"));
        assert!(
            message
                .headers
                .iter()
                .all(|(name, value)| !name.eq_ignore_ascii_case("authorization") && !value.contains(TOKEN))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_sixteen_mebibytes_arrives_whole() {
    let relay = Relay::start(&format!("{OPENCLAW}{TO_FILE}")).await;
    let head = r#"{"jobId":"j","action":"finished","runAtMs":1,"summary":""#;
    let body = format!("{head}{}\"}}", "x".repeat((16 << 20) - head.len() - 2));
    assert_eq!(body.len(), 16 << 20);
    assert_eq!(relay.post(&body).await.status, 200);
    assert!(relay.stored()[0]["body"] == body, "the same bytes");
    assert_eq!(relay.post(body + " ").await.status, 413, "one more is too many");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_goes_to_every_destination_of_every_route_that_holds() {
    let server = NatsServer::start(Default::default()).await;
    create_stream(&server).await;
    let routes = format!(
        r#"
        [sinks.events]
        type = "file"
        dir = "events"
        [sinks.js]
        type = "nats"
        servers = ["{}"]
        stream = "HOOKS"
        [[routes]]
        when = 'source == "openclaw"'
        to = [{{ sink = "events" }}]
        [[routes]]
        name = "failed"
        when = 'type == "openclaw.run.finished" && attr.status == "error"'
        to = [{{ sink = "js", subject = "openclaw.failed" }}, {{ sink = "js", subject = "openclaw.job.{{attr.job}}" }}]
        "#,
        server.url()
    );
    let relay = Relay::start(&format!("{OPENCLAW}{routes}")).await;
    relay.wait_until_ready().await;
    let event =
        |status: &str, job: &str| format!(r#"{{"jobId":"{job}","action":"finished","runAtMs":1,"status":"{status}"}}"#);
    assert_eq!(relay.post(event("ok", "a")).await.status, 200);
    assert_eq!(relay.post(event("error", "b.c *>")).await.status, 200);
    assert_eq!(relay.stored().len(), 2);
    let messages = server.wire().await.read_stream("HOOKS").await;
    let mut subjects: Vec<&str> = messages.iter().map(|message| message.subject.as_str()).collect();
    subjects.sort_unstable();
    assert_eq!(subjects, ["openclaw.failed", "openclaw.job.b%2Ec%20%2A%3E"], "no sender adds a token or a wildcard");
    assert_eq!(messages[0].header("hookgate-route"), Some("failed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_no_route_takes_is_treated_as_the_config_says() {
    let none = "[sinks.events]\ntype = \"file\"\ndir = \"events\"\n[[routes]]\nwhen = 'type == \"other\"'\nto = [{ sink = \"events\" }]\n";
    let body = finished(1);
    let relay = Relay::start(&format!("{OPENCLAW}{none}")).await;
    assert_eq!((relay.post(&body).await.status, relay.stored().len()), (422, 0));
    let relay = Relay::start(&format!("{OPENCLAW}{none}[unrouted]\naction = \"drop\"\n")).await;
    let dropped = relay.post(&body).await;
    assert_eq!((dropped.status, dropped.json()["outcome"].as_str(), relay.stored().len()), (200, Some("dropped"), 0));
    let relay =
        Relay::start(&format!("{OPENCLAW}{none}[unrouted]\naction = {{ to = [{{ sink = \"events\" }}] }}\n")).await;
    assert_eq!((relay.post(&body).await.status, relay.stored().len()), (200, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_books_balance_after_events_of_every_kind() {
    let relay = Relay::start(&format!("{OPENCLAW}{TO_FILE}")).await;
    let accepted = [finished(1), finished(1), "not json".to_owned(), "{}".to_owned()];
    for body in &accepted {
        assert_eq!(relay.post(body).await.status, 200);
    }
    assert_eq!(relay.post(r#"{"jobId":"a","jobId":"b"}"#).await.status, 400);
    let metrics = relay.metrics().await;
    let sum =
        |name: &str| metrics.iter().filter(|(series, _)| series.starts_with(name)).map(|(_, value)| value).sum::<f64>();
    assert_eq!(sum("hookgate_events_received_total"), 5.0);
    assert_eq!(sum("hookgate_events_total") + sum("hookgate_events_in_flight"), 5.0, "received = outcomes + in flight");
    assert_eq!(metrics[r#"hookgate_events_total{source="openclaw",outcome="delivered"}"#], 3.0);
    assert_eq!(metrics[r#"hookgate_events_total{source="openclaw",outcome="duplicate"}"#], 1.0);
    assert_eq!(metrics[r#"hookgate_events_total{source="openclaw",outcome="malformed"}"#], 1.0);
    assert_eq!(metrics["hookgate_dedup_entries"], 3.0);
    assert_eq!(metrics[r#"hookgate_publish_attempts_total{sink="events",result="acked"}"#], 3.0);
    assert_eq!(metrics[r#"hookgate_http_requests_total{source="openclaw",code="200"}"#], 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_can_be_watched_on_standard_output() {
    let tables = format!("{OPENCLAW}[sinks.out]\ntype = \"stdout\"\n[[routes]]\nto = [{{ sink = \"out\" }}]\n");
    let mut relay = Relay::start(&tables).await;
    relay.wait_until_ready().await;
    for number in 0..3 {
        assert_eq!(relay.post(finished(number)).await.status, 200);
    }
    relay.terminate();
    assert!(relay.wait().await.success());
    // The log of a test has both, each line by itself.
    let log = relay.log();
    let ids =
        log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["id"].as_str().map(str::to_owned));
    assert_eq!(ids.collect::<Vec<_>>(), [finished_id(0), finished_id(1), finished_id(2)]);
}
