//! The in-memory store: sharded, bounded, exact about time.
//!
//! Nearly all entries live for the same window, so the order in which they were accepted is the order in which they expire: a
//! queue of them, and a table of places in it, are all the bookkeeping there is. One that another replica accepted is kept for a
//! shorter time; it counts no longer when that is over, and leaves the queue with those around it. What is in flight is not in
//! the queue and cannot be evicted; how much of it there is, the admission limit bounds.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hashbrown::{HashTable, hash_table::Entry};
use tokio::{sync::watch, time::Instant};

use crate::event::{EventKey, Fingerprint};

/// Shards, so that events on several cores seldom meet at one lock. A power of two.
const SHARDS: usize = 64;

/// That many have numbers of their own.
const ACCEPTED_PER_SHARD_MAX: usize = 1 << 31;

/// The accepted event ids of this process, and those in flight.
#[derive(Debug)]
pub struct Memory {
    shards: Box<[Mutex<Shard>]>,
    window: Duration,
    accepted_per_shard_max: usize,
    next_owner: AtomicU64,
    begun: Instant,
}

#[derive(Debug, Default)]
struct Shard {
    in_flight: HashTable<InFlight>,
    /// Oldest first.
    accepted: VecDeque<Accepted>,
    /// The numbers of those in `accepted` that count.
    places: HashTable<u32>,
    /// The number of the first in `accepted`; those that follow count on from it, and from the last number to 0.
    first: u32,
}

#[derive(Debug)]
struct InFlight {
    key: EventKey,
    owner: u64,
    /// Made when the first twin arrives; dropped with the claim, which wakes all who wait.
    end: Option<watch::Sender<()>>,
}

/// There can be millions of them: 32 bytes, and a number of four in the table.
#[derive(Debug)]
struct Accepted {
    key: EventKey,
    until: Moment,
    body: Fingerprint,
}

/// Nanoseconds since the store was made: half of what an [`Instant`] takes.
type Moment = u64;

/// What [`Memory::try_claim`] found.
pub(super) enum Found {
    Nothing { owner: u64 },
    InFlight(watch::Receiver<()>),
    Accepted(Fingerprint),
}

impl Memory {
    /// An empty store that remembers at most `entries` accepted events, each for `window`.
    pub fn new(window: Duration, entries: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            window,
            accepted_per_shard_max: entries.div_ceil(SHARDS).min(ACCEPTED_PER_SHARD_MAX),
            next_owner: AtomicU64::new(0),
            begun: Instant::now(),
        }
    }

    /// How many ids are remembered or in flight.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether nothing is remembered and nothing in flight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn try_claim(&self, key: EventKey) -> Found {
        let now = self.moment(Duration::ZERO);
        let mut shard = self.shard(key);
        shard.forget_expired(now);
        if let Some(accepted) = shard.find(key) {
            if accepted.until > now {
                return Found::Accepted(accepted.body);
            }
            shard.forget(key);
        }
        match shard.in_flight.entry(hash(key), |found| found.key == key, |moved| hash(moved.key)) {
            Entry::Occupied(mut twin) => {
                let end = &mut twin.get_mut().end;
                Found::InFlight(end.get_or_insert_with(|| watch::Sender::new(())).subscribe())
            }
            Entry::Vacant(vacant) => {
                let owner = self.next_owner.fetch_add(1, Ordering::Relaxed);
                vacant.insert(InFlight { key, owner, end: None });
                Found::Nothing { owner }
            }
        }
    }

    pub(super) fn commit(&self, key: EventKey, owner: u64, body: Fingerprint) {
        self.commit_for(key, owner, body, self.window);
    }

    /// Commits what is to be remembered for `span` only, if that is shorter than the window.
    pub(super) fn commit_for(&self, key: EventKey, owner: u64, body: Fingerprint, span: Duration) {
        let mut shard = self.shard(key);
        if shard.end(key, owner) {
            shard.remember(Accepted { key, until: self.moment(span.min(self.window)), body });
            if shard.accepted.len() > self.accepted_per_shard_max {
                shard.forget_oldest();
            }
        }
    }

    pub(super) fn release(&self, key: EventKey, owner: u64) {
        self.shard(key).end(key, owner);
    }

    fn shard(&self, key: EventKey) -> MutexGuard<'_, Shard> {
        lock(&self.shards[usize::from(key.as_bytes()[15]) % SHARDS])
    }

    /// The moment `span` from now.
    fn moment(&self, span: Duration) -> Moment {
        (self.begun.elapsed() + span).as_nanos().try_into().unwrap_or(Moment::MAX)
    }
}

