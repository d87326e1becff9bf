//! One connection of the generator, which never waits.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::Instant,
};

use rustix::{
    event::epoll::{self, EventData, EventFlags},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt},
};

use crate::{
    answer::{self, After, Answer, Found},
    event::Events,
};

/// A connection, with the event on it.
#[derive(Debug)]
pub(super) struct Connection {
    address: SocketAddr,
    place: usize,
    stream: TcpStream,
    state: State,
    request: Vec<u8>,
    written: usize,
    received: Vec<u8>,
    /// The latest event.
    pub(super) event: Due,
    /// When that was sent.
    pub(super) sent_at: Instant,
    /// Since when there is no event on it.
    pub(super) free_since: Instant,
}

/// An event, and when it was to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Due {
    /// Its number.
    pub(super) number: u64,
    /// When it was due.
    pub(super) at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Asking,
    /// Nothing more can be sent on it: the next event takes a new connection.
    Gone,
}

/// What has come of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing so far.
    NotYet,
    /// An answer.
    Answered(u16),
    /// No answer will come.
    Broken,
}

impl Connection {
    /// Begins to connect. Events can be sent at once: they leave when the server has accepted.
    pub(super) fn open(address: SocketAddr, epoll: &OwnedFd, place: usize) -> io::Result<Self> {
        let stream = begin(address, epoll, place)?;
        let now = Instant::now();
        Ok(Self {
            address,
            place,
            stream,
            state: State::Idle,
            request: Vec::new(),
            written: 0,
            received: Vec::new(),
            event: Due { number: 0, at: now },
            sent_at: now,
            free_since: now,
        })
    }

    /// Has the next event take a new connection.
    pub(super) fn leave(&mut self) {
        self.state = State::Gone;
    }

    pub(super) fn is_free(&self) -> bool {
        self.state != State::Asking
    }

    /// Sends an event, or as much of it as the socket takes.
    pub(super) fn send(&mut self, event: Due, now: Instant, events: &Events, epoll: &OwnedFd) -> io::Result<()> {
        if self.state == State::Gone {
            self.stream = begin(self.address, epoll, self.place)?;
            self.received.clear();
        }
        events.write(event.number, &mut self.request);
        (self.event, self.sent_at) = (event, now);
        self.state = State::Asking;
        self.written = 0;
        // A failure is met again by `advance`, since the socket becomes ready with it.
        let _ = self.write();
        Ok(())
    }

    /// Goes on as far as the socket lets it.
    pub(super) fn advance(&mut self) -> End {
        if self.state == State::Gone {
            return End::NotYet;
        }
        let sending = self.write();
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return self.closed(),
                Ok(bytes) => {
                    self.received.extend_from_slice(&chunk[..bytes]);
                    // Less than there was room for: that was all, and more makes it ready anew.
                    if bytes < chunk.len() {
                        return self.look();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.closed(),
            }
        }
        match self.look() {
            End::NotYet if sending.is_err() => self.closed(),
            end => end,
        }
    }

    fn write(&mut self) -> io::Result<()> {
        while self.state == State::Asking && self.written < self.request.len() {
            match self.stream.write(&self.request[self.written..]) {
                Ok(bytes) => self.written += bytes,
                // Full, or not yet connected.
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn look(&mut self) -> End {
        if self.received.is_empty() {
            return End::NotYet;
        }
        match (self.state, answer::find(&self.received)) {
            // An answer to nothing.
            (State::Idle | State::Gone, _) => {
                self.state = State::Gone;
                End::NotYet
            }
            (State::Asking, Found::Part | Found::UntilClosed(_)) => End::NotYet,
            (State::Asking, Found::NoHttp) => {
                self.state = State::Gone;
                End::Broken
            }
            (State::Asking, Found::Answer(answer)) => {
                self.received.drain(..answer.bytes);
                // After an early answer the rest of the request would be taken for another one.
                let whole = self.written == self.request.len();
                self.state = match answer.connection {
                    After::Stays if whole => State::Idle,
                    After::Stays | After::Closes => State::Gone,
                };
                End::Answered(answer.status)
            }
        }
    }

    fn closed(&mut self) -> End {
        let was_idle = self.state == State::Idle;
        self.state = State::Gone;
        match answer::find(&self.received) {
            _ if was_idle => End::NotYet,
            Found::Answer(Answer { status, .. }) | Found::UntilClosed(status) => End::Answered(status),
            Found::Part | Found::NoHttp => End::Broken,
        }
    }
}

fn begin(address: SocketAddr, epoll: &OwnedFd, place: usize) -> io::Result<TcpStream> {
    let stream = connecting(None, address)?;
    // Edges only: nothing has to be said to epoll for each event.
    let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    epoll::add(epoll, &stream, EventData::new_u64(place as u64), flags)?;
    Ok(stream)
}

/// A socket that does not block and is on its way to `address`, from an address of ours if one is named: each has its own ports, of
/// which there are too few for many connections.
pub(crate) fn connecting(source: Option<IpAddr>, address: SocketAddr) -> io::Result<TcpStream> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    if let Some(source) = source {
        bind(&socket, &SocketAddr::new(source, 0))?;
    }
    match connect(&socket, &address) {
        // Refused at once is met again by the first read.
        Ok(()) | Err(Errno::INPROGRESS | Errno::CONNREFUSED) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}
