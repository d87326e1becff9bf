//! Events and messages as the relay itself makes them: a request with a bearer token, verified, identified and routed.
//!
//! Nothing is forged here: core has no other door, and so a test meets the values that production meets.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use hookgate_core::{
    auth::{Authenticated, Draft, Offline, Unverified},
    config::ByteLimit,
    dedup::{Dedup, Memory},
    event::{Event, SinkId, SourceId},
    limits::Turns,
    message::Message,
    observe::Observer,
    pipeline::Pipeline,
    publisher::Publisher,
    route::{Names, Routed, Router, SinkDeclaration, UnroutedConfig},
    secret::{Secret, SecretRef, SecretSlot},
    sink::{Addressing, Sink, Target},
    source::Source,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::{fake_sink::FakeSink, sender};

/// The bearer token of every source here; no output of the relay may hold it.
pub const TOKEN: &str = "testkit-token-never-printed";

/// The name of every source here.
pub const SOURCE: &str = "test";

/// The path of every source here.
pub const PATH: &str = "/test";

/// Where the event id stands in a request.
const ID_HEADER: &str = "x-test-id";

/// Before the name of an attribute that stands in a header.
const ATTRIBUTE_HEADER_PREFIX: &str = "x-test-attr-";

/// An event to be: what its sender sends, and what the config makes of it.
#[derive(Debug, Clone)]
pub struct TestEvent {
    body: Bytes,
    headers: Vec<(HeaderName, HeaderValue)>,
    forwarded: Vec<String>,
    /// Name and place of each attribute.
    attributes: BTreeMap<String, String>,
    event_type: Option<String>,
    event_id: Value,
    dedup: Value,
    received_at: SystemTime,
    route: String,
}

impl TestEvent {
    /// An event that its sender calls `id` (printable ASCII), with a short text for a body.
    pub fn new(id: &str) -> Self {
        let event = Self {
            body: Bytes::from_static(b"a body"),
            headers: Vec::new(),
            forwarded: Vec::new(),
            attributes: BTreeMap::new(),
            event_type: None,
            event_id: json!([format!("header:{ID_HEADER}")]),
            dedup: json!({}),
            received_at: SystemTime::now(),
            route: "test-route".to_owned(),
        };
        event.header("authorization", &format!("Bearer {TOKEN}")).header(ID_HEADER, id)
    }

