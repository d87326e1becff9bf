//! A TCP proxy that misbehaves on demand: the network between the relay and a broker.
//!
//! One task accepts and takes orders; it owns one task for each connection, and each of those two directions. Reading is
//! apart from writing in each direction, so that a delay is latency and not a limit on throughput. A fault acts where
//! bytes leave the proxy, and so on bytes already under way too.
//!
//! What a client sees of a cut is a reset, as from a broken network. The broker sees an orderly end, so that the bytes
//! counted as forwarded do arrive there: "cut after the request, before the reply" is then exactly that.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::process::free_port;

/// Bytes read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// Chunks read and not yet written, for each direction. When they are full the proxy stops reading, as a network would.
const CHUNKS_AHEAD: usize = 64;

/// What the proxy does to connections, old and new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyMode {
    /// Forwards everything.
    Pass,
    /// Forwards everything, each byte this much later, in both directions.
    Delay(Duration),
    /// Accepts and forwards nothing, not even the end of a connection. Whatever was held back goes on in the next mode.
    BlackHole,
    /// As if nothing listened: live connections are cut, new ones are refused.
    Refuse,
    /// Forwards what the client sends and drops what the server answers.
    SwallowReplies,
    /// Forwards everything, with `from` replaced by `to` in what the client sends. Both have the same length. Where `from` is
    /// split between two reads it is not found, which for a command of some bytes does not happen on a loopback.
    Rewrite {
        /// What is looked for.
        from: &'static [u8],
        /// What stands in its place.
        to: &'static [u8],
    },
    /// Cuts each connection when it has sent this many further bytes to the server; they still arrive there.
    CutAfter(u64),
    /// Cuts each connection after a pseudo-random number of further bytes in both directions together: anything from
    /// one to twice `mean_bytes`, drawn from `seed` and the number of the connection.
    Lossy {
        /// The same seed draws the same numbers.
        seed: u64,
        /// Mean of the numbers drawn. At least 1.
        mean_bytes: u64,
    },
}

/// A proxy on a loopback port, in [`ProxyMode::Pass`] at first. Dropping it cuts everything.
#[derive(Debug)]
pub struct FaultProxy {
    port: u16,
    orders: mpsc::Sender<Order>,
    counts: Arc<Counts>,
    acceptor: JoinHandle<()>,
}

impl FaultProxy {
    /// Starts a proxy to `upstream` (`host:port`) on a free port. The upstream need not be there yet.
    pub async fn start(upstream: impl Into<String>) -> FaultProxy {
        let port = free_port();
        let (orders, inbox) = mpsc::channel(1);
        let counts = Arc::new(Counts::default());
        let acceptor = Acceptor {
            listener: Some(listen(port).await),
            port,
            upstream: upstream.into().into(),
            setting: watch::Sender::new(Setting { mode: ProxyMode::Pass, since: 0 }),
            connections: JoinSet::new(),
            counts: counts.clone(),
        };
        FaultProxy { port, orders, counts, acceptor: tokio::spawn(acceptor.run(inbox)) }
    }

    /// The port to connect to, the same for life.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Changes the mode, for live connections too. On return it is in force.
    pub async fn set_mode(&self, mode: ProxyMode) {
        if let ProxyMode::Rewrite { from, to } = mode {
            assert!(from.len() == to.len() && !from.is_empty(), "lengths stand elsewhere in most protocols");
        }
        self.order(|done| Order::SetMode(mode, done)).await;
    }

    /// Cuts every live connection. On return they are closed. New ones are welcome.
    pub async fn cut(&self) {
        self.order(Order::Cut).await;
    }

    /// Connections accepted so far.
    pub fn connections_seen(&self) -> u64 {
        self.counts.seen.load(Ordering::Relaxed)
    }

    /// Connections that are open now.
    pub fn connections_live(&self) -> u64 {
        self.counts.live.load(Ordering::Relaxed)
    }

