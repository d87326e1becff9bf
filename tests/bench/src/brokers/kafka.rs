//! A Kafka with one topic of a few partitions.

#[path = "../../../../crates/sink-kafka/tests/common/topics.rs"]
mod topics;

use std::time::Duration;

use anyhow::Context;
use hookgate_testkit::kafka::{KAFKA_VERSION, KafkaConfig, KafkaServer};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    producer::{FutureProducer, FutureRecord},
};

use super::PROBES;
use crate::{event::Events, probe::Target, system::TOPIC};

/// Partitions of the topic.
const PARTITIONS: i32 = 3;

/// Longest wait for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A server with its topic.
#[derive(Debug)]
pub(super) struct Kafka(KafkaServer);

pub(super) fn missing() -> Option<&'static str> {
    (!KafkaServer::is_installed()).then_some("there is no Kafka here, or no Java")
}

impl Kafka {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let server = KafkaServer::start(&KafkaConfig::default()).await;
        for topic in [TOPIC, PROBES] {
            topics::create_topic(&server, topic, PARTITIONS, &[]).await;
        }
        Ok(Self(server))
    }

    pub(super) fn address(&self) -> String {
        self.0.address()
    }

    pub(super) async fn messages(&self) -> anyhow::Result<u64> {
        let consumer: BaseConsumer = self.client().create().context("make a consumer")?;
        let mut count = 0;
        for partition in 0..PARTITIONS {
            let ends = consumer.fetch_watermarks(TOPIC, partition, ANSWER_LIMIT).context("read where it ends")?;
            count += u64::try_from(ends.1 - ends.0).context("read how long it is")?;
        }
        Ok(count)
    }

    pub(super) async fn empty(&self) -> anyhow::Result<()> {
        let mut all = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            all.add_partition_offset(TOPIC, partition, Offset::End).context("name a partition")?;
        }
        let admin: AdminClient<DefaultClientContext> = self.client().create().context("make a client")?;
        let emptied = admin.delete_records(&all, &AdminOptions::new()).await.context("empty the topic")?;
        emptied.elements().iter().try_for_each(rdkafka::topic_partition_list::TopicPartitionListElem::error)?;
        Ok(())
    }

    pub(super) async fn read(&self, events: &Events) -> anyhow::Result<Vec<u64>> {
        let records = topics::read_topic(&self.0, TOPIC).await;
        let numbers = records.iter().map(|record| {
            let id = record.header("hookgate-event-id").context("find the id of a message")?;
            events.number_of(id).with_context(|| format!("find the id of an event in {id}"))
        });
        numbers.collect()
    }

    pub(super) fn probed(&self) -> Target {
        Target::Kafka { address: self.0.direct_address(), topic: PROBES.to_owned() }
    }

    pub(super) fn about(&self) -> String {
        format!("Kafka {KAFKA_VERSION}, a topic of {PARTITIONS} partitions")
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.0.direct_address());
        config
    }
}

/// Publishes to a topic.
pub(crate) struct KafkaPublisher {
    producer: FutureProducer,
    topic: String,
}

impl KafkaPublisher {
    /// Connects when there is something to publish.
    pub(crate) fn new(address: &str, topic: &str) -> anyhow::Result<Self> {
        let mut config = ClientConfig::new();
        // The library would wait for more messages.
        config.set("bootstrap.servers", address).set("linger.ms", "0");
        Ok(Self { producer: config.create().context("make a producer")?, topic: topic.to_owned() })
    }

    /// Publishes a message and waits until the broker has acknowledged it.
    pub(crate) async fn publish(&self, body: &[u8]) -> anyhow::Result<()> {
        let record = FutureRecord::<(), [u8]>::to(&self.topic).payload(body);
        let sent = self.producer.send(record, ANSWER_LIMIT).await;
        sent.map_err(|(error, _)| error).context("publish").map(drop)
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::message::{Header, OwnedHeaders};

    use super::*;
    use crate::event::Kind;

    #[tokio::test]
    async fn what_is_in_the_topic_is_read_until_it_is_emptied() {
        let kafka = Kafka::start().await.expect("it starts");
        let events = Events::new(Kind::New, "localhost", "/", b"secret", 256, 7);
        let producer: FutureProducer = kafka.client().create().expect("the properties are right");
        for id in ["00000007-0000-4000-8000-000000000001", "a=00000007-0000-4000-8000-00000000000b"] {
            let headers = OwnedHeaders::new().insert(Header { key: "hookgate-event-id", value: Some(id) });
            let record = FutureRecord::<str, str>::to(TOPIC).payload("{}").headers(headers);
            producer.send(record, ANSWER_LIMIT).await.expect("it takes it");
        }
        let mut numbers = kafka.read(&events).await.expect("readable");
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 11]);
        assert_eq!(kafka.messages().await.expect("it counts"), 2);
        kafka.empty().await.expect("it lets us");
        assert_eq!(kafka.messages().await.expect("it counts"), 0);
        assert_eq!(kafka.read(&events).await.expect("readable"), [] as [u64; 0]);
    }
}
