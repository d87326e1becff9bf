//! The connection: one of the library's for each, and a task that dials the next when one has ended.
//!
//! The library could reconnect by itself. But it repairs connections only, not channels, declares things anew that are not
//! ours, and gives up after some attempts. So a connection is never repaired: what was in flight on it ends with it.

use std::{
    collections::HashMap,
    io,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use hookgate_core::{
    event::SinkId,
    limits::Deadline,
    observe::{Observation, Observer},
};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, Event, tcp::RustlsConnector, types::ShortString};
use rustls::ClientConfig;
use tokio::{
    net::lookup_host,
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    access::{Access, Credentials},
    broker::BrokerUrl,
    error::{Cause, ChannelEnd, Disconnected},
    lane::{Lane, Request, Reserved, look_up_exchange},
    outbound::Outbound,
    socket::Cutter,
};

/// Longest time for one attempt to connect: DNS, TCP, TLS and login. A broker in reach needs milliseconds.
pub(crate) const DIAL_MAX: Duration = Duration::from_secs(5);

/// Longest pause before the first new attempt; doubled each time. Anything down to none is drawn, so that a fleet does not
/// return in one moment; short, so that publishes that are in flight meanwhile can be repeated within their deadline.
const PAUSE_MIN: Duration = Duration::from_millis(250);

/// Longest pause between attempts. A broker that has come back is found within it.
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// How often a connection is looked at whose end was not told. The library tells of all that are known.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Longest wait for tasks and broker when a connection is given up; nothing is lost by not waiting.
const WIND_UP_MAX: Duration = Duration::from_secs(1);

/// Exchanges with a channel at once. RabbitMQ allows 2047 channels on a connection; names that a sender has a part in must
/// not use up all of them.
const LANES_MAX: usize = 64;

/// Bytes queued in the library and not yet written, in KiB. Small, so that a slow broker is felt here, where the deadline is
/// watched; large enough for one message of the default limit.
const UNSENT_KIB_MAX: u32 = 16 * 1024;

/// What a content header's frame needs beside the properties. Source: AMQP 0-9-1 specification, section 4.2.3.
const FRAME_BYTES: usize = 8;

/// Opens connections.
pub(crate) struct Dialer {
    access: Arc<Access>,
    sink: SinkId,
    max_in_flight: usize,
}

/// A connection that is up, until it ends; it is not repaired.
pub(crate) struct Live {
    connection: Arc<Connection>,
    /// The broker's URL, without a login.
    pub(crate) broker: Arc<str>,
    lanes: Mutex<Lanes>,
    max_in_flight: usize,
    unsent: Arc<Semaphore>,
    body_bytes_max: Arc<AtomicU64>,
    /// Dropped last.
    cutter: Cutter,
}

#[derive(Default)]
struct Lanes {
    by_exchange: HashMap<ShortString, LaneEntrance>,
    tasks: JoinSet<()>,
    has_ended: bool,
}

/// The publishers' half of a [`Lane`].
#[derive(Clone)]
struct LaneEntrance {
    requests: mpsc::Sender<Request>,
    places: Arc<Semaphore>,
}

/// What the sink sees of its connections.
pub(crate) enum Link {
    Down(Arc<Disconnected>),
    Up(Arc<Live>),
    /// Up, and the broker takes nothing on it.
    Blocked(Arc<Live>, Arc<Disconnected>),
    /// For good.
    Closed,
}

/// Puts the changes in place, and tells the observer of each once.
struct Told<'a> {
    sink: &'a SinkId,
    link: &'a watch::Sender<Link>,
    observer: &'a dyn Observer,
    down: Option<hookgate_core::sink::Verdict>,
}

/// The sink is closed: nothing is to be put in place any more.
struct IsClosed;

impl Dialer {
    pub(crate) fn new(access: Access, sink: SinkId, max_in_flight: usize) -> Self {
        Self { access: Arc::new(access), sink, max_in_flight: max_in_flight.min(Semaphore::MAX_PERMITS) }
    }

