//! The sink: one attempt for each message, on the connection that is up now.

use std::{fmt, iter, sync::Arc, time::Duration};

use async_nats::{
    ConnectOptions, HeaderMap, HeaderName, HeaderValue,
    header::ParseHeaderNameError,
    jetstream::{message::PublishMessage, stream::Config as StreamConfig},
};
use futures_util::future::BoxFuture;
use hookgate_core::{
    event::SinkId,
    limits::Deadline,
    message::Message,
    observe::Observer,
    secret::ResolveSecret,
    sink::{Capabilities, ConnectError, PublishError, Receipt, Sink, Target},
};
use serde::{
    Deserialize,
    de::{self, value::MapDeserializer},
};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use crate::{
    access::Access,
    config::{self, Config},
    connection::{Dialer, Link, Live},
    error::{Cause, Disconnected, position},
    review,
};

/// Pauses before asking again where nobody listens: a stream that elects a leader looks the same as none, for a second or
/// so. Source: nats.net#288.
const PAUSES_FOR_A_LEADER: [Duration; 2] = [Duration::from_millis(250); 2];

/// Longest wait for the first connection. A broker that is there answers in milliseconds; one that is not does not hold up
/// the start.
const FIRST_CONNECTION_MAX: Duration = Duration::from_secs(2);

/// Headers that a map has room for from the beginning. Most messages have fewer than twenty.
const HEADERS_ROOM: usize = 28;

/// A sink that publishes to one JetStream stream.
pub struct NatsSink {
    id: SinkId,
    stream: Arc<str>,
    /// What the headers of every message begin with, and room for the rest.
    headers: HeaderMap,
    servers: String,
    link: Arc<watch::Sender<Link>>,
    /// Publishes that have begun and not ended. It only wakes `close`.
    in_flight: watch::Sender<usize>,
    connecting: JoinHandle<()>,
}

/// Connects the sink `id`, and keeps it connected until it is closed or dropped.
///
/// Waits for the first connection, but not longer than two seconds and not until it succeeds: a broker that is down, or
/// refuses us, is reported by every publish and probe until it takes us. Whether it does is told to `observer`, each change
/// once.
///
/// # Errors
/// When something that the config names cannot be used: a problem that [`Config::check`] finds, a secret that is not
/// there, a file that holds no certificate.
pub async fn connect(
    id: SinkId,
    config: &Config,
    resolve: &mut ResolveSecret<'_>,
    observer: Arc<dyn Observer>,
) -> Result<NatsSink, ConnectError> {
    if let Some(problem) = config.check().into_iter().next() {
        return Err(ConnectError::new(&id, problem.key, problem.message));
    }
    let dialer = dialer(&id, config, resolve)?;
    let servers = dialer.servers();
    let (link, mut changes) = watch::channel(Link::Down(Arc::new(Disconnected::not_yet(&servers))));
    let link = Arc::new(link);
    let connecting = tokio::spawn(dialer.keep_connected(Arc::clone(&link), observer));
    let sink = NatsSink {
        id,
        stream: config.stream.as_str().into(),
        headers: common_headers(&config.stream),
        servers,
        link,
        in_flight: watch::Sender::new(0),
        connecting,
    };
    // Neither outcome matters here: it stands in `link`.
    let _ = Deadline::after(FIRST_CONNECTION_MAX).bound(changes.changed()).await;
    Ok(sink)
}

fn dialer(id: &SinkId, config: &Config, resolve: &mut ResolveSecret<'_>) -> Result<Dialer, ConnectError> {
    let parsed: Result<Vec<_>, String> = config.servers.iter().map(|text| config::parse_server(text)).collect();
    let servers = parsed.map_err(|message| ConnectError::new(id, "servers", message))?;
    let unusable = |error: crate::access::AccessError| ConnectError::new(id, error.key(), error);
    let access = Access::resolve(config, resolve).map_err(unusable)?;
    // Files and seeds are tried now, when an operator is looking, and again for each connection.
    access.apply(ConnectOptions::new()).map_err(unusable)?;
    Ok(Dialer::new(servers, config.domain.clone(), access, id.clone()))
}

impl Sink for NatsSink {
    fn capabilities(&self) -> Capabilities {
        Capabilities { deduplicates: true }
    }

    fn publish<'a>(&'a self, message: &'a Message, deadline: Deadline) -> BoxFuture<'a, Result<Receipt, PublishError>> {
        Box::pin(async move {
            let published = self.publish_to_stream(message, deadline).await;
            published.map_err(|cause| cause.into_error(&self.id))
        })
    }

    fn probe(&self, deadline: Deadline) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(async move {
            let looked_up = self.look_up_stream(deadline).await;
            looked_up.map(drop).map_err(|cause| cause.into_error(&self.id))
        })
    }

    fn review<'a>(
        &'a self,
        targets: &'a [Target],
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Vec<String>, PublishError>> {
        Box::pin(async move {
            let stream = self.look_up_stream(deadline).await.map_err(|cause| cause.into_error(&self.id))?;
            Ok(review::stream(&stream, targets))
        })
    }

    fn close(&self, deadline: Deadline) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let last = self.link.send_replace(Link::Closed);
            self.connecting.abort();
            // Those that counted themselves before the line above are waited for; the others see that it is closed.
            let mut in_flight = self.in_flight.subscribe();
            let all_ended = deadline.bound(in_flight.wait_for(|count| *count == 0)).await.is_ok();
            if let Link::Up(live) = last {
                if !all_ended {
                    live.cut();
                }
                live.flush(deadline).await;
            }
        })
    }
}

