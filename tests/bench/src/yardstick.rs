//! What hookgate is compared with: the least that a receiver of webhooks can do, and what one writes who wires libraries together.
//!
//! None is meant to be good at anything but being short: no routing by config, no limits, no metrics, nothing kept while a broker is
//! away. They are what a figure of hookgate is to be held against.

use std::{borrow::Cow, net::SocketAddr, sync::Arc};

use anyhow::Context;
use async_nats::jetstream;
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
    serve::ListenerExt,
};
use data_encoding::HEXLOWER_PERMISSIVE;
use hmac::{Hmac, KeyInit, Mac};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable},
};
use redis::aio::MultiplexedConnection;
use serde::Deserialize;
use sha2::Sha256;
use tokio::{net::TcpListener, runtime};

use crate::{PERSISTENT, SECRET_VARIABLE, brokers::confirming_channel};

/// Runs a server to compare with, until it is killed.
#[derive(Debug, clap::Args)]
pub(crate) struct Yardstick {
    #[command(subcommand)]
    server: Server,
    /// Where it listens.
    #[arg(long, global = true, default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
    /// Its threads.
    #[arg(long, global = true, value_enum, default_value_t = Threads::Current)]
    threads: Threads,
}

#[derive(Debug, clap::Subcommand)]
enum Server {
    /// HMAC, a look into the JSON, 200.
    Bare,
    /// The same, then SET NX in Redis, then a publication to JetStream whose acknowledgement is awaited.
    Composite {
        /// The URL of Redis.
        #[arg(long)]
        redis: String,
        /// The URL of NATS.
        #[arg(long)]
        nats: String,
    },
    /// The same with RabbitMQ in place of JetStream: a publication whose confirmation is awaited.
    CompositeAmqp {
        /// The URL of Redis.
        #[arg(long)]
        redis: String,
        /// The URL of RabbitMQ.
        #[arg(long)]
        amqp: String,
        /// The queue, which is there already.
        #[arg(long)]
        queue: String,
    },
}

/// The runtime of a yardstick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Threads {
    /// One thread, tokio's `current_thread`.
    Current,
    /// Two workers.
    Two,
}

impl Yardstick {
    /// Serves until the process is killed.
    ///
    /// # Errors
    /// When it cannot begin.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let runtime = match self.threads {
            Threads::Current => runtime::Builder::new_current_thread().enable_all().build(),
            Threads::Two => runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build(),
        };
        runtime.context("start the runtime")?.block_on(self.serve())
    }

    async fn serve(self) -> anyhow::Result<()> {
        let secret = std::env::var(SECRET_VARIABLE).with_context(|| format!("read {SECRET_VARIABLE}"))?;
        let key = Hmac::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
        let router = match &self.server {
            Server::Bare => Router::new().route("/github", post(bare)).with_state(key),
            Server::Composite { redis, nats } => {
                let nats = async_nats::connect(nats).await.context("connect to NATS")?;
                composite(key, redis, Broker::JetStream(jetstream::new(nats))).await?
            }
            Server::CompositeAmqp { redis, amqp, queue } => {
                let (connection, channel) = confirming_channel(amqp).await?;
                composite(key, redis, Broker::RabbitMq { channel, _connection: connection, queue: queue.clone() })
                    .await?
            }
        };
        let listener = TcpListener::bind(self.listen).await.with_context(|| format!("listen at {}", self.listen))?;
        let listener = listener.tap_io(|stream| {
            // Who is gone by now needs no answer quickly.
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, router).await.context("serve")
    }
}

type Key = Hmac<Sha256>;

/// What is looked for in an event of GitHub's.
#[derive(Debug, Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    action: Cow<'a, str>,
    #[serde(borrow)]
    repository: Repository<'a>,
    #[serde(borrow)]
    sender: Sender<'a>,
}

#[derive(Debug, Deserialize)]
struct Repository<'a> {
    #[serde(borrow)]
    full_name: Cow<'a, str>,
}

#[derive(Debug, Deserialize)]
struct Sender<'a> {
    #[serde(borrow)]
    login: Cow<'a, str>,
}

/// An event that is what it says: its id, and some of its fields.
struct Event<'a> {
    id: &'a str,
    fields: Fields<'a>,
}

