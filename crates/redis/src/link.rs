//! The connection: good, or dropped and dialled anew.
//!
//! The library can reconnect by itself. But it does so only when a connection is seen to break, and not for one that gives no
//! answers; and a server that answers with refusals (read-only, out of memory) has a connection that is fine. Here all three
//! are the same: the connection goes, operations fail at once and cost events no time, and the next connection counts once it
//! has carried a claim and its release.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all};
use hookgate_core::{
    dedup::{Owner, StoreReason},
    limits::Deadline,
    observe::{Observation, Observer},
};
use redis::{
    Cmd, FromRedisValue, Pipeline, RedisFuture, Script, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster_async::ClusterConnection,
};
use tokio::{sync::watch, time::sleep};

use crate::{
    access::Access,
    error::{Cure, Trouble},
    inspect, store,
};

/// Longest time for one attempt to connect: names, TCP, TLS, login, and the trial. A Redis in reach needs milliseconds.
pub(crate) const DIAL_MAX: Duration = Duration::from_secs(2);

/// Longest pause before the second attempt; doubled each time. Anything down to half is drawn, so that replicas do not return
/// in step.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Longest pause between attempts. A Redis that has come back is in use within it.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How often a connection that is not in use is tried, so that its end is known before an event needs it.
const TRIAL_INTERVAL: Duration = Duration::from_secs(1);

/// Answers in a row that did not come in time, until the connection goes. One may be a hiccup.
const SILENCES_MAX: u32 = 3;

/// A connection of the library. Clones share it.
#[derive(Clone)]
pub(crate) enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// What is sent.
pub(crate) enum Request {
    Command(Cmd),
    /// Each for itself, whose answers say no more than that they were done.
    Commands(Pipeline),
    /// A script with its key and its arguments.
    Script(&'static Script, String, Vec<String>),
}

impl Request {
    /// What has to bound its first sending so that it ends by `budget`, which has just begun. The library gives a command as long
    /// itself, and a second timer of that length would be one more for every event; a script may take two commands.
    fn bound(&self, budget: Deadline) -> Option<Deadline> {
        match self {
            Self::Command(_) | Self::Commands(_) => None,
            Self::Script(..) => Some(budget),
        }
    }

    /// Sends it, once.
    pub(crate) fn send_by<'a, T: FromRedisValue + Send>(
        &'a self,
        connection: &'a mut Connection,
    ) -> BoxFuture<'a, Result<T, Trouble>> {
        Box::pin(async move {
            let answer = match self {
                Self::Command(command) => command.query_async(connection).await,
                Self::Commands(commands) => match connection {
                    Connection::One(connection) => commands.query_async(connection).await,
                    // Their keys are on different nodes.
                    Connection::Cluster(connection) => {
                        let sent = commands.cmd_iter().map(|command| {
                            let mut connection = connection.clone();
                            async move { command.query_async(&mut connection).await }
                        });
                        // None is given up because another has failed.
                        let done: Result<Vec<Value>, _> = join_all(sent).await.into_iter().collect();
                        done.and_then(|done| Ok(T::from_redis_value(Value::Array(done))?))
                    }
                },
                Self::Script(script, key, arguments) => {
                    let mut invocation = script.key(key);
                    for argument in arguments {
                        invocation.arg(argument);
                    }
                    invocation.invoke_async(connection).await
                }
            };
            answer.map_err(Trouble::from)
        })
    }
}

/// Whether there is a connection.
pub(crate) enum State {
    Up(Arc<Live>),
    Down(Trouble),
}

/// A connection in use.
pub(crate) struct Live {
    connection: Connection,
    /// Counts the connections.
    number: u64,
    silences: AtomicU32,
}

/// The connection that is in use now, if any.
pub(crate) struct Link {
    state: watch::Sender<State>,
    timeout: Duration,
}

impl Link {
    /// A link that is down at first; somebody has to keep it up.
    pub(crate) fn new(timeout: Duration) -> Arc<Self> {
        let not_yet = Trouble::new(StoreReason::Disconnected, "not connected yet", Cure::Wait);
        Arc::new(Self { state: watch::Sender::new(State::Down(not_yet)), timeout })
    }

    /// Sends `request`, once more on the next connection where this one is lost and the next comes in time: every request can
    /// be repeated, since a claim is known by its owner, and the others do the same thing twice.
    pub(crate) async fn send<T: FromRedisValue + Send>(&self, request: &Request) -> Result<T, Trouble> {
        let budget = Deadline::after(self.timeout);
        let live = self.live()?;
        let trouble = match self.once(&live, request.bound(budget), request).await {
            Ok(answer) => return Ok(answer),
            Err(trouble) if trouble.cure == Cure::Reconnect => trouble,
            Err(trouble) => return Err(trouble),
        };
        match budget.bound(self.after(live.number)).await {
            Ok(Some(next)) => self.once(&next, Some(budget), request).await,
            _ => Err(trouble),
        }
    }

