//! The brokers that servers under test publish to: started, counted, emptied and read, whichever it is.

#[cfg(feature = "kafka")]
mod kafka;
#[cfg(not(feature = "kafka"))]
#[path = "brokers/no_kafka.rs"]
mod kafka;
mod rabbit;

use std::process::Command;

use anyhow::Context;
use hookgate_testkit::{
    nats::{NatsConfig, NatsServer},
    process::program,
    rabbit::RabbitServer,
    redis::{RedisConfig, RedisServer},
};
use serde_json::json;

#[cfg(feature = "kafka")]
pub(crate) use self::kafka::KafkaPublisher;
pub(crate) use self::rabbit::confirming_channel;
use self::{kafka::Kafka, rabbit::Rabbit};
use crate::{
    event::Events,
    probe::Target,
    report::Storage,
    stored,
    system::{Addresses, STREAM, SUBJECTS},
};

/// A kind of broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broker {
    /// JetStream of NATS.
    JetStream,
    /// RabbitMQ.
    RabbitMq,
    /// Apache Kafka.
    Kafka,
}

impl Broker {
    /// Why nothing can be measured with it here, in words for a report.
    pub(crate) fn missing(self) -> Option<&'static str> {
        match self {
            // Those two are needed in any case.
            Self::JetStream => None,
            Self::RabbitMq => (!RabbitServer::is_installed()).then_some("there is no rabbitmq-server here"),
            Self::Kafka => kafka::missing(),
        }
    }
}

/// Where messages of a probe go: the stream, its subject, the queue and the topic.
const PROBES: &str = "probes";

/// The brokers that run. They end on drop.
#[derive(Debug)]
pub(crate) struct Brokers {
    nats: NatsServer,
    redis: RedisServer,
    rabbit: Option<Rabbit>,
    kafka: Option<Kafka>,
    storage: Storage,
}

impl Brokers {
    /// Starts NATS and Redis, and of the others those that are wanted.
    ///
    /// # Errors
    /// When a queue cannot be made.
    ///
    /// # Panics
    /// When a broker does not start.
    pub(crate) async fn start(storage: Storage, wanted: &[Broker]) -> anyhow::Result<Self> {
        let nats = NatsServer::start(NatsConfig::default()).await;
        let redis = RedisServer::start(&RedisConfig::default()).await;
        let stream = json!({ "name": STREAM, "subjects": [SUBJECTS], "storage": storage.name() });
        nats.wire().await.create_stream(&stream).await;
        let probes = json!({ "name": PROBES, "subjects": [PROBES], "storage": storage.name() });
        nats.wire().await.create_stream(&probes).await;
        let rabbit = if wanted.contains(&Broker::RabbitMq) { Some(Rabbit::start().await?) } else { None };
        let kafka = if wanted.contains(&Broker::Kafka) { Some(Kafka::start().await?) } else { None };
        Ok(Self { nats, redis, rabbit, kafka, storage })
    }

    /// Where they are.
    pub(crate) fn addresses(&self) -> Addresses {
        Addresses {
            redis: self.redis.url(),
            nats: self.nats.url(),
            amqp: self.rabbit.as_ref().map(Rabbit::url).unwrap_or_default(),
            kafka: self.kafka.as_ref().map(Kafka::address).unwrap_or_default(),
        }
    }

    /// Forgets all that Redis was told.
    pub(crate) async fn forget(&self) {
        self.redis.wire().await.done(&["FLUSHALL"]).await;
    }

    /// How many commands Redis has run since its start, this one included.
    ///
    /// # Errors
    /// When it does not say.
    pub(crate) async fn commands(&self) -> anyhow::Result<u64> {
        let stats = self.redis.wire().await.text(&["INFO", "stats"]).await.context("read what Redis tells")?;
        let line = stats.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        line.and_then(|number| number.trim().parse().ok()).context("read the number of commands")
    }

    /// How many messages a broker holds.
    ///
    /// # Errors
    /// When it does not say.
    pub(crate) async fn messages(&self, broker: Broker) -> anyhow::Result<u64> {
        match broker {
            Broker::JetStream => {
                let info = self.nats.wire().await.stream_info(STREAM).await;
                info["state"]["messages"].as_u64().context("read the number of messages")
            }
            Broker::RabbitMq => self.rabbit()?.messages().await,
            Broker::Kafka => self.kafka()?.messages().await,
        }
    }

    /// Removes all messages of a broker.
    ///
    /// # Errors
    /// When it does not let us.
    pub(crate) async fn empty(&self, broker: Broker) -> anyhow::Result<()> {
        match broker {
            Broker::JetStream => self.nats.wire().await.purge(STREAM).await,
            Broker::RabbitMq => self.rabbit()?.empty().await,
            Broker::Kafka => self.kafka()?.empty().await?,
        }
        Ok(())
    }

    /// The number of the event that each message of a broker is of. The messages may be gone then.
    ///
    /// # Errors
    /// When they cannot be read, or there is one of something else.
    pub(crate) async fn read(&self, broker: Broker, events: &Events) -> anyhow::Result<Vec<u64>> {
        match broker {
            Broker::JetStream => stored::read(&self.nats.url(), STREAM, events).await,
            Broker::RabbitMq => self.rabbit()?.take_all(events).await,
            Broker::Kafka => self.kafka()?.read(events).await,
        }
    }

    /// Where messages can be published to a broker that are not events.
    ///
    /// # Errors
    /// When it does not run.
    pub(crate) fn probed(&self, broker: Broker) -> anyhow::Result<Target> {
        Ok(match broker {
            Broker::JetStream => Target::JetStream { url: self.nats.url(), subject: PROBES.to_owned() },
            Broker::RabbitMq => Target::RabbitMq { url: self.rabbit()?.url(), queue: PROBES.to_owned() },
            Broker::Kafka => self.kafka()?.probed(),
        })
    }

    /// Removes all messages of probes. Those in a topic stay: nobody reads it.
    ///
    /// # Errors
    /// When a broker does not run.
    pub(crate) async fn forget_probes(&self, broker: Broker) -> anyhow::Result<()> {
        match broker {
            Broker::JetStream => self.nats.wire().await.purge(PROBES).await,
            Broker::RabbitMq => self.rabbit()?.forget_probes().await,
            Broker::Kafka => {}
        }
        Ok(())
    }

    /// What runs, in which version, for a report.
    pub(crate) async fn about(&self) -> String {
        let info = self.redis.wire().await.text(&["INFO", "server"]).await.unwrap_or_default();
        let redis = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("unknown").trim();
        let nats = Command::new(program("nats-server")).arg("--version").output();
        let nats = nats.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
        let storage = self.storage.name();
        let mut about = format!("{nats}, JetStream in {storage} storage; Redis {redis}, nothing on disk");
        if let Some(rabbit) = &self.rabbit {
            about.push_str(&format!("; {}", rabbit.about().await));
        }
        if let Some(kafka) = &self.kafka {
            about.push_str(&format!("; {}", kafka.about()));
        }
        about
    }

    fn rabbit(&self) -> anyhow::Result<&Rabbit> {
        self.rabbit.as_ref().context("find RabbitMQ: it was not started")
    }

    fn kafka(&self) -> anyhow::Result<&Kafka> {
        self.kafka.as_ref().context("find Kafka: it was not started")
    }
}
