//! An event addressed to one destination, and the metadata that travels with it.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use http::HeaderName;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::{auth::Authenticated, event::Event, route::Leg};

/// What the header of an attribute begins with; its name follows.
const ATTRIBUTE_PREFIX: &str = "hookgate-attr-";

/// An event addressed to one destination. Made from a [`crate::route::Plan`] only.
#[derive(Debug, Clone)]
pub struct Message {
    /// The event.
    pub event: Arc<Authenticated<Event>>,
    /// The destination.
    pub leg: Leg,
}

impl Message {
    /// The bytes that are published: the event's body, or the copy that the route asks for.
    pub fn body(&self) -> &Bytes {
        self.leg.redacted.as_ref().map_or(&self.event.body, |redacted| &redacted.body)
    }

    /// What the broker is to recognise a repeat by, unique among all messages of all sources in one sink.
    ///
    /// `<source>:<event id>`; where one event goes to several destinations of one sink, the target is appended, since a
    /// broker deduplicates over all of them (JetStream: over the whole stream) and would drop all but the first.
    pub fn broker_id(&self) -> String {
        let (source, id) = (self.event.source.name(), self.event.id.as_str());
        match self.leg.shares_sink {
            true => format!("{source}:{id}:{}", self.leg.target),
            // Of all messages: the formatter would make room twice.
            false => [source, ":", id].concat(),
        }
    }

    /// Calls `each` with every header that travels with the message, names in lower case. Values are printable ASCII.
    ///
    /// The CloudEvents attributes with their prefix `ce-`, the content type as itself, then hookgate's own, then those of the
    /// route, then the sender's listed headers. Credentials are in none of them.
    ///
    /// Source: CloudEvents 1.0.2, NATS protocol binding, section 3.1 (binary content mode); values are percent-encoded as
    /// in its HTTP binding, section 3.1.3.2.
    pub fn for_each_header(&self, mut each: impl FnMut(&str, &str)) {
        let event = &*self.event;
        let received_at = event.received_at_rfc3339();
        each("ce-specversion", "1.0");
        each("ce-id", event.id.as_str());
        each("ce-source", &attribute_value(event.source.name()));
        each("ce-type", &attribute_value(&event.event_type));
        each("ce-time", &received_at);
        if let Some(content_type) = &event.content_type {
            each("content-type", &sent_value(content_type));
        }
        if let Some(content_encoding) = &event.content_encoding {
            each("content-encoding", &sent_value(content_encoding));
        }
        each("hookgate-source", &attribute_value(event.source.name()));
        each("hookgate-event-id", event.id.as_str());
        each("hookgate-received-at", &received_at);
        each("hookgate-route", &attribute_value(&self.leg.route));
        if let Some(redacted) = &self.leg.redacted {
            each("hookgate-redacted", &sent_value(&redacted.pointers));
        }
        let mut header = ATTRIBUTE_PREFIX.to_owned();
        for (name, value) in &event.attributes {
            header.truncate(ATTRIBUTE_PREFIX.len());
            header.push_str(name);
            each(&header, &attribute_value(value));
        }
        if let Some(trace) = &event.trace {
            each("traceparent", &trace.parent);
            if let Some(state) = &trace.state {
                each("tracestate", &sent_value(state));
            }
        }
        for (name, value) in &*self.leg.headers {
            each(name, value);
        }
        for (name, value) in self.forwarded_headers() {
            each(name, &sent_value(value));
        }
    }

    /// The sender's headers that travel on. One that the route sets is the route's.
    pub fn forwarded_headers(&self) -> impl Iterator<Item = &(Arc<str>, String)> {
        let set = |name: &str| self.leg.headers.iter().any(|(of_route, _)| **of_route == *name);
        self.event.forwarded_headers.iter().filter(move |(name, _)| !set(name))
    }
}

/// The header `name`, if the config may choose it.
///
/// # Errors
/// Why not, to follow the name.
pub(crate) fn free_header(name: &str) -> Result<HeaderName, &'static str> {
    const TRAVEL: [&str; 4] = ["content-type", "content-encoding", "traceparent", "tracestate"];
    const TAKEN_PREFIXES: [&str; 3] = ["nats-", "ce-", "hookgate-"];
    let header: HeaderName = name.parse().map_err(|_| "is not a header name")?;
    if TRAVEL.contains(&header.as_str()) {
        return Err("travels on anyway");
    }
    if TAKEN_PREFIXES.iter().any(|prefix| header.as_str().starts_with(prefix)) {
        return Err("belongs to hookgate or the broker, which set it themselves");
    }
    Ok(header)
}

/// A value of ours, escaped as CloudEvents demands: blank, quote, `%`, and all that is not printable ASCII.
fn attribute_value(value: &str) -> Cow<'_, str> {
    const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');
    utf8_percent_encode(value, ESCAPED).into()
}

/// A header of the sender's, as sent; only what could end its line or is not ASCII is escaped.
fn sent_value(value: &str) -> Cow<'_, str> {
    utf8_percent_encode(value, CONTROLS).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_can_end_its_header_line() {
        assert_eq!(attribute_value("a\r\nNats-Msg-Id: x"), "a%0D%0ANats-Msg-Id:%20x");
        assert_eq!(attribute_value("naïve 100%"), "na%C3%AFve%20100%25");
        assert_eq!(sent_value("a\r\nb"), "a%0D%0Ab");
        assert_eq!(sent_value("text/plain; title=\"100%\""), "text/plain; title=\"100%\"");
    }
}