/// A panic while the lock was held leaves tables that are still tables: the store goes on.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keys are uniform: eight of their bytes are as good as any hash.
fn hash(key: EventKey) -> u64 {
    let (first, _) = key.as_bytes().split_first_chunk().expect("a key has sixteen bytes");
    u64::from_le_bytes(*first)
}

/// The one with `number`, in `accepted` whose first one has the number `first`.
fn numbered(accepted: &VecDeque<Accepted>, first: u32, number: u32) -> &Accepted {
    &accepted[number.wrapping_sub(first) as usize]
}

impl Shard {
    fn len(&self) -> usize {
        self.in_flight.len() + self.places.len()
    }

    /// Takes `key` out of those in flight, if it is `claimant` who has it.
    fn end(&mut self, key: EventKey, claimant: u64) -> bool {
        let claim = self.in_flight.find_entry(hash(key), |found| found.key == key && found.owner == claimant);
        claim.map(|claim| drop(claim.remove())).is_ok()
    }

    fn find(&self, key: EventKey) -> Option<&Accepted> {
        let at = |number: &u32| numbered(&self.accepted, self.first, *number);
        self.places.find(hash(key), |number| at(number).key == key).map(at)
    }

    fn remember(&mut self, accepted: Accepted) {
        let (number, hash_of_it) = (self.first.wrapping_add(self.accepted.len() as u32), hash(accepted.key));
        self.accepted.push_back(accepted);
        let (accepted, first) = (&self.accepted, self.first);
        self.places.insert_unique(hash_of_it, number, |number| hash(numbered(accepted, first, *number).key));
    }

    /// From now on `key` does not count. It stays in the queue.
    fn forget(&mut self, key: EventKey) {
        let (accepted, first) = (&self.accepted, self.first);
        let is_it = |number: &u32| numbered(accepted, first, *number).key == key;
        if let Ok(place) = self.places.find_entry(hash(key), is_it) {
            place.remove();
        }
    }

