//! Spans as a collector gets them: whose they are, what is below what, and what a collector that does not answer costs.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use hookgate_testkit::{
    http::request,
    nats::{NatsConfig, NatsServer},
    nats_wire::StoredMessage,
    process::{free_port, wait_until},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::relay::{LIMIT, OPENCLAW, PATH, Relay, TOKEN, create_stream, finished, finished_id, to_nats};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SENDER: &str = "00f067aa0ba902b7";

/// What takes spans over HTTP.
struct Collector {
    address: SocketAddr,
    got: Arc<Mutex<Got>>,
}

#[derive(Default)]
struct Got {
    heads: Vec<String>,
    requests: Vec<ExportTraceServiceRequest>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (address, got) = (listener.local_addr().expect("bound"), Arc::new(Mutex::new(Got::default())));
        let all = Arc::clone(&got);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (head, body) = read(&mut stream).await;
                let request = ExportTraceServiceRequest::decode(body.as_slice()).expect("spans");
                {
                    let mut all = all.lock().expect("no panic");
                    all.heads.push(head);
                    all.requests.push(request);
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("hookgate listens");
            }
        });
        Self { address, got }
    }

    fn spans(&self) -> Vec<Span> {
        let got = self.got.lock().expect("no panic");
        let resources = got.requests.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }

    /// The first span of this name for which `is_it` holds, once it is there.
    async fn span(&self, name: &str, is_it: impl Fn(&Span) -> bool) -> Span {
        let find = || self.spans().into_iter().find(|span| span.name == name && is_it(span));
        wait_until(LIMIT, name, async || find().is_some()).await;
        find().expect("it was there just now")
    }
}

/// One request: its head and its body.
async fn read(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        stream.read_buf(&mut bytes).await.expect("hookgate speaks");
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        if bytes.len() - end - 4 == length.parse::<usize>().expect("a number") {
            return (head, bytes.split_off(end + 4));
        }
    }
}

