//! The producer: librdkafka with our properties, what it tells between deliveries, and the end of it.
//!
//! librdkafka has threads of its own and a queue for what was handed over; it connects, repeats and gives up by itself. A
//! message cannot be taken back from it. What can be done is to drop the producer: then all that it holds ends at once, and
//! nothing of it is sent by a connection that comes back.

use std::{
    error::Error,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use hookgate_core::{
    answers::{self, Answers},
    event::SinkId,
    limits::Deadline,
    observe::{ClientState, Observation, Observer},
};
use rdkafka::{
    ClientConfig, ClientContext, Statistics,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::{Message, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer, future_producer::Delivery},
    statistics::Broker,
    types::RDKafkaErrorCode as Code,
};
use tokio::{
    sync::{Notify, oneshot},
    task::{self, JoinHandle},
};

use crate::{
    access::{Access, AccessError, refused},
    config::Config,
    error::{Cause, Disconnected},
};

/// Longest time that librdkafka keeps a message, repeats included; then its outcome is unknown. More than senders wait for
/// their answer, so that the deadline of the caller comes first; little enough that what nobody waits for is soon gone.
const DELIVERY_MAX: Duration = Duration::from_secs(20);

/// How often librdkafka tells how it is. Each time costs some 100 µs.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(5);

/// Bytes of messages that librdkafka keeps, at most, if two of the largest fit.
const QUEUE_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// What Kafka puts around the one message of a batch, which the broker counts and librdkafka does not.
/// Source: Apache Kafka, "Message Format", "Record Batch": 61 bytes; some more than librdkafka's own bound on a record.
const BATCH_OVERHEAD_BYTES: u64 = 64;

/// Asked for when no topic is known. That it does not exist is an answer too, and a short one.
const NO_TOPIC_IN_PARTICULAR: &str = "hookgate-sign-of-life";

/// What librdkafka says of a message in the end.
type Outcome = Result<Delivery, KafkaError>;

/// Makes producers, each from secrets and files as they are then.
pub(crate) struct Maker {
    sink: SinkId,
    properties: ClientConfig,
    access: Arc<Access>,
    brokers: Arc<str>,
    max_message: u64,
    observer: Arc<dyn Observer>,
}

/// A producer. It is let go on a thread of its own, since that takes its time.
pub(crate) struct Live {
    /// `None` only while it is dropped.
    producer: Option<ThreadedProducer<Ear>>,
    pub(crate) signs: Arc<Signs>,
    brokers: Arc<str>,
    max_message: u64,
}

/// What the cluster answers when it is asked for a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It can be published to.
    Ready,
    /// It cannot, and this is why.
    Refused(Code),
    /// Nothing, in time.
    Silence,
}

/// What is known of a producer beside its deliveries.
pub(crate) struct Signs {
    brokers: Arc<str>,
    trouble: Mutex<Option<Disconnected>>,
    all_down: AtomicBool,
    acknowledged: AtomicU64,
    /// Messages handed over whose callers still wait.
    waiting: AtomicUsize,
    pub(crate) changed: Notify,
}

/// What librdkafka talks to, on a thread of its own. It calls twice for each error.
struct Ear {
    sink: SinkId,
    signs: Arc<Signs>,
    answers: Answers<Outcome>,
    access: Arc<Access>,
    observer: Arc<dyn Observer>,
}

/// A message that was handed over, until its delivery or its caller's end.
pub(crate) struct Pending {
    outcome: oneshot::Receiver<Outcome>,
    waiting: Waiting,
}

/// Counts one caller while it waits.
struct Waiting(Arc<Signs>);

impl Maker {
    pub(crate) fn new(id: &SinkId, config: &Config, access: Access, observer: Arc<dyn Observer>) -> Self {
        let brokers: Arc<str> = config.brokers.join(",").into();
        let max_message = config.max_message.0;
        let (sink, properties, access) = (id.clone(), properties(id, config), Arc::new(access));
        Self { sink, properties, access, brokers, max_message, observer }
    }

