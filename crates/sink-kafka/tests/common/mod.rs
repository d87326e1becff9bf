//! What these tests arrange with, beside the testkit: a cluster's topics, a sink for it, and messages for the sink.

#![allow(dead_code, reason = "each test file is a program of its own and uses a part of this")]

pub(crate) mod topics;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use hookgate_core::{
    event::SinkId,
    limits::Deadline,
    message::Message as EventMessage,
    observe::Chain,
    secret::ResolveSecret,
    sink::{ConnectError, Position, PublishError, PublishReason, Sink, Target},
};
use hookgate_sink_kafka::{Config, KafkaSink};
use hookgate_testkit::{
    event::TestEvent,
    kafka::{KafkaConfig, KafkaServer},
    process::wait_until,
    proxy::FaultProxy,
    recorder::Recorder,
    sinks::resolve,
};
use tokio::sync::Mutex;

/// Longest wait for something that should come about by itself.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// The topic of every message that is not meant to go astray.
pub(crate) const TOPIC: &str = "hooks";

/// A sink with its observer.
pub(crate) struct Connected {
    pub(crate) sink: Arc<KafkaSink>,
    pub(crate) seen: Arc<Recorder>,
}

pub(crate) fn id() -> SinkId {
    SinkId::new(0, "kafka")
}

pub(crate) fn ample() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

/// The server of those tests in a file that do not break it, for as long as any of them runs: a start takes seconds. A
/// static one would outlive the program.
pub(crate) async fn shared_server() -> Arc<KafkaServer> {
    static SERVER: Mutex<Weak<KafkaServer>> = Mutex::const_new(Weak::new());
    let mut shared = SERVER.lock().await;
    match shared.upgrade() {
        Some(server) => server,
        None => {
            let server = Arc::new(KafkaServer::start(&KafkaConfig::default()).await);
            *shared = Arc::downgrade(&server);
            server
        }
    }
}

/// A server behind a proxy, to which it sends its clients.
pub(crate) async fn server_behind_proxy(config: &KafkaConfig) -> (KafkaServer, Arc<FaultProxy>) {
    let port = hookgate_testkit::process::free_port();
    let proxy = FaultProxy::start(format!("127.0.0.1:{port}")).await;
    let server = KafkaServer::start_behind(proxy.port(), port, config).await;
    (server, Arc::new(proxy))
}

/// A config for the broker at `address`, with further lines.
pub(crate) fn config(address: &str, more: &str) -> Config {
    let text = format!("brokers = ['{address}']\n{more}");
    let config: Config = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}"));
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
    let sink = hookgate_sink_kafka::connect(id(), config, resolve, seen.clone()).await?;
    Ok(Connected { sink: Arc::new(sink), seen })
}

pub(crate) async fn connect(config: &Config) -> Connected {
    try_connect(config).await.unwrap_or_else(|error| panic!("{}", Chain(&error)))
}

pub(crate) fn message(name: &str) -> EventMessage {
    message_to(name, TOPIC, "")
}

pub(crate) fn message_to(name: &str, topic: &str, key: &str) -> EventMessage {
    to(&TestEvent::new(name), topic, key)
}

pub(crate) fn to(event: &TestEvent, topic: &str, key: &str) -> EventMessage {
    event.to(&id(), &Target::Topic { topic: topic.to_owned(), key: key.to_owned() })
}

impl Connected {
    pub(crate) async fn publish(&self, message: &EventMessage) -> Result<Position, PublishError> {
        let receipt = self.sink.publish(message, ample()).await?;
        Ok(receipt.position().clone())
    }

    pub(crate) async fn publish_well(&self, message: &EventMessage) -> Position {
        self.publish(message).await.unwrap_or_else(|error| panic!("{}", Chain(&error)))
    }

    pub(crate) async fn publish_badly(&self, message: &EventMessage) -> PublishError {
        self.publish(message).await.expect_err("it earns no receipt")
    }

    pub(crate) async fn probe_badly(&self) -> PublishError {
        self.sink.probe(ample()).await.expect_err("the probe finds something")
    }

    /// Waits until the sink can publish.
    pub(crate) async fn recovers(&self) {
        let probe = async || self.sink.probe(ample()).await.is_ok();
        wait_until(LIMIT, "the sink can publish", probe).await;
    }

    /// Waits until the sink knows that it cannot publish, for this reason.
    pub(crate) async fn knows(&self, reason: PublishReason) {
        let known = async || self.sink.probe(ample()).await.is_err_and(|error| error.reason == reason);
        wait_until(LIMIT, "the sink knows that it cannot publish", known).await;
    }
}
