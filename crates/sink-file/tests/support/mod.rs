//! Reads the files as a consumer would, without any code of the sink, and makes sinks to test.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its part of this")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use hookgate_core::{
    event::SinkId,
    limits::Deadline,
    message::Message,
    sink::{Position, PublishError, Sink, Target},
};
use hookgate_sink_file::{Config, ConnectError, FileSink};
use hookgate_testkit::{
    conformance::{Metadata, Stored},
    event::TestEvent,
    recorder::Recorder,
};
use serde_json::{Map, Value, json};

/// Every line of every file in `dir`, in order.
pub fn stored(dir: &Path) -> Vec<Stored> {
    let mut stored = Vec::new();
    for path in event_files(dir) {
        let text = fs::read_to_string(&path).expect("files of events are UTF-8");
        let name = path.file_name().expect("it has one").to_string_lossy().into_owned();
        let mut offset = 0;
        for line in text.split_inclusive('\n') {
            assert!(line.ends_with('\n'), "{name} ends in half a line");
            stored.push(parse(line, (name.clone(), offset)));
            offset += line.len() as u64;
        }
    }
    stored
}

/// The files of events in `dir`, in order.
pub fn event_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("the directory can be read");
    let paths = entries.map(|entry| entry.expect("the directory can be read").path());
    let mut files: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl")).collect();
    files.sort();
    files
}

/// The event ids in `dir`, as their senders wrote them.
pub fn stored_ids(dir: &Path) -> Vec<String> {
    let id = |stored: Stored| stored.metadata.id.trim_start_matches("header:x-test-id=").to_owned();
    stored(dir).into_iter().map(id).collect()
}

fn parse(line: &str, position: (String, u64)) -> Stored {
    let mut left: Map<String, Value> = serde_json::from_str(line).expect("a line is a JSON object");
    let mut text = |key: &str| left.remove(key).map(|value| value.as_str().expect("it is text").to_owned());
    let body = match (text("body"), text("body_base64")) {
        (Some(body), None) => body.into_bytes(),
        (None, Some(body)) => STANDARD.decode(body).expect("it is base64"),
        both => panic!("a line has one body: {both:?}"),
    };
    let received_at = text("received_at").expect("it is there");
    let metadata = Metadata {
        id: text("id").expect("it is there"),
        source: text("source").expect("it is there"),
        event_type: text("type").expect("it is there"),
        received_at: humantime::parse_rfc3339(&received_at).expect("it is RFC 3339"),
        route: text("route").expect("it is there"),
        content_type: text("content_type"),
        content_encoding: text("content_encoding"),
        trace_parent: text("traceparent"),
        trace_state: text("tracestate"),
        attributes: texts(left.remove("attributes").expect("it is there")),
        forwarded: texts(left.remove("headers").unwrap_or_else(|| json!({}))),
    };
    assert!(left.is_empty(), "keys that nobody knows: {left:?}");
    Stored { target: Target::Whole, broker_id: None, position: Some(position), metadata, body: body.into() }
}

fn texts(value: Value) -> BTreeMap<String, String> {
    serde_json::from_value(value).expect("it is a map of texts")
}

/// The name of every sink here.
pub fn sink_id() -> SinkId {
    SinkId::new(0, "events")
}

/// A sink for `dir` with these further settings, and what it observes.
pub async fn connect_with(dir: &Path, settings: &Value) -> Result<(FileSink, Arc<Recorder>), ConnectError> {
    let mut table = settings.clone();
    table["dir"] = json!(dir);
    let config: Config = serde_json::from_value(table).expect("well-formed");
    let seen = Arc::new(Recorder::default());
    let sink = hookgate_sink_file::connect(sink_id(), &config, seen.clone()).await?;
    Ok((sink, seen))
}

/// A sink for `dir` with the defaults.
pub async fn connect(dir: &Path) -> (FileSink, Arc<Recorder>) {
    connect_with(dir, &json!({})).await.expect("the directory can be used")
}

/// A message whose event is called `id`, with a body of `body_bytes`.
pub fn message(id: &str, body_bytes: usize) -> Message {
    TestEvent::new(id).body(vec![b'x'; body_bytes]).to(&sink_id(), &Target::Whole)
}

/// A deadline that is not meant to pass.
pub fn ample() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

/// Publishes and returns where it is.
pub async fn publish(sink: &FileSink, message: &Message) -> Result<Position, PublishError> {
    sink.publish(message, ample()).await.map(|receipt| receipt.position().clone())
}
