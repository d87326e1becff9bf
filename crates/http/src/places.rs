//! Places for connections, and whose is given away when there is none left.
//!
//! A port that only waits for a place is held by whoever opens connections and sends nothing on them: they end after
//! `header_timeout`, and others take their places before a sender gets one. So a newcomer takes the place of the connection
//! that has waited longest for a request of its own. One whose request has come whole keeps its place until that is answered,
//! and for good once an answer was a success.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The places of one port.
pub(crate) struct Places {
    free: Arc<Semaphore>,
    newcomers: Mutex<Newcomers>,
}

/// Connections that have nothing to show for their places, in the order in which they began to wait.
#[derive(Default)]
struct Newcomers {
    waiting: BTreeMap<u64, CancellationToken>,
    next: u64,
}

impl Newcomers {
    fn add(&mut self, taken: CancellationToken) -> u64 {
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, taken);
        number
    }
}

/// The place of one connection; dropping it gives it back.
pub(crate) struct Place {
    places: Arc<Places>,
    taken: CancellationToken,
    /// Nobody takes it away any more.
    earned: AtomicBool,
    /// Requests that have come whole and are not answered.
    serving: AtomicUsize,
    /// Whether requests come beside one another.
    multiplexed: AtomicBool,
    /// Its number among the newcomers, while it is one.
    number: Mutex<Option<u64>>,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub(crate) fn new(count: usize) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { free, newcomers: Mutex::default() })
    }

    /// A place for a connection that has come. Waits while all places are earned.
    ///
    /// # Cancel safety
    /// Dropped while it waits, a newcomer may have lost its place for nobody.
    pub(crate) async fn take(self: &Arc<Self>) -> Place {
        if let Some(place) = self.try_take() {
            return place;
        }
        let longest = lock(&self.newcomers).waiting.pop_first();
        if let Some((_, longest)) = longest {
            longest.cancel();
        }
        let permit = Arc::clone(&self.free).acquire_owned().await.expect("the semaphore is never closed");
        self.place(permit)
    }

    /// A place, if one is free.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Place> {
        Arc::clone(&self.free).try_acquire_owned().ok().map(|permit| self.place(permit))
    }

    fn place(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Place {
        let taken = CancellationToken::new();
        let number = Mutex::new(Some(lock(&self.newcomers).add(taken.clone())));
        let (earned, serving, multiplexed) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicBool::new(false));
        Place { places: Arc::clone(self), taken, earned, serving, multiplexed, number, _permit: permit }
    }
}

/// One request of a connection, for whoever reads it to say when it has come whole.
#[derive(Clone)]
pub(crate) struct Served(Arc<Asked>);

struct Asked {
    place: Arc<Place>,
    /// Whether it has come whole and is not answered.
    is_served: AtomicBool,
}

impl Served {
    /// It has come whole.
    pub(crate) fn begin(&self) {
        if !self.0.is_served.swap(true, Ordering::Relaxed) {
            self.0.place.begin();
        }
    }

    /// It was answered.
    pub(crate) fn end(&self, success: bool) {
        self.0.place.end(self.0.is_served.swap(false, Ordering::Relaxed), success);
    }
}

/// It is over, whether or not there was an answer: the sender may have gone.
impl Drop for Asked {
    fn drop(&mut self) {
        if *self.is_served.get_mut() {
            self.place.end(true, false);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    /// What follows one more request of the connection.
    pub(crate) fn serve(self: &Arc<Self>) -> Served {
        Served(Arc::new(Asked { place: Arc::clone(self), is_served: AtomicBool::new(false) }))
    }

    /// Requests come beside one another: HTTP/2.
    pub(crate) fn multiplex(&self) {
        self.multiplexed.store(true, Ordering::Relaxed);
    }

    /// Whether there is nothing to be done but to finish a request that has come whole. Of a connection with several at a time that
    /// is never said: it would be read from for ever.
    pub(crate) fn only_finishes(&self) -> bool {
        self.is_serving() && !self.multiplexed.load(Ordering::Relaxed)
    }

    /// Whether a request has come whole and is not answered.
    fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Acquire) > 0
    }

    fn is_earned(&self) -> bool {
        self.earned.load(Ordering::Relaxed)
    }

    /// A request has come whole: nobody takes the place away until it is answered.
    fn begin(&self) {
        self.serving.fetch_add(1, Ordering::AcqRel);
        if !self.is_earned() {
            self.leave_newcomers(&mut lock(&self.number));
        }
    }

    fn leave_newcomers(&self, number: &mut Option<u64>) {
        if let Some(number) = number.take() {
            lock(&self.places.newcomers).waiting.remove(&number);
        }
    }

    /// A request was answered, whether or not it had come whole.
    fn end(&self, began: bool, success: bool) {
        self.serving.fetch_sub(usize::from(began), Ordering::AcqRel);
        if self.is_earned() {
            return;
        }
        let mut number = lock(&self.number);
        if success {
            self.earned.store(true, Ordering::Relaxed);
            self.leave_newcomers(&mut number);
        } else if number.is_none() && !self.is_serving() && !self.is_earned() {
            *number = Some(lock(&self.places.newcomers).add(self.taken.clone()));
        }
    }

    /// Waits until it is another's.
    pub(crate) async fn taken_away(&self) {
        self.taken.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave_newcomers(&mut lock(&self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_whose_sender_goes_is_not_served_for_ever() {
        let place = Arc::new(Places::new(1).try_take().expect("there is one"));
        let served = place.serve();
        let reading = served.clone();
        reading.begin();
        assert!(place.is_serving());
        drop((reading, served));
        assert!(!place.is_serving());
        let served = place.serve();
        served.begin();
        assert!(place.only_finishes());
        place.multiplex();
        assert!(!place.only_finishes());
        served.end(true);
        drop(served);
        assert!(!place.is_serving());
    }

    #[tokio::test]
    async fn a_newcomer_takes_the_place_that_has_been_held_longest_for_nothing() {
        let places = Places::new(3);
        let [first, second, third] = [(); 3].map(|()| places.try_take().expect("there are three"));
        assert!(places.try_take().is_none());
        first.begin();
        let fourth = tokio::join!(places.take(), async {
            second.taken_away().await;
            drop(second);
        });
        assert!(!first.taken.is_cancelled() && !third.taken.is_cancelled());
        third.end(false, true);
        fourth.0.begin();
        let waits = places.take();
        tokio::pin!(waits);
        assert!(futures_util::poll!(&mut waits).is_pending(), "one is earned, two are served");
        assert!(![&first, &third, &fourth.0].iter().any(|place| place.taken.is_cancelled()));
        // Refused: it waits like a newcomer again, behind those that were there before.
        first.end(true, false);
        drop(third);
        let fifth = waits.await;
        let (sixth, ()) = tokio::join!(places.take(), async {
            first.taken_away().await;
            drop(first);
        });
        assert_eq!(lock(&places.newcomers).waiting.len(), 2);
        drop((fifth, sixth, fourth));
        assert!(lock(&places.newcomers).waiting.is_empty());
    }
}
