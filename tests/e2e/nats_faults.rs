//! What becomes of events when NATS does not do its part: nothing that was answered 2xx is missing afterwards.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use hookgate_testkit::{
    nats::{NatsConfig, NatsServer},
    process::wait_until,
};

use crate::relay::{LIMIT, OPENCLAW, Relay, create_stream, finished, finished_id, to_nats};

/// The reply deadline of the default config, and what a busy machine may add to it.
const ANSWERED_WITHIN: Duration = Duration::from_millis(2500 + 2500);

async fn start() -> (NatsServer, Relay) {
    let server = NatsServer::start(NatsConfig::default()).await;
    create_stream(&server).await;
    let relay = Relay::start(&format!("{OPENCLAW}{}", to_nats(&server.url()))).await;
    relay.wait_until_ready().await;
    (server, relay)
}

async fn stored_ids(server: &NatsServer) -> Vec<String> {
    let messages = server.wire().await.read_stream("HOOKS").await;
    messages.iter().map(|message| message.header("ce-id").expect("an id").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn when_nats_is_killed_under_load_every_accepted_event_is_in_the_stream() {
    const SENDERS: usize = 32;
    const EVENTS_EACH: usize = 60;
    let (mut server, relay) = start().await;
    let relay = Arc::new(relay);
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let relay = Arc::clone(&relay);
            tokio::spawn(async move {
                let mut answers = Vec::new();
                for number in (0..EVENTS_EACH).map(|event| event * SENDERS + sender) {
                    let begun = Instant::now();
                    let response = relay.post(finished(number)).await;
                    answers.push((number, response.status, begun.elapsed()));
                }
                answers
            })
        })
        .collect();
    for _ in 0..2 {
        let before = relay.metrics().await[ACKED];
        wait_until(LIMIT, "the load is on", async || relay.metrics().await[ACKED] > before + 100.0).await;
        server.kill();
        wait_until(LIMIT, "hookgate has noticed", async || relay.ready().await.1["sinks"][0]["up"] == false).await;
        server.restart().await;
    }
    let mut answers = Vec::new();
    for sender in senders {
        answers.extend(sender.await.expect("no panic"));
    }
    let stored: Vec<String> = stored_ids(&server).await;
    let distinct: BTreeSet<&String> = stored.iter().collect();
    for (number, status, elapsed) in &answers {
        assert!(matches!(status, 200 | 503 | 504), "{number}: {status}");
        assert!(*elapsed < ANSWERED_WITHIN, "{number}: {status} after {elapsed:?}");
        assert!(*status != 200 || distinct.contains(&finished_id(*number)), "event {number} was accepted and is lost");
    }
    let accepted = answers.iter().filter(|(_, status, _)| *status == 200).count();
    assert!(accepted > answers.len() / 2, "most events got through: {accepted} of {}", answers.len());
    assert_eq!(distinct.len(), stored.len(), "and none is there twice");
}

const ACKED: &str = r#"hookgate_publish_attempts_total{sink="js",result="acked"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_failed_while_nats_was_down_succeeds_when_it_is_back() {
    let (mut server, relay) = start().await;
    server.kill();
    // An event that is sent before the connection is known to be lost has an unknown outcome, and gets 504.
    wait_until(LIMIT, "hookgate has noticed", async || relay.ready().await.1["sinks"][0]["up"] == false).await;
    let begun = Instant::now();
    let refused = relay.post(finished(1)).await;
    assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("destination-unavailable")));
    assert!(refused.header("retry-after").is_some());
    assert!(begun.elapsed() < ANSWERED_WITHIN);
    assert_eq!(relay.metrics().await["hookgate_dedup_entries"], 0.0, "it is not remembered");
    server.restart().await;
    wait_until(LIMIT, "hookgate is connected", async || relay.ready().await.1["sinks"][0]["up"] == true).await;
    let accepted = relay.post(finished(1)).await;
    assert_eq!((accepted.status, accepted.json()["outcome"].as_str()), (200, Some("delivered")));
    assert_eq!(stored_ids(&server).await, [finished_id(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_outage_is_waited_out_within_the_deadline() {
    let (mut server, relay) = start().await;
    server.kill();
    let relay = Arc::new(relay);
    let waiting = tokio::spawn({
        let relay = Arc::clone(&relay);
        async move { relay.post(finished(1)).await }
    });
    let attempted = r#"hookgate_publish_attempts_total{sink="js",result="connection_lost"}"#;
    wait_until(LIMIT, "an attempt has failed", async || relay.metrics().await[attempted] >= 1.0).await;
    server.restart().await;
    let response = waiting.await.expect("no panic");
    // On a machine that starts a broker in more than two seconds, the deadline comes first.
    assert!(matches!(response.status, 200 | 503), "{}", response.text());
    let stored = stored_ids(&server).await;
    assert!(response.status != 200 || stored == [finished_id(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn hookgate_starts_while_nats_is_down_and_gets_ready_when_it_comes() {
    let mut server = NatsServer::start(NatsConfig::default()).await;
    create_stream(&server).await;
    server.kill();
    let relay = Relay::start(&format!("{OPENCLAW}{}", to_nats(&server.url()))).await;
    let (status, readiness) = relay.ready().await;
    assert_eq!((status, readiness["reason"].as_str()), (503, Some("a sink has not been reached since the start")));
    assert_eq!(relay.post(finished(1)).await.status, 503, "an honest answer, not a refused connection");
    server.restart().await;
    relay.wait_until_ready().await;
    assert_eq!(relay.post(finished(1)).await.status, 200);
    server.kill();
    wait_until(LIMIT, "hookgate has noticed", async || relay.ready().await.1["sinks"][0]["up"] == false).await;
    assert_eq!(relay.ready().await.0, 200, "a broker that was reached once does not take the pod out of service");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_stream_is_an_operators_mistake_and_not_the_senders() {
    let server = NatsServer::start(NatsConfig::default()).await;
    let relay = Relay::start(&format!("{OPENCLAW}{}", to_nats(&server.url()))).await;
    relay.wait_until_ready().await;
    let refused = relay.post(finished(1)).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    let missing = r#"hookgate_publish_attempts_total{sink="js",result="no_destination"}"#;
    assert!(relay.metrics().await[missing] >= 1.0);
    create_stream(&server).await;
    assert_eq!(relay.post(finished(1)).await.status, 200, "as soon as it is mended");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_nats_will_never_take_is_refused_for_good() {
    let server = NatsServer::start(NatsConfig { max_payload: 64 << 10, ..NatsConfig::default() }).await;
    create_stream(&server).await;
    let relay = Relay::start(&format!("{OPENCLAW}{}", to_nats(&server.url()))).await;
    relay.wait_until_ready().await;
    let large = finished(1).replace("\"s\"", &format!("{:?}", "x".repeat(100 << 10)));
    let refused = relay.post(large).await;
    assert_eq!((refused.status, refused.json()["code"].as_str()), (422, Some("destination-rejected")));
    let metrics = relay.metrics().await;
    assert_eq!(metrics[r#"hookgate_publish_attempts_total{sink="js",result="too_large"}"#], 1.0, "and not retried");
    assert_eq!(relay.post(finished(2)).await.status, 200, "its neighbours are not hurt");
}
