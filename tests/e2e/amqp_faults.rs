//! What RabbitMQ does that no other broker does, as senders and operators see it.

use hookgate_testkit::{
    process::wait_until,
    rabbit::{Borrowed, PASSWORD, QueueArgument, RabbitServer, USER},
};

use crate::relay::{LIMIT, OPENCLAW, Relay, finished};

/// RabbitMQ with a queue of this test alone, and hookgate before it; events go to `routing_key` by the default exchange.
async fn start(queue: &str, arguments: &[(&str, QueueArgument)], routing_key: &str) -> (Borrowed, Relay) {
    let server = RabbitServer::borrow().await;
    let mut wire = server.wire().await;
    wire.delete_queue(queue).await;
    wire.declare_queue(queue, arguments).await;
    let tables = format!(
        "{OPENCLAW}[sinks.mq]\ntype = \"amqp\"\nurl = \"amqp://{USER}:{PASSWORD}@127.0.0.1:{}\"\n\
         [[routes]]\nto = [{{ sink = \"mq\", routing_key = \"{routing_key}\" }}]\n",
        server.port()
    );
    let relay = Relay::start_with(&tables, &[("HOOKGATE_SERVER__REPLY_DEADLINE", "1500ms")]).await;
    relay.wait_until_ready().await;
    (server, relay)
}

async fn attempts(relay: &Relay, result: &str) -> f64 {
    relay.metric(&format!("hookgate_publish_attempts_total{{sink=\"mq\",result=\"{result}\"}}")).await
}

async fn assert_refused(relay: &Relay, number: usize) {
    let mut refused = relay.post(finished(number)).await;
    // On a busy machine the deadline may come while an attempt waits for the broker's answer: then nobody knows.
    for _ in 0..5 {
        if refused.status == 504 {
            refused = relay.post(finished(number)).await;
        }
    }
    assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("destination-unavailable")));
    assert!(refused.header("retry-after").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_no_queue_takes_is_never_answered_2xx() {
    let (server, relay) = start("routed", &[], "nowhere").await;
    assert_refused(&relay, 1).await;
    assert_eq!(attempts(&relay, "no_destination").await, 1.0, "an operator has to act: it is not tried again");
    let mut wire = server.wire().await;
    wire.declare_queue("nowhere", &[]).await;
    assert_eq!(relay.post(finished(1)).await.status, 200);
    assert_eq!(wire.messages("nowhere").await.len(), 1);
    wire.delete_queue("nowhere").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_told_as_full() {
    let arguments = [("x-max-length", QueueArgument::Number(1)), ("x-overflow", QueueArgument::Text("reject-publish"))];
    let (server, relay) = start("full", &arguments, "full").await;
    assert_eq!(relay.post(finished(1)).await.status, 200);
    assert_refused(&relay, 2).await;
    assert!(attempts(&relay, "full").await >= 1.0);
    server.wire().await.purge("full").await;
    assert_eq!(relay.post(finished(2)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_alarm_is_told_at_once_and_shown() {
    let (server, relay) = start("blocked", &[], "blocked").await;
    assert_eq!(relay.post(finished(1)).await.status, 200);
    server.set_memory_alarm(true).await;
    // The broker says so when it is sent something.
    let first = relay.post(finished(2)).await;
    assert!(matches!(first.status, 503 | 504), "{}", first.text());
    wait_until(LIMIT, "it is shown", async || {
        let sinks = &relay.ready().await.1["sinks"];
        sinks[0]["up"] == false && sinks[0]["cause"].as_str().is_some_and(|cause| cause.contains("block"))
    })
    .await;
    assert_refused(&relay, 3).await;
    assert!(attempts(&relay, "throttled").await >= 1.0);
    server.set_memory_alarm(false).await;
    wait_until(LIMIT, "it is accepted", async || relay.post(finished(3)).await.status == 200).await;
    let copies = server.wire().await.messages("blocked").await.len();
    assert!((2..=3).contains(&copies), "the one that the broker kept, and nothing that was refused: {copies}");
}
