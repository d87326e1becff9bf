//! Topics, made and read around the sink and around any proxy. Tests of the program use this too.

#![allow(dead_code, reason = "each test program uses a part of this")]

use std::time::Duration;

use bytes::Bytes;
use hookgate_testkit::{kafka::KafkaServer, process::wait_until};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::{Headers, Message},
};

/// Longest wait for something that should come about by itself.
const LIMIT: Duration = Duration::from_secs(30);

/// A record as a consumer of its own reads it.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) offset: u64,
    pub(crate) key: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl Record {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn client(server: &KafkaServer) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", server.direct_address());
    config
}

fn admin(server: &KafkaServer) -> AdminClient<DefaultClientContext> {
    client(server).create().expect("the properties are right")
}

/// Makes a topic and waits until it can be read. `config` is its own, like `[("min.insync.replicas", "2")]`.
pub(crate) async fn create_topic(server: &KafkaServer, name: &str, partitions: i32, config: &[(&str, &str)]) {
    make_topic(server, name, partitions, TopicReplication::Fixed(1), config).await;
}

/// Makes a topic of one partition on this node of the cluster.
pub(crate) async fn create_topic_on(server: &KafkaServer, name: &str, node: i32) {
    make_topic(server, name, 1, TopicReplication::Variable(&[&[node]]), &[]).await;
}

async fn make_topic(
    server: &KafkaServer,
    name: &str,
    partitions: i32,
    replication: TopicReplication<'_>,
    config: &[(&str, &str)],
) {
    let admin = admin(server);
    let mut topic = NewTopic::new(name, partitions, replication);
    for (key, value) in config {
        topic = topic.set(key, value);
    }
    wait_until(LIMIT, "the topic is made", async || {
        // One that was just deleted may still be there.
        let made = admin.create_topics([&topic], &AdminOptions::new()).await.expect("the server is up");
        made.iter().all(Result::is_ok)
    })
    .await;
    wait_until(LIMIT, "the topic is there", async || partitions_of(server, name).await == partitions).await;
}

pub(crate) async fn delete_topic(server: &KafkaServer, name: &str) {
    let deleted = admin(server).delete_topics(&[name], &AdminOptions::new()).await.expect("the server is up");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    wait_until(LIMIT, "the topic is gone", async || partitions_of(server, name).await == 0).await;
}

/// How many partitions of the topic have a leader.
async fn partitions_of(server: &KafkaServer, name: &str) -> i32 {
    let (config, name) = (client(server), name.to_owned());
    let looking = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = config.create().expect("the properties are right");
        let metadata = consumer.fetch_metadata(Some(&name), LIMIT).expect("the server is up");
        let topic = &metadata.topics()[0];
        match topic.error() {
            Some(_) => 0,
            None => topic.partitions().iter().filter(|partition| partition.leader() >= 0).count(),
        }
    });
    i32::try_from(looking.await.expect("no panic")).expect("few")
}

/// Everything that a topic holds, as a new consumer reads it, around any proxy. Partition by partition, in order.
pub(crate) async fn read_topic(server: &KafkaServer, name: &str) -> Vec<Record> {
    let (config, name) = (client(server), name.to_owned());
    tokio::task::spawn_blocking(move || read(config, &name)).await.expect("no panic")
}

fn read(mut config: ClientConfig, name: &str) -> Vec<Record> {
    config
        .set("group.id", "reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "10");
    let consumer: BaseConsumer = config.create().expect("the properties are right");
    let metadata = consumer.fetch_metadata(Some(name), LIMIT).expect("the server is up");
    let partitions: Vec<i32> = metadata.topics()[0].partitions().iter().map(|partition| partition.id()).collect();
    let mut from_the_start = TopicPartitionList::new();
    for partition in &partitions {
        from_the_start.add_partition_offset(name, *partition, Offset::Beginning).expect("the offset is one");
    }
    consumer.assign(&from_the_start).expect("the partitions are there");
    let (mut records, mut ended) = (Vec::new(), 0);
    while ended < partitions.len() {
        match consumer.poll(LIMIT) {
            Some(Ok(message)) => records.push(record(&message)),
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => panic!("read {name}: {error}"),
            None => panic!("read {name}: nothing came"),
        }
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

fn record(message: &impl Message) -> Record {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("it was text");
    let headers = message.headers().map(|headers| {
        headers.iter().map(|header| (header.key.to_owned(), header.value.map(text).unwrap_or_default())).collect()
    });
    Record {
        partition: message.partition(),
        offset: u64::try_from(message.offset()).expect("it is at an offset"),
        key: message.key().map(text),
        headers: headers.unwrap_or_default(),
        body: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
    }
}
