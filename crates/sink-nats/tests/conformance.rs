//! What every sink must do, against a real nats-server behind a proxy, with a password.

mod common;

use std::sync::Arc;

use async_nats::{ConnectOptions, Subscriber};
use futures_util::future::BoxFuture;
use hookgate_core::{
    event::SinkId,
    limits::Deadline,
    message::Message,
    observe::Observer,
    sink::{Capabilities, PublishError, Receipt, Sink, Target},
};
use hookgate_sink_nats::{Config, NatsSink};
use hookgate_testkit::{
    conformance::{BadCredentials, Broker, Inapplicable, Metadata, Stored},
    conformance_suite,
    nats::{NatsAccess, NatsConfig, NatsServer},
    nats_wire::StoredMessage,
    proxy::FaultProxy,
};
use tokio::task::unconstrained;

const PASSWORD: &str = "c0rrect-h0rse";
const WRONG_PASSWORD: &str = "wr0ng-h0rse";

/// The sink, exempt from tokio's budget of operations in one turn of a task.
///
/// The suite begins fifty publishes in one turn and takes each for accepted by then. With the four operations that one
/// costs, the budget of 128 ends before the last have come past the `Publisher`'s own bound, and so to the sink.
struct Unconstrained(Arc<NatsSink>);

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

struct NatsBroker {
    server: NatsServer,
    proxy: Arc<FaultProxy>,
    config: Config,
    sink: Option<Arc<NatsSink>>,
    /// Listens where no stream does, and never answers.
    silent: Option<Subscriber>,
}

impl NatsBroker {
    async fn start() -> Self {
        let access = NatsAccess::Password { user: "relay".to_owned(), password: PASSWORD.to_owned() };
        let server = NatsServer::start(NatsConfig { access, ..NatsConfig::default() }).await;
        common::add_stream(&server).await;
        let proxy = Arc::new(FaultProxy::start(format!("127.0.0.1:{}", server.port())).await);
        let config = with_password(&proxy, PASSWORD);
        Self { server, proxy, config, sink: None, silent: None }
    }

    async fn connect(&self, config: &Config, id: SinkId, observer: Arc<dyn Observer>) -> Arc<NatsSink> {
        let connected = hookgate_sink_nats::connect(id, config, &mut hookgate_testkit::sinks::resolve, observer).await;
        Arc::new(connected.expect("the config can be used"))
    }
}

fn with_password(proxy: &FaultProxy, password: &str) -> Config {
    common::config(&format!("nats://{}", proxy.address()), &format!("user = 'relay'\npassword = '{password}'"))
}

fn stored(message: StoredMessage) -> Stored {
    let metadata = message.headers.iter().filter(|(name, _)| !name.starts_with("Nats-"));
    Stored {
        broker_id: message.header("Nats-Msg-Id").map(str::to_owned),
        position: Some(("HOOKS".to_owned(), message.sequence)),
        metadata: Metadata::from_headers(metadata.map(|(name, value)| (name.as_str(), value.as_str()))),
        target: Target::Subject(message.subject),
        body: message.payload,
    }
}

impl Broker for NatsBroker {
    fn target(&self) -> Target {
        Target::Subject(common::SUBJECT.to_owned())
    }

    async fn sink(&mut self, id: SinkId, observer: Arc<dyn Observer>) -> Arc<dyn Sink> {
        let sink = self.connect(&self.config, id, observer).await;
        self.sink = Some(Arc::clone(&sink));
        Arc::new(Unconstrained(sink))
    }

    async fn stored(&mut self) -> Vec<Stored> {
        self.server.wire().await.read_stream("HOOKS").await.into_iter().map(stored).collect()
    }

    fn unroutable(&self) -> Result<Target, Inapplicable> {
        Ok(Target::Subject("elsewhere.a".to_owned()))
    }

    async fn silent(&mut self) -> Result<Target, Inapplicable> {
        let options = ConnectOptions::with_user_and_password("relay".to_owned(), PASSWORD.to_owned());
        let client = options.connect(self.server.url()).await.expect("the server is up");
        let listening = client.subscribe("silent.>").await.expect("the connection is up");
        client.flush().await.expect("the connection is up");
        self.silent = Some(listening);
        Ok(Target::Subject("silent.a".to_owned()))
    }

    async fn remove_destination(&mut self) -> Result<(), Inapplicable> {
        self.server.wire().await.delete_stream("HOOKS").await;
        Ok(())
    }

    async fn restore_destination(&mut self) {
        common::add_stream(&self.server).await;
    }

    fn body_bytes_too_large(&self) -> Result<usize, Inapplicable> {
        // The server counts the headers too.
        Ok(1024 * 1024 - 100)
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
        self.server.restart().await;
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

conformance_suite!(NatsBroker::start().await, inapplicable = []);
