//! What senders are told when a broker does not do its part, what the metrics call it, and that nothing that was answered 2xx is
//! missing afterwards: the same for every broker, each of them real.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use hookgate_testkit::{
    nats::{NatsAccess, NatsConfig, NatsServer},
    process::wait_until,
    proxy::{FaultProxy, ProxyMode},
    rabbit::{Borrowed, PASSWORD, RabbitServer, USER},
};
use serde_json::json;

use crate::relay::{LIMIT, OPENCLAW, Relay, finished, finished_id};

/// A short deadline, so that what runs into it does so soon.
const DEADLINE: Duration = Duration::from_secs(1);

/// The same, and what a busy machine may add to it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(4);

/// A real broker with a destination for the events, and a proxy before it.
trait Broker: Sized {
    /// Whether it stores a message once that it gets twice.
    const KNOWS_IDS: bool;

    /// Length of a body that it does not take, in bytes.
    const TOO_LARGE: usize;

    /// Starts it and makes the destination.
    async fn start() -> Self;

    /// A sink called `broker` that reaches it through the proxy.
    fn sink(&self) -> String;

    /// What a destination in that sink names, as in a route.
    const DESTINATION: &'static str;

    fn proxy(&self) -> &FaultProxy;

    async fn make_destination(&mut self);

    async fn remove_destination(&mut self);

    /// The ids of all that the destination holds.
    async fn stored(&mut self) -> Vec<String>;

    fn kill(&mut self);

    async fn restart(&mut self);

    fn pause(&mut self);

    fn resume(&mut self);
}

/// A broker that asks for credentials which can be changed while it runs.
trait Guarded: Broker {
    /// Lets nobody in that uses the sink's credentials, and has who is in leave.
    async fn shut_out(&mut self);

    async fn let_in_again(&mut self);
}

/// A broker, and hookgate before it.
struct Bench<B> {
    broker: B,
    relay: Arc<Relay>,
}

impl<B: Broker> Bench<B> {
    async fn start() -> Self {
        let bench = Self::before(B::start().await).await;
        bench.relay.wait_until_ready().await;
        bench
    }

    async fn before(broker: B) -> Self {
        let tables =
            format!("{OPENCLAW}{}[[routes]]\nto = [{{ sink = \"broker\", {} }}]\n", broker.sink(), B::DESTINATION);
        let deadline = format!("{}ms", DEADLINE.as_millis());
        let relay = Relay::start_with(&tables, &[("HOOKGATE_SERVER__REPLY_DEADLINE", &deadline)]).await;
        Self { broker, relay: Arc::new(relay) }
    }

    /// Posts event `number`; the status and the code of a refusal.
    async fn post(&self, number: usize) -> (u16, Option<String>) {
        let answer = self.relay.post(finished(number)).await;
        (answer.status, answer.json()["code"].as_str().map(str::to_owned))
    }

    async fn assert_refused(&self, number: usize, status: u16, code: &str) {
        assert_eq!(self.post(number).await, (status, Some(code.to_owned())), "event {number}");
    }

    /// Posts event `number` until it is accepted. Until then it is refused in ways that a sender may try again after.
    async fn post_until_accepted(&self, number: usize) {
        wait_until(LIMIT * 3, "it is accepted", async || {
            let (status, code) = self.post(number).await;
            assert!(matches!(status, 200 | 503 | 504), "{status} {code:?}");
            status == 200
        })
        .await;
    }

    /// How many attempts ended so.
    async fn attempts(&self, result: &str) -> f64 {
        self.relay.metric(&format!("hookgate_publish_attempts_total{{sink=\"broker\",result=\"{result}\"}}")).await
    }

    /// How often each event is there.
    async fn copies(&mut self) -> BTreeMap<String, usize> {
        let mut copies = BTreeMap::new();
        for id in self.broker.stored().await {
            *copies.entry(id).or_default() += 1;
        }
        copies
    }

