//! The connection: one client of the library for each, and a task that dials the next when one has ended.
//!
//! The library could reconnect by itself. But then what was in flight waits for replies that went with the old
//! connection, commands of callers that have given up are sent by the next one, each unanswered publish stays in a map for
//! the client's life (nats.rs#1617), and why a server refuses is told as a category only. So its reconnecting is cut off:
//! it cannot be told not to try, but it can be told to try an address where nobody can listen.

use std::{
    future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions, Event, RequestErrorKind, ServerAddr, ServerError,
    connection::State,
    jetstream::{
        self, context::ContextBuilder, message::PublishMessage, publish::PublishAck, stream::Config as StreamConfig,
    },
};
use hookgate_core::{
    event::SinkId,
    limits::Deadline,
    observe::{Observation, Observer},
};
use tokio::{
    sync::{Semaphore, broadcast, oneshot, watch},
    time::sleep,
};

use crate::{
    access::Access,
    error::{Cause, Disconnected},
};

/// Longest time for one attempt to connect: DNS, TCP, TLS, login and a first reply. A broker in reach needs milliseconds.
pub(crate) const DIAL_MAX: Duration = Duration::from_secs(5);

/// Longest pause before the first new attempt; doubled each time. Anything down to none is drawn, so that a fleet does not
/// return in one moment; short, so that publishes that are in flight meanwhile can be repeated within their deadline.
const PAUSE_MIN: Duration = Duration::from_millis(250);

/// Longest pause between attempts. A broker that has come back is found within it.
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// Time between pings; the library gives a connection up when two go unanswered. Its default, a minute, would leave
/// publishes to run into their deadlines for as long on a path that has gone dead.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Commands queued in the library. Small, so that a slow server is felt here, where the deadline is watched, and not after
/// seconds of messages are queued behind it.
const COMMANDS_MAX: usize = 256;

/// Longer than any deadline: the library's own time limits never come first.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

/// Complaints of the server kept for those in flight. Whoever misses one waits for its deadline.
const SIGNALS_MAX: usize = 64;

/// Nobody can listen on port 0: connecting fails at once, without leaving the machine.
const NOWHERE: &str = "nats://127.0.0.1:0";

/// Opens connections.
pub(crate) struct Dialer {
    servers: Vec<ServerAddr>,
    domain: Option<String>,
    access: Arc<Access>,
    sink: SinkId,
}

/// A connection that is up, until it ends; it is not repaired.
pub(crate) struct Live {
    client: Client,
    jetstream: jetstream::Context,
    /// What the requests of the JetStream API begin with.
    api: String,
    /// The server's URL.
    pub(crate) server: Arc<str>,
    signals: broadcast::Sender<Signal>,
}

/// Says when a [`Live`] has ended, and what the server complained about last.
struct Ending {
    complaint: Arc<Mutex<Option<String>>>,
    /// Held by the library's event task, which ends when the connection has.
    ended: oneshot::Receiver<()>,
}

/// Something that concerns those in flight on one connection.
#[derive(Debug, Clone)]
enum Signal {
    /// The server does not let us publish there, and so does not answer. It names no message, only the subject.
    PublishDenied { subject: Arc<str>, words: Arc<str> },
    /// The server does not let us hear its answers.
    AnswersDenied { words: Arc<str> },
    /// The sink is closed and waits no longer.
    Cut,
}

/// What the sink sees of its connections.
pub(crate) enum Link {
    Down(Arc<Disconnected>),
    Up(Arc<Live>),
    /// For good.
    Closed,
}

impl Dialer {
    pub(crate) fn new(servers: Vec<ServerAddr>, domain: Option<String>, access: Access, sink: SinkId) -> Self {
        Self { servers, domain, access: Arc::new(access), sink }
    }

    /// The servers' URLs, for the operator.
    pub(crate) fn servers(&self) -> String {
        let urls: Vec<&str> = self.servers.iter().map(ServerAddr::as_url_str).collect();
        urls.join(", ")
    }