    /// With this body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// With one more request header. Any text that can stand in one, UTF-8 included.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = name.parse().unwrap_or_else(|error| panic!("header name {name:?}: {error}"));
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|error| panic!("header {name}: {error}"));
        self.headers.push((name, value));
        self
    }

    /// With one more request header, which the source's config lists to travel on.
    #[must_use]
    pub fn forwarded(mut self, name: &str, value: &str) -> Self {
        self.forwarded.push(name.to_owned());
        self.header(name, value)
    }

    /// With one more attribute, sent in a header: printable ASCII.
    #[must_use]
    pub fn attribute(mut self, name: &str, value: &str) -> Self {
        let header = format!("{ATTRIBUTE_HEADER_PREFIX}{name}");
        self.attributes.insert(name.to_owned(), format!("header:{header}"));
        self.header(&header, value)
    }

    /// With one more attribute, read from the body at `pointer`: any text.
    #[must_use]
    pub fn attribute_at(mut self, name: &str, pointer: &str) -> Self {
        self.attributes.insert(name.to_owned(), pointer.to_owned());
        self
    }

    /// Of this type.
    #[must_use]
    pub fn event_type(mut self, name: &str) -> Self {
        self.event_type = Some(name.to_owned());
        self
    }

    /// Of a source with these candidates, as in `event_id`.
    #[must_use]
    pub fn event_id(mut self, candidates: Value) -> Self {
        self.event_id = candidates;
        self
    }

    /// Of a source with this `dedup` table.
    #[must_use]
    pub fn dedup(mut self, table: Value) -> Self {
        self.dedup = table;
        self
    }

    /// Received at this time.
    #[must_use]
    pub fn received_at(mut self, at: SystemTime) -> Self {
        self.received_at = at;
        self
    }

    /// Taken by a route of this name.
    #[must_use]
    pub fn route(mut self, name: &str) -> Self {
        self.route = name.to_owned();
        self
    }

    /// The source that such events come from.
    pub fn source(&self) -> Source {
        let types: Vec<Value> = self.event_type.iter().map(|name| json!({ "name": name })).collect();
        let config = json!({
            "path": PATH,
            "verify": [{ "scheme": "bearer", "secrets": [TOKEN] }],
            "event_id": self.event_id,
            "dedup": self.dedup,
            "partition_by": self.attributes.contains_key("job").then_some("job"),
            "event_type": types,
            "attributes": self.attributes,
            "forward_headers": self.forwarded,
        });
        let config = serde_json::from_value(config).unwrap_or_else(|error| panic!("source config: {error}"));
        let mut resolve = |_: &SecretRef| {
            let secret = Secret::new(TOKEN).map_err(|error| error.to_string())?;
            Ok(Arc::new(SecretSlot::new("test", secret)))
        };
        Source::compile(SourceId::new(0, SOURCE), &config, &ByteLimit::mib(64).into(), &mut resolve)
            .unwrap_or_else(|problems| panic!("source config: {problems:?}"))
    }

    /// The request that its sender sends.
    pub fn request(&self) -> Unverified {
        sender::request(&Draft {
            path: PATH.to_owned(),
            headers: HeaderMap::from_iter(self.headers.iter().cloned()),
            now: self.received_at,
            ..sender::draft(self.body.clone())
        })
    }

    /// The event.
    pub fn event(&self) -> Arc<Authenticated<Event>> {
        let source = self.source();
        let request = source.verify(self.request()).expect("the request carries the token");
        Arc::new(source.identify(request).unwrap_or_else(|malformed| panic!("{malformed}")))
    }

    /// The event, addressed to `target` in `sink`.
    pub fn to(&self, sink: &SinkId, target: &Target) -> Message {
        let mut messages = self.to_each(sink, std::slice::from_ref(target));
        messages.pop().expect("one message for one target")
    }

    /// One event, addressed to each of `targets` in one sink.
    pub fn to_each(&self, sink: &SinkId, targets: &[Target]) -> Vec<Message> {
        let addressing = match targets.first() {
            Some(Target::Subject(_)) => Addressing::Subject,
            Some(Target::Topic { .. }) => Addressing::Topic,
            Some(Target::Exchange { .. }) => Addressing::Exchange,
            Some(Target::Whole) | None => Addressing::None,
        };
        let destination = |target: &Target| match target {
            Target::Whole => json!({ "sink": sink.name() }),
            Target::Subject(subject) => json!({ "sink": sink.name(), "subject": subject }),
            Target::Topic { topic, key } => json!({ "sink": sink.name(), "topic": topic, "key": key }),
            Target::Exchange { exchange, routing_key } => {
                json!({ "sink": sink.name(), "exchange": exchange, "routing_key": routing_key })
            }
        };
        let to: Vec<Value> = targets.iter().map(destination).collect();
        let sinks = [SinkDeclaration { id: sink.clone(), addressing, allow: Vec::new() }];
        let router = self.router(&sinks, &json!([{ "name": self.route, "to": to }]));
        let event = self.event();
        let Routed::To(plan) = router.plan(&event).routed else { panic!("the route takes every event") };
        plan.messages(&event).collect()
    }

    /// A pipeline for such events: these sinks (their ids counted from 0), and `routes` as in `[[routes]]`.
    ///
    /// Everything else is a default, and public: change it before use.
    ///
    /// # Panics
    /// When a route does not compile, and outside of a runtime.
    pub fn pipeline(&self, sinks: &[Arc<FakeSink>], routes: &Value, observer: &Arc<dyn Observer>) -> Pipeline {
        const IN_FLIGHT_MAX: usize = 1024;
        let declare = |sink: &Arc<FakeSink>| SinkDeclaration {
            id: sink.id().clone(),
            addressing: sink.addressing(),
            allow: Vec::new(),
        };
        let publisher = |sink: &Arc<FakeSink>| {
            let (id, sink) = (sink.id().clone(), Arc::clone(sink) as Arc<dyn Sink>);
            Some(Arc::new(Publisher::new(id, sink, IN_FLIGHT_MAX, Arc::clone(observer))))
        };
        let declared: Vec<_> = sinks.iter().map(declare).collect();
        Pipeline {
            router: self.router(&declared, routes),
            dedup: Dedup {
                memory: Arc::new(Memory::new(Duration::from_secs(24 * 60 * 60), 200_000)),
                shared: None,
                observer: Arc::clone(observer),
            },
            publishers: sinks.iter().map(publisher).collect(),
            spool: None,
            fetch: Arc::new(Offline),
            observer: Arc::clone(observer),
            reply_deadline: Duration::from_millis(2500),
            turns: Arc::new(Turns::new(1, Handle::current())),
            tasks: TaskTracker::new(),
        }
    }

    fn router(&self, sinks: &[SinkDeclaration], routes: &Value) -> Router {
        let routes: Vec<_> = serde_json::from_value(routes.clone()).unwrap_or_else(|error| panic!("routes: {error}"));
        let attributes: Vec<String> = self.attributes.keys().cloned().collect();
        let names = Names { sinks, sources: &[SOURCE.to_owned()], attributes: &attributes };
        Router::compile(&routes, &UnroutedConfig::default(), &names)
            .unwrap_or_else(|problems| panic!("routes: {problems:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_what_was_asked_for() {
        let event = TestEvent::new("7")
            .body(r#"{"who":"Zoë"}"#)
            .header("content-type", "application/json")
            .forwarded("x-kept", "yes")
            .attribute("job", "nightly")
            .attribute_at("who", "/who")
            .event_type("run.finished")
            .event();
        assert_eq!(event.id.as_str(), "header:x-test-id=7");
        assert_eq!(&event.body[..], r#"{"who":"Zoë"}"#.as_bytes());
        assert_eq!(event.content_type.as_deref(), Some("application/json"));
        assert_eq!(event.forwarded_headers, [("x-kept".into(), "yes".to_owned())]);
        assert_eq!((event.attribute("job"), event.attribute("who")), (Some("nightly"), Some("Zoë")));
        assert_eq!(&*event.event_type, "run.finished");
        assert_eq!(event.partition_key(), "nightly");
        assert_eq!(TestEvent::new("7").event().partition_key(), "header:x-test-id=7");
    }

    #[test]
    fn one_event_can_go_to_several_targets_of_one_sink() {
        let targets = ["a.b", "a.c"].map(|subject| Target::Subject(subject.to_owned()));
        let messages = TestEvent::new("1").to_each(&SinkId::new(0, "s"), &targets);
        assert_eq!(messages.iter().map(|message| message.leg.target.clone()).collect::<Vec<_>>(), targets);
        assert_ne!(messages[0].broker_id(), messages[1].broker_id());
    }
}
