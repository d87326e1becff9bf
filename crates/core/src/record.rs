//! A message as one JSON line, for sinks that are read line by line.
//!
//! A line ends with the only newline in it and has these keys in this order, those in brackets only where there is something to
//! say:
//!
//! ```json
//! {"id":"…","source":"…","type":"…","received_at":"2026-11-24T04:18:00.123Z","route":"…",
//!  ["content_type":"…","content_encoding":"…",] "attributes":{…}, ["headers":{…},] "traceparent":"…", ["tracestate":"…",]
//!  "body":"…"}
//! ```
//!
//! `body` is the exact text of the body; a body that is not UTF-8 is in `body_base64` (RFC 4648, section 4) instead.

use std::{borrow::Borrow, sync::Arc};

use data_encoding::BASE64;
use serde::{Serialize, Serializer};

use crate::message::Message;

/// Appends the line of `message`, with its newline, to `lines`.
pub fn encode(message: &Message, lines: &mut Vec<u8>) {
    /// What the other keys take, most often.
    const BESIDE_BODY: usize = 1024;
    lines.reserve(message.body().len() + message.body().len() / 8 + BESIDE_BODY);
    let event = &*message.event;
    let text = std::str::from_utf8(message.body());
    let record = Record {
        id: event.id.as_str(),
        source: event.source.name(),
        event_type: &event.event_type,
        received_at: event.received_at_rfc3339(),
        route: &message.leg.route,
        content_type: event.content_type.as_deref(),
        content_encoding: event.content_encoding.as_deref(),
        redacted: message.leg.redacted.as_ref().map(|redacted| redacted.pointers.as_str()),
        attributes: &event.attributes,
        headers: message.leg.headers.iter().chain(message.forwarded_headers()).collect(),
        traceparent: event.trace.as_ref().map(|trace| trace.parent.as_str()),
        tracestate: event.trace.as_ref().and_then(|trace| trace.state.as_deref()),
        body: text.ok(),
        body_base64: text.is_err().then_some(&**message.body()),
    };
    serde_json::to_writer(&mut *lines, &record).expect("text and maps of text are JSON, and memory takes them");
    lines.push(b'\n');
}

/// The keys of a line, in their order.
#[derive(Serialize)]
struct Record<'a> {
    id: &'a str,
    source: &'a str,
    #[serde(rename = "type")]
    event_type: &'a str,
    received_at: String,
    route: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacted: Option<&'a str>,
    #[serde(serialize_with = "map")]
    attributes: &'a [(Arc<str>, String)],
    #[serde(serialize_with = "map", skip_serializing_if = "Vec::is_empty")]
    headers: Vec<&'a (Arc<str>, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(serialize_with = "base64", skip_serializing_if = "Option::is_none")]
    body_base64: Option<&'a [u8]>,
}

fn map<S: Serializer>(pairs: &[impl Borrow<(Arc<str>, String)>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(Borrow::borrow).map(|(name, value)| (&**name, value)))
}

fn base64<S: Serializer>(bytes: &Option<&[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&BASE64.encode_display(bytes.unwrap_or_default()))
}
