//! The layers around a sink: a bound on what is in flight, retries within the deadline, and observation.
//!
//! A sink makes one attempt; this decides whether there is another. Each sink has its own bound, so that a stalled one
//! holds up nobody else's messages.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

use crate::{
    event::SinkId,
    limits::Deadline,
    message::Message,
    observe::{AttemptResult, Observation, Observer},
    sink::{PublishError, PublishErrorKind, PublishReason, Receipt, Sink},
};

/// A sink with its layers.
pub struct Publisher {
    id: SinkId,
    sink: Arc<dyn Sink>,
    in_flight: Semaphore,
    observer: Arc<dyn Observer>,
}

/// First pause between attempts; doubled each time. Short, since most faults that pass at all pass at once.
const PAUSE_MIN: Duration = Duration::from_millis(25);

/// Longest pause between attempts. A reply deadline of seconds leaves room for several.
const PAUSE_MAX: Duration = Duration::from_millis(400);

impl Publisher {
    /// Wraps `sink`, to hold at most `in_flight_max` messages at once.
    pub fn new(id: SinkId, sink: Arc<dyn Sink>, in_flight_max: usize, observer: Arc<dyn Observer>) -> Self {
        Self { id, sink, in_flight: Semaphore::new(in_flight_max.min(Semaphore::MAX_PERMITS)), observer }
    }

    /// The sink's name.
    pub fn id(&self) -> &SinkId {
        &self.id
    }

    /// The sink itself, to probe and to close.
    pub fn sink(&self) -> &Arc<dyn Sink> {
        &self.sink
    }

    /// Publishes `message`, with as many attempts as fit before `deadline` and can help.
    ///
    /// # Errors
    /// The last attempt's error; `Unknown` when any attempt may have stored the message and none was acknowledged.
    ///
    /// # Cancel safety
    /// Dropping the future after the first poll is the same as `Unknown`.
    pub async fn publish(&self, message: &Message, deadline: Deadline) -> Result<Receipt, PublishError> {
        self.observer.observe(&Observation::PublishStarted { sink: &self.id });
        let published = self.publish_within_bound(message, deadline).await;
        let (error, required) = (published.as_ref().err(), message.leg.required);
        self.observer.observe(&Observation::PublishFinished { sink: &self.id, error, required });
        published
    }

    async fn publish_within_bound(&self, message: &Message, deadline: Deadline) -> Result<Receipt, PublishError> {
        let full = || PublishError::new(&self.id, PublishErrorKind::Throttled, PublishReason::Throttled);
        let _permit = match deadline.bound(self.in_flight.acquire()).await {
            Ok(permit) => permit.map_err(|closed| full().because(closed))?,
            Err(elapsed) => return Err(full().because(elapsed)),
        };
        let mut pause = PAUSE_MIN;
        let mut may_be_stored = false;
        for number in 1_u32.. {
            let mut error = match self.attempt(number, message, deadline).await {
                Ok(receipt) => return Ok(receipt),
                Err(error) => error,
            };
            may_be_stored |= error.kind == PublishErrorKind::Unknown;
            let repeat_is_harmless = self.sink.capabilities().deduplicates;
            let again = error.kind.is_transient() || (error.kind == PublishErrorKind::Unknown && repeat_is_harmless);
            // Half to the whole of the pause, so that what failed together does not return together.
            let jittered = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
            if !again || deadline.remaining() <= jittered {
                if may_be_stored {
                    error.kind = PublishErrorKind::Unknown;
                }
                return Err(error);
            }
            sleep(jittered).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        unreachable!("the deadline comes before the last number")
    }

    async fn attempt(&self, number: u32, message: &Message, deadline: Deadline) -> Result<Receipt, PublishError> {
        let started = Instant::now();
        // A sink keeps the deadline itself; this is the wall behind it.
        let attempt = match deadline.bound(self.sink.publish(message, deadline)).await {
            Ok(attempt) => attempt,
            Err(elapsed) => {
                Err(PublishError::new(&self.id, PublishErrorKind::Unknown, PublishReason::Timeout).because(elapsed))
            }
        };
        let result = match &attempt {
            Ok(receipt) if receipt.position().duplicate => AttemptResult::AckedDuplicate,
            Ok(_) => AttemptResult::Acked,
            Err(error) => error.reason.into(),
        };
        self.observer.observe(&Observation::PublishAttempted {
            sink: &self.id,
            attempt: number,
            result,
            elapsed: started.elapsed(),
        });
        attempt
    }
}
