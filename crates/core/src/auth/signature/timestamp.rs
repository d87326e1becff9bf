//! When a request was signed, and whether that is near enough to now.

use std::{
    borrow::Cow,
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use http::HeaderName;

use super::{
    super::{AuthFailure, Request, headers, sign::Draft},
    candidates::List,
    config::Unit,
};
use crate::{
    identity::FieldRef,
    json::{JsonError, Pointer, Value, WatchedPaths},
};

/// Where a timestamp is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TimestampPlace {
    /// A request header; written `header:x-request-timestamp`.
    Header(HeaderName),
    /// A part of the signature's own header; written `kv:t`.
    Part(String),
    /// A number in the JSON body, in the signature already; written as a JSON pointer.
    Body(Pointer),
}

impl FromStr for TimestampPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(label) = text.strip_prefix("kv:").filter(|label| !label.is_empty()) {
            return Ok(Self::Part(label.to_owned()));
        }
        match FieldRef::parse(text).map_err(|error| format!("{error}; a part of the signature's header is \"kv:t\""))? {
            FieldRef::Header(name) => Ok(Self::Header(name)),
            FieldRef::Body(pointer) => Ok(Self::Body(pointer)),
        }
    }
}

impl fmt::Display for TimestampPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Part(label) => write!(f, "kv:{label}"),
            Self::Body(pointer) => pointer.fmt(f),
        }
    }
}

/// Where the timestamp is, in what unit, and how far it may be from now.
#[derive(Debug)]
pub(super) struct Timestamp {
    /// Not empty; the first that is there is read.
    pub(super) places: Vec<TimestampPlace>,
    pub(super) unit: Unit,
    /// `None` leaves the age unchecked.
    pub(super) past: Option<Duration>,
    /// `None` accepts every time to come.
    pub(super) future: Option<Duration>,
    /// Whether the text may be anything, as it may where nobody reads it: signed by a public key, its age unchecked.
    pub(super) opaque: bool,
}

/// A timestamp as it was sent.
pub(super) struct SentTime<'a> {
    text: Cow<'a, str>,
    /// Since 1970; zero where the text may be anything.
    at: Duration,
}

impl SentTime<'_> {
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

impl Timestamp {
    /// Finds the timestamp of `request`, whose signature's header has `value`.
    pub(super) fn text<'a>(
        &self,
        request: &'a Request,
        value: &'a str,
        list: &List,
    ) -> Result<SentTime<'a>, AuthFailure> {
        let mut found = None;
        for place in &self.places {
            found = match place {
                TimestampPlace::Header(name) => match headers::single(&request.headers, name) {
                    Err(AuthFailure::Missing) => None,
                    other => Some(Cow::from(other?)),
                },
                TimestampPlace::Part(label) => list.part(value, label)?.map(Cow::from),
                TimestampPlace::Body(pointer) => number_at(&request.body, pointer)?.map(Cow::from),
            };
            if found.is_some() {
                break;
            }
        }
        let text = found.filter(|text| !text.is_empty()).ok_or(AuthFailure::TimestampMissing)?;
        let at = if self.opaque { Duration::ZERO } else { self.unit.read(&text)? };
        Ok(SentTime { text, at })
    }

    /// Whether `sent` is near enough to `now`.
    pub(super) fn check(&self, sent: &SentTime<'_>, now: SystemTime) -> Result<(), AuthFailure> {
        match self.past {
            None => Ok(()),
            Some(past) => check_age(sent.at, self.unit.floor(now), past, self.future),
        }
    }

    /// The label that holds it in the signature's own header.
    pub(super) fn part(&self) -> Option<&str> {
        match self.places.first() {
            Some(TimestampPlace::Part(label)) => Some(label),
            _ => None,
        }
    }

    /// `now` as the provider writes it.
    pub(super) fn now(&self, now: SystemTime) -> String {
        self.unit.write(now)
    }

    /// Puts the time of `draft` where the provider puts it, if that is a header.
    pub(super) fn write(&self, draft: &mut Draft) -> Result<(), String> {
        match &self.places[0] {
            TimestampPlace::Header(name) => {
                let now = self.now(draft.now);
                draft.set_header(name, &now)
            }
            TimestampPlace::Part(_) => Ok(()),
            TimestampPlace::Body(pointer) => match number_at(&draft.body, pointer) {
                Ok(Some(_)) => Ok(()),
                _ => Err(format!(
                    "the body has no number at {pointer}, which this sender's signature needs; put $NOW_MS there"
                )),
            },
        }
    }
}

