//! The preset `openclaw` against requests as OpenClaw really sent them.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use hookgate_core::{
    auth::{Peer, Request, Unverified},
    config::ByteLimit,
    event::{Event, SourceId},
    identity::Malformed,
    limits::Admission,
    redact::Redaction,
    secret::{Secret, SecretSlot},
    source::Source,
};
use hookgate_testkit::openclaw::{Capture, capture, captures};
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Value, json};

fn source() -> Source {
    let config = json!({
        "path": "/hook", "preset": "openclaw", "verify": [{ "scheme": "bearer", "secrets": ["token"] }],
    });
    let config = serde_json::from_value(config).expect("a valid config");
    let mut resolve = |_: &_| Ok(Arc::new(SecretSlot::new("token", Secret::new("token").expect("not empty"))));
    Source::compile(SourceId::new(0, "openclaw"), &config, &ByteLimit::mib(2).into(), &mut resolve)
        .expect("the preset is good")
}

fn identify(body: impl Into<bytes::Bytes>) -> Result<hookgate_core::auth::Authenticated<Event>, Malformed> {
    let source = source();
    let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static("Bearer token"))]);
    let admitted = Admission::new(1, 0).begin().try_enter().expect("room for one");
    let (method, path, received_at) = (Method::POST, "/hook".to_owned(), SystemTime::now());
    let (body, peer) = (body.into(), Peer::default());
    let request = Request { method, path, query: None, headers, body, received_at, peer, admitted };
    source.identify(source.verify(Unverified::new(request)).expect("the token is right"))
}

fn event(capture: &Capture) -> hookgate_core::auth::Authenticated<Event> {
    identify(capture.body.clone()).unwrap_or_else(|malformed| panic!("{}: {malformed}", capture.name))
}

#[test]
fn every_released_shape_gets_its_type() {
    for capture in captures() {
        let expected = match &*capture.name {
            name if name.contains("-finished-") => "openclaw.run.finished",
            name if name.contains("-completion-") => "openclaw.run.completion",
            name if name.contains("-failure-destination-") => "openclaw.run.failed",
            name if name.contains("-failure-alert-") => "openclaw.alert",
            other => panic!("a capture of a new kind: {other}"),
        };
        assert_eq!(&*event(&capture).event_type, expected, "{}", capture.name);
    }
}

#[test]
fn every_released_shape_gets_an_id_that_names_its_run() {
    for capture in captures() {
        let event = event(&capture);
        let body: Value = serde_json::from_slice(&capture.body).expect("JSON");
        let run = [body["jobId"].as_str().expect("a job"), &body["runAtMs"].to_string()].map(str::to_owned);
        let named_by_manual_run = body["runId"].is_string() && event.id.as_str().contains("&runId=");
        match &body["runAtMs"] {
            Value::Null => assert!(event.id.as_str().starts_with("body-sha256="), "{}: {}", capture.name, event.id),
            _ if named_by_manual_run => assert!(event.id.as_str().contains(&run[0]), "{}", event.id),
            _ => assert!(run.iter().all(|part| event.id.as_str().contains(part)), "{}: {}", capture.name, event.id),
        }
    }
}

#[test]
fn different_requests_have_different_ids() {
    let mut seen: BTreeMap<String, (String, bytes::Bytes)> = BTreeMap::new();
    for capture in captures() {
        let id = event(&capture).id.as_str().to_owned();
        if let Some((earlier, body)) = seen.insert(id.clone(), (capture.name.clone(), capture.body.clone())) {
            assert_eq!(body, capture.body, "{earlier} and {} are both {id}", capture.name);
        }
    }
}

#[test]
fn a_finished_event_its_completion_and_its_alert_are_three_events() {
    let run = |rest: Value| {
        let mut body = json!({ "jobId": "j", "runAtMs": 1_795_441_802_972_u64 });
        body.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
        identify(body.to_string()).expect("an event").id.as_str().to_owned()
    };
    let ids = [
        run(json!({ "action": "finished", "status": "ok" })),
        run(json!({ "action": "finished", "status": "ok", "completionStatus": "succeeded" })),
        run(json!({ "jobName": "n", "message": "Automation \"n\" failed 1 times" })),
        run(json!({ "jobName": "n", "message": "Automation \"n\" recovered" })),
    ];
    let distinct: std::collections::BTreeSet<&String> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len(), "{ids:?}");
}

#[test]
fn the_attributes_are_there_in_every_release() {
    let finished = event(&capture("2026.9.6-finished-error-command-1"));
    assert_eq!(finished.attribute("status"), Some("error"));
    assert_eq!(finished.attribute("action"), Some("finished"));
    assert!(finished.attribute("name").is_some());
    let body: Value = serde_json::from_slice(&finished.body).expect("JSON");
    assert_eq!(finished.attribute("job"), body["jobId"].as_str());
    assert_eq!(finished.attribute("run_at_ms").map(str::to_owned), Some(body["runAtMs"].to_string()));
    let alert = event(&capture("2026.5.28-failure-alert-1"));
    assert_eq!(alert.attribute("name"), Some("failure routes"));
    assert_eq!(alert.attribute("run_at_ms"), None);
}

#[test]
fn a_shape_that_nobody_knows_is_still_an_event() {
    for body in ["{\"action\":\"started\"}", "[]", "not json", "", "{\"jobId\":7}"] {
        let event = identify(body).expect("passed on");
        assert_eq!(&*event.event_type, "openclaw.unknown", "{body}");
        assert!(event.id.as_str().starts_with("body-sha256="), "{body}: {}", event.id);
        assert_eq!(event.body, body);
    }
}

#[test]
fn a_number_keeps_its_text_in_the_id() {
    let id = |run: &str| {
        identify(format!(r#"{{"action":"finished","jobId":"j","runAtMs":{run}}}"#)).expect("an event").id.clone()
    };
    assert!(id("9007199254740993").as_str().ends_with("=9007199254740993"));
    assert_ne!(id("1"), id("\"1\""));
}

#[test]
fn a_key_twice_where_the_id_is_read_is_refused() {
    let twice = identify(r#"{"action":"finished","jobId":"a","jobId":"b","runAtMs":1}"#);
    assert!(matches!(twice, Err(Malformed::Ambiguous(_))));
}

#[test]
fn the_list_that_the_page_offers_takes_out_what_bodies_give_away() {
    let page = include_str!("../../../docs/sources/openclaw.md");
    let list = page.split_once("redact = [").and_then(|(_, rest)| rest.split_once(']')).expect("the page has a list").0;
    let pointers: Vec<String> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    let redaction = Redaction::parse(&pointers).expect("good pointers");
    let mut hit = std::collections::BTreeSet::new();
    for capture in captures() {
        let copy = redaction.of(&capture.body).expect("OpenClaw sends JSON");
        let text = std::str::from_utf8(&copy.body).expect("UTF-8");
        assert!(!text.contains("/hook"), "{}: a URL is left in {text}", capture.name);
        let (before, after): (Value, Value) =
            (serde_json::from_slice(&capture.body).expect("JSON"), serde_json::from_slice(&copy.body).expect("JSON"));
        for secret in ["env", "argv", "message", "text"] {
            let pointer = format!("/job/payload/{secret}");
            if before.pointer(&pointer).is_some() {
                assert_eq!(after.pointer(&pointer), Some(&json!("[redacted]")), "{}", capture.name);
            }
        }
        assert_eq!(before["summary"], after["summary"], "what the run said stays");
        hit.extend(copy.pointers.split(' ').map(str::to_owned));
    }
    assert!(hit.len() > 4, "{hit:?}");
}
