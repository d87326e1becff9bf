//! What each worker has for itself.

use std::{sync::Arc, thread, time::Duration};

use hookgate_core::{
    event::SinkId,
    limits::Deadline,
    message::Message,
    sink::{PublishErrorKind, PublishReason, Sink, Target},
    worker::{self, Each},
};
use hookgate_testkit::{
    event::TestEvent,
    fake_sink::{Answer, FakeSink},
};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn each_worker_has_its_own_and_other_threads_the_first() {
    let letters = Each::new(vec!['a', 'b']);
    let seen_by = |number: Option<usize>| {
        let letters = letters.clone();
        let looking = thread::spawn(move || {
            if let Some(number) = number {
                worker::be(number);
            }
            *letters.here()
        });
        looking.join().expect("no panic")
    };
    assert_eq!([Some(0), Some(1), None, Some(7)].map(seen_by), ['a', 'b', 'a', 'a']);
}

/// Three workers' sinks, and all of them as one.
fn sinks() -> (Vec<Arc<FakeSink>>, Each<Arc<dyn Sink>>) {
    let sinks: Vec<_> = (0..3).map(|_| FakeSink::new(SinkId::new(0, "sink"))).collect();
    let all = sinks.iter().map(|sink| Arc::clone(sink) as Arc<dyn Sink>).collect();
    (sinks, Each::new(all))
}

fn message() -> Message {
    TestEvent::new("1").to(&SinkId::new(0, "sink"), &Target::Whole)
}

fn attempts(sinks: &[Arc<FakeSink>]) -> Vec<usize> {
    sinks.iter().map(|sink| sink.attempted().len()).collect()
}

#[tokio::test]
async fn while_the_connection_of_a_worker_is_lost_its_messages_go_over_anothers() {
    let (sinks, all) = sinks();
    let message = message();
    let _ = all.publish(&message, Deadline::after(LIMIT)).await.expect("stored");
    assert_eq!(attempts(&sinks), [1, 0, 0]);
    let lost = Answer::Fail(PublishErrorKind::Unavailable, PublishReason::ConnectionLost);
    sinks[0].answer_always(lost.clone());
    sinks[1].answer_always(lost.clone());
    let _ = all.publish(&message, Deadline::after(LIMIT)).await.expect("stored");
    assert_eq!(attempts(&sinks), [2, 1, 1]);
    sinks[2].answer_always(lost);
    let error = all.publish(&message, Deadline::after(LIMIT)).await.expect_err("all are lost");
    assert_eq!((error.kind, error.reason), (PublishErrorKind::Unavailable, PublishReason::ConnectionLost));
}

#[tokio::test]
async fn what_may_be_stored_or_was_refused_goes_over_no_other_connection() {
    let (sinks, all) = sinks();
    let message = message();
    for (kind, reason) in [
        (PublishErrorKind::Unknown, PublishReason::ConnectionLost),
        (PublishErrorKind::Unavailable, PublishReason::Full),
        (PublishErrorKind::Throttled, PublishReason::Throttled),
        (PublishErrorKind::Rejected, PublishReason::TooLarge),
    ] {
        sinks[0].answer_next([Answer::Fail(kind, reason)]);
        let error = all.publish(&message, Deadline::after(LIMIT)).await.expect_err("as it was told");
        assert_eq!((error.kind, error.reason), (kind, reason));
    }
    assert_eq!(attempts(&sinks), [4, 0, 0]);
}

#[tokio::test]
async fn all_are_closed() {
    let (sinks, all) = sinks();
    all.close(Deadline::after(LIMIT)).await;
    assert!(sinks.iter().all(|sink| sink.is_closed()));
}