    /// The brokers, for the operator.
    pub(crate) fn brokers(&self) -> &Arc<str> {
        &self.brokers
    }

    /// Makes a producer, which begins to connect. Reads files, so it may block; on a thread of the runtime.
    pub(crate) fn make(&self) -> Result<Live, AccessError> {
        let mut properties = self.properties.clone();
        self.access.apply(&mut properties)?;
        let signs = Arc::new(Signs::new(&self.brokers));
        let (sink, access, observer) = (self.sink.clone(), Arc::clone(&self.access), Arc::clone(&self.observer));
        let (answers, passing_on) = answers::channel();
        let ear = Ear { sink, signs: Arc::clone(&signs), answers, access, observer };
        let producer = properties.create_with_context(ear).map_err(|error| match error {
            // The library's own text of these holds the property's value.
            KafkaError::ClientConfig(_, words, property, _) => refused(&format!("{property}: {words}")),
            KafkaError::ClientCreation(words) => refused(&words),
            _ => refused("librdkafka made no producer"),
        })?;
        // Until the producer has ended, and with it the ear.
        task::spawn(passing_on);
        let (brokers, max_message) = (Arc::clone(&self.brokers), self.max_message);
        Ok(Live { producer: Some(producer), signs, brokers, max_message })
    }
}

/// librdkafka's properties, but for login and TLS.
///
/// Source: librdkafka 2.12 `CONFIGURATION.md`; where a value is its default, it is not here.
fn properties(id: &SinkId, config: &Config) -> ClientConfig {
    let message_bytes = config.max_message.0 - BATCH_OVERHEAD_BYTES;
    let queue_bytes = QUEUE_BYTES_MAX.max(2 * config.max_message.0);
    // Callers that have given up leave their messages behind: they shall not take the places of all others.
    let queue_messages = config.max_in_flight.saturating_mul(2);
    let milliseconds = |span: Duration| span.as_millis().to_string();
    let mut properties = ClientConfig::new();
    properties
        .set("bootstrap.servers", config.brokers.join(","))
        .set("client.id", format!("hookgate-{id}"))
        // What a receipt stands for.
        .set("acks", "all")
        .set("enable.idempotence", config.idempotence.to_string())
        .set("message.timeout.ms", milliseconds(DELIVERY_MAX))
        // As the Java clients choose, so that a key goes where others have put it.
        .set("partitioner", "murmur2_random")
        .set("compression.type", config.compression.codec())
        // One millisecond to fill a batch halves the CPU time per message; five win nothing more (measured, 1 KiB messages).
        .set("linger.ms", "1")
        .set("message.max.bytes", message_bytes.to_string())
        // The broker refuses a batch that is larger than one message may be, and all messages in it.
        .set("batch.size", message_bytes.min(1_000_000).to_string())
        .set("queue.buffering.max.messages", queue_messages.to_string())
        .set("queue.buffering.max.kbytes", queue_bytes.div_ceil(1024).to_string())
        .set("request.timeout.ms", "10000")
        .set("socket.timeout.ms", "10000")
        .set("socket.connection.setup.timeout.ms", "5000")
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.max.ms", "1000")
        // A topic that is not there is reported after this time instead of half a minute.
        .set("topic.metadata.propagation.max.ms", "1000")
        .set("topic.metadata.refresh.interval.ms", "60000")
        .set("statistics.interval.ms", milliseconds(STATISTICS_INTERVAL))
        .set("enable.metrics.push", "false");
    properties
}