    async fn wait_until_noticed(&self) {
        wait_until(LIMIT, "hookgate has noticed", async || self.relay.ready().await.1["sinks"][0]["up"] == false).await;
    }
}

async fn down_at_the_start<B: Broker>() {
    let mut broker = B::start().await;
    broker.kill();
    let mut bench = Bench::before(broker).await;
    assert_eq!(bench.relay.ready().await.0, 503);
    bench.assert_refused(1, 503, "destination-unavailable").await;
    assert!(bench.attempts("connection_lost").await >= 1.0);
    bench.broker.restart().await;
    bench.post_until_accepted(1).await;
    bench.relay.wait_until_ready().await;
    assert!(bench.copies().await.contains_key(&finished_id(1)));
}

async fn killed_in_mid_load<B: Broker>() {
    const SENDERS: usize = 16;
    const EVENTS_EACH: usize = 60;
    let mut bench = Bench::<B>::start().await;
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let relay = Arc::clone(&bench.relay);
            tokio::spawn(async move {
                let mut answers = Vec::new();
                for number in (0..EVENTS_EACH).map(|event| event * SENDERS + sender) {
                    let begun = Instant::now();
                    let status = relay.post(finished(number)).await.status;
                    answers.push((number, status, begun.elapsed()));
                }
                answers
            })
        })
        .collect();
    wait_until(LIMIT, "the load is on", async || bench.attempts("acked").await > 100.0).await;
    bench.broker.kill();
    bench.wait_until_noticed().await;
    bench.broker.restart().await;
    let mut answers = Vec::new();
    for sender in senders {
        answers.extend(sender.await.expect("no panic"));
    }
    bench.post_until_accepted(1_000_000).await;
    let copies = bench.copies().await;
    for (number, status, elapsed) in &answers {
        assert!(matches!(status, 200 | 503 | 504), "{number}: {status}");
        assert!(*elapsed < ANSWERED_WITHIN, "{number}: {status} after {elapsed:?}");
        assert!(
            *status != 200 || copies.contains_key(&finished_id(*number)),
            "event {number} was accepted and is lost"
        );
    }
    assert!(!B::KNOWS_IDS || copies.values().all(|copies| *copies == 1), "none is there twice");
    let accepted: BTreeSet<_> = answers.iter().filter(|(_, status, _)| *status == 200).collect();
    assert!(accepted.len() >= 100, "{} were accepted", accepted.len());
}

async fn paused<B: Broker>() {
    let mut bench = Bench::<B>::start().await;
    bench.post_until_accepted(0).await;
    bench.broker.pause();
    let (status, code) = bench.post(1).await;
    assert!(matches!(status, 503 | 504), "{status} {code:?}");
    assert!(bench.attempts("timeout").await >= 1.0);
    bench.broker.resume();
    bench.post_until_accepted(1).await;
    let copies = bench.copies().await;
    let most = if B::KNOWS_IDS { 1 } else { usize::MAX };
    assert!((1..=most).contains(&copies[&finished_id(1)]), "{copies:?}");
}

async fn slower_than_the_deadline<B: Broker>() {
    let mut bench = Bench::<B>::start().await;
    bench.post_until_accepted(0).await;
    bench.broker.proxy().set_mode(ProxyMode::Delay(DEADLINE * 3)).await;
    bench.assert_refused(1, 504, "destination-timeout").await;
    assert!(bench.attempts("timeout").await >= 1.0);
    bench.broker.proxy().set_mode(ProxyMode::Pass).await;
    bench.post_until_accepted(1).await;
    assert!(bench.copies().await.contains_key(&finished_id(1)));
}

async fn half_open<B: Broker>() {
    let mut bench = Bench::<B>::start().await;
    bench.post_until_accepted(0).await;
    bench.broker.proxy().set_mode(ProxyMode::BlackHole).await;
    bench.assert_refused(1, 504, "destination-timeout").await;
    bench.broker.proxy().cut().await;
    bench.broker.proxy().set_mode(ProxyMode::Pass).await;
    bench.post_until_accepted(1).await;
    assert!(bench.copies().await.contains_key(&finished_id(1)));
}

