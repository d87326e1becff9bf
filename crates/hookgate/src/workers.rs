//! The threads that events are worked on by, and who speaks for what each of them has for itself.
//!
//! The first worker is the main thread, which does everything else besides. With one there is no other ([ADR 20]).
//!
//! [ADR 20]: ../../../docs/adr/0020-a-runtime-for-each-worker.md

use std::{
    future::{Future, poll_fn},
    io, mem,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};

use hookgate_core::{
    observe::{Observation, Observer},
    worker,
};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A runtime for one worker, or for a command. A task that wakes another costs no switch of threads there.
pub(crate) fn runtime() -> io::Result<Runtime> {
    // What other threads have done, a sink's say, ends events: it comes before what begins more of them.
    Builder::new_current_thread().global_queue_interval(1).enable_all().build()
}

/// All of them. They end when this is dropped.
pub(crate) struct Workers {
    handles: Vec<Handle>,
    _stop: DropGuard,
}

impl Workers {
    /// So many, of which the current thread, in its runtime, is the first.
    ///
    /// # Errors
    /// When the operating system gives us no thread, or too few files.
    pub(crate) fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut handles = vec![Handle::current()];
        for number in 1..count {
            let stop = stop.clone();
            let (started, starting) = mpsc::sync_channel(1);
            let work = move || {
                worker::be(number);
                let runtime = match runtime() {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(started.send(Err(error))),
                };
                // Whoever started us waits for it.
                let _ = started.send(Ok(runtime.handle().clone()));
                runtime.block_on(stop.cancelled());
                runtime.shutdown_background();
            };
            thread::Builder::new().name(format!("hookgate-{number}")).spawn(work)?;
            handles.push(starting.recv().map_err(io::Error::other)??);
        }
        Ok(Self { handles, _stop: stop.drop_guard() })
    }

    /// Their runtimes, in the order of their numbers.
    pub(crate) fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// For each of them what sets up its part of something; what becomes of the parts is told to `observer` as of one thing.
    pub(crate) fn parts(&self, observer: &Arc<dyn Observer>) -> impl Iterator<Item = Part> {
        let parts = Arc::new(Parts::new(self.handles.len()));
        self.handles.iter().enumerate().map(move |(number, handle)| Part {
            handle: handle.clone(),
            observer: match &*self.handles {
                [_] => Arc::clone(observer),
                _ => Arc::new(PartObserver { number, parts: Arc::clone(&parts), observer: Arc::clone(observer) }),
            },
        })
    }
}

/// What one worker is to have of something.
pub(crate) struct Part {
    handle: Handle,
    observer: Arc<dyn Observer>,
}

impl Part {
    /// Who is to be told what becomes of it.
    pub(crate) fn observer(&self) -> Arc<dyn Observer> {
        Arc::clone(&self.observer)
    }

    /// Sets it up. Tasks that `setting_up` starts, and its timers and sockets, are that worker's.
    pub(crate) async fn set_up<T>(&self, setting_up: impl Future<Output = T>) -> T {
        let mut setting_up = pin!(setting_up);
        poll_fn(|context| {
            let _there = self.handle.enter();
            setting_up.as_mut().poll(context)
        })
        .await
    }
}

/// What each worker has of something that operators see as one: it is up when all parts are.
struct Parts(Mutex<State>);

struct State {
    up: Vec<bool>,
    told_up: bool,
    /// Which of those that are down says why. They mostly have one reason, and it would be told by each.
    speaker: Option<usize>,
}

impl Parts {
    fn new(count: usize) -> Self {
        Self(Mutex::new(State { up: vec![false; count], told_up: false, speaker: None }))
    }

    /// Notes that part `number` is up, and says whether now all are that were not.
    fn rise(&self, number: usize) -> bool {
        let mut state = self.lock();
        state.up[number] = true;
        state.speaker = state.speaker.filter(|speaker| *speaker != number);
        let all = state.up.iter().all(|up| *up);
        all && !mem::replace(&mut state.told_up, all)
    }

    /// Notes that part `number` is down, and says whether it is to say why.
    fn fall(&self, number: usize) -> bool {
        let mut state = self.lock();
        state.up[number] = false;
        state.told_up = false;
        *state.speaker.get_or_insert(number) == number
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Observes one part.
struct PartObserver {
    number: usize,
    parts: Arc<Parts>,
    observer: Arc<dyn Observer>,
}

impl Observer for PartObserver {
    fn observe(&self, observation: &Observation<'_>) {
        let is_news = match observation {
            Observation::SinkUp { .. } | Observation::DedupStoreUp => self.parts.rise(self.number),
            Observation::SinkDown { .. } | Observation::DedupStoreDown { .. } => self.parts.fall(self.number),
            // It is the same broker.
            Observation::SinkNotice { .. } | Observation::DedupStoreNotice { .. } => self.number == 0,
            _ => true,
        };
        if is_news {
            self.observer.observe(observation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_up_when_all_parts_are_and_one_says_why_it_is_down() {
        let parts = Parts::new(3);
        assert!(parts.fall(0), "why it could not be reached at first");
        assert!(!parts.fall(1) && !parts.fall(2), "for the same reason");
        assert!(parts.fall(0), "another reason");
        assert_eq!([0, 1, 2].map(|number| parts.rise(number)), [false, false, true]);
        assert!(!parts.rise(1), "that is known");
        assert!(parts.fall(2));
        assert!(!parts.fall(0));
        assert!(!parts.rise(2), "one is down still");
        assert!(parts.fall(1), "who spoke is up again");
        assert_eq!([0, 1].map(|number| parts.rise(number)), [false, true]);
    }

    #[tokio::test]
    async fn what_a_part_starts_runs_on_its_worker() {
        let workers = Workers::start(2).expect("a thread");
        let observer: Arc<dyn Observer> = Arc::new(hookgate_core::observe::Unobserved);
        let numbers = worker::Each::new(vec![0, 1]);
        let mut started = Vec::new();
        for part in workers.parts(&observer) {
            let numbers = numbers.clone();
            let number = part.set_up(async { tokio::spawn(async move { *numbers.here() }).await }).await;
            started.push(number.expect("no panic"));
        }
        assert_eq!(started, [0, 1]);
    }
}
