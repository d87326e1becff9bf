//! Which events were accepted before: claimed first, remembered only after the handoff.
//!
//! A claim is the right to publish one event id, held by one worker. Settling it with a [`Handoff`] remembers the id for
//! the window; dropping it, however that comes about, forgets the id, so that a failed publish is never taken for seen.

mod memory;

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use self::memory::Memory;
use crate::{
    auth::Authenticated,
    config,
    event::{Event, EventId, EventKey},
    handoff::{Accepted, AcceptedAs, Handoff},
    limits::Deadline,
};

/// The `[dedup]` table.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DedupConfig {
    /// How long an accepted event is remembered. Default: 24 h, longer than most senders repeat an event.
    #[serde(with = "config::duration")]
    pub window: Duration,
    /// How many accepted events are remembered in memory; past that the oldest are forgotten first. Default: 200 000,
    /// about 20 MB.
    #[serde(deserialize_with = "config::count")]
    pub memory_entries: usize,
}

impl Default for DedupConfig {
    fn default() -> Self {
        Self { window: Duration::from_secs(24 * 60 * 60), memory_entries: 200_000 }
    }
}

/// What is known about an event when it arrives.
#[derive(Debug)]
pub enum Claim {
    /// Nothing: it is ours to publish.
    Fresh(Claimed),
    /// Its twin is being published now.
    InFlight(Twin),
    /// It was accepted before.
    Duplicate(Duplicate),
}

/// The right to publish one event id.
#[derive(Debug)]
#[must_use = "dropping a claim releases it"]
pub struct Claimed {
    memory: Arc<Memory>,
    key: EventKey,
    event: EventId,
    /// Says whose claim it is, so that nobody settles or releases another's.
    owner: u64,
    settled: bool,
}

impl Claimed {
    /// Remembers the event as accepted, and wakes the twins that wait for it.
    ///
    /// # Panics
    /// When `handoff` is another event's.
    pub fn settle(mut self, handoff: &Handoff) -> Accepted {
        assert_eq!(handoff.event(), self.key, "a claim is settled by the handoff of its own event");
        self.memory.commit(self.key, self.owner);
        self.settled = true;
        Accepted::new(AcceptedAs::Delivered, self.event.clone())
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if !self.settled {
            self.memory.release(self.key, self.owner);
        }
    }
}

/// An event whose twin is in flight.
#[derive(Debug)]
pub struct Twin {
    /// Closed when the twin's claim ends, settled or not.
    ended: watch::Receiver<()>,
}

impl Twin {
    /// Waits until the twin's claim has ended, settled or not; `false` when `deadline` came first.
    pub async fn ended(mut self, deadline: Deadline) -> bool {
        // Nothing is ever sent: the sender is dropped with the claim, which ends the wait with an error.
        deadline.bound(self.ended.changed()).await.is_ok()
    }
}

/// An event that was accepted before.
#[derive(Debug)]
pub struct Duplicate {
    event: EventId,
}

impl Duplicate {
    /// Accepts the repeat as what it is.
    pub fn accept(self) -> Accepted {
        Accepted::new(AcceptedAs::Duplicate, self.event)
    }
}

impl Memory {
    /// Claims `event`, or says why it cannot be claimed.
    pub fn claim(self: &Arc<Self>, event: &Authenticated<Event>) -> Claim {
        let id = event.id.clone();
        match self.try_claim(event.key) {
            memory::Found::Nothing { owner } => {
                let memory = Arc::clone(self);
                Claim::Fresh(Claimed { memory, key: event.key, event: id, owner, settled: false })
            }
            memory::Found::InFlight(ended) => Claim::InFlight(Twin { ended }),
            memory::Found::Accepted => Claim::Duplicate(Duplicate { event: id }),
        }
    }
}
