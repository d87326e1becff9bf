//! An event: one webhook as it was received, with its identity and what is known about it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderName, Method};
use sha2::{Digest, Sha256};

use crate::{limits::Admitted, trace::Trace};

/// A name from the config together with its place in it, so that per-name state is an index away.
macro_rules! configured_name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub struct $type {
            index: usize,
            name: Arc<str>,
        }

        impl $type {
            /// The name `name`, the `index`th of its kind in the config.
            pub fn new(index: usize, name: impl Into<Arc<str>>) -> Self {
                Self { index, name: name.into() }
            }

            /// Its place among its kind, from 0, without gaps.
            pub fn index(&self) -> usize {
                self.index
            }

            /// The name as configured.
            pub fn name(&self) -> &str {
                &self.name
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.name)
            }
        }
    };
}

configured_name! {
    /// Who sends: the name of a `[sources.…]` table.
    SourceId
}
configured_name! {
    /// Where events go: the name of a `[sinks.…]` table.
    SinkId
}

/// What makes a repeat recognisable: the text that one source uses for one event.
///
/// Printable ASCII, at most [`EventId::LEN_MAX`] bytes. A longer text is replaced by its SHA-256, so that no sender
/// decides how much is remembered or how long a header gets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventId(String);

impl EventId {
    /// Longest id that is kept as it is, in bytes. JSON Lines, headers and logs stay readable with it.
    pub const LEN_MAX: usize = 512;

    /// The id with this text, which must be printable ASCII already.
    pub(crate) fn from_text(text: String) -> Self {
        debug_assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "ids are encoded before");
        if text.len() <= Self::LEN_MAX {
            Self(text)
        } else {
            Self(format!("sha256={}", HEXLOWER.encode(&Sha256::digest(text))))
        }
    }

    /// The id of a body that names none: its SHA-256.
    pub(crate) fn of_body(body: &[u8]) -> Self {
        Self(format!("body-sha256={}", HEXLOWER.encode(&Sha256::digest(body))))
    }

    /// An id that no other event has.
    pub(crate) fn unique() -> Self {
        Self(format!("unique={:016x}{:016x}", fastrand::u64(..), fastrand::u64(..)))
    }

    /// This id, for that one of its events whose body is `body`.
    fn with_body(&self, body: &[u8]) -> Self {
        Self::from_text(format!("{self}&{}", Self::of_body(body)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Source and event id, hashed to a fixed size: the key of every dedup store.
///
/// The first 16 bytes of SHA-256 over `source`, a zero byte, and the id: no source can produce another's key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventKey([u8; 16]);

impl EventKey {
    /// The key of `id` as sent by `source`.
    pub fn new(source: &SourceId, id: &EventId) -> Self {
        let mut hash = Sha256::new();
        hash.update(source.name());
        hash.update([0]);
        hash.update(id.as_str());
        let mut key = [0; 16];
        key.copy_from_slice(&hash.finalize()[..16]);
        Self(key)
    }

    /// The key's bytes, uniformly distributed.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for EventKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&HEXLOWER.encode_display(&self.0), f)
    }
}

/// What tells two bodies apart: the first 8 bytes of the SHA-256.
///
/// Kept with every id that is remembered, so that an id that is used for two events is noticed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 8]);

impl Fingerprint {
    /// The fingerprint of `body`.
    pub fn of(body: &[u8]) -> Self {
        let mut first = [0; 8];
        first.copy_from_slice(&Sha256::digest(body)[..8]);
        Self(first)
    }

    /// The fingerprint that [`Self::to_bytes`] gave.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// Its bytes, to be stored.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0
    }
}

impl fmt::Display for Fingerprint {
    /// 16 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&HEXLOWER.encode_display(&self.0), f)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What rules can ask about an event's request. Empty for an event that comes from the spool: its rules are decided.
#[derive(Clone, Default)]
pub struct RequestFacts {
    /// The method.
    pub method: Method,
    /// The path.
    pub path: String,
    /// All headers, credentials included.
    headers: HeaderMap,
}

impl RequestFacts {
    /// Those of a request.
    pub fn new(method: Method, path: String, headers: HeaderMap) -> Self {
        Self { method, path, headers }
    }

    /// A header's value, if there is one and it is text.
    pub fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl fmt::Debug for RequestFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestFacts").field("method", &self.method).field("path", &self.path).finish_non_exhaustive()
    }
}

/// One webhook, read but not changed.
#[derive(Debug, Clone)]
pub struct Event {
    /// Who sent it.
    pub source: SourceId,
    /// What it is called.
    pub id: EventId,
    /// Which candidate of the source's `event_id` gave it, counted from 0.
    pub id_candidate: usize,
    /// Source and id as one fixed-size key.
    pub key: EventKey,
    /// Whether a repeat of it can be told by its id; not with `event_id = ["unique"]`.
    pub repeatable: bool,
    /// What tells its body from another's.
    pub fingerprint: Fingerprint,
    /// What happened, like `openclaw.run.finished`.
    pub event_type: Arc<str>,
    /// Values that routes and consumers want without parsing the body, in the config's order.
    pub attributes: Vec<(Arc<str>, String)>,
    /// The attribute whose events belong together; see [`Self::partition_key`].
    pub partition_by: Option<Arc<str>>,
    /// When its last byte arrived.
    pub received_at: SystemTime,
    /// The sender's Content-Type, as sent.
    pub content_type: Option<String>,
    /// The sender's Content-Encoding, as sent. The body is passed on as it came, never decompressed.
    pub content_encoding: Option<String>,
    /// Headers of the sender that the config lists under `forward_headers`; names in lower case.
    pub forwarded_headers: Vec<(Arc<str>, String)>,
    /// What else is known of its request.
    pub request: RequestFacts,
    /// The W3C trace context that it belongs to and that travels on with it. Only from an old record of the spool there is none.
    pub trace: Option<Trace>,
    /// The body, byte for byte.
    pub body: Bytes,
    /// Its place among what is in flight, kept until the last sink is done with it.
    pub admitted: Admitted,
}

impl Event {
    /// The same event under an id that says which body it has: for one of several that their sender calls the same.
    pub(crate) fn told_apart(&self) -> Self {
        let id = self.id.with_body(&self.body);
        Self { key: EventKey::new(&self.source, &id), id, ..self.clone() }
    }

    /// The value of the attribute `name`.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| &**key == name).map(|(_, value)| value.as_str())
    }

    /// What the event is about, so that all of one kind stay in order where a broker can do that: the attribute that its source
    /// names for it, else its id, by which events are spread evenly.
    pub fn partition_key(&self) -> &str {
        let named = self.partition_by.as_ref().and_then(|name| self.attribute(name));
        named.unwrap_or(self.id.as_str())
    }

    /// [`Self::received_at`] as RFC 3339 with milliseconds. A time that it cannot say is told as the nearest that it can: a
    /// clock that is wrong must not lose events.
    pub fn received_at_rfc3339(&self) -> String {
        rfc3339(self.received_at)
    }
}