/// A count of seconds or milliseconds. Signs, blanks, fractions and other scripts' digits are refused: libraries that read
/// them leniently skip the age check with them.
pub(in super::super) fn parse_digits(text: &str) -> Result<u64, AuthFailure> {
    const DIGITS_MAX: usize = 18;
    match text.len() <= DIGITS_MAX && text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().map_err(|_| AuthFailure::TimestampMalformed),
        false => Err(AuthFailure::TimestampMalformed),
    }
}

/// Whether `sent`, in time since 1970, lies within `past` and `future` of `now`, both inclusive.
pub(in super::super) fn check_age(
    sent: Duration,
    now: Duration,
    past: Duration,
    future: Option<Duration>,
) -> Result<(), AuthFailure> {
    if now.saturating_sub(sent) > past {
        return Err(AuthFailure::TimestampStale);
    }
    match future {
        Some(future) if sent.saturating_sub(now) > future => Err(AuthFailure::TimestampAhead),
        _ => Ok(()),
    }
}

impl Unit {
    /// The time that `text` says, since 1970.
    fn read(self, text: &str) -> Result<Duration, AuthFailure> {
        match self {
            Self::Seconds => parse_digits(text).map(Duration::from_secs),
            Self::Milliseconds => parse_digits(text).map(Duration::from_millis),
            Self::Rfc3339 => {
                humantime::parse_rfc3339(text).map(since_1970).map_err(|_| AuthFailure::TimestampMalformed)
            }
        }
    }

    fn write(self, now: SystemTime) -> String {
        match self {
            Self::Seconds => since_1970(now).as_secs().to_string(),
            Self::Milliseconds => since_1970(now).as_millis().to_string(),
            Self::Rfc3339 => humantime::format_rfc3339_nanos(now).to_string(),
        }
    }

    /// `now`, as exact as the sender says its own time.
    fn floor(self, now: SystemTime) -> Duration {
        let since = since_1970(now);
        match self {
            Self::Seconds => Duration::from_secs(since.as_secs()),
            Self::Milliseconds => Duration::from_millis(since.as_millis().try_into().unwrap_or(u64::MAX)),
            Self::Rfc3339 => since,
        }
    }
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The number at `pointer`, as it was written. A text is none: the providers that do this send numbers.
fn number_at<'a>(body: &'a [u8], pointer: &Pointer) -> Result<Option<&'a str>, AuthFailure> {
    let mut paths = WatchedPaths::default();
    let slot = paths.watch(pointer).expect("one path always fits");
    match paths.read(body) {
        Ok(values) => match values[slot] {
            Some(Value::Number(text)) => Ok(Some(text)),
            Some(_) => Err(AuthFailure::TimestampMalformed),
            None => Ok(None),
        },
        Err(JsonError::DuplicateKey { .. }) => Err(AuthFailure::Repeated),
        Err(_) => Err(AuthFailure::BodyUnreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_digits_are_a_time() {
        for (text, expected) in
            [("0", Some(0)), ("0017", Some(17)), ("999999999999999999", Some(999_999_999_999_999_999))]
        {
            assert_eq!(parse_digits(text).ok(), expected, "{text}");
        }
        for text in ["+1", "-1", "1.0", "1e3", "0x1", " 1", "1 ", "abc", "1795000000000000000", "١٢"] {
            assert_eq!(parse_digits(text), Err(AuthFailure::TimestampMalformed), "{text}");
        }
    }

    #[test]
    fn the_limit_itself_is_within() {
        let (now, limit) = (Duration::from_secs(1000), Duration::from_secs(300));
        let check = |sent, future| check_age(Duration::from_secs(sent), now, limit, future);
        assert_eq!(check(700, Some(limit)), Ok(()));
        assert_eq!(check(699, Some(limit)), Err(AuthFailure::TimestampStale));
        assert_eq!(check(1300, Some(limit)), Ok(()));
        assert_eq!(check(1301, Some(limit)), Err(AuthFailure::TimestampAhead));
        assert_eq!(check(u64::MAX, None), Ok(()));
    }
}
