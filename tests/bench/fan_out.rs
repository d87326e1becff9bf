//! What an event to three brokers costs in time, and whether one that stands still slows the other two.
//!
//! Real brokers and a real process on this machine, one sender; the figures are of use only beside each other. Prints a report
//! as Markdown.

#![expect(clippy::print_stdout, reason = "the report is what it is for")]

#[path = "../../crates/sink-kafka/tests/common/topics.rs"]
mod kafka_topics;
#[path = "../e2e/relay.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod relay;

use std::time::{Duration, Instant};

use hookgate_testkit::{
    http::Connection,
    kafka::{KafkaConfig, KafkaServer},
    nats::{NatsConfig, NatsServer},
    rabbit::{PASSWORD, RabbitServer, USER},
};
use relay::{LIMIT, OPENCLAW, Relay, create_stream, finished, post};

/// Events of each measurement.
const EVENTS: usize = 2000;

#[tokio::main]
async fn main() {
    let nats = NatsServer::start(NatsConfig::default()).await;
    create_stream(&nats).await;
    let rabbit = RabbitServer::borrow().await;
    rabbit.wire().await.declare_queue("fan-out", &[]).await;
    let mut kafka = KafkaServer::start(&KafkaConfig::default()).await;
    kafka_topics::create_topic(&kafka, "fan-out", 1, &[]).await;
    let tables = format!(
        r#"
        {OPENCLAW}
        [sinks.js]
        type = "nats"
        servers = ["{}"]
        stream = "HOOKS"
        [sinks.mq]
        type = "amqp"
        url = "amqp://{USER}:{PASSWORD}@127.0.0.1:{}"
        [sinks.log]
        type = "kafka"
        brokers = ["{}"]
        [[routes]]
        to = [
          {{ sink = "js", subject = "openclaw.{{attr.job}}" }},
          {{ sink = "mq", routing_key = "fan-out" }},
          {{ sink = "log", topic = "fan-out", required = false }},
        ]
        "#,
        nats.url(),
        rabbit.port(),
        kafka.address()
    );
    let relay = Relay::start(&tables).await;
    relay.wait_until_ready().await;
    println!("| NATS and RabbitMQ required, Kafka best effort | p50 | p99 |");
    println!("|---|---|---|");
    measure(&relay, "all three run", 0).await;
    kafka.pause();
    measure(&relay, "Kafka stands still", EVENTS).await;
    kafka.resume();
}

/// Posts new events one after the other, from number `first` on.
async fn measure(relay: &Relay, what: &str, first: usize) {
    let mut connection = Connection::open(relay.address()).await.expect("it listens");
    let mut latencies: Vec<Duration> = Vec::new();
    for number in first..first + EVENTS {
        let begun = Instant::now();
        let answer = connection.request(&post(finished(number)), LIMIT).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        latencies.push(begun.elapsed());
    }
    latencies.sort();
    println!("| {what} | {:.2?} | {:.2?} |", latencies[EVENTS / 2], latencies[EVENTS * 99 / 100]);
}
