//! Which events were accepted before: claimed first, remembered only after the handoff.
//!
//! A claim is the right to publish one event id, held by one worker. Settling it with a [`Handoff`] remembers the id for
//! the window; dropping it, however that comes about, forgets the id, so that a failed publish is never taken for seen.
//!
//! There are two tiers. The memory of the process answers first, but only for what is known to be accepted; it also holds
//! twins back, so that the second tier, a store that all replicas share, is asked once for all of them. Where the two
//! differ, the store is right. Without it each process is on its own.

mod memory;
mod shared;
mod store;

use std::{sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use self::shared::{Remote, SharedClaim};
pub use self::{
    memory::Memory,
    shared::{Settler, Shared},
    store::{ClaimStore, Held, Holder, Owner, StoreError, StoreReason},
};
use crate::{
    auth::Authenticated,
    event::{Event, EventId, EventKey, Fingerprint},
    handoff::{Accepted, AcceptedAs, Handoff, Refused},
    identity::MissingId,
    limits::Deadline,
    observe::{DedupResult, Observation, Observer},
};

/// The `dedup` table of a source.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceDedupConfig {
    /// What becomes of an event while the shared store does not answer. Default: `dedup.redis.on_outage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_outage: Option<OnOutage>,
    /// What becomes of an event whose id was accepted with another body. Default: `"duplicate"`.
    pub on_mismatch: OnMismatch,
    /// What becomes of an event that has none of the ids in `event_id`. Default: what stands last in `event_id` if that is
    /// `"body-sha256"` or `"unique"`, else `"body-sha256"`, since an exact repeat is a repeat of anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing_id: Option<MissingId>,
}

/// What becomes of an event while the shared store does not answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnOutage {
    /// It is published: a repeat that another replica has published becomes a duplicate, unless the broker knows its id.
    /// The default, since a duplicate can be mended and a loss cannot.
    #[default]
    Accept,
    /// It is refused with 503: for consumers that cannot bear a duplicate, and senders that try again.
    Refuse,
}

/// What becomes of an event whose id was accepted with another body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnMismatch {
    /// It is a duplicate: senders do write the time or the number of the attempt into a repeat. The default.
    #[default]
    Duplicate,
    /// It is an event of its own; its id says which body it has.
    NewEvent,
}

/// What a source wants of deduplication.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DedupPolicy {
    /// See [`OnOutage`].
    pub on_outage: OnOutage,
    /// See [`OnMismatch`].
    pub on_mismatch: OnMismatch,
}

/// How long this process remembers what another one accepted. A flood of repeats then asks the store once in that time, and
/// the window is not longer here than there by more than that.
const REMEMBERED_FOR_OTHERS: Duration = Duration::from_secs(60);

/// Both tiers.
#[derive(Clone)]
pub struct Dedup {
    /// What this process knows.
    pub memory: Arc<Memory>,
    /// What all replicas know, if they share a store.
    pub shared: Option<Arc<Shared>>,
    /// Who is told what happens.
    pub observer: Arc<dyn Observer>,
}

impl Dedup {
    /// Claims `event`. A twin in flight is waited for, here or in another process, and its claim taken over if it fails.
    ///
    /// # Errors
    /// [`Refused::InProgress`] when the twin did not end before `deadline`; [`Refused::DedupUnavailable`] when the shared
    /// store does not answer and `policy` demands that it does.
    pub async fn claim(
        &self,
        event: &Authenticated<Event>,
        policy: DedupPolicy,
        deadline: Deadline,
    ) -> Result<Result<Claimed, Duplicate>, Refused> {
        let mut if_fresh = DedupResult::New;
        loop {
            match self.memory.claim(event) {
                Claim::Fresh(claimed) => return self.confirm(claimed, event, if_fresh, policy, deadline).await,
                Claim::Duplicate(duplicate) => {
                    self.checked(DedupResult::Duplicate);
                    return Ok(Err(duplicate));
                }
                Claim::InFlight(twin) => {
                    if if_fresh == DedupResult::New {
                        self.checked(DedupResult::InProgress);
                    }
                    if_fresh = DedupResult::Takeover;
                    if !twin.ended(deadline).await {
                        return Err(Refused::InProgress);
                    }
                }
            }
        }
    }

