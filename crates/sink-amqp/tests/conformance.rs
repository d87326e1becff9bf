//! What every sink must do, against a real rabbitmq-server behind a proxy, with a password.

mod common;

use std::sync::Arc;

use common::{Place, target};
use futures_util::future::BoxFuture;
use hookgate_core::{
    event::SinkId,
    limits::Deadline,
    message::Message,
    observe::Observer,
    sink::{Capabilities, PublishError, Receipt, Sink, Target},
};
use hookgate_sink_amqp::{AmqpSink, Config};
use hookgate_testkit::{
    conformance::{BadCredentials, Broker, Inapplicable, Metadata, Stored},
    conformance_suite,
    proxy::FaultProxy,
    rabbit::{Borrowed, PASSWORD, RabbitMessage, USER},
};
use tokio::task::unconstrained;

const WRONG_PASSWORD: &str = "wr0ng-h0rse";

/// More than the broker is ever sent.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// The sink, exempt from tokio's budget of operations in one turn of a task.
///
/// The suite begins fifty publishes in one turn and takes each for accepted by then. With the four operations that one
/// costs, the budget of 128 ends before the last have come past the `Publisher`'s own bound, and so to the sink.
struct Unconstrained(Arc<AmqpSink>);

impl Sink for Unconstrained {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn publish<'a>(&'a self, message: &'a Message, deadline: Deadline) -> BoxFuture<'a, Result<Receipt, PublishError>> {
        Box::pin(unconstrained(self.0.publish(message, deadline)))
    }

    fn probe(&self, deadline: Deadline) -> BoxFuture<'_, Result<(), PublishError>> {
        self.0.probe(deadline)
    }

    fn close(&self, deadline: Deadline) -> BoxFuture<'_, ()> {
        self.0.close(deadline)
    }
}

struct RabbitBroker {
    server: Borrowed,
    place: Place,
    proxy: Arc<FaultProxy>,
    config: Config,
    sink: Option<Arc<AmqpSink>>,
}

impl RabbitBroker {
    async fn start() -> Self {
        let (server, place) = common::server_with_place().await;
        let proxy = Arc::new(FaultProxy::start(format!("127.0.0.1:{}", server.port())).await);
        let config = with_password(&proxy, PASSWORD);
        Self { server, place, proxy, config, sink: None }
    }

    async fn connect(&self, config: &Config, id: SinkId, observer: Arc<dyn Observer>) -> Arc<AmqpSink> {
        let connected = hookgate_sink_amqp::connect(id, config, &mut hookgate_testkit::sinks::resolve, observer).await;
        Arc::new(connected.expect("the config can be used"))
    }
}

/// The password stands in the URL, where most operators have it.
fn with_password(proxy: &FaultProxy, password: &str) -> Config {
    let url = format!("amqp://{USER}:{password}@{}", proxy.address());
    common::config_without_login(&format!("url = '{url}'\nmax_message = {BODY_BYTES_MAX}"))
}

fn stored(message: RabbitMessage) -> Stored {
    assert_eq!((message.delivery_mode, message.app_id.as_deref()), (Some(2), Some("hookgate")));
    let properties = [("content-type", &message.content_type), ("content-encoding", &message.content_encoding)];
    let properties = properties.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?)));
    let headers = message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    Stored {
        metadata: Metadata::from_headers(headers.chain(properties)),
        broker_id: message.message_id,
        position: None,
        target: target(&message.exchange, &message.routing_key),
        body: message.body,
    }
}

impl Broker for RabbitBroker {
    fn target(&self) -> Target {
        self.place.target()
    }

    async fn sink(&mut self, id: SinkId, observer: Arc<dyn Observer>) -> Arc<dyn Sink> {
        let sink = self.connect(&self.config, id, observer).await;
        self.sink = Some(Arc::clone(&sink));
        Arc::new(Unconstrained(sink))
    }

    async fn stored(&mut self) -> Vec<Stored> {
        self.place.stored(&self.server).await.into_iter().map(stored).collect()
    }

    fn unroutable(&self) -> Result<Target, Inapplicable> {
        Ok(self.place.unroutable())
    }

    async fn silent(&mut self) -> Result<Target, Inapplicable> {
        let queue = format!("silent-{}", self.place.name);
        let mut wire = self.server.wire().await;
        wire.declare_queue(&queue, &[]).await;
        wire.bind(&queue, &self.place.name, "silent.#").await;
        self.server.suspend_queue(&queue).await;
        Ok(self.place.target_at("silent.a"))
    }

    async fn remove_destination(&mut self) -> Result<(), Inapplicable> {
        self.place.remove(&self.server).await;
        Ok(())
    }

    async fn restore_destination(&mut self) {
        self.place.make(&self.server, &[]).await;
    }

    fn body_bytes_too_large(&self) -> Result<usize, Inapplicable> {
        Ok(BODY_BYTES_MAX + 1)
    }

    async fn bad_credentials(
        &mut self,
        id: SinkId,
        observer: Arc<dyn Observer>,
    ) -> Result<BadCredentials, Inapplicable> {
        let config = with_password(&self.proxy, WRONG_PASSWORD);
        Ok(BadCredentials::Connected(self.connect(&config, id, observer).await))
    }

    async fn kill(&mut self) -> Result<(), Inapplicable> {
        self.server.kill();
        Ok(())
    }

    async fn restart(&mut self) {
        self.place.restart(&mut self.server).await;
    }

    async fn pause(&mut self) -> Result<(), Inapplicable> {
        self.server.pause();
        Ok(())
    }

    async fn resume(&mut self) {
        self.server.resume();
    }

    fn proxy(&self) -> Result<Arc<FaultProxy>, Inapplicable> {
        Ok(Arc::clone(&self.proxy))
    }

    fn secrets(&self) -> Result<Vec<String>, Inapplicable> {
        Ok(vec![PASSWORD.to_owned(), WRONG_PASSWORD.to_owned()])
    }

    fn printed(&self) -> Vec<String> {
        vec![
            format!("{:?}", self.config),
            toml::to_string(&self.config).expect("plain data"),
            format!("{:?}", self.sink),
        ]
    }
}

conformance_suite!(RabbitBroker::start().await, inapplicable = []);