    /// Keeps `link` connected until it is closed. Told to `observer`: each change, not each attempt.
    pub(crate) async fn keep_connected(self, link: Arc<watch::Sender<Link>>, observer: Arc<dyn Observer>) {
        let mut pause = PAUSE_MIN;
        let mut told = None;
        loop {
            let down = match self.dial_any().await {
                Ok((live, ending)) => {
                    let server = Arc::clone(&live.server);
                    if !replace(&link, Link::Up(Arc::new(live))) {
                        return;
                    }
                    observer.observe(&Observation::SinkUp { sink: &self.sink });
                    (pause, told) = (PAUSE_MIN, None);
                    let complaint = ending.wait().await;
                    Disconnected::lost(&server, complaint.as_deref())
                }
                Err(refused) => refused,
            };
            let down = Arc::new(down);
            if !replace(&link, Link::Down(Arc::clone(&down))) {
                return;
            }
            if told.replace(down.verdict) != Some(down.verdict) {
                observer.observe(&Observation::SinkDown { sink: &self.sink, cause: &*down });
            }
            sleep(pause.mul_f64(fastrand::f64())).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Tries every server once, in random order.
    async fn dial_any(&self) -> Result<(Live, Ending), Disconnected> {
        let mut order: Vec<&ServerAddr> = self.servers.iter().collect();
        fastrand::shuffle(&mut order);
        let mut failure: Option<Disconnected> = None;
        for server in order {
            let url = server.as_url_str();
            let attempt = Deadline::after(DIAL_MAX).bound(self.dial(server)).await;
            match attempt.unwrap_or_else(|_| Err(Disconnected::silent(url))) {
                Ok(live) => return Ok(live),
                Err(refused) => {
                    failure = Some(match failure {
                        Some(earlier) => earlier.or_more_telling(refused),
                        None => refused,
                    });
                }
            }
        }
        Err(failure.expect("a config that passed its check names a server"))
    }

    async fn dial(&self, server: &ServerAddr) -> Result<(Live, Ending), Disconnected> {
        let url: Arc<str> = server.as_url_str().into();
        let (signals, ending, on_event) = events();
        let options = ConnectOptions::new()
            .name(format!("hookgate/{}", self.sink))
            .event_callback(on_event)
            .connection_timeout(DIAL_MAX)
            .ping_interval(PING_INTERVAL)
            .client_capacity(COMMANDS_MAX)
            .request_timeout(None)
            .ignore_discovered_servers()
            .reconnect_delay_callback(|_| Duration::ZERO)
            // One is the least that can be said: zero means no limit.
            .max_reconnects(1);
        let access = Arc::clone(&self.access);
        // It is not carried out when the runtime is being shut down.
        let Ok(prepared) = tokio::task::spawn_blocking(move || access.apply(options)).await else {
            return Err(Disconnected::silent(&url));
        };
        let options = prepared.map_err(|error| Disconnected::unprepared(&url, &error))?;
        let client = options.connect(server.clone()).await.map_err(|error| Disconnected::refused(&url, &error))?;
        let nowhere: ServerAddr = NOWHERE.parse().expect("the constant is an address");
        client.set_server_pool(nowhere).await.map_err(|_| Disconnected::lost(&url, None))?;
        hears_answers(&client, &signals, &url).await?;
        let api = self.domain.as_ref().map_or_else(|| "$JS.API".to_owned(), |domain| format!("$JS.{domain}.API"));
        let jetstream = ContextBuilder::new()
            .api_prefix(api.as_str())
            .timeout(NEVER)
            // The sink's bound is the only one: a permit of the library is held by a future of ours, and by nothing else.
            .max_ack_inflight(Semaphore::MAX_PERMITS)
            .build(client.clone());
        Ok((Live { client, jetstream, api, server: url, signals }, ending))
    }
}

/// Puts `next` in place, unless the sink is closed: then `false`.
fn replace(link: &watch::Sender<Link>, next: Link) -> bool {
    link.send_if_modified(|link| {
        let open = !matches!(link, Link::Closed);
        if open {
            *link = next;
        }
        open
    })
}

/// The channels between the library's events and a connection.
fn events() -> (broadcast::Sender<Signal>, Ending, impl Fn(Event) -> future::Ready<()> + Send + Sync + 'static) {
    let (signals, _) = broadcast::channel(SIGNALS_MAX);
    let (alive, ended) = oneshot::channel();
    let complaint = Arc::new(Mutex::new(None));
    let ending = Ending { complaint: Arc::clone(&complaint), ended };
    let to_those_in_flight = signals.clone();
    let on_event = move |event| {
        // It is dropped with this closure.
        let _alive = &alive;
        if let Event::ServerError(error) = event {
            let words = match error {
                ServerError::Other(words) => words,
                // The library puts its own name before words that it knows.
                known => known.to_string().trim_start_matches("nats: ").to_owned(),
            };
            match denial(&words) {
                // Nobody may be in flight.
                Some(signal) => drop(to_those_in_flight.send(signal)),
                None => *complaint.lock().unwrap_or_else(PoisonError::into_inner) = Some(words),
            }
        }
        future::ready(())
    };
    (signals, ending, on_event)
}

/// The denial that the server's `words` are, if they are one.
///
/// Source: nats-server `server/client.go`, `pubPermissionViolation` and `subPermissionViolation`.
fn denial(words: &str) -> Option<Signal> {
    const PUBLISH: &str = "Permissions Violation for Publish to \"";
    const SUBSCRIBE: &str = "Permissions Violation for Subscription to ";
    if let Some(subject) = words.strip_prefix(PUBLISH) {
        let subject = subject.split('"').next().unwrap_or_default();
        return Some(Signal::PublishDenied { subject: subject.into(), words: words.into() });
    }
    words.starts_with(SUBSCRIBE).then(|| Signal::AnswersDenied { words: words.into() })
}

/// Makes one round trip to a subject where nobody listens, so that a connection is up only if answers come back on it.
///
/// A server answers to that at once, unless the account may not publish there, which shows as much. An account that may
/// not subscribe to its inbox would store every message and never learn of it.
async fn hears_answers(client: &Client, signals: &broadcast::Sender<Signal>, url: &str) -> Result<(), Disconnected> {
    let mut signals = signals.subscribe();
    let answer = client.request(client.new_inbox(), "".into());
    tokio::select! {
        answer = answer => match answer.map_err(|error| error.kind()) {
            Ok(_) | Err(RequestErrorKind::NoResponders) => Ok(()),
            Err(_) => Err(Disconnected::lost(url, None)),
        },
        signal = signals.recv() => match signal {
            Ok(Signal::AnswersDenied { words }) => Err(Disconnected::denied(url, &words)),
            Ok(Signal::PublishDenied { .. } | Signal::Cut) => Ok(()),
            Err(_) => Err(Disconnected::lost(url, None)),
        },
    }
}

impl Ending {
    /// Waits for the end, and says what the server complained about last.
    async fn wait(self) -> Option<String> {
        // The sender is dropped, never used.
        let _ = self.ended.await;
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Live {
    /// Publishes one message to `stream` and waits for the acknowledgement.
    ///
    /// # Cancel safety
    /// Dropped while it waits, the message may be sent or not, now or later; nothing else stays behind but an entry in the
    /// library's map of replies, until the reply comes or the connection ends (nats.rs#1617).
    pub(crate) async fn publish(
        &self,
        subject: &str,
        message: PublishMessage,
        stream: &Arc<str>,
        deadline: Deadline,
    ) -> Result<PublishAck, Cause> {
        self.require_connected()?;
        let mut signals = self.signals.subscribe();
        let sending = self.jetstream.send_publish(subject.to_owned(), message);
        let sent = tokio::select! {
            biased;
            sent = deadline.bound(sending) => sent.map_err(|_| Cause::NotSent)?,
            cause = self.interruption(&mut signals, subject) => return Err(cause),
        };
        let answer = sent.map_err(|error| Cause::of_sending(&error, subject, &self.server))?;
        tokio::select! {
            biased;
            answer = deadline.bound(answer.into_future()) => answer
                .map_err(|_| Cause::NoAnswer)?
                .map_err(|error| Cause::of_answer(&error, subject, stream, &self.server)),
            cause = self.interruption(&mut signals, subject) => Err(cause),
        }
    }

    /// Asks whether `stream` is there and takes messages, and how it is set up.
    pub(crate) async fn look_up(&self, stream: &Arc<str>, deadline: Deadline) -> Result<StreamConfig, Cause> {
        self.require_connected()?;
        let mut signals = self.signals.subscribe();
        let subject = format!("{}.STREAM.INFO.{stream}", self.api);
        let answer = tokio::select! {
            biased;
            answer = deadline.bound(self.jetstream.get_stream(&**stream)) => answer.map_err(|_| Cause::NoAnswer)?,
            cause = self.interruption(&mut signals, &subject) => return Err(cause),
        };
        let (stream, server) = (Arc::clone(stream), Arc::clone(&self.server));
        let config = match answer {
            Ok(found) => found.cached_info().config.clone(),
            Err(error) => return Err(Cause::of_look_up(&error, stream, server)),
        };
        match (config.sealed, config.no_ack) {
            (true, _) => Err(Cause::UnusableStream { stream, trouble: "is sealed and takes no message" }),
            (_, true) => Err(Cause::UnusableStream { stream, trouble: "has no_ack set and never acknowledges" }),
            (false, false) => Ok(config),
        }
    }

    /// Sends what is queued. It would wait for ever on a connection that does not take it, so `deadline` bounds it.
    pub(crate) async fn flush(&self, deadline: Deadline) {
        // Nothing waits for an answer any more: what is left unsent belongs to callers that know it as unknown.
        let _ = deadline.bound(self.client.flush()).await;
    }

    /// Ends the wait of all that are in flight.
    pub(crate) fn cut(&self) {
        // Nobody may be.
        let _ = self.signals.send(Signal::Cut);
    }

    /// The library marks the end of a connection a moment before its client is gone. What is handed to it in between is not
    /// sent, but that could not be told from what was.
    fn require_connected(&self) -> Result<(), Cause> {
        match self.client.connection_state() {
            State::Connected => Ok(()),
            State::Pending | State::Disconnected => {
                Err(Cause::Disconnected(Arc::new(Disconnected::lost(&self.server, None))))
            }
        }
    }

    /// Waits for a signal that concerns `subject`; for ever, when none comes.
    async fn interruption(&self, signals: &mut broadcast::Receiver<Signal>, subject: &str) -> Cause {
        loop {
            match signals.recv().await {
                Ok(Signal::PublishDenied { subject: denied, words }) if *denied == *subject => {
                    return Cause::Denied { words };
                }
                Ok(Signal::PublishDenied { .. }) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                // They may have been stored, and the server did say so.
                Ok(Signal::AnswersDenied { .. } | Signal::Cut) => {
                    return Cause::Broken { server: Arc::clone(&self.server) };
                }
                Err(broadcast::error::RecvError::Closed) => future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests;
