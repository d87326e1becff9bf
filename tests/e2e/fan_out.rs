//! One event to three brokers at once: what the answer depends on, and that one that stands still holds up nobody else.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hookgate_testkit::{
    kafka::{KafkaConfig, KafkaServer},
    nats::{NatsConfig, NatsServer},
    process::wait_until,
    rabbit::{Borrowed, PASSWORD, RabbitServer, USER},
};

use crate::{
    kafka_topics::{create_topic, read_topic},
    relay::{LIMIT, OPENCLAW, Relay, create_stream, finished, run_to_end},
};

/// NATS, RabbitMQ and Kafka, each with a place for the events.
struct Three {
    nats: NatsServer,
    rabbit: Borrowed,
    kafka: KafkaServer,
}

impl Three {
    async fn start() -> Self {
        let nats = NatsServer::start(NatsConfig::default()).await;
        create_stream(&nats).await;
        let rabbit = RabbitServer::borrow().await;
        let mut wire = rabbit.wire().await;
        wire.declare_queue("fan-out", &[]).await;
        wire.purge("fan-out").await;
        let kafka = KafkaServer::start(&KafkaConfig::default()).await;
        create_topic(&kafka, "fan-out", 1, &[]).await;
        Self { nats, rabbit, kafka }
    }

    /// A route to all three; the last is required or not.
    fn tables(&self, kafka_is_required: bool) -> String {
        let (nats, rabbit, kafka) = (self.nats.url(), self.rabbit.port(), self.kafka.address());
        format!(
            r#"
            {OPENCLAW}
            [sinks.js]
            type = "nats"
            servers = ["{nats}"]
            stream = "HOOKS"
            [sinks.mq]
            type = "amqp"
            url = "amqp://{USER}:{PASSWORD}@127.0.0.1:{rabbit}"
            [sinks.log]
            type = "kafka"
            brokers = ["{kafka}"]
            [[routes]]
            to = [
              {{ sink = "js", subject = "openclaw.{{attr.job}}" }},
              {{ sink = "mq", routing_key = "fan-out" }},
              {{ sink = "log", topic = "fan-out", required = {kafka_is_required} }},
            ]
            "#
        )
    }

    /// How many messages each holds.
    async fn stored(&self) -> (usize, usize, usize) {
        (
            self.nats.wire().await.read_stream("HOOKS").await.len(),
            self.rabbit.wire().await.messages("fan-out").await.len(),
            read_topic(&self.kafka, "fan-out").await.len(),
        )
    }
}

async fn failures(relay: &Relay, sink: &str, required: bool) -> f64 {
    relay.metric(&format!("hookgate_publish_failures_total{{sink=\"{sink}\",required=\"{required}\"}}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_required_broker_has_an_event_that_is_answered_2xx() {
    let mut three = Three::start().await;
    let relay = Relay::start(&three.tables(true)).await;
    relay.wait_until_ready().await;
    for number in 0..20 {
        assert_eq!(relay.post(finished(number)).await.json()["outcome"], "delivered");
    }
    assert_eq!(three.stored().await, (20, 20, 20));
    three.kafka.pause();
    let refused = relay.post(finished(100)).await;
    assert!(matches!(refused.status, 503 | 504), "{}", refused.text());
    assert!(failures(&relay, "log", true).await >= 1.0);
    three.kafka.resume();
    wait_until(LIMIT, "it is accepted", async || relay.post(finished(100)).await.status == 200).await;
    let (nats, rabbit, kafka) = three.stored().await;
    assert_eq!(nats, 21, "NATS knows its id");
    assert!(rabbit >= 21 && kafka >= 21, "{rabbit} {kafka}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_best_effort_broker_that_stands_still_changes_neither_the_answer_nor_its_time() {
    let mut three = Three::start().await;
    let relay = Arc::new(Relay::start(&three.tables(false)).await);
    relay.wait_until_ready().await;
    assert_eq!(relay.post(finished(0)).await.status, 200);
    three.kafka.pause();
    let begun = Instant::now();
    for number in 1..=100 {
        let answer = relay.post(finished(number)).await;
        assert_eq!(answer.json()["outcome"], "delivered", "{}", answer.text());
    }
    // Each would take its deadline of 2.5 s if the answer waited for the third broker.
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    wait_until(LIMIT, "what was lost there is counted", async || failures(&relay, "log", false).await >= 100.0).await;
    assert_eq!(failures(&relay, "log", true).await, 0.0);
    three.kafka.resume();
    let (nats, rabbit, _) = three.stored().await;
    assert_eq!((nats, rabbit), (101, 101));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_looks_at_all_three_and_says_what_is_missing_there() {
    let three = Three::start().await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let tables = three.tables(true).replace("routing_key = \"fan-out\"", "exchange = \"absent\", routing_key = \"a\"");
    std::fs::write(dir.path().join("relay.toml"), tables.replace("topic = \"fan-out\"", "topic = \"absent-{type}\""))
        .expect("a writable directory");
    let checked = run_to_end(dir.path(), &["check"], &[]);
    let told = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success(), "{told}");
    for said in [
        "ok      sinks.js (nats)",
        "ok      sinks.mq (amqp)\nWARNING sinks.mq: there is no exchange \"absent\"",
        "ok      sinks.log (kafka)\nWARNING sinks.log: ",
        "absent-x",
    ] {
        assert!(told.contains(said), "{said:?} is missing in:\n{told}");
    }
}
