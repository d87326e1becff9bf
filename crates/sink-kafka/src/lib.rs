//! The Kafka sink.
//!
//! Publishes with `acks=all` and an idempotent producer, and gives a receipt only for the broker's own report that it has
//! stored the message. It knows nothing of sources, routes or retries within the reply deadline.
//!
//! The surprising thing: librdkafka never says that it is disconnected, and never gives a message back once it has been
//! handed over, except when the whole producer is thrown away. So the sink keeps asking the cluster for signs of life itself
//! (`watch`), hands nothing over while there are none, and replaces a producer that still holds messages whose callers have
//! given up (`producer`): they would be published by a broker that comes back.
//!
//! Whether the broker stored a message is not known after a repeat from outside: Kafka recognises only librdkafka's own
//! repeats. Consumers recognise the others by the header `hookgate-event-id`.

mod access;
mod config;
mod error;
mod producer;
mod sink;
mod watch;

use hookgate_core::sink::Addressing;

pub use self::{
    config::{Compression, Config, Sasl, TlsConfig},
    sink::{KafkaSink, connect},
};

/// What a destination in this sink names: a topic, and the key that chooses a partition of it.
pub const ADDRESSING: Addressing = Addressing::Topic;