    /// Keeps `link` connected until it is closed. Told to `observer`: each change, not each attempt.
    pub(crate) async fn keep_connected(self, link: Arc<watch::Sender<Link>>, observer: Arc<dyn Observer>) {
        let mut told = Told { sink: &self.sink, link: &link, observer: &*observer, down: None };
        let mut pause = PAUSE_MIN;
        loop {
            let down = match self.dial_any().await {
                Ok(live) => {
                    pause = PAUSE_MIN;
                    let Ok(lost) = attend(&Arc::new(live), &mut told).await else { return };
                    lost
                }
                Err(refused) => refused,
            };
            let down = Arc::new(down);
            if told.down(Link::Down(Arc::clone(&down)), &down).is_err() {
                return;
            }
            sleep(pause.mul_f64(fastrand::f64())).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Tries every broker once, in random order.
    async fn dial_any(&self) -> Result<Live, Disconnected> {
        let access = Arc::clone(&self.access);
        // It is not carried out when the runtime is being shut down.
        let Ok(read) = tokio::task::spawn_blocking(move || access.read()).await else {
            return Err(Disconnected::not_yet());
        };
        let Credentials { mut brokers, tls } = read.map_err(|error| Disconnected::unprepared(&error))?;
        fastrand::shuffle(&mut brokers);
        let mut failure: Option<Disconnected> = None;
        for broker in brokers {
            match self.dial(broker, Arc::clone(&tls)).await {
                Ok(live) => return Ok(live),
                Err(refused) => {
                    failure = Some(match failure {
                        Some(earlier) => earlier.or_more_telling(refused),
                        None => refused,
                    });
                }
            }
        }
        Err(failure.expect("a list of URLs has at least one"))
    }

    async fn dial(&self, broker: BrokerUrl, tls: Arc<ClientConfig>) -> Result<Live, Disconnected> {
        let name: Arc<str> = broker.to_string().into();
        let deadline = Deadline::after(DIAL_MAX);
        let silent = || Disconnected::silent(&name);
        let refused = |error| Disconnected::refused(&name, &error);
        let runtime = lapin::runtime::default_runtime().map_err(refused)?;
        let connecting = async {
            let addresses: Vec<_> = lookup_host((broker.host(), broker.port())).await?.collect();
            let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
            let AsyncTcpStream::Plain(plain) = &stream else { return Err(io::ErrorKind::Unsupported.into()) };
            let cutter = Cutter::of(plain.get_ref())?;
            let stream = match broker.speaks_tls() {
                true => stream.into_rustls(&RustlsConnector::from(tls), broker.host()).await?,
                false => stream,
            };
            Ok::<_, io::Error>((stream, cutter))
        };
        let connected = deadline.bound(connecting).await.map_err(|_| silent())?;
        let (stream, cutter) = connected.map_err(|error| refused(error.into()))?;
        // The library would open it itself, and again when it reconnects, which it does not.
        let stream = Mutex::new(Some(stream));
        let hand_over = async move |_, _| {
            let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            stream.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted).into())
        };
        let properties = ConnectionProperties::default().with_connection_name(format!("hookgate/{}", self.sink).into());
        let connecting = Connection::connector(broker.into_library(), runtime, hand_over, properties);
        let connected = deadline.bound(connecting).await.map_err(|_| silent())?;
        Ok(Live {
            connection: Arc::new(connected.map_err(refused)?),
            broker: Arc::clone(&name),
            lanes: Mutex::default(),
            max_in_flight: self.max_in_flight,
            unsent: Arc::new(Semaphore::new(UNSENT_KIB_MAX as usize)),
            body_bytes_max: Arc::new(AtomicU64::new(u64::MAX)),
            cutter,
        })
    }
}

