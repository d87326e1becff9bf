//! What can go wrong, and what the caller may make of it.

use std::{
    io::{self, ErrorKind},
    path::Path,
    sync::Arc,
};

/// What the caller may do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpoolErrorKind {
    /// The budget is spent, or the disk has too little left. There is room again once records are done with.
    Full,
    /// The disk does not take what it is given. It is tried again from time to time.
    Unwritable,
    /// Another process has the directory.
    Locked,
    /// A newer version wrote it. Everything is left as it is.
    NewerFormat,
    /// The disk does not give back what it has.
    Unreadable,
    /// The log is closed.
    Closed,
}

/// A failure of the log. Its source says what the operating system said.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}")]
pub struct SpoolError {
    /// What the caller may do.
    pub kind: SpoolErrorKind,
    what: String,
    #[source]
    source: Option<Arc<io::Error>>,
}

impl SpoolError {
    pub(crate) fn new(kind: SpoolErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), source: None }
    }

    /// `doing` to `path` failed; a full disk is told apart from a broken one.
    pub(crate) fn writing(doing: &str, path: &Path, source: io::Error) -> Self {
        let full = matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        let kind = if full { SpoolErrorKind::Full } else { SpoolErrorKind::Unwritable };
        Self { source: Some(Arc::new(source)), ..Self::new(kind, format!("{doing} {}", path.display())) }
    }

    pub(crate) fn reading(path: &Path, source: io::Error) -> Self {
        let what = format!("read {}", path.display());
        Self { source: Some(Arc::new(source)), ..Self::new(SpoolErrorKind::Unreadable, what) }
    }

    pub(crate) fn closed() -> Self {
        Self::new(SpoolErrorKind::Closed, "the spool is closed")
    }
}
