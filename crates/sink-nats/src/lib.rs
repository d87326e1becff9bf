//! The NATS JetStream sink.
//!
//! Publishes with the event's id as `Nats-Msg-Id` and the configured stream as `Nats-Expected-Stream`, and gives a receipt
//! only for JetStream's acknowledgement. It knows nothing of sources, routes or retries within the reply deadline.
//!
//! The surprising thing: a connection is never repaired. A client of the library lives as long as its one connection, and
//! the sink itself dials the next one (`connection`). What was in flight then ends at once instead of waiting for a
//! reply that cannot come, nothing is sent by a client that its caller has given up, and why a server refuses is known.
//!
//! The library logs through `tracing` as `async_nats`, each failed attempt as an error. All that matters of it is told to
//! the observer, so the program is well advised to filter that target out.

mod access;
mod config;
mod connection;
mod error;
mod review;
mod sink;

use hookgate_core::sink::Addressing;

pub use self::{
    config::{Config, TlsConfig},
    sink::{NatsSink, connect},
};

/// What a destination in this sink names: a subject.
pub const ADDRESSING: Addressing = Addressing::Subject;
