//! The suite itself under test: it holds for a sink that is right, and each flaw is found by a case.

use hookgate_core::sink::{PublishErrorKind, PublishReason};

use super::*;
use crate::{
    event::TestEvent,
    fake_sink::{Answer, FakeSink},
};

/// A broker in memory, right but for its flaw.
struct MemoryBroker {
    flaw: Flaw,
    deduplicates: bool,
    sink: Option<Arc<FakeSink>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// The last message is acknowledged and not stored.
    Forgets,
    /// Receipts name another place.
    LiesAboutPlaces,
    /// Every message is stored twice.
    Repeats,
    /// Bodies lose what no text has.
    MendsBodies,
    /// Bodies lose blanks at their end.
    TrimsBodies,
    /// One attribute is lost.
    LosesAttribute,
    /// What is not answered is said not to be stored.
    DeniesUnknown,
    /// A destination that does not exist is said to be welcome later.
    PostponesUnknownDestination,
    /// What the operator is told holds the password.
    ShowsSecret,
}

impl MemoryBroker {
    fn right(deduplicates: bool) -> Self {
        Self { flaw: Flaw::None, deduplicates, sink: None }
    }

    fn flawed(flaw: Flaw) -> Self {
        Self { flaw, deduplicates: true, sink: None }
    }

    fn made(&self) -> &FakeSink {
        self.sink.as_ref().expect("the sink is made before its faults")
    }
}

impl Broker for MemoryBroker {
    fn target(&self) -> Target {
        Target::Whole
    }

    async fn sink(&mut self, id: SinkId, _: Arc<dyn Observer>) -> Arc<dyn Sink> {
        let sink = if self.deduplicates { FakeSink::deduplicating(id) } else { FakeSink::new(id) };
        self.sink = Some(sink.clone());
        sink
    }

    async fn stored(&mut self) -> Vec<Stored> {
        let mut messages = self.made().stored();
        match self.flaw {
            Flaw::Forgets => drop(messages.pop()),
            Flaw::Repeats => messages.extend(messages.clone()),
            _ => {}
        }
        let shift = u64::from(self.flaw == Flaw::LiesAboutPlaces);
        let found = |(place, message): (usize, &Message)| {
            let mut metadata = Metadata::of(message);
            let mut body = message.event.body.clone();
            match self.flaw {
                Flaw::LosesAttribute => drop(metadata.attributes.pop_last()),
                Flaw::MendsBodies => body = String::from_utf8_lossy(&body).into_owned().into(),
                Flaw::TrimsBodies => body = body.trim_ascii_end().to_vec().into(),
                _ => {}
            }
            Stored {
                target: Target::Whole,
                broker_id: self.deduplicates.then(|| message.broker_id()),
                position: Some(("memory".to_owned(), place as u64 + shift)),
                metadata,
                body,
            }
        };
        messages.iter().enumerate().map(found).collect()
    }

    fn unroutable(&self) -> Result<Target, Inapplicable> {
        Err(Inapplicable("it has one place"))
    }

    async fn silent(&mut self) -> Result<Target, Inapplicable> {
        Err(Inapplicable("it has one place"))
    }

    async fn remove_destination(&mut self) -> Result<(), Inapplicable> {
        let kind = match self.flaw {
            Flaw::PostponesUnknownDestination => PublishErrorKind::Unavailable,
            _ => PublishErrorKind::Misconfigured,
        };
        self.made().answer_always(Answer::Fail(kind, PublishReason::NoDestination));
        Ok(())
    }

    async fn restore_destination(&mut self) {
        self.made().forget_stored();
        self.made().answer_always(Answer::Ack);
    }

    fn body_bytes_too_large(&self) -> Result<usize, Inapplicable> {
        Err(Inapplicable("it takes everything"))
    }

    async fn bad_credentials(&mut self, _: SinkId, _: Arc<dyn Observer>) -> Result<BadCredentials, Inapplicable> {
        let shown = if self.flaw == Flaw::ShowsSecret { "hunter2" } else { "user" };
        Ok(BadCredentials::NotConnected(format!("not authorised: {shown}").into()))
    }

    async fn kill(&mut self) -> Result<(), Inapplicable> {
        Err(Inapplicable("it is part of this process"))
    }

    async fn restart(&mut self) {}

