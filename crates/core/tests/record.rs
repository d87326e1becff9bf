//! What stands in a line, and that every body comes back from it.

use std::time::{Duration, UNIX_EPOCH};

use data_encoding::BASE64;
use hookgate_core::{event::SinkId, record::encode, sink::Target};
use hookgate_testkit::event::TestEvent;
use proptest::prelude::*;
use serde_json::Value;

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
        r#""route":"test-route","attributes":{},"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01","#,
        r#""body":""}"#,
        "\n"
    );
    let traced = event("").header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    assert_eq!(line(&traced), expected);
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
            (Value::Null, Value::String(text)) => BASE64.decode(text.as_bytes()).expect("it is base64"),
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
