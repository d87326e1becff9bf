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

use futures_util::future::join_all;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::store::{ClaimStore, Held, Holder, Owner, StoreError, StoreReason};
use crate::{
    event::{EventKey, Fingerprint},
    limits::Deadline,
    observe::{DedupOperation, Observation, Observer},
    worker::Each,
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

/// Ends of claims that the store has not been told of. Past that, those that are accepted wait before they are answered, and
/// the others are left to their leases.
const ENDS_MAX: usize = 4096;

/// How long they wait. After that their claims too are left to their leases: a slow store is no reason for a late answer.
const ENDS_WAIT: Duration = Duration::from_millis(250);

/// Ends that the store is told of together. What comes meanwhile is told of next.
const TOLD_TOGETHER: usize = 1024;

/// Claims in a store that all replicas share.
pub struct Shared {
    stores: Each<Arc<dyn ClaimStore>>,
    window: Duration,
    observer: Arc<dyn Observer>,
    sightings: Mutex<HashMap<EventKey, Sighting>>,
    ends: Each<mpsc::Sender<(EventKey, End)>>,
}

/// How a claim ended.
#[derive(Clone, Copy)]
enum End {
    /// The event was accepted, with this body.
    Accepted(Fingerprint),
    /// It was not, and the claim was this owner's.
    Released(Owner),
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
    /// Claims in `stores`, which are each worker's way to one and the same; accepted events are remembered for `window`. The
    /// settlers have to run for as long as this lives, each on its worker.
    pub fn new(
        stores: Vec<Arc<dyn ClaimStore>>,
        window: Duration,
        observer: Arc<dyn Observer>,
    ) -> (Arc<Self>, Vec<Settler>) {
        let (ends, queues): (Vec<_>, Vec<_>) = stores.iter().map(|_| mpsc::channel(ENDS_MAX)).unzip();
        let (stores, ends) = (Each::new(stores), Each::new(ends));
        let shared = Arc::new(Self { stores, window, observer, sightings: Mutex::default(), ends });
        let settlers = queues.into_iter().map(|queue| Settler { shared: Arc::clone(&shared), queue });
        (Arc::clone(&shared), settlers.collect())
    }

    /// Claims `key`. A twin that another replica publishes is waited for, but not past `deadline`.
    pub(super) async fn claim(self: &Arc<Self>, key: EventKey, deadline: Deadline) -> SharedClaim {
        let mut remote = Remote { shared: Arc::clone(self), key, owner: Owner::random(), held: true };
        let mut pause = PAUSE_MIN;
        loop {
            let lease = deadline.remaining() + LEASE_MARGIN;
            let (holder, asked_for) =
                match self.timed(DedupOperation::Claim, 1, self.stores.here().claim(key, remote.owner, lease)).await {
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
                let taken = self.stores.here().take_over(key, &holder, remote.owner, lease);
                match self.timed(DedupOperation::Claim, 1, taken).await {
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

    /// Tells the observer how long `done` took, for so many events, and how it ended.
    async fn timed<T>(
        &self,
        operation: DedupOperation,
        events: usize,
        done: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let started = Instant::now();
        let outcome = done.await;
        self.operated(operation, events, started, outcome.as_ref().err());
        outcome
    }

    fn operated(&self, operation: DedupOperation, events: usize, started: Instant, error: Option<&StoreError>) {
        let elapsed = started.elapsed();
        self.observer.observe(&Observation::DedupOperated { operation, events, elapsed, error });
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
    /// Has the event remembered as accepted, soon. That it fails is no error to anybody but the operator: the event is delivered.
    pub(super) async fn commit(mut self, body: Fingerprint) {
        self.held = false;
        let ends = self.shared.ends.here();
        // After the settler's end there is nobody to be told.
        let Err(TrySendError::Full(end)) = ends.try_send((self.key, End::Accepted(body))) else { return };
        let started = Instant::now();
        if Deadline::after(ENDS_WAIT).bound(ends.send(end)).await.is_err() {
            let error = StoreError::new(StoreReason::Timeout);
            self.shared.operated(DedupOperation::Commit, 1, started, Some(&error));
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if self.held {
            // `Drop` cannot wait. Where the queue is full or gone, the lease ends the claim.
            let _ = self.shared.ends.here().try_send((self.key, End::Released(self.owner)));
        }
    }
}

/// Tells the store how claims ended.
#[must_use = "the store learns how claims ended only while it runs"]
pub struct Settler {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<(EventKey, End)>,
}

impl Settler {
    /// Works until `stop`, and then off what is queued.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut ended = Vec::with_capacity(TOLD_TOGETHER);
        while let Some(1..) = stop.run_until_cancelled(self.queue.recv_many(&mut ended, TOLD_TOGETHER)).await {
            self.tell(&mut ended).await;
        }
        self.queue.close();
        while self.queue.recv_many(&mut ended, TOLD_TOGETHER).await > 0 {
            self.tell(&mut ended).await;
        }
    }

    /// A commit or a release that fails is left to its lease.
    async fn tell(&self, ended: &mut Vec<(EventKey, End)>) {
        let shared = &*self.shared;
        let (mut accepted, mut releases) = (Vec::with_capacity(ended.len()), Vec::new());
        for (key, end) in ended.drain(..) {
            match end {
                End::Accepted(body) => accepted.push((key, body)),
                End::Released(owner) => {
                    releases.push(shared.timed(DedupOperation::Release, 1, shared.stores.here().release(key, owner)));
                }
            }
        }
        let commit = async {
            if !accepted.is_empty() {
                let committed = shared.stores.here().commit(&accepted, shared.window);
                let _ = shared.timed(DedupOperation::Commit, accepted.len(), committed).await;
            }
        };
        tokio::join!(commit, join_all(releases));
    }
}
