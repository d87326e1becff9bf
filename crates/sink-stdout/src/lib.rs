//! The standard-output sink: each event is one JSON line, for trying things and for feeding another program.
//!
//! What stands in a line: [`hookgate_core::record`]. A receipt means that the line was written and flushed: whoever reads
//! the other end of the pipe can have it. That is all, so it is no place for events that must not be lost.
//!
//! It is also the smallest sink, and the example in `docs/sinks/writing-one.md`. One thread writes, since a pipe whose reader
//! stands still would otherwise hold up a thread that serves requests.

mod config;
mod error;
mod sink;

use hookgate_core::sink::Addressing;

pub use self::{
    config::Config,
    error::ConnectError,
    sink::{StdoutSink, connect, connect_to},
};

/// What a destination in this sink names: nothing, there is one place.
pub const ADDRESSING: Addressing = Addressing::None;
