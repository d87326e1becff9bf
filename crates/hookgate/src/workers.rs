//! The threads that events are worked on by, and who speaks for what each of them has for itself.
//!
//! The first worker is the main thread, which does everything else besides. With one there is no other ([ADR 20]).
//!
//! [ADR 20]: ../../../docs/adr/0020-a-runtime-for-each-worker.md

use std::{
    future::{Future, poll_fn},
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use futures_util::future::join_all;
use hookgate_core::{
    event::SinkId,
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

/// A runtime of which only the threads are used that may block, for what takes milliseconds of the processor: long bodies. On Linux
/// they stand back for the workers; elsewhere one thread cannot do so alone. They do nothing else: whatever a thread starts stands back
/// with it.
pub(crate) fn aside() -> io::Result<Runtime> {
    let mut builder = Builder::new_current_thread();
    builder.thread_name("hookgate-aside");
    // One that may not stand back works as well.
    #[cfg(target_os = "linux")]
    builder.on_thread_start(|| {
        let _ = rustix::process::nice(ASIDE_NICE);
    });
    builder.build()
}

/// How far the threads of [`aside`] stand back: where all of a processor is wanted, one gets a tenth of it beside a worker. With 19 it
/// would be a hundredth, and long bodies would not be done in time.
#[cfg(target_os = "linux")]
const ASIDE_NICE: i32 = 10;

/// All of them. They end when this is dropped.
pub(crate) struct Workers {
    handles: Vec<Handle>,
    _stop: DropGuard,
}

impl Workers {
    /// So many, of which the first has the runtime `first` already. Called outside of any runtime: one that finds no thread could not
    /// be dropped in another.
    ///
    /// # Errors
    /// When the operating system gives us no thread, or too few files.
    pub(crate) fn start(count: usize, first: Handle) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut handles = vec![first];
        for number in 1..count {
            let (runtime, stop) = (runtime()?, stop.clone());
            handles.push(runtime.handle().clone());
            let work = move || {
                worker::be(number);
                runtime.block_on(stop.cancelled());
                runtime.shutdown_background();
            };
            thread::Builder::new().name(format!("hookgate-{number}")).spawn(work)?;
        }
        Ok(Self { handles, _stop: stop.drop_guard() })
    }

    /// Their runtimes, in the order of their numbers.
    pub(crate) fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// Sets something up for each of them, all at once: what is started by that, tasks, timers and sockets, is that worker's. What
    /// becomes of the parts is told to `observer` as of one thing.
    ///
    /// # Errors
    /// The first of `set_up`.
    pub(crate) async fn set_up<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        observer: &Arc<dyn Observer>,
        set_up: impl Fn(Arc<dyn Observer>) -> F,
    ) -> Result<Vec<T>, E> {
        let whole = Arc::new(Mutex::new(Whole::new(self.handles.len())));
        let parts = self.handles.iter().enumerate().map(|(number, handle)| {
            let (whole, observer) = (Arc::clone(&whole), Arc::clone(observer));
            let mut setting_up = Box::pin(set_up(Arc::new(PartObserver { number, whole, observer })));
            poll_fn(move |context| {
                let _there = handle.enter();
                setting_up.as_mut().poll(context)
            })
        });
        join_all(parts).await.into_iter().collect()
    }
}

/// What each worker has of something that operators see as one: it is up when all parts are, and down for a reason that one of
/// them has, told once.
#[derive(Debug)]
struct Whole {
    parts: Vec<Condition>,
    /// What was told last.
    told: Condition,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    Unknown,
    Up,
    Down(String),
}

impl Whole {
    fn new(parts: usize) -> Self {
        Self { parts: vec![Condition::Unknown; parts], told: Condition::Unknown }
    }

    /// Notes the condition of a part, and says what there is to tell of the whole.
    fn note(&mut self, part: usize, condition: Condition) -> Option<&Condition> {
        self.parts[part] = condition;
        let mut down = self.parts.iter().filter(|part| matches!(part, Condition::Down(_)));
        let whole = match down.next() {
            Some(_) if self.parts.contains(&self.told) && self.told != Condition::Up => return None,
            Some(first) => first,
            None if self.parts.iter().all(|part| *part == Condition::Up) => &Condition::Up,
            None => return None,
        };
        if self.told == *whole {
            return None;
        }
        self.told = whole.clone();
        Some(&self.told)
    }
}

