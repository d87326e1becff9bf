//! The port to a claim store that replicas share.
//!
//! A store may forget anything at any time, a failover or a flush is enough: then an event is published twice. It must never
//! say that an event was accepted which was not, so nothing is committed before its handoff.

use std::{error::Error, fmt, time::Duration};

use data_encoding::HEXLOWER;
use futures_util::future::BoxFuture;

use crate::{
    event::{EventKey, Fingerprint},
    observe::labels,
};

/// Claims that all replicas see.
///
/// Every operation is one round trip, ends within a time budget of the store's own, and fails at once while the store is
/// known to be down, so that an outage costs events no time. Dropping its future may leave it done or not.
pub trait ClaimStore: Send + Sync + 'static {
    /// Claims `key` for `owner`, unless somebody holds it. Claiming again what `owner` holds already succeeds: so a claim
    /// whose answer was lost is simply made again.
    ///
    /// The store forgets the claim after `lease`.
    fn claim(&self, key: EventKey, owner: Owner, lease: Duration) -> BoxFuture<'_, Result<Held, StoreError>>;

    /// Replaces the claim of `from` by one for `owner`; `false` when `from` does not hold it any more.
    fn take_over<'a>(
        &'a self,
        key: EventKey,
        from: &'a Holder,
        owner: Owner,
        lease: Duration,
    ) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Remembers for `window` that these events were accepted, with these bodies, whoever holds their claims by now: it is true
    /// all the same. With an error some of them may be remembered.
    fn commit<'a>(
        &'a self,
        accepted: &'a [(EventKey, Fingerprint)],
        window: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Forgets the claim, if it is still `owner`'s.
    fn release(&self, key: EventKey, owner: Owner) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Whose claim it is: drawn anew for each, so that nobody can release another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(u128);

impl Owner {
    /// Somebody new.
    pub fn random() -> Self {
        Self(fastrand::u128(..))
    }
}

impl fmt::Display for Owner {
    /// 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Made for every claim: the formatter would look at each digit for its width.
        fmt::Display::fmt(&HEXLOWER.encode_display(&self.0.to_be_bytes()), f)
    }
}

/// Somebody else's claim, as the store has it written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder(pub Box<str>);

/// What a store knows of an event that is to be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// It is ours now.
    ByUs,
    /// Its twin is being published by somebody else, who asked for `lease` to do so.
    ByOther {
        /// Who.
        holder: Holder,
        /// For how long, from when the claim was made.
        lease: Duration,
    },
    /// It was accepted before, with this body.
    Accepted(Fingerprint),
}

/// Why a store gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
#[error("the dedup store does not answer: {reason}")]
pub struct StoreError {
    /// What kind of trouble it is.
    pub reason: StoreReason,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl StoreError {
    /// For `reason`.
    pub fn new(reason: StoreReason) -> Self {
        Self { reason, source: None }
    }

    /// With what the store or the network said.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

labels! {
    /// What kind of trouble a store has.
    StoreReason {
        /// No answer within its time budget.
        Timeout => "timeout",
        /// There is no connection.
        Disconnected => "disconnected",
        /// Credentials are wrong or revoked, or lack a right.
        Auth => "auth",
        /// TLS does not come about.
        Tls => "tls",
        /// It is a replica, or lacks the replicas that it needs, and takes no writes.
        ReadOnly => "read_only",
        /// It has no memory left.
        Full => "full",
        /// It is loading, busy with a script, or its cluster is incomplete.
        Busy => "busy",
        /// Anything else.
        Other => "other",
    }
}

impl fmt::Display for StoreReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
