//! Where a message goes: partitions, and topics that are gone, or take less than was meant.

mod common;

use std::{sync::Arc, time::Duration};

use common::{Connected, config, connect, message_to, to};
use hookgate_core::sink::{
    PublishErrorKind::{Misconfigured, Rejected},
    PublishReason::{NoDestination, TooLarge},
    Sink, Target,
};
use hookgate_testkit::{event::TestEvent, kafka::KafkaServer, process::wait_until, sinks::assert_error};

/// The shared server with a topic of the test's own, and a sink for it.
async fn server_with(topic: &str, partitions: i32) -> (Arc<KafkaServer>, Connected) {
    let server = common::shared_server().await;
    common::topics::create_topic(&server, topic, partitions, &[]).await;
    let connected = connect(&config(&server.address(), "")).await;
    (server, connected)
}

/// Hashes of `org.apache.kafka.common.utils.Utils.murmur2`. Source: Apache Kafka, `UtilsTest.testMurmur2`.
const MURMUR2: [(&str, i32); 6] = [
    ("21", -973_932_308),
    ("foobar", -790_332_482),
    ("a-little-bit-long-string", -985_981_536),
    ("a-little-bit-longer-string", -1_486_304_829),
    ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
    ("abc", 479_470_107),
];

#[tokio::test]
async fn a_key_goes_to_the_partition_that_a_java_client_chooses() {
    let (server, connected) = server_with("murmur", 7).await;
    for (key, hash) in MURMUR2 {
        let position = connected.publish_well(&message_to(key, "murmur", key)).await;
        assert_eq!(&*position.place, format!("murmur/{}", (hash & i32::MAX) % 7), "{key}");
    }
    let records = common::topics::read_topic(&server, "murmur").await;
    assert_eq!(records.len(), MURMUR2.len());
    for record in records {
        let id = record.header("ce-id").expect("it has an id");
        assert!(id.ends_with(record.key.as_deref().expect("it has a key")), "{record:?}");
    }
}

#[tokio::test]
async fn messages_of_one_key_keep_their_order_and_those_without_a_key_are_spread() {
    let (server, connected) = server_with("order", 4).await;
    for number in 0..40 {
        connected.publish_well(&message_to(&format!("kept-{number:02}"), "order", "job-7")).await;
        connected.publish_well(&message_to(&format!("free-{number:02}"), "order", "")).await;
        // Those without a key stay together for some milliseconds.
        tokio::time::sleep(Duration::from_millis(11)).await;
    }
    let records = common::topics::read_topic(&server, "order").await;
    let (kept, free): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| record.key.is_some());
    assert!(kept.iter().all(|record| record.partition == kept[0].partition), "one key has one partition");
    assert!(kept.is_sorted_by_key(|record| record.header("ce-id").map(str::to_owned)), "it keeps its order");
    assert!(free.iter().any(|record| record.partition != free[0].partition), "without a key there is none");
}

#[tokio::test]
async fn every_compression_is_read_by_a_consumer() {
    let server = common::shared_server().await;
    common::topics::create_topic(&server, "compressed", 1, &[]).await;
    for codec in ["none", "lz4", "snappy", "zstd"] {
        let connected = connect(&config(&server.address(), &format!("compression = '{codec}'"))).await;
        let event = TestEvent::new(codec).body(codec.repeat(1000));
        connected.publish_well(&to(&event, "compressed", "")).await;
    }
    let bodies: Vec<_> =
        common::topics::read_topic(&server, "compressed").await.into_iter().map(|record| record.body).collect();
    assert_eq!(bodies, ["none", "lz4", "snappy", "zstd"].map(|codec| codec.repeat(1000)));
}

#[tokio::test]
async fn a_topic_that_is_made_after_it_was_missed_is_found_at_once() {
    let (server, connected) = server_with("other", 1).await;
    let error = connected.publish_badly(&message_to("early", "late", "k")).await;
    assert_error(&error, Misconfigured, NoDestination, &["topic \"late\" does not exist", "--create --topic late"]);
    common::topics::create_topic(&server, "late", 1, &[]).await;
    connected.publish_well(&message_to("in-time", "late", "k")).await;
    let records = common::topics::read_topic(&server, "late").await;
    assert_eq!(records.len(), 1, "what was refused did not turn up: {records:?}");
}

