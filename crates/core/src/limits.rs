//! Bounds on work that is in flight: so many requests, so many bytes, and a point in time for each wait.

use std::{
    future::{Future, pending},
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::Semaphore,
    time::{Instant, error::Elapsed, timeout_at},
};

/// A point in time after which an answer is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The point `span` from now.
    pub fn after(span: Duration) -> Self {
        Self(Instant::now() + span)
    }

    /// The point at which a fifth of the time until then is left: what has to be done by then leaves room for what follows.
    #[must_use]
    pub fn with_reserve(self) -> Self {
        Self(self.0 - self.remaining() / 5)
    }

    /// How long until then; zero when it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether it has passed.
    pub fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }

    /// Waits for `future`, but not past this point.
    ///
    /// # Errors
    /// [`Elapsed`] when the point came first; `future` is dropped then.
    pub async fn bound<F: Future>(self, future: F) -> Result<F::Output, Elapsed> {
        timeout_at(self.0, future).await
    }
}

/// Turns at the work that a long body is: to verify, to read and to route two mebibytes takes milliseconds.
///
/// It is done on threads of its own, so that the operating system gives the processor to others meanwhile, by so many at once as
/// are there; all others wait, while the events with short bodies go past them. Without that, who comes after a hundred long
/// bodies waits for them all.
#[derive(Debug)]
pub struct Turns {
    at_once: Semaphore,
    threads: Handle,
}

impl Turns {
    /// Shortest body that waits for its turn, in bytes: below, a turn costs more than what it is for.
    pub const BODY_BYTES_MIN: usize = 64 * 1024;

    /// Turns for `at_once` long bodies, at least one, on those threads of a runtime that may block.
    pub fn new(at_once: usize, threads: Handle) -> Self {
        Self { at_once: Semaphore::new(at_once.max(1)), threads }
    }

    /// Does `work`, here and now where the body is short. A long one waits for its turn, in the order of asking, but not past
    /// `deadline`: then it is done here.
    ///
    /// # Panics
    /// As `work` does.
    ///
    /// # Cancel safety
    /// Work that has begun goes on; what comes of it is dropped.
    pub async fn run<T: Send + 'static>(
        &self,
        body_bytes: usize,
        deadline: Deadline,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        if body_bytes < Self::BODY_BYTES_MIN {
            return work();
        }
        let Ok(_turn) = deadline.bound(self.at_once.acquire()).await else { return work() };
        match self.threads.spawn_blocking(work).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime is ending, and this task with it.
                Err(_) => pending().await,
            },
        }
    }
}

/// What may be in flight at once: a number of requests and a number of body bytes.
///
/// Nothing here waits: what does not fit is refused, so that a flood costs an answer and no memory.
#[derive(Debug)]
pub struct Admission {
    requests: Gauge,
    bytes: Gauge,
}

#[derive(Debug)]
struct Gauge {
    used: AtomicU64,
    max: u64,
}

impl Gauge {
    fn try_take(&self, amount: u64) -> bool {
        let take = |used: u64| used.checked_add(amount).filter(|used| *used <= self.max);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
    }

    fn give_back(&self, amount: u64) {
        self.used.fetch_sub(amount, Ordering::AcqRel);
    }
}

impl Admission {
    /// Admits at most `requests_max` requests that hold at most `bytes_max` bytes of bodies together.
    pub fn new(requests_max: u64, bytes_max: u64) -> Arc<Self> {
        let gauge = |max| Gauge { used: AtomicU64::new(0), max };
        Arc::new(Self { requests: gauge(requests_max), bytes: gauge(bytes_max) })
    }

    /// Begins to read a body, of which nothing is held yet.
    pub fn begin(self: &Arc<Self>) -> Reservation {
        Reservation { admission: Arc::clone(self), bytes: 0 }
    }

    /// Requests in flight now.
    pub fn requests_in_flight(&self) -> u64 {
        self.requests.used.load(Ordering::Acquire)
    }

