//! What every sink must do, as one suite of named cases that is run against its real broker.
//!
//! A sink's tests say how its broker is started, read and broken ([`Broker`]), and [`crate::conformance_suite!`] turns that into
//! one test for each of the [`cases`], each of them twice: on the bare sink and through core's `Publisher`. What cannot
//! happen to a broker is answered with [`Inapplicable`] and listed in the macro's call; a case that is skipped without
//! being listed fails, and so does one that is listed and holds.
//!
//! ```ignore
//! conformance_suite!(FileBroker::start().await, inapplicable = [too_large_is_rejected_not_retried]);
//! ```

pub mod cases;

use std::{
    collections::BTreeMap,
    error::Error,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use hookgate_core::{
    event::SinkId,
    limits::Deadline,
    message::Message,
    observe::Observer,
    publisher::Publisher,
    sink::{PublishError, Receipt, Sink, Target},
};
use percent_encoding::percent_decode_str;

use crate::{proxy::FaultProxy, recorder::Recorder};

/// One real broker under test, in its own place, with an empty destination.
///
/// The testkit asks for what it needs in the order: `sink`, then faults, then their end. Where a fault cannot happen to
/// this kind of broker, the method says so and why.
#[expect(async_fn_in_trait, reason = "the suite runs a broker on the task that made it")]
pub trait Broker {
    /// The ordinary destination; what is published there is in [`Self::stored`].
    fn target(&self) -> Target;

    /// A sink called `id`, connected to the ordinary destination through [`Self::proxy`], if there is one.
    async fn sink(&mut self, id: SinkId, observer: Arc<dyn Observer>) -> Arc<dyn Sink>;

    /// Everything that the ordinary destination holds, as a new consumer reads it, in order. It shares no code or
    /// connection with the sink, and does not go through the proxy. The broker is running.
    async fn stored(&mut self) -> Vec<Stored>;

    /// Whether the client library itself repeats what got no answer, in a way by which the broker recognises the repeat. A
    /// receipt may then come over a second connection, for a message that was stored over the first.
    fn client_repeats(&self) -> bool {
        false
    }

    /// A destination from which nothing is ever taken up: no stream or queue is bound to it.
    fn unroutable(&self) -> Result<Target, Inapplicable>;

    /// A destination at which messages are taken and never acknowledged, while others are served.
    async fn silent(&mut self) -> Result<Target, Inapplicable>;

    /// Removes the stream, topic or directory that the sink publishes to, under the connected sink.
    async fn remove_destination(&mut self) -> Result<(), Inapplicable>;

    /// Makes it anew, empty.
    async fn restore_destination(&mut self);

    /// Length of a body that the broker never takes, in bytes.
    fn body_bytes_too_large(&self) -> Result<usize, Inapplicable>;

    /// What comes of connecting with credentials that the broker refuses. They are among [`Self::secrets`].
    async fn bad_credentials(
        &mut self,
        id: SinkId,
        observer: Arc<dyn Observer>,
    ) -> Result<BadCredentials, Inapplicable>;

    /// Kills the broker as a crash would. What it has acknowledged is still there after [`Self::restart`].
    async fn kill(&mut self) -> Result<(), Inapplicable>;

    /// Starts the killed broker again, and waits until it serves.
    async fn restart(&mut self);

    /// Freezes the broker: connections stay open and nothing is answered.
    async fn pause(&mut self) -> Result<(), Inapplicable>;

    /// Lets a frozen broker go on.
    async fn resume(&mut self);

    /// The network between sink and broker.
    fn proxy(&self) -> Result<Arc<FaultProxy>, Inapplicable>;

    /// Every secret that the sink is or was configured with: at least one, by which the broker lets it in.
    fn secrets(&self) -> Result<Vec<String>, Inapplicable>;

    /// What the sink's own types print of themselves: the config with its secrets (`Debug` and serialized), the sink.
    fn printed(&self) -> Vec<String>;
}

/// Why something cannot happen to a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inapplicable(pub &'static str);

/// Whether a case held, or why it says nothing about this broker. A case that does not hold panics.
pub type Verdict = Result<(), Inapplicable>;

/// What comes of credentials that the broker refuses.
pub enum BadCredentials {
    /// There is no sink; this is what the operator is told.
    NotConnected(Box<dyn Error + Send + Sync>),
    /// There is a sink, and publishing through it must say so.
    Connected(Arc<dyn Sink>),
}

/// What a message is published through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// The sink itself: one attempt.
    Sink,
    /// Core's layers around it: bound, retries, observation.
    Publisher,
}

