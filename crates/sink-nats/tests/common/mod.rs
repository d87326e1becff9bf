//! What these tests arrange with, beside the testkit: a sink for a server, and messages for the sink.

#![allow(dead_code, reason = "each test file is a program of its own and uses a part of this")]

pub(crate) mod jwt;

use std::{sync::Arc, time::Duration};

use hookgate_core::{
    event::SinkId,
    limits::Deadline,
    message::Message,
    observe::Chain,
    secret::ResolveSecret,
    sink::{ConnectError, Position, PublishError, PublishReason, Sink, Target},
};
use hookgate_sink_nats::{Config, NatsSink};
use hookgate_testkit::{
    event::TestEvent,
    nats::{NatsConfig, NatsServer},
    process::wait_until,
    recorder::Recorder,
    sinks::resolve,
};
use serde_json::json;

/// Longest wait for something that should come about by itself.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// The subject of every message that is not meant to go astray.
pub(crate) const SUBJECT: &str = "hooks.a";

/// A sink with its observer.
pub(crate) struct Connected {
    pub(crate) sink: Arc<NatsSink>,
    pub(crate) seen: Arc<Recorder>,
}

pub(crate) fn id() -> SinkId {
    SinkId::new(0, "js")
}

pub(crate) fn ample() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

/// A server with the stream `HOOKS` on `hooks.>`.
pub(crate) async fn server_with_stream() -> NatsServer {
    let server = NatsServer::start(NatsConfig::default()).await;
    add_stream(&server).await;
    server
}

pub(crate) async fn add_stream(server: &NatsServer) {
    let config = json!({ "name": "HOOKS", "subjects": ["hooks.>"] });
    server.wire().await.create_stream(&config).await;
}

/// A config for the server at `url`, with further lines.
pub(crate) fn config(url: &str, more: &str) -> Config {
    let text = format!("servers = ['{url}']\nstream = 'HOOKS'\n{more}");
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
    let sink = hookgate_sink_nats::connect(id(), config, resolve, seen.clone()).await?;
    Ok(Connected { sink: Arc::new(sink), seen })
}

pub(crate) async fn connect(config: &Config) -> Connected {
    try_connect(config).await.unwrap_or_else(|error| panic!("{}", Chain(&error)))
}

pub(crate) fn message(name: &str) -> Message {
    message_to(name, SUBJECT)
}

pub(crate) fn message_to(name: &str, subject: &str) -> Message {
    TestEvent::new(name).to(&id(), &Target::Subject(subject.to_owned()))
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

    /// Waits until the sink can publish.
    pub(crate) async fn recovers(&self) {
        let probe = async || self.sink.probe(ample()).await.is_ok();
        wait_until(LIMIT, "the sink can publish", probe).await;
    }

    /// Waits until the sink knows that the server refuses us; at first it may know only that the connection is gone.
    pub(crate) async fn is_refused(&self) {
        let refused = async || self.sink.probe(ample()).await.is_err_and(|error| error.reason == PublishReason::Auth);
        wait_until(LIMIT, "the sink knows that the server refuses us", refused).await;
    }

    /// Waits until the sink has told that it cannot publish, this many times.
    pub(crate) async fn tells_down(&self, times: usize) {
        wait_until(LIMIT, "the sink tells that it is down", async || self.seen.count("sink_down") >= times).await;
    }
}
