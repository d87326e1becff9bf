//! What stands in Redis: the name of a key and the text of a value.
//!
//! A value begins with the version of its form, `1`, and then says its state: `1P<owner>:<lease in ms>` while the event is
//! being published, `1C<fingerprint>` once it is accepted; what may follow is for later versions to say. So replicas of two
//! versions can run side by side: what one cannot read counts as somebody's claim, which ends with its lease, and never as an
//! accepted event.

use std::{fmt::Write, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hookgate_core::{
    dedup::{Held, Holder, Owner},
    event::{EventKey, Fingerprint},
};

/// How long a claim is believed that does not say for how long it was made.
const LEASE_OF_STRANGERS: Duration = Duration::from_secs(10);

/// The name of the key of `event`: the prefix and 22 characters.
pub(crate) fn name(prefix: &str, event: EventKey) -> String {
    let mut name = String::with_capacity(prefix.len() + 22);
    name.push_str(prefix);
    URL_SAFE_NO_PAD.encode_string(event.as_bytes(), &mut name);
    name
}

/// The value of a claim.
pub(crate) fn claim(owner: Owner, lease: Duration) -> String {
    let mut value = String::with_capacity(48);
    write!(value, "1P{owner}:{}", millis(lease)).expect("memory takes it");
    value
}

/// Redis takes whole milliseconds from 1 up.
pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64 / 2)
}

/// What the value of every claim of `owner` begins with.
pub(crate) fn claim_of(owner: Owner) -> String {
    format!("1P{owner}")
}

/// The value of an accepted event.
pub(crate) fn accepted(body: Fingerprint) -> String {
    let mut value = String::with_capacity(18);
    write!(value, "1C{body}").expect("memory takes it");
    value
}

/// Reads what `owner` found in place of nothing.
pub(crate) fn read(value: &[u8], owner: Owner) -> Held {
    let text = String::from_utf8_lossy(value);
    if text.starts_with(&claim_of(owner)) {
        return Held::ByUs;
    }
    if let Some(body) = text.strip_prefix("1C").and_then(|rest| rest.get(..16)).and_then(parse_fingerprint) {
        return Held::Accepted(body);
    }
    let lease = text.strip_prefix("1P").and_then(|rest| rest.split_once(':')).and_then(|(_, lease)| {
        let digits = lease.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok().map(Duration::from_millis)
    });
    Held::ByOther { holder: Holder(text.into()), lease: lease.unwrap_or(LEASE_OF_STRANGERS) }
}

fn parse_fingerprint(digits: &str) -> Option<Fingerprint> {
    u64::from_str_radix(digits, 16).ok().map(|number| Fingerprint::from_bytes(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use hookgate_testkit::event::TestEvent;

    use super::*;

    #[test]
    fn a_key_has_the_same_length_whatever_the_sender_calls_its_event() {
        for id in ["1", &"x".repeat(10_000)] {
            assert_eq!(name("hookgate:", TestEvent::new(id).event().key).len(), "hookgate:".len() + 22);
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (us, other) = (Owner::random(), Owner::random());
        let lease = Duration::from_millis(4500);
        assert_eq!(read(claim(us, lease).as_bytes(), us), Held::ByUs);
        let holder = Holder(claim(other, lease).into());
        assert_eq!(read(claim(other, lease).as_bytes(), us), Held::ByOther { holder, lease });
        for body in [Fingerprint::of(b"a"), Fingerprint::from_bytes([0; 8]), Fingerprint::from_bytes([255; 8])] {
            assert_eq!(read(accepted(body).as_bytes(), us), Held::Accepted(body));
        }
    }

    #[test]
    fn what_a_later_version_adds_is_read_over() {
        let body = Fingerprint::of(b"a");
        assert_eq!(read(format!("{};more", accepted(body)).as_bytes(), Owner::random()), Held::Accepted(body));
        let claim = format!("{};more", claim(Owner::random(), Duration::from_secs(7)));
        let found = read(claim.as_bytes(), Owner::random());
        assert!(matches!(found, Held::ByOther { lease, .. } if lease == Duration::from_secs(7)), "{found:?}");
    }

    #[test]
    fn what_cannot_be_read_is_somebodys_claim_and_never_an_accepted_event() {
        for value in [
            &b""[..],
            b"2C0123456789abcdef",
            b"1C0123",
            b"1Cxyz0123456789ab",
            b"1P",
            b"1Pabc:",
            b"done",
            b"\xff\xfe",
            b"1C\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4",
        ] {
            let found = read(value, Owner::random());
            assert!(matches!(found, Held::ByOther { lease: LEASE_OF_STRANGERS, .. }), "{value:?}: {found:?}");
        }
    }
}
