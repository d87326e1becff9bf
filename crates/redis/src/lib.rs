//! The claim store that replicas share, in Redis 7.0 or later or in Valkey: alone, behind Sentinels, or as a cluster.
//!
//! Each event is one key of fixed size, a hash of its source and id, and every write of a key states how long it lives: what is
//! in Redis is bounded by the window, whatever crashes. The words of the protocol are in `entry`, its commands in `store`.
//!
//! The surprising thing: the library's own reconnecting is not used. A connection is either good, or it is dropped and events do
//! without until the next one has proved by a write that it is good (`link`). That is the circuit breaker as well.

mod access;
mod config;
mod entry;
mod error;
mod inspect;
mod link;
mod store;

pub use self::{
    config::{Config, TlsConfig, Topology},
    error::ConnectError,
    inspect::inspect,
    store::{RedisStore, connect},
};