/// The value of an attribute, as text.
fn attribute(attributes: &[KeyValue], name: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    let Some(AnyValue { value: Some(value) }) = &found.value else { return None };
    Some(match value {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::BoolValue(flag) => flag.to_string(),
        other => panic!("{other:?}"),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is(name: &str, value: &str) -> impl Fn(&Span) -> bool {
    move |span| attribute(&span.attributes, name).as_deref() == Some(value)
}

/// The table that exports this part of the traces to `collector`.
fn traces(collector: SocketAddr, sample: &str) -> String {
    format!("[traces]\nendpoint = \"http://{collector}\"\nsample = {sample}\n")
}

/// An event of a sender that is in a trace.
async fn post_in_trace(relay: &Relay, number: usize, flags: &str) -> String {
    let (authorization, parent) = (format!("Bearer {TOKEN}"), format!("00-{TRACE}-{SENDER}-{flags}"));
    let headers = [("authorization", authorization.as_str()), ("traceparent", &parent), ("tracestate", "vendor=1")];
    let answer = relay.send(&request("POST", PATH, &headers, finished(number).as_bytes())).await;
    answer.json()["outcome"].as_str().unwrap_or_default().to_owned()
}

async fn message(server: &NatsServer, number: usize) -> StoredMessage {
    let messages = server.wire().await.read_stream("HOOKS").await;
    let id = finished_id(number);
    messages.into_iter().find(|message| message.header("ce-id") == Some(&*id)).expect("it is there")
}

async fn nats() -> NatsServer {
    let server = NatsServer::start(NatsConfig::default()).await;
    create_stream(&server).await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_a_span_below_its_senders_and_above_those_of_its_consumers() {
    let (server, collector) = (nats().await, Collector::start().await);
    let headers = "headers = { authorization = { env = \"OTLP_AUTHORIZATION\" } }\n";
    let tables = format!("{OPENCLAW}{}{headers}{}", traces(collector.address, "0"), to_nats(&server.url()));
    let relay = Relay::start_with(&tables, &[("OTLP_AUTHORIZATION", "Bearer for-the-collector")]).await;
    relay.wait_until_ready().await;
    assert_eq!(post_in_trace(&relay, 1, "01").await, "delivered");

    let receive = collector.span("receive", |_| true).await;
    let publish = collector.span("publish", |_| true).await;
    assert_eq!((hex(&receive.trace_id), hex(&receive.parent_span_id)), (TRACE.to_owned(), SENDER.to_owned()));
    assert_ne!(hex(&receive.span_id), SENDER);
    assert_eq!((hex(&publish.trace_id), &publish.parent_span_id), (TRACE.to_owned(), &receive.span_id));
    assert_eq!((receive.kind(), publish.kind()), (SpanKind::Server, SpanKind::Producer));
    assert_eq!((&*receive.trace_state, &*publish.trace_state), ("vendor=1", "vendor=1"));
    let message = message(&server, 1).await;
    let parent = format!("00-{TRACE}-{}-01", hex(&receive.span_id));
    assert_eq!((message.header("traceparent"), message.header("tracestate")), (Some(&*parent), Some("vendor=1")));

    let id = finished_id(1);
    let body_bytes = finished(1).len().to_string();
    for (span, name, value) in [
        (&receive, "hookgate.source", "openclaw"),
        (&receive, "hookgate.event.id", &*id),
        (&receive, "hookgate.event.type", "openclaw.run.finished"),
        (&receive, "hookgate.outcome", "delivered"),
        (&receive, "http.request.body.size", &*body_bytes),
        (&publish, "hookgate.event.id", &*id),
        (&publish, "hookgate.sink", "js"),
        (&publish, "messaging.destination.name", "openclaw.job-1"),
        (&publish, "hookgate.attempt", "1"),
        (&publish, "hookgate.result", "acked"),
        (&publish, "hookgate.place", "HOOKS"),
        (&publish, "hookgate.offset", "1"),
        (&publish, "hookgate.spooled", "false"),
    ] {
        assert_eq!(attribute(&span.attributes, name).as_deref(), Some(value), "{name}");
    }
    let (from, until) = (receive.start_time_unix_nano, receive.end_time_unix_nano);
    assert!(from < publish.start_time_unix_nano && publish.end_time_unix_nano < until, "{receive:?} {publish:?}");

    let got = collector.got.lock().expect("no panic");
    assert!(got.heads[0].starts_with("post /v1/traces "), "{}", got.heads[0]);
    assert!(got.heads[0].contains("authorization: bearer for-the-collector"), "{}", got.heads[0]);
    let resource = got.requests[0].resource_spans[0].resource.as_ref().expect("a resource");
    assert_eq!(attribute(&resource.attributes, "service.name").as_deref(), Some("hookgate"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_wrong_is_exported_although_nobody_sampled_it() {
    let (mut server, collector) = (nats().await, Collector::start().await);
    let tables = format!("{OPENCLAW}{}{}", traces(collector.address, "0"), to_nats(&server.url()));
    let relay = Relay::start_with(&tables, &[("HOOKGATE_SERVER__REPLY_DEADLINE", "1s")]).await;
    relay.wait_until_ready().await;
    assert_eq!(post_in_trace(&relay, 1, "00").await, "delivered");
    assert_eq!(relay.post(finished(2)).await.json()["outcome"], "delivered");
    server.kill();
    assert_eq!(post_in_trace(&relay, 3, "00").await, "");

    let receive = collector.span("receive", |_| true).await;
    assert_eq!((hex(&receive.trace_id), hex(&receive.parent_span_id)), (TRACE.to_owned(), SENDER.to_owned()));
    assert_eq!(attribute(&receive.attributes, "hookgate.event.id"), Some(finished_id(3)), "the others went well");
    assert_eq!(receive.status.expect("a status").code(), StatusCode::Error);
    let publish = collector.span("publish", |_| true).await;
    assert_eq!(publish.parent_span_id, receive.span_id);
    assert_eq!(publish.status.expect("a status").code(), StatusCode::Error);
    assert!(collector.spans().iter().all(is("hookgate.event.id", &finished_id(3))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_from_the_spool_is_in_the_trace_that_it_came_in() {
    let (mut server, collector) = (nats().await, Collector::start().await);
    let spool = "[spool]\ndir = \"spool\"\nmin_free = \"1 MiB\"\n";
    let tables = format!("{OPENCLAW}{}{spool}{}", traces(collector.address, "0"), to_nats(&server.url()));
    let mut relay = Relay::start_with(&tables, &[("HOOKGATE_SERVER__REPLY_DEADLINE", "1s")]).await;
    relay.wait_until_ready().await;
    server.kill();
    assert_eq!(post_in_trace(&relay, 1, "01").await, "spooled");
    let receive = collector.span("receive", is("hookgate.outcome", "spooled")).await;
    relay.kill();
    relay.start_again(&[]).await;
    server.restart().await;

    let replayed = |span: &Span| is("hookgate.spooled", "true")(span) && is("hookgate.result", "acked")(span);
    let publish = collector.span("publish", replayed).await;
    assert_eq!((hex(&publish.trace_id), &publish.parent_span_id), (TRACE.to_owned(), &receive.span_id));
    let parent = format!("00-{TRACE}-{}-01", hex(&receive.span_id));
    assert_eq!(message(&server, 1).await.header("traceparent"), Some(&*parent));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_down_or_hangs_delays_nothing_and_loses_spans_alone_which_are_counted() {
    const EVENTS: usize = 20;
    let down = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let hanging = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let hangs_at = hanging.local_addr().expect("bound");
    for collector in [down, hangs_at] {
        let server = nats().await;
        let mut relay = Relay::start(&format!("{OPENCLAW}{}{}", traces(collector, "1"), to_nats(&server.url()))).await;
        relay.wait_until_ready().await;
        let begun = Instant::now();
        let mut asked = None;
        for number in 0..EVENTS {
            // The second half comes while a request for the collector is under way.
            if number == EVENTS / 2 && collector == hangs_at {
                asked = hanging.accept().await.ok();
            }
            assert_eq!(relay.post(finished(number)).await.json()["outcome"], "delivered");
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "less than one request for the collector may take");
        let dropped = async || relay.metric("hookgate_trace_spans_dropped_total").await;
        wait_until(2 * LIMIT, "every span is counted", async || dropped().await == (2 * EVENTS) as f64).await;
        assert_eq!(asked.is_some(), collector == hangs_at);
        assert!(relay.log().contains("spans cannot be exported"), "{}", relay.log());

        assert_eq!(relay.post(finished(EVENTS)).await.json()["outcome"], "delivered");
        let begun = Instant::now();
        relay.terminate();
        assert!(relay.wait().await.success());
        assert!(begun.elapsed() < Duration::from_secs(8), "the collector is not waited for");
        assert_eq!(server.wire().await.read_stream("HOOKS").await.len(), EVENTS + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_are_exported_before_the_process_ends() {
    let collector = Collector::start().await;
    let tables = format!("{OPENCLAW}{}{}", traces(collector.address, "1"), crate::relay::TO_FILE);
    let mut relay = Relay::start(&tables).await;
    relay.wait_until_ready().await;
    assert_eq!(relay.post(finished(1)).await.json()["outcome"], "delivered");
    relay.terminate();
    assert!(relay.wait().await.success());
    let names: Vec<String> = collector.spans().into_iter().map(|span| span.name).collect();
    assert_eq!(names, ["publish", "receive"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_comes_by_a_reload_changes_nothing_before_the_next_start() {
    let (server, collector) = (nats().await, Collector::start().await);
    let without = format!("{OPENCLAW}{}", to_nats(&server.url()));
    let relay = Relay::start(&without).await;
    relay.wait_until_ready().await;
    relay.rewrite(&format!("{}{without}", traces(collector.address, "1")));
    let answer = relay.reload().await.json();
    assert_eq!(answer["restart_required"], serde_json::json!(["traces.endpoint", "traces.sample"]), "{answer}");
    assert_eq!(post_in_trace(&relay, 1, "00").await, "delivered");
    let parent = format!("00-{TRACE}-{SENDER}-00");
    assert_eq!(message(&server, 1).await.header("traceparent"), Some(&*parent), "as its sender sent it");
}
