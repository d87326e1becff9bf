//! How long a broker itself takes: messages of our own beside the load, each timed from its publication to its acknowledgement.
//!
//! They go where no event goes. So they are neither taken for lost nor for found, and what a server adds to its broker's time
//! can be told from that time in the same seconds, on the same machine.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use async_nats::jetstream;
use hdrhistogram::Histogram;
use lapin::{BasicProperties, Channel, Confirmation, Connection, options::BasicPublishOptions};
use tokio::{
    runtime,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

#[cfg(feature = "kafka")]
use crate::brokers::KafkaPublisher;
use crate::{
    PERSISTENT,
    brokers::confirming_channel,
    load::{histogram, record},
};

/// Time between two messages.
const INTERVAL: Duration = Duration::from_millis(5);

/// Longest wait for an acknowledgement.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Where messages go.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// A subject that a stream listens on.
    JetStream { url: String, subject: String },
    /// A queue that is there.
    RabbitMq { url: String, queue: String },
    /// A topic that is there.
    #[cfg(feature = "kafka")]
    Kafka { address: String, topic: String },
}

/// Messages on their way, on a thread of their own.
#[derive(Debug)]
pub(crate) struct Probe(JoinHandle<anyhow::Result<Histogram<u64>>>);

impl Probe {
    /// Begins to publish messages of `bytes` each, for `duration`; one that is late delays no other.
    pub(crate) fn begin(target: Target, bytes: usize, duration: Duration) -> Self {
        let end = Instant::now() + duration;
        Self(thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
            runtime.block_on(publish_until(end, &target, vec![b'x'; bytes]))
        }))
    }

    /// Waits for its end, and tells how long acknowledgements took, in nanoseconds.
    ///
    /// # Errors
    /// When the broker could not be reached, or did not take a message.
    pub(crate) fn end(self) -> anyhow::Result<Histogram<u64>> {
        self.0.join().map_err(|_| anyhow!("the probe has panicked"))?.context("publish beside the load")
    }
}

async fn publish_until(end: Instant, target: &Target, body: Vec<u8>) -> anyhow::Result<Histogram<u64>> {
    let publisher = Arc::new(Publisher::connect(target).await?);
    let body = Arc::new(body);
    // What a client does but once, as asking where a topic is, is no part of an acknowledgement.
    publisher.publish(&body).await?;
    let latencies = Arc::new(Mutex::new(histogram()));
    let (mut tick, mut waiting) = (interval(INTERVAL), JoinSet::new());
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while Instant::now() < end {
        tick.tick().await;
        let (publisher, body, latencies) = (Arc::clone(&publisher), Arc::clone(&body), Arc::clone(&latencies));
        waiting.spawn(async move {
            let begun = Instant::now();
            let published = tokio::time::timeout(ANSWER_LIMIT, publisher.publish(&body)).await;
            let taken = begun.elapsed();
            published.context("wait for an acknowledgement")??;
            record(&mut latencies.lock().unwrap_or_else(PoisonError::into_inner), taken);
            anyhow::Ok(())
        });
    }
    while let Some(published) = waiting.join_next().await {
        published.context("wait for a message")??;
    }
    let latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(latencies)
}

enum Publisher {
    JetStream {
        stream: jetstream::Context,
        subject: String,
    },
    RabbitMq {
        channel: Channel,
        _connection: Connection,
        queue: String,
    },
    #[cfg(feature = "kafka")]
    Kafka(KafkaPublisher),
}

impl Publisher {
    async fn connect(target: &Target) -> anyhow::Result<Self> {
        match target {
            Target::JetStream { url, subject } => {
                let client = async_nats::connect(url).await.with_context(|| format!("connect to {url}"))?;
                Ok(Self::JetStream { stream: jetstream::new(client), subject: subject.clone() })
            }
            Target::RabbitMq { url, queue } => {
                let (connection, channel) = confirming_channel(url).await?;
                Ok(Self::RabbitMq { channel, _connection: connection, queue: queue.clone() })
            }
            #[cfg(feature = "kafka")]
            Target::Kafka { address, topic } => Ok(Self::Kafka(KafkaPublisher::new(address, topic)?)),
        }
    }

    /// Publishes a message and waits until the broker has acknowledged it.
    async fn publish(&self, body: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::JetStream { stream, subject } => {
                let sent = stream.publish(subject.clone(), body.to_vec().into()).await.context("publish")?;
                sent.await.context("wait for the acknowledgement")?;
            }
            Self::RabbitMq { channel, queue, .. } => {
                let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
                let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
                let sent = channel.basic_publish("".into(), queue.as_str().into(), mandatory, body, properties).await;
                let confirmed = sent.context("publish")?.await.context("wait for the confirmation")?;
                ensure!(matches!(confirmed, Confirmation::Ack(None)), "RabbitMQ did not take a message: {confirmed:?}");
            }
            #[cfg(feature = "kafka")]
            Self::Kafka(publisher) => publisher.publish(body).await?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hookgate_testkit::nats::{NatsConfig, NatsServer};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn acknowledgements_are_timed_and_a_subject_that_nobody_stores_is_an_error() {
        let server = NatsServer::start(NatsConfig::default()).await;
        let stream = json!({ "name": "PROBE", "subjects": ["probe"], "storage": "memory" });
        server.wire().await.create_stream(&stream).await;
        let probe = |subject: &str| {
            let target = Target::JetStream { url: server.url(), subject: subject.to_owned() };
            Probe::begin(target, 100, Duration::from_millis(500)).end()
        };
        let latencies = probe("probe").expect("it is stored");
        assert!((20..=101).contains(&latencies.len()), "{}", latencies.len());
        assert!(latencies.min() > 0);
        let stored = server.wire().await.stream_info("PROBE").await["state"]["messages"].as_u64();
        assert_eq!(stored, Some(latencies.len() + 1), "each message, and the first one that is not timed");
        probe("elsewhere").expect_err("nobody stores it");
    }
}