/// Observes one part.
struct PartObserver {
    number: usize,
    whole: Arc<Mutex<Whole>>,
    observer: Arc<dyn Observer>,
}

impl PartObserver {
    /// Tells what there is to tell before the next part can change it.
    fn note(&self, condition: Condition, tell: impl FnOnce(Option<&String>)) {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        match whole.note(self.number, condition) {
            Some(Condition::Down(why)) => tell(Some(why)),
            Some(_) => tell(None),
            None => {}
        }
    }

    fn tell_of_sink(&self, sink: &SinkId, why: Option<&String>) {
        self.observer.observe(&match why {
            Some(cause) => Observation::SinkDown { sink, cause },
            None => Observation::SinkUp { sink },
        });
    }

    fn tell_of_store(&self, why: Option<&String>) {
        self.observer.observe(&match why {
            Some(cause) => Observation::DedupStoreDown { cause },
            None => Observation::DedupStoreUp,
        });
    }
}

impl Observer for PartObserver {
    fn observe(&self, observation: &Observation<'_>) {
        match observation {
            Observation::SinkUp { sink } => self.note(Condition::Up, |why| self.tell_of_sink(sink, why)),
            Observation::SinkDown { sink, cause } => {
                self.note(Condition::Down(cause.to_string()), |why| self.tell_of_sink(sink, why));
            }
            Observation::DedupStoreUp => self.note(Condition::Up, |why| self.tell_of_store(why)),
            Observation::DedupStoreDown { cause } => {
                self.note(Condition::Down(cause.to_string()), |why| self.tell_of_store(why));
            }
            // It is the same store.
            Observation::DedupStoreNotice { .. } if self.number > 0 => {}
            _ => self.observer.observe(observation),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use super::*;

    #[test]
    fn it_is_up_when_all_parts_are_and_down_for_one_reason() {
        let (up, down) = (|| Condition::Up, |why: &str| Condition::Down(why.to_owned()));
        let mut whole = Whole::new(2);
        let mut note = |part, condition| whole.note(part, condition).cloned();
        assert_eq!(note(0, up()), None, "the other is not known");
        assert_eq!(note(1, down("refused")), Some(down("refused")));
        assert_eq!(note(0, down("refused")), None, "that is known");
        assert_eq!(note(0, up()), None);
        assert_eq!(note(1, up()), Some(up()));
        assert_eq!(note(0, up()), None, "that is known");
        assert_eq!(note(1, down("lost")), Some(down("lost")));
        assert_eq!(note(0, down("login")), None, "one reason is enough");
        assert_eq!(note(1, down("refused")), Some(down("login")), "nobody has the other any more");
        assert_eq!(note(0, up()), Some(down("refused")), "nor this one");
        assert_eq!(note(1, up()), Some(up()));
    }

    // What may block besides starts threads that must not: those of the spool and of Kafka's client.
    #[cfg(target_os = "linux")]
    #[test]
    fn long_bodies_alone_stand_back() {
        let nice = || rustix::process::nice(0).expect("anybody may ask");
        let usual = nice();
        let [runtime, aside] = [runtime(), aside()].map(|runtime| runtime.expect("a runtime"));
        let blocking =
            [&runtime, &aside].map(|threads| runtime.block_on(threads.spawn_blocking(nice)).expect("no panic"));
        assert_eq!(blocking, [usual, (usual + ASIDE_NICE).min(19)]);
    }

    #[tokio::test]
    async fn what_a_part_starts_runs_on_its_worker() {
        let workers = Workers::start(2, Handle::current()).expect("a thread");
        let observer: Arc<dyn Observer> = Arc::new(hookgate_core::observe::Unobserved);
        let numbers = worker::Each::new(vec![0, 1]);
        let started = workers.set_up(&observer, |_| {
            let numbers = numbers.clone();
            async { tokio::spawn(async move { *numbers.here() }).await }
        });
        assert_eq!(started.await.expect("no panic"), [0, 1]);
    }

    #[tokio::test]
    async fn parts_are_set_up_at_once() {
        let workers = Workers::start(2, Handle::current()).expect("a thread");
        let observer: Arc<dyn Observer> = Arc::new(hookgate_core::observe::Unobserved);
        let both_are_here = tokio::sync::Barrier::new(2);
        let waiting = workers.set_up(&observer, |_| async {
            both_are_here.wait().await;
            Ok::<_, Infallible>(())
        });
        tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("each waits for the other").expect("never");
    }
}
