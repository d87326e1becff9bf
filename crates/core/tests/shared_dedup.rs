//! Replicas that share a claim store: what each of them answers, publishes and asks the store for.

use std::{sync::Arc, time::Duration};

use hookgate_core::{
    dedup::{ClaimStore, Shared},
    event::SinkId,
    handoff::{AcceptedAs, Answered, Miss, Refused},
    identity::Malformed,
    observe::Observer,
    pipeline::Pipeline,
    sink::PublishErrorKind,
};
use hookgate_testkit::{
    event::TestEvent,
    fake_sink::{Answer, FakeSink},
    fake_store::{FakeStore, Fault},
    process::wait_until,
    recorder::Recorder,
};
use serde_json::json;
use tokio::{sync::Notify, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(10);

/// The reply deadline of every replica here, and the lease that follows from it.
const DEADLINE: Duration = Duration::from_millis(2500);
const LEASE: Duration = Duration::from_millis(4500);

/// More commits than may wait and are on their way.
const TOO_MANY: usize = 4096 + 1024 + 100;

/// One hookgate with a sink of its own.
struct Replica {
    pipeline: Arc<Pipeline>,
    sink: Arc<FakeSink>,
    recorder: Arc<Recorder>,
}

impl Replica {
    fn sharing(store: &Arc<FakeStore>) -> Self {
        let recorder = Arc::new(Recorder::default());
        let observer: Arc<dyn Observer> = Arc::clone(&recorder) as _;
        let sink = FakeSink::new(SinkId::new(0, "first"));
        let routes = json!([{ "to": [{ "sink": "first" }] }]);
        let mut pipeline = TestEvent::new("any").pipeline(std::slice::from_ref(&sink), &routes, &observer);
        let store = Arc::clone(store) as Arc<dyn ClaimStore>;
        let (shared, settlers) = Shared::new(vec![store], Duration::from_secs(60 * 60), observer);
        pipeline.dedup.shared = Some(shared);
        for settler in settlers {
            tokio::spawn(settler.run(CancellationToken::new()));
        }
        Self { pipeline: Arc::new(pipeline), sink, recorder }
    }

    fn start(&self, event: &TestEvent) -> JoinHandle<Result<AcceptedAs, Refused>> {
        let running = self.pipeline.spawn(Arc::new(event.source()), event.request());
        tokio::spawn(async move {
            match running.await.expect("no panic")? {
                Answered::Accepted(accepted) => Ok(accepted.as_what()),
                Answered::Handshake(reply) => panic!("an event is no handshake: {reply:?}"),
            }
        })
    }

    async fn outcome(&self, event: &TestEvent) -> Result<AcceptedAs, Refused> {
        self.start(event).await.expect("no panic")
    }

    /// Waits until the store was told how so many claims ended, well or not.
    async fn has_told(&self, operation: &str, count: usize) {
        let operation = format!("dedup_operated operation={operation}");
        wait_until(LIMIT, "the store was told", async || self.recorder.count(&operation) == count).await;
    }

    fn checks(&self, result: &str) -> usize {
        self.recorder.count(&format!("dedup_checked result={result}"))
    }
}

fn replicas() -> (Arc<FakeStore>, Replica, Replica) {
    let store = FakeStore::new();
    let (one, other) = (Replica::sharing(&store), Replica::sharing(&store));
    (store, one, other)
}

fn event() -> TestEvent {
    TestEvent::new("1")
}

#[tokio::test(start_paused = true)]
async fn what_one_replica_accepted_is_a_duplicate_to_the_other() {
    let (store, one, other) = replicas();
    assert_eq!(one.outcome(&event()).await, Ok(AcceptedAs::Delivered));
    one.has_told("commit", 1).await;
    assert_eq!(store.operations(), 2, "a claim and a commit");
    for _ in 0..100 {
        assert_eq!(other.outcome(&event()).await, Ok(AcceptedAs::Duplicate));
    }
    assert_eq!(store.operations(), 3, "the other asks once and then knows");
    assert_eq!((one.sink.stored().len(), other.sink.stored().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_twin_of_another_replica_is_waited_for_and_the_repeat_is_a_duplicate_of_it() {
    let (_store, one, other) = replicas();
    let told = Arc::new(Notify::new());
    one.sink.answer_next([Answer::AckAfter(Arc::clone(&told))]);
    let first = one.start(&event());
    wait_until(LIMIT, "the first is in flight", async || one.sink.attempted().len() == 1).await;
    let twin = other.start(&event());
    wait_until(LIMIT, "the twin has asked twice", async || other.recorder.count("dedup_operated") == 2).await;
    told.notify_one();
    assert_eq!(first.await.expect("no panic"), Ok(AcceptedAs::Delivered));
    assert_eq!(twin.await.expect("no panic"), Ok(AcceptedAs::Duplicate));
    assert!(other.sink.attempted().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_twin_of_another_replica_that_does_not_end_is_told_to_come_back_and_never_2xx() {
    let (store, mut one, other) = replicas();
    one.sink.answer_always(Answer::Hang);
    // It outlasts its twin, which would be published once the first is given up.
    Arc::get_mut(&mut one.pipeline).expect("nobody else has it").reply_deadline = 2 * DEADLINE;
    let first = one.start(&event());
    wait_until(LIMIT, "the first is in flight", async || one.sink.attempted().len() == 1).await;
    let before = store.operations();
    assert_eq!(other.outcome(&event()).await, Err(Refused::InProgress));
    assert!(store.operations() - before < 60, "it looks at it from time to time: {}", store.operations() - before);
    assert_eq!(first.await.expect("no panic"), Err(Refused::NotHandedOff(Miss::Unknown)));
}

#[tokio::test(start_paused = true)]
async fn a_crowd_of_twins_asks_the_store_as_one() {
    let (store, one, other) = replicas();
    one.sink.answer_always(Answer::Hang);
    let _first = one.start(&event());
    wait_until(LIMIT, "the first is in flight", async || one.sink.attempted().len() == 1).await;
    let before = store.operations();
    // They come in dense order for longer than a deadline, so that at any time many are about to give up.
    let mut crowd = Vec::new();
    for _ in 0..3000 {
        crowd.extend((0..3).map(|_| other.start(&event())));
        tokio::time::sleep(DEADLINE / 2500).await;
    }
    let mut taken = 0;
    for twin in crowd {
        match twin.await.expect("no panic") {
            // Whoever comes after the first one's lease may publish it.
            Ok(_) => taken += 1,
            Err(refused) => assert_eq!(refused, Refused::InProgress),
        }
    }
    assert!(taken > 0);
    // In three seconds and for 9000 twins: whoever looks on for all of them does so every 10 to 100 ms.
    let operations = store.operations() - before;
    assert!(operations < 200, "{operations} operations");
    assert_eq!(other.sink.stored().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_publish_leaves_the_event_to_the_other_replica() {
    let (store, one, other) = replicas();
    one.sink.answer_always(Answer::fail(PublishErrorKind::Rejected));
    assert_eq!(one.outcome(&event()).await, Err(Refused::NotHandedOff(Miss::Rejected)));
    wait_until(LIMIT, "the claim is released", async || store.is_empty()).await;
    assert_eq!(other.outcome(&event()).await, Ok(AcceptedAs::Delivered));
    assert_eq!(one.outcome(&event()).await, Ok(AcceptedAs::Duplicate));
}

#[tokio::test(start_paused = true)]
async fn without_the_store_events_are_published_unless_their_source_refuses_them() {
    let (store, one, _) = replicas();
    let strict = |id| TestEvent::new(id).dedup(json!({ "on_outage": "refuse" }));
    assert_eq!(one.outcome(&strict("known")).await, Ok(AcceptedAs::Delivered));
    store.suffer(Fault::Down);
    assert_eq!(one.outcome(&event()).await, Ok(AcceptedAs::Delivered));
    assert_eq!(one.outcome(&event()).await, Ok(AcceptedAs::Duplicate), "this process knows it");
    assert_eq!(one.outcome(&strict("new")).await, Err(Refused::DedupUnavailable));
    assert_eq!(one.outcome(&strict("known")).await, Ok(AcceptedAs::Duplicate));
    assert_eq!((one.checks("bypassed"), one.checks("error")), (1, 1));
    assert_eq!(one.sink.stored().len(), 2);
    store.suffer(Fault::None);
    assert_eq!(one.outcome(&strict("new")).await, Ok(AcceptedAs::Delivered));
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_fails_is_no_error_to_a_delivered_event() {
    let (store, one, other) = replicas();
    store.suffer(Fault::CannotCommit);
    assert_eq!(one.outcome(&event()).await, Ok(AcceptedAs::Delivered));
    one.has_told("commit error=read_only", 1).await;
    assert_eq!(other.outcome(&event()).await, Err(Refused::InProgress), "until the lease ends");
    tokio::time::sleep(LEASE).await;
    store.suffer(Fault::None);
    assert_eq!(other.outcome(&event()).await, Ok(AcceptedAs::Delivered), "the duplicate that is left");
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_answer_was_lost_is_committed_all_the_same() {
    let (store, one, other) = replicas();
    store.suffer(Fault::LosesAnswers);
    assert_eq!(one.outcome(&event()).await, Ok(AcceptedAs::Delivered));
    one.has_told("commit error=timeout", 1).await;
    store.suffer(Fault::None);
    assert_eq!(other.outcome(&event()).await, Ok(AcceptedAs::Duplicate));
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_answer_was_lost_is_released_when_the_event_is_refused() {
    let (store, one, other) = replicas();
    store.suffer(Fault::LosesAnswers);
    let strict = event().dedup(json!({ "on_outage": "refuse" }));
    assert_eq!(one.outcome(&strict).await, Err(Refused::DedupUnavailable));
    wait_until(LIMIT, "the claim is released", async || store.is_empty()).await;
    store.suffer(Fault::None);
    assert_eq!(other.outcome(&event()).await, Ok(AcceptedAs::Delivered));
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_the_stores_clock_does_not_end_is_taken_over_after_its_lease() {
    let (store, one, other) = replicas();
    one.sink.answer_always(Answer::Hang);
    let first = one.start(&event());
    wait_until(LIMIT, "the first is in flight", async || one.sink.attempted().len() == 1).await;
    store.stop_its_clock();
    // What a crash leaves behind: a claim that nobody releases.
    store.suffer(Fault::Down);
    assert!(first.await.expect("no panic").is_err());
    one.has_told("release", 1).await;
    store.suffer(Fault::None);
    assert_eq!(other.outcome(&event()).await, Err(Refused::InProgress), "it may be alive");
    tokio::time::sleep(LEASE).await;
    assert_eq!(other.outcome(&event()).await, Ok(AcceptedAs::Delivered), "an hour would be too long");
    assert_eq!(other.checks("takeover"), 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_was_overtaken_neither_releases_nor_hides_what_the_other_accepted() {
    let (store, one, other) = replicas();
    let told = Arc::new(Notify::new());
    // One publishes for longer than its lease, as a process that was stopped does, and then fails.
    one.sink.answer_next([Answer::AckAfter(Arc::clone(&told))]);
    let slow = one.start(&event().dedup(json!({})));
    wait_until(LIMIT, "it is in flight", async || one.sink.attempted().len() == 1).await;
    store.flush();
    assert_eq!(other.outcome(&event()).await, Ok(AcceptedAs::Delivered));
    assert_eq!(slow.await.expect("no panic"), Err(Refused::NotHandedOff(Miss::Unknown)), "at its deadline");
    one.has_told("release", 1).await;
    assert_eq!(one.outcome(&event()).await, Ok(AcceptedAs::Duplicate), "its release left the other's entry alone");
}

#[tokio::test(start_paused = true)]
async fn an_id_with_another_body_is_counted_and_a_duplicate() {
    let (_store, one, other) = replicas();
    assert_eq!(one.outcome(&event().body("1")).await, Ok(AcceptedAs::Delivered));
    for replica in [&one, &other] {
        assert_eq!(replica.outcome(&event().body("2")).await, Ok(AcceptedAs::Duplicate));
        assert_eq!(replica.outcome(&event().body("1")).await, Ok(AcceptedAs::Duplicate));
        assert_eq!(replica.recorder.count("payload_mismatch event=header:x-test-id=1"), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_id_with_another_body_is_an_event_of_its_own_where_the_source_says_so() {
    let (_store, one, other) = replicas();
    let event = |body: &'static str| event().body(body).dedup(json!({ "on_mismatch": "new-event" }));
    assert_eq!(one.outcome(&event("1")).await, Ok(AcceptedAs::Delivered));
    assert_eq!(one.outcome(&event("2")).await, Ok(AcceptedAs::Delivered));
    for replica in [&one, &other] {
        for body in ["1", "2"] {
            assert_eq!(replica.outcome(&event(body)).await, Ok(AcceptedAs::Duplicate), "{body}");
        }
    }
    let ids: Vec<String> = one.sink.stored().iter().map(|message| message.event.id.to_string()).collect();
    assert_eq!(ids[0], "header:x-test-id=1");
    assert!(ids[1].starts_with("header:x-test-id=1&body-sha256="), "{ids:?}");
}

#[tokio::test(start_paused = true)]
async fn events_without_an_id_are_dealt_with_as_their_source_says() {
    let (store, one, _) = replicas();
    let event =
        |policy: &str| TestEvent::new("").event_id(json!(["header:x-absent"])).dedup(json!({ "missing_id": policy }));
    assert_eq!(one.outcome(&TestEvent::new("").event_id(json!(["header:x-absent"]))).await, Ok(AcceptedAs::Delivered));
    assert_eq!(one.outcome(&event("body-sha256")).await, Ok(AcceptedAs::Duplicate), "that is the default");
    assert_eq!(one.outcome(&event("body-sha256").body("2")).await, Ok(AcceptedAs::Delivered));
    assert_eq!(one.outcome(&event("refuse")).await, Err(Refused::Malformed(Malformed::NoEventId)));
    let (operations, remembered) = (store.operations(), one.pipeline.dedup.memory.len());
    for _ in 0..2 {
        assert_eq!(one.outcome(&event("unique")).await, Ok(AcceptedAs::Delivered));
    }
    assert_eq!(store.operations(), operations, "nobody needs to know");
    assert_eq!(one.pipeline.dedup.memory.len(), remembered);
    // What stands in event_id gives way, so that a preset's end can be replaced.
    let preset_like = TestEvent::new("").event_id(json!(["header:x-absent", "body-sha256"]));
    let strict = preset_like.dedup(json!({ "missing_id": "refuse" }));
    assert_eq!(one.outcome(&strict).await, Err(Refused::Malformed(Malformed::NoEventId)));
}

#[tokio::test(start_paused = true)]
async fn an_answer_does_not_wait_for_its_commit_and_a_repeat_elsewhere_does() {
    let (store, one, other) = replicas();
    store.suffer(Fault::HoldsCommits);
    let answer = timeout(LIMIT, one.outcome(&event())).await.expect("in time");
    assert_eq!(answer, Ok(AcceptedAs::Delivered));
    assert_eq!(one.outcome(&event()).await, Ok(AcceptedAs::Duplicate), "this process knows it");
    let repeat = other.start(&event());
    wait_until(LIMIT, "the other has asked twice", async || other.recorder.count("dedup_operated") == 2).await;
    assert!(!repeat.is_finished());
    store.suffer(Fault::None);
    assert_eq!(repeat.await.expect("no panic"), Ok(AcceptedAs::Duplicate));
    assert!(other.sink.attempted().is_empty());
}

#[tokio::test(start_paused = true)]
async fn commits_are_told_together_while_one_is_on_its_way() {
    let (store, one, other) = replicas();
    store.suffer(Fault::HoldsCommits);
    let events: Vec<_> = (0..100).map(|id| TestEvent::new(&id.to_string())).collect();
    for event in &events {
        assert_eq!(one.outcome(event).await, Ok(AcceptedAs::Delivered));
    }
    store.suffer(Fault::None);
    one.has_told("commit", 2).await;
    for event in &events {
        assert_eq!(other.outcome(event).await, Ok(AcceptedAs::Duplicate));
    }
}

#[tokio::test(start_paused = true)]
async fn where_too_many_commits_wait_so_do_answers_and_none_is_forgotten() {
    let (store, one, _) = replicas();
    store.suffer(Fault::HoldsCommits);
    let running: Vec<_> = (0..TOO_MANY).map(|id| one.start(&TestEvent::new(&id.to_string()))).collect();
    wait_until(LIMIT, "all are published", async || one.sink.stored().len() == TOO_MANY).await;
    // This clock goes on only once nobody has anything to do.
    tokio::time::sleep(Duration::from_millis(10)).await;
    let answered = running.iter().filter(|event| event.is_finished()).count();
    assert!((4096..TOO_MANY - 50).contains(&answered), "{answered} are answered");
    store.suffer(Fault::None);
    for event in running {
        assert_eq!(event.await.expect("no panic"), Ok(AcceptedAs::Delivered));
    }
    wait_until(LIMIT, "all are known", async || store.accepted() == TOO_MANY).await;
}

#[tokio::test(start_paused = true)]
async fn answers_do_not_wait_for_long_where_too_many_commits_do() {
    let (store, one, _) = replicas();
    store.suffer(Fault::HoldsCommits);
    let begun = tokio::time::Instant::now();
    let running: Vec<_> = (0..TOO_MANY).map(|id| one.start(&TestEvent::new(&id.to_string()))).collect();
    for event in running {
        assert_eq!(event.await.expect("no panic"), Ok(AcceptedAs::Delivered));
    }
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    let given_up = one.recorder.count("dedup_operated operation=commit error=timeout");
    assert!((50..=TOO_MANY - 4096).contains(&given_up), "{given_up}");
    store.suffer(Fault::None);
    wait_until(LIMIT, "the others are known", async || store.accepted() == TOO_MANY - given_up).await;
}

#[tokio::test(start_paused = true)]
async fn the_store_is_told_of_what_is_queued_before_the_end() {
    let store = FakeStore::new();
    let observer: Arc<dyn Observer> = Arc::new(Recorder::default());
    let sink = FakeSink::new(SinkId::new(0, "first"));
    let routes = json!([{ "to": [{ "sink": "first" }] }]);
    let mut pipeline = event().pipeline(std::slice::from_ref(&sink), &routes, &observer);
    let (shared, settlers) = Shared::new(vec![Arc::clone(&store) as _], LEASE, observer);
    pipeline.dedup.shared = Some(shared);
    let pipeline = Arc::new(pipeline);
    let outcome = async |id| {
        let event = TestEvent::new(id);
        pipeline.spawn(Arc::new(event.source()), event.request()).await.expect("no panic")
    };
    assert!(outcome("accepted").await.is_ok());
    sink.answer_always(Answer::fail(PublishErrorKind::Rejected));
    for id in ["1", "2", "3"] {
        assert!(outcome(id).await.is_err());
    }
    assert_eq!((store.len(), store.accepted()), (4, 0));
    let stop = CancellationToken::new();
    stop.cancel();
    for settler in settlers {
        settler.run(stop.clone()).await;
    }
    assert_eq!((store.len(), store.accepted()), (1, 1));
}
