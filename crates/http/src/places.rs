//! Places for connections, and whose is given away when there is none left.
//!
//! A port that only waits for a place is held by whoever opens connections and sends nothing on them: they end after
//! `header_timeout`, and others take their places before a sender gets one. So a newcomer takes the place of the connection
//! that has been open longest without a request that succeeded. One that has had one keeps its own.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The places of one port.
pub(crate) struct Places {
    free: Arc<Semaphore>,
    next: AtomicU64,
    /// Connections without a request that succeeded, in the order in which they came.
    newcomers: Mutex<BTreeMap<u64, CancellationToken>>,
}

/// The place of one connection; dropping it gives it back.
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    taken: CancellationToken,
    earned: AtomicBool,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub(crate) fn new(count: usize) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { free, next: AtomicU64::new(0), newcomers: Mutex::default() })
    }

    /// A place for a connection that has come. Waits while all places are earned.
    ///
    /// # Cancel safety
    /// Dropped while it waits, a newcomer may have lost its place for nobody.
    pub(crate) async fn take(self: &Arc<Self>) -> Place {
        if let Some(place) = self.try_take() {
            return place;
        }
        if let Some((_, longest)) = self.newcomers().pop_first() {
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
        let (number, taken) = (self.next.fetch_add(1, Ordering::Relaxed), CancellationToken::new());
        self.newcomers().insert(number, taken.clone());
        Place { places: Arc::clone(self), number, taken, earned: AtomicBool::new(false), _permit: permit }
    }

    fn newcomers(&self) -> MutexGuard<'_, BTreeMap<u64, CancellationToken>> {
        self.newcomers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Nobody takes it away from now on.
    pub(crate) fn earn(&self) {
        if !self.earned.swap(true, Ordering::Relaxed) {
            self.places.newcomers().remove(&self.number);
        }
    }

    /// Waits until it is another's.
    pub(crate) async fn taken_away(&self) {
        self.taken.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !*self.earned.get_mut() {
            self.places.newcomers().remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_newcomer_takes_the_place_that_has_been_held_longest_for_nothing() {
        let places = Places::new(3);
        let [first, second, third] = [(); 3].map(|()| places.try_take().expect("there are three"));
        assert!(places.try_take().is_none());
        first.earn();
        let fourth = tokio::join!(places.take(), async {
            second.taken_away().await;
            drop(second);
        });
        assert!(!first.taken.is_cancelled() && !third.taken.is_cancelled());
        third.earn();
        fourth.0.earn();
        let waits = places.take();
        tokio::pin!(waits);
        assert!(futures_util::poll!(&mut waits).is_pending(), "all are earned");
        drop(first);
        let _place = waits.await;
        assert_eq!(places.newcomers().len(), 1);
    }
}
