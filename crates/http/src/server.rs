//! The accept loop and its connections: HTTP/1.1 and HTTP/2 with prior knowledge, each bounded in number and time.
//!
//! Not `axum::serve`: that one has no timer, so hyper's own time limits are silently off, and no cap on connections.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::response::Response;
use hookgate_core::{
    auth::Peer,
    observe::{Observation, Observer, ProxyHeaderFailure, TlsFailure},
};
use http::{HeaderValue, Request, Version, header};
use hyper::{
    body::Incoming,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Handle,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::{
    ProxyProtocol, ServerConfig,
    pace::Pace,
    places::{Place, Places},
    proxied,
    tls::{self, Tls},
};

/// Connections that the kernel keeps for us while none is accepted.
const BACKLOG: u32 = 4096;

/// Connections that are accepted in one turn.
const ACCEPTED_TOGETHER: usize = 4;

/// Pause after a failed accept. Out of file descriptors, say, the next one fails as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a connection that was accepted just before the stop has to send its first request.
const FIRST_REQUEST: Duration = Duration::from_millis(100);

/// What bounds the connections of one port.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most connections at once.
    pub connections: usize,
    /// Longest wait for the first request's head, and, where TLS is spoken, before that for the handshake. A PROXY header has to
    /// come within the first of the two.
    pub header_timeout: Duration,
    /// Longest wait for the next one.
    pub keep_alive: Duration,
}

impl From<&ServerConfig> for Limits {
    fn from(config: &ServerConfig) -> Self {
        Self {
            connections: config.max_connections,
            header_timeout: config.header_timeout,
            keep_alive: config.keep_alive,
        }
    }
}

impl Limits {
    /// Those of the admin port, where a scraper and a kubelet come by.
    pub const ADMIN: Self =
        Self { connections: 64, header_timeout: Duration::from_secs(5), keep_alive: Duration::from_secs(75) };
}

/// What answers the requests of a port. It never fails: what goes wrong is an answer.
pub trait Answers:
    Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<S> Answers for S where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// A port that is bound and not served yet.
pub struct Server {
    listener: TcpListener,
    limits: Limits,
    proxy_protocol: ProxyProtocol,
    tls: Option<Tls>,
    leaving: Arc<AtomicBool>,
    workers: Vec<Handle>,
    observer: Arc<dyn Observer>,
}

