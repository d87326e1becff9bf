//! The accept loop and its connections: HTTP/1.1 and HTTP/2 with prior knowledge, each bounded in number and time.
//!
//! Not `axum::serve`: that one has no timer, so hyper's own time limits are silently off, and no cap on connections.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::Router;
use hookgate_core::observe::{Observation, Observer};
use hyper::{
    body::Incoming,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::ServerConfig;

/// Connections that the kernel keeps for us while none is accepted.
const BACKLOG: u32 = 4096;

/// Pause after a failed accept. Out of file descriptors, say, the next one fails as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What bounds the connections of one port.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most connections at once.
    pub connections: usize,
    /// Longest wait for the first request's head.
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

/// A port that is bound and not served yet.
pub struct Server {
    listener: TcpListener,
    limits: Limits,
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
        Ok(Self { listener: socket.listen(BACKLOG)?, limits, observer })
    }

    /// The address that was bound; with port 0 the operating system chose one.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves `router` until `stop`; then closes the port, lets requests in flight finish, and closes idle connections.
    /// What is left at `abort` is cut.
    pub async fn serve(self, router: Router, stop: CancellationToken, abort: CancellationToken) {
        let Self { listener, limits, observer } = self;
        let places = Arc::new(Semaphore::new(limits.connections));
        let (graceful, connections) = (GracefulShutdown::new(), TaskTracker::new());
        let builder = connection_builder(&limits);
        loop {
            // The place comes first: with none free, new connections wait in the backlog and cost nothing.
            let accept = async {
                let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
                (place, listener.accept().await)
            };
            let (place, stream) = tokio::select! {
                () = stop.cancelled() => break,
                (place, accepted) = accept => match accepted {
                    Ok((stream, _)) => (place, stream),
                    Err(error) => {
                        observer.observe(&Observation::AcceptFailed { error: &error });
                        sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let guard = Open::new(&observer);
            let connection = serve_connection(&builder, stream, &router, &graceful, limits.header_timeout);
            let abort = abort.clone();
            connections.spawn(async move {
                tokio::select! { () = connection => {}, () = abort.cancelled() => {} }
                drop((guard, place));
            });
        }
        drop(listener);
        connections.close();
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

/// One connection from its first byte to its end. A connection that has sent no request's head in time is dropped, in
/// whatever state of protocol detection it is.
fn serve_connection(
    builder: &auto::Builder<TokioExecutor>,
    stream: TcpStream,
    router: &Router,
    graceful: &GracefulShutdown,
    header_timeout: Duration,
) -> impl Future<Output = ()> + use<> {
    // Answers are small and final: never hold one back to fill a segment.
    let nodelay = stream.set_nodelay(true);
    let requested = Arc::new(AtomicBool::new(false));
    let (router, seen) = (TowerToHyperService::new(router.clone()), Arc::clone(&requested));
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        seen.store(true, Ordering::Relaxed);
        router.call(request)
    });
    let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
    async move {
        if nodelay.is_err() {
            // The peer is gone already.
            return;
        }
        let mut connection = std::pin::pin!(connection);
        // How a connection ends is the client's business: what matters was observed per request.
        tokio::select! {
            _ = &mut connection => return,
            () = sleep(header_timeout) => {}
        }
        if requested.load(Ordering::Relaxed) {
            let _ended = connection.await;
        }
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