    async fn order(&self, order: impl FnOnce(oneshot::Sender<()>) -> Order) {
        let (done, carried_out) = oneshot::channel();
        self.orders.send(order(done)).await.expect("the acceptor lives as long as the proxy");
        carried_out.await.expect("the acceptor carries out every order");
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

#[derive(Debug, Default)]
struct Counts {
    seen: AtomicU64,
    live: AtomicU64,
}

#[derive(Debug)]
enum Order {
    SetMode(ProxyMode, oneshot::Sender<()>),
    Cut(oneshot::Sender<()>),
}

/// The mode in force. `since` counts the changes: a mode set anew is a new one, even if it is the same.
#[derive(Debug, Clone, Copy)]
struct Setting {
    mode: ProxyMode,
    since: u64,
}

struct Acceptor {
    /// `None` in mode `Refuse`: only a port without a listener refuses.
    listener: Option<TcpListener>,
    port: u16,
    upstream: Arc<str>,
    setting: watch::Sender<Setting>,
    connections: JoinSet<()>,
    counts: Arc<Counts>,
}

impl Acceptor {
    async fn run(mut self, mut inbox: mpsc::Receiver<Order>) {
        loop {
            tokio::select! {
                // Clients first: a connection that was open before a cut is to be cut.
                biased;
                client = accept(self.listener.as_ref()) => self.admit(client),
                order = inbox.recv() => match order {
                    Some(Order::SetMode(mode, done)) => {
                        self.set_mode(mode).await;
                        let _ = done.send(());
                    }
                    Some(Order::Cut(done)) => {
                        self.connections.shutdown().await;
                        let _ = done.send(());
                    }
                    None => return,
                },
                Some(_) = self.connections.join_next() => {}
            }
        }
    }

    fn admit(&mut self, client: TcpStream) {
        let number = self.counts.seen.fetch_add(1, Ordering::Relaxed);
        let live = Live::new(self.counts.clone());
        let client = CutOnDrop::new(client);
        let setting = self.setting.subscribe();
        let upstream = self.upstream.clone();
        self.connections.spawn(async move {
            let _live = live;
            carry(client, &upstream, setting, number).await;
        });
    }

    async fn set_mode(&mut self, mode: ProxyMode) {
        self.setting.send_modify(|setting| *setting = Setting { mode, since: setting.since + 1 });
        if mode == ProxyMode::Refuse {
            self.listener = None;
            self.connections.shutdown().await;
        } else if self.listener.is_none() {
            self.listener = Some(listen(self.port).await);
        }
    }
}

/// Counts a connection as live while it exists.
struct Live(Arc<Counts>);

impl Live {
    fn new(counts: Arc<Counts>) -> Live {
        counts.live.fetch_add(1, Ordering::Relaxed);
        Live(counts)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client whose connection ends with a reset, unless it ended in order before. So whoever aborts the task, cuts.
struct CutOnDrop {
    stream: TcpStream,
    ended_in_order: bool,
}

impl CutOnDrop {
    fn new(stream: TcpStream) -> CutOnDrop {
        CutOnDrop { stream, ended_in_order: false }
    }
}

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        if !self.ended_in_order {
            // It fails only on a socket that is dead already.
            let _ = self.stream.set_zero_linger();
        }
    }
}

async fn listen(port: u16) -> TcpListener {
    TcpListener::bind(("127.0.0.1", port)).await.unwrap_or_else(|error| panic!("listen on port {port}: {error}"))
}

/// The next client; none ever comes where nothing listens.
async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        // An error here is that of one client which has gone again.
        if let Ok((client, _)) = listener.accept().await {
            return client;
        }
    }
}

/// Carries one connection until both directions have ended, or one of them has failed or is to be cut.
async fn carry(mut client: CutOnDrop, upstream: &str, mut setting: watch::Receiver<Setting>, number: u64) {
    // A black hole accepts even while there is no upstream.
    if setting.wait_for(|setting| setting.mode != ProxyMode::BlackHole).await.is_err() {
        return;
    }
    let Ok(mut server) = connect(upstream).await else {
        return;
    };
    let budget = Mutex::new(Budget { number, since: 0, left: u64::MAX });
    let (client_read, client_write) = client.stream.split();
    let (server_read, server_write) = server.split();
    let up = Gate { way: Way::Up, to: server_write, setting: setting.clone(), budget: &budget };
    let down = Gate { way: Way::Down, to: client_write, setting, budget: &budget };
    let ended = tokio::try_join!(forward(client_read, up), forward(server_read, down));
    client.ended_in_order = ended.is_ok();
}

