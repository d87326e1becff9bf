//! Takes what waits in the spool to its sink, as fast as the sink acknowledges it and no faster.
//!
//! Live traffic goes first: this has a bound of its own, small beside that of requests, and begins with one message at a time
//! whenever the sink has failed. A record that fails while others are acknowledged is at fault itself: it waits apart, so that
//! it holds up nobody, and in the end it is a dead letter. While nothing is acknowledged no record is to blame.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    envelope::{self, Burial},
    event::SourceId,
    limits::Deadline,
    observe::{AttemptResult, Chain, Observation, Observer, ReplayResult},
    publisher::Publisher,
    sink::PublishErrorKind,
    spool::{Backlog, Shelf, Spool, SpoolError, Waiting},
};

/// How the spool is emptied.
#[derive(Debug, Clone)]
pub struct DrainLimits {
    /// Messages being tried at once.
    pub in_flight: usize,
    /// Messages begun in a second.
    pub rate: u32,
    /// Attempts of a message, while others are acknowledged, before it is a dead letter.
    pub attempts: u32,
}

/// Bytes being tried at once; one message may be longer.
const BYTES_MAX: usize = 32 * 1024 * 1024;

/// How long one attempt may take. Nobody waits for it, so it is longer than any reply deadline.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);

/// First pause after a failure, and the longest. Doubled each time; half to the whole of it is waited.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Records that wait apart, at most. Past that no new ones are looked at until one of them is done with.
const APART_MAX: usize = 1024;

/// Empties the backlog of one sink.
pub struct Drain<B> {
    /// What waits.
    pub backlog: B,
    /// Where dead letters go.
    pub spool: Arc<dyn Spool>,
    /// The sink with its layers. It is another one after its config was changed.
    pub publisher: watch::Receiver<Arc<Publisher>>,
    /// The sources of the config, and of those before.
    pub sources: watch::Receiver<Arc<[SourceId]>>,
    /// How fast.
    pub limits: DrainLimits,
    /// Who is told what happens.
    pub observer: Arc<dyn Observer>,
}

/// How one attempt ended.
struct Attempted<P> {
    waiting: Waiting<P>,
    end: End,
}

enum End {
    Acked,
    /// `blamed` says that others were acknowledged meanwhile.
    Failed {
        blamed: bool,
        reason: AttemptResult,
        error: String,
    },
    /// Trying again is useless.
    Hopeless {
        reason: AttemptResult,
        error: String,
    },
}