impl Live {
    /// Hands a message over. Nothing was sent if that fails; it never waits.
    pub(crate) fn send(&self, topic: &str, key: &str, headers: OwnedHeaders, body: &[u8]) -> Result<Pending, Cause> {
        let (waiter, outcome) = oneshot::channel();
        let record = BaseRecord::with_opaque_to(topic, Box::new(waiter)).payload(body).headers(headers);
        // All messages with an empty key would share one partition; without one they are spread.
        let record = if key.is_empty() { record } else { record.key(key) };
        let waiting = Waiting::begin(&self.signs);
        match self.producer().send(record) {
            Ok(()) => Ok(Pending { outcome, waiting }),
            Err((error, _)) => Err(Cause::of_sending(&error, topic, self.max_message)),
        }
    }

    /// Asks the cluster for `topic`, or for any sign of life. librdkafka believes the answer from then on.
    ///
    /// # Cancel safety
    /// Dropped while it waits, the question stays with a thread of the runtime for up to `limit`.
    pub(crate) fn ask(self: &Arc<Self>, topic: Option<&str>, limit: Duration) -> JoinHandle<Answer> {
        let (live, topic) = (Arc::clone(self), topic.unwrap_or(NO_TOPIC_IN_PARTICULAR).to_owned());
        task::spawn_blocking(move || live.ask_now(&topic, limit))
    }

    fn ask_now(&self, topic: &str, limit: Duration) -> Answer {
        let Ok(metadata) = self.producer().client().fetch_metadata(Some(topic), limit) else {
            return Answer::Silence;
        };
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Answer::Refused(Code::UnknownTopicOrPartition);
        };
        match found.error() {
            Some(error) => Answer::Refused(error.into()),
            None if found.partitions().is_empty() => Answer::Refused(Code::UnknownTopicOrPartition),
            None if found.partitions().iter().all(|partition| partition.leader() < 0) => {
                Answer::Refused(Code::LeaderNotAvailable)
            }
            None => Answer::Ready,
        }
    }

    /// Why no broker can be used, as far as it is known.
    pub(crate) fn disconnected(&self) -> Disconnected {
        let mut trouble = self.signs.trouble();
        if let Some((code, words)) = self.producer().client().fatal_error() {
            *trouble = Some(Disconnected::fatal(&self.brokers, code, &words));
        }
        trouble.clone().unwrap_or_else(|| Disconnected::silent(&self.brokers))
    }

    /// Whether it can publish nothing any more.
    pub(crate) fn spent(&self) -> bool {
        self.producer().client().fatal_error().is_some()
    }

    /// Whether it holds messages and nobody waits for any of them.
    pub(crate) fn holds_only_what_was_given_up(&self) -> bool {
        self.signs.waiting.load(Ordering::Acquire) == 0 && self.producer().in_flight_count() > 0
    }

    fn producer(&self) -> &ThreadedProducer<Ear> {
        self.producer.as_ref().expect("it is taken by drop only")
    }
}

impl Answer {
    /// Whether any broker said anything.
    pub(crate) fn is_a_sign_of_life(&self) -> bool {
        match self {
            Self::Ready | Self::Refused(_) => true,
            Self::Silence => false,
        }
    }
}

impl Drop for Live {
    /// What it still holds ends as given up. That waits for librdkafka's threads, half a second or so.
    fn drop(&mut self) {
        let producer = self.producer.take();
        let letting_go = thread::Builder::new().name("kafka-end".to_owned()).spawn(move || drop(producer));
        // Without a thread to be had, it has been done on this one.
        drop(letting_go);
    }
}

impl Pending {
    /// Waits for the delivery.
    ///
    /// # Cancel safety
    /// Dropped while it waits, the message may be stored, now or later.
    pub(crate) async fn delivered(self, topic: &str, deadline: Deadline) -> Result<Delivery, Cause> {
        let signs = &self.waiting.0;
        match deadline.bound(self.outcome).await {
            Ok(Ok(Ok(delivery))) => {
                signs.acknowledged.fetch_add(1, Ordering::AcqRel);
                Ok(delivery)
            }
            Ok(Ok(Err(error))) => Err(signs.refusal(&error).unwrap_or_else(|| Cause::of_delivery(&error, topic))),
            // The producer was dropped.
            Ok(Err(_gone)) => Err(Cause::GivenUp),
            Err(_elapsed) => {
                // It may be that no answer comes to anybody.
                signs.changed.notify_one();
                Err(Cause::NoAnswer)
            }
        }
    }
}

