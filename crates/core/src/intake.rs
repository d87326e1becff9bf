//! What a source may send: which kinds of bodies, how many events at once, and how many in a while.

use std::{io::Read, num::NonZeroU32, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use http::{HeaderMap, HeaderValue, header};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    auth::{Authenticated, Request},
    config::{self, ByteLimit, Problem},
    identity::{Malformed, media_type_is},
    limits::Admission,
    observe::Rejection,
    source::SourceConfig,
};

/// A number of events in a span of time, like `"100/s"`, `"600/m"` or `"1000/h"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: NonZeroU32,
    per: Per,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Per {
    Second,
    Minute,
    Hour,
}

impl Per {
    const ALL: [(&'static str, Self); 3] = [("s", Self::Second), ("m", Self::Minute), ("h", Self::Hour)];

    fn letter(self) -> &'static str {
        Self::ALL.iter().find(|(_, per)| *per == self).map_or("s", |(letter, _)| letter)
    }
}

impl Rate {
    /// As many may come at once as in the whole span.
    pub fn quota(self) -> Quota {
        match self.per {
            Per::Second => Quota::per_second(self.count),
            Per::Minute => Quota::per_minute(self.count),
            Per::Hour => Quota::per_hour(self.count),
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (count, letter) = text.split_once('/')?;
            let (_, per) = Per::ALL.into_iter().find(|(known, _)| *known == letter.trim())?;
            Some(Self { count: count.trim().replace('_', "").parse().ok()?, per })
        };
        read().ok_or_else(|| {
            format!("{text:?} is not a rate; write a number and a span, like \"100/s\", \"600/m\" or \"1000/h\"")
        })
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = config::text("a rate like \"100/s\"", deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

config::schema!(Rate, "Rate", {
    "type": "string",
    "description": "A number of events in a second, a minute or an hour, like \"100/s\", \"600/m\" or \"1000/h\".",
});

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}/{}", self.count, self.per.letter()))
    }
}

/// What becomes of a body that its sender compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// It is published as it came, and its `Content-Encoding` with it.
    #[default]
    Pass,
    /// It is refused with 415.
    Refuse,
    /// gzip is taken off after verification, up to the source's `max_body`; other encodings are refused with 415. What is
    /// published then is not what was signed.
    Decompress,
}

impl Compression {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What bounds the requests of one source.
#[derive(Debug)]
pub(crate) struct Intake {
    /// Media types, without parameters; empty for any.
    content_types: Vec<String>,
    compression: Compression,
    rate: Option<DefaultDirectRateLimiter>,
    share: Option<Arc<Admission>>,
    max_body: ByteLimit,
}

/// Why a body could not be decompressed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotInflated {
    /// It is no event.
    #[error(transparent)]
    Malformed(Malformed),
    /// There is no room for it now.
    #[error("too many body bytes are in flight")]
    NoRoom,
}

impl Intake {
    pub(crate) fn compile(config: &SourceConfig, max_body: ByteLimit, problems: &mut Vec<Problem>) -> Self {
        for (place, content_type) in config.content_types.iter().enumerate() {
            let is_media_type = content_type.split('/').filter(|part| !part.is_empty()).count() == 2;
            if !is_media_type || content_type.contains([';', ' ', ',', '*']) {
                let message = format!("{content_type:?} is not a media type; write one like \"application/json\"");
                problems.push(Problem::new(format!("content_types[{place}]"), message));
            }
        }
        Self {
            content_types: config.content_types.clone(),
            compression: config.compression,
            rate: config.max_rate.map(|rate| RateLimiter::direct(rate.quota())),
            share: config.max_in_flight.map(|max| Admission::new(max as u64, u64::MAX)),
            max_body,
        }
    }

