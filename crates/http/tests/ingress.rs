//! The ingress over real sockets, in front of a pipeline whose sink does as it is told.

use std::{
    io::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use hookgate_core::{
    event::{SinkId, SourceId},
    observe::Observer,
    pipeline::Pipeline,
    secret::{Secret, SecretSlot},
    source::Source,
};
use hookgate_http::{Ingress, Limits, Server, ServerConfig};
use hookgate_testkit::{
    event::TestEvent,
    fake_sink::{Answer, FakeSink},
    http::{Connection, Response, request, send_raw},
    process::wait_until,
    recorder::Recorder,
};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(10);

const TOKEN: (&str, &str) = ("authorization", "Bearer token");

struct Relay {
    address: SocketAddr,
    sink: Arc<FakeSink>,
    recorder: Arc<Recorder>,
    pipeline: Arc<Pipeline>,
    stop: CancellationToken,
    leaving: Arc<AtomicBool>,
    served: tokio::task::JoinHandle<()>,
}

impl Relay {
    async fn start(adjust: impl FnOnce(&mut ServerConfig)) -> Self {
        Self::start_with(&json!({}), adjust).await
    }

    /// With `source` besides what every source has.
    async fn start_with(source: &serde_json::Value, adjust: impl FnOnce(&mut ServerConfig)) -> Self {
        let mut config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), ..ServerConfig::default() };
        config.max_body = "1 KiB".parse().expect("a size");
        adjust(&mut config);
        let (sink, recorder) = (FakeSink::new(SinkId::new(0, "sink")), Arc::new(Recorder::default()));
        let observer: Arc<dyn Observer> = Arc::clone(&recorder) as _;
        let routes = json!([{ "to": [{ "sink": "sink" }] }]);
        let pipeline = Arc::new(TestEvent::new("any").pipeline(std::slice::from_ref(&sink), &routes, &observer));
        let service = Ingress::new(Arc::clone(&pipeline), &[self::source(source, &config)], &config).service();
        let server = Server::bind(config.listen, Limits::from(&config), observer).expect("a free port");
        let (address, stop) = (server.local_addr().expect("bound"), CancellationToken::new());
        let leaving = Arc::new(AtomicBool::new(false));
        let server = server.with_leaving(Arc::clone(&leaving));
        let served = tokio::spawn(server.serve(service, stop.clone(), CancellationToken::new()));
        Self { address, sink, recorder, pipeline, stop, leaving, served }
    }

    async fn send(&self, bytes: &[u8]) -> Response {
        send_raw(self.address, bytes, LIMIT).await.expect("an answer")
    }
}

/// A source that takes the token, with `further` keys in its table.
fn source(further: &serde_json::Value, config: &ServerConfig) -> Arc<Source> {
    let mut table = json!({ "path": "/hook", "verify": [{ "scheme": "bearer", "secrets": ["token"] }] });
    let further = further.as_object().expect("a table").clone();
    table.as_object_mut().expect("a table").extend(further);
    let table = serde_json::from_value(table).expect("a valid config");
    let mut resolve = |_: &_| Ok(Arc::new(SecretSlot::new("token", Secret::new("token").expect("not empty"))));
    let compiled = Source::compile(SourceId::new(0, "test"), &table, &config.max_body.into(), &mut resolve);
    Arc::new(compiled.unwrap_or_else(|problems| panic!("{problems:?}")))
}

fn post(body: &[u8]) -> Vec<u8> {
    request("POST", "/hook", &[TOKEN], body)
}

