//! Answers on their way from a thread of its own, a sink's, to the events that wait for them, many at a time.
//!
//! To wake a task from another thread costs the runtime a system call, each time, and the task is then run for one message. So
//! answers are gathered, and a task of the runtime passes on all that there are.

use std::{
    future::Future,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, oneshot};

/// Takes answers, on whatever thread. What it has taken by its end is passed on.
#[derive(Debug)]
pub struct Answers<T>(Arc<Gathered<T>>);

#[derive(Debug)]
struct Gathered<T> {
    gathered: Mutex<Batch<T>>,
    changed: Notify,
}

#[derive(Debug)]
struct Batch<T> {
    answers: Vec<(oneshot::Sender<T>, T)>,
    /// Whether there will be no more.
    ended: bool,
}

/// Where answers are taken, and what passes them on: a task for the runtime of those who wait. It ends after the former.
pub fn channel<T: Send + 'static>() -> (Answers<T>, impl Future<Output = ()> + Send + 'static) {
    let batch = Batch { answers: Vec::new(), ended: false };
    let gathered = Arc::new(Gathered { gathered: Mutex::new(batch), changed: Notify::new() });
    (Answers(Arc::clone(&gathered)), gathered.pass_on())
}

impl<T> Answers<T> {
    /// Answers one; whoever asked may have given up.
    pub fn give(&self, asker: oneshot::Sender<T>, answer: T) {
        self.give_all([(asker, answer)]);
    }

    /// Answers several.
    pub fn give_all(&self, answers: impl IntoIterator<Item = (oneshot::Sender<T>, T)>) {
        let mut batch = self.0.lock();
        let was_empty = batch.answers.is_empty();
        batch.answers.extend(answers);
        drop(batch);
        if was_empty {
            self.0.changed.notify_one();
        }
    }
}

impl<T> Drop for Answers<T> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_one();
    }
}

impl<T> Gathered<T> {
    async fn pass_on(self: Arc<Self>) {
        let mut answers = Vec::new();
        loop {
            self.changed.notified().await;
            let ended = {
                let mut batch = self.lock();
                mem::swap(&mut batch.answers, &mut answers);
                batch.ended
            };
            for (asker, answer) in answers.drain(..) {
                // Whoever asked may have given up.
                let _ = asker.send(answer);
            }
            if ended {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Batch<T>> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use tokio::time::timeout;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn one_does_not_wait_for_the_next() {
        let (answers, passing_on) = channel();
        let passing_on = tokio::spawn(passing_on);
        for number in 0..2 {
            let (asker, answered) = oneshot::channel();
            answers.give(asker, number);
            assert_eq!(timeout(LIMIT, answered).await.expect("in time"), Ok(number));
        }
        passing_on.abort();
    }

    #[tokio::test]
    async fn everybody_is_answered_by_the_end() {
        let (answers, passing_on) = channel();
        let passing_on = tokio::spawn(passing_on);
        let (askers, answered): (Vec<_>, Vec<_>) = (0..1000).map(|_| oneshot::channel()).unzip();
        let giving = thread::spawn(move || {
            let mut each = askers.into_iter().zip(0..);
            answers.give_all(each.by_ref().take(500));
            each.for_each(|(asker, number)| answers.give(asker, number));
        });
        for (number, answered) in (0..).zip(answered) {
            assert_eq!(timeout(LIMIT, answered).await.expect("in time"), Ok(number));
        }
        giving.join().expect("no panic");
        timeout(LIMIT, passing_on).await.expect("in time").expect("it ends");
    }
}
