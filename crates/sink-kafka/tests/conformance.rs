//! What every sink must do, against a real Kafka behind a proxy, with a password.

mod common;

use std::sync::Arc;

use hookgate_core::{
    event::SinkId,
    observe::Observer,
    sink::{Sink, Target},
};
use hookgate_sink_kafka::{Config, KafkaSink};
use hookgate_testkit::{
    conformance::{BadCredentials, Broker, Inapplicable, Metadata, Stored},
    conformance_suite,
    kafka::{self, KafkaConfig, KafkaLogin, KafkaServer},
    proxy::FaultProxy,
};

const PASSWORD: &str = "c0rrect-h0rse";
const WRONG_PASSWORD: &str = "wr0ng-h0rse";

struct KafkaBroker {
    server: KafkaServer,
    proxy: Arc<FaultProxy>,
    config: Config,
    sink: Option<Arc<KafkaSink>>,
    server_config: KafkaConfig,
    second: Option<KafkaServer>,
}

impl KafkaBroker {
    async fn start() -> Self {
        let login = Some(KafkaLogin { user: "relay".to_owned(), password: PASSWORD.to_owned() });
        let server_config = KafkaConfig { login, ..KafkaConfig::default() };
        let (server, proxy) = common::server_behind_proxy(&server_config).await;
        common::topics::create_topic(&server, common::TOPIC, 1, &[]).await;
        let config = with_password(&proxy, PASSWORD);
        Self { server, proxy, config, sink: None, server_config, second: None }
    }

    async fn connect(&self, config: &Config, id: SinkId, observer: Arc<dyn Observer>) -> Arc<KafkaSink> {
        let connected = hookgate_sink_kafka::connect(id, config, &mut hookgate_testkit::sinks::resolve, observer).await;
        Arc::new(connected.expect("the config can be used"))
    }
}

fn with_password(proxy: &FaultProxy, password: &str) -> Config {
    let login = format!("user = 'relay'\npassword = '{password}'\nsasl = 'plain'");
    common::config(&proxy.address().to_string(), &login)
}

fn topic(name: &str) -> Target {
    Target::Topic { topic: name.to_owned(), key: "a key".to_owned() }
}

fn stored(record: common::topics::Record) -> Stored {
    Stored {
        broker_id: None,
        position: Some((format!("{}/{}", common::TOPIC, record.partition), record.offset)),
        metadata: Metadata::from_headers(record.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))),
        target: Target::Topic { topic: common::TOPIC.to_owned(), key: record.key.unwrap_or_default() },
        body: record.body,
    }
}

impl Broker for KafkaBroker {
    fn target(&self) -> Target {
        topic(common::TOPIC)
    }

    async fn sink(&mut self, id: SinkId, observer: Arc<dyn Observer>) -> Arc<dyn Sink> {
        let sink = self.connect(&self.config, id, observer).await;
        self.sink = Some(Arc::clone(&sink));
        sink
    }

    async fn stored(&mut self) -> Vec<Stored> {
        common::topics::read_topic(&self.server, common::TOPIC).await.into_iter().map(stored).collect()
    }

    fn client_repeats(&self) -> bool {
        true
    }

    fn unroutable(&self) -> Result<Target, Inapplicable> {
        Ok(topic("elsewhere"))
    }

    async fn silent(&mut self) -> Result<Target, Inapplicable> {
        // A second broker, which is frozen before the cluster takes its topics away from it.
        let mut second = self.server.start_second(&self.server_config).await;
        common::topics::create_topic_on(&self.server, "silent", kafka::SECOND).await;
        second.pause();
        self.second = Some(second);
        Ok(topic("silent"))
    }

    async fn remove_destination(&mut self) -> Result<(), Inapplicable> {
        common::topics::delete_topic(&self.server, common::TOPIC).await;
        Ok(())
    }

    async fn restore_destination(&mut self) {
        common::topics::create_topic(&self.server, common::TOPIC, 1, &[]).await;
    }

    fn body_bytes_too_large(&self) -> Result<usize, Inapplicable> {
        // Key and headers count too.
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

conformance_suite!(KafkaBroker::start().await, inapplicable = []);