    /// Body bytes held now.
    pub fn bytes_in_flight(&self) -> u64 {
        self.bytes.used.load(Ordering::Acquire)
    }
}

/// The body bytes that one request holds; dropping it gives them back.
///
/// Bytes are reserved as they arrive, not as they are announced: a header that promises much costs nobody anything.
#[derive(Debug)]
pub struct Reservation {
    admission: Arc<Admission>,
    bytes: u64,
}

impl Reservation {
    /// Reserves `bytes` more; `false` when the budget is spent.
    #[must_use]
    pub fn try_grow(&mut self, bytes: u64) -> bool {
        let taken = self.admission.bytes.try_take(bytes);
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    /// Lets the request in with what it holds, or `None` when there are too many.
    ///
    /// Only now, with the body complete, does it count: slow senders cannot use up the places of the others.
    pub fn try_enter(self) -> Option<Admitted> {
        self.try_enter_beside(None)
    }

    /// The same, for a request that has a place of `another` kind already; it is kept as long as this one.
    pub fn try_enter_beside(self, another: Option<Admitted>) -> Option<Admitted> {
        let admitted = self.admission.requests.try_take(1);
        admitted.then(|| Admitted(Arc::new(Entered { reservation: self, requests: 1, also: another })))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.admission.bytes.give_back(self.bytes);
    }
}

/// One request in flight with the bytes it holds; dropping the last clone gives both back.
#[derive(Debug, Clone)]
pub struct Admitted(Arc<Entered>);

#[derive(Debug)]
struct Entered {
    reservation: Reservation,
    /// How many it counts as: none where it is only more bytes.
    requests: u64,
    #[expect(dead_code, reason = "it is kept to be dropped")]
    also: Option<Admitted>,
}

impl Admitted {
    /// The same, holding `bytes` more; `None` when the budget is spent.
    pub(crate) fn and_bytes(self, bytes: u64) -> Option<Self> {
        let mut reservation = self.0.reservation.admission.begin();
        let grown = reservation.try_grow(bytes);
        grown.then(|| Self(Arc::new(Entered { reservation, requests: 0, also: Some(self) })))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.reservation.admission.requests.give_back(self.requests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_bodies_are_for_the_threads_that_are_meant_for_them() {
        let mut aside = tokio::runtime::Builder::new_current_thread();
        let aside = aside.thread_name("aside").build().expect("a runtime");
        let turns = Turns::new(1, aside.handle().clone());
        let name = || std::thread::current().name().map(str::to_owned);
        let ran_on = async |bytes| turns.run(bytes, Deadline::after(Duration::from_secs(10)), name).await;
        assert_eq!(ran_on(Turns::BODY_BYTES_MIN).await.as_deref(), Some("aside"));
        assert_eq!(ran_on(Turns::BODY_BYTES_MIN - 1).await, name());
        aside.shutdown_background();
    }

    #[test]
    fn what_does_not_fit_is_refused_and_what_leaves_makes_room() {
        let admission = Admission::new(2, 10);
        let mut first = admission.begin();
        assert!(first.try_grow(10));
        assert!(!first.try_grow(1));
        assert!(!first.try_grow(u64::MAX), "no overflow");
        let first = first.try_enter().expect("room for two");
        let second = admission.begin().try_enter().expect("room for two");
        assert!(admission.begin().try_enter().is_none());
        drop(first);
        assert_eq!((admission.requests_in_flight(), admission.bytes_in_flight()), (1, 0));
        let second = second.and_bytes(10).expect("room for ten");
        assert_eq!((admission.requests_in_flight(), admission.bytes_in_flight()), (1, 10));
        assert!(second.clone().and_bytes(1).is_none());
        drop(second);
        assert_eq!((admission.requests_in_flight(), admission.bytes_in_flight()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_bounds_a_wait() {
        let deadline = Deadline::after(Duration::from_secs(1));
        assert!(deadline.bound(pending::<()>()).await.is_err());
        assert!(deadline.has_passed());
    }
}
