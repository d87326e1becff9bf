//! The pipeline as a whole, with sinks that do as they are told: what is answered, what is remembered, what is published.

use std::{sync::Arc, time::Duration};

use hookgate_core::{
    event::SinkId,
    handoff::{Accepted, AcceptedAs, Answered, Miss, Refused},
    limits::{Deadline, Turns},
    observe::Observer,
    pipeline::Pipeline,
    sink::{PublishErrorKind, PublishReason},
};
use hookgate_testkit::{
    event::TestEvent,
    fake_sink::{Answer, FakeSink},
    process::wait_until,
    recorder::Recorder,
};
use serde_json::{Value, json};
use tokio::sync::Notify;

const LIMIT: Duration = Duration::from_secs(10);

struct Bench {
    pipeline: Arc<Pipeline>,
    recorder: Arc<Recorder>,
}

impl Bench {
    fn new(sinks: &[Arc<FakeSink>], routes: &Value) -> Self {
        let recorder = Arc::new(Recorder::default());
        let observer: Arc<dyn Observer> = Arc::clone(&recorder) as _;
        Self { pipeline: Arc::new(TestEvent::new("any").pipeline(sinks, routes, &observer)), recorder }
    }

    /// One sink that every event goes to.
    fn with(sink: &Arc<FakeSink>) -> Self {
        Self::new(std::slice::from_ref(sink), &json!([{ "to": [{ "sink": sink.id().name() }] }]))
    }

    async fn send(&self, event: &TestEvent) -> Result<Accepted, Refused> {
        match self.pipeline.spawn(Arc::new(event.source()), event.request()).await.expect("no panic")? {
            Answered::Accepted(accepted) => Ok(accepted),
            Answered::Handshake(reply) => panic!("an event is no handshake: {reply:?}"),
        }
    }

    async fn outcome(&self, event: &TestEvent) -> Result<AcceptedAs, Refused> {
        self.send(event).await.map(|accepted| accepted.as_what())
    }
}

fn sink() -> Arc<FakeSink> {
    FakeSink::new(SinkId::new(0, "first"))
}