    async fn once<T: FromRedisValue + Send>(
        &self,
        live: &Live,
        bound: Option<Deadline>,
        request: &Request,
    ) -> Result<T, Trouble> {
        let mut connection = live.connection.clone();
        let answer = request.send_by(&mut connection);
        let outcome = match bound {
            Some(bound) => bound.bound(answer).await.unwrap_or_else(|_| Err(Trouble::silent())),
            None => answer.await,
        };
        match &outcome {
            Ok(_) => live.silences.store(0, Ordering::Relaxed),
            Err(trouble) => self.suffer(live, trouble),
        }
        outcome
    }

    /// Draws the consequence of `trouble`.
    fn suffer(&self, live: &Live, trouble: &Trouble) {
        let goes = match trouble.cure {
            Cure::Reconnect | Cure::Wait => true,
            Cure::Patience => live.silences.fetch_add(1, Ordering::Relaxed) + 1 >= SILENCES_MAX,
            // The server answered.
            Cure::None => {
                live.silences.store(0, Ordering::Relaxed);
                false
            }
        };
        if goes {
            self.state.send_if_modified(|state| match state {
                State::Up(up) if up.number == live.number => {
                    *state = State::Down(trouble.clone());
                    true
                }
                _ => false,
            });
        }
    }

    fn live(&self) -> Result<Arc<Live>, Trouble> {
        match &*self.state.borrow() {
            State::Up(live) => Ok(Arc::clone(live)),
            State::Down(why) => Err(why.clone()),
        }
    }

    /// Waits for a connection that comes after `number`; `None` when nobody dials any more.
    async fn after(&self, number: u64) -> Option<Arc<Live>> {
        let mut changes = self.state.subscribe();
        let state = changes.wait_for(|state| matches!(state, State::Up(live) if live.number > number)).await.ok()?;
        match &*state {
            State::Up(live) => Some(Arc::clone(live)),
            State::Down(_) => None,
        }
    }

    /// Wakes at every change.
    pub(crate) fn changes(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }
}

/// Keeps `link` up by way of `access`, for ever. What becomes of it is told to `observer`, each change once.
pub(crate) async fn keep_up(link: Arc<Link>, access: Access, prefix: Arc<str>, observer: Arc<dyn Observer>) {
    let mut changes = link.state.subscribe();
    let mut told: Option<Trouble> = None;
    let mut noticed: Vec<String> = Vec::new();
    for number in 1.. {
        let mut pause = PAUSE_MIN;
        let mut connection = loop {
            match dial(&access, &prefix).await {
                Ok(connection) => break connection,
                Err(trouble) => {
                    if told.as_ref() != Some(&trouble) {
                        observer.observe(&Observation::DedupStoreDown { cause: &trouble });
                        told = Some(trouble.clone());
                    }
                    link.state.send_replace(State::Down(trouble));
                }
            }
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        };
        let live = Arc::new(Live { connection: connection.clone(), number, silences: AtomicU32::new(0) });
        link.state.send_replace(State::Up(Arc::clone(&live)));
        observer.observe(&Observation::DedupStoreUp);
        let warnings = inspect::warnings(&mut connection).await;
        for message in warnings.iter().filter(|message| !noticed.contains(message)) {
            observer.observe(&Observation::DedupStoreNotice { message });
        }
        noticed = warnings;
        let why = watch_over(&link, &live, &mut changes).await;
        observer.observe(&Observation::DedupStoreDown { cause: &why });
        told = Some(why);
    }
}

/// Connects and tries a claim, so that what is up can be written to.
pub(crate) async fn dial(access: &Access, prefix: &str) -> Result<Connection, Trouble> {
    let trial = async {
        let mut connection = connect(access).await?;
        // Each of its commands has to be as quick as for an event.
        store::trial(&mut connection, prefix, Owner::random()).await?;
        Ok(connection)
    };
    let outcome = Deadline::after(DIAL_MAX).bound(trial).await.unwrap_or_else(|_| Err(Trouble::silent()));
    outcome.map_err(|trouble| trouble.at(&access.place()))
}

/// Boxed, since the compiler cannot tell that the library's future may move between threads.
fn connect(access: &Access) -> BoxFuture<'_, Result<Connection, Trouble>> {
    Box::pin(access.connect())
}

/// Tries the connection from time to time until it goes, and says why it did.
async fn watch_over(link: &Link, live: &Live, changes: &mut watch::Receiver<State>) -> Trouble {
    let ping = Request::Command(redis::cmd("PING"));
    loop {
        if let State::Down(why) = &*changes.borrow_and_update() {
            return why.clone();
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = sleep(TRIAL_INTERVAL) => {
                // What it comes to, the link knows.
                let _: Result<(), Trouble> = link.once(live, None, &ping).await;
            }
        }
    }
}
