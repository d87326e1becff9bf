//! The second tier: claims that all replicas see, and what becomes of events while their store does not answer.
//!
//! The surprising thing: a claim's end is not left to the store's clock alone. One that steps back by an hour turns a lease
//! of seconds into an hour of 503, so that how long somebody has held a claim is also measured here, by a clock that does
//! not step.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::store::{ClaimStore, Held, Holder, Owner, StoreError};
use crate::{
    event::{EventKey, Fingerprint},
    limits::Deadline,
    observe::{DedupOperation, Observation, Observer},
};

/// How much longer than the event's own deadline a claim lasts. Long enough for what its owner does after the deadline;
/// short, since after a crash repeats are refused for that long.
const LEASE_MARGIN: Duration = Duration::from_secs(2);

/// First pause before looking again at a claim of another replica; doubled each time. Most publishes are done in
/// milliseconds.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// Longest such pause. It bounds what one id can cost, however many of its repeats wait.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Claims of others whose age is measured at once. Each belongs to a repeat that came in; past that the store's own clock
/// decides.
const SIGHTINGS_MAX: usize = 10_000;

/// How long a sighting is of use: longer than any lease that makes sense.
const SIGHTING_AGE_MAX: Duration = Duration::from_secs(10 * 60);

/// Releases that wait for the releaser. What does not fit is left to its lease.
const RELEASES_MAX: usize = 4096;

/// Claims in a store that all replicas share.
pub struct Shared {
    store: Arc<dyn ClaimStore>,
    window: Duration,
    observer: Arc<dyn Observer>,
    sightings: Mutex<HashMap<EventKey, Sighting>>,
    releases: mpsc::Sender<(EventKey, Owner)>,
}

/// Somebody's claim, and since when we know of it.
struct Sighting {
    holder: Holder,
    since: Instant,
}

/// What became of an attempt to claim an event.
pub(super) enum SharedClaim {
    /// Nobody knew it: it is ours.
    Ours(Remote),
    /// Whoever held it did so for longer than was asked for: it is ours now.
    TakenOver(Remote),
    /// It was accepted before, with this body.
    Accepted(Fingerprint),
    /// Another replica did not finish it in time.
    InProgress,
    /// The store does not answer. It may have made the claim, so that it has to be settled all the same.
    Unknown(Remote),
}

impl Shared {
    /// Claims in `store`; accepted events are remembered for `window`. The releaser has to run for as long as this lives.
    pub fn new(store: Arc<dyn ClaimStore>, window: Duration, observer: Arc<dyn Observer>) -> (Arc<Self>, Releaser) {
        let (releases, queue) = mpsc::channel(RELEASES_MAX);
        let shared = Arc::new(Self { store, window, observer, sightings: Mutex::default(), releases });
        (Arc::clone(&shared), Releaser { shared, queue })
    }

    /// Claims `key`. A twin that another replica publishes is waited for, but not past `deadline`.
    pub(super) async fn claim(self: &Arc<Self>, key: EventKey, deadline: Deadline) -> SharedClaim {
        let mut remote = Remote { shared: Arc::clone(self), key, owner: Owner::random(), held: true };
        let mut pause = PAUSE_MIN;
        loop {
            let lease = deadline.remaining() + LEASE_MARGIN;
            let (holder, asked_for) =
                match self.timed(DedupOperation::Claim, self.store.claim(key, remote.owner, lease)).await {
                    Ok(Held::ByUs) => {
                        self.lose_sight(key);
                        return SharedClaim::Ours(remote);
                    }
                    Ok(Held::Accepted(body)) => {
                        remote.held = false;
                        self.lose_sight(key);
                        return SharedClaim::Accepted(body);
                    }
                    Ok(Held::ByOther { holder, lease }) => (holder, lease),
                    Err(_) => return SharedClaim::Unknown(remote),
                };
            if self.held_for(key, &holder) > asked_for {
                let taken = self.store.take_over(key, &holder, remote.owner, lease);
                match self.timed(DedupOperation::Claim, taken).await {
                    Ok(true) => {
                        self.lose_sight(key);
                        return SharedClaim::TakenOver(remote);
                    }
                    // It has changed hands meanwhile: look again.
                    Ok(false) => {}
                    Err(_) => return SharedClaim::Unknown(remote),
                }
            }
            if deadline.remaining() <= pause {
                remote.held = false;
                return SharedClaim::InProgress;
            }
            // Half to the whole of the pause, so that replicas that wait for one do not ask in step.
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// For how long `holder` has been seen to hold `key`.
    fn held_for(&self, key: EventKey, holder: &Holder) -> Duration {
        let mut sightings = self.sightings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sighting) = sightings.get(&key)
            && sighting.holder == *holder
        {
            return sighting.since.elapsed();
        }
        if sightings.len() >= SIGHTINGS_MAX {
            sightings.retain(|_, sighting| sighting.since.elapsed() < SIGHTING_AGE_MAX);
        }
        if sightings.len() < SIGHTINGS_MAX {
            sightings.insert(key, Sighting { holder: holder.clone(), since: Instant::now() });
        }
        Duration::ZERO
    }

    fn lose_sight(&self, key: EventKey) {
        self.sightings.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// Tells the observer how long `done` took and how it ended.
    async fn timed<T>(
        &self,
        operation: DedupOperation,
        done: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let started = Instant::now();
        let outcome = done.await;
        let (elapsed, error) = (started.elapsed(), outcome.as_ref().err());
        self.observer.observe(&Observation::DedupOperated { operation, elapsed, error });
        outcome
    }
}

/// A claim in the shared store, or one that may be there. Dropping it has it released.
pub(super) struct Remote {
    shared: Arc<Shared>,
    key: EventKey,
    owner: Owner,
    /// Whether the store may have a claim of ours.
    held: bool,
}

impl Remote {
    /// Remembers the event as accepted. That it fails is no error to anybody but the operator: the event is delivered.
    pub(super) async fn commit(mut self, body: Fingerprint) {
        self.held = false;
        let shared = &self.shared;
        let committed = shared.store.commit(self.key, body, shared.window);
        let _ = shared.timed(DedupOperation::Commit, committed).await;
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if self.held {
            // `Drop` cannot wait. Where the queue is full or gone, the lease ends the claim.
            let _ = self.shared.releases.try_send((self.key, self.owner));
        }
    }
}

/// Releases claims that were dropped.
#[must_use = "claims are released only while it runs"]
pub struct Releaser {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<(EventKey, Owner)>,
}

impl Releaser {
    /// Releases until `stop`, and then what is queued.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            match stop.run_until_cancelled(self.queue.recv()).await {
                Some(Some((key, owner))) => self.release(key, owner).await,
                Some(None) => return,
                None => break,
            }
        }
        while let Ok((key, owner)) = self.queue.try_recv() {
            self.release(key, owner).await;
        }
    }

    async fn release(&self, key: EventKey, owner: Owner) {
        let released = self.shared.store.release(key, owner);
        // One that fails is left to its lease.
        let _ = self.shared.timed(DedupOperation::Release, released).await;
    }
}
