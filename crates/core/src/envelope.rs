//! A message as bytes that outlast the process, and back.
//!
//! `version u8 | length of the head u32, little endian | head, as JSON | the body, byte for byte`. Whoever can write to the
//! spool's directory can forge events, as whoever can read hookgate's secrets can.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    auth::Authenticated,
    event::{Event, EventId, EventKey, Fingerprint, RequestFacts, SinkId, SourceId},
    limits::Admission,
    message::Message,
    redact::Redacted,
    route::{Ack, Leg},
    sink::Target,
    trace::Trace,
};

/// The first byte of every record. A new version is read beside the old ones.
const VERSION: u8 = 1;

/// Bytes before the head.
const PREFIX_BYTES: usize = 5;

/// Why a record cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A newer hookgate wrote it.
    #[error("the record is of version {0}, which this hookgate does not know; use the one that wrote it")]
    Version(u8),
    /// It is no record.
    #[error("the record is no message: {0}")]
    Malformed(String),
}

#[derive(Serialize, Deserialize)]
struct Head<'a> {
    source: Cow<'a, str>,
    id: Cow<'a, str>,
    id_candidate: usize,
    repeatable: bool,
    #[serde(rename = "type")]
    event_type: Cow<'a, str>,
    attributes: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition_by: Option<Cow<'a, str>>,
    received_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<Cow<'a, str>>,
    route: Cow<'a, str>,
    target: Cow<'a, Target>,
    shares_sink: bool,
    /// What was taken out of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    redacted: Option<Cow<'a, str>>,
    /// Those that the route set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    route_headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

/// `message` as a record.
pub fn encode(message: &Message) -> Bytes {
    let (event, leg) = (&**message.event, &message.leg);
    let pairs = |pairs: &'_ [(Arc<str>, String)]| -> Vec<(Cow<'_, str>, Cow<'_, str>)> {
        pairs.iter().map(|(name, value)| (Cow::Owned(name.to_string()), Cow::Owned(value.clone()))).collect()
    };
    let since = event.received_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let head = Head {
        source: event.source.name().into(),
        id: event.id.as_str().into(),
        id_candidate: event.id_candidate,
        repeatable: event.repeatable,
        event_type: (&*event.event_type).into(),
        attributes: pairs(&event.attributes),
        partition_by: event.partition_by.as_deref().map(Cow::Borrowed),
        received_at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        content_type: event.content_type.as_deref().map(Cow::Borrowed),
        content_encoding: event.content_encoding.as_deref().map(Cow::Borrowed),
        headers: pairs(&event.forwarded_headers),
        traceparent: event.trace.as_ref().map(|trace| trace.parent.as_str().into()),
        tracestate: event.trace.as_ref().and_then(|trace| trace.state.as_deref()).map(Cow::Borrowed),
        route: (&*leg.route).into(),
        target: Cow::Borrowed(&leg.target),
        shares_sink: leg.shares_sink,
        redacted: leg.redacted.as_ref().map(|redacted| redacted.pointers.as_str().into()),
        route_headers: pairs(&leg.headers),
    };
    let mut record = vec![VERSION, 0, 0, 0, 0];
    serde_json::to_writer(&mut record, &head).expect("text, numbers and lists of them are JSON, and memory takes them");
    let head_bytes = u32::try_from(record.len() - PREFIX_BYTES).expect("headers and attributes are far below 4 GiB");
    record[1..PREFIX_BYTES].copy_from_slice(&head_bytes.to_le_bytes());
    record.extend_from_slice(message.body());
    record.into()
}

