//! A claim store in memory that does as it is told: for tests of what core does with one. What Redis does with it, real
//! servers show.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hookgate_core::{
    dedup::{ClaimStore, Held, Holder, Owner, StoreError, StoreReason},
    event::{EventKey, Fingerprint},
};
use tokio::time::{Instant, sleep};

/// What is wrong with a [`FakeStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It does nothing and says so.
    Down,
    /// It does what it is asked and says that it did not.
    LosesAnswers,
    /// It claims and releases, and cannot commit.
    CannotCommit,
    /// It claims and releases; commits wait until nothing is wrong any more.
    HoldsCommits,
}

/// A scriptable store. Replicas that are to share it get clones of one `Arc`.
#[derive(Debug)]
pub struct FakeStore {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    fault: Fault,
    clock_stands_still: bool,
    entries: HashMap<EventKey, (Entry, Instant)>,
    operations: usize,
}

#[derive(Debug, Clone)]
enum Entry {
    Claimed { owner: Owner, lease: Duration },
    Accepted(Fingerprint),
}

impl FakeStore {
    /// An empty store that is well.
    pub fn new() -> Arc<Self> {
        let state = State { fault: Fault::None, clock_stands_still: false, entries: HashMap::new(), operations: 0 };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// From now on `fault` is wrong with it.
    pub fn suffer(&self, fault: Fault) {
        self.locked().fault = fault;
    }

    /// From now on no lease ends: what a clock that steps back looks like.
    pub fn stop_its_clock(&self) {
        self.locked().clock_stands_still = true;
    }

    /// Forgets everything.
    pub fn flush(&self) {
        self.locked().entries.clear();
    }

    /// How many operations it was asked for.
    pub fn operations(&self) -> usize {
        self.locked().operations
    }

    /// How many events it knows, in flight or accepted.
    pub fn len(&self) -> usize {
        self.locked().entries.len()
    }

    /// How many it knows as accepted.
    pub fn accepted(&self) -> usize {
        let state = self.locked();
        state.entries.values().filter(|(entry, _)| matches!(entry, Entry::Accepted(_))).count()
    }

    /// Whether it knows nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn operate<T>(&self, commits: bool, done: impl FnOnce(&mut State) -> T) -> Result<T, StoreError> {
        let mut state = self.locked();
        state.operations += 1;
        if !state.clock_stands_still {
            state.entries.retain(|_, (_, until)| *until > Instant::now());
        }
        match state.fault {
            Fault::None | Fault::HoldsCommits => Ok(done(&mut state)),
            Fault::CannotCommit if !commits => Ok(done(&mut state)),
            Fault::CannotCommit => Err(StoreError::new(StoreReason::ReadOnly)),
            Fault::Down => Err(StoreError::new(StoreReason::Disconnected)),
            Fault::LosesAnswers => {
                done(&mut state);
                Err(StoreError::new(StoreReason::Timeout))
            }
        }
    }
}

impl State {
    fn put(&mut self, key: EventKey, entry: Entry, span: Duration) {
        self.entries.insert(key, (entry, Instant::now() + span));
    }
}

fn holder(owner: Owner) -> Holder {
    Holder(owner.to_string().into())
}

impl ClaimStore for FakeStore {
    fn claim(&self, key: EventKey, owner: Owner, lease: Duration) -> BoxFuture<'_, Result<Held, StoreError>> {
        Box::pin(async move {
            self.operate(false, |state| match state.entries.get(&key).map(|(entry, _)| entry.clone()) {
                None => {
                    state.put(key, Entry::Claimed { owner, lease }, lease);
                    Held::ByUs
                }
                Some(Entry::Claimed { owner: held, .. }) if held == owner => Held::ByUs,
                Some(Entry::Claimed { owner, lease }) => Held::ByOther { holder: holder(owner), lease },
                Some(Entry::Accepted(body)) => Held::Accepted(body),
            })
        })
    }

    fn take_over<'a>(
        &'a self,
        key: EventKey,
        from: &'a Holder,
        owner: Owner,
        lease: Duration,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            self.operate(false, |state| match state.entries.get(&key) {
                Some((Entry::Claimed { owner: held, .. }, _)) if holder(*held) == *from => {
                    state.put(key, Entry::Claimed { owner, lease }, lease);
                    true
                }
                _ => false,
            })
        })
    }

    fn commit<'a>(
        &'a self,
        accepted: &'a [(EventKey, Fingerprint)],
        window: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            while self.locked().fault == Fault::HoldsCommits {
                sleep(Duration::from_millis(1)).await;
            }
            self.operate(true, |state| {
                for (key, body) in accepted {
                    state.put(*key, Entry::Accepted(*body), window);
                }
            })
        })
    }

    fn release(&self, key: EventKey, owner: Owner) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.operate(false, |state| {
                if matches!(state.entries.get(&key), Some((Entry::Claimed { owner: held, .. }, _)) if *held == owner) {
                    state.entries.remove(&key);
                }
            })
        })
    }
}
