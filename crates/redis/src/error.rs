//! What can go wrong with Redis, and what follows from it.

use std::error::Error;

use hookgate_core::dedup::StoreReason;
use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Why the store cannot begin to connect: something that the config names cannot be used.
///
/// A Redis that is down, or refuses us, is not among it: the store starts without and says so.
#[derive(Debug, thiserror::Error)]
#[error("set up dedup.redis from its key `{key}`")]
pub struct ConnectError {
    /// The key at fault, relative to the table.
    pub key: String,
    source: Box<dyn Error + Send + Sync>,
}

impl ConnectError {
    pub(crate) fn new(key: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { key: key.into(), source: source.into() }
    }
}

/// Why an operation, or an attempt to connect, came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub(crate) struct Trouble {
    pub(crate) reason: StoreReason,
    /// The words of the server or the system, with what to do where that is known.
    words: String,
    pub(crate) cure: Cure,
}

/// What helps against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cure {
    /// Another connection, which may lead to another server: repeating the operation there may succeed at once.
    Reconnect,
    /// Doing without until a new connection has proved that it is over.
    Wait,
    /// Nothing, if it is the only one; like [`Self::Wait`], if it is one of several in a row.
    Patience,
    /// Nothing: the connection is good, and what was asked cannot be done.
    None,
}

impl Trouble {
    pub(crate) fn new(reason: StoreReason, words: impl Into<String>, cure: Cure) -> Self {
        Self { reason, words: words.into(), cure }
    }

    /// While connecting to `place`.
    pub(crate) fn at(mut self, place: &str) -> Self {
        self.words = format!("connect to {place}: {}", self.words);
        self
    }

    /// Nothing came in time.
    pub(crate) fn silent() -> Self {
        Self::new(StoreReason::Timeout, "no answer in time", Cure::Patience)
    }
}

impl From<RedisError> for Trouble {
    fn from(error: RedisError) -> Self {
        // Of many commands, what the first of those has met that failed: the library names them all, and has no code for it.
        let first =
            error.clone().into_server_errors().and_then(|errors| errors.first().map(|(_, first)| first.clone()));
        let error = first.map_or(error, RedisError::from);
        let (reason, cure) = verdict(&error);
        Self { reason, words: words(&error), cure }
    }
}

fn verdict(error: &RedisError) -> (StoreReason, Cure) {
    if error.is_timeout() {
        return (StoreReason::Timeout, Cure::Patience);
    }
    match error.kind() {
        ErrorKind::AuthenticationFailed => (StoreReason::Auth, Cure::Wait),
        ErrorKind::Server(kind) => match kind {
            // After a failover: the name or the Sentinels may lead elsewhere by now.
            ServerErrorKind::ReadOnly => (StoreReason::ReadOnly, Cure::Reconnect),
            ServerErrorKind::NoPerm => (StoreReason::Auth, Cure::Wait),
            ServerErrorKind::BusyLoading
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::TryAgain
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask => (StoreReason::Busy, Cure::Wait),
            _ => by_code(error.code().unwrap_or_default()),
        },
        ErrorKind::Extension => by_code(error.code().unwrap_or_default()),
        ErrorKind::InvalidClientConfig if is_about_tls(error) => (StoreReason::Tls, Cure::Wait),
        ErrorKind::Io if is_about_tls(error) => (StoreReason::Tls, Cure::Wait),
        _ if error.is_io_error() || error.is_connection_dropped() || error.is_unrecoverable_error() => {
            (StoreReason::Disconnected, Cure::Reconnect)
        }
        ErrorKind::MasterNameNotFoundBySentinel | ErrorKind::ClusterConnectionNotFound => {
            (StoreReason::Disconnected, Cure::Wait)
        }
        _ => (StoreReason::Other, Cure::None),
    }
}

/// Source: the error codes in Redis' `server.c` (`shared` objects) and `acl.c`, 7.0.
fn by_code(code: &str) -> (StoreReason, Cure) {
    match code {
        "OOM" => (StoreReason::Full, Cure::Wait),
        "NOREPLICAS" | "MISCONF" => (StoreReason::ReadOnly, Cure::Wait),
        "BUSY" => (StoreReason::Busy, Cure::Wait),
        "NOAUTH" | "WRONGPASS" => (StoreReason::Auth, Cure::Wait),
        _ => (StoreReason::Other, Cure::None),
    }
}

/// The library tells a failed handshake as an I/O error, with what TLS says inside.
fn is_about_tls(error: &RedisError) -> bool {
    let text = error.to_string();
    ["certificate", "tls", "TLS", "HandshakeFailure"].iter().any(|word| text.contains(word))
}

/// The error on one line. None of the library's errors has a URL or a password in it.
fn words(error: &RedisError) -> String {
    if error.is_timeout() {
        return Trouble::silent().words;
    }
    // `SET` with both came with 7.0, and is all that an older server has to say no to.
    if error.to_string().contains("syntax error") {
        return format!("{error}: this needs Redis 7.0 or later, or Valkey");
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: &str) -> Trouble {
        redis::make_extension_error(code.to_owned(), Some("details".to_owned())).into()
    }

    #[test]
    fn what_a_server_refuses_with_says_what_helps() {
        for (code, reason, cure) in [
            ("OOM", StoreReason::Full, Cure::Wait),
            ("MISCONF", StoreReason::ReadOnly, Cure::Wait),
            ("NOREPLICAS", StoreReason::ReadOnly, Cure::Wait),
            ("BUSY", StoreReason::Busy, Cure::Wait),
            ("NOAUTH", StoreReason::Auth, Cure::Wait),
            ("WRONGPASS", StoreReason::Auth, Cure::Wait),
            ("WRONGTYPE", StoreReason::Other, Cure::None),
        ] {
            let trouble = server(code);
            assert_eq!((trouble.reason, trouble.cure), (reason, cure), "{code}");
            assert!(trouble.to_string().contains(code), "{trouble}");
        }
    }

    #[test]
    fn a_lost_connection_is_told_from_silence() {
        let lost = |kind: std::io::ErrorKind| Trouble::from(RedisError::from(std::io::Error::from(kind)));
        for kind in
            [std::io::ErrorKind::BrokenPipe, std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::UnexpectedEof]
        {
            assert_eq!(lost(kind).cure, Cure::Reconnect, "{kind:?}");
        }
        assert_eq!(lost(std::io::ErrorKind::TimedOut), Trouble::silent());
    }
}
