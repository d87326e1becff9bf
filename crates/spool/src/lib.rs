//! Durable bytes on local disk: an append-only log of opaque records in segments, which gives its space back as records are
//! done with. It knows nothing of what the bytes mean.
//!
//! A record that has a [`Ticket`] was fsynced before; what the log finds damaged it sets aside and tells, and never drops in
//! silence. The surprising thing: after a failed fsync that file is never touched again. The kernel reports such an error once
//! and forgets the pages, so that a second fsync would report success for data that is lost.
//!
//! The format is in `format.rs`, what a start makes of it in `recovery.rs`, how records get to the disk in `committer.rs`.

mod committer;
mod directory;
mod disk;
mod error;
mod format;
mod log;
mod queue;
mod recovery;
mod scan;

pub use self::{
    directory::Lock,
    disk::free_bytes,
    error::{SpoolError, SpoolErrorKind},
    log::State,
    queue::{Budget, Happening, Options, Place, Queue, Record, Ticket},
    recovery::Recovered,
};

#[cfg(test)]
mod tests;
