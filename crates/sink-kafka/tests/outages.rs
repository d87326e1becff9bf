//! A server that is not there, dies, freezes or comes back, and what that leaves behind.

mod common;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{LIMIT, TOPIC, config, connect, message, to};
use hookgate_core::{
    limits::Deadline,
    sink::{
        PublishErrorKind::{Throttled, Unavailable, Unknown},
        PublishReason::{self, ConnectionLost, Timeout},
        Sink,
    },
};
use hookgate_testkit::{
    event::TestEvent,
    kafka::{KafkaConfig, KafkaServer},
    process::wait_until,
    proxy::ProxyMode,
    sinks::assert_error,
};

/// What "at once" means on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);

async fn server_with_topic() -> KafkaServer {
    let server = KafkaServer::start(&KafkaConfig::default()).await;
    common::topics::create_topic(&server, TOPIC, 3, &[]).await;
    server
}

fn ids(records: &[common::topics::Record]) -> BTreeSet<String> {
    records.iter().filter_map(|record| record.header("ce-id")).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_cluster_that_is_not_there_yet_is_found_when_it_comes() {
    let mut server = server_with_topic().await;
    server.kill();
    let started = Instant::now();
    let connected = connect(&config(&server.address(), "")).await;
    assert!(started.elapsed() < Duration::from_secs(4), "it held up the start");
    let error = connected.publish_badly(&message("1")).await;
    assert_error(&error, Unavailable, ConnectionLost, &["reach Kafka at 127.0.0.1", "Connection refused"]);
    assert_eq!(connected.seen.count("sink_down"), 1, "{:?}", connected.seen.lines());
    assert_eq!(connected.seen.count("sink_up"), 0);
    server.restart().await;
    connected.recovers().await;
    connected.publish_well(&message("2")).await;
    assert_eq!(connected.seen.count("sink_up"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_a_crash_in_mid_load_is_readable_afterwards() {
    let mut server = server_with_topic().await;
    let connected = Arc::new(connect(&config(&server.address(), "")).await);
    let publishing: Vec<_> = (0..20)
        .map(|writer| {
            let connected = Arc::clone(&connected);
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for number in 0..200 {
                    let message = common::message_to(&format!("{writer}-{number}"), TOPIC, &writer.to_string());
                    let deadline = Deadline::after(Duration::from_secs(1));
                    match connected.sink.publish(&message, deadline).await {
                        Ok(_receipt) => acknowledged.push(message.event.id.as_str().to_owned()),
                        Err(error) => {
                            assert!(matches!(error.kind, Unavailable | Unknown), "{error:?}");
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
                acknowledged
            })
        })
        .collect();
    wait_until(LIMIT, "the load is under way", async || common::topics::read_topic(&server, TOPIC).await.len() > 200)
        .await;
    server.kill();
    server.restart().await;
    let mut acknowledged = BTreeSet::new();
    for publishing in publishing {
        acknowledged.extend(publishing.await.expect("no panic"));
    }
    let records = common::topics::read_topic(&server, TOPIC).await;
    let lost: Vec<_> = acknowledged.difference(&ids(&records)).cloned().collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert!(acknowledged.len() > 200);
    assert_eq!(ids(&records).len(), records.len(), "and nothing is there twice");
}

#[tokio::test]
async fn nothing_is_handed_over_while_no_broker_can_be_used() {
    let mut server = server_with_topic().await;
    let connected = connect(&config(&server.address(), "")).await;
    connected.publish_well(&message("before")).await;
    server.kill();
    connected.knows(ConnectionLost).await;
    for number in 0..50 {
        let started = Instant::now();
        let error = connected.publish_badly(&message(&format!("lost-{number}"))).await;
        assert_error(&error, Unavailable, ConnectionLost, &[]);
        assert!(started.elapsed() < AT_ONCE);
    }
    server.restart().await;
    connected.recovers().await;
    connected.publish_well(&message("after")).await;
    assert_eq!(ids(&common::topics::read_topic(&server, TOPIC).await).len(), 2);
    let changes = connected.seen.count("sink_up") + connected.seen.count("sink_down");
    assert_eq!(changes, 3, "{:?}", connected.seen.lines());
}

#[tokio::test]
async fn a_frozen_server_is_unknown_at_the_deadline_and_then_known_to_be_frozen() {
    let mut server = server_with_topic().await;
    let connected = connect(&config(&server.address(), "")).await;
    connected.publish_well(&message("before")).await;
    server.pause();
    let started = Instant::now();
    let short = Deadline::after(Duration::from_millis(700));
    let error = connected.sink.publish(&message("unsure"), short).await.expect_err("nobody answers");
    assert_error(&error, Unknown, Timeout, &["no answer came before the deadline"]);
    assert!(started.elapsed() < AT_ONCE);
    connected.knows(ConnectionLost).await;
    let error = connected.publish_badly(&message("refused")).await;
    assert_error(&error, Unavailable, ConnectionLost, &["no answer in time"]);
    server.resume();
    connected.recovers().await;
    connected.publish_well(&message("after")).await;
    let stored = ids(&common::topics::read_topic(&server, TOPIC).await);
    assert!(!stored.iter().any(|id| id.ends_with("refused")), "{stored:?}");
}

#[tokio::test]
async fn what_its_callers_have_given_up_is_not_published_by_a_broker_that_comes_back() {
    let (mut server, proxy) = common::server_behind_proxy(&KafkaConfig::default()).await;
    common::topics::create_topic(&server, TOPIC, 1, &[]).await;
    let connected = connect(&config(&proxy.address().to_string(), "")).await;
    connected.publish_well(&message("before")).await;
    // What is sent now gets no further than the proxy, which drops it when it is cut.
    proxy.set_mode(ProxyMode::BlackHole).await;
    for name in ["given-up-1", "given-up-2"] {
        let short = Deadline::after(Duration::from_millis(300));
        let error = connected.sink.publish(&message(name), short).await.expect_err("nobody answers");
        assert_error(&error, Unknown, Timeout, &[]);
    }
    server.kill();
    proxy.set_mode(ProxyMode::Refuse).await;
    connected.knows(ConnectionLost).await;
    server.restart().await;
    proxy.set_mode(ProxyMode::Pass).await;
    connected.recovers().await;
    connected.publish_well(&message("after")).await;
    let stored = ids(&common::topics::read_topic(&server, TOPIC).await);
    assert_eq!(stored.len(), 2, "{stored:?}");
}

#[tokio::test]
async fn a_full_queue_is_throttled_at_once_and_does_not_block() {
    let mut server = server_with_topic().await;
    let connected = Arc::new(connect(&config(&server.address(), "max_in_flight = 8")).await);
    connected.publish_well(&message("before")).await;
    server.pause();
    let publishes: Vec<_> = (0..40)
        .map(|number| {
            let connected = Arc::clone(&connected);
            tokio::spawn(async move {
                let started = Instant::now();
                let message = message(&number.to_string());
                let published = connected.sink.publish(&message, Deadline::after(AT_ONCE * 2)).await;
                (published.expect_err("nobody answers"), started.elapsed())
            })
        })
        .collect();
    let (mut full, mut unanswered) = (0, 0);
    for publish in publishes {
        let (error, elapsed) = publish.await.expect("no panic");
        match error.kind {
            Throttled => {
                assert_error(&error, Throttled, PublishReason::Throttled, &["queue is full"]);
                assert!(elapsed < AT_ONCE, "it waited {elapsed:?} for a place");
                full += 1;
            }
            _ => {
                assert_error(&error, Unknown, Timeout, &[]);
                unanswered += 1;
            }
        }
    }
    assert_eq!((full, unanswered), (24, 16));
    server.resume();
    connected.recovers().await;
    connected.publish_well(&message("after")).await;
}

#[tokio::test]
async fn closing_does_not_wait_longer_than_it_may_for_a_frozen_server() {
    let mut server = server_with_topic().await;
    let connected = Arc::new(connect(&config(&server.address(), "")).await);
    connected.publish_well(&message("before")).await;
    server.pause();
    let stuck = Arc::clone(&connected);
    let stuck = tokio::spawn(async move { stuck.publish_badly(&message("stuck")).await });
    // On a runtime of one thread it is under way after that.
    tokio::task::yield_now().await;
    let started = Instant::now();
    connected.sink.close(Deadline::after(Duration::from_millis(500))).await;
    assert!(started.elapsed() < AT_ONCE, "closing took {:?}", started.elapsed());
    let error = stuck.await.expect("no panic");
    assert_error(&error, Unknown, ConnectionLost, &["given up"]);
    assert!(started.elapsed() < Duration::from_secs(5), "the end of the producer took {:?}", started.elapsed());
}

#[tokio::test]
async fn dropping_the_sink_does_not_block_the_runtime() {
    let mut server = server_with_topic().await;
    let connected = connect(&config(&server.address(), "")).await;
    let large = to(&TestEvent::new("large").body(vec![b'x'; 500_000]), TOPIC, "k");
    connected.publish_well(&large).await;
    server.pause();
    let short = Deadline::after(Duration::from_millis(100));
    connected.sink.publish(&large, short).await.expect_err("nobody answers");
    let started = Instant::now();
    drop(connected);
    // librdkafka's threads take half a second to end.
    assert!(started.elapsed() < Duration::from_millis(250), "dropping took {:?}", started.elapsed());
}