    async fn pause(&mut self) -> Result<(), Inapplicable> {
        let kind = match self.flaw {
            Flaw::DeniesUnknown => PublishErrorKind::Unavailable,
            _ => PublishErrorKind::Unknown,
        };
        self.made().answer_always(Answer::Fail(kind, PublishReason::Timeout));
        Ok(())
    }

    async fn resume(&mut self) {
        self.made().answer_always(Answer::Ack);
    }

    fn proxy(&self) -> Result<Arc<FaultProxy>, Inapplicable> {
        Err(Inapplicable("it has no network"))
    }

    fn secrets(&self) -> Result<Vec<String>, Inapplicable> {
        Ok(vec!["hunter2".to_owned()])
    }

    fn printed(&self) -> Vec<String> {
        vec![format!("{:?}", self.made())]
    }
}

macro_rules! suite_on_memory {
    ($broker:expr) => {
        crate::conformance_suite!(
            $broker,
            inapplicable = [
                unroutable_is_refused,
                too_large_is_rejected_not_retried,
                a_broker_that_is_down_is_unavailable_before_the_deadline,
                no_receipt_when_the_connection_dies_before_the_ack,
                a_stalled_publish_does_not_delay_others,
                publishes_again_after_a_broker_restart,
                a_thousand_in_parallel_through_a_lossy_proxy_lose_nothing,
            ]
        );
    };
}

mod on_one_that_deduplicates {
    use super::*;
    suite_on_memory!(MemoryBroker::right(true));
}

mod on_one_that_does_not {
    use super::*;
    suite_on_memory!(MemoryBroker::right(false));
}

/// Asserts that `case` fails for each of `flaws`.
macro_rules! finds {
    ($case:ident, $($flaw:ident),+) => {
        $(
            let mut broker = MemoryBroker::flawed(Flaw::$flaw);
            let local = tokio::task::LocalSet::new();
            let found = local.spawn_local(async move { cases::$case(&mut broker, Layer::Sink).await });
            local.await;
            assert!(found.await.is_err(), "{} finds {:?}", stringify!($case), Flaw::$flaw);
        )+
    };
}

#[tokio::test]
async fn every_flaw_is_found() {
    finds!(a_receipt_means_that_a_new_consumer_can_read_it, Forgets, LiesAboutPlaces);
    finds!(bodies_are_byte_exact, MendsBodies, TrimsBodies, Forgets, Repeats);
    finds!(metadata_makes_the_round_trip, LosesAttribute);
    finds!(the_same_id_twice_is_stored_once_if_capable, Repeats);
    finds!(a_thousand_in_parallel_lose_nothing, Forgets, Repeats);
    finds!(a_deadline_without_an_answer_is_unknown, DeniesUnknown);
    finds!(an_unknown_destination_is_refused, PostponesUnknownDestination);
    finds!(bad_credentials_are_misconfigured, ShowsSecret);
    finds!(close_waits_for_accepted_work, Forgets);
}

#[tokio::test]
async fn a_case_is_skipped_only_if_that_is_declared() {
    let skipped = async || Err(Inapplicable("it has no network"));
    hold_to_declaration("x", &["x"], skipped()).await;
    hold_to_declaration("x", &[], async { Ok(()) }).await;
    let undeclared = tokio::spawn(hold_to_declaration("x", &[], async { Err(Inapplicable("why")) }));
    assert!(undeclared.await.is_err());
    let stale = tokio::spawn(hold_to_declaration("x", &["x"], async { Ok(()) }));
    assert!(stale.await.is_err());
}

#[test]
fn headers_say_all_that_core_knows() {
    let message = cases::event_with_everything().to(&SinkId::new(0, "s"), &Target::Whole);
    let mut headers = Vec::new();
    message.for_each_header(|name, value| headers.push((name.to_owned(), value.to_owned())));
    let pairs = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    assert_eq!(Metadata::from_headers(pairs), Metadata::of(&message));
}

#[test]
fn an_event_has_its_time_to_the_millisecond() {
    let at = UNIX_EPOCH + Duration::new(1_700_000_000, 123_999_999);
    let message = TestEvent::new("1").received_at(at).to(&SinkId::new(0, "s"), &Target::Whole);
    let to_the_millisecond = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    assert_eq!(Metadata::of(&message).received_at, to_the_millisecond);
}