#[tokio::test]
async fn a_topic_deleted_while_running_is_no_destination_until_it_is_there_again() {
    let (server, connected) = server_with("passing", 3).await;
    connected.publish_well(&message_to("before", "passing", "k")).await;
    common::topics::delete_topic(&server, "passing").await;
    let error = connected.publish_badly(&message_to("lost", "passing", "k")).await;
    assert_error(&error, Misconfigured, NoDestination, &["topic \"passing\" does not exist"]);
    assert_error(&connected.probe_badly().await, Misconfigured, NoDestination, &["topic \"passing\" does not exist"]);
    common::topics::create_topic(&server, "passing", 3, &[]).await;
    let after = message_to("after", "passing", "k");
    connected.publish_well(&after).await;
    connected.sink.probe(common::ample()).await.expect("the topic is there");
    let ids: Vec<_> = common::topics::read_topic(&server, "passing").await;
    assert_eq!(ids.len(), 1, "{ids:?}");
}

#[tokio::test]
async fn a_probe_without_a_topic_asks_for_any_sign_of_life() {
    let server = common::shared_server().await;
    let connected = connect(&config(&server.address(), "")).await;
    connected.sink.probe(common::ample()).await.expect("the server is up");
    let error = connected.publish_badly(&message_to("1", "nowhere", "k")).await;
    assert_error(&error, Misconfigured, NoDestination, &[]);
    connected.sink.probe(common::ample()).await.expect("one event astray says nothing of the others");
}

#[tokio::test]
async fn a_message_larger_than_max_message_is_rejected_before_it_is_sent() {
    let (_server, _) = server_with("large", 1).await;
    let connected = connect(&config(&_server.address(), "max_message = '10 KiB'")).await;
    let large = to(&TestEvent::new("large").body(vec![b'x'; 10 * 1024]), "large", "k");
    let error = connected.publish_badly(&large).await;
    assert_error(&error, Rejected, TooLarge, &["`max_message`, 10240 B"]);
    connected.publish_well(&message_to("small", "large", "k")).await;
}

#[tokio::test]
async fn the_largest_message_that_is_taken_here_is_taken_by_the_broker() {
    let (server, connected) = server_with("brim", 1).await;
    let fits = async |bytes: usize| {
        let event = TestEvent::new("brim").body(vec![b'x'; bytes]);
        connected.publish(&to(&event, "brim", "k")).await
    };
    // Find the edge: what is refused by the broker instead of by us would be an error of ours.
    let (mut low, mut high) = (1_040_000, 1_048_588);
    while high - low > 1 {
        let middle = (low + high) / 2;
        match fits(middle).await {
            Ok(_) => low = middle,
            Err(error) => {
                assert_error(&error, Rejected, TooLarge, &["`max_message`"]);
                high = middle;
            }
        }
    }
    assert!(low > 1_047_000, "at most {low} bytes of body are taken");
    drop(server);
}

#[tokio::test]
async fn a_message_larger_than_its_topic_takes_is_rejected_and_harms_no_other() {
    let server = common::shared_server().await;
    common::topics::create_topic(&server, "narrow", 1, &[("max.message.bytes", "2000")]).await;
    let connected = connect(&config(&server.address(), "")).await;
    let large = to(&TestEvent::new("large").body(vec![b'x'; 3000]), "narrow", "k");
    let error = connected.publish_badly(&large).await;
    assert_error(&error, Rejected, TooLarge, &["topic \"narrow\" answered"]);
    connected.publish_well(&message_to("small", "narrow", "k")).await;
    wait_until(common::LIMIT, "the sink is up", async || connected.sink.probe(common::ample()).await.is_ok()).await;
    assert_eq!(connected.seen.lines(), ["sink_up sink=kafka"]);
}

#[tokio::test]
async fn a_review_says_which_topic_is_missing_and_the_client_tells_how_it_is() {
    let server = common::shared_server().await;
    common::topics::create_topic(&server, "reviewed", 1, &[]).await;
    let connected = connect(&config(&server.address(), "")).await;
    connected.recovers().await;
    let target = |topic: &str| Target::Topic { topic: topic.to_owned(), key: "k".to_owned() };
    let found = connected.sink.review(&[target("reviewed"), target("missing-x")], common::ample()).await;
    let found = found.expect("it answers");
    assert!(found.len() == 1 && found[0].contains("missing-x"), "{found:?}");
    let told = async || connected.seen.count("sink_client sink=kafka brokers_up=1") > 0;
    wait_until(common::LIMIT, "librdkafka has told of itself", told).await;
}
