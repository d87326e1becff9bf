//! The last proofs: that every required destination has the event, and that a 2xx is therefore true.

use std::time::Duration;

use crate::{
    auth::AuthFailure,
    event::{EventId, EventKey},
    handshake::HandshakeReply,
    identity::Malformed,
    route::Plan,
    sink::Receipt,
    spool::Ticket,
};

/// Every required destination of one event has acknowledged it, or the spool has it for that destination.
#[derive(Debug)]
pub struct Handoff {
    event: EventKey,
    as_what: AcceptedAs,
}

impl Handoff {
    /// Adds up `receipts` and `tickets`; `None` when a required leg of `plan` has none among them.
    pub fn complete(plan: &Plan, receipts: &[Receipt], tickets: &[Ticket]) -> Option<Self> {
        let event = plan.event();
        let safe = |leg: usize| {
            receipts.iter().any(|receipt| receipt.is_for(event, leg))
                || tickets.iter().any(|ticket| ticket.is_for(event, leg))
        };
        let as_what = if tickets.is_empty() { AcceptedAs::Delivered } else { AcceptedAs::Spooled };
        let mut required = plan.legs().iter().filter(|leg| leg.required);
        required.all(|leg| safe(leg.index)).then_some(Self { event, as_what })
    }

    pub(crate) fn as_what(&self) -> AcceptedAs {
        self.as_what
    }

    pub(crate) fn event(&self) -> EventKey {
        self.event
    }
}

/// The only thing that is answered with a 2xx.
///
/// Made by settling a claim with its [`Handoff`], from a known duplicate of such an event, or for an event that the
/// operator's config tells to drop.
#[derive(Debug, Clone)]
pub struct Accepted {
    as_what: AcceptedAs,
    event: EventId,
}

/// Why an event is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptedAs {
    /// Every required destination has it.
    Delivered,
    /// The spool has it for those required destinations that do not have it yet.
    Spooled,
    /// An earlier one with the same id was accepted.
    Duplicate,
    /// `unrouted.action = "drop"` says that it is not wanted.
    Dropped,
}

impl Accepted {
    pub(crate) fn new(as_what: AcceptedAs, event: EventId) -> Self {
        Self { as_what, event }
    }

    /// Why it is accepted.
    pub fn as_what(&self) -> AcceptedAs {
        self.as_what
    }

    /// The event's id.
    pub fn event(&self) -> &EventId {
        &self.event
    }
}

/// The good end of a request: what is answered with a success.
#[derive(Debug, Clone)]
pub enum Answered {
    /// It was an event, and is safe.
    Accepted(Accepted),
    /// It was a handshake, and its answer is this.
    Handshake(HandshakeReply),
}

/// Why a request is not accepted. What of it the sender is told is decided where it is answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody knows who sent it.
    #[error("not authenticated: {0}")]
    Unauthenticated(AuthFailure),
    /// Its sender is known, and it is neither a POST nor a handshake.
    #[error("neither an event nor a handshake")]
    NotAnEvent,
    /// It asked us to confirm a subscription, and the provider did not take the confirmation.
    #[error("the subscription could not be confirmed")]
    NotConfirmed,
    /// It is no event.
    #[error(transparent)]
    Malformed(Malformed),
    /// Its source sends more than the config says; it may be sent again after this time.
    #[error("the source sends more than its max_rate")]
    RateLimited(Duration),
    /// There is no room for it, once it is decompressed.
    #[error("too many body bytes are in flight")]
    Overloaded,
    /// No route takes it.
    #[error("no route takes this event")]
    Unrouted,
    /// Its twin is being published and did not finish in time.
    #[error("the same event is being published")]
    InProgress,
    /// Nobody knows whether it was accepted before, and its source wants to know.
    #[error("the shared dedup store does not answer")]
    DedupUnavailable,
    /// A required destination did not take it. It is not remembered, so a repeat is tried anew.
    #[error("not handed off: {0:?}")]
    NotHandedOff(Miss),
}

/// How a handoff failed: the answer that helps the sender most, over all legs.
///
/// Ordered: where legs fail in several ways, the highest is told. An unknown outcome says most, and one that a retry can
/// mend comes before one that it cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Miss {
    /// A broker will never take it.
    Rejected,
    /// A broker cannot take it now.
    Unavailable,
    /// A broker did not answer: it may be stored.
    Unknown,
}
