//! The layers around a sink: a bound on what is in flight, retries within the deadline, and observation.
//!
//! A sink makes one attempt; this decides whether there is another. Each sink has its own bound, so that a stalled one
//! holds up nobody else's messages.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

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
    circuit: Circuit,
}

/// Whether it is worth while to wait for the sink.
#[derive(Default)]
struct Circuit {
    failures_in_a_row: AtomicU32,
    open: AtomicBool,
    /// Messages acknowledged so far.
    acknowledged: AtomicU64,
}

/// Attempts that failed in a row after which nobody waits for the sink any more, where there is a spool. More than chance
/// gives, few enough that an outage costs a handful of senders the whole deadline.
const CIRCUIT_FAILURES: u32 = 10;

/// First pause between attempts; doubled each time. Short, since most faults that pass at all pass at once.
const PAUSE_MIN: Duration = Duration::from_millis(25);

/// Longest pause between attempts. A reply deadline of seconds leaves room for several.
const PAUSE_MAX: Duration = Duration::from_millis(400);

impl Publisher {
    /// Wraps `sink`, to hold at most `in_flight_max` messages at once.
    pub fn new(id: SinkId, sink: Arc<dyn Sink>, in_flight_max: usize, observer: Arc<dyn Observer>) -> Self {
        let in_flight = Semaphore::new(in_flight_max.min(Semaphore::MAX_PERMITS));
        Self { id, sink, in_flight, observer, circuit: Circuit::default() }
    }

    /// The sink's name.
    pub fn id(&self) -> &SinkId {
        &self.id
    }

    /// The sink itself, to probe and to close.
    pub fn sink(&self) -> &Arc<dyn Sink> {
        &self.sink
    }

    /// Whether it has failed too often in a row to be waited for. The next acknowledgement closes it; what comes from the spool
    /// tries for one all the time.
    pub fn circuit_is_open(&self) -> bool {
        self.circuit.open.load(Ordering::Relaxed)
    }

    /// How many messages it has acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.circuit.acknowledged.load(Ordering::Relaxed)
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

    /// Publishes `message`, with this one attempt and past the bound: for the spool, which has its own.
    ///
    /// # Errors
    /// As the sink says.
    pub(crate) async fn attempt(
        &self,
        number: u32,
        message: &Message,
        deadline: Deadline,
    ) -> Result<Receipt, PublishError> {
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
            message,
            position: attempt.as_ref().ok().map(Receipt::position),
            attempt: number,
            result,
            elapsed: started.elapsed(),
        });
        self.note(attempt.as_ref().err());
        attempt
    }

    /// Opens or closes the circuit.
    fn note(&self, error: Option<&PublishError>) {
        let (sink, circuit) = (&self.id, &self.circuit);
        match error.map(|error| error.kind) {
            None => {
                circuit.acknowledged.fetch_add(1, Ordering::Relaxed);
                circuit.failures_in_a_row.store(0, Ordering::Relaxed);
                if circuit.open.swap(false, Ordering::Relaxed) {
                    self.observer.observe(&Observation::CircuitChanged { sink, open: false });
                }
            }
            // The message's own fault.
            Some(PublishErrorKind::Rejected) => {}
            Some(_) => {
                let failures = circuit.failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
                if failures >= CIRCUIT_FAILURES && !circuit.open.swap(true, Ordering::Relaxed) {
                    self.observer.observe(&Observation::CircuitChanged { sink, open: true });
                }
            }
        }
    }
}