impl Waiting {
    fn begin(signs: &Arc<Signs>) -> Self {
        signs.waiting.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(signs))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Signs {
    fn new(brokers: &Arc<str>) -> Self {
        Self {
            brokers: Arc::clone(brokers),
            trouble: Mutex::new(None),
            all_down: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            changed: Notify::new(),
        }
    }

    /// Whether all brokers have gone down since this was asked last.
    pub(crate) fn take_all_down(&self) -> bool {
        self.all_down.swap(false, Ordering::AcqRel)
    }

    /// Messages acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// The refusal for want of which a message never left the queue, if `error` is that.
    ///
    /// An idempotent producer sends nothing before it has been given an id. If that is denied to it, librdkafka purges the
    /// queue without saying why.
    fn refusal(&self, error: &KafkaError) -> Option<Cause> {
        if error.rdkafka_error_code() != Some(Code::PurgeQueue) || self.acknowledged() > 0 {
            return None;
        }
        let why = self.trouble().clone().filter(|why| why.verdict.needs_an_operator())?;
        Some(Cause::Disconnected(Arc::new(why)))
    }

    /// Forgets what was wrong.
    pub(crate) fn all_is_well(&self) {
        *self.trouble() = None;
    }

    fn trouble(&self) -> std::sync::MutexGuard<'_, Option<Disconnected>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, code: Code, words: &str) {
        match code {
            // It counts wrongly while brokers are being learnt, and then says "0/1 brokers are down".
            Code::AllBrokersDown if words.starts_with("0/") => {}
            Code::AllBrokersDown => self.all_down.store(true, Ordering::Release),
            // The client knows what it was, and is asked.
            Code::Fatal => {}
            _ => {
                let later = Disconnected::reported(&self.brokers, code, words);
                let mut trouble = self.trouble();
                let telling = match trouble.take() {
                    Some(earlier) => earlier.or_more_telling(later),
                    None => later,
                };
                *trouble = Some(telling);
            }
        }
        self.changed.notify_one();
    }
}

impl ProducerContext for Ear {
    type DeliveryOpaque = Box<oneshot::Sender<Outcome>>;

    fn delivery(&self, result: &DeliveryResult<'_>, asker: Self::DeliveryOpaque) {
        let outcome = match result {
            Ok(message) => Ok(Delivery {
                partition: message.partition(),
                offset: message.offset(),
                timestamp: message.timestamp(),
            }),
            Err((error, _)) => Err(error.clone()),
        };
        self.answers.give(*asker, outcome);
    }
}

impl ClientContext for Ear {
    /// It is asked for with `sasl = "oauthbearer"` only.
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        Ok(self.access.token()?)
    }

    fn stats(&self, statistics: Statistics) {
        let up = |broker: &&Broker| broker.nodeid >= 0 && broker.state == "UP";
        let slowest = statistics.brokers.values().filter_map(|broker| broker.rtt.as_ref()).map(|rtt| rtt.p99).max();
        let state = ClientState {
            queued_messages: statistics.msg_cnt,
            queued_bytes: statistics.msg_size,
            brokers_up: statistics.brokers.values().filter(up).count() as u64,
            // In microseconds; of a broker that has answered nothing meanwhile it is zero.
            round_trip_p99: Duration::from_micros(slowest.and_then(|p99| p99.try_into().ok()).unwrap_or_default()),
        };
        self.observer.observe(&Observation::SinkClient { sink: &self.sink, state });
    }

    /// All that matters of it comes as an error too, and is told to the observer.
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _message: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        if let Some(code) = error.rdkafka_error_code() {
            self.signs.note(code, reason);
        }
    }
}
