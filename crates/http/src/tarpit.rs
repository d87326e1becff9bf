//! Refusals that come so often that they are a flood: each waits a moment, and whoever sent what is refused with it.
//!
//! A refusal costs hardly less than an event. One who sends as fast as he is refused would take all the time of the processor from
//! those whose events are taken; here his connections spend theirs waiting, which costs nothing.

use std::time::Duration;

use governor::{DefaultDirectRateLimiter, RateLimiter};
use hookgate_core::intake::Rate;
use tokio::{sync::Semaphore, time::sleep};

/// How long a refusal waits: half of it to one and a half, so that what came together does not go on together. A sender who mends
/// its mistake does not notice.
const HELD_FOR: Duration = Duration::from_millis(100);

/// Refusals that wait at once; beyond that they are answered at once, since one that waits takes memory.
const HELD_MAX: usize = 4096;

/// Holds refusals back.
pub(crate) struct Tarpit {
    prompt: DefaultDirectRateLimiter,
    places: Semaphore,
}

impl Tarpit {
    /// One that lets `prompt` refusals pass at once.
    pub(crate) fn new(prompt: Rate) -> Self {
        Self { prompt: RateLimiter::direct(prompt.quota()), places: Semaphore::new(HELD_MAX) }
    }

    /// Returns when a refusal may be told.
    pub(crate) async fn hold(&self) {
        if self.prompt.check().is_err()
            && let Ok(_place) = self.places.try_acquire()
        {
            sleep(HELD_FOR.mul_f64(0.5 + fastrand::f64())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_refusals_waits_and_a_few_do_not() {
        let tarpit = Tarpit::new("10/h".parse().expect("a rate"));
        let begun = Instant::now();
        join_all((0..10).map(|_| tarpit.hold())).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        tarpit.hold().await;
        assert!(begun.elapsed() >= HELD_FOR / 2, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_wait_and_no_more() {
        let tarpit = Tarpit::new("1/h".parse().expect("a rate"));
        let begun = Instant::now();
        let all: Vec<Duration> = join_all((0..HELD_MAX + 2).map(async |_| {
            tarpit.hold().await;
            begun.elapsed()
        }))
        .await;
        let at_once = all.iter().filter(|waited| waited.is_zero()).count();
        assert_eq!(at_once, 2, "the one that the rate lets pass, and the one that finds no place");
    }
}