fn rfc3339(time: SystemTime) -> String {
    const LAST_SECOND_OF_9999: Duration = Duration::from_secs(253_402_300_799);
    let time = time.clamp(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + LAST_SECOND_OF_9999);
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_source_can_produce_the_key_of_another() {
        let key = |source: &str, id: &str| EventKey::new(&SourceId::new(0, source), &EventId::from_text(id.to_owned()));
        assert_ne!(key("ab", "c"), key("a", "bc"));
        assert_eq!(key("a", "b"), key("a", "b"));
    }

    #[test]
    fn a_clock_that_is_wrong_still_gives_a_time() {
        let days = |count: u64| Duration::from_secs(count * 24 * 60 * 60);
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH - days(1)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + days(4_000_000)), "9999-12-31T23:59:59.000Z");
    }

    #[test]
    fn an_id_told_apart_by_its_body_is_another_and_stays_within_bounds() {
        let id = EventId::from_text("a".repeat(EventId::LEN_MAX));
        let (one, other) = (id.with_body(b"1"), id.with_body(b"2"));
        assert!(one != other && one != id && one == id.with_body(b"1"));
        assert!(one.as_str().len() <= EventId::LEN_MAX);
        assert!(EventId::from_text("a=1".to_owned()).with_body(b"1").as_str().starts_with("a=1&body-sha256="));
    }

    #[test]
    fn an_overlong_id_becomes_its_hash() {
        let longest = EventId::from_text("x".repeat(EventId::LEN_MAX));
        let longer = EventId::from_text("x".repeat(EventId::LEN_MAX + 1));
        assert_eq!(longest.as_str().len(), EventId::LEN_MAX);
        assert!(longer.as_str().starts_with("sha256="), "{longer}");
    }
}