/// Waits for the end of a connection, and follows the broker's blocking and unblocking of it until then.
async fn attend(live: &Arc<Live>, told: &mut Told<'_>) -> Result<Disconnected, IsClosed> {
    // Listened to before anything is published: until then nothing is told that matters.
    let mut events = pin!(live.connection.events_listener());
    told.up(live)?;
    loop {
        let mut error = None;
        match timeout(CHECK_INTERVAL, events.next()).await {
            Ok(Some(Event::ConnectionBlocked(words))) => {
                let why = Arc::new(Disconnected::blocked(&live.broker, &words));
                told.down(Link::Blocked(Arc::clone(live), Arc::clone(&why)), &why)?;
            }
            Ok(Some(Event::ConnectionUnblocked)) => told.up(live)?,
            // It may be that of a channel.
            Ok(Some(Event::Error(what))) => error = Some(what),
            Ok(Some(_) | None) | Err(_) => {}
        }
        if !live.is_connected() {
            live.wind_up().await;
            return Ok(Disconnected::lost(&live.broker, error.as_ref()));
        }
    }
}

impl Told<'_> {
    fn up(&mut self, live: &Arc<Live>) -> Result<(), IsClosed> {
        self.replace(Link::Up(Arc::clone(live)))?;
        self.observer.observe(&Observation::SinkUp { sink: self.sink });
        self.down = None;
        Ok(())
    }

    fn down(&mut self, link: Link, why: &Disconnected) -> Result<(), IsClosed> {
        self.replace(link)?;
        if self.down.replace(why.verdict) != Some(why.verdict) {
            self.observer.observe(&Observation::SinkDown { sink: self.sink, cause: why });
        }
        Ok(())
    }

    fn replace(&self, next: Link) -> Result<(), IsClosed> {
        let replaced = self.link.send_if_modified(|link| {
            let open = !matches!(link, Link::Closed);
            if open {
                *link = next;
            }
            open
        });
        if replaced { Ok(()) } else { Err(IsClosed) }
    }
}

impl Live {
    /// Publishes one message and waits for the broker's answer.
    ///
    /// # Cancel safety
    /// Dropped while it waits, the message may be sent or not, now or later; its place is taken until the broker answers.
    pub(crate) async fn publish(&self, outbound: Outbound, deadline: Deadline) -> Result<(), Cause> {
        self.require_open()?;
        self.require_size(&outbound)?;
        let entrance = self.entrance(&outbound.exchange)?;
        let kib = u32::try_from((outbound.body.len() + outbound.properties_bytes) / 1024 + 1).unwrap_or(u32::MAX);
        let reserving = async {
            let place = Arc::clone(&entrance.places).acquire_owned().await?;
            let unsent = Arc::clone(&self.unsent).acquire_many_owned(kib.min(UNSENT_KIB_MAX)).await?;
            Ok::<_, tokio::sync::AcquireError>(Reserved { place, unsent })
        };
        let reserved = deadline.bound(reserving).await.map_err(|_| Cause::NotSent)?.map_err(|_| self.lost())?;
        let (answer, answered) = oneshot::channel();
        // Each has a place and so there is always room; but the channel may have ended.
        if entrance.requests.try_send(Request { outbound, reserved, answer }).is_err() {
            return Err(Cause::ChannelClosed { words: "just now".into() });
        }
        match deadline.bound(answered).await {
            Ok(Ok(told)) => told,
            Ok(Err(_)) => Err(Cause::Broken { broker: Arc::clone(&self.broker) }),
            Err(_) => Err(Cause::NoAnswer),
        }
    }

    /// Asks whether the broker opens a channel, and whether `exchange` is there.
    pub(crate) async fn look_up(&self, exchange: Option<ShortString>, deadline: Deadline) -> Result<(), Cause> {
        self.require_open()?;
        let looking = async {
            let channel = self.connection.create_channel().await?;
            if let Some(exchange) = exchange {
                look_up_exchange(&channel, exchange).await?;
            }
            channel.close(200, "".into()).await
        };
        match deadline.bound(looking).await {
            Ok(looked) => looked.map_err(|error| ChannelEnd::of(&error).before_sending()),
            Err(_) => Err(Cause::NoAnswer),
        }
    }

    /// Says goodbye to the broker, when nothing is in flight any more, and lets go of it.
    pub(crate) async fn close(&self, deadline: Deadline) {
        if self.is_connected() && !self.connection.status().blocked() {
            let limit = deadline.remaining().min(WIND_UP_MAX);
            // A broker that does not answer loses nothing.
            let _ = timeout(limit, self.connection.close(200, "".into())).await;
        }
        self.cutter.cut();
        self.wind_up().await;
    }

