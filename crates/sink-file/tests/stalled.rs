//! What publishers are told while the thread that writes is held up, as by a disk that hangs.
//!
//! An observer holds it up: it is called on that thread, and what it is told of here is a directory that has gone.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::poll;
use hookgate_core::{
    limits::Deadline,
    observe::{Chain, Observation, Observer},
    sink::{PublishErrorKind, PublishReason, Sink},
};
use hookgate_sink_file::{Config, FileSink};
use hookgate_testkit::process::wait_until;
use serde_json::json;
use support::{ample, message, sink_id, stored_ids};
use tempfile::TempDir;

/// Holds up whoever says that a sink is down.
#[derive(Default)]
struct Gate {
    reached: AtomicBool,
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }
}

impl Observer for Gate {
    fn observe(&self, observation: &Observation<'_>) {
        if matches!(observation, Observation::SinkDown { .. }) {
            self.reached.store(true, Ordering::Release);
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            drop(self.opened.wait_while(open, |open| !*open));
        }
    }
}

/// A sink whose thread is held up with the message `taken` in its hands, until the gate is opened.
struct Stalled {
    sink: Arc<FileSink>,
    gate: Arc<Gate>,
    taken: tokio::task::JoinHandle<(PublishErrorKind, PublishReason)>,
    events: PathBuf,
    _dir: TempDir,
}

const SHORT: Duration = Duration::from_millis(50);

async fn stalled(max_in_flight: usize, deadline: Duration) -> Stalled {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let events = dir.path().join("events");
    let table = json!({ "dir": events, "max_in_flight": max_in_flight });
    let config: Config = serde_json::from_value(table).expect("well-formed");
    let gate = Arc::new(Gate::default());
    let sink = hookgate_sink_file::connect(sink_id(), &config, gate.clone()).await.expect("it can be used");
    let sink = Arc::new(sink);
    fs::remove_dir_all(&events).expect("it is there");
    let publisher = Arc::clone(&sink);
    let taken = tokio::spawn(async move {
        let error =
            publisher.publish(&message("taken", 10), Deadline::after(deadline)).await.expect_err("no directory");
        (error.kind, error.reason)
    });
    let limit = Duration::from_secs(10);
    wait_until(limit, "the thread is held up", async || gate.reached.load(Ordering::Acquire)).await;
    fs::create_dir(&events).expect("it is not there");
    Stalled { sink, gate, taken, events, _dir: dir }
}

impl Stalled {
    /// Lets the thread go on to its end, and returns what is stored.
    async fn finish(&self) -> Vec<String> {
        self.gate.open();
        self.sink.close(ample()).await;
        stored_ids(Path::new(&self.events))
    }

    async fn refusal(&self, id: &str) -> (PublishErrorKind, PublishReason) {
        let (message, started) = (message(id, 10), Instant::now());
        let error = self.sink.publish(&message, Deadline::after(SHORT)).await.expect_err("it is held up");
        assert!(started.elapsed() < SHORT * 40, "the answer took {:?}", started.elapsed());
        assert!(Chain(&error).to_string().contains("before the deadline"), "{}", Chain(&error));
        (error.kind, error.reason)
    }
}

#[tokio::test]
async fn a_message_that_was_not_taken_up_before_its_deadline_is_never_written() {
    let stalled = stalled(10, Duration::from_secs(20)).await;
    assert_eq!(stalled.refusal("late").await, (PublishErrorKind::Unavailable, PublishReason::Timeout));
    assert_eq!(stalled.finish().await, [] as [&str; 0]);
}

#[tokio::test]
async fn a_message_that_was_taken_up_before_its_deadline_is_unknown() {
    let mut stalled = stalled(10, SHORT).await;
    let told = (&mut stalled.taken).await.expect("no panic");
    assert_eq!(told, (PublishErrorKind::Unknown, PublishReason::Timeout));
    stalled.finish().await;
}

#[tokio::test]
async fn a_message_whose_publisher_has_gone_is_not_written() {
    let stalled = stalled(10, Duration::from_secs(20)).await;
    let (unwanted, wanted) = (message("unwanted", 10), message("wanted", 10));
    let mut given_up = stalled.sink.publish(&unwanted, ample());
    let mut waited_for = stalled.sink.publish(&wanted, ample());
    assert!(poll!(&mut given_up).is_pending() && poll!(&mut waited_for).is_pending());
    drop(given_up);
    assert_eq!(stalled.finish().await, ["wanted"]);
    let _receipt = waited_for.await.expect("stored");
}

#[tokio::test]
async fn a_full_queue_takes_no_more() {
    let stalled = stalled(1, Duration::from_secs(20)).await;
    let queued = message("queued", 10);
    let mut waits = stalled.sink.publish(&queued, ample());
    assert!(poll!(&mut waits).is_pending());
    assert_eq!(stalled.refusal("too many").await, (PublishErrorKind::Throttled, PublishReason::Throttled));
    assert_eq!(stalled.finish().await, ["queued"]);
}

#[tokio::test]
async fn a_probe_finds_that_the_thread_is_held_up() {
    let stalled = stalled(10, Duration::from_secs(20)).await;
    let error = stalled.sink.probe(Deadline::after(SHORT)).await.expect_err("it is held up");
    assert_eq!((error.kind, error.reason), (PublishErrorKind::Unavailable, PublishReason::Timeout));
    stalled.finish().await;
}

#[tokio::test]
async fn closing_waits_no_longer_than_its_deadline() {
    let stalled = stalled(10, Duration::from_secs(20)).await;
    stalled.sink.close(Deadline::after(SHORT)).await;
    assert_eq!(stalled.finish().await, [] as [&str; 0]);
}