impl NatsSink {
    async fn publish_to_stream(&self, message: &Message, deadline: Deadline) -> Result<Receipt, Cause> {
        let _in_flight = InFlight::enter(&self.in_flight);
        let Target::Subject(subject) = &message.leg.target else {
            return Err(Cause::NotASubject { subject: message.leg.target.to_string() });
        };
        let mut pauses = PAUSES_FOR_A_LEADER.into_iter();
        let ack = loop {
            let live = self.live()?;
            // Made anew for the rare second time: a copy kept for it would cost every message as much.
            let headers = headers(message, self.headers.clone())?;
            let outbound = PublishMessage::build().payload(message.body().clone()).headers(headers);
            match live.publish(subject, outbound, &self.stream, deadline).await {
                Ok(ack) => break ack,
                Err(cause) if waited_for_a_leader(&cause, &mut pauses, deadline).await => {}
                Err(cause) => return Err(cause),
            }
        };
        let position = position(ack, subject, &self.stream)?;
        Ok(Receipt::acknowledged(message, position))
    }

    async fn look_up_stream(&self, deadline: Deadline) -> Result<StreamConfig, Cause> {
        let mut pauses = PAUSES_FOR_A_LEADER.into_iter();
        loop {
            match self.live()?.look_up(&self.stream, deadline).await {
                Err(cause) if waited_for_a_leader(&cause, &mut pauses, deadline).await => {}
                looked_up => return looked_up,
            }
        }
    }

    fn live(&self) -> Result<Arc<Live>, Cause> {
        match &*self.link.borrow() {
            Link::Up(live) => Ok(Arc::clone(live)),
            Link::Down(why) => Err(Cause::Disconnected(Arc::clone(why))),
            Link::Closed => Err(Cause::Closed),
        }
    }
}

impl Drop for NatsSink {
    fn drop(&mut self) {
        self.connecting.abort();
    }
}

impl fmt::Debug for NatsSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsSink")
            .field("id", &self.id)
            .field("servers", &self.servers)
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

/// Counts one publish while it lives.
struct InFlight<'a>(&'a watch::Sender<usize>);

impl<'a> InFlight<'a> {
    fn enter(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Pauses and returns `true` if `cause` may be the want of a leader; `false` when it is to be believed.
async fn waited_for_a_leader(cause: &Cause, pauses: &mut impl Iterator<Item = Duration>, deadline: Deadline) -> bool {
    if !cause.may_pass_at_once() {
        return false;
    }
    match pauses.next() {
        Some(pause) if pause < deadline.remaining() => {
            sleep(pause).await;
            true
        }
        _ => false,
    }
}

/// The header that says which stream is meant, in a map with room for all that a message has: to make that room step by step
/// costs more than all else about the headers, and a map that is read from somewhere is the only one that comes with it.
fn common_headers(stream: &str) -> HeaderMap {
    let entries = iter::repeat_n(("Nats-Expected-Stream", vec![stream]), HEADERS_ROOM);
    let entries: MapDeserializer<'_, _, de::value::Error> = MapDeserializer::new(entries);
    HeaderMap::deserialize(entries).expect("texts are what it is read from")
}

/// The message's headers, beside those that are there. Checked here, since the library panics on one that it cannot send.
fn headers(message: &Message, mut headers: HeaderMap) -> Result<HeaderMap, Cause> {
    let mut unsendable = None;
    let mut append = |name: &str, value: &str| match (header_name(name), value.parse::<HeaderValue>()) {
        (Ok((name, Often::Once)), Ok(value)) => headers.insert(name, value),
        (Ok((name, Often::Maybe)), Ok(value)) => headers.append(name, value),
        _ => unsendable = Some(name.to_owned()),
    };
    message.for_each_header(&mut append);
    append("Nats-Msg-Id", &message.broker_id());
    match unsendable {
        Some(name) => Err(Cause::NotAHeader { name }),
        None => Ok(headers),
    }
}

/// How often a message can have a header.
enum Often {
    Once,
    Maybe,
}

/// The name for `name`; those that every message has, without looking at each of their letters again.
fn header_name(name: &str) -> Result<(HeaderName, Often), ParseHeaderNameError> {
    macro_rules! known {
        ($($known:literal)+) => {
            match name {
                $($known => return Ok((const { HeaderName::from_static($known) }, Often::Once)),)+
                _ => {}
            }
        };
    }
    known! {
        "ce-specversion" "ce-id" "ce-source" "ce-type" "ce-time" "content-type" "hookgate-source" "hookgate-event-id"
        "hookgate-received-at" "hookgate-route" "traceparent" "Nats-Msg-Id"
    }
    // Attributes are the rest of ours.
    Ok((name.parse()?, if name.starts_with("hookgate-") { Often::Once } else { Often::Maybe }))
}