async fn its_acknowledgement_is_lost<B: Broker>() {
    let mut bench = Bench::<B>::start().await;
    bench.post_until_accepted(0).await;
    bench.broker.proxy().set_mode(ProxyMode::SwallowReplies).await;
    let (status, code) = bench.post(1).await;
    assert_eq!((status, code.as_deref()), (504, Some("destination-timeout")), "never 2xx");
    bench.broker.proxy().cut().await;
    bench.broker.proxy().set_mode(ProxyMode::Pass).await;
    bench.post_until_accepted(1).await;
    let copies = bench.copies().await[&finished_id(1)];
    assert!(if B::KNOWS_IDS { copies == 1 } else { copies >= 1 }, "{copies}");
}

async fn its_destination_is_missing_and_deleted<B: Broker>() {
    let mut bench = Bench::<B>::start().await;
    bench.post_until_accepted(0).await;
    bench.broker.remove_destination().await;
    // A broker that is taking it away may leave an event without an answer; it is not lost by that, its sender was told.
    wait_until(LIMIT, "it is called by its name", async || {
        let (status, code) = bench.post(1).await;
        assert!(matches!(status, 503 | 504), "{status} {code:?}");
        (status, code.as_deref()) == (503, Some("destination-unavailable"))
    })
    .await;
    assert!(bench.attempts("no_destination").await >= 1.0);
    bench.broker.make_destination().await;
    bench.post_until_accepted(1).await;
    assert!(bench.copies().await.contains_key(&finished_id(1)));
}

async fn the_event_is_too_large<B: Broker>() {
    let bench = Bench::<B>::start().await;
    bench.post_until_accepted(0).await;
    let large = finished(1).replace("\"s\"", &format!("{:?}", "x".repeat(B::TOO_LARGE)));
    let answer = bench.relay.post(large).await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (422, Some("destination-rejected")));
    assert_eq!(bench.attempts("too_large").await, 1.0, "and it is not tried again");
    assert_eq!(bench.post(2).await.0, 200, "its neighbours do not suffer");
}

async fn its_credentials_are_revoked<B: Guarded>() {
    let mut bench = Bench::<B>::start().await;
    bench.post_until_accepted(0).await;
    bench.broker.shut_out().await;
    wait_until(LIMIT, "it is called by its name", async || {
        let (status, code) = bench.post(1).await;
        assert!(matches!(status, 503 | 504), "{status} {code:?}");
        bench.attempts("auth").await >= 1.0
    })
    .await;
    bench.broker.let_in_again().await;
    bench.post_until_accepted(1).await;
    assert!(bench.copies().await.contains_key(&finished_id(1)));
}

async fn another_sink_does_not_suffer<B: Broker>() {
    let mut broker = B::start().await;
    let to = format!(
        "[sinks.events]\ntype = \"file\"\ndir = \"events\"\n\
         [[routes]]\nwhen = 'attr.status == \"ok\"'\nto = [{{ sink = \"events\" }}]\n\
         [[routes]]\nwhen = 'attr.status == \"error\"'\nto = [{{ sink = \"broker\", {} }}]\n",
        B::DESTINATION
    );
    let relay = Relay::start(&format!("{OPENCLAW}{}{to}", broker.sink())).await;
    relay.wait_until_ready().await;
    broker.pause();
    let relay = Arc::new(relay);
    let stuck: Vec<_> = (0..50)
        .map(|number| {
            let relay = Arc::clone(&relay);
            let event = finished(number).replace("\"ok\"", "\"error\"");
            tokio::spawn(async move { relay.post(event).await.status })
        })
        .collect();
    for number in 100..200 {
        assert_eq!(relay.post(finished(number)).await.status, 200);
    }
    let waiting = stuck.iter().filter(|stuck| !stuck.is_finished()).count();
    broker.resume();
    for stuck in stuck {
        assert!(matches!(stuck.await.expect("no panic"), 200 | 503 | 504));
    }
    assert!(waiting > 0, "the broker stood still all the while");
    assert_eq!(relay.stored().len(), 100);
}