    /// Makes a claim that is good in this process good among all replicas.
    async fn confirm(
        &self,
        mut claimed: Claimed,
        event: &Event,
        if_fresh: DedupResult,
        policy: DedupPolicy,
        deadline: Deadline,
    ) -> Result<Result<Claimed, Duplicate>, Refused> {
        let shared = match &self.shared {
            Some(shared) if event.repeatable => shared.claim(event.key, deadline).await,
            _ => {
                self.checked(if_fresh);
                return Ok(Ok(claimed));
            }
        };
        let (result, outcome) = match shared {
            SharedClaim::Ours(remote) => (if_fresh, Ok(Ok(remote))),
            SharedClaim::TakenOver(remote) => (DedupResult::Takeover, Ok(Ok(remote))),
            SharedClaim::Accepted(body) => (DedupResult::Duplicate, Ok(Err(body))),
            SharedClaim::InProgress => (DedupResult::InProgress, Err(Refused::InProgress)),
            SharedClaim::Unknown(remote) if policy.on_outage == OnOutage::Accept => {
                (DedupResult::Bypassed, Ok(Ok(remote)))
            }
            SharedClaim::Unknown(_) => (DedupResult::Error, Err(Refused::DedupUnavailable)),
        };
        self.checked(result);
        outcome.map(|held| match held {
            Ok(remote) => {
                claimed.remote = Some(remote);
                Ok(claimed)
            }
            Err(body) => Err(claimed.accepted_elsewhere(body)),
        })
    }

    fn checked(&self, result: DedupResult) {
        self.observer.observe(&Observation::DedupChecked { result });
    }
}

/// What this process knows about an event when it arrives.
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
#[must_use = "dropping a claim releases it"]
pub struct Claimed {
    memory: Arc<Memory>,
    key: EventKey,
    event: EventId,
    /// Whether the id is worth remembering.
    repeatable: bool,
    body: Fingerprint,
    /// Says whose claim it is, so that nobody settles or releases another's.
    owner: u64,
    settled: bool,
    /// The same claim among all replicas.
    remote: Option<Remote>,
}

impl Claimed {
    /// Remembers the event as accepted: at once in this process, where the twins that wait for it are woken, and soon in the
    /// shared store. It waits only while that one has thousands to be told of, and then a quarter of a second at most.
    ///
    /// # Panics
    /// When `handoff` is another event's.
    ///
    /// # Cancel safety
    /// From its first poll on this process remembers; the shared store may not be told.
    pub async fn settle(mut self, handoff: &Handoff) -> Accepted {
        assert_eq!(handoff.event(), self.key, "a claim is settled by the handoff of its own event");
        if self.repeatable {
            self.memory.commit(self.key, self.owner, self.body);
            self.settled = true;
        }
        if let Some(remote) = self.remote.take() {
            remote.commit(self.body).await;
        }
        Accepted::new(handoff.as_what(), self.event.clone())
    }

    /// The event turned out to be a repeat of what another replica accepted with the body `accepted`.
    fn accepted_elsewhere(mut self, accepted: Fingerprint) -> Duplicate {
        self.memory.commit_for(self.key, self.owner, accepted, REMEMBERED_FOR_OTHERS);
        self.settled = true;
        Duplicate { event: self.event.clone(), same_body: accepted == self.body }
    }
}

impl std::fmt::Debug for Claimed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claimed").field("key", &self.key).field("settled", &self.settled).finish_non_exhaustive()
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
    same_body: bool,
}

impl Duplicate {
    /// Whether the accepted event had the same body.
    pub fn has_same_body(&self) -> bool {
        self.same_body
    }

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
            memory::Found::Nothing { owner } => Claim::Fresh(Claimed {
                memory: Arc::clone(self),
                key: event.key,
                event: id,
                repeatable: event.repeatable,
                body: event.fingerprint,
                owner,
                settled: false,
                remote: None,
            }),
            memory::Found::InFlight(ended) => Claim::InFlight(Twin { ended }),
            memory::Found::Accepted(body) => {
                Claim::Duplicate(Duplicate { event: id, same_body: body == event.fingerprint })
            }
        }
    }
}