fn verified<'a>(key: &Key, headers: &'a HeaderMap, body: &'a Bytes) -> Result<Event<'a>, StatusCode> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let digits =
        text("x-hub-signature-256").and_then(|value| value.strip_prefix("sha256=")).ok_or(StatusCode::UNAUTHORIZED)?;
    let signature = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).map_err(|_| StatusCode::UNAUTHORIZED)?;
    key.clone().chain_update(body).verify_slice(&signature).map_err(|_| StatusCode::UNAUTHORIZED)?;
    let id = text("x-github-delivery").ok_or(StatusCode::BAD_REQUEST)?;
    let fields = serde_json::from_slice(body).map_err(|_| StatusCode::BAD_REQUEST)?;
    Ok(Event { id, fields })
}

async fn bare(State(key): State<Key>, headers: HeaderMap, body: Bytes) -> (StatusCode, String) {
    match verified(&key, &headers, &body) {
        Ok(event) => (StatusCode::OK, said("delivered", event.id)),
        Err(status) => (status, String::new()),
    }
}

async fn composite(key: Key, redis: &str, broker: Broker) -> anyhow::Result<Router> {
    let client = redis::Client::open(redis).context("read the URL of Redis")?;
    let redis = client.get_multiplexed_async_connection().await.context("connect to Redis")?;
    Ok(Router::new().route("/github", post(composed)).with_state(Arc::new(Composite { key, redis, broker })))
}

struct Composite {
    key: Key,
    redis: MultiplexedConnection,
    broker: Broker,
}

enum Broker {
    JetStream(jetstream::Context),
    /// The connection ends with its last channel or on drop, whichever is first.
    RabbitMq {
        channel: Channel,
        _connection: Connection,
        queue: String,
    },
}

async fn composed(State(own): State<Arc<Composite>>, headers: HeaderMap, body: Bytes) -> (StatusCode, String) {
    let event = match verified(&own.key, &headers, &body) {
        Ok(event) => event,
        Err(status) => return (status, String::new()),
    };
    let (mut redis, key) = (own.redis.clone(), format!("composite:{}", event.id));
    let mut command = redis::cmd("SET");
    command.arg(&key).arg(1).arg("NX").arg("EX").arg(24 * 60 * 60);
    match command.query_async::<Option<String>>(&mut redis).await {
        Ok(Some(_)) => {}
        Ok(None) => return (StatusCode::OK, said("duplicate", event.id)),
        Err(_) => return (StatusCode::SERVICE_UNAVAILABLE, String::new()),
    }
    let stored = match &own.broker {
        Broker::JetStream(stream) => publish(stream, &event, body.clone()).await.is_ok(),
        Broker::RabbitMq { channel, queue, .. } => {
            // What is returned was routed nowhere, whatever is confirmed.
            matches!(publish_to_queue(channel, queue, &event, &body).await, Ok(Confirmation::Ack(None)))
        }
    };
    if stored {
        return (StatusCode::OK, said("delivered", event.id));
    }
    // What cannot be taken back now is taken back by its expiry.
    let _ = redis::cmd("DEL").arg(&key).query_async::<()>(&mut redis).await;
    (StatusCode::SERVICE_UNAVAILABLE, String::new())
}

async fn publish(
    stream: &jetstream::Context,
    event: &Event<'_>,
    body: Bytes,
) -> Result<(), jetstream::context::PublishError> {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", event.id);
    headers.insert("content-type", "application/json");
    headers.insert("repository", &*event.fields.repository.full_name);
    headers.insert("sender", &*event.fields.sender.login);
    let subject = format!("hooks.github.{}", event.fields.action);
    stream.publish_with_headers(subject, headers, body).await?.await.map(|_| ())
}

async fn publish_to_queue(
    channel: &Channel,
    queue: &str,
    event: &Event<'_>,
    body: &[u8],
) -> lapin::Result<Confirmation> {
    let mut headers = FieldTable::default();
    let text = |value: &str| AMQPValue::LongString(value.into());
    headers.insert("repository".into(), text(&event.fields.repository.full_name));
    headers.insert("sender".into(), text(&event.fields.sender.login));
    headers.insert("action".into(), text(&event.fields.action));
    let properties = BasicProperties::default()
        .with_message_id(event.id.into())
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers);
    let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    channel.basic_publish("".into(), queue.into(), mandatory, body, properties).await?.await
}

fn said(outcome: &str, id: &str) -> String {
    format!(r#"{{"event_id":"{id}","outcome":"{outcome}"}}"#)
}