macro_rules! broker_faults {
    ($module:ident, $broker:ty, [$($fault:ident),+ $(,)?]) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $fault() {
                    super::$fault::<$broker>().await;
                }
            )+
        }
    };
}

macro_rules! all_broker_faults {
    ($module:ident, $broker:ty, also = [$($further:ident),*]) => {
        broker_faults!(
            $module,
            $broker,
            [
                down_at_the_start,
                killed_in_mid_load,
                paused,
                slower_than_the_deadline,
                half_open,
                its_acknowledgement_is_lost,
                its_destination_is_missing_and_deleted,
                the_event_is_too_large,
                another_sink_does_not_suffer,
                $($further),*
            ]
        );
    };
}

all_broker_faults!(nats, super::Nats, also = [its_credentials_are_revoked]);
all_broker_faults!(amqp, super::Rabbit, also = [its_credentials_are_revoked]);
// Who may log in to Kafka cannot be changed from here; the sink's own tests have wrong and mended passwords.
#[cfg(feature = "kafka")]
all_broker_faults!(kafka, super::kafka_broker::Kafka, also = []);

struct Nats {
    server: NatsServer,
    proxy: FaultProxy,
}

impl Nats {
    fn config(password: &str) -> NatsConfig {
        let access = NatsAccess::Password { user: "relay".to_owned(), password: password.to_owned() };
        NatsConfig { access, ..NatsConfig::default() }
    }
}

impl Broker for Nats {
    const KNOWS_IDS: bool = true;
    const TOO_LARGE: usize = 2 << 20;
    const DESTINATION: &'static str = r#"subject = "openclaw.{attr.job}""#;

    async fn start() -> Self {
        let server = NatsServer::start(Self::config("good")).await;
        let proxy = FaultProxy::start(format!("127.0.0.1:{}", server.port())).await;
        let mut broker = Self { server, proxy };
        broker.make_destination().await;
        broker
    }

    fn sink(&self) -> String {
        format!(
            "[sinks.broker]\ntype = \"nats\"\nservers = [\"nats://{}\"]\nstream = \"HOOKS\"\nuser = \"relay\"\npassword = \"good\"\n",
            self.proxy.address()
        )
    }

    fn proxy(&self) -> &FaultProxy {
        &self.proxy
    }

    async fn make_destination(&mut self) {
        let stream = json!({ "name": "HOOKS", "subjects": ["openclaw.>"], "storage": "file" });
        self.server.wire().await.create_stream(&stream).await;
    }

    async fn remove_destination(&mut self) {
        self.server.wire().await.delete_stream("HOOKS").await;
    }

    async fn stored(&mut self) -> Vec<String> {
        let messages = self.server.wire().await.read_stream("HOOKS").await;
        messages.iter().map(|message| message.header("ce-id").expect("an id").to_owned()).collect()
    }

    fn kill(&mut self) {
        self.server.kill();
    }

    async fn restart(&mut self) {
        self.server.restart().await;
    }

    fn pause(&mut self) {
        self.server.pause();
    }

    fn resume(&mut self) {
        self.server.resume();
    }
}

impl Guarded for Nats {
    async fn shut_out(&mut self) {
        self.server.reconfigure(Self::config("another")).await;
    }

    async fn let_in_again(&mut self) {
        self.server.reconfigure(Self::config("good")).await;
    }
}

/// RabbitMQ, with an exchange and a queue of this test alone.
struct Rabbit {
    server: Borrowed,
    proxy: FaultProxy,
}

impl Broker for Rabbit {
    const KNOWS_IDS: bool = false;
    const TOO_LARGE: usize = 2 << 20;
    const DESTINATION: &'static str = r#"exchange = "hooks", routing_key = "openclaw.{attr.job}""#;