/// The message that [`encode`] made `record` of, addressed to `sink`. `sources` are those of the config; an event of a source
/// that is not among them any more keeps its name.
///
/// # Errors
/// When it is none.
pub fn decode(record: &Bytes, sink: &SinkId, sources: &[SourceId]) -> Result<Message, Unreadable> {
    let malformed = |what: &str| Unreadable::Malformed(what.to_owned());
    match record.first() {
        Some(&VERSION) => {}
        Some(version) => return Err(Unreadable::Version(*version)),
        None => return Err(malformed("it is empty")),
    }
    let length: [u8; 4] = record
        .get(1..PREFIX_BYTES)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| malformed("it is too short"))?;
    let head_end = PREFIX_BYTES + u32::from_le_bytes(length) as usize;
    let head = record.get(PREFIX_BYTES..head_end).ok_or_else(|| malformed("its head is too short"))?;
    let head: Head<'_> = serde_json::from_slice(head).map_err(|error| Unreadable::Malformed(error.to_string()))?;
    let body = record.slice(head_end..);
    let pairs = |pairs: &[(Cow<'_, str>, Cow<'_, str>)]| -> Vec<(Arc<str>, String)> {
        pairs.iter().map(|(name, value)| (Arc::from(&**name), value.to_string())).collect()
    };
    let known = sources.iter().find(|source| source.name() == head.source).cloned();
    let source = known.unwrap_or_else(|| SourceId::new(sources.len(), &*head.source));
    let id = EventId::from_text(head.id.into_owned());
    // It counts against the drain's own bounds, not against those of requests.
    let admitted = Admission::new(1, 0).begin().try_enter().expect("there is room for one");
    let trace = head.traceparent.map(|parent| Trace {
        parent: parent.into_owned(),
        state: head.tracestate.map(Cow::into_owned),
        sender_span: None,
    });
    let event = Event {
        key: EventKey::new(&source, &id),
        source,
        id,
        id_candidate: head.id_candidate,
        repeatable: head.repeatable,
        fingerprint: Fingerprint::of(&body),
        event_type: Arc::from(&*head.event_type),
        attributes: pairs(&head.attributes),
        partition_by: head.partition_by.map(|name| Arc::from(&*name)),
        received_at: SystemTime::UNIX_EPOCH + Duration::from_millis(head.received_at_ms),
        content_type: head.content_type.map(Cow::into_owned),
        content_encoding: head.content_encoding.map(Cow::into_owned),
        forwarded_headers: pairs(&head.headers),
        request: RequestFacts::default(),
        trace,
        body,
        admitted,
    };
    let leg = Leg {
        index: 0,
        sink: sink.clone(),
        target: head.target.into_owned(),
        route: Arc::from(&*head.route),
        required: true,
        ack: Ack::Broker,
        shares_sink: head.shares_sink,
        headers: pairs(&head.route_headers).into(),
        redacted: head.redacted.map(|pointers| Redacted { body: event.body.clone(), pointers: pointers.into_owned() }),
    };
    Ok(Message { event: Arc::new(Authenticated::from_spool(event)), leg })
}

/// Why a message is a dead letter; stands before its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burial {
    /// The metric label of what happened last.
    pub reason: String,
    /// What the broker said last.
    pub error: String,
    /// Attempts from the spool that failed.
    pub failures: u32,
    /// Attempts in the midst of which the process ended.
    pub crashes: u32,
}

/// A dead letter: `length of the burial u32, little endian | the burial, as JSON | the message's record`.
pub fn bury(burial: &Burial, record: &[u8]) -> Bytes {
    let mut dead = vec![0; 4];
    serde_json::to_writer(&mut dead, burial).expect("text and numbers are JSON, and memory takes them");
    let length = u32::try_from(dead.len() - 4).expect("an error message is far below 4 GiB");
    dead[..4].copy_from_slice(&length.to_le_bytes());
    dead.extend_from_slice(record);
    dead.into()
}

/// Takes apart what [`bury`] put together.
///
/// # Errors
/// When it is no dead letter.
pub fn unbury(dead: &Bytes) -> Result<(Burial, Bytes), Unreadable> {
    let malformed = || Unreadable::Malformed("it is no dead letter".to_owned());
    let length: [u8; 4] = dead.get(..4).and_then(|bytes| bytes.try_into().ok()).ok_or_else(malformed)?;
    let end = 4 + u32::from_le_bytes(length) as usize;
    let burial = serde_json::from_slice(dead.get(4..end).ok_or_else(malformed)?);
    Ok((burial.map_err(|error| Unreadable::Malformed(error.to_string()))?, dead.slice(end..)))
}