async fn connect(upstream: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(lookup_host(upstream).await?.collect::<Vec<_>>().as_slice()).await?;
    // Small messages must not wait for acknowledgements of earlier ones: that would be a fault nobody asked for.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Carries one direction until its end.
async fn forward(from: ReadHalf<'_>, gate: Gate<'_>) -> io::Result<()> {
    let (chunks, queue) = mpsc::channel(CHUNKS_AHEAD);
    let reading = async {
        read_ahead(from, chunks).await;
        // What was read is still to be written: only the gate knows when the direction has ended.
        std::future::pending().await
    };
    tokio::select! {
        written = gate.write_all(queue) => written,
        never = reading => never,
    }
}

/// One thing read: bytes, or (empty) the end, or the failure of the connection; and when.
struct Chunk {
    read: io::Result<Bytes>,
    at: Instant,
}

async fn read_ahead(mut from: ReadHalf<'_>, chunks: mpsc::Sender<Chunk>) {
    loop {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        let read = from.read_buf(&mut buffer).await.map(|_| buffer.freeze());
        let last = !matches!(&read, Ok(bytes) if !bytes.is_empty());
        // The gate is gone when it has failed; its error counts.
        if chunks.send(Chunk { read, at: Instant::now() }).await.is_err() || last {
            return;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// Where bytes of one direction leave the proxy, and where the mode acts on them.
struct Gate<'a> {
    way: Way,
    to: WriteHalf<'a>,
    setting: watch::Receiver<Setting>,
    budget: &'a Mutex<Budget>,
}

impl Gate<'_> {
    async fn write_all(mut self, mut queue: mpsc::Receiver<Chunk>) -> io::Result<()> {
        while let Some(chunk) = queue.recv().await {
            let setting = self.opens(chunk.at).await;
            let bytes = chunk.read?;
            if bytes.is_empty() {
                break;
            }
            self.write(setting, &bytes).await?;
        }
        self.to.shutdown().await
    }

    /// Waits until something that was read at `read_at` may leave, and says under which mode.
    async fn opens(&mut self, read_at: Instant) -> Setting {
        loop {
            let setting = *self.setting.borrow_and_update();
            let pause = match setting.mode {
                ProxyMode::BlackHole => None,
                ProxyMode::Delay(delay) if read_at + delay > Instant::now() => Some(read_at + delay),
                _ => return setting,
            };
            tokio::select! {
                // The sender of settings lives as long as this task's owner: an error cannot come.
                _ = self.setting.changed() => {}
                () = sleep_until(pause) => {}
            }
        }
    }

    async fn write(&mut self, setting: Setting, bytes: &[u8]) -> io::Result<()> {
        if setting.mode == ProxyMode::SwallowReplies && self.way == Way::Down {
            return Ok(());
        }
        if let (ProxyMode::Rewrite { from, to }, Way::Up) = (setting.mode, self.way) {
            return self.to.write_all(&rewrite(bytes, from, to)).await;
        }
        let spent = self.budget.lock().unwrap_or_else(PoisonError::into_inner).spend(setting, self.way, bytes.len());
        match spent {
            Spent::Within => self.to.write_all(bytes).await,
            Spent::Last(allowed) => {
                self.to.write_all(&bytes[..allowed]).await?;
                Err(io::Error::other("cut by the proxy"))
            }
        }
    }
}

fn rewrite(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut rewritten = bytes.to_vec();
    let mut place = 0;
    while let Some(found) = rewritten[place..].windows(from.len()).position(|window| window == from) {
        place += found;
        rewritten[place..place + to.len()].copy_from_slice(to);
        place += to.len();
    }
    rewritten
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// How many bytes a connection may still carry in the mode in force, both directions together.
struct Budget {
    /// The number of the connection.
    number: u64,
    /// The setting for which `left` was drawn.
    since: u64,
    left: u64,
}

enum Spent {
    Within,
    /// This many bytes may still leave, and then the connection is to be cut.
    Last(usize),
}

impl Budget {
    fn spend(&mut self, setting: Setting, way: Way, wanted: usize) -> Spent {
        if self.since != setting.since {
            self.since = setting.since;
            self.left = match setting.mode {
                ProxyMode::CutAfter(bytes) => bytes,
                ProxyMode::Lossy { seed, mean_bytes } => draw(seed, self.number, mean_bytes),
                _ => u64::MAX,
            };
        }
        if way == Way::Down && matches!(setting.mode, ProxyMode::CutAfter(_)) {
            return Spent::Within;
        }
        let wanted_bytes = wanted as u64;
        if self.left > wanted_bytes {
            self.left -= wanted_bytes;
            return Spent::Within;
        }
        let allowed = usize::try_from(self.left).expect("not more than was wanted");
        self.left = 0;
        Spent::Last(allowed)
    }
}

fn draw(seed: u64, number: u64, mean_bytes: u64) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    random.u64(1..=mean_bytes.saturating_mul(2).max(1))
}

#[cfg(test)]
mod tests;
