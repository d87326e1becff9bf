//! The conformance suite on real pipes.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, PipeReader, pipe},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use hookgate_core::{
    event::SinkId,
    limits::Deadline,
    observe::Observer,
    sink::{PublishErrorKind, Sink, Target},
};
use hookgate_sink_stdout::{Config, connect_to};
use hookgate_testkit::{
    conformance::{BadCredentials, Broker, Inapplicable, Metadata, Stored},
    conformance_suite,
    event::TestEvent,
    process::wait_until,
    proxy::FaultProxy,
    recorder::Recorder,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(10);

/// A pipe, and the lines that came out of it.
struct Pipe {
    lines: Arc<Mutex<Vec<String>>>,
}

const ONE_PLACE: Inapplicable = Inapplicable("there is one place, and everything goes there");
const NO_SERVER: Inapplicable = Inapplicable("there is no server");
const NO_CREDENTIALS: Inapplicable = Inapplicable("nothing is asked for credentials");

fn config() -> Config {
    serde_json::from_str("{}").expect("well-formed")
}

fn keep_reading(reader: PipeReader, lines: Arc<Mutex<Vec<String>>>) {
    thread::spawn(move || {
        for line in BufReader::new(reader).lines() {
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(line.expect("text"));
        }
    });
}

fn stored(line: &str) -> Stored {
    let line: Value = serde_json::from_str(line).expect("a line is JSON");
    let text = |key: &str| line[key].as_str().map(str::to_owned);
    let map = |key: &str| -> BTreeMap<String, String> {
        let pairs = line[key].as_object().into_iter().flatten();
        pairs.map(|(name, value)| (name.clone(), value.as_str().expect("a text").to_owned())).collect()
    };
    let body = match (&line["body"], &line["body_base64"]) {
        (Value::String(text), _) => text.clone().into_bytes(),
        (_, Value::String(text)) => data_encoding::BASE64.decode(text.as_bytes()).expect("base64"),
        both => panic!("one of two: {both:?}"),
    };
    let received_at = text("received_at").expect("a time");
    let metadata = Metadata {
        source: text("source").expect("a source"),
        id: text("id").expect("an id"),
        event_type: text("type").expect("a type"),
        received_at: humantime::parse_rfc3339(&received_at).expect("RFC 3339"),
        route: text("route").expect("a route"),
        content_type: text("content_type"),
        content_encoding: text("content_encoding"),
        attributes: map("attributes"),
        trace_parent: text("traceparent"),
        trace_state: text("tracestate"),
        forwarded: map("headers"),
    };
    Stored { target: Target::Whole, broker_id: None, position: None, metadata, body: body.into() }
}

impl Broker for Pipe {
    fn target(&self) -> Target {
        Target::Whole
    }

    async fn sink(&mut self, id: SinkId, observer: Arc<dyn Observer>) -> Arc<dyn Sink> {
        let (reader, writer) = pipe().expect("a pipe");
        keep_reading(reader, Arc::clone(&self.lines));
        Arc::new(connect_to(id, &config(), writer, observer).expect("a thread"))
    }

    async fn stored(&mut self) -> Vec<Stored> {
        // What is in the pipe by now is read within moments: until nothing more comes, it is not all.
        let count = || self.lines.lock().unwrap_or_else(PoisonError::into_inner).len();
        let mut seen = usize::MAX;
        wait_until(LIMIT, "the pipe is empty", async || {
            let before = std::mem::replace(&mut seen, count());
            tokio::time::sleep(Duration::from_millis(50)).await;
            before == seen && seen == count()
        })
        .await;
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|line| stored(line)).collect()
    }

    fn unroutable(&self) -> Result<Target, Inapplicable> {
        Err(ONE_PLACE)
    }

    async fn silent(&mut self) -> Result<Target, Inapplicable> {
        Err(ONE_PLACE)
    }

    async fn remove_destination(&mut self) -> Result<(), Inapplicable> {
        Err(Inapplicable("a pipe without its reader never has one again; see the tests below"))
    }

    async fn restore_destination(&mut self) {
        unreachable!("it is never removed");
    }

    fn body_bytes_too_large(&self) -> Result<usize, Inapplicable> {
        Err(Inapplicable("a line may be as long as any event"))
    }

    async fn bad_credentials(&mut self, _: SinkId, _: Arc<dyn Observer>) -> Result<BadCredentials, Inapplicable> {
        Err(NO_CREDENTIALS)
    }

    async fn kill(&mut self) -> Result<(), Inapplicable> {
        Err(NO_SERVER)
    }

    async fn restart(&mut self) {
        unreachable!("it is never killed");
    }

    async fn pause(&mut self) -> Result<(), Inapplicable> {
        Err(NO_SERVER)
    }

    async fn resume(&mut self) {
        unreachable!("it is never paused");
    }

    fn proxy(&self) -> Result<Arc<FaultProxy>, Inapplicable> {
        Err(NO_SERVER)
    }

    fn secrets(&self) -> Result<Vec<String>, Inapplicable> {
        Err(NO_CREDENTIALS)
    }

    fn printed(&self) -> Vec<String> {
        unreachable!("there is nothing secret to print");
    }
}

conformance_suite!(
    Pipe { lines: Arc::default() },
    inapplicable = [
        unroutable_is_refused,
        an_unknown_destination_is_refused,
        too_large_is_rejected_not_retried,
        bad_credentials_are_misconfigured,
        a_broker_that_is_down_is_unavailable_before_the_deadline,
        no_receipt_when_the_connection_dies_before_the_ack,
        a_deadline_without_an_answer_is_unknown,
        a_stalled_publish_does_not_delay_others,
        publishes_again_after_a_broker_restart,
        a_thousand_in_parallel_through_a_lossy_proxy_lose_nothing,
        no_output_contains_a_secret,
    ]
);

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_that_nobody_reads_gives_no_receipt_and_holds_nobody_up() {
    let (_reader, writer) = pipe().expect("a pipe");
    let id = SinkId::new(0, "out");
    let sink = connect_to(id.clone(), &config(), writer, Arc::new(Recorder::default())).expect("a thread");
    // More than a pipe holds.
    let large = TestEvent::new("1").body(vec![b'x'; 4 << 20]).to(&id, &Target::Whole);
    let error =
        sink.publish(&large, Deadline::after(Duration::from_millis(200))).await.expect_err("nobody has read it");
    assert_eq!(error.kind, PublishErrorKind::Unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_whose_reader_is_gone_says_so() {
    let (reader, writer) = pipe().expect("a pipe");
    let (id, told) = (SinkId::new(0, "out"), Arc::new(Recorder::default()));
    let sink = connect_to(id.clone(), &config(), writer, Arc::clone(&told) as _).expect("a thread");
    drop(reader);
    for _ in 0..2 {
        let message = TestEvent::new("1").to(&id, &Target::Whole);
        let error = sink.publish(&message, Deadline::after(LIMIT)).await.expect_err("there is nobody");
        assert_eq!(error.kind, PublishErrorKind::Unavailable);
    }
    wait_until(LIMIT, "the operator is told", async || told.count("sink_down") == 1).await;
    assert!(sink.probe(Deadline::after(LIMIT)).await.is_err());
}