fn assert_problem(response: &Response, status: u16, code: &str) {
    assert_eq!((response.status, response.json()["code"].as_str()), (status, Some(code)), "{}", response.text());
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    assert_eq!(response.json()["status"], status);
    assert_eq!(response.header("location"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_published_and_answered_200() {
    let relay = Relay::start(|_| {}).await;
    let response = relay.send(&post(b"\x00binary\xff")).await;
    assert_eq!((response.status, response.json()["outcome"].as_str()), (200, Some("delivered")));
    assert_eq!(&relay.sink.stored()[0].event.body[..], b"\x00binary\xff");
    let repeat = relay.send(&post(b"\x00binary\xff")).await;
    assert_eq!((repeat.status, repeat.json()["outcome"].as_str()), (200, Some("duplicate")));
    assert_eq!(relay.sink.stored().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_their_status_and_leave_no_trace() {
    let relay = Relay::start(|_| {}).await;
    let large = vec![b'x'; 1025];
    for (request, status, code) in [
        (request("POST", "/hook", &[], b"x"), 401, "unauthorized"),
        (request("POST", "/hook", &[("authorization", "Bearer wrong")], b"x"), 401, "unauthorized"),
        (request("POST", "/hook/", &[TOKEN], b"x"), 404, "unknown-source"),
        (request("POST", "//hook", &[TOKEN], b"x"), 404, "unknown-source"),
        (request("POST", "/", &[TOKEN], b"x"), 404, "unknown-source"),
        (request("GET", "/hook", &[TOKEN], b""), 405, "method-not-allowed"),
        (request("PUT", "/hook", &[TOKEN], b"x"), 405, "method-not-allowed"),
        (request("POST", "/hook", &[TOKEN], &large), 413, "body-too-large"),
    ] {
        assert_problem(&relay.send(&request).await, status, code);
    }
    assert_eq!(relay.sink.attempted().len(), 0);
    assert!(relay.pipeline.dedup.memory.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announced_length_over_the_limit_is_refused_before_the_body() {
    let relay = Relay::start(|_| {}).await;
    let mut connection = Connection::open(relay.address).await.expect("connected");
    connection.send(b"POST /hook HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000000\r\n\r\n").await.expect("sent");
    let response = connection.receive(LIMIT).await.expect("an answer without a byte of the body");
    assert_problem(&response, 413, "body-too-large");
    assert_eq!(response.header("connection"), Some("close"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_is_still_writing_gets_to_see_the_413() {
    let relay = Relay::start(|config| config.max_body = "64 KiB".parse().expect("a size")).await;
    let mut connection = Connection::open(relay.address).await.expect("connected");
    // More than the sockets can hold, so that the sender is in the middle of it when the answer comes; many give up on the
    // first write that fails and never read.
    connection.send(&post(&vec![b'x'; 16 << 20])).await.expect("every byte is taken");
    assert_problem(&connection.receive(LIMIT).await.expect("an answer"), 413, "body-too-large");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_body_is_refused_at_the_limit() {
    let relay = Relay::start(|_| {}).await;
    let mut bytes =
        b"POST /hook HTTP/1.1\r\nhost: x\r\nauthorization: Bearer token\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..3 {
        bytes.extend_from_slice(b"200\r\n");
        bytes.extend_from_slice(&[b'x'; 0x200]);
        bytes.extend_from_slice(b"\r\n");
    }
    assert_problem(&relay.send(&bytes).await, 413, "body-too-large");
    assert!(relay.pipeline.dedup.memory.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_ends_is_answered_408() {
    let relay = Relay::start(|config| config.body_timeout = Duration::from_millis(200)).await;
    let mut connection = Connection::open(relay.address).await.expect("connected");
    connection.send(b"POST /hook HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf").await.expect("sent");
    assert_problem(&connection.receive(LIMIT).await.expect("an answer"), 408, "body-timeout");
    assert!(relay.pipeline.dedup.memory.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_cut_short_is_no_event() {
    let relay = Relay::start(|_| {}).await;
    let mut connection = Connection::open(relay.address).await.expect("connected");
    let head = b"POST /hook HTTP/1.1\r\nhost: x\r\nauthorization: Bearer token\r\ncontent-length: 100\r\n\r\nhalf";
    connection.send(head).await.expect("sent");
    connection.finish().await.expect("half closed");
    let ended = async || relay.recorder.count("request_finished") == 1;
    wait_until(LIMIT, "the request is over", ended).await;
    assert_eq!(relay.recorder.count("event_received"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_request_is_dropped() {
    let relay = Relay::start(|config| config.header_timeout = Duration::from_millis(200)).await;
    for start in [&b""[..], b"P", b"PRI * HT", b"POST /hook HTTP/1.1\r\nhost:", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut connection = Connection::open(relay.address).await.expect("connected");
        connection.send(start).await.expect("sent");
        connection.rest(LIMIT).await.unwrap_or_else(|error| panic!("{start:?} is left open: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_many_requests() {
    let relay = Relay::start(|_| {}).await;
    let mut connection = Connection::open(relay.address).await.expect("connected");
    for body in [b"1", b"2", b"3"] {
        let response = connection.request(&post(body), LIMIT).await.expect("an answer");
        assert_eq!(response.status, 200);
    }
    assert_eq!(relay.recorder.count("connection_opened"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_does_not_cancel_its_publish() {
    let relay = Relay::start(|_| {}).await;
    let told = Arc::new(Notify::new());
    relay.sink.answer_next([Answer::AckAfter(Arc::clone(&told))]);
    let mut connection = Connection::open(relay.address).await.expect("connected");
    connection.send(&post(b"x")).await.expect("sent");
    wait_until(LIMIT, "the publish has begun", async || relay.sink.attempted().len() == 1).await;
    drop(connection);
    wait_until(LIMIT, "the client is gone", async || {
        relay.recorder.count("request_finished source=test status=499") == 1
    })
    .await;
    told.notify_one();
    wait_until(LIMIT, "the event is delivered all the same", async || relay.sink.stored().len() == 1).await;
    let repeat = relay.send(&post(b"x")).await;
    assert_eq!(repeat.json()["outcome"], "duplicate", "and remembered");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_in_flight_gets_503_and_a_time_to_return() {
    let relay = Relay::start(|config| config.max_in_flight = 1).await;
    let told = Arc::new(Notify::new());
    relay.sink.answer_next([Answer::AckAfter(Arc::clone(&told))]);
    let mut first = Connection::open(relay.address).await.expect("connected");
    first.send(&post(b"1")).await.expect("sent");
    wait_until(LIMIT, "the first is in flight", async || relay.sink.attempted().len() == 1).await;
    let refused = relay.send(&post(b"2")).await;
    assert_problem(&refused, 503, "overloaded");
    assert!(
        refused.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok_and(|seconds| seconds >= 1))
    );
    told.notify_one();
    assert_eq!(first.receive(LIMIT).await.expect("an answer").status, 200);
    relay.sink.clear();
    assert_eq!(relay.send(&post(b"2")).await.status, 200, "there is room again, and it was not remembered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_has_no_more_places_than_its_own() {
    let relay = Relay::start_with(&json!({ "max_in_flight": 1 }), |_| {}).await;
    let told = Arc::new(Notify::new());
    relay.sink.answer_next([Answer::AckAfter(Arc::clone(&told))]);
    let mut first = Connection::open(relay.address).await.expect("connected");
    first.send(&post(b"1")).await.expect("sent");
    wait_until(LIMIT, "the first is in flight", async || relay.sink.attempted().len() == 1).await;
    assert_problem(&relay.send(&post(b"2")).await, 503, "overloaded");
    assert_eq!(relay.recorder.count("request_rejected source=test reason=source_inflight_limit"), 1);
    told.notify_one();
    assert_eq!(first.receive(LIMIT).await.expect("an answer").status, 200);
    relay.sink.clear();
    assert_eq!(relay.send(&post(b"2")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_over_its_rate_is_told_when_to_come_back_and_strangers_do_not_count() {
    let relay = Relay::start_with(&json!({ "max_rate": "2/h" }), |_| {}).await;
    for _ in 0..5 {
        assert_problem(&relay.send(&request("POST", "/hook", &[], b"x")).await, 401, "unauthorized");
    }
    assert_eq!(relay.send(&post(b"1")).await.status, 200);
    assert_eq!(relay.send(&post(b"2")).await.status, 200);
    let refused = relay.send(&post(b"3")).await;
    assert_problem(&refused, 429, "rate-limited");
    let seconds: u64 = refused.header("retry-after").expect("a time").parse().expect("seconds");
    assert!((1700..=1801).contains(&seconds), "one of two an hour comes after half of it: {seconds}");
    assert_eq!(relay.sink.stored().len(), 2);
    assert_eq!(relay.pipeline.dedup.memory.len(), 2, "and is not remembered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_takes_the_types_and_encodings_that_it_names() {
    let source = json!({ "content_types": ["Application/JSON"], "compression": "refuse" });
    let relay = Relay::start_with(&source, |_| {}).await;
    let send = async |headers: &[(&str, &str)]| {
        let headers: Vec<_> = [TOKEN].into_iter().chain(headers.iter().copied()).collect();
        relay.send(&request("POST", "/hook", &headers, b"{}")).await
    };
    const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");
    for refused in [
        &[][..],
        &[("content-type", "text/plain")],
        &[("content-type", "")],
        &[JSON, ("content-encoding", "gzip")],
        &[JSON, ("content-encoding", "identity"), ("content-encoding", "gzip")],
    ] {
        assert_problem(&send(refused).await, 415, "unsupported-media-type");
    }
    assert_eq!(send(&[JSON, ("content-encoding", "identity")]).await.status, 200);
    assert_eq!(relay.sink.stored().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_body_is_decompressed_where_the_config_says_so_and_never_past_the_limit() {
    let relay = Relay::start_with(&json!({ "compression": "decompress" }), |config| {
        config.max_in_flight_bytes = "2 KiB".parse().expect("a size");
    })
    .await;
    let send = async |encoding: &str, body: &[u8]| {
        relay.send(&request("POST", "/hook", &[TOKEN, ("content-encoding", encoding)], body)).await
    };
    assert_eq!(send("gzip", &gzip(&[b'x'; 1000])).await.status, 200);
    let event = Arc::clone(&relay.sink.stored()[0].event);
    assert_eq!((event.body.len(), event.content_encoding.as_deref()), (1000, None));
    let repeat = relay.send(&post(&[b'x'; 1000])).await;
    assert_eq!(repeat.json()["outcome"], "duplicate", "the event is what was packed");
    assert_problem(&send("gzip", &gzip(&[b'x'; 1025])).await, 400, "malformed-event");
    assert_problem(&send("gzip", b"{}").await, 400, "malformed-event");
    assert_problem(&send("br", b"{}").await, 415, "unsupported-media-type");

    // What the sink holds is in flight still.
    drop(event);
    relay.sink.clear();
    assert_eq!(send("gzip", &gzip(&[b'1'; 1000])).await.status, 200);
    assert_eq!(relay.sink.stored().len(), 1);
    assert_problem(&send("gzip", &gzip(&[b'2'; 1024])).await, 503, "overloaded");
    relay.sink.clear();
    assert_eq!(send("gzip", &gzip(&[b'2'; 1024])).await.status, 200, "there is room again");
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

#[tokio::test(start_paused = true)]
async fn the_path_of_a_source_that_was_taken_away_is_unknown_after_a_minute() {
    let (sink, recorder) = (FakeSink::new(SinkId::new(0, "sink")), Arc::new(Recorder::default()));
    let observer: Arc<dyn Observer> = recorder as _;
    let pipeline =
        || TestEvent::new("any").pipeline(&[Arc::clone(&sink)], &json!([{ "to": [{ "sink": "sink" }] }]), &observer);
    let config = ServerConfig::default();
    let ingress = Ingress::new(Arc::new(pipeline()), &[source(&json!({}), &config)], &config);
    let status = async || {
        let request = http::Request::post("/hook").body(axum::body::Body::empty()).expect("a request");
        ingress.answer(request).await.status().as_u16()
    };
    assert_eq!(status().await, 401);
    ingress.replace(Arc::new(pipeline()), &[]);
    assert_eq!(status().await, 503);
    tokio::time::advance(Duration::from_secs(59)).await;
    ingress.replace(Arc::new(pipeline()), &[]);
    assert_eq!(status().await, 503, "whatever is replaced besides");
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(status().await, 404);
    ingress.replace(Arc::new(pipeline()), &[source(&json!({}), &config)]);
    assert_eq!(status().await, 401, "and back");
}

#[tokio::test(start_paused = true)]
async fn whoever_is_refused_too_often_waits_and_nobody_else() {
    let (sink, observer) = (FakeSink::new(SinkId::new(0, "sink")), Arc::new(Recorder::default()) as Arc<dyn Observer>);
    let pipeline = TestEvent::new("any").pipeline(&[sink], &json!([{ "to": [{ "sink": "sink" }] }]), &observer);
    let config = ServerConfig { prompt_refusals: "2/h".parse().expect("a rate"), ..ServerConfig::default() };
    let ingress = Ingress::new(Arc::new(pipeline), &[source(&json!({}), &config)], &config);
    let answer = async |path: &str, token: &str| {
        let request = http::Request::post(path).header("authorization", token);
        let begun = tokio::time::Instant::now();
        let response = ingress.answer(request.body(Full::new(Bytes::from_static(b"x"))).expect("a request")).await;
        (response.status().as_u16(), begun.elapsed())
    };
    let (none, moment) = (Duration::ZERO, Duration::from_millis(50));
    assert_eq!(answer("/hook", "Bearer wrong").await, (401, none));
    assert_eq!(answer("/elsewhere", TOKEN.1).await, (404, none));
    let (status, waited) = answer("/hook", "Bearer wrong").await;
    assert!(status == 401 && waited >= moment, "{status} after {waited:?}");
    assert_eq!(answer("/hook", TOKEN.1).await, (200, none));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_in_flight_have_a_byte_budget() {
    let relay = Relay::start(|config| config.max_in_flight_bytes = "1 KiB".parse().expect("a size")).await;
    let told = Arc::new(Notify::new());
    relay.sink.answer_next([Answer::AckAfter(Arc::clone(&told))]);
    let mut first = Connection::open(relay.address).await.expect("connected");
    first.send(&post(&[b'1'; 1000])).await.expect("sent");
    wait_until(LIMIT, "the first is in flight", async || relay.sink.attempted().len() == 1).await;
    assert_problem(&relay.send(&post(&[b'2'; 1000])).await, 503, "overloaded");
    assert_eq!(relay.send(&post(b"small")).await.status, 200, "what fits is taken");
    told.notify_one();
    assert_eq!(first.receive(LIMIT).await.expect("an answer").status, 200);
    relay.sink.clear();
    assert_eq!(relay.send(&post(&[b'2'; 1000])).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_send_nothing_keep_no_sender_out() {
    let relay = Relay::start(|config| config.max_connections = 8).await;
    let mut kept = Connection::open(relay.address).await.expect("connected");
    assert_eq!(kept.request(&post(b"1"), LIMIT).await.expect("an answer").status, 200);
    let mut silent = Vec::new();
    for _ in 0..50 {
        let mut connection = Connection::open(relay.address).await.expect("the kernel takes it");
        connection.send(b"POST /hook HTTP/1.1\r\n").await.expect("sent");
        silent.push(connection);
    }
    assert_eq!(relay.send(&post(b"2")).await.status, 200, "one of them made room");
    let told = Arc::new(Notify::new());
    relay.sink.answer_next([Answer::AckAfter(Arc::clone(&told))]);
    let mut slow = Connection::open(relay.address).await.expect("connected");
    slow.send(&post(b"slow")).await.expect("sent");
    wait_until(LIMIT, "it is being published", async || relay.sink.attempted().len() == 3).await;
    for _ in 0..50 {
        let mut connection = Connection::open(relay.address).await.expect("the kernel takes it");
        connection.send(b"POST /hook HTTP/1.1\r\n").await.expect("sent");
        silent.push(connection);
    }
    assert_eq!(relay.send(&post(b"4")).await.status, 200);
    told.notify_one();
    assert_eq!(slow.receive(LIMIT).await.expect("an answer").status, 200, "nor one whose event is on its way");
    assert_eq!(
        kept.request(&post(b"3"), LIMIT).await.expect("an answer").status,
        200,
        "and none that has sent an event"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_cap_wait_for_one_to_end() {
    let relay = Relay::start(|config| config.max_connections = 1).await;
    let mut first = Connection::open(relay.address).await.expect("connected");
    assert_eq!(first.request(&post(b"1"), LIMIT).await.expect("an answer").status, 200);
    let mut second = Connection::open(relay.address).await.expect("the kernel takes it");
    second.send(&post(b"2")).await.expect("sent");
    assert!(second.receive(Duration::from_millis(200)).await.is_err(), "nobody has accepted it");
    drop(first);
    assert_eq!(second.receive(LIMIT).await.expect("an answer").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_defect_is_a_500_and_the_server_lives() {
    let relay = Relay::start(|_| {}).await;
    relay.sink.answer_next([Answer::Panic]);
    assert_problem(&relay.send(&post(b"x")).await, 500, "internal-error");
    assert_eq!(relay.send(&post(b"x")).await.status, 200, "the same event again");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_a_stop_each_answer_is_the_last_of_its_connection() {
    let relay = Relay::start(|_| {}).await;
    let mut kept = Connection::open(relay.address).await.expect("connected");
    kept.send(&post(b"1")).await.expect("sent");
    assert_eq!(kept.receive(LIMIT).await.expect("an answer").header("connection"), None);
    relay.leaving.store(true, Ordering::Relaxed);
    kept.send(&post(b"2")).await.expect("sent");
    let last = kept.receive(LIMIT).await.expect("an answer");
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    assert_eq!(relay.send(&post(b"3")).await.status, 200, "new connections are taken still");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_refuses_connections_and_finishes_what_is_in_flight() {
    let relay = Relay::start(|_| {}).await;
    let told = Arc::new(Notify::new());
    relay.sink.answer_next([Answer::AckAfter(Arc::clone(&told))]);
    let mut idle = Connection::open(relay.address).await.expect("connected");
    assert_eq!(idle.request(&request("GET", "/", &[], b""), LIMIT).await.expect("an answer").status, 404);
    let mut busy = Connection::open(relay.address).await.expect("connected");
    busy.send(&post(b"x")).await.expect("sent");
    wait_until(LIMIT, "it is in flight", async || relay.sink.attempted().len() == 1).await;
    relay.stop.cancel();
    wait_until(LIMIT, "connections are refused", async || Connection::open(relay.address).await.is_err()).await;
    assert_eq!(idle.rest(LIMIT).await.expect("closed"), b"", "an idle connection is closed");
    told.notify_one();
    let answer = busy.receive(LIMIT).await.expect("an answer");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    relay.served.await.expect("the server has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_framing_never_becomes_an_event() {
    let relay = Relay::start(|_| {}).await;
    let head = "POST /hook HTTP/1.1\r\nhost: x\r\nauthorization: Bearer token\r\n";
    for framing in [
        "content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "content-length: -1\r\n\r\nhello",
        "content-length: 5\r\ntransfer-encoding: xchunked\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\nZZ\r\nhello\r\n0\r\n\r\n",
    ] {
        let mut connection = Connection::open(relay.address).await.expect("connected");
        connection.send(format!("{head}{framing}").as_bytes()).await.expect("sent");
        let answer = connection.receive(LIMIT).await;
        assert!(answer.as_ref().map_or(true, |response| response.status == 400), "{framing:?}: {answer:?}");
    }
    assert_eq!(relay.sink.attempted().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_events_go_over_one_http2_connection() {
    let relay = Relay::start(|_| {}).await;
    let stream = tokio::net::TcpStream::connect(relay.address).await.expect("connected");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (client, connection) = handshake.await.expect("HTTP/2 with prior knowledge");
    tokio::spawn(connection);
    let (uri, mut client) = (format!("http://{}/hook", relay.address), client);
    let mut answers = Vec::new();
    for number in 0..50 {
        let post = ::http::Request::post(&uri).header(TOKEN.0, TOKEN.1);
        let post = post.body(Full::new(Bytes::from(number.to_string()))).expect("a request");
        answers.push(client.send_request(post));
    }
    for answer in answers {
        let answer = answer.await.expect("an answer");
        assert_eq!((answer.status().as_u16(), answer.version()), (200, ::http::Version::HTTP_2));
        answer.into_body().collect().await.expect("a body");
    }
    assert_eq!(relay.sink.stored().len(), 50);
    assert_eq!(relay.recorder.count("connection_opened"), 1);
}

#[tokio::test]
async fn a_stop_answers_what_has_come_before_it_closes_the_port() {
    let relay = Relay::start(|_| {}).await;
    assert_eq!(relay.send(&post(b"first")).await.status, 200);
    // There is one thread: while this does not wait nothing is accepted, and the kernel keeps them.
    let connect = |number: u8| {
        let mut stream = std::net::TcpStream::connect(relay.address).expect("it listens");
        stream.write_all(&post(&[number])).expect("the kernel takes it");
        stream.set_nonblocking(true).expect("a socket");
        tokio::net::TcpStream::from_std(stream).expect("a runtime")
    };
    let streams: Vec<_> = (0..30).map(connect).collect();
    relay.stop.cancel();
    for mut stream in streams {
        let mut answer = [0; 12];
        let read = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut answer);
        tokio::time::timeout(LIMIT, read).await.expect("in time").expect("no reset");
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    assert!(Connection::open(relay.address).await.is_err(), "now nobody listens");
    relay.served.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_were_accepted_just_before_the_stop_get_the_time_for_their_request() {
    const CONNECTIONS: usize = 30;
    let relay = Relay::start(|_| {}).await;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Connection::open(relay.address).await.expect("it listens"));
    }
    wait_until(LIMIT, "all are accepted", async || relay.recorder.count("connection_opened") == CONNECTIONS).await;
    relay.stop.cancel();
    wait_until(LIMIT, "the port is closed", async || Connection::open(relay.address).await.is_err()).await;
    for (number, connection) in (0_u8..).zip(&mut connections) {
        assert_eq!(connection.request(&post(&[number]), LIMIT).await.expect("an answer").status, 200);
    }
}
