//! What can go wrong with files, and what that means to the caller.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use hookgate_core::{
    event::SinkId,
    sink::{PublishError, PublishErrorKind, PublishReason},
};

/// Why there is no sink.
#[derive(Debug, thiserror::Error)]
#[error("set up the file sink {sink}")]
pub struct ConnectError {
    /// The sink.
    pub sink: SinkId,
    #[source]
    failure: Failure,
}

impl ConnectError {
    pub(crate) fn new(sink: &SinkId, failure: Failure) -> Self {
        Self { sink: sink.clone(), failure }
    }
}

/// What failed. One of them may be the answer to many messages, so each is shared behind an [`Arc`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("use the directory {}{}", dir.display(), remedy(source))]
    Directory { dir: PathBuf, source: io::Error },
    #[error("lock {}: another process, or another sink, writes there; give each a directory of its own", lock.display())]
    Locked { lock: PathBuf },
    #[error("begin {}{}", file.display(), remedy(source))]
    Begin { file: PathBuf, source: io::Error },
    #[error("write to {}{}", file.display(), remedy(source))]
    Write { file: PathBuf, source: io::Error },
    #[error("take back what was written to {} in part", file.display())]
    TakeBack { file: PathBuf, source: io::Error },
    #[error("fsync {}; it is left as it is", file.display())]
    Sync { file: PathBuf, source: io::Error },
    #[error("keep {}: somebody has deleted it", file.display())]
    Deleted { file: PathBuf },
    #[error("find room in {}: {free_bytes} bytes are free", dir.display())]
    NoRoom { dir: PathBuf, free_bytes: u64 },
    #[error("start the writing thread")]
    Thread { source: io::Error },
    // The publisher's own.
    #[error("get a place in the queue before the deadline")]
    QueueFull,
    #[error("get it written before the deadline")]
    NotWritten,
    #[error("get an answer from the disk before the deadline")]
    NoAnswer,
    #[error("publish after the sink was closed")]
    Closed,
    #[error("reach the writing thread: it has ended")]
    Stopped,
}

impl Failure {
    pub(crate) fn directory(dir: &Path, source: io::Error) -> Self {
        let dir = dir.to_owned();
        Self::Directory { dir, source }
    }

    /// What it means to the caller.
    fn verdict(&self) -> (PublishErrorKind, PublishReason) {
        use PublishErrorKind::{Misconfigured, Throttled, Unavailable, Unknown};
        match self {
            // Nothing was written yet, and most of these do not pass by themselves.
            Self::Directory { source, .. } | Self::Begin { source, .. } => match source.kind() {
                ErrorKind::NotFound | ErrorKind::NotADirectory => (Misconfigured, PublishReason::NoDestination),
                ErrorKind::PermissionDenied => (Misconfigured, PublishReason::Auth),
                ErrorKind::ReadOnlyFilesystem => (Misconfigured, PublishReason::Other),
                _ => (Unavailable, reason(source)),
            },
            Self::Locked { .. } => (Misconfigured, PublishReason::Other),
            Self::Write { source, .. } => (Unavailable, reason(source)),
            Self::TakeBack { source, .. } | Self::Sync { source, .. } => (Unknown, reason(source)),
            Self::Deleted { .. } => (Unavailable, PublishReason::NoDestination),
            Self::NoRoom { .. } => (Unavailable, PublishReason::Full),
            Self::QueueFull => (Throttled, PublishReason::Throttled),
            Self::NotWritten => (Unavailable, PublishReason::Timeout),
            Self::NoAnswer => (Unknown, PublishReason::Timeout),
            Self::Thread { .. } | Self::Closed | Self::Stopped => (Unavailable, PublishReason::Other),
        }
    }

    /// As the answer of `sink`.
    pub(crate) fn as_error(self: Arc<Self>, sink: &SinkId) -> PublishError {
        let (kind, reason) = self.verdict();
        PublishError::new(sink, kind, reason).because(self)
    }
}

fn reason(source: &io::Error) -> PublishReason {
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => PublishReason::Full,
        _ => PublishReason::Other,
    }
}

/// What the operator can do about it, to be put after what failed.
fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::NotFound => "; make it, or mount its volume",
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => "; there is something else, set another `dir`",
        ErrorKind::PermissionDenied => "; let the user that hookgate runs as write there (in Kubernetes: fsGroup)",
        ErrorKind::ReadOnlyFilesystem => "; mount it writable, or set another `dir`",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; free some space: consumed files can be deleted",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use PublishErrorKind::{Misconfigured, Unavailable, Unknown};
    use PublishReason::{Auth, Full, NoDestination, Other};

    use super::*;

    #[test]
    fn what_is_not_written_may_be_repeated_and_what_may_be_written_is_unknown() {
        let errno = io::Error::from_raw_os_error;
        let (enospc, edquot, eio, enoent, eacces, erofs) = (28, 122, 5, 2, 13, 30);
        let file = || PathBuf::from("events-00000001.jsonl");
        let begin = |code| Failure::Begin { file: file(), source: errno(code) };
        let write = |code| Failure::Write { file: file(), source: errno(code) };
        let take_back = |code| Failure::TakeBack { file: file(), source: errno(code) };
        let sync = |code| Failure::Sync { file: file(), source: errno(code) };
        for (failure, verdict) in [
            (begin(enospc), (Unavailable, Full)),
            (begin(enoent), (Misconfigured, NoDestination)),
            (begin(eacces), (Misconfigured, Auth)),
            (begin(erofs), (Misconfigured, Other)),
            (write(enospc), (Unavailable, Full)),
            (write(edquot), (Unavailable, Full)),
            (write(eio), (Unavailable, Other)),
            (take_back(eio), (Unknown, Other)),
            (sync(eio), (Unknown, Other)),
            (sync(enospc), (Unknown, Full)),
        ] {
            assert_eq!(failure.verdict(), verdict, "{failure}");
        }
    }
}