impl<B: Backlog> Drain<B> {
    /// Works until `stop`; attempts that are under way then are waited for.
    pub async fn run(self, stop: CancellationToken) {
        let mut running: FuturesUnordered<BoxFuture<'_, Attempted<B::Place>>> = FuturesUnordered::new();
        let mut apart: BTreeMap<(Instant, B::Place), ()> = BTreeMap::new();
        let mut pace = Pace::new(&self.limits);
        let mut bytes = 0;
        loop {
            let now = Instant::now();
            let room = running.len() < pace.window && (bytes < BYTES_MAX || running.is_empty());
            let may_begin = room && pace.not_before <= now && !stop.is_cancelled();
            if stop.is_cancelled() && running.is_empty() {
                return;
            }
            let due = apart.keys().next().map(|(at, _)| *at);
            if may_begin && due.is_some_and(|at| at <= now) {
                let ((_, place), ()) = apart.pop_first().expect("it was seen just now");
                match self.backlog.read(place).await {
                    Ok(None) => {}
                    Ok(Some(waiting)) => {
                        bytes += waiting.record.len();
                        pace.begun();
                        running.push(Box::pin(self.attempt(waiting)));
                    }
                    Err(error) => {
                        self.unreadable(&error);
                        apart.insert((now + PAUSE_MAX, place), ());
                    }
                }
                continue;
            }
            let wake = if may_begin { due } else { room.then_some(pace.not_before) };
            tokio::select! {
                () = stop.cancelled(), if !stop.is_cancelled() => {}
                Some(attempted) = running.next(), if !running.is_empty() => {
                    bytes -= attempted.waiting.record.len();
                    if let Some(again_at) = self.settle(attempted, &mut pace).await {
                        apart.insert(again_at, ());
                    }
                }
                next = self.backlog.next(), if may_begin && apart.len() < APART_MAX => match next {
                    Ok(waiting) => {
                        bytes += waiting.record.len();
                        pace.begun();
                        running.push(Box::pin(self.attempt(waiting)));
                    }
                    Err(error) => {
                        self.unreadable(&error);
                        pace.pause();
                    }
                },
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
        }
    }

    async fn attempt(&self, waiting: Waiting<B::Place>) -> Attempted<B::Place> {
        let publisher = self.publisher();
        let message = match envelope::decode(&waiting.record, publisher.id(), &self.sources()) {
            Ok(message) => message,
            Err(error) => {
                let (reason, error) = (AttemptResult::Other, error.to_string());
                return Attempted { waiting, end: End::Hopeless { reason, error } };
            }
        };
        if waiting.crashes >= self.limits.attempts {
            let error = format!("hookgate ended {} times while it published this", waiting.crashes);
            return Attempted { waiting, end: End::Hopeless { reason: AttemptResult::Other, error } };
        }
        self.backlog.begun(waiting.place).await;
        let acknowledged = publisher.acknowledged();
        let tried = publisher.attempt(1, &message, Deadline::after(ATTEMPT_LIMIT)).await;
        let end = match tried {
            Ok(_receipt) => End::Acked,
            Err(error) => {
                let reason = AttemptResult::from(error.reason);
                let (rejected, error) = (error.kind == PublishErrorKind::Rejected, Chain(&error).to_string());
                let blamed = publisher.acknowledged() != acknowledged;
                match rejected {
                    true => End::Hopeless { reason, error },
                    false => End::Failed { blamed, reason, error },
                }
            }
        };
        Attempted { waiting, end }
    }

    /// Draws the consequences of an attempt; where and when the record is tried again, if it is.
    async fn settle(&self, attempted: Attempted<B::Place>, pace: &mut Pace) -> Option<(Instant, B::Place)> {
        let Attempted { waiting, end } = attempted;
        let place = waiting.place;
        match end {
            End::Acked => {
                self.backlog.done(place);
                pace.acked();
                self.replayed(&waiting, ReplayResult::Acked);
                None
            }
            End::Failed { blamed, reason, error } => {
                self.backlog.failed(place);
                let failures = waiting.failures + 1;
                if blamed && failures >= self.limits.attempts {
                    return self.bury(waiting, reason, error).await;
                }
                if !blamed {
                    pace.pause();
                }
                self.replayed(&waiting, ReplayResult::Retry);
                Some((Instant::now() + jittered(backoff(failures)), place))
            }
            End::Hopeless { reason, error } => self.bury(waiting, reason, error).await,
        }
    }

    /// Moves a record to the dead letters. It leaves the backlog only once it is there.
    async fn bury(
        &self,
        waiting: Waiting<B::Place>,
        reason: AttemptResult,
        error: String,
    ) -> Option<(Instant, B::Place)> {
        let Waiting { place, failures, crashes, .. } = waiting;
        let burial = Burial { reason: reason.label().to_owned(), error, failures, crashes };
        let dead = envelope::bury(&burial, &waiting.record);
        let publisher = self.publisher();
        match self.spool.append(publisher.id(), Shelf::Dead, dead).await {
            Ok(_) => {
                self.backlog.done(place);
                self.replayed(&waiting, ReplayResult::DeadLetter);
                if let Ok(message) = envelope::decode(&waiting.record, publisher.id(), &self.sources()) {
                    let (source, event_id) = (&message.event.source, message.event.id.as_str());
                    let (sink, cause) = (publisher.id(), &burial.error);
                    self.observer.observe(&Observation::DeadLettered { sink, source, event_id, reason, cause });
                }
                None
            }
            Err(error) => {
                let message = "a dead letter could not be set aside; it stays in the backlog";
                self.observer.observe(&Observation::SpoolNotice { message, detail: &error });
                Some((Instant::now() + PAUSE_MAX, place))
            }
        }
    }

    fn replayed(&self, waiting: &Waiting<B::Place>, result: ReplayResult) {
        let publisher = self.publisher();
        if let Ok(message) = envelope::decode(&waiting.record, publisher.id(), &self.sources()) {
            let waited = message.event.received_at.elapsed().unwrap_or_default();
            let (sink, source) = (publisher.id(), &message.event.source);
            self.observer.observe(&Observation::SpoolReplayed { sink, source, result, waited });
        }
    }

    fn publisher(&self) -> Arc<Publisher> {
        Arc::clone(&self.publisher.borrow())
    }

    fn sources(&self) -> Arc<[SourceId]> {
        Arc::clone(&self.sources.borrow())
    }

    fn unreadable(&self, error: &SpoolError) {
        let message = "the spool cannot be read";
        self.observer.observe(&Observation::SpoolNotice { message, detail: error });
    }
}

/// How fast the sink takes what waits.
struct Pace {
    /// Messages being tried at once, now.
    window: usize,
    window_max: usize,
    /// Between two messages.
    interval: Duration,
    pause: Duration,
    not_before: Instant,
}

impl Pace {
    fn new(limits: &DrainLimits) -> Self {
        let interval = Duration::from_secs(1) / limits.rate.max(1);
        Self { window: 1, window_max: limits.in_flight.max(1), interval, pause: PAUSE_MIN, not_before: Instant::now() }
    }

    fn begun(&mut self) {
        // What was not begun in time is not made up for in one burst, except within the precision of timers.
        const BURST: Duration = Duration::from_millis(20);
        let now = Instant::now();
        self.not_before = self.not_before.max(now - BURST) + self.interval;
    }

    fn acked(&mut self) {
        self.window = (self.window * 2).min(self.window_max);
        self.pause = PAUSE_MIN;
    }

    /// The sink does not take anything.
    fn pause(&mut self) {
        self.window = 1;
        self.not_before = Instant::now() + jittered(self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

fn backoff(failures: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX)
}

/// Half to the whole of `pause`, so that what failed together does not return together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
