//! The sink: one attempt for each message, with the producer that is at work now.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use hookgate_core::{
    event::SinkId,
    limits::Deadline,
    message::Message,
    observe::Observer,
    secret::ResolveSecret,
    sink::{Capabilities, ConnectError, PublishError, Receipt, Sink, Target},
};
use rdkafka::message::{Header, OwnedHeaders};
use tokio::{
    sync::{Semaphore, watch},
    task::{self, JoinHandle},
};

use crate::{
    access::{Access, AccessError},
    config::Config,
    error::{Cause, Disconnected, is_missing_topic, position},
    producer::{Answer, Live, Maker},
    watch::{ANSWER_MAX, Link, State, Watch},
};

/// Longest wait for the first sign of life. A broker that is there answers in milliseconds; one that is not does not hold up
/// the start.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(2);

/// Topics asked for at once. Each question takes a thread; those that find none report what librdkafka said.
const QUESTIONS_MAX: usize = 4;

/// A sink that publishes to the topics of one Kafka cluster.
pub struct KafkaSink {
    id: SinkId,
    brokers: Arc<str>,
    link: Arc<watch::Sender<Link>>,
    /// The topic that last took a message: the one that a probe asks for.
    topic: watch::Sender<Option<Arc<str>>>,
    questions: Semaphore,
    /// Publishes that have begun and not ended. It only wakes `close`.
    in_flight: watch::Sender<usize>,
    watching: JoinHandle<()>,
}

/// Connects the sink `id`, and keeps it connected until it is closed or dropped.
///
/// Waits for the first sign of life, but not longer than two seconds and not until it comes: a cluster that is down, or
/// refuses us, is reported by every publish and probe until it takes us. Whether it does is told to `observer`, each change
/// once.
///
/// # Errors
/// When something that the config names cannot be used: a problem that [`Config::check`] finds, a secret that is not there,
/// a file that holds no certificate.
pub async fn connect(
    id: SinkId,
    config: &Config,
    resolve: &mut ResolveSecret<'_>,
    observer: Arc<dyn Observer>,
) -> Result<KafkaSink, ConnectError> {
    if let Some(problem) = config.check().into_iter().next() {
        return Err(ConnectError::new(&id, problem.key, problem.message));
    }
    let unusable = |error: AccessError| ConnectError::new(&id, error.key(), error);
    let access = Access::resolve(config, resolve).map_err(unusable)?;
    let maker = Arc::new(Maker::new(&id, config, access, Arc::clone(&observer)));
    let making = Arc::clone(&maker);
    let made = task::spawn_blocking(move || making.make()).await;
    let live = Arc::new(made.map_err(|stopped| ConnectError::new(&id, "brokers", stopped))?.map_err(unusable)?);

    let brokers = Arc::clone(maker.brokers());
    let state = State::Down(Arc::new(Disconnected::not_yet(&brokers)));
    let (link, mut changes) = watch::channel(Link { live: Some(Arc::clone(&live)), state });
    let link = Arc::new(link);
    let topic = watch::Sender::new(None);
    let watch = Watch { maker, live, link: Arc::clone(&link), topic: topic.subscribe(), sink: id.clone(), observer };
    let sink = KafkaSink {
        id,
        brokers,
        link,
        topic,
        questions: Semaphore::new(QUESTIONS_MAX),
        in_flight: watch::Sender::new(0),
        watching: tokio::spawn(watch.keep()),
    };
    // Neither outcome matters here: it stands in `link`.
    let _ = Deadline::after(FIRST_ANSWER_MAX).bound(changes.changed()).await;
    Ok(sink)
}

impl Sink for KafkaSink {
    /// An idempotent producer keeps librdkafka's own repeats from being stored twice, not those of anybody else.
    fn capabilities(&self) -> Capabilities {
        Capabilities { deduplicates: false }
    }

    fn publish<'a>(&'a self, message: &'a Message, deadline: Deadline) -> BoxFuture<'a, Result<Receipt, PublishError>> {
        Box::pin(async move {
            let published = self.publish_to_topic(message, deadline).await;
            published.map_err(|cause| cause.into_error(&self.id))
        })
    }

    fn probe(&self, deadline: Deadline) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(async move { self.look_up_topic(deadline).await.map_err(|cause| cause.into_error(&self.id)) })
    }

    /// Whether the topics are there and can be published to.
    fn review<'a>(
        &'a self,
        targets: &'a [Target],
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Vec<String>, PublishError>> {
        let topics: BTreeSet<&str> = targets.iter().filter_map(topic_of).collect();
        Box::pin(async move {
            let mut found = Vec::new();
            for topic in topics {
                let live = self.live().map_err(|cause| cause.into_error(&self.id))?;
                let asking = live.ask(Some(topic), deadline.remaining().min(ANSWER_MAX));
                match deadline.bound(asking).await {
                    Ok(Ok(Answer::Ready)) => {}
                    Ok(Ok(Answer::Refused(code))) => {
                        found.push(format!("{} (x stands for values)", Cause::of_topic(code, topic)));
                    }
                    Ok(Ok(Answer::Silence) | Err(_)) | Err(_) => return Err(Cause::NoAnswer.into_error(&self.id)),
                }
            }
            Ok(found)
        })
    }

    fn close(&self, deadline: Deadline) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.link.send_modify(|link| link.state = State::Closed);
            // Those that counted themselves before the line above are waited for; the others see that it is closed. Their
            // deliveries come by themselves, without a flush, which would wait for what was given up too.
            let mut in_flight = self.in_flight.subscribe();
            // Whoever is left after that gets its answer from the end of the producer.
            let _ = deadline.bound(in_flight.wait_for(|count| *count == 0)).await;
            self.watching.abort();
            self.link.send_modify(|link| link.live = None);
        })
    }
}