    /// Ends the wait of all that are in flight.
    pub(crate) fn cut(&self) {
        self.cutter.cut();
    }

    fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    /// Lets the lanes give their last answers, and ends them.
    async fn wind_up(&self) {
        let mut tasks = {
            let mut lanes = self.lanes();
            lanes.has_ended = true;
            for entrance in lanes.by_exchange.values() {
                entrance.places.close();
            }
            lanes.by_exchange.clear();
            std::mem::take(&mut lanes.tasks)
        };
        self.unsent.close();
        let all_ended = async { while tasks.join_next().await.is_some() {} };
        // Those that have not ended are aborted with the set.
        let _ = timeout(WIND_UP_MAX, all_ended).await;
    }

    /// The library hears of the broker's blocking a moment before the supervisor does.
    fn require_open(&self) -> Result<(), Cause> {
        if !self.is_connected() {
            return Err(self.lost());
        }
        if self.connection.status().blocked() {
            let blocked = Disconnected::blocked(&self.broker, "it has just begun to");
            return Err(Cause::Disconnected(Arc::new(blocked)));
        }
        Ok(())
    }

    fn require_size(&self, outbound: &Outbound) -> Result<(), Cause> {
        let (bytes, bytes_max) = (outbound.body.len() as u64, self.body_bytes_max.load(Ordering::Relaxed));
        if bytes > bytes_max {
            return Err(Cause::TooLarge { bytes, bytes_max, whose: "the broker" });
        }
        // The broker ends the connection when it gets a larger one.
        let frame_max = self.connection.configuration().frame_max() as usize;
        let (bytes, bytes_max) = (outbound.properties_bytes, frame_max.saturating_sub(FRAME_BYTES));
        if bytes > bytes_max {
            return Err(Cause::HeadersTooLarge { bytes, bytes_max });
        }
        Ok(())
    }

    /// The way to the channel of `exchange`, which is opened if there is none.
    fn entrance(&self, exchange: &ShortString) -> Result<LaneEntrance, Cause> {
        let mut lanes = self.lanes();
        if lanes.has_ended {
            return Err(self.lost());
        }
        if let Some(entrance) = lanes.by_exchange.get(exchange)
            && !entrance.requests.is_closed()
        {
            return Ok(entrance.clone());
        }
        lanes.make_room(self.max_in_flight)?;
        let (requests, inbox) = mpsc::channel(self.max_in_flight);
        let lane = Lane {
            connection: Arc::clone(&self.connection),
            broker: Arc::clone(&self.broker),
            exchange: exchange.clone(),
            requests: inbox,
            body_bytes_max: Arc::clone(&self.body_bytes_max),
        };
        lanes.tasks.spawn(lane.run());
        let entrance = LaneEntrance { requests, places: Arc::new(Semaphore::new(self.max_in_flight)) };
        lanes.by_exchange.insert(exchange.clone(), entrance.clone());
        Ok(entrance)
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self) -> Cause {
        Cause::Disconnected(Arc::new(Disconnected::lost(&self.broker, None)))
    }
}

impl Lanes {
    /// Forgets lanes that have ended, and one that has nothing in flight if there are still too many.
    fn make_room(&mut self, max_in_flight: usize) -> Result<(), Cause> {
        while self.tasks.try_join_next().is_some() {}
        self.by_exchange.retain(|_, entrance| !entrance.requests.is_closed());
        if self.by_exchange.len() < LANES_MAX {
            return Ok(());
        }
        let is_idle = |entrance: &LaneEntrance| entrance.places.available_permits() == max_in_flight;
        let idle =
            self.by_exchange.iter().find(|(_, entrance)| is_idle(entrance)).map(|(exchange, _)| exchange.clone());
        match idle {
            Some(exchange) => {
                self.by_exchange.remove(&exchange);
                Ok(())
            }
            None => Err(Cause::NoChannel),
        }
    }
}
