//! Senders that drip: many connections, on each of which a request comes a byte at a time and never ends.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::load::connecting;

/// What drips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drip {
    /// A header that does not end.
    Headers,
    /// A body of which a megabyte was announced.
    Body,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Connections that were begun, those in the place of others included.
    pub(crate) begun: usize,
    /// Those that the server ended.
    pub(crate) ended: usize,
    /// Those that took a byte the last time.
    pub(crate) held: usize,
}

/// How often each connection gets a byte.
const DRIP_INTERVAL: Duration = Duration::from_secs(1);

/// Connections that are begun in one go, so that the generator's other threads get a turn.
const BEGUN_AT_ONCE: usize = 200;

/// Keeps `connections` dripping until `end`; one that the server ends is replaced.
///
/// # Errors
/// When sockets cannot be made, for want of file descriptors above all.
pub(crate) fn drip(address: SocketAddr, path: &str, drip: Drip, connections: usize, end: Instant) -> io::Result<Held> {
    let host = address.to_string();
    let start = match drip {
        Drip::Headers => format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nX-Slow: "),
        Drip::Body => format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000\r\nContent-Type: application/json\r\n\
             X-Hub-Signature-256: sha256={}\r\n\r\n{{",
            "0".repeat(64)
        ),
    };
    let mut senders: Vec<Sender> = Vec::new();
    let mut count = Held::default();
    while Instant::now() < end {
        let next = Instant::now() + DRIP_INTERVAL;
        let before = senders.len();
        senders.retain_mut(|sender| sender.drip(start.as_bytes()));
        count.ended += before - senders.len();
        count.held = senders.iter().filter(|sender| sender.sent > 0).count();
        while senders.len() < connections && Instant::now() < end.min(next) {
            for _ in 0..BEGUN_AT_ONCE.min(connections - senders.len()) {
                senders.push(Sender { stream: connecting(address)?, sent: 0 });
                count.begun += 1;
            }
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(next.min(end).saturating_duration_since(Instant::now()));
    }
    Ok(count)
}

struct Sender {
    stream: TcpStream,
    sent: usize,
}

impl Sender {
    /// Sends the start of a request, or one byte more; false if the server has ended the connection, or answered.
    fn drip(&mut self, start: &[u8]) -> bool {
        let bytes = start.get(self.sent..).filter(|rest| !rest.is_empty()).unwrap_or(b"1");
        let blocked = |error: io::Error| error.kind() == ErrorKind::WouldBlock;
        let is_open = match self.stream.write(bytes) {
            Ok(bytes) => {
                self.sent += bytes;
                true
            }
            Err(error) => blocked(error),
        };
        // Nothing is to come: an answer is an end as well.
        is_open && self.stream.read(&mut [0]).is_err_and(blocked)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_connection_that_is_ended_is_counted_and_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("a bound port is known");
        // The first three are ended, the others are kept.
        thread::spawn(move || {
            let ended: Vec<_> = (0..3).map(|_| listener.accept().expect("a client comes")).collect();
            drop(ended);
            let _kept: Vec<_> = listener.incoming().collect();
        });
        let end = Instant::now() + Duration::from_millis(2500);
        let held = drip(address, "/", Drip::Headers, 5, end).expect("sockets can be made");
        assert_eq!(held, Held { begun: 8, ended: 3, held: 5 });
    }
}
