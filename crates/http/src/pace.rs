//! Whose connection is served next where there is more to do than time: that of whoever has had least of it.
//!
//! A runtime serves what is ready in the order in which it became so, and somebody who sends as fast as he is answered is always
//! ready: before an event goes a step on, hundreds of his have gone theirs. Here once connections have used up so much time, they
//! wait until the runtime has been at everything else that is ready: what events are at, brokers, Redis, timers. That is a round. Those who
//! wait go into the next one by how much they have had lately. It is the multi-level feedback queue of operating systems: nobody is known
//! by name, nobody is refused, and no time is left unused.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    iter,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    thread,
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use tokio::{sync::Notify, task::yield_now};

/// What connections have of each round while some of them have much less to send than others: the shorter, the sooner those have
/// their answers.
const SHORT_ROUND: Duration = Duration::from_micros(50);

/// The same while all are alike: nobody is to be spared, and what goes to brokers and Redis goes in large batches, which costs a
/// tenth less.
const LONG_ROUND: Duration = Duration::from_millis(2);

/// What a connection has had counts half as much after this.
const HALF_LIFE: Duration = Duration::from_millis(100);

/// What a new connection counts as having had: whoever opens many comes after those who keep theirs.
const NEWCOMER: Duration = Duration::from_micros(50);

/// Classes of connections by what they have had, each of twice as much as the one before, from a microsecond.
const CLASSES: usize = 20;

/// So many classes below the average, a connection has much less to send than others.
const MUCH_LESS: u64 = 3;

/// Most connections that begin a round together.
const TOGETHER_MAX: u64 = 64;

/// Averages are over some so many turns.
const AVERAGED: u64 = 16;

/// Shares the time of a runtime with one thread out.
pub(crate) struct Pace {
    begun: Instant,
    /// What connections may have of this round, and what they have had, in nanoseconds.
    round: AtomicU64,
    spent: AtomicU64,
    /// What one has at a time, in nanoseconds; an average.
    usual: AtomicU64,
    /// The class of one, times [`AVERAGED`]; an average.
    class: AtomicU64,
    /// The half-life until which rounds are short.
    short_until: AtomicU64,
    waiting: Mutex<Waiting>,
    /// Told when somebody waits.
    somebody: Notify,
}

#[derive(Default)]
struct Waiting {
    /// In each those who came first, with their numbers.
    classes: [VecDeque<(u64, Arc<Seat>)>; CLASSES],
    count: usize,
    next: u64,
}

/// Where one waits.
#[derive(Default)]
struct Seat {
    has_turn: AtomicBool,
    waker: AtomicWaker,
}

/// Somebody who takes turns.
pub(crate) struct Customer {
    pace: Arc<Pace>,
    seat: Arc<Seat>,
    waits: bool,
    had: Had,
}

/// What one has had lately.
struct Had {
    nanos: u64,
    /// In half-lives since the beginning.
    at: u64,
}

impl Had {
    fn class(&mut self, now: u64) -> usize {
        self.nanos >>= now.saturating_sub(self.at).min(63);
        self.at = now;
        let bits = u64::BITS - (self.nanos / 1000).leading_zeros();
        (bits as usize).min(CLASSES - 1)
    }
}

impl Customer {
    /// Runs `connection` whenever it has something to do, and its turn has come or what it has begun `is_to_be_finished`.
    pub(crate) async fn run(mut self, connection: impl Future<Output = ()>, is_to_be_finished: impl Fn() -> bool) {
        let mut connection = pin!(connection);
        poll_fn(|context| {
            let begun = match self.waits || !is_to_be_finished() {
                true => ready!(self.poll_turn(context)),
                false => Instant::now(),
            };
            let polled = connection.as_mut().poll(context);
            self.charge(begun);
            polled
        })
        .await;
    }

    /// Waits for a turn.
    pub(crate) async fn turn(&mut self) {
        poll_fn(|context| self.poll_turn(context)).await;
    }

    /// Ends a turn that has `begun` then.
    pub(crate) fn charge(&mut self, begun: Instant) {
        let spent = nanos(begun.elapsed());
        self.had.nanos = self.had.nanos.saturating_add(spent);
        self.pace.spent.fetch_add(spent, Ordering::Relaxed);
        average(&self.pace.usual, spent / AVERAGED);
    }

