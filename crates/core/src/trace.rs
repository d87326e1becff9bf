//! W3C trace context: taken over from the sender when it is valid, and passed on to every broker.
//!
//! Source: W3C Trace Context, sections 3.2 and 3.3.

use http::HeaderMap;

/// A valid `traceparent`, and the `tracestate` that came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The `traceparent` header, checked.
    pub parent: String,
    /// The `tracestate` header, if it is printable and within the specification's 512 characters.
    pub state: Option<String>,
}

impl Trace {
    /// The trace context in `headers`. A malformed one is no trace context, as the specification demands.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let parent = single(headers, "traceparent").filter(|text| valid_parent(text))?.to_owned();
        let state = single(headers, "tracestate").filter(|text| text.len() <= 512).map(str::to_owned);
        Some(Self { parent, state })
    }

    /// A trace of our own, for a request that belongs to none, so that logs, the audit trail and consumers can name it. Not
    /// sampled: nobody has asked for it.
    pub fn begin() -> Self {
        let (trace, span) = (fastrand::u128(1..), fastrand::u64(1..));
        Self { parent: format!("00-{trace:032x}-{span:016x}-00"), state: None }
    }
}

fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    if values.next().is_some() { None } else { first.to_str().ok() }
}

/// `version "-" trace-id "-" parent-id "-" flags`, lower-case hex, ids not all zero, version not `ff`.
fn valid_parent(text: &str) -> bool {
    let fields: Vec<&str> = text.splitn(5, '-').collect();
    let [version, trace_id, parent_id, flags, rest @ ..] = fields.as_slice() else {
        return false;
    };
    let hex = |field: &str, len: usize| {
        field.len() == len && field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let some = |field: &str| field.bytes().any(|byte| byte != b'0');
    // Only versions after 00 may carry further fields.
    let rest_allowed = rest.is_empty() || *version != "00";
    hex(version, 2)
        && *version != "ff"
        && hex(trace_id, 32)
        && some(trace_id)
        && hex(parent_id, 16)
        && some(parent_id)
        && hex(flags, 2)
        && rest_allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_parent_is_taken_over() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(valid_parent(&Trace::begin().parent) && Trace::begin() != Trace::begin());
        assert!(valid_parent(good));
        assert!(valid_parent("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"));
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(!valid_parent(bad), "{bad}");
        }
    }
}