    async fn start() -> Self {
        let server = RabbitServer::borrow().await;
        let proxy = FaultProxy::start(format!("127.0.0.1:{}", server.port())).await;
        let mut broker = Self { server, proxy };
        // What an earlier test left.
        broker.remove_destination().await;
        broker.make_destination().await;
        broker
    }

    fn sink(&self) -> String {
        let address = self.proxy.address();
        format!(
            "[sinks.broker]\ntype = \"amqp\"\nurl = \"amqp://{USER}:{PASSWORD}@{address}\"\nmax_message = \"1 MiB\"\n"
        )
    }

    fn proxy(&self) -> &FaultProxy {
        &self.proxy
    }

    async fn make_destination(&mut self) {
        let mut wire = self.server.wire().await;
        wire.declare_exchange("hooks", "topic").await;
        wire.declare_queue("hooks", &[]).await;
        wire.bind("hooks", "hooks", "openclaw.#").await;
    }

    async fn remove_destination(&mut self) {
        let mut wire = self.server.wire().await;
        wire.delete_exchange("hooks").await;
        wire.delete_queue("hooks").await;
    }

    async fn stored(&mut self) -> Vec<String> {
        let messages = self.server.wire().await.messages("hooks").await;
        let id =
            |headers: &[(String, String)]| headers.iter().find(|(name, _)| name == "ce-id").map(|(_, id)| id.clone());
        messages.iter().map(|message| id(&message.headers).expect("an id")).collect()
    }

    fn kill(&mut self) {
        self.server.kill();
    }

    async fn restart(&mut self) {
        self.server.restart().await;
        // Killed, it may have forgotten that.
        self.make_destination().await;
    }

    fn pause(&mut self) {
        self.server.pause();
    }

    fn resume(&mut self) {
        self.server.resume();
    }
}

impl Guarded for Rabbit {
    async fn shut_out(&mut self) {
        self.server.change_password(USER, "another").await;
        self.proxy.cut().await;
    }

    async fn let_in_again(&mut self) {
        self.server.change_password(USER, PASSWORD).await;
    }
}

#[cfg(feature = "kafka")]
mod kafka_broker {
    use hookgate_testkit::{
        kafka::{KafkaConfig, KafkaServer},
        process::free_port,
        proxy::FaultProxy,
    };

    use super::Broker;
    use crate::kafka_topics::{create_topic, delete_topic, read_topic};

    const TOPIC: &str = "hooks";

    /// Kafka, which sends its clients to the proxy.
    pub(super) struct Kafka {
        server: KafkaServer,
        proxy: FaultProxy,
    }

    impl Broker for Kafka {
        const KNOWS_IDS: bool = false;
        const TOO_LARGE: usize = 2 << 20;
        const DESTINATION: &'static str = r#"topic = "hooks""#;

        async fn start() -> Self {
            let port = free_port();
            let proxy = FaultProxy::start(format!("127.0.0.1:{port}")).await;
            let server = KafkaServer::start_behind(proxy.port(), port, &KafkaConfig::default()).await;
            let mut broker = Self { server, proxy };
            broker.make_destination().await;
            broker
        }

        fn sink(&self) -> String {
            format!("[sinks.broker]\ntype = \"kafka\"\nbrokers = [\"{}\"]\n", self.proxy.address())
        }

        fn proxy(&self) -> &FaultProxy {
            &self.proxy
        }

        async fn make_destination(&mut self) {
            create_topic(&self.server, TOPIC, 3, &[]).await;
        }

        async fn remove_destination(&mut self) {
            delete_topic(&self.server, TOPIC).await;
        }

        async fn stored(&mut self) -> Vec<String> {
            let records = read_topic(&self.server, TOPIC).await;
            records.iter().map(|record| record.header("ce-id").expect("an id").to_owned()).collect()
        }

        fn kill(&mut self) {
            self.server.kill();
        }

        async fn restart(&mut self) {
            self.server.restart().await;
        }

        fn pause(&mut self) {
            self.server.pause();
        }

        fn resume(&mut self) {
            self.server.resume();
        }
    }
}