/// A message as a consumer finds it, escapes undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Where it was found.
    pub target: Target,
    /// What the broker recognises a repeat by; `None` if it does not.
    pub broker_id: Option<String>,
    /// Stream, file or partition, and the sequence number or offset in it; `None` if a consumer does not see them.
    pub position: Option<(String, u64)>,
    /// All that travels with the body.
    pub metadata: Metadata,
    /// The body, byte for byte.
    pub body: Bytes,
}

/// What travels with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Name of the source.
    pub source: String,
    /// The event id.
    pub id: String,
    /// What happened.
    pub event_type: String,
    /// When its last byte arrived, to the millisecond.
    pub received_at: SystemTime,
    /// Name of the route.
    pub route: String,
    /// The sender's Content-Type.
    pub content_type: Option<String>,
    /// The sender's Content-Encoding.
    pub content_encoding: Option<String>,
    /// The attributes.
    pub attributes: BTreeMap<String, String>,
    /// The W3C `traceparent`.
    pub trace_parent: Option<String>,
    /// The W3C `tracestate`.
    pub trace_state: Option<String>,
    /// The sender's headers that travel on.
    pub forwarded: BTreeMap<String, String>,
}

impl Metadata {
    /// What a consumer must find beside the body of `message`.
    pub fn of(message: &Message) -> Self {
        let event = &message.event;
        let since_epoch = event.received_at.duration_since(UNIX_EPOCH).expect("tests run after 1970");
        let owned = |pairs: &[(Arc<str>, String)]| {
            let pair = |(name, value): &(Arc<str>, String)| (name.to_string(), value.clone());
            pairs.iter().map(pair).collect()
        };
        Self {
            source: event.source.name().to_owned(),
            id: event.id.as_str().to_owned(),
            event_type: event.event_type.to_string(),
            received_at: UNIX_EPOCH + whole_milliseconds(since_epoch),
            route: message.leg.route.to_string(),
            content_type: event.content_type.clone(),
            content_encoding: event.content_encoding.clone(),
            attributes: owned(&event.attributes),
            trace_parent: event.trace.as_ref().map(|trace| trace.parent.clone()),
            trace_state: event.trace.as_ref().and_then(|trace| trace.state.clone()),
            forwarded: owned(&event.forwarded_headers),
        }
    }

    /// Reads the headers of a broker's message. Leave out those that the broker itself defines.
    ///
    /// # Panics
    /// When one is missing, is there twice, or says something else than its CloudEvents twin.
    pub fn from_headers<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut left = BTreeMap::new();
        for (name, value) in headers {
            assert_eq!(left.insert(name.to_owned(), value.to_owned()), None, "the header {name} is there twice");
        }
        let mut take = |name: &str| left.remove(name);
        assert_eq!(take("ce-specversion").as_deref(), Some("1.0"));
        let mut twin = |own: &str, cloud_event: &str| {
            let value = take(own).unwrap_or_else(|| panic!("the header {own} is missing"));
            assert_eq!(take(cloud_event).as_ref(), Some(&value), "{cloud_event} says what {own} says");
            value
        };
        let source = unescaped(&twin("hookgate-source", "ce-source"));
        let id = twin("hookgate-event-id", "ce-id");
        let received_at = twin("hookgate-received-at", "ce-time");
        let event_type = unescaped(&take("ce-type").expect("ce-type is there"));
        let route = unescaped(&take("hookgate-route").expect("hookgate-route is there"));
        let (content_type, content_encoding) = (take("content-type"), take("content-encoding"));
        let (trace_parent, trace_state) = (take("traceparent"), take("tracestate"));
        let attribute = |(name, value): (&String, &String)| {
            Some((name.strip_prefix("hookgate-attr-")?.to_owned(), unescaped(value)))
        };
        let attributes = left.iter().filter_map(attribute).collect();
        left.retain(|name, _| !name.starts_with("hookgate-attr-"));
        Self {
            source,
            id,
            event_type,
            received_at: humantime::parse_rfc3339(&received_at).expect("received-at is RFC 3339"),
            route,
            content_type,
            content_encoding,
            attributes,
            trace_parent,
            trace_state,
            forwarded: left,
        }
    }
}

fn whole_milliseconds(span: Duration) -> Duration {
    Duration::new(span.as_secs(), span.subsec_millis() * 1_000_000)
}

fn unescaped(value: &str) -> String {
    percent_decode_str(value).decode_utf8().expect("escapes make UTF-8").into_owned()
}

/// A sink with its layers, at work.
#[derive(Clone)]
struct Way {
    layer: Layer,
    id: SinkId,
    target: Target,
    sink: Arc<dyn Sink>,
    publisher: Arc<Publisher>,
    seen: Arc<Recorder>,
}

/// More than any case has in flight, so that nothing waits for a place.
const IN_FLIGHT_MAX: usize = 2048;

