//! The watch over a producer: whether any broker can be used, when to say so, and when to take another producer.

use std::{sync::Arc, time::Duration};

use hookgate_core::{
    event::SinkId,
    observe::{Observation, Observer},
    sink::Verdict,
};
use tokio::{
    sync::watch,
    task::{self, JoinHandle},
    time::{sleep, timeout},
};

use crate::{
    error::Disconnected,
    producer::{Answer, Live, Maker},
};

/// Longest wait for a sign of life. A broker in reach needs milliseconds.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Time between questions while all is well. What librdkafka notices by itself is looked into at once.
const INTERVAL: Duration = Duration::from_secs(10);

/// Longest pause before the first new attempt; doubled each time. Anything down to none is drawn, so that a fleet does not
/// return in one moment.
const PAUSE_MIN: Duration = Duration::from_millis(250);

/// Longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What the sink sees of its producer.
pub(crate) struct Link {
    /// `None` once the sink is closed.
    pub(crate) live: Option<Arc<Live>>,
    pub(crate) state: State,
}

/// Whether messages are handed over.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// No broker can be used.
    Down(Arc<Disconnected>),
    Up,
    /// For good.
    Closed,
}

/// Looks after a producer until the sink is closed.
pub(crate) struct Watch {
    pub(crate) maker: Arc<Maker>,
    pub(crate) live: Arc<Live>,
    pub(crate) link: Arc<watch::Sender<Link>>,
    pub(crate) topic: watch::Receiver<Option<Arc<str>>>,
    pub(crate) sink: SinkId,
    pub(crate) observer: Arc<dyn Observer>,
}

/// A question that is being asked, and how many messages had been acknowledged when it began.
struct Question {
    answer: JoinHandle<Answer>,
    acknowledged: u64,
}

/// What comes of a question.
enum Sign {
    Life,
    /// Nothing came, and nobody knows why.
    Silence,
    /// librdkafka says that nothing can come.
    Trouble,
}

impl Watch {
    /// Keeps the link's state true. Told to the observer: each change, not each attempt.
    pub(crate) async fn keep(mut self) {
        let (mut pause, mut told, mut question) = (PAUSE_MIN, Told::Nothing, None);
        let mut asked_again = false;
        loop {
            let down = match self.ask(&mut question).await {
                // It may be that one frozen broker of several was asked.
                Sign::Silence if told == Told::Up && !asked_again => {
                    asked_again = true;
                    continue;
                }
                Sign::Silence | Sign::Trouble => self.live.disconnected(),
                Sign::Life => {
                    asked_again = false;
                    self.live.signs.all_is_well();
                    if !self.enter(&State::Up, &mut told) {
                        return;
                    }
                    match self.next_sign().await {
                        None => continue,
                        Some(down) => down,
                    }
                }
            };
            // A producer that has done nothing yet and fails again is no recovery.
            if self.live.signs.acknowledged() > 0 && !matches!(told, Told::Down(_)) {
                pause = PAUSE_MIN;
            }
            let needs_an_operator = down.verdict.needs_an_operator();
            if !self.enter(&State::Down(Arc::new(down)), &mut told) {
                return;
            }
            sleep(pause.mul_f64(fastrand::f64())).await;
            pause = (pause * 2).min(PAUSE_MAX);
            if needs_an_operator || self.live.spent() || self.live.holds_only_what_was_given_up() {
                question = None;
                if !self.replace(&mut told).await {
                    return;
                }
            }
        }
    }

    /// Waits for a sign of life, or for librdkafka to say that there can be none.
    async fn ask(&self, question: &mut Option<Question>) -> Sign {
        let signs = &self.live.signs;
        // One that has been cut short is asked still, and answered as soon as a broker is back.
        let asked = question.get_or_insert_with(|| {
            // The answer will be news, and this is none any more.
            signs.take_all_down();
            let topic = self.topic.borrow().clone();
            Question { answer: self.live.ask(topic.as_deref(), ANSWER_MAX), acknowledged: signs.acknowledged() }
        });
        let answered = loop {
            tokio::select! {
                // In this order, so that what came before the answer is not taken for something that came after it.
                biased;
                () = signs.changed.notified() => if self.live.spent() || signs.take_all_down() {
                    return Sign::Trouble;
                },
                answer = &mut asked.answer => break answer.is_ok_and(|answer| answer.is_a_sign_of_life()),
            }
        };
        // Under load an answer waits behind those to messages; they prove as much.
        let heard = answered || signs.acknowledged() > asked.acknowledged;
        *question = None;
        match (self.live.spent(), heard) {
            (true, _) => Sign::Trouble,
            (false, true) => Sign::Life,
            (false, false) => Sign::Silence,
        }
    }

    /// Waits until it is time to ask again, or until it is certain without asking that no message can be published.
    async fn next_sign(&self) -> Option<Disconnected> {
        let signs = &self.live.signs;
        // Either way it is time to look.
        let _ = timeout(INTERVAL, signs.changed.notified()).await;
        if self.live.spent() || signs.take_all_down() {
            return Some(self.live.disconnected());
        }
        // One broker of several that is down says so ten times a second.
        sleep(PAUSE_MIN).await;
        None
    }

    /// Takes another producer, with secrets and files as they are now. `false` when the sink is closed.
    async fn replace(&mut self, told: &mut Told) -> bool {
        let maker = Arc::clone(&self.maker);
        // It is not carried out when the runtime is being shut down.
        let Ok(made) = task::spawn_blocking(move || maker.make()).await else {
            return false;
        };
        match made {
            Ok(live) => {
                self.live = Arc::new(live);
                let next = Arc::clone(&self.live);
                self.link.send_if_modified(|link| {
                    let open = !matches!(link.state, State::Closed);
                    if open {
                        link.live = Some(next);
                    }
                    open
                })
            }
            Err(error) => {
                let down = Disconnected::unprepared(self.maker.brokers(), &error);
                self.enter(&State::Down(Arc::new(down)), told)
            }
        }
    }

    /// Puts `next` in place, unless the sink is closed: then `false`.
    fn enter(&self, next: &State, told: &mut Told) -> bool {
        let entered = self.link.send_if_modified(|link| {
            let open = !matches!(link.state, State::Closed);
            if open {
                link.state = next.clone();
            }
            open
        });
        if entered {
            told.tell(next, &self.sink, &*self.observer);
        }
        entered
    }
}

/// What the observer knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Up,
    Down(Verdict),
}

impl Told {
    fn tell(&mut self, state: &State, sink: &SinkId, observer: &dyn Observer) {
        let (news, observation) = match state {
            State::Up => (Self::Up, Observation::SinkUp { sink }),
            State::Down(why) => (Self::Down(why.verdict), Observation::SinkDown { sink, cause: &**why }),
            State::Closed => return,
        };
        if *self != news {
            *self = news;
            observer.observe(&observation);
        }
    }
}