    fn forget_expired(&mut self, now: Moment) {
        while self.accepted.front().is_some_and(|oldest| oldest.until <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let (Some(oldest), number) = (self.accepted.pop_front(), self.first) else { return };
        // It may have counted no longer, and its key be there anew.
        if let Ok(place) = self.places.find_entry(hash(oldest.key), |found| *found == number) {
            place.remove();
        }
        self.first = number.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use proptest::prelude::*;

    use super::*;
    use crate::event::{EventId, SourceId};

    fn key(number: u32) -> EventKey {
        EventKey::new(&SourceId::new(0, "test"), &EventId::from_text(number.to_string()))
    }

    fn memory(entries: usize) -> Memory {
        Memory::new(Duration::from_secs(60), entries)
    }

    fn body() -> Fingerprint {
        Fingerprint::of(b"a body")
    }

    fn accept(memory: &Memory, key: EventKey) {
        match memory.try_claim(key) {
            Found::Nothing { owner } => memory.commit(key, owner, body()),
            _ => panic!("{key:?} is not fresh"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_accepted_id_is_a_duplicate_until_the_window_ends() {
        let memory = memory(1000);
        accept(&memory, key(1));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(matches!(memory.try_claim(key(1)), Found::Accepted(known) if known == body()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(matches!(memory.try_claim(key(1)), Found::Nothing { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_for_a_shorter_time_counts_no_longer_and_can_be_claimed_anew() {
        let memory = memory(1000);
        let Found::Nothing { owner } = memory.try_claim(key(1)) else { panic!("fresh") };
        memory.commit_for(key(1), owner, body(), Duration::from_secs(10));
        assert!(matches!(memory.try_claim(key(1)), Found::Accepted(_)));
        tokio::time::advance(Duration::from_secs(10)).await;
        let Found::Nothing { owner } = memory.try_claim(key(1)) else { panic!("forgotten") };
        tokio::time::advance(Duration::from_secs(50)).await;
        assert!(matches!(memory.try_claim(key(1)), Found::InFlight(_)), "the old entry's end is not this one's");
        memory.commit(key(1), owner, body());
        assert!(matches!(memory.try_claim(key(1)), Found::Accepted(_)));
    }

    #[tokio::test]
    async fn what_is_in_flight_is_never_evicted() {
        let memory = memory(SHARDS);
        let Found::Nothing { owner } = memory.try_claim(key(0)) else { panic!("fresh") };
        (1..10_000).for_each(|number| accept(&memory, key(number)));
        assert!(memory.len() <= SHARDS + 1, "bounded: {}", memory.len());
        assert!(matches!(memory.try_claim(key(0)), Found::InFlight(_)));
        memory.commit(key(0), owner, body());
        assert!(matches!(memory.try_claim(key(0)), Found::Accepted(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn numbers_go_on_from_the_last_one_to_the_first() {
        let memory = memory(SHARDS * 1000);
        memory.shards.iter().for_each(|shard| lock(shard).first = u32::MAX - 5);
        let remembered = |numbers: std::ops::Range<u32>| {
            numbers.filter(|number| memory.shard(key(*number)).find(key(*number)).is_some()).count()
        };
        (0..10_000).for_each(|number| accept(&memory, key(number)));
        assert_eq!(remembered(0..10_000), 10_000);
        tokio::time::advance(Duration::from_secs(30)).await;
        (10_000..20_000).for_each(|number| accept(&memory, key(number)));
        tokio::time::advance(Duration::from_secs(30)).await;
        // Each shard forgets what is over when it is asked.
        (20_000..30_000).for_each(|number| accept(&memory, key(number)));
        assert_eq!((remembered(0..10_000), remembered(10_000..30_000)), (0, 20_000));
        assert_eq!(memory.len(), 20_000);
    }

    #[tokio::test]
    async fn a_stale_owner_neither_settles_nor_releases_the_claim_of_another() {
        let memory = memory(1000);
        let Found::Nothing { owner: stale } = memory.try_claim(key(1)) else { panic!("fresh") };
        memory.release(key(1), stale);
        let Found::Nothing { owner } = memory.try_claim(key(1)) else { panic!("released") };
        memory.commit(key(1), stale, body());
        memory.release(key(1), stale);
        assert!(matches!(memory.try_claim(key(1)), Found::InFlight(_)));
        memory.commit(key(1), owner, body());
        assert!(matches!(memory.try_claim(key(1)), Found::Accepted(_)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_many_at_once_exactly_one_gets_the_claim() {
        let memory = Arc::new(memory(1000));
        for round in 0..200 {
            let claims: Vec<_> = (0..8)
                .map(|_| {
                    let memory = Arc::clone(&memory);
                    tokio::spawn(async move { matches!(memory.try_claim(key(round)), Found::Nothing { .. }) })
                })
                .collect();
            let mut fresh = 0;
            for claim in claims {
                fresh += usize::from(claim.await.expect("no panic"));
            }
            assert_eq!(fresh, 1);
        }
    }

    proptest! {
        /// Against a model that is a plain map: any sequence of claims, commits, releases and waits.
        #[test]
        fn it_behaves_like_a_plain_map(steps in proptest::collection::vec((0_u8..4, 0_u32..6, 0_u64..40), 1..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("runtime");
            runtime.block_on(async {
                let memory = memory(100_000);
                let mut in_flight: HashMap<u32, u64> = HashMap::new();
                let mut accepted: HashMap<u32, Instant> = HashMap::new();
                for (step, number, seconds) in steps {
                    accepted.retain(|_, until| *until > Instant::now());
                    match step {
                        0 => match memory.try_claim(key(number)) {
                            Found::Nothing { owner } => {
                                assert!(!accepted.contains_key(&number));
                                assert_eq!(in_flight.insert(number, owner), None);
                            }
                            Found::InFlight(_) => assert!(in_flight.contains_key(&number)),
                            Found::Accepted(_) => assert!(accepted.contains_key(&number)),
                        },
                        1 => if let Some(owner) = in_flight.remove(&number) {
                            memory.commit(key(number), owner, body());
                            accepted.insert(number, Instant::now() + Duration::from_secs(60));
                        },
                        2 => if let Some(owner) = in_flight.remove(&number) {
                            memory.release(key(number), owner);
                        },
                        _ => tokio::time::advance(Duration::from_secs(seconds)).await,
                    }
                }
            });
        }
    }
}
