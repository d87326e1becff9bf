//! The broker that a world has, whichever it is.

use std::time::Duration;

use hookgate_testkit::{
    nats::{NatsConfig, NatsServer},
    proxy::FaultProxy,
    rabbit::{PASSWORD, RabbitConfig, RabbitServer, USER},
};
use tokio::time::sleep;
#[cfg(feature = "kafka")]
use {
    crate::kafka_topics::{create_topic, read_topic},
    hookgate_testkit::kafka::{KafkaConfig, KafkaServer},
    hookgate_testkit::process::free_port,
};

use super::Kind;
use crate::relay::{create_stream, to_nats};

/// A message that it holds, with the id of its event.
pub(crate) struct Held {
    pub(crate) id: String,
    pub(crate) body: Vec<u8>,
    /// Where it is, as its broker counts; where consumers see it.
    pub(crate) offset: Option<u64>,
}

pub(crate) struct Broker {
    server: Server,
    /// Between the relays and it.
    proxy: FaultProxy,
}

enum Server {
    Nats(NatsServer),
    Rabbit(RabbitServer),
    #[cfg(feature = "kafka")]
    Kafka(KafkaServer),
}

/// Every broker has one place, and it is called this.
const PLACE: &str = "hooks";

impl Broker {
    pub(crate) async fn start(kind: Kind) -> Self {
        let (server, port) = match kind {
            Kind::Nats => {
                let nats = NatsServer::start(NatsConfig::default()).await;
                create_stream(&nats).await;
                let port = nats.port();
                (Server::Nats(nats), port)
            }
            Kind::Rabbit => {
                let rabbit = RabbitServer::start(&RabbitConfig::default()).await;
                let mut wire = rabbit.wire().await;
                wire.declare_exchange(PLACE, "topic").await;
                wire.declare_queue(PLACE, &[]).await;
                wire.bind(PLACE, PLACE, "#").await;
                let port = rabbit.port();
                (Server::Rabbit(rabbit), port)
            }
            #[cfg(feature = "kafka")]
            Kind::Kafka => {
                // A client connects where the broker says it is, so that it has to know its proxy.
                let port = free_port();
                let proxy = FaultProxy::start(format!("127.0.0.1:{port}")).await;
                let kafka = KafkaServer::start_behind(proxy.port(), port, &KafkaConfig::default()).await;
                create_topic(&kafka, PLACE, 3, &[]).await;
                return Self { server: Server::Kafka(kafka), proxy };
            }
        };
        Self { server, proxy: FaultProxy::start(format!("127.0.0.1:{port}")).await }
    }

    /// A sink `out` in it, and a route that sends everything there.
    pub(crate) fn tables(&self) -> String {
        let address = self.proxy.address();
        match &self.server {
            Server::Nats(_) => to_nats(&format!("nats://{address}")).replace("js", "out"),
            Server::Rabbit(_) => format!(
                "[sinks.out]\ntype = \"amqp\"\nurl = \"amqp://{USER}:{PASSWORD}@{address}\"\n\
                 [[routes]]\nto = [{{ sink = \"out\", exchange = \"{PLACE}\", routing_key = \"openclaw.{{attr.job}}\" }}]\n"
            ),
            #[cfg(feature = "kafka")]
            Server::Kafka(_) => format!(
                "[sinks.out]\ntype = \"kafka\"\nbrokers = [\"{address}\"]\n\
                 [[routes]]\nto = [{{ sink = \"out\", topic = \"{PLACE}\" }}]\n"
            ),
        }
    }

    pub(crate) fn kill(&mut self) {
        match &mut self.server {
            Server::Nats(nats) => nats.kill(),
            Server::Rabbit(rabbit) => rabbit.kill(),
            #[cfg(feature = "kafka")]
            Server::Kafka(kafka) => kafka.kill(),
        }
    }

    pub(crate) async fn restart(&mut self) {
        match &mut self.server {
            Server::Nats(nats) => nats.restart().await,
            Server::Rabbit(rabbit) => {
                rabbit.restart().await;
                // Killed, it may have forgotten that.
                rabbit.wire().await.bind(PLACE, PLACE, "#").await;
            }
            #[cfg(feature = "kafka")]
            Server::Kafka(kafka) => kafka.restart().await,
        }
    }

    pub(crate) async fn pause(&mut self, pause: Duration) {
        match &mut self.server {
            Server::Nats(nats) => nats.pause(),
            Server::Rabbit(rabbit) => rabbit.pause(),
            #[cfg(feature = "kafka")]
            Server::Kafka(kafka) => kafka.pause(),
        }
        sleep(pause).await;
        match &mut self.server {
            Server::Nats(nats) => nats.resume(),
            Server::Rabbit(rabbit) => rabbit.resume(),
            #[cfg(feature = "kafka")]
            Server::Kafka(kafka) => kafka.resume(),
        }
    }

    pub(crate) async fn cut_connections(&self) {
        self.proxy.cut().await;
    }

    /// For a while nothing that is published finds its place; what that is, is the broker's affair.
    pub(crate) async fn lose_its_way(&mut self, pause: Duration) {
        match &mut self.server {
            Server::Rabbit(rabbit) => {
                let mut wire = rabbit.wire().await;
                wire.unbind(PLACE, PLACE, "#").await;
                sleep(pause).await;
                wire.bind(PLACE, PLACE, "#").await;
            }
            _ => self.pause(pause).await,
        }
    }

    /// Everything that it holds.
    pub(crate) async fn held(&self) -> Vec<Held> {
        let id = |header: Option<&str>| header.expect("an id").to_owned();
        match &self.server {
            Server::Nats(nats) => {
                let messages = nats.wire().await.read_stream("HOOKS").await;
                let held = messages.into_iter().map(|message| Held {
                    id: id(message.header("ce-id")),
                    body: message.payload.to_vec(),
                    offset: Some(message.sequence),
                });
                held.collect()
            }
            Server::Rabbit(rabbit) => {
                let messages = rabbit.wire().await.messages(PLACE).await;
                let header = |headers: &[(String, String)]| {
                    headers.iter().find(|(name, _)| name == "hookgate-event-id").map(|(_, value)| value.clone())
                };
                let held = messages.into_iter().map(|message| Held {
                    id: id(header(&message.headers).as_deref()),
                    body: message.body.to_vec(),
                    offset: None,
                });
                held.collect()
            }
            #[cfg(feature = "kafka")]
            Server::Kafka(kafka) => {
                let records = read_topic(kafka, PLACE).await;
                let held = records.into_iter().map(|record| Held {
                    id: id(record.header("hookgate-event-id")),
                    body: record.body.to_vec(),
                    offset: None,
                });
                held.collect()
            }
        }
    }
}
