//! What an outage of the broker looks like from outside, beside what `broker_faults` has for every broker.

use std::{
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
