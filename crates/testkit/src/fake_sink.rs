//! A sink in memory that does as it is told: for tests of what stands around a sink.

use std::{
    collections::VecDeque,
    fmt,
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::BoxFuture;
use hookgate_core::{
    event::SinkId,
    limits::Deadline,
    message::Message,
    sink::{Addressing, Capabilities, Position, PublishError, PublishErrorKind, PublishReason, Receipt, Sink},
};
use tokio::sync::Notify;

/// What a [`FakeSink`] does with one attempt to publish.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Stores the message and acknowledges it.
    Ack,
    /// The same, once somebody has called [`Notify::notify_one`] or `notify_waiters`.
    AckAfter(Arc<Notify>),
    /// Fails and stores nothing.
    Fail(PublishErrorKind, PublishReason),
    /// Stores the message, and fails all the same: what a lost acknowledgement looks like.
    StoreAndFail(PublishErrorKind, PublishReason),
    /// Stores nothing and never answers, deadline or not.
    Hang,
    /// Stores the message and never answers, deadline or not.
    StoreAndHang,
    /// Panics: what a bug in a sink looks like.
    Panic,
}

impl Answer {
    /// Fails with `kind` for another reason than those that have a name.
    pub fn fail(kind: PublishErrorKind) -> Self {
        Self::Fail(kind, PublishReason::Other)
    }
}

/// A scriptable sink. It acknowledges everything until it is told otherwise or closed.
pub struct FakeSink {
    id: SinkId,
    addressing: Addressing,
    deduplicates: bool,
    state: Mutex<State>,
}

struct State {
    /// For the next attempts, one each.
    script: VecDeque<Answer>,
    /// For those after the script.
    otherwise: Answer,
    attempted: Vec<Message>,
    stored: Vec<Message>,
    closed: bool,
}

impl FakeSink {
    /// A sink with one place, which stores a repeated id twice.
    pub fn new(id: SinkId) -> Arc<Self> {
        Self::with(id, Addressing::None, false)
    }

    /// A sink with one place, which stores a repeated id once.
    pub fn deduplicating(id: SinkId) -> Arc<Self> {
        Self::with(id, Addressing::None, true)
    }

    /// A sink with subjects, which stores a repeated id once.
    pub fn with_subjects(id: SinkId) -> Arc<Self> {
        Self::with(id, Addressing::Subject, true)
    }

    fn with(id: SinkId, addressing: Addressing, deduplicates: bool) -> Arc<Self> {
        let state = State {
            script: VecDeque::new(),
            otherwise: Answer::Ack,
            attempted: Vec::new(),
            stored: Vec::new(),
            closed: false,
        };
        Arc::new(Self { id, addressing, deduplicates, state: Mutex::new(state) })
    }

    /// Gives these answers to the next attempts, in this order.
    pub fn answer_next(&self, answers: impl IntoIterator<Item = Answer>) {
        self.state().script.extend(answers);
    }

    /// Gives this answer from now on, after those of [`Self::answer_next`]; probes are answered alike.
    pub fn answer_always(&self, answer: Answer) {
        self.state().otherwise = answer;
    }

    /// Its name.
    pub fn id(&self) -> &SinkId {
        &self.id
    }

    /// What its destinations name.
    pub fn addressing(&self) -> Addressing {
        self.addressing
    }

    /// Every message that it was ever given, repeats included.
    pub fn attempted(&self) -> Vec<Message> {
        self.state().attempted.clone()
    }

    /// What it holds.
    pub fn stored(&self) -> Vec<Message> {
        self.state().stored.clone()
    }

    /// Forgets what it holds, as a destination that is removed and made anew.
    pub fn forget_stored(&self) {
        self.state().stored.clear();
    }

