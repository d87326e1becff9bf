//! Deliveries on their way from librdkafka's thread to whoever waits for them, many at a time.
//!
//! To wake a task from another thread costs the runtime a system call, each time, and the task is then run for one message. So
//! what has been delivered is gathered, and a task of the runtime tells all of it.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use rdkafka::{error::KafkaError, producer::future_producer::Delivery};
use tokio::sync::{Notify, oneshot};

/// What librdkafka says of a message in the end.
pub(crate) type Outcome = Result<Delivery, KafkaError>;

/// Whoever waits for the outcome of a message.
pub(crate) type Waiter = oneshot::Sender<Outcome>;

/// What has been delivered and not been told.
#[derive(Default)]
pub(crate) struct Deliveries {
    gathered: Mutex<Gathered>,
    changed: Notify,
}

#[derive(Default)]
struct Gathered {
    outcomes: Vec<(Waiter, Outcome)>,
    /// Whether there will be no more.
    ended: bool,
}

impl Deliveries {
    /// Has `waiter` told of `outcome`.
    pub(crate) fn add(&self, waiter: Waiter, outcome: Outcome) {
        let mut gathered = self.gathered();
        gathered.outcomes.push((waiter, outcome));
        let is_first = gathered.outcomes.len() == 1;
        drop(gathered);
        if is_first {
            self.changed.notify_one();
        }
    }

    /// Ends [`Self::tell`] once it has told what is there.
    pub(crate) fn end(&self) {
        self.gathered().ended = true;
        self.changed.notify_one();
    }

    /// Tells until the end.
    pub(crate) async fn tell(self: Arc<Self>) {
        let mut outcomes = Vec::new();
        loop {
            self.changed.notified().await;
            let ended = {
                let mut gathered = self.gathered();
                mem::swap(&mut gathered.outcomes, &mut outcomes);
                gathered.ended
            };
            for (waiter, outcome) in outcomes.drain(..) {
                // Whoever waited may have given up.
                let _ = waiter.send(outcome);
            }
            if ended {
                return;
            }
        }
    }

    fn gathered(&self) -> std::sync::MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use rdkafka::{Timestamp, types::RDKafkaErrorCode};
    use tokio::time::timeout;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn one_does_not_wait_for_the_next() {
        let deliveries = Arc::new(Deliveries::default());
        let telling = tokio::spawn(Arc::clone(&deliveries).tell());
        for _ in 0..2 {
            let (waiter, waiting) = oneshot::channel();
            deliveries.add(waiter, Err(KafkaError::Canceled));
            assert!(timeout(LIMIT, waiting).await.expect("in time").expect("it is told").is_err());
        }
        telling.abort();
    }

    #[tokio::test]
    async fn everybody_is_told_by_its_end_whoever_delivered_it() {
        let deliveries = Arc::new(Deliveries::default());
        let telling = tokio::spawn(Arc::clone(&deliveries).tell());
        let (waiters, waiting): (Vec<Waiter>, Vec<_>) = (0..1000).map(|_| oneshot::channel()).unzip();
        let delivering = thread::spawn(move || {
            for (offset, waiter) in (0..).zip(waiters) {
                let delivery = Delivery { partition: 0, offset, timestamp: Timestamp::NotAvailable };
                let refused = KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut);
                deliveries.add(waiter, if offset % 2 == 0 { Ok(delivery) } else { Err(refused) });
            }
            deliveries.end();
        });
        for (offset, waiting) in (0..).zip(waiting) {
            let told = timeout(LIMIT, waiting).await.expect("in time").expect("it is told");
            assert_eq!(told.ok().map(|delivery| delivery.offset), (offset % 2 == 0).then_some(offset));
        }
        delivering.join().expect("no panic");
        timeout(LIMIT, telling).await.expect("in time").expect("it ends");
    }
}
