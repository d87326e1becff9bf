//! A RabbitMQ with one quorum queue, which is what [docs/sinks/amqp.md] advises.
//!
//! [docs/sinks/amqp.md]: ../../../../docs/sinks/amqp.md

use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use hookgate_testkit::rabbit::{PASSWORD, QueueArgument, RabbitConfig, RabbitServer, USER};
use lapin::{
    Channel, Connection, ConnectionProperties,
    message::Delivery,
    options::{BasicConsumeOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::FieldTable,
};
use tokio::time::timeout;

use super::PROBES;
use crate::{event::Events, system::QUEUE};

/// Longest wait for the next message of a queue that has one.
const MESSAGE_LIMIT: Duration = Duration::from_secs(10);

/// A server with its queue.
#[derive(Debug)]
pub(super) struct Rabbit(RabbitServer);

impl Rabbit {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let server = RabbitServer::start(&RabbitConfig::default()).await;
        for queue in [QUEUE, PROBES] {
            server.wire().await.declare_queue(queue, &[("x-queue-type", QueueArgument::Text("quorum"))]).await;
        }
        Ok(Self(server))
    }

    pub(super) fn url(&self) -> String {
        format!("amqp://{USER}:{PASSWORD}@127.0.0.1:{}", self.0.port())
    }

    pub(super) async fn messages(&self) -> anyhow::Result<u64> {
        let (_connection, channel) = channel(&self.url()).await?;
        count(&channel).await
    }

    pub(super) async fn empty(&self) {
        self.0.wire().await.purge(QUEUE).await;
    }

    pub(super) async fn forget_probes(&self) {
        self.0.wire().await.purge(PROBES).await;
    }

    /// Takes every message out, and tells the numbers of their events.
    pub(super) async fn take_all(&self, events: &Events) -> anyhow::Result<Vec<u64>> {
        let (_connection, channel) = channel(&self.url()).await?;
        let count = count(&channel).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consuming = channel.basic_consume(QUEUE.into(), "bench".into(), options, FieldTable::default());
        let mut deliveries = consuming.await.context("read the queue")?;
        let mut numbers = Vec::new();
        for _ in 0..count {
            let next = timeout(MESSAGE_LIMIT, deliveries.next()).await.context("wait for the next message")?;
            let delivery = next.context("read the queue to its end")?.context("read a message")?;
            numbers.push(number_of(&delivery, events)?);
        }
        Ok(numbers)
    }

    pub(super) async fn about(&self) -> String {
        let version = self.0.control(&["version"]).await;
        format!("RabbitMQ {}, a quorum queue", version.trim())
    }
}

/// A connection with a channel, for a while: one that is kept has to answer heartbeats while events are sent.
pub(crate) async fn channel(url: &str) -> anyhow::Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.context("connect to RabbitMQ")?;
    let channel = connection.create_channel().await.context("open a channel")?;
    Ok((connection, channel))
}

/// The same, where messages are confirmed.
pub(crate) async fn confirming_channel(url: &str) -> anyhow::Result<(Connection, Channel)> {
    let (connection, channel) = channel(url).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.context("ask for confirmations")?;
    Ok((connection, channel))
}

async fn count(channel: &Channel) -> anyhow::Result<u64> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(QUEUE.into(), passive, FieldTable::default()).await.context("find the queue")?;
    Ok(queue.message_count().into())
}

fn number_of(delivery: &Delivery, events: &Events) -> anyhow::Result<u64> {
    let id = delivery.properties.message_id().as_ref().context("find the id of a message")?;
    events.number_of(id.as_str()).with_context(|| format!("find the id of an event in {id}"))
}

#[cfg(test)]
mod tests {
    use lapin::{BasicProperties, options::BasicPublishOptions};

    use super::*;
    use crate::event::Kind;

    #[tokio::test]
    async fn all_that_is_in_the_queue_is_read_once() {
        let rabbit = Rabbit::start().await.expect("it starts");
        let events = Events::new(Kind::New, "localhost", "/", b"secret", 256, 7);
        assert_eq!(rabbit.take_all(&events).await.expect("readable"), [] as [u64; 0]);
        let (_connection, channel) = confirming_channel(&rabbit.url()).await.expect("it lets us in, and confirms");
        for id in ["00000007-0000-4000-8000-000000000001", "github:a=00000007-0000-4000-8000-00000000000b"] {
            let properties = BasicProperties::default().with_message_id(id.into());
            let options = BasicPublishOptions::default();
            let sent = channel.basic_publish("".into(), QUEUE.into(), options, b"{}", properties).await;
            sent.expect("it takes it").await.expect("it confirms it");
        }
        assert_eq!(rabbit.messages().await.expect("it counts"), 2);
        assert_eq!(rabbit.take_all(&events).await.expect("readable"), [1, 11]);
        assert_eq!(rabbit.messages().await.expect("it counts"), 0);
    }
}
