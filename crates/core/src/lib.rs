//! The domain of hookgate, free of I/O.
//!
//! An event travels through proofs: [`auth::Unverified`] → [`auth::Authenticated`]`<`[`event::Event`]`>` →
//! [`route::Plan`] → [`dedup::Claimed`] → [`sink::Receipt`] → [`handoff::Handoff`] → [`handoff::Accepted`]. Each one can
//! only be made from the one before it, so a 2xx that was not earned does not compile ([`proofs`] shows it). The
//! [`pipeline`] is the one place that walks the whole way.
//!
//! This crate must not know HTTP servers, brokers, files or environment variables: what it needs from them is handed in.

pub mod answers;
pub mod auth;
pub mod config;
pub mod dedup;
pub mod drain;
pub mod envelope;
pub mod event;
pub mod explain;
pub mod handoff;
pub mod handshake;
pub mod identity;
pub mod intake;
pub mod json;
pub mod limits;
pub mod message;
pub mod observe;
pub mod pipeline;
pub mod preset;
pub mod proofs;
pub mod publisher;
pub mod record;
pub mod redact;
pub mod route;
pub mod secret;
pub mod sink;
pub mod source;
pub mod spool;
pub mod template;
pub mod trace;
pub mod worker;
