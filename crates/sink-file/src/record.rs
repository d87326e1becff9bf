//! A message as one JSON line.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{display::Base64Display, engine::general_purpose::STANDARD};
use hookgate_core::message::Message;
use serde::{Serialize, Serializer};

/// Appends the line of `message`, with its newline, to `lines`.
pub(crate) fn encode(message: &Message, lines: &mut Vec<u8>) {
    let event = &*message.event;
    let text = std::str::from_utf8(&event.body);
    let record = Record {
        id: event.id.as_str(),
        source: event.source.name(),
        event_type: &event.event_type,
        received_at: event.received_at,
        route: &message.leg.route,
        content_type: event.content_type.as_deref(),
        content_encoding: event.content_encoding.as_deref(),
        attributes: &event.attributes,
        headers: &event.forwarded_headers,
        traceparent: event.trace.as_ref().map(|trace| trace.parent.as_str()),
        tracestate: event.trace.as_ref().and_then(|trace| trace.state.as_deref()),
        body: text.ok(),
        body_base64: text.is_err().then_some(&event.body),
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
    #[serde(serialize_with = "rfc3339")]
    received_at: SystemTime,
    route: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<&'a str>,
    #[serde(serialize_with = "map")]
    attributes: &'a [(Arc<str>, String)],
    #[serde(serialize_with = "map", skip_serializing_if = "<[_]>::is_empty")]
    headers: &'a [(Arc<str>, String)],
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(serialize_with = "base64", skip_serializing_if = "Option::is_none")]
    body_base64: Option<&'a [u8]>,
}

/// A time that RFC 3339 cannot say is told as the nearest that it can: a clock that is wrong must not lose events.
fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    const LAST_SECOND_OF_9999: Duration = Duration::from_secs(253_402_300_799);
    let time = (*time).clamp(UNIX_EPOCH, UNIX_EPOCH + LAST_SECOND_OF_9999);
    serializer.collect_str(&humantime::format_rfc3339_millis(time))
}

fn map<S: Serializer>(pairs: &[(Arc<str>, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, value)| (&**name, value)))
}

fn base64<S: Serializer>(bytes: &Option<&[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Base64Display::new(bytes.unwrap_or_default(), &STANDARD))
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use hookgate_core::{event::SinkId, sink::Target};
    use hookgate_testkit::event::TestEvent;
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn line(event: &TestEvent) -> String {
        let mut lines = Vec::new();
        encode(&event.to(&SinkId::new(0, "events"), &Target::Whole), &mut lines);
        String::from_utf8(lines).expect("JSON is UTF-8")
    }

    fn event(body: impl Into<Vec<u8>>) -> TestEvent {
        let at = UNIX_EPOCH + Duration::from_millis(1_795_441_803_026);
        TestEvent::new("7").received_at(at).body(body.into())
    }

    #[test]
    fn a_full_line_has_its_keys_in_order() {
        let event = event(" {\"a\":\n1} ")
            .header("content-type", "application/json")
            .header("content-encoding", "identity")
            .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
            .header("tracestate", "a=1")
            .forwarded("x-request-id", "r-1")
            .attribute("status", "ok")
            .event_type("run.finished");
        let expected = concat!(
            r#"{"id":"header:x-test-id=7","source":"test","type":"run.finished","received_at":"2026-11-23T13:50:03.026Z","#,
            r#""route":"test-route","content_type":"application/json","content_encoding":"identity","#,
            r#""attributes":{"status":"ok"},"headers":{"x-request-id":"r-1"},"#,
            r#""traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01","tracestate":"a=1","#,
            r#""body":" {\"a\":\n1} "}"#,
            "\n"
        );
        assert_eq!(line(&event), expected);
    }

    #[test]
    fn a_bare_line_has_no_key_that_says_nothing() {
        let expected = concat!(
            r#"{"id":"header:x-test-id=7","source":"test","type":"webhook","received_at":"2026-11-23T13:50:03.026Z","#,
            r#""route":"test-route","attributes":{},"body":""}"#,
            "\n"
        );
        assert_eq!(line(&event("")), expected);
    }

    #[test]
    fn a_body_that_is_not_utf8_is_in_base64() {
        let line = line(&event([0xff, 0, b'\n']));
        assert!(line.ends_with(concat!(r#","body_base64":"/wAK"}"#, "\n")), "{line}");
    }

    #[test]
    fn a_clock_that_is_wrong_loses_no_event() {
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        for (at, told) in
            [(UNIX_EPOCH - year, "1970-01-01T00:00:00.000Z"), (UNIX_EPOCH + year * 9000, "9999-12-31T23:59:59.000Z")]
        {
            let line = line(&TestEvent::new("7").received_at(at));
            assert!(line.contains(&format!(r#""received_at":"{told}""#)), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_body_comes_back_byte_for_byte_from_one_line(body: Vec<u8>) {
            let line = line(&event(body.clone()));
            prop_assert_eq!(line.find('\n'), Some(line.len() - 1));
            let read: Value = serde_json::from_str(&line).expect("a line is JSON");
            let found = match (&read["body"], &read["body_base64"]) {
                (Value::String(text), Value::Null) => text.clone().into_bytes(),
                (Value::Null, Value::String(text)) => STANDARD.decode(text).expect("it is base64"),
                both => panic!("one of two: {both:?}"),
            };
            prop_assert_eq!(found, body);
        }

        #[test]
        fn any_text_stays_readable_as_text(body: String) {
            let line = line(&event(body.clone()));
            let read: Value = serde_json::from_str(&line).expect("a line is JSON");
            prop_assert_eq!(read["body"].as_str(), Some(body.as_str()));
        }
    }
}