    /// Whether a body with these headers is taken, by what it says to be.
    pub(crate) fn takes(&self, headers: &HeaderMap) -> Result<(), Rejection> {
        let types = &self.content_types;
        let right_type = types.is_empty() || types.iter().any(|known| media_type_is(headers, known));
        let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
        let (encoding, further) = (encodings.next(), encodings.next().is_some());
        let right_encoding = match self.compression {
            Compression::Pass => true,
            // Two in a row would have to be taken off in turn.
            Compression::Refuse | Compression::Decompress if further => false,
            Compression::Refuse => encoding.is_none_or(is_identity),
            Compression::Decompress => encoding.is_none_or(|value| is_identity(value) || is_gzip(value)),
        };
        if right_type && right_encoding { Ok(()) } else { Err(Rejection::MediaType) }
    }

    /// The part of all places that this source may take, if it is bounded.
    pub(crate) fn share(&self) -> Option<&Arc<Admission>> {
        self.share.as_ref()
    }

    /// Counts one event against the rate; the time to wait when there is none left.
    pub(crate) fn charge(&self) -> Result<(), Duration> {
        let Some(rate) = &self.rate else { return Ok(()) };
        rate.check().map_err(|until| until.wait_time_from(DefaultClock::default().now()))
    }

    /// Takes off the compression, if that is wanted. What it grows by counts against the byte budget.
    pub(crate) fn inflate(&self, request: Authenticated<Request>) -> Result<Authenticated<Request>, NotInflated> {
        let compressed = request.headers.get(header::CONTENT_ENCODING).is_some_and(is_gzip);
        if self.compression != Compression::Decompress || !compressed {
            return Ok(request);
        }
        request.try_map(|mut request| {
            let body = gunzip(&request.body, self.max_body.0)?;
            request.admitted = request.admitted.and_bytes(body.len() as u64).ok_or(NotInflated::NoRoom)?;
            request.body = body;
            request.headers.remove(header::CONTENT_ENCODING);
            Ok(request)
        })
    }
}

fn is_identity(value: &HeaderValue) -> bool {
    value.as_bytes().eq_ignore_ascii_case(b"identity") || value.is_empty()
}

fn is_gzip(value: &HeaderValue) -> bool {
    [&b"gzip"[..], b"x-gzip"].iter().any(|name| value.as_bytes().eq_ignore_ascii_case(name))
}

/// Reads no further than one byte past `max`, whatever the body would become.
fn gunzip(body: &[u8], max: u64) -> Result<Bytes, NotInflated> {
    let malformed = |why: String| NotInflated::Malformed(Malformed::NotDecompressed(why));
    let mut inflated = Vec::new();
    let read = MultiGzDecoder::new(body).take(max.saturating_add(1)).read_to_end(&mut inflated);
    read.map_err(|error| malformed(format!("it is not gzip: {error}")))?;
    if inflated.len() as u64 > max {
        return Err(malformed(format!("it is longer than {} without its compression", ByteLimit(max))));
    }
    Ok(inflated.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression as Level, write::GzEncoder};

    use super::*;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Level::best());
        encoder.write_all(plain).expect("memory takes it");
        encoder.finish().expect("memory takes it")
    }

    #[test]
    fn rates_are_written_with_their_span() {
        for text in ["100/s", "600/m", "1/h"] {
            let rate: Rate = text.parse().expect("a rate");
            assert_eq!(serde_json::to_value(rate).expect("JSON"), text);
        }
        assert_eq!("1_000 / s".parse::<Rate>(), "1000/s".parse());
        for bad in ["100", "0/s", "-1/s", "1/d", "/s", "1.5/s", ""] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let bomb = gzip(&vec![0; 64 << 20]);
        assert!(bomb.len() < 1 << 17);
        assert!(gunzip(&bomb, 1 << 10).is_err_and(|error| error.to_string().contains("longer than 1 KiB")));
        let exact = gzip(&[7; 1024]);
        assert_eq!(gunzip(&exact, 1 << 10).map(|body| body.len()), Ok(1024));
    }

    #[test]
    fn what_is_no_gzip_is_no_event() {
        let whole = gzip(b"{}");
        for bad in [&b"{}"[..], &whole[..whole.len() - 1], b""] {
            assert!(matches!(gunzip(bad, 100), Err(NotInflated::Malformed(_))), "{bad:?}");
        }
    }
}