#[tokio::test(start_paused = true)]
async fn a_repeat_is_published_once_and_accepted_twice() {
    let sink = sink();
    let bench = Bench::with(&sink);
    assert_eq!(bench.outcome(&TestEvent::new("1")).await, Ok(AcceptedAs::Delivered));
    assert_eq!(bench.outcome(&TestEvent::new("1")).await, Ok(AcceptedAs::Duplicate));
    assert_eq!(sink.stored().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_publish_is_not_remembered() {
    let sink = sink();
    let bench = Bench::with(&sink);
    for (kind, miss) in [
        (PublishErrorKind::Rejected, Miss::Rejected),
        (PublishErrorKind::Misconfigured, Miss::Unavailable),
        (PublishErrorKind::Unavailable, Miss::Unavailable),
        (PublishErrorKind::Throttled, Miss::Unavailable),
        (PublishErrorKind::Unknown, Miss::Unknown),
    ] {
        sink.answer_always(Answer::fail(kind));
        assert_eq!(bench.outcome(&TestEvent::new("1")).await, Err(Refused::NotHandedOff(miss)), "{kind:?}");
        assert!(bench.pipeline.dedup.memory.is_empty(), "{kind:?} leaves no trace");
    }
    sink.answer_always(Answer::Ack);
    assert_eq!(bench.outcome(&TestEvent::new("1")).await, Ok(AcceptedAs::Delivered));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_authenticated_leaves_no_trace() {
    let sink = sink();
    let bench = Bench::with(&sink);
    let event = TestEvent::new("1");
    let stranger = TestEvent::new("1").header("authorization", "Bearer again");
    let refused = bench.pipeline.spawn(Arc::new(event.source()), stranger.request()).await.expect("no panic");
    assert!(matches!(refused, Err(Refused::Unauthenticated(_))), "{refused:?}");
    assert!(bench.pipeline.dedup.memory.is_empty());
    assert_eq!(sink.attempted().len(), 0);
    assert_eq!(bench.recorder.count("event_received"), 0);
}

#[tokio::test(start_paused = true)]
async fn transient_failures_are_retried_within_the_deadline() {
    let sink = sink();
    let bench = Bench::with(&sink);
    sink.answer_next([Answer::fail(PublishErrorKind::Unavailable), Answer::fail(PublishErrorKind::Throttled)]);
    assert_eq!(bench.outcome(&TestEvent::new("1")).await, Ok(AcceptedAs::Delivered));
    assert_eq!(sink.attempted().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_retried_only_where_the_broker_drops_the_repeat() {
    let (plain, dedup) = (sink(), FakeSink::deduplicating(SinkId::new(0, "first")));
    for sink in [&plain, &dedup] {
        sink.answer_next([Answer::StoreAndFail(PublishErrorKind::Unknown, PublishReason::Timeout)]);
    }
    assert_eq!(Bench::with(&plain).outcome(&TestEvent::new("1")).await, Err(Refused::NotHandedOff(Miss::Unknown)));
    assert_eq!(Bench::with(&dedup).outcome(&TestEvent::new("1")).await, Ok(AcceptedAs::Delivered));
    assert_eq!((plain.stored().len(), dedup.stored().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn once_unknown_stays_unknown_whatever_comes_after() {
    let sink = FakeSink::deduplicating(SinkId::new(0, "first"));
    let bench = Bench::with(&sink);
    sink.answer_next([Answer::fail(PublishErrorKind::Unknown)]);
    sink.answer_always(Answer::fail(PublishErrorKind::Unavailable));
    assert_eq!(bench.outcome(&TestEvent::new("1")).await, Err(Refused::NotHandedOff(Miss::Unknown)));
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_never_answers_is_left_at_the_deadline() {
    let sink = sink();
    let bench = Bench::with(&sink);
    sink.answer_always(Answer::Hang);
    let begun = tokio::time::Instant::now();
    assert_eq!(bench.outcome(&TestEvent::new("1")).await, Err(Refused::NotHandedOff(Miss::Unknown)));
    assert_eq!(begun.elapsed().as_millis() / 10, 250, "at the reply deadline of 2.5 s");
}

#[tokio::test(start_paused = true)]
async fn events_with_short_bodies_go_past_long_ones_that_wait_for_their_turn() {
    let bench = Bench::with(&sink());
    let (long, short) = (TestEvent::new("long").body(vec![b'x'; Turns::BODY_BYTES_MIN]), TestEvent::new("short"));
    let turn = hold_turn(&bench).await;
    let mut waiting = std::pin::pin!(bench.outcome(&long));
    tokio::select! {
        biased;
        outcome = &mut waiting => panic!("it has not had its turn: {outcome:?}"),
        outcome = bench.outcome(&short) => assert_eq!(outcome, Ok(AcceptedAs::Delivered)),
    }
    for _ in 0..50 {
        // The work would be done on another thread, whose time goes on.
        std::thread::sleep(Duration::from_millis(1));
        assert!(futures_util::poll!(&mut waiting).is_pending(), "it has not had its turn");
        tokio::task::yield_now().await;
    }
    drop(turn);
    assert_eq!(waiting.await, Ok(AcceptedAs::Delivered));
}

#[tokio::test(start_paused = true)]
async fn a_turn_is_waited_for_no_longer_than_the_deadline() {
    let bench = Bench::with(&sink());
    let _turn = hold_turn(&bench).await;
    let long = TestEvent::new("1").body(vec![b'x'; Turns::BODY_BYTES_MIN]);
    let mut waiting = std::pin::pin!(bench.outcome(&long));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    tokio::task::yield_now().await;
    // The reply deadline is 2.5 s.
    tokio::time::advance(Duration::from_millis(2490)).await;
    assert!(futures_util::poll!(&mut waiting).is_pending());
    tokio::time::advance(Duration::from_millis(20)).await;
    let _outcome = waiting.await;
}

/// Takes the only turn, until what it returns is dropped.
async fn hold_turn(bench: &Bench) -> std::sync::mpsc::Sender<()> {
    let (turn, held) = std::sync::mpsc::channel::<()>();
    let (has_it, it_has) = tokio::sync::oneshot::channel();
    let turns = Arc::clone(&bench.pipeline.turns);
    let hold = move || {
        has_it.send(()).expect("it is waited for");
        let _ended = held.recv();
    };
    tokio::spawn(async move { turns.run(usize::MAX, Deadline::after(LIMIT), hold).await });
    it_has.await.expect("it takes it");
    turn
}

#[tokio::test(start_paused = true)]
async fn a_twin_waits_for_the_first_and_is_a_duplicate_of_it() {
    let (sink, told) = (sink(), Arc::new(Notify::new()));
    let bench = Arc::new(Bench::with(&sink));
    sink.answer_next([Answer::AckAfter(Arc::clone(&told))]);
    let twins: Vec<_> = (0..20)
        .map(|_| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move { bench.outcome(&TestEvent::new("1")).await })
        })
        .collect();
    wait_until(LIMIT, "the twins wait", async || bench.recorder.count("dedup_checked result=in_progress") == 19).await;
    told.notify_one();
    let mut delivered = 0;
    for twin in twins {
        delivered += usize::from(twin.await.expect("no panic").expect("accepted") == AcceptedAs::Delivered);
    }
    assert_eq!((delivered, sink.stored().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn when_the_first_fails_one_twin_takes_over() {
    let (sink, told) = (sink(), Arc::new(Notify::new()));
    let bench = Arc::new(Bench::with(&sink));
    sink.answer_next([Answer::fail(PublishErrorKind::Rejected), Answer::AckAfter(Arc::clone(&told))]);
    told.notify_one();
    let event = TestEvent::new("1");
    let (first, second) = tokio::join!(bench.outcome(&event), bench.outcome(&event));
    assert_eq!(first, Err(Refused::NotHandedOff(Miss::Rejected)));
    assert_eq!(second, Ok(AcceptedAs::Delivered));
    assert_eq!(sink.stored().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_twin_of_one_that_does_not_end_is_told_to_come_back_and_never_2xx() {
    let sink = sink();
    let bench = Arc::new(Bench::with(&sink));
    sink.answer_next([Answer::Hang]);
    let first = tokio::spawn({
        let bench = Arc::clone(&bench);
        async move { bench.outcome(&TestEvent::new("1")).await }
    });
    wait_until(LIMIT, "the first is in flight", async || sink.attempted().len() == 1).await;
    let mut hasty = Bench::with(&sink);
    let pipeline = Arc::get_mut(&mut hasty.pipeline).expect("not shared yet");
    pipeline.dedup.memory = Arc::clone(&bench.pipeline.dedup.memory);
    pipeline.reply_deadline = Duration::from_millis(100);
    assert_eq!(hasty.outcome(&TestEvent::new("1")).await, Err(Refused::InProgress));
    assert_eq!(first.await.expect("no panic"), Err(Refused::NotHandedOff(Miss::Unknown)));
}

#[tokio::test(start_paused = true)]
async fn a_required_leg_decides_and_a_best_effort_leg_does_not() {
    let (first, second) = (sink(), FakeSink::new(SinkId::new(1, "second")));
    let routes = json!([{ "to": [{ "sink": "first" }, { "sink": "second", "required": false }] }]);
    let bench = Bench::new(&[Arc::clone(&first), Arc::clone(&second)], &routes);
    second.answer_always(Answer::Hang);
    let begun = tokio::time::Instant::now();
    assert_eq!(bench.outcome(&TestEvent::new("1")).await, Ok(AcceptedAs::Delivered));
    assert_eq!(begun.elapsed(), Duration::ZERO, "the answer does not wait for it");
    second.answer_always(Answer::Ack);
    first.answer_always(Answer::fail(PublishErrorKind::Rejected));
    assert_eq!(bench.outcome(&TestEvent::new("2")).await, Err(Refused::NotHandedOff(Miss::Rejected)));
    bench.pipeline.tasks.close();
    bench.pipeline.tasks.wait().await;
    assert_eq!(bench.recorder.count("publish_finished sink=second"), 2, "and it is seen to its end");
}

#[tokio::test(start_paused = true)]
async fn every_required_leg_must_have_the_event() {
    let (first, second) = (sink(), FakeSink::new(SinkId::new(1, "second")));
    let routes = json!([{ "to": [{ "sink": "first" }] }, { "to": [{ "sink": "second" }, { "sink": "first" }] }]);
    let bench = Bench::new(&[Arc::clone(&first), Arc::clone(&second)], &routes);
    second.answer_next([Answer::fail(PublishErrorKind::Misconfigured)]);
    assert_eq!(bench.outcome(&TestEvent::new("1")).await, Err(Refused::NotHandedOff(Miss::Unavailable)));
    assert_eq!(bench.outcome(&TestEvent::new("1")).await, Ok(AcceptedAs::Delivered), "not remembered");
    assert_eq!((first.stored().len(), second.stored().len()), (2, 1), "two routes to one place are one message");
}

#[tokio::test(start_paused = true)]
async fn two_subjects_of_one_sink_have_two_broker_ids() {
    let sink = FakeSink::with_subjects(SinkId::new(0, "js"));
    let routes = json!([{ "to": [{ "sink": "js", "subject": "a" }, { "sink": "js", "subject": "b" }] }]);
    let bench = Bench::new(std::slice::from_ref(&sink), &routes);
    assert_eq!(bench.outcome(&TestEvent::new("1")).await, Ok(AcceptedAs::Delivered));
    assert_eq!(sink.stored().len(), 2, "the broker drops neither");
}

#[tokio::test]
async fn a_panic_in_a_sink_releases_the_claim_and_is_counted() {
    let sink = sink();
    let bench = Bench::with(&sink);
    sink.answer_next([Answer::Panic]);
    let event = TestEvent::new("1");
    let panicked = bench.pipeline.spawn(Arc::new(event.source()), event.request()).await;
    assert!(panicked.is_err_and(|error| error.is_panic()));
    assert!(bench.pipeline.dedup.memory.is_empty());
    assert_eq!(bench.recorder.lines().iter().filter(|line| line.contains("outcome=failed")).count(), 1);
    assert_eq!(bench.outcome(&event).await, Ok(AcceptedAs::Delivered));
}

#[tokio::test(start_paused = true)]
async fn every_received_event_finishes_exactly_once() {
    let sink = sink();
    let bench = Bench::with(&sink);
    sink.answer_next([Answer::fail(PublishErrorKind::Rejected), Answer::fail(PublishErrorKind::Unknown)]);
    for id in ["1", "1", "2", "2", "3", ""] {
        let _any = bench.outcome(&TestEvent::new(id)).await;
    }
    assert_eq!(bench.recorder.count("event_received"), 6);
    assert_eq!(bench.recorder.count("event_finished"), 6);
}