    fn poll_turn(&mut self, context: &Context<'_>) -> Poll<Instant> {
        let now = Instant::now();
        if self.waits {
            self.seat.waker.register(context.waker());
            self.waits = !self.seat.has_turn.swap(false, Ordering::AcqRel);
        } else {
            let class = self.had.class(self.pace.half_life(now));
            self.pace.note(class, now);
            if !self.pace.has_time() {
                self.seat.waker.register(context.waker());
                self.pace.wait(&self.seat, class);
                self.waits = true;
            }
        }
        if self.waits { Poll::Pending } else { Poll::Ready(now) }
    }
}

impl Pace {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            round: AtomicU64::new(nanos(LONG_ROUND)),
            spent: AtomicU64::new(0),
            usual: AtomicU64::new(nanos(SHORT_ROUND)),
            class: AtomicU64::new(0),
            short_until: AtomicU64::new(0),
            waiting: Mutex::default(),
            somebody: Notify::new(),
        })
    }

    /// One that has just come.
    pub(crate) fn newcomer(self: &Arc<Self>) -> Customer {
        let had = Had { nanos: nanos(NEWCOMER), at: self.half_life(Instant::now()) };
        Customer { pace: Arc::clone(self), seat: Arc::default(), waits: false, had }
    }

    /// Begins one round after another, as long as somebody waits; for ever.
    pub(crate) async fn keep(self: Arc<Self>) {
        loop {
            self.somebody.notified().await;
            while self.begin_round(Instant::now()) {
                // Where a thread of ours is to write what events wait for, and has no other core, it has a moment here.
                thread::yield_now();
                yield_now().await;
            }
        }
    }

    /// Whether a connection may be served without waiting.
    fn has_time(&self) -> bool {
        self.spent.load(Ordering::Relaxed) < self.round.load(Ordering::Relaxed)
    }

    /// Rounds are short while there are those who have had much less than others.
    fn note(&self, class: usize, now: Instant) {
        let class = class as u64;
        if (class + MUCH_LESS) * AVERAGED <= self.class.load(Ordering::Relaxed) {
            self.short_until.store(self.half_life(now) + 1, Ordering::Relaxed);
            self.round.store(nanos(SHORT_ROUND), Ordering::Relaxed);
        }
        average(&self.class, class);
    }

    fn wait(&self, seat: &Arc<Seat>, class: usize) {
        let mut waiting = self.waiting();
        let number = waiting.next;
        waiting.next += 1;
        waiting.classes[class].push_back((number, Arc::clone(seat)));
        waiting.count += 1;
        if waiting.count == 1 {
            self.somebody.notify_one();
        }
    }

    /// Gives a turn to as many as there is time for, and says whether somebody waits on.
    fn begin_round(&self, now: Instant) -> bool {
        let is_short = self.half_life(now) <= self.short_until.load(Ordering::Relaxed);
        let round = nanos(if is_short { SHORT_ROUND } else { LONG_ROUND });
        let turns = (round / self.usual.load(Ordering::Relaxed).max(1)).clamp(1, TOGETHER_MAX);
        let mut waiting = self.waiting();
        let Waiting { classes, count, .. } = &mut *waiting;
        // One more turn is that of whoever has waited longest, so that nobody waits for ever.
        let waited = |class: &&mut VecDeque<(u64, _)>| class.front().map_or(u64::MAX, |(number, _)| *number);
        let longest = classes.iter_mut().min_by_key(waited).and_then(VecDeque::pop_front);
        let first = classes.iter_mut().flat_map(|class| iter::from_fn(|| class.pop_front()));
        for (_, seat) in first.take(turns as usize).chain(longest) {
            *count -= 1;
            seat.has_turn.store(true, Ordering::Release);
            seat.waker.wake();
        }
        let somebody_waits = *count > 0;
        self.round.store(round, Ordering::Relaxed);
        // Who comes now is not to overtake those who wait.
        self.spent.store(if somebody_waits { nanos(LONG_ROUND) } else { 0 }, Ordering::Relaxed);
        somebody_waits
    }

    fn half_life(&self, now: Instant) -> u64 {
        nanos(now - self.begun) / nanos(HALF_LIFE)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds one to a moving average; what is lost where two do it at once is nothing.
fn average(average: &AtomicU64, next: u64) {
    let before = average.load(Ordering::Relaxed);
    average.store(before - before / AVERAGED + next, Ordering::Relaxed);
}

const fn nanos(span: Duration) -> u64 {
    span.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use futures_util::{future::join_all, poll};

    use super::*;

    /// More time than there is.
    const ALL: u64 = u64::MAX / 2;

    /// Somebody who has had so much, and waits.
    async fn waiting(pace: &Arc<Pace>, had: Duration) -> Customer {
        let mut customer = pace.newcomer();
        customer.had.nanos = nanos(had);
        pace.spent.store(ALL, Ordering::Relaxed);
        assert!(poll!(std::pin::pin!(customer.turn())).is_pending());
        customer
    }

    async fn has_turn(customer: &mut Customer) -> bool {
        poll!(std::pin::pin!(customer.turn())).is_ready()
    }

    /// Has rounds of two turns, one of them that of whoever has waited longest.
    fn one_at_a_time(pace: &Pace) {
        pace.usual.store(ALL, Ordering::Relaxed);
    }

    #[tokio::test]
    async fn those_who_have_had_least_go_first_and_nobody_waits_for_ever() {
        let pace = Pace::new();
        one_at_a_time(&pace);
        let mut most = waiting(&pace, Duration::from_millis(50)).await;
        let mut more = waiting(&pace, Duration::from_millis(5)).await;
        let mut less = waiting(&pace, Duration::from_micros(500)).await;
        let mut least = waiting(&pace, Duration::ZERO).await;
        assert!(pace.begin_round(Instant::now()), "two wait on");
        assert!(has_turn(&mut least).await && has_turn(&mut most).await);
        assert!(!has_turn(&mut more).await && !has_turn(&mut less).await);
        // Those at both ends come again.
        let mut most = waiting(&pace, Duration::from_millis(50)).await;
        let mut least = waiting(&pace, Duration::ZERO).await;
        assert!(pace.begin_round(Instant::now()));
        assert!(has_turn(&mut least).await && has_turn(&mut more).await);
        assert!(!has_turn(&mut most).await && !has_turn(&mut less).await);
        assert!(!pace.begin_round(Instant::now()), "nobody waits on");
        assert!(has_turn(&mut most).await);
        assert!(has_turn(&mut less).await && has_turn(&mut least).await, "there is time for all");
    }

    #[test]
    fn what_one_has_had_is_forgotten() {
        let mut had = Had { nanos: nanos(Duration::from_millis(5)), at: 0 };
        assert_eq!([had.class(0), had.class(3), had.class(1000)], [13, 10, 0]);
    }

    #[test]
    fn rounds_are_short_while_there_is_somebody_to_be_spared() {
        let pace = Pace::new();
        let round = || Duration::from_nanos(pace.round.load(Ordering::Relaxed));
        let now = Instant::now();
        (0..1000).for_each(|number| pace.note(10 + number % 2, now));
        assert_eq!(round(), LONG_ROUND, "all are alike");
        pace.note(3, now);
        pace.begin_round(now);
        assert_eq!(round(), SHORT_ROUND);
        pace.begin_round(now + 2 * HALF_LIFE);
        assert_eq!(round(), LONG_ROUND, "there is nobody any more");
    }

    #[tokio::test]
    async fn everybody_gets_to_the_end() {
        let pace = Pace::new();
        let keeper = tokio::spawn(Arc::clone(&pace).keep());
        let connections = (0..100_u64).map(|number| {
            let customer = pace.newcomer();
            let connection = async move {
                for step in 0..100 {
                    let until = Instant::now() + Duration::from_micros(number % 10 * 10);
                    while Instant::now() < until {}
                    match step % 3 {
                        0 => yield_now().await,
                        1 => tokio::time::sleep(Duration::from_micros(number)).await,
                        _ => {}
                    }
                }
            };
            tokio::spawn(customer.run(connection, move || number % 7 == 0))
        });
        let all =
            tokio::time::timeout(Duration::from_secs(60), join_all(connections)).await.expect("nobody is forgotten");
        assert!(all.into_iter().all(|ended| ended.is_ok()));
        keeper.abort();
    }
}
