//! The file sink: each event is one JSON line, fsynced before its receipt.
//!
//! The files are `events-00000001.jsonl` and so on, in one directory that one hookgate owns. They are numbered, never
//! dated, and only ever appended to; a consumer may move or delete any but the newest. What stands in a line:
//! [`hookgate_core::record`].
//!
//! One thread owns the files ([`committer`]): it writes everything that is waiting at once and calls fsync once for all of
//! it. The surprising thing: after a failed fsync the file is never touched again. The kernel reports such an error once
//! and forgets the pages, so that a second fsync would report success for data that is lost.
//!
//! Nothing here deduplicates: a repeat after an unknown outcome is a second line with the same `id` and `source`.

mod committer;
mod config;
mod directory;
mod error;
mod inspect;
mod log;
mod segment;
mod sink;

use hookgate_core::sink::Addressing;

pub use self::{
    config::Config,
    error::ConnectError,
    inspect::inspect,
    sink::{FileSink, connect},
};

/// What a destination in this sink names: nothing, there is one place.
pub const ADDRESSING: Addressing = Addressing::None;
