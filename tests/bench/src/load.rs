//! The load generator: one thread, many connections, one event on each at a time.
//!
//! Open loop: events fall due at a fixed rate whatever the server does, and an event's latency is counted from the moment when it
//! was due. A server that stands still for a second is so charged for all events of that second, not for the few that happened to be
//! on the way (coordinated omission). With [`Pace::Max`] the loop is closed, and latencies are from sending.
//!
//! It speaks to epoll itself: tokio's timers go by the millisecond, and a generator that shares a machine with what it measures
//! has to cost little.

mod connection;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    num::NonZeroU64,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};

pub(crate) use self::connection::connecting;
use self::connection::{Connection, Due, End};
use crate::event::Events;

/// What is sent, and how.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Where the server listens.
    pub(crate) address: SocketAddr,
    /// Connections, and so events under way at once, at most.
    pub(crate) connections: usize,
    /// Whether a connection carries more than one event.
    pub(crate) reuse: Reuse,
    /// When events fall due.
    pub(crate) pace: Pace,
    /// For how long events are sent.
    pub(crate) duration: Duration,
    /// How many are sent, at most.
    pub(crate) events_max: u64,
    /// The number of the first event; the others follow.
    pub(crate) first: u64,
    /// How long an answer is waited for.
    pub(crate) answer_limit: Duration,
}

impl Plan {
    /// Events as fast as answers come, on connections that are kept.
    pub(crate) fn at_full_speed(address: SocketAddr, connections: usize, duration: Duration) -> Self {
        Self {
            address,
            connections,
            reuse: Reuse::KeepAlive,
            pace: Pace::Max,
            duration,
            events_max: u64::MAX,
            first: 0,
            answer_limit: Duration::from_secs(10),
        }
    }
}

/// When events fall due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pace {
    /// When a connection is free for them.
    Max,
    /// At this many a second, evenly.
    PerSecond(f64),
}

/// Whether a connection carries more than one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// As many as the server lets it.
    KeepAlive,
    /// One, and opening it is a part of the latency.
    Fresh,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Events that were sent.
    pub(crate) sent: u64,
    /// Answers by their status.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Events whose connection broke before the answer.
    pub(crate) broken: u64,
    /// Events that had no answer within the limit.
    pub(crate) timed_out: u64,
    /// Events that were due and for which no connection became free until the end.
    pub(crate) unsent: u64,
    /// From the moment when an event was due to its answer, or to the end of hope for one; in nanoseconds.
    pub(crate) latency: Histogram<u64>,
    /// How much later than due an event was sent though a connection was free: the generator's own doing. In nanoseconds.
    pub(crate) lateness: Histogram<u64>,
    /// From the first event to the last answer.
    pub(crate) elapsed: Duration,
    /// The numbers of the events that were answered 2xx.
    pub(crate) accepted: Vec<u64>,
}

impl Outcome {
    fn new() -> Self {
        Self {
            sent: 0,
            statuses: BTreeMap::new(),
            broken: 0,
            timed_out: 0,
            unsent: 0,
            latency: histogram(),
            lateness: histogram(),
            elapsed: Duration::ZERO,
            accepted: Vec::new(),
        }
    }

    /// How many answers there were.
    pub(crate) fn answers(&self) -> u64 {
        self.statuses.values().sum()
    }

    /// How many answers had this status.
    pub(crate) fn with_status(&self, status: u16) -> u64 {
        self.statuses.get(&status).copied().unwrap_or_default()
    }

    /// Answers in a second.
    pub(crate) fn rate(&self) -> f64 {
        self.answers() as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency that `share` of the events did not exceed, in milliseconds.
    pub(crate) fn latency_ms(&self, share: f64) -> f64 {
        self.latency.value_at_quantile(share) as f64 / 1e6
    }

    /// The lateness that `share` of the events did not exceed, in milliseconds.
    pub(crate) fn lateness_ms(&self, share: f64) -> f64 {
        self.lateness.value_at_quantile(share) as f64 / 1e6
    }
}

/// An empty one: 1 µs to 10 min, in nanoseconds, to a thousandth.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1000, 600_000_000_000, 3).expect("the bounds are in order")
}

/// Adds a duration to a histogram of nanoseconds.
pub(crate) fn record(histogram: &mut Histogram<u64>, duration: Duration) {
    histogram.saturating_record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
}

/// How often connections are looked through for answers that are overdue.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Answers that are read in one go.
const READY_MAX: usize = 256;

/// Sends events as planned and waits for their answers. It takes `plan.duration`, and up to `plan.answer_limit` more.
///
/// # Errors
/// When sockets cannot be made, for want of file descriptors above all. What a server does wrong is no error.
pub(crate) fn run(plan: &Plan, events: &Events) -> io::Result<Outcome> {
    // So that a wait ends when it was to end, not up to 50 µs later.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let open = |place: usize| Connection::open(plan.address, &epoll, place);
    let connections = (0..plan.connections).map(open).collect::<io::Result<Vec<_>>>()?;
    let start = Instant::now();
    let idle = (0..plan.connections).collect();
    let end = start + plan.duration;
    let outcome = Outcome::new();
    let mut run = Run { plan, events, epoll, connections, idle, start, end, sending_ends: end, outcome };
    run.all()?;
    Ok(run.outcome)
}