    /// Forgets every message, and with them the places in flight that they hold.
    pub fn clear(&self) {
        let mut state = self.state();
        state.attempted.clear();
        state.stored.clear();
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_answer(&self, message: &Message) -> Answer {
        let mut state = self.state();
        state.attempted.push(message.clone());
        state.script.pop_front().unwrap_or_else(|| state.otherwise.clone())
    }

    fn store(&self, message: &Message) -> Receipt {
        let mut state = self.state();
        let id = message.broker_id();
        let known = state.stored.iter().position(|stored| self.deduplicates && stored.broker_id() == id);
        let offset = known.unwrap_or(state.stored.len());
        if known.is_none() {
            state.stored.push(message.clone());
        }
        let position = Position { place: "memory".into(), offset: offset as u64, duplicate: known.is_some() };
        Receipt::acknowledged(message, position)
    }

    fn failure(&self, kind: PublishErrorKind, reason: PublishReason) -> PublishError {
        PublishError::new(&self.id, kind, reason).because("told to fail or closed")
    }

    async fn answer(&self, message: &Message) -> Result<Receipt, PublishError> {
        if self.is_closed() {
            return Err(self.failure(PublishErrorKind::Unavailable, PublishReason::Other));
        }
        match self.next_answer(message) {
            Answer::Ack => Ok(self.store(message)),
            Answer::AckAfter(told) => {
                told.notified().await;
                Ok(self.store(message))
            }
            Answer::Fail(kind, reason) => Err(self.failure(kind, reason)),
            Answer::StoreAndFail(kind, reason) => {
                let _lost = self.store(message);
                Err(self.failure(kind, reason))
            }
            Answer::Hang => pending().await,
            Answer::StoreAndHang => {
                let _lost = self.store(message);
                pending().await
            }
            Answer::Panic => panic!("told to panic"),
        }
    }
}

impl Sink for FakeSink {
    fn capabilities(&self) -> Capabilities {
        Capabilities { deduplicates: self.deduplicates }
    }

    fn publish<'a>(&'a self, message: &'a Message, _: Deadline) -> BoxFuture<'a, Result<Receipt, PublishError>> {
        Box::pin(self.answer(message))
    }

    fn probe(&self, _: Deadline) -> BoxFuture<'_, Result<(), PublishError>> {
        let answer = self.state().otherwise.clone();
        Box::pin(async move {
            match answer {
                Answer::Ack | Answer::AckAfter(_) => Ok(()),
                Answer::Fail(kind, reason) | Answer::StoreAndFail(kind, reason) => Err(self.failure(kind, reason)),
                Answer::Hang | Answer::StoreAndHang => pending().await,
                Answer::Panic => panic!("told to panic"),
            }
        })
    }

    fn close(&self, _: Deadline) -> BoxFuture<'_, ()> {
        self.state().closed = true;
        Box::pin(async {})
    }
}

impl fmt::Debug for FakeSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        let (attempted, stored) = (state.attempted.len(), state.stored.len());
        f.debug_struct("FakeSink")
            .field("id", &self.id)
            .field("attempted", &attempted)
            .field("stored", &stored)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hookgate_core::sink::Target;

    use super::*;
    use crate::event::TestEvent;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_millis(50))
    }

    #[tokio::test]
    async fn a_script_is_followed_and_then_everything_is_acknowledged() {
        let sink = FakeSink::new(SinkId::new(0, "fake"));
        sink.answer_next([Answer::fail(PublishErrorKind::Throttled), Answer::StoreAndHang]);
        let message = TestEvent::new("1").to(sink.id(), &Target::Whole);
        let failed = sink.publish(&message, soon()).await.expect_err("told to fail");
        assert_eq!(failed.kind, PublishErrorKind::Throttled);
        assert!(soon().bound(sink.publish(&message, soon())).await.is_err(), "told to hang");
        assert_eq!((sink.attempted().len(), sink.stored().len()), (2, 1));
        let receipt = sink.publish(&message, soon()).await.expect("the script is over");
        assert_eq!(receipt.position().offset, 1, "it does not deduplicate");
    }

    #[tokio::test]
    async fn an_acknowledgement_can_be_held_back() {
        let sink = FakeSink::deduplicating(SinkId::new(0, "fake"));
        let told = Arc::new(Notify::new());
        sink.answer_next([Answer::AckAfter(Arc::clone(&told))]);
        let message = TestEvent::new("1").to(sink.id(), &Target::Whole);
        let mut publish = sink.publish(&message, soon());
        assert!(soon().bound(&mut publish).await.is_err(), "nobody has told it");
        told.notify_one();
        assert!(!publish.await.expect("told to acknowledge").position().duplicate);
        let again = sink.publish(&message, soon()).await.expect("acknowledged");
        assert!(again.position().duplicate);
    }
}