impl Server {
    /// Binds `address`.
    ///
    /// # Errors
    /// When the operating system does not give us the port.
    pub fn bind(address: SocketAddr, limits: Limits, observer: Arc<dyn Observer>) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart must not wait for the last connections of the one before.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let (proxy_protocol, leaving, workers) = (ProxyProtocol::default(), Arc::default(), vec![Handle::current()]);
        Ok(Self { listener, limits, proxy_protocol, tls: None, leaving, workers, observer })
    }

    /// The same port, where each answer of HTTP/1 is the last of its connection once `leaving` says so: whoever keeps connections
    /// has found others by the time of the stop, at which idle ones are closed, and with them what is just being sent on them.
    #[must_use]
    pub fn with_leaving(self, leaving: Arc<AtomicBool>) -> Self {
        Self { leaving, ..self }
    }

    /// The same port, whose connections are shared out to these runtimes, of which the first is the one that it is served on. A
    /// connection stays where it is; the next one goes where there are fewest.
    #[must_use]
    pub fn with_workers(self, workers: Vec<Handle>) -> Self {
        Self { workers, ..self }
    }

    /// The same port, where the connections that `proxy_protocol` says begin with a header.
    #[must_use]
    pub fn with_proxy_protocol(self, proxy_protocol: ProxyProtocol) -> Self {
        Self { proxy_protocol, ..self }
    }

    /// The same port, where clients speak TLS if `tls` has certificates for it.
    #[must_use]
    pub fn with_tls(self, tls: Option<Tls>) -> Self {
        Self { tls, ..self }
    }

    /// The address that was bound; with port 0 the operating system chose one.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Has `service` answer until `stop`; then closes the port, lets requests in flight finish, and closes idle connections.
    /// What is left at `abort` is cut.
    pub async fn serve(self, service: impl Answers, stop: CancellationToken, abort: CancellationToken) {
        let Self { listener, limits, proxy_protocol, tls, leaving, workers, observer } = self;
        let places = Places::new(limits.connections);
        let (graceful, connections) = (GracefulShutdown::new(), TaskTracker::new());
        let workers: Vec<Worker> = workers.into_iter().map(Worker::new).collect();
        let here = &workers[0];
        let builder = connection_builder(&limits);
        let begin = |place: Place, stream: TcpStream, address: SocketAddr| {
            let (guard, place) = (Open::new(&observer), Arc::new(place));
            let connection = Connection {
                builder: builder.clone(),
                service: service.clone(),
                watcher: graceful.watcher(),
                header_timeout: limits.header_timeout,
                proxy: proxy_protocol.is_spoken_by(address.ip()).then_some(address.ip()),
                peer: Peer { address: Some(address.ip()), certificate: None },
                leaving: Arc::clone(&leaving),
                place: Arc::clone(&place),
                observer: Arc::clone(&observer),
            };
            let worker = workers.iter().min_by_key(|worker| Arc::strong_count(&worker.pace)).unwrap_or(here);
            let (tls, stop, abort, customer) = (tls.clone(), stop.clone(), abort.clone(), worker.pace.newcomer());
            let serve = async move |stream| {
                let connection = Box::pin(connection.serve(stream, tls, stop));
                tokio::select! {
                    () = customer.run(connection, || place.only_finishes()) => {}
                    () = place.taken_away() => {}
                    () = abort.cancelled() => {}
                }
                drop((guard, place));
            };
            if std::ptr::eq(worker, here) {
                connections.spawn(serve(stream));
                return;
            }
            // What tells of the stream has to be that runtime's.
            let Ok(stream) = stream.into_std() else { return };
            let moved = async move {
                if let Ok(stream) = TcpStream::from_std(stream) {
                    serve(stream).await;
                }
            };
            connections.spawn_on(moved, &worker.handle);
        };
        // The one that came last, while there is no place for it. The others wait in the backlog and cost nothing.
        let mut waiting = None;
        let (mut accepting, mut together) = (here.pace.newcomer(), 0);
        loop {
            if let Some((stream, address)) = waiting.take() {
                let place = async {
                    if together == 0 {
                        (accepting, together) = (here.pace.newcomer(), ACCEPTED_TOGETHER);
                        accepting.turn().await;
                    }
                    places.take().await
                };
                match stop.run_until_cancelled(place).await {
                    Some(place) => {
                        let begun = std::time::Instant::now();
                        begin(place, stream, address);
                        accepting.charge(begun);
                        together -= 1;
                    }
                    None => {
                        waiting = Some((stream, address));
                        break;
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok(newcomer) => waiting = Some(newcomer),
                    Err(error) => {
                        observer.observe(&Observation::AcceptFailed { error: &error });
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        if let Some((stream, address)) = waiting
            && let Some(place) = places.try_take()
        {
            begin(place, stream, address);
        }
        // What is in the backlog is taken before the port is closed: it would be reset, and a sender that is refused comes back
        // where one that is reset does not. Asked of the kernel itself, since the runtime may not have heard of it yet.
        if let Ok(listener) = listener.into_std() {
            for _ in 0..BACKLOG {
                let Some(place) = places.try_take() else { break };
                let Ok((stream, address)) = listener.accept() else { break };
                if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                    begin(place, stream, address);
                }
            }
        }
        connections.close();
        // Connections without a request are closed at once by what follows; those that have just come get the time to send one.
        tokio::select! { () = sleep(FIRST_REQUEST) => {}, () = abort.cancelled() => {} }
        let finished = async {
            graceful.shutdown().await;
            connections.wait().await;
        };
        tokio::select! { () = finished => {}, () = abort.cancelled() => connections.wait().await }
    }
}

fn connection_builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // hyper starts this clock as soon as it waits for a head, so it is the idle limit too.
        .header_read_timeout(limits.keep_alive)
        .max_headers(64)
        .max_buf_size(64 * 1024)
        .pipeline_flush(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(128)
        .max_header_list_size(16 * 1024)
        .keep_alive_interval(limits.keep_alive)
        .keep_alive_timeout(limits.header_timeout);
    builder
}

/// A runtime with its share of the connections.
struct Worker {
    handle: Handle,
    /// Of those that it serves each has one.
    pace: Arc<Pace>,
    _keeper: AbortOnDropHandle<()>,
}

impl Worker {
    fn new(handle: Handle) -> Self {
        let pace = Pace::new();
        let keeper = AbortOnDropHandle::new(handle.spawn(Arc::clone(&pace).keep()));
        Self { handle, pace, _keeper: keeper }
    }
}

/// One connection and what it is served with.
struct Connection<S> {
    builder: auto::Builder<TokioExecutor>,
    service: S,
    watcher: Watcher,
    header_timeout: Duration,
    /// The load balancer at its other end, where it has to begin with a PROXY header.
    proxy: Option<IpAddr>,
    peer: Peer,
    leaving: Arc<AtomicBool>,
    place: Arc<Place>,
    observer: Arc<dyn Observer>,
}

impl<S: Answers> Connection<S> {
    /// From its first byte to its end. A connection that has not said who it is, has not shaken hands or has sent no request's
    /// head in time is dropped, in whatever state it is.
    async fn serve(mut self, mut stream: TcpStream, tls: Option<Tls>, stop: CancellationToken) {
        // Answers are small and final: never hold one back to fill a segment.
        if stream.set_nodelay(true).is_err() {
            // The peer is gone already.
            return;
        }
        let deadline = Instant::now() + self.header_timeout;
        if let Some(proxy) = self.proxy {
            match introduced(&mut stream, deadline, &stop).await {
                Some(Ok(sender)) => self.peer.address = Some(sender.unwrap_or(proxy)),
                Some(Err(reason)) => {
                    return self.observer.observe(&Observation::ProxyHeaderRefused { peer: proxy, reason });
                }
                None => return,
            }
        }
        let Some(tls) = tls else { return self.serve_http(stream, deadline).await };
        // After a stop none is finished: no request would follow it.
        let handshake = timeout_at(deadline, Box::pin(tls.accept(stream)));
        let Some(shaken) = stop.run_until_cancelled(handshake).await else { return };
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.handshake_failed(tls::failure(&error), Some(&error)),
            Err(_) => return self.handshake_failed(TlsFailure::Timeout, None),
        };
        // They are verified, or the handshake had failed; the first is the client's own.
        let certificates = stream.get_ref().1.peer_certificates();
        self.peer.certificate = certificates.and_then(|chain| chain.first()).map(|leaf| Arc::from(leaf.as_ref()));
        let deadline = Instant::now() + self.header_timeout;
        self.serve_http(stream, deadline).await;
    }

    fn handshake_failed(&self, reason: TlsFailure, error: Option<&io::Error>) {
        self.observer.observe(&Observation::TlsHandshakeFailed { reason, error });
    }

    /// `deadline` is that of the first request's head.
    ///
    /// What it returns is small: an idle connection should take little memory, and a future has room for all that it was made of.
    fn serve_http(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        deadline: Instant,
    ) -> impl Future<Output = ()> {
        let Self { builder, service, watcher, peer, leaving, place, .. } = self;
        let requested = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&requested);
        let service = service_fn(move |mut request: Request<Incoming>| {
            seen.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(peer.clone());
            let served = place.serve();
            request.extensions_mut().insert(served.clone());
            let keeps = request.version() < Version::HTTP_2;
            if !keeps {
                place.multiplex();
            }
            let (answer, leaving) = (service.call(request), Arc::clone(&leaving));
            async move {
                let mut answer = answer.await?;
                served.end(answer.status().is_success());
                if keeps && leaving.load(Ordering::Relaxed) {
                    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let connection = watcher.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
        let mut connection = Box::pin(connection);
        async move {
            // How a connection ends is the client's business: what matters was observed per request.
            tokio::select! {
                _ = &mut connection => return,
                () = sleep_until(deadline) => {}
            }
            if requested.load(Ordering::Relaxed) {
                let _ended = connection.await;
            }
        }
    }
}

/// The sender that a connection's PROXY header names, if it names one, or why there is no header. `None` after a stop.
async fn introduced(
    stream: &mut TcpStream,
    deadline: Instant,
    stop: &CancellationToken,
) -> Option<Result<Option<IpAddr>, ProxyHeaderFailure>> {
    // A connection that has come just before the stop gets the time that it would have had without a header.
    let stopped = async {
        stop.cancelled().await;
        sleep(FIRST_REQUEST).await;
    };
    tokio::select! {
        header = timeout_at(deadline, proxied::sender(stream)) => {
            Some(header.unwrap_or(Err(ProxyHeaderFailure::Timeout)))
        }
        () = stopped => None,
    }
}

/// Counts a connection for as long as it is open.
struct Open(Arc<dyn Observer>);

impl Open {
    fn new(observer: &Arc<dyn Observer>) -> Self {
        observer.observe(&Observation::ConnectionOpened);
        Self(Arc::clone(observer))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.observe(&Observation::ConnectionClosed);
    }
}
