//! The AMQP 0-9-1 sink, for RabbitMQ 3.10 and later.
//!
//! Publishes to an exchange with publisher confirms, `mandatory` and persistent, under the event's id as `message-id`, and
//! gives a receipt only for an acknowledgement of a message that was not returned. It knows nothing of sources, routes or
//! retries within the reply deadline.
//!
//! The surprising thing: the broker acknowledges what no queue takes, too, and the library says of a returned message whose
//! acknowledgement came next, not whose it is. Only [`ledger`] tells which acknowledgement is a receipt.
//!
//! What an operator has to know:
//! - RabbitMQ does not recognise repeats. After an `Unknown` a message may be there twice; consumers recognise it by
//!   `message-id` (or by the header `ce-id`).
//! - A receipt is as good as the queue: durable or it ends with a restart, a quorum queue or it ends with its node.
//! - A message that several queues take and one of them refuses (`reject-publish`) is repeated for all of them.
//! - While the broker has blocked the connection, every publish fails at once. The broker takes the first message of an
//!   alarm off the socket before it says so: that one's answer comes with the end of the alarm, or not in time. What was
//!   written or queued by then is stored when the alarm ends.
//!
//! The library logs through `tracing` as `lapin`: each failed attempt as an error, and each returned message as a warning
//! **with its body and headers** (`lapin::returned_messages`). All that matters of it is told to the observer, so the program
//! must filter the target `lapin` out.

mod access;
mod broker;
mod config;
mod connection;
mod error;
mod lane;
mod ledger;
mod outbound;
mod sink;
mod socket;

use hookgate_core::sink::Addressing;

pub use self::{
    config::{Config, TlsConfig},
    sink::{AmqpSink, connect},
};

/// What a destination in this sink names: an exchange and a routing key.
pub const ADDRESSING: Addressing = Addressing::Exchange;