impl Way {
    async fn into(broker: &mut impl Broker, layer: Layer) -> Self {
        let (id, seen) = (SinkId::new(0, "under-test"), Arc::new(Recorder::default()));
        let sink = broker.sink(id.clone(), seen.clone()).await;
        Self::through(sink, id, broker.target(), seen, layer)
    }

    fn through(sink: Arc<dyn Sink>, id: SinkId, target: Target, seen: Arc<Recorder>, layer: Layer) -> Self {
        let publisher = Publisher::new(id.clone(), Arc::clone(&sink), IN_FLIGHT_MAX, seen.clone());
        Self { layer, id, target, sink, publisher: Arc::new(publisher), seen }
    }

    async fn publish(&self, message: &Message, deadline: Deadline) -> Result<Receipt, PublishError> {
        match self.layer {
            Layer::Sink => self.sink.publish(message, deadline).await,
            Layer::Publisher => self.publisher.publish(message, deadline).await,
        }
    }
}

/// Longest run of one case. None comes near it; a sink that hangs then has a named failure.
const CASE_LIMIT: Duration = Duration::from_secs(120);

/// Runs a case to its end and holds its verdict against what the sink's tests have declared.
///
/// # Panics
/// When they differ, or the case hangs.
pub async fn hold_to_declaration(name: &str, inapplicable: &[&str], case: impl Future<Output = Verdict>) {
    let verdict = tokio::time::timeout(CASE_LIMIT, case).await.unwrap_or_else(|_| panic!("{name} hangs"));
    match (verdict, inapplicable.contains(&name)) {
        (Ok(()), false) | (Err(_), true) => {}
        (Ok(()), true) => panic!("{name} is declared inapplicable, and it holds: remove it from the list"),
        (Err(Inapplicable(why)), false) => panic!("{name} was not run ({why}); if that is right, declare it"),
    }
}

/// Makes one test of each case on each layer, for the broker that the expression starts (it may await).
///
/// `inapplicable` lists the cases that say nothing about this kind of broker.
#[macro_export]
macro_rules! conformance_suite {
    ($broker:expr, inapplicable = [$($inapplicable:ident),* $(,)?]) => {
        const INAPPLICABLE: &[&str] = &[$(stringify!($inapplicable)),*];

        mod bare {
            use super::*;
            $crate::conformance_cases!(tests $crate::conformance::Layer::Sink, $broker);
        }

        mod through_the_publisher {
            use super::*;
            $crate::conformance_cases!(tests $crate::conformance::Layer::Publisher, $broker);
        }

        #[test]
        fn what_is_declared_inapplicable_exists() {
            for name in INAPPLICABLE {
                assert!($crate::conformance::cases::NAMES.contains(name), "there is no case {name}");
            }
        }
    };
}

/// The list of cases, for [`crate::conformance_suite!`] and for [`cases::NAMES`].
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_cases {
    (names) => { $crate::conformance_cases! { @list names } };
    (tests $layer:expr, $broker:expr) => { $crate::conformance_cases! { @list tests $layer, $broker; } };
    (@list $($what:tt)*) => {
        $crate::conformance_cases! { @expand [
            a_receipt_means_that_a_new_consumer_can_read_it
            bodies_are_byte_exact
            metadata_makes_the_round_trip
            unroutable_is_refused
            an_unknown_destination_is_refused
            too_large_is_rejected_not_retried
            bad_credentials_are_misconfigured
            a_broker_that_is_down_is_unavailable_before_the_deadline
            no_receipt_when_the_connection_dies_before_the_ack
            a_deadline_without_an_answer_is_unknown
            the_same_id_twice_is_stored_once_if_capable
            a_stalled_publish_does_not_delay_others
            publishes_again_after_a_broker_restart
            a_thousand_in_parallel_lose_nothing
            a_thousand_in_parallel_through_a_lossy_proxy_lose_nothing
            close_waits_for_accepted_work
            no_output_contains_a_secret
        ] $($what)* }
    };
    (@expand [$($case:ident)*] names) => { &[$(stringify!($case)),*] };
    (@expand [$($case:ident)*] tests $layer:expr, $broker:expr;) => {
        $crate::conformance_cases!(@test ($layer) ($broker) $($case)*);
    };
    (@test $layer:tt $broker:tt $($case:ident)*) => {
        $($crate::conformance_cases!(@one $layer $broker $case);)*
    };
    (@one ($layer:expr) ($broker:expr) $case:ident) => {
        #[::tokio::test(flavor = "multi_thread")]
        async fn $case() {
            let mut broker = $broker;
            let case = $crate::conformance::cases::$case(&mut broker, $layer);
            $crate::conformance::hold_to_declaration(stringify!($case), super::INAPPLICABLE, case).await;
        }
    };
}

#[cfg(test)]
mod tests;
