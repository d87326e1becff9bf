//! What these tests arrange with, beside the testkit: a place on a server, a sink for it, and messages for the sink.

#![allow(dead_code, reason = "each test file is a program of its own and uses a part of this")]

use std::{sync::Arc, time::Duration};

use hookgate_core::{
    event::SinkId,
    limits::Deadline,
    message::Message,
    observe::Chain,
    secret::ResolveSecret,
    sink::{ConnectError, Position, PublishError, PublishReason, Receipt, Sink, Target},
};
use hookgate_sink_amqp::{AmqpSink, Config};
use hookgate_testkit::{
    event::TestEvent,
    process::wait_until,
    rabbit::{Borrowed, PASSWORD, QueueArgument, RabbitMessage, RabbitServer, USER},
    recorder::Recorder,
    sinks::resolve,
};
use tokio::task::JoinHandle;

/// Longest wait for something that should come about by itself.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Much longer than anything may take: a wait for it shows.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// What "at once" means on a busy machine.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(2);

/// A sink with its observer.
pub(crate) struct Connected {
    pub(crate) sink: Arc<AmqpSink>,
    pub(crate) seen: Arc<Recorder>,
}

/// A topic exchange of this test alone, with a durable queue of the same name that is bound to `hooks.#`.
pub(crate) struct Place {
    pub(crate) name: String,
}

pub(crate) fn id() -> SinkId {
    SinkId::new(0, "mq")
}

pub(crate) fn ample() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

/// A running server and a place on it.
pub(crate) async fn server_with_place() -> (Borrowed, Place) {
    let server = RabbitServer::borrow().await;
    let place = Place::on(&server, &[]).await;
    (server, place)
}

impl Place {
    pub(crate) async fn on(server: &RabbitServer, arguments: &[(&str, QueueArgument)]) -> Self {
        let place = Self { name: format!("hooks-{:016x}", fastrand::u64(..)) };
        place.make(server, arguments).await;
        place
    }

    pub(crate) async fn make(&self, server: &RabbitServer, arguments: &[(&str, QueueArgument)]) {
        let mut wire = server.wire().await;
        wire.declare_exchange(&self.name, "topic").await;
        wire.declare_queue(&self.name, arguments).await;
        wire.bind(&self.name, &self.name, "hooks.#").await;
    }

    /// Starts a server again that was killed, and binds anew.
    pub(crate) async fn restart(&self, server: &mut RabbitServer) {
        server.restart().await;
        server.wire().await.bind(&self.name, &self.name, "hooks.#").await;
    }

    /// Removes both.
    pub(crate) async fn remove(&self, server: &RabbitServer) {
        let mut wire = server.wire().await;
        wire.delete_exchange(&self.name).await;
        wire.delete_queue(&self.name).await;
    }

    pub(crate) fn target(&self) -> Target {
        self.target_at("hooks.a")
    }

    /// Where no queue is bound.
    pub(crate) fn unroutable(&self) -> Target {
        self.target_at("elsewhere.a")
    }

    pub(crate) fn target_at(&self, routing_key: &str) -> Target {
        target(&self.name, routing_key)
    }

    pub(crate) fn message(&self, name: &str) -> Message {
        message_to(name, &self.target())
    }

    pub(crate) fn messages(&self, count: usize) -> Vec<Message> {
        (0..count).map(|number| self.message(&number.to_string())).collect()
    }

    pub(crate) async fn stored(&self, server: &RabbitServer) -> Vec<RabbitMessage> {
        server.wire().await.messages(&self.name).await
    }

    /// The message ids of all that are stored.
    pub(crate) async fn stored_ids(&self, server: &RabbitServer) -> Vec<String> {
        self.stored(server).await.into_iter().map(|stored| stored.message_id.expect("ours have one")).collect()
    }
}

pub(crate) fn target(exchange: &str, routing_key: &str) -> Target {
    Target::Exchange { exchange: exchange.to_owned(), routing_key: routing_key.to_owned() }
}

pub(crate) fn message_to(name: &str, target: &Target) -> Message {
    TestEvent::new(name).to(&id(), target)
}

/// A config for the broker at `url`, with the login of the tests and further lines.
pub(crate) fn config(url: &str, more: &str) -> Config {
    config_without_login(&format!("url = '{url}'\nuser = '{USER}'\npassword = '{PASSWORD}'\n{more}"))
}

pub(crate) fn config_without_login(text: &str) -> Config {
    let config: Config = toml::from_str(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.check(), []);
    config
}

pub(crate) async fn try_connect(config: &Config) -> Result<Connected, ConnectError> {
    try_connect_with(config, &mut resolve).await
}

pub(crate) async fn try_connect_with(
    config: &Config,
    resolve: &mut ResolveSecret<'_>,
) -> Result<Connected, ConnectError> {
    let seen = Arc::new(Recorder::default());
    let sink = hookgate_sink_amqp::connect(id(), config, resolve, seen.clone()).await?;
    Ok(Connected { sink: Arc::new(sink), seen })
}

pub(crate) async fn connect(config: &Config) -> Connected {
    try_connect(config).await.unwrap_or_else(|error| panic!("{}", Chain(&error)))
}

impl Connected {
    pub(crate) async fn publish(&self, message: &Message) -> Result<Position, PublishError> {
        let receipt = self.sink.publish(message, ample()).await?;
        Ok(receipt.position().clone())
    }

    pub(crate) async fn publish_well(&self, message: &Message) -> Position {
        self.publish(message).await.unwrap_or_else(|error| panic!("{}", Chain(&error)))
    }

    pub(crate) async fn publish_badly(&self, message: &Message) -> PublishError {
        self.publish(message).await.expect_err("it earns no receipt")
    }

    pub(crate) async fn probe_badly(&self) -> PublishError {
        self.sink.probe(ample()).await.expect_err("the probe finds something")
    }

    pub(crate) fn begin(&self, message: Message, deadline: Deadline) -> JoinHandle<Result<Receipt, PublishError>> {
        let sink = Arc::clone(&self.sink);
        tokio::spawn(async move { sink.publish(&message, deadline).await })
    }

    /// Waits until the sink can publish.
    pub(crate) async fn recovers(&self) {
        let probe = async || self.sink.probe(ample()).await.is_ok();
        wait_until(LIMIT, "the sink can publish", probe).await;
    }

    /// Waits until the sink knows that the broker refuses us; at first it may know only that the connection is gone.
    pub(crate) async fn is_refused(&self) {
        let refused = async || self.sink.probe(ample()).await.is_err_and(|error| error.reason == PublishReason::Auth);
        wait_until(LIMIT, "the sink knows that the broker refuses us", refused).await;
    }

    /// Waits until the sink has told that it cannot publish, this many times.
    pub(crate) async fn tells_down(&self, times: usize) {
        wait_until(LIMIT, "the sink tells that it is down", async || self.seen.count("sink_down") >= times).await;
    }
}