impl KafkaSink {
    async fn publish_to_topic(&self, message: &Message, deadline: Deadline) -> Result<Receipt, Cause> {
        let _in_flight = InFlight::enter(&self.in_flight);
        let Target::Topic { topic, key } = &message.leg.target else {
            return Err(Cause::NotATopic { target: message.leg.target.to_string() });
        };
        if deadline.has_passed() {
            return Err(Cause::NotSent);
        }
        let result = self.send(topic, key, message, deadline).await;
        match &result {
            Err(cause) if cause.may_be_remembered() => match self.ask_about(topic, deadline).await {
                Some(Answer::Ready) => self.send(topic, key, message, deadline).await,
                _ => result,
            },
            // What is on its way to a topic that is deleted ends so too. Where there is no topic, nothing is stored.
            Err(Cause::GivenUp) => match self.ask_about(topic, deadline).await {
                Some(Answer::Refused(code)) if is_missing_topic(code) => Err(Cause::of_topic(code, topic)),
                _ => result,
            },
            _ => result,
        }
    }

    async fn send(&self, topic: &str, key: &str, message: &Message, deadline: Deadline) -> Result<Receipt, Cause> {
        // The producer is not held on to while waiting: it can then be given up, and what waits with it.
        let pending = self.live()?.send(topic, key, headers(message), message.body())?;
        let delivery = pending.delivered(topic, deadline).await?;
        let position = position(&delivery, topic)?;
        self.topic.send_if_modified(|last| {
            let is_another = last.as_deref() != Some(topic);
            if is_another {
                *last = Some(topic.into());
            }
            is_another
        });
        Ok(Receipt::acknowledged(message, position))
    }

    /// What the cluster says of a topic now, if not too many ask. librdkafka may remember something else.
    async fn ask_about(&self, topic: &str, deadline: Deadline) -> Option<Answer> {
        let _question = self.questions.try_acquire().ok()?;
        let live = self.live().ok()?;
        let asking = live.ask(Some(topic), deadline.remaining().min(ANSWER_MAX));
        deadline.bound(asking).await.ok()?.ok()
    }

    /// Before a first message no topic is known; then any answer will do.
    async fn look_up_topic(&self, deadline: Deadline) -> Result<(), Cause> {
        let live = self.live()?;
        let topic = self.topic.borrow().clone();
        let asking = live.ask(topic.as_deref(), deadline.remaining().min(ANSWER_MAX));
        match (deadline.bound(asking).await, topic) {
            (Ok(Ok(Answer::Refused(code))), Some(topic)) => Err(Cause::of_topic(code, &topic)),
            (Ok(Ok(Answer::Ready | Answer::Refused(_))), _) => Ok(()),
            (Ok(Ok(Answer::Silence) | Err(_)) | Err(_), _) => {
                // Why may have become known meanwhile; else it is to be looked into.
                self.live()?;
                live.signs.changed.notify_one();
                Err(Cause::NoAnswer)
            }
        }
    }

    fn live(&self) -> Result<Arc<Live>, Cause> {
        let link = self.link.borrow();
        match (&link.state, &link.live) {
            (State::Up, Some(live)) => Ok(Arc::clone(live)),
            (State::Down(why), _) => Err(Cause::Disconnected(Arc::clone(why))),
            (State::Up, None) | (State::Closed, _) => Err(Cause::Closed),
        }
    }
}

impl Drop for KafkaSink {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl fmt::Debug for KafkaSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSink").field("id", &self.id).field("brokers", &self.brokers).finish_non_exhaustive()
    }
}

fn topic_of(target: &Target) -> Option<&str> {
    match target {
        Target::Topic { topic, .. } => Some(topic),
        Target::Whole | Target::Subject(_) | Target::Exchange { .. } => None,
    }
}

/// Counts one publish while it lives.
struct InFlight<'a>(&'a watch::Sender<usize>);

impl<'a> InFlight<'a> {
    fn enter(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// The message's headers. The event's id is among them, by which a consumer recognises a repeat.
fn headers(message: &Message) -> OwnedHeaders {
    let mut headers = Some(OwnedHeaders::new());
    message.for_each_header(|key, value| {
        headers = headers.take().map(|headers| headers.insert(Header { key, value: Some(value) }));
    });
    headers.unwrap_or_default()
}
