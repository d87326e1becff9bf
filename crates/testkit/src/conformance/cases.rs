//! The cases, each a fact about every sink. A case that does not hold panics.

use std::{
    collections::{BTreeSet, HashMap},
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use hookgate_core::{
    event::SinkId,
    limits::Deadline,
    message::Message,
    observe::Chain,
    sink::{Position, PublishError, PublishErrorKind, PublishReason, Receipt},
};
use tokio::{
    task::{JoinHandle, coop::unconstrained},
    time::Instant,
};

use super::{BadCredentials, Broker, Layer, Metadata, Stored, Verdict, Way};
use crate::{
    event::{TOKEN, TestEvent},
    process::wait_until,
    proxy::ProxyMode,
    recorder::Recorder,
};

/// Every case, by name.
pub const NAMES: &[&str] = crate::conformance_cases!(names);

/// Longest wait for something that should come about by itself, like a reconnect.
const LIMIT: Duration = Duration::from_secs(20);

/// A deadline that nothing reaches that works as it should.
const AMPLE: Duration = Duration::from_secs(10);

/// A deadline that is meant to pass.
const SHORT: Duration = Duration::from_millis(700);

/// How much later than its deadline a publish may end, on a busy machine.
const SLACK: Duration = Duration::from_millis(500);

/// As soon as there is a receipt, a consumer that has never been there before reads the message, where the receipt says.
pub async fn a_receipt_means_that_a_new_consumer_can_read_it(broker: &mut impl Broker, layer: Layer) -> Verdict {
    let way = Way::into(broker, layer).await;
    for number in 0..5 {
        let message = way.message(&TestEvent::new(&number.to_string()));
        let position = way.publish_well(&message).await;
        let stored = broker.stored().await;
        let found = stored.last().expect("the receipt says that it is stored");
        assert_is(found, &message);
        assert!(!position.duplicate, "nothing was there before");
        if let Some(at) = &found.position {
            assert_eq!((at.0.as_str(), at.1), (&*position.place, position.offset), "the receipt says where it is");
        }
        if way.sink.capabilities().deduplicates {
            assert!(found.broker_id.is_some(), "a sink that deduplicates gives the broker an id");
        }
    }
    Ok(())
}

/// The body out equals the body in, whatever bytes it has.
pub async fn bodies_are_byte_exact(broker: &mut impl Broker, layer: Layer) -> Verdict {
    let way = Way::into(broker, layer).await;
    let bodies: [Bytes; 10] = [
        Bytes::new(),
        "\0".into(),
        "\n".into(),
        "no newline at its end".into(),
        "a\r\nb\n\nc\u{2028}\u{feff}\u{7f}\u{1b}[0m\\u0041\\n\"".into(),
        "{ \"b\" : 1.0e2,\t\"a\":\"\\u00e9é\", \"a\":\r\n[] }".into(),
        (0..=255u8).collect(),
        Bytes::from_static(&[0xff, 0xfe, b'a', 0, 0xed, 0xa0, 0x80]),
        "é🦀".repeat(20_000).into(),
        fastrand::Rng::with_seed(7).choose_multiple(0..=u8::MAX, 256).repeat(800).into(),
    ];
    let message =
        |(number, body): (usize, &Bytes)| way.message(&TestEvent::new(&number.to_string()).body(body.clone()));
    let messages: Vec<_> = bodies.iter().enumerate().map(message).collect();
    for message in &messages {
        way.publish_well(message).await;
    }
    assert_holds(&broker.stored().await, &messages, 1);
    Ok(())
}

/// Everything that is known about an event arrives beside its body, and nothing is there that is not known.
pub async fn metadata_makes_the_round_trip(broker: &mut impl Broker, layer: Layer) -> Verdict {
    let way = Way::into(broker, layer).await;
    let messages = [way.message(&event_with_everything()), way.message(&TestEvent::new("bare"))];
    for message in &messages {
        way.publish_well(message).await;
    }
    assert_holds(&broker.stored().await, &messages, 1);
    Ok(())
}

/// An event with something in every field, awkward where it may be.
pub(super) fn event_with_everything() -> TestEvent {
    TestEvent::new("id-with:/?#[]@!$&'()*+,;=%\"\\<>^`{|}~")
        .body("{\"who\":\"Zoë \\\"Z\\\" 100%\\r\\nNats-Msg-Id: x\\u0000\"}")
        .header("content-type", "application/json; charset=\"utf-8\"; q=100%")
        .header("content-encoding", "identity")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .header("tracestate", "a=1,b=t61rcWkgMzE")
        .forwarded("x-request-id", "7,8; \"q\" %41")
        .forwarded("user-agent", "test/1.0 (a; b)")
        .attribute("plain", "nightly")
        .attribute("spaced", "a b  c = \"d\" %20")
        .attribute_at("hostile", "/who")
        .event_type("run finished é")
        .route("Route №1, \"quoted\"")
}

/// A destination to which nothing is bound never earns a receipt; an operator has to act.
pub async fn unroutable_is_refused(broker: &mut impl Broker, layer: Layer) -> Verdict {
    let target = broker.unroutable()?;
    let way = Way::into(broker, layer).await;
    let message = TestEvent::new("lost").to(&way.id, &target);
    let error = way.publish_badly(&message, ample()).await;
    assert_eq!((error.kind, error.reason), NO_DESTINATION, "{}", Chain(&error));
    let kept = way.message(&TestEvent::new("kept"));
    way.publish_well(&kept).await;
    assert_holds(&broker.stored().await, &[kept], 1);
    Ok(())
}

/// A stream, topic or directory that is gone never earns a receipt; once it is back, events are taken again.
pub async fn an_unknown_destination_is_refused(broker: &mut impl Broker, layer: Layer) -> Verdict {
    let way = Way::into(broker, layer).await;
    way.publish_well(&way.message(&TestEvent::new("before"))).await;
    broker.remove_destination().await?;
    let error = way.publish_badly(&way.message(&TestEvent::new("lost")), ample()).await;
    assert_eq!((error.kind, error.reason), NO_DESTINATION, "{}", Chain(&error));
    let probed = way.sink.probe(ample()).await.expect_err("a probe finds that there is no destination");
    assert_eq!((probed.kind, probed.reason), NO_DESTINATION, "{}", Chain(&probed));
    broker.restore_destination().await;
    let after = way.message(&TestEvent::new("after"));
    way.recovers().await;
    way.publish_well(&after).await;
    assert_holds(&broker.stored().await, &[after], 1);
    Ok(())
}

const NO_DESTINATION: (PublishErrorKind, PublishReason) =
    (PublishErrorKind::Misconfigured, PublishReason::NoDestination);

/// What the broker never takes is refused at once and for good, and harms nothing else.
pub async fn too_large_is_rejected_not_retried(broker: &mut impl Broker, layer: Layer) -> Verdict {
    let body_bytes = broker.body_bytes_too_large()?;
    let way = Way::into(broker, layer).await;
    let message = way.message(&TestEvent::new("large").body(vec![b'x'; body_bytes]));
    let started = Instant::now();
    let error = way.publish_badly(&message, ample()).await;
    let too_large = (PublishErrorKind::Rejected, PublishReason::TooLarge);
    assert_eq!((error.kind, error.reason), too_large, "{}", Chain(&error));
    assert!(started.elapsed() < AMPLE / 2, "refused after {:?}", started.elapsed());
    if layer == Layer::Publisher {
        assert_eq!(way.seen.count("publish_attempted"), 1, "it was retried");
    }
    let small = way.message(&TestEvent::new("small"));
    way.publish_well(&small).await;
    assert_holds(&broker.stored().await, &[small], 1);
    Ok(())
}

/// Credentials that the broker refuses are for an operator to mend, and no repeat helps.
pub async fn bad_credentials_are_misconfigured(broker: &mut impl Broker, layer: Layer) -> Verdict {
    let (id, seen) = (SinkId::new(0, "under-test"), Arc::new(Recorder::default()));
    let printed = match broker.bad_credentials(id.clone(), seen.clone()).await? {
        BadCredentials::NotConnected(error) => format!("{error:?} {}", Chain(&*error)),
        BadCredentials::Connected(sink) => {
            let way = Way::through(sink, id, broker.target(), seen, layer);
            let error = way.publish_badly(&way.message(&TestEvent::new("1")), ample()).await;
            let refused = (PublishErrorKind::Misconfigured, PublishReason::Auth);
            assert_eq!((error.kind, error.reason), refused, "{}", Chain(&error));
            format!("{error:?} {}", Chain(&error))
        }
    };
    assert_no_secret(broker, &[printed])
}

/// While the broker is down, a publish says so before its deadline, and what it refused does not turn up later.
pub async fn a_broker_that_is_down_is_unavailable_before_the_deadline(
    broker: &mut impl Broker,
    layer: Layer,
) -> Verdict {
    let way = Way::into(broker, layer).await;
    way.publish_well(&way.message(&TestEvent::new("before"))).await;
    broker.kill().await?;
    way.notices().await;
    let deadline = Duration::from_secs(2);
    let started = Instant::now();
    let error = way.publish_badly(&way.message(&TestEvent::new("lost")), Deadline::after(deadline)).await;
    assert_eq!(error.kind, PublishErrorKind::Unavailable, "{}", Chain(&error));
    let limit = match layer {
        Layer::Sink => deadline / 2,
        // It has tried again for as long as that could help.
        Layer::Publisher => deadline + SLACK,
    };
    assert!(started.elapsed() < limit, "the answer took {:?}", started.elapsed());
    broker.restart().await;
    way.recovers().await;
    way.publish_once_whole(&way.message(&TestEvent::new("after"))).await;
    let stored = broker.stored().await;
    assert!(!stored.iter().any(|stored| stored.metadata.id.ends_with("lost")), "\"not stored\" was not true");
    Ok(())
}

/// A connection that dies after the broker has stored a message and before it could say so earns no receipt.
pub async fn no_receipt_when_the_connection_dies_before_the_ack(broker: &mut impl Broker, layer: Layer) -> Verdict {
    let proxy = broker.proxy()?;
    let way = Way::into(broker, layer).await;
    way.publish_well(&way.message(&TestEvent::new("before"))).await;
    proxy.set_mode(ProxyMode::SwallowReplies).await;
    let message = way.message(&TestEvent::new("unsure"));
    let publish = way.begin(message.clone(), ample()).await;
    is_stored(broker, &message).await;
    assert!(!publish.is_finished(), "nobody has said that it is stored");
    proxy.cut().await;
    proxy.set_mode(ProxyMode::Pass).await;
    let first = publish.await.expect("no panic");
    let capable = way.sink.capabilities().deduplicates;
    match (layer, capable, &first) {
        // The answer to the library's own repeat.
        (_, _, Ok(_)) if broker.client_repeats() => {}
        (Layer::Publisher, true, Ok(receipt)) => assert!(receipt.position().duplicate, "the repeat found it there"),
        (_, _, Err(error)) => assert_eq!(error.kind, PublishErrorKind::Unknown, "{}", Chain(error)),
        (_, _, Ok(receipt)) => panic!("a receipt without an acknowledgement: {receipt:?}"),
    }
    way.recovers().await;
    let again = way.publish_well(&message).await;
    assert_eq!(again.duplicate, capable);
    assert_holds(&stored_but(broker, "before").await, &[message], if capable { 1 } else { 2 });
    Ok(())
}

/// When no answer comes, the outcome is unknown, and that is said when the deadline passes.
pub async fn a_deadline_without_an_answer_is_unknown(broker: &mut impl Broker, layer: Layer) -> Verdict {
    let way = Way::into(broker, layer).await;
    way.publish_well(&way.message(&TestEvent::new("before"))).await;
    broker.pause().await?;
    let started = Instant::now();
    let error = way.publish_badly(&way.message(&TestEvent::new("unsure")), Deadline::after(SHORT)).await;
    let unanswered = (PublishErrorKind::Unknown, PublishReason::Timeout);
    assert_eq!((error.kind, error.reason), unanswered, "{}", Chain(&error));
    assert!(started.elapsed() < SHORT + SLACK, "the answer took {:?}", started.elapsed());
    broker.resume().await;
    way.recovers().await;
    let after = way.message(&TestEvent::new("after"));
    way.publish_well(&after).await;
    is_stored(broker, &after).await;
    Ok(())
}

/// A sink that says it deduplicates stores a repeat once and says that it is one; a sink that does not stores it twice.
pub async fn the_same_id_twice_is_stored_once_if_capable(broker: &mut impl Broker, layer: Layer) -> Verdict {
    let way = Way::into(broker, layer).await;
    let (message, other) = (way.message(&TestEvent::new("twice")), way.message(&TestEvent::new("other")));
    let twin = message.clone();
    let first = way.publish_well(&message).await;
    way.publish_well(&other).await;
    let second = way.publish_well(&twin).await;
    let capable = way.sink.capabilities().deduplicates;
    assert_eq!((first.duplicate, second.duplicate), (false, capable));
    let same_place = first.offset == second.offset;
    assert_eq!(same_place, capable, "a duplicate is where the first one is, another message is not");
    assert_holds(&stored_but(broker, "other").await, &[message], if capable { 1 } else { 2 });
    Ok(())
}

/// A message that gets no answer holds up nobody else's.
pub async fn a_stalled_publish_does_not_delay_others(broker: &mut impl Broker, layer: Layer) -> Verdict {
    let silent = broker.silent().await?;
    let way = Way::into(broker, layer).await;
    let stalled_for = Duration::from_secs(3);
    let stalled = TestEvent::new("stalled").to(&way.id, &silent);
    let stalled = way.begin(stalled, Deadline::after(stalled_for)).await;
    let started = Instant::now();
    let messages: Vec<_> = (0..50).map(|number| way.message(&TestEvent::new(&number.to_string()))).collect();
    for message in &messages {
        way.publish_well(message).await;
    }
    assert!(!stalled.is_finished() && started.elapsed() < stalled_for, "the others waited for the stalled one");
    let error = stalled.await.expect("no panic").expect_err("nobody has acknowledged it");
    assert_eq!(error.kind, PublishErrorKind::Unknown, "{}", Chain(&error));
    assert_holds(&broker.stored().await, &messages, 1);
    Ok(())
}

/// After a crash of the broker the sink finds it again, and what had a receipt is still there.
pub async fn publishes_again_after_a_broker_restart(broker: &mut impl Broker, layer: Layer) -> Verdict {
    let way = Way::into(broker, layer).await;
    let before: Vec<_> = (0..20).map(|number| way.message(&TestEvent::new(&format!("before-{number}")))).collect();
    for message in &before {
        way.publish_well(message).await;
    }
    broker.kill().await?;
    way.notices().await;
    broker.restart().await;
    way.recovers().await;
    let after = way.message(&TestEvent::new("after"));
    way.publish_once_whole(&after).await;
    let stored = broker.stored().await;
    assert_holds(&stored, &[before, vec![after]].concat(), 1);
    assert!(way.seen.count("sink_down") > 0, "the operator was told that the sink was down");
    assert!(way.seen.count("sink_up") > 1, "the operator was told that the sink was up again");
    Ok(())
}

/// A thousand at once all get their receipts, and all are stored, each once.
pub async fn a_thousand_in_parallel_lose_nothing(broker: &mut impl Broker, layer: Layer) -> Verdict {
    let way = Way::into(broker, layer).await;
    let messages = thousand(&way);
    let mut publishes = Vec::new();
    for message in &messages {
        publishes.push(way.begin(message.clone(), Deadline::after(LIMIT)).await);
    }
    let mut places = BTreeSet::new();
    for publish in publishes {
        let receipt = publish.await.expect("no panic").unwrap_or_else(|error| panic!("{}", Chain(&error)));
        let position = receipt.position();
        assert!(places.insert((position.place.to_string(), position.offset)), "two receipts for one place");
    }
    assert_holds(&broker.stored().await, &messages, 1);
    Ok(())
}

/// With connections dying all the time, no receipt is for a message that is not stored, and repeating what had none
/// gets all of them there in the end; each once, if the broker deduplicates.
pub async fn a_thousand_in_parallel_through_a_lossy_proxy_lose_nothing(
    broker: &mut impl Broker,
    layer: Layer,
) -> Verdict {
    let proxy = broker.proxy()?;
    let way = Way::into(broker, layer).await;
    let messages = thousand(&way);
    proxy.set_mode(ProxyMode::Lossy { seed: 11, mean_bytes: 64 * 1024 }).await;
    // A sink that is reconnecting may refuse everything: only attempts that were made through the losses count.
    let (mut left, mut receipted) = (messages.clone(), Vec::new());
    for round in 0..20 {
        if round == 10 {
            proxy.set_mode(ProxyMode::Pass).await;
            way.recovers().await;
        }
        let mut publishes = Vec::new();
        for message in left.drain(..) {
            let publish = way.begin(message.clone(), Deadline::after(Duration::from_secs(2))).await;
            publishes.push((message, publish));
        }
        for (message, publish) in publishes {
            match publish.await.expect("no panic") {
                Ok(_receipt) => receipted.push(message),
                Err(error) if may_be_repeated(error.kind) => left.push(message),
                Err(error) => panic!("a lost connection is no reason for {}", Chain(&error)),
            }
        }
        if left.is_empty() {
            break;
        }
    }
    assert!(proxy.connections_seen() > 1, "the proxy was there to lose connections");
    assert!(left.is_empty(), "{} never got a receipt", left.len());
    let stored = broker.stored().await;
    if way.sink.capabilities().deduplicates {
        assert_holds(&stored, &messages, 1);
    } else {
        let ids: BTreeSet<_> = stored.iter().map(|stored| stored.metadata.id.as_str()).collect();
        let lost = receipted.iter().filter(|message| !ids.contains(message.event.id.as_str()));
        assert_eq!(lost.count(), 0, "receipts for messages that are not stored");
    }
    Ok(())
}

fn may_be_repeated(kind: PublishErrorKind) -> bool {
    match kind {
        PublishErrorKind::Unavailable | PublishErrorKind::Throttled | PublishErrorKind::Unknown => true,
        PublishErrorKind::Rejected | PublishErrorKind::Misconfigured => false,
    }
}

/// Closing finishes what had begun, each with its receipt; what comes later is refused.
pub async fn close_waits_for_accepted_work(broker: &mut impl Broker, layer: Layer) -> Verdict {
    let way = Way::into(broker, layer).await;
    if let Ok(proxy) = broker.proxy() {
        proxy.set_mode(ProxyMode::Delay(Duration::from_millis(50))).await;
    }
    let messages: Vec<_> = (0..50).map(|number| way.message(&TestEvent::new(&number.to_string()))).collect();
    let mut publishes = Vec::new();
    for message in &messages {
        publishes.push(way.begin(message.clone(), ample()).await);
    }
    let started = Instant::now();
    way.sink.close(ample()).await;
    assert!(started.elapsed() < AMPLE, "closing took until its deadline");
    for publish in publishes {
        let receipt = publish.await.expect("no panic").unwrap_or_else(|error| panic!("{}", Chain(&error)));
        assert!(!receipt.position().duplicate);
    }
    let late = way.message(&TestEvent::new("late"));
    let error = way.publish_badly(&late, Deadline::after(SHORT)).await;
    assert_eq!(error.kind, PublishErrorKind::Unavailable, "{}", Chain(&error));
    // A second time nothing is left to do; it must not hang.
    way.sink.close(ample()).await;
    assert_holds(&broker.stored().await, &messages, 1);
    Ok(())
}

/// Neither config nor sink nor any error or observation shows a secret.
pub async fn no_output_contains_a_secret(broker: &mut impl Broker, layer: Layer) -> Verdict {
    broker.secrets()?;
    let way = Way::into(broker, layer).await;
    way.publish_well(&way.message(&TestEvent::new("1"))).await;
    let mut printed = Vec::new();
    if broker.kill().await.is_ok() {
        let error = way.publish_badly(&way.message(&TestEvent::new("2")), Deadline::after(SHORT)).await;
        printed.push(format!("{error:?} {}", Chain(&error)));
        way.notices().await;
        broker.restart().await;
        way.recovers().await;
    }
    printed.extend(broker.printed());
    printed.extend(way.seen.lines());
    assert_no_secret(broker, &printed)
}

fn assert_no_secret(broker: &impl Broker, printed: &[String]) -> Verdict {
    let mut secrets = broker.secrets()?;
    assert!(!secrets.is_empty(), "there is a secret to be kept");
    secrets.push(TOKEN.to_owned());
    for text in printed {
        let shown = secrets.iter().find(|secret| text.contains(secret.as_str()));
        assert_eq!(shown, None, "a secret shows in {text}");
    }
    Ok(())
}

impl Way {
    fn message(&self, event: &TestEvent) -> Message {
        event.to(&self.id, &self.target)
    }

    async fn publish_well(&self, message: &Message) -> Position {
        match self.publish(message, ample()).await {
            Ok(receipt) => receipt.position().clone(),
            Err(error) => panic!("{} was not published: {}", message.event.id, Chain(&error)),
        }
    }

    /// A broker that has just come back may take connections before its queues are bound again, and says so.
    async fn publish_once_whole(&self, message: &Message) {
        wait_until(LIMIT, "the broker is whole again", async || match self.publish(message, ample()).await {
            Ok(_) => true,
            Err(error) => {
                eprintln!("not whole yet: {}", Chain(&error));
                assert_eq!(error.kind, PublishErrorKind::Misconfigured);
                false
            }
        })
        .await;
    }

    async fn publish_badly(&self, message: &Message, deadline: Deadline) -> PublishError {
        match self.publish(message, deadline).await {
            Err(error) => error,
            Ok(receipt) => panic!("{} has a receipt that it cannot have: {receipt:?}", message.event.id),
        }
    }

    /// Begins a publish, up to where it first waits; it goes on by itself.
    async fn begin(&self, message: Message, deadline: Deadline) -> JoinHandle<Result<Receipt, PublishError>> {
        let way = self.clone();
        let mut publish: Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(async move { way.publish(&message, deadline).await });
        // Without tokio's budget, which would have some of many come back before they have begun.
        match unconstrained(poll_fn(|context| Poll::Ready(publish.as_mut().poll(context)))).await {
            Poll::Ready(published) => tokio::spawn(std::future::ready(published)),
            Poll::Pending => tokio::spawn(publish),
        }
    }

    /// Waits until the sink knows that it cannot publish.
    async fn notices(&self) {
        let probe = async || {
            // A probe may fail before the sink itself has given the broker up, which it tells.
            self.sink.probe(Deadline::after(SHORT)).await.is_err() && self.seen.count("sink_down") > 0
        };
        wait_until(LIMIT, "the sink notices that it cannot publish", probe).await;
    }

    /// Waits until the sink can publish again.
    async fn recovers(&self) {
        let probe = async || self.sink.probe(Deadline::after(SHORT)).await.is_ok();
        wait_until(LIMIT, "the sink can publish again", probe).await;
    }
}

fn ample() -> Deadline {
    Deadline::after(AMPLE)
}

fn thousand(way: &Way) -> Vec<Message> {
    let message = |number: usize| {
        let event = TestEvent::new(&number.to_string()).attribute("number", &number.to_string());
        way.message(&event.body(vec![b'x'; number]))
    };
    (0..1000).map(message).collect()
}

async fn is_stored(broker: &mut impl Broker, message: &Message) {
    let id = message.event.id.as_str();
    let found = async || broker.stored().await.iter().any(|stored| stored.metadata.id == id);
    wait_until(LIMIT, "the broker has stored the message", found).await;
}

/// What is stored, without the event that was called `id`.
async fn stored_but(broker: &mut impl Broker, id: &str) -> Vec<Stored> {
    let mut stored = broker.stored().await;
    stored.retain(|stored| !stored.metadata.id.ends_with(&format!("={id}")));
    stored
}

fn assert_is(found: &Stored, message: &Message) {
    assert_eq!(found.metadata, Metadata::of(message));
    assert_eq!(found.target, message.leg.target);
    if let Some(id) = &found.broker_id {
        assert_eq!(*id, message.broker_id());
    }
    // Compared last and without being printed: a difference in a large one says little.
    assert!(found.body == message.event.body, "the body of {} differs", message.event.id);
}

/// Asserts that `stored` is `messages`, each this many times, in any order, and nothing else.
fn assert_holds(stored: &[Stored], messages: &[Message], times: usize) {
    let mut by_id: HashMap<&str, Vec<&Stored>> = HashMap::new();
    for found in stored {
        by_id.entry(&found.metadata.id).or_default().push(found);
    }
    for message in messages {
        let id = message.event.id.as_str();
        let found = by_id.remove(id).unwrap_or_default();
        assert_eq!(found.len(), times, "{id} is stored this often");
        for found in found {
            assert_is(found, message);
        }
    }
    assert!(by_id.is_empty(), "stored beside what was published: {:?}", by_id.keys());
}