struct Run<'a> {
    plan: &'a Plan,
    events: &'a Events,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    /// Places of the connections without an event, the one that has been so for longest first.
    idle: VecDeque<usize>,
    start: Instant,
    end: Instant,
    /// `end`, or when the last of `events_max` was sent.
    sending_ends: Instant,
    outcome: Outcome,
}

impl Run<'_> {
    fn all(&mut self) -> io::Result<()> {
        let mut ready: Vec<epoll::Event> = Vec::with_capacity(READY_MAX);
        let mut next_look = self.start + LOOK_INTERVAL;
        loop {
            let now = self.send_what_is_due()?;
            if now >= self.sending_ends && self.idle.len() == self.connections.len() {
                break;
            }
            if now >= next_look {
                self.give_up_the_overdue(now);
                next_look = now + LOOK_INTERVAL;
            }
            let until = if self.idle.is_empty() { next_look } else { self.next_due(now).min(next_look) };
            wait(&self.epoll, &mut ready, until.saturating_duration_since(now))?;
            for event in ready.drain(..) {
                let place = usize::try_from(event.data.u64()).expect("it was a place");
                self.drive(place);
            }
        }
        self.outcome.elapsed = self.start.elapsed();
        self.charge_the_unsent();
        Ok(())
    }

    /// When the next event is due, or the end of sending.
    fn next_due(&self, now: Instant) -> Instant {
        match self.plan.pace {
            _ if now >= self.sending_ends => now + LOOK_INTERVAL,
            Pace::Max => now,
            Pace::PerSecond(rate) => self.due(rate).min(self.sending_ends),
        }
    }

    /// When the event after those that were sent is due at this rate.
    fn due(&self, rate: f64) -> Instant {
        self.start + Duration::from_secs_f64(self.outcome.sent as f64 / rate)
    }

    /// Returns the time after it.
    fn send_what_is_due(&mut self) -> io::Result<Instant> {
        loop {
            let now = Instant::now();
            if now >= self.sending_ends || self.idle.is_empty() {
                return Ok(now);
            }
            let due = match self.plan.pace {
                Pace::Max => now,
                Pace::PerSecond(rate) => self.due(rate),
            };
            if due > now {
                return Ok(now);
            }
            let Some(place) = self.idle.pop_front() else { return Ok(now) };
            // Late by the generator's own doing only if the connection was free before.
            record(
                &mut self.outcome.lateness,
                now.saturating_duration_since(due.max(self.connections[place].free_since)),
            );
            let number = self.plan.first + self.outcome.sent;
            self.outcome.sent += 1;
            if self.outcome.sent >= self.plan.events_max {
                self.sending_ends = now;
            }
            let connection = &mut self.connections[place];
            if self.plan.reuse == Reuse::Fresh {
                connection.leave();
            }
            connection.send(Due { number, at: due }, now, self.events, &self.epoll)?;
        }
    }

    /// Moves a connection on as far as it goes.
    fn drive(&mut self, place: usize) {
        match self.connections[place].advance() {
            End::NotYet => return,
            End::Answered(status) => {
                *self.outcome.statuses.entry(status).or_default() += 1;
                if (200..300).contains(&status) {
                    self.outcome.accepted.push(self.connections[place].event.number);
                }
            }
            End::Broken => self.outcome.broken += 1,
        }
        self.finished(place);
    }

    fn give_up_the_overdue(&mut self, now: Instant) {
        for place in 0..self.connections.len() {
            let connection = &mut self.connections[place];
            if connection.is_free() || now.saturating_duration_since(connection.sent_at) < self.plan.answer_limit {
                continue;
            }
            connection.leave();
            self.outcome.timed_out += 1;
            self.finished(place);
        }
    }

    fn finished(&mut self, place: usize) {
        let (now, connection) = (Instant::now(), &mut self.connections[place]);
        record(&mut self.outcome.latency, now.saturating_duration_since(connection.event.at));
        connection.free_since = now;
        self.idle.push_back(place);
    }

    /// An event that was due and found no connection waited at least until the end.
    fn charge_the_unsent(&mut self) {
        let Pace::PerSecond(rate) = self.plan.pace else { return };
        let due = ((self.plan.duration.as_secs_f64() * rate) as u64).min(self.plan.events_max);
        for place in self.outcome.sent..due {
            let due = self.start + Duration::from_secs_f64(place as f64 / rate);
            record(&mut self.outcome.latency, self.end.saturating_duration_since(due));
            self.outcome.unsent += 1;
        }
    }
}

fn wait(epoll: &OwnedFd, ready: &mut Vec<epoll::Event>, limit: Duration) -> io::Result<()> {
    let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    match epoll::wait(epoll, spare_capacity(ready), Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
