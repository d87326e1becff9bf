//! W3C trace context: taken over from the sender when it is valid, and passed on to every broker.
//!
//! Where spans of ours are exported, what is passed on names the span in which an event was received, so that consumers' spans
//! are below it. Who exports them, and how, is not known here.
//!
//! Source: W3C Trace Context, sections 3.2 and 3.3.

use data_encoding::HEXLOWER;
use http::HeaderMap;

use crate::auth::Proof;

/// Whether events have spans of ours.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Spans {
    /// They have none: the sender's `traceparent` travels on as it came.
    #[default]
    None,
    /// Each has one, and it is what travels on.
    Own {
        /// Which part of the traces is sampled that nobody decided on before, from 0 to 1.
        sample: f64,
    },
}

/// A valid `traceparent`, and the `tracestate` that came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The `traceparent` header as it travels on, checked.
    pub parent: String,
    /// The `tracestate` header, if it is printable and within the specification's 512 characters.
    pub state: Option<String>,
    /// The sender's span, where `parent` names one of ours that is below it.
    pub sender_span: Option<u64>,
}

/// What a `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanContext {
    /// The trace. Not 0.
    pub trace: u128,
    /// The span in it. Not 0.
    pub span: u64,
    /// The trace flags.
    pub flags: u8,
}

impl SpanContext {
    /// The flag of a trace that is recorded.
    const SAMPLED: u8 = 1;

    /// The flag of a trace id that is random, which whoever takes it over keeps. Source: W3C Trace Context, level 2, section 3.2.
    const RANDOM: u8 = 2;

    /// Whether the trace is recorded.
    pub fn is_sampled(&self) -> bool {
        self.flags & Self::SAMPLED != 0
    }

    /// It as a `traceparent`.
    fn parent(&self) -> String {
        let mut parent = String::with_capacity(55);
        parent.push_str("00-");
        HEXLOWER.encode_append(&self.trace.to_be_bytes(), &mut parent);
        parent.push('-');
        HEXLOWER.encode_append(&self.span.to_be_bytes(), &mut parent);
        parent.push('-');
        HEXLOWER.encode_append(&[self.flags], &mut parent);
        parent
    }
}

impl Trace {
    /// The trace context in `headers`. A malformed one is no trace context, as the specification demands.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let parent = single(headers, "traceparent").filter(|text| valid_parent(text))?.to_owned();
        let state = single(headers, "tracestate").filter(|text| text.len() <= 512).map(str::to_owned);
        Some(Self { parent, state, sender_span: None })
    }

    /// The trace that a request with these `headers` belongs to.
    ///
    /// With spans of ours, whether it is sampled is the decision of a sender that is known, and ours for all others: else anybody
    /// could have everything recorded.
    pub fn of_request(headers: &HeaderMap, proof: &Proof, spans: Spans) -> Self {
        let sent = Self::from_headers(headers);
        let Spans::Own { sample } = spans else { return sent.unwrap_or_else(Self::begin) };
        let sender = sent.as_ref().and_then(Self::context);
        let sampled = match (sender, proof) {
            (Some(sender), Proof::Verified(_) | Proof::Spooled) => sender.is_sampled(),
            (None, _) | (_, Proof::Waived) => fastrand::f64() < sample,
        };
        let trace = sender.map_or_else(|| fastrand::u128(1..), |sender| sender.trace);
        let kept = sender.map_or(0, |sender| sender.flags & SpanContext::RANDOM);
        let own = SpanContext { trace, span: fastrand::u64(1..), flags: kept | u8::from(sampled) };
        Self {
            parent: own.parent(),
            state: sent.and_then(|sent| sent.state),
            sender_span: sender.map(|sender| sender.span),
        }
    }

    /// A trace of our own, for a request that belongs to none, so that logs, the audit trail and consumers can name it. Not
    /// sampled: nobody has asked for it.
    pub fn begin() -> Self {
        let own = SpanContext { trace: fastrand::u128(1..), span: fastrand::u64(1..), flags: 0 };
        Self { parent: own.parent(), state: None, sender_span: None }
    }

    /// What [`Self::parent`] says.
    pub fn context(&self) -> Option<SpanContext> {
        let mut fields = self.parent.split('-').skip(1);
        let trace = u128::from_str_radix(fields.next()?, 16).ok()?;
        let span = u64::from_str_radix(fields.next()?, 16).ok()?;
        let flags = u8::from_str_radix(fields.next()?, 16).ok()?;
        Some(SpanContext { trace, span, flags })
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
    use crate::auth::Credential;

    const SENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";

    fn received(flags: Option<&str>, proof: &Proof, sample: f64) -> (Trace, SpanContext) {
        let mut headers = HeaderMap::new();
        if let Some(flags) = flags {
            headers.insert("traceparent", format!("{SENT}-{flags}").parse().expect("a header"));
            headers.insert("tracestate", "vendor=1".parse().expect("a header"));
        }
        let trace = Trace::of_request(&headers, proof, Spans::Own { sample });
        assert!(valid_parent(&trace.parent), "{trace:?}");
        let context = trace.context().expect("it is valid");
        (trace, context)
    }

    fn verified() -> Proof {
        Proof::Verified(vec![Credential { scheme: "bearer", secret: "s".into() }])
    }

    #[test]
    fn a_span_of_ours_is_in_the_senders_trace_and_below_its_span() {
        let (trace, context) = received(Some("01"), &verified(), 0.0);
        assert_eq!(context.trace, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((trace.sender_span, trace.state.as_deref()), (Some(0x00f0_67aa_0ba9_02b7), Some("vendor=1")));
        assert!(context.span != 0x00f0_67aa_0ba9_02b7 && context.is_sampled());
        let (alone, context) = received(None, &verified(), 0.0);
        assert_eq!((alone.sender_span, alone.state, context.flags), (None, None, 0));
    }

    #[test]
    fn a_known_sender_decides_whether_its_trace_is_sampled_and_for_others_we_do() {
        let sampled = |flags, proof: &Proof, sample| received(flags, proof, sample).1.is_sampled();
        assert!(sampled(Some("01"), &verified(), 0.0) && !sampled(Some("00"), &verified(), 1.0));
        assert!(!sampled(Some("01"), &Proof::Waived, 0.0) && sampled(Some("00"), &Proof::Waived, 1.0));
        assert!(!sampled(None, &verified(), 0.0) && sampled(None, &verified(), 1.0));
        assert_eq!(received(Some("03"), &Proof::Waived, 0.0).1.flags, 2, "that the id is random stays true");
    }

    #[test]
    fn without_spans_of_ours_the_senders_trace_travels_on_as_it_came() {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", format!("{SENT}-01").parse().expect("a header"));
        let trace = Trace::of_request(&headers, &verified(), Spans::None);
        assert_eq!(trace, Trace { parent: format!("{SENT}-01"), state: None, sender_span: None });
        assert!(valid_parent(&Trace::of_request(&HeaderMap::new(), &verified(), Spans::None).parent));
    }

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
