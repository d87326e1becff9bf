//! What hookgate itself asks for: a few documents an hour, each over a connection of its own.
//!
//! Redirects are not followed: who may answer is decided by the URL, and only there. A connection is driven by the future
//! that needs it and by no task, so that giving up closes it.

use std::{error::Error, fmt, pin::pin, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, future::BoxFuture};
use hookgate_core::{auth::Fetch, config::Problem};
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, header,
    uri::{Authority, PathAndQuery},
};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{
    body::{Body, Incoming},
    client::conn::http1,
    upgrade::{self, Upgraded},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OnceCell,
    task::spawn_blocking,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{OutboundConfig, pem};

/// The client of the `[outbound]` table. Clones share it.
#[derive(Clone)]
pub struct Fetcher {
    shared: Arc<Shared>,
    timeout: Duration,
}

struct Shared {
    proxy: Option<Authority>,
    /// Trusted beside the system's.
    roots: RootCertStore,
    /// Made at the first use: most configs never reach out, and reading the system's authorities takes a while.
    tls: OnceCell<Arc<ClientConfig>>,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (proxy, timeout) = (&self.shared.proxy, &self.timeout);
        f.debug_struct("Fetcher").field("proxy", proxy).field("timeout", timeout).finish_non_exhaustive()
    }
}

impl Fetcher {
    /// Checks `config` and reads its certificates. The system's are read at the first use of TLS, so that a machine without
    /// any starts as well.
    ///
    /// # Errors
    /// Every problem found; keys are relative to the table.
    pub fn new(config: &OutboundConfig) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let proxy = config.proxy.as_deref().map(proxy).transpose();
        let proxy = proxy.map_err(|message| problems.push(Problem::new("proxy", message)));
        let roots = authorities(config).map_err(|problem| problems.push(problem));
        if config.timeout.is_zero() {
            problems.push(Problem::new("timeout", "leaves no time for an answer; write \"2s\""));
        }
        match (proxy, roots) {
            (Ok(proxy), Ok(roots)) if problems.is_empty() => {
                let shared = Shared { proxy, roots, tls: OnceCell::new() };
                Ok(Self { shared: Arc::new(shared), timeout: config.timeout })
            }
            _ => Err(problems),
        }
    }

    /// The same client, which waits so long for an answer.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sends `request` to its absolute URL, over http or https, and reads the answer to its end, whatever its status. The
    /// `Host` header is made from the URL.
    ///
    /// # Errors
    /// A sentence for the operator, without the URL's query: no connection, no trust, no answer in time, an answer longer than
    /// `bytes_max`.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection. The request may have been sent.
    pub async fn send(&self, request: Request<Bytes>, bytes_max: usize) -> Result<Response<Bytes>, String> {
        let limit = self.timeout;
        match timeout(limit, self.shared.exchange(request, bytes_max)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {limit:?}")),
        }
    }
}

impl Fetch for Fetcher {
    fn get(&self, url: String, bytes_max: usize) -> BoxFuture<'static, Result<Bytes, String>> {
        let fetcher = self.clone();
        async move {
            let uri: Uri = url.parse().map_err(|_| "the URL cannot be read")?;
            if uri.scheme_str() != Some("https") {
                return Err("the URL is not https".to_owned());
            }
            let request = Request::builder().method(Method::GET).uri(uri).header(header::ACCEPT, "*/*");
            let request = request.body(Bytes::new()).map_err(|error| error.to_string())?;
            let answer = fetcher.send(request, bytes_max).await?;
            match answer.status() {
                StatusCode::OK => Ok(answer.into_body()),
                status if status.is_redirection() => {
                    Err(format!("the answer is {status}, and redirects are not followed"))
                }
                status => Err(format!("the answer is {status}")),
            }
        }
        .boxed()
    }
}

impl Shared {
    async fn exchange(&self, mut request: Request<Bytes>, bytes_max: usize) -> Result<Response<Bytes>, String> {
        let target = Target::take(&mut request)?;
        let request = request.map(Full::new);
        match (&self.proxy, target.https) {
            (Some(proxy), true) => {
                let stream = tunnel(proxy, &target).await?;
                exchange_over(self.encrypted(&target.host, stream).await?, request, bytes_max).await
            }
            (None, true) => {
                let stream = connect(&target.host, target.port).await?;
                exchange_over(self.encrypted(&target.host, stream).await?, request, bytes_max).await
            }
            // A plain request is for a hookgate nearby, and proxies connect to https only, as a rule.
            (_, false) => exchange_over(connect(&target.host, target.port).await?, request, bytes_max).await,
        }
    }

    async fn encrypted<S>(&self, host: &str, stream: S) -> Result<TlsStream<S>, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("{host:?} is no host name"))?;
        // A failure is not kept: the authorities may be there the next time.
        let config = self.tls.get_or_try_init(|| client_config(self.roots.clone())).await?;
        let connecting = TlsConnector::from(Arc::clone(config)).connect(name, stream);
        connecting.await.map_err(|error| chain("TLS with the server failed", &error))
    }
}

/// Where a request goes.
struct Target {
    https: bool,
    /// A name or an address, which has no brackets here.
    host: String,
    port: u16,
}

impl Target {
    /// Takes the absolute URL out of `request`, and leaves what is for the server itself: the path, and its own name.
    fn take(request: &mut Request<Bytes>) -> Result<Self, String> {
        let uri = std::mem::take(request.uri_mut());
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("the URL is neither http nor https".to_owned()),
        };
        let authority = uri.authority().ok_or("the URL has no host")?;
        let name = authority.as_str().rsplit('@').next().unwrap_or_default();
        let name = HeaderValue::from_str(name).map_err(|_| "the URL's host cannot be read")?;
        request.headers_mut().insert(header::HOST, name);
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
        let host = without_brackets(authority).to_owned();
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Self { https, host, port })
    }
}

/// The host as a connection is made to it: a name or an address.
fn without_brackets(authority: &Authority) -> &str {
    authority.host().trim_start_matches('[').trim_end_matches(']')
}

/// The host and port in `url`. What is wrong with it is said without quoting it: it may hold a password.
fn proxy(url: &str) -> Result<Authority, &'static str> {
    let uri = url.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("http"));
    let uri = uri.filter(|uri| uri.path() == "/" && uri.query().is_none());
    match uri.and_then(|uri| uri.into_parts().authority) {
        Some(authority) if authority.as_str().contains('@') => Err(
            "holds a user name or password, and hookgate has no way to keep them secret here; write \"http://proxy:3128\"",
        ),
        Some(authority) => Ok(authority),
        None => Err("is no HTTP proxy; write \"http://proxy:3128\""),
    }
}

/// The certificates in `config.ca`.
fn authorities(config: &OutboundConfig) -> Result<RootCertStore, Problem> {
    let mut roots = RootCertStore::empty();
    let Some(path) = &config.ca else { return Ok(roots) };
    let problem = |message: &str| pem::problem("ca", path, message);
    let content = std::fs::read(path).map_err(|error| problem(&format!("cannot be read: {error}")))?;
    for certificate in pem::certificates(&content).map_err(problem)? {
        let added = roots.add(certificate);
        added.map_err(|error| problem(&format!("holds a certificate that cannot be used: {error}")))?;
    }
    Ok(roots)
}

/// A client that trusts `roots` and the system's.
async fn client_config(mut roots: RootCertStore) -> Result<Arc<ClientConfig>, String> {
    // A directory of files, on a thread that may wait for the disk.
    let system = spawn_blocking(rustls_native_certs::load_native_certs).await;
    let system = system.map_err(|error| chain("the system's authorities cannot be read", &error))?;
    // One that cannot be read vouches for nobody; what is missing shows in a handshake.
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() {
        let message =
            "no authority is known that could vouch for the server; install ca-certificates or set outbound.ca";
        return Err(system.errors.first().map_or_else(|| message.to_owned(), |error| chain(message, error)));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the suites of both versions");
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|error| chain(&format!("no connection to {host}:{port}"), &error))
}

/// A connection to `target` through `proxy`. Source: RFC 9110, section 9.3.6.
async fn tunnel(proxy: &Authority, target: &Target) -> Result<TokioIo<Upgraded>, String> {
    let stream = connect(without_brackets(proxy), proxy.port_u16().unwrap_or(80)).await;
    let stream = stream.map_err(|problem| format!("the proxy is out of reach: {problem}"))?;
    let Target { host, port, .. } = target;
    let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let request = Request::builder().method(Method::CONNECT).uri(&target).header(header::HOST, &target);
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| chain("the connection to the proxy failed", &error))?;
    let connected = async {
        let answer = sender.send_request(request).await.map_err(|error| chain("no answer from the proxy", &error))?;
        if !answer.status().is_success() {
            return Err(format!("the proxy answers {} to CONNECT {target}", answer.status()));
        }
        upgrade::on(answer).await.map(TokioIo::new).map_err(|error| chain("the proxy broke off", &error))
    };
    drive(connection.with_upgrades(), connected).await
}

/// One request and its whole answer.
async fn exchange_over(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    request: Request<Full<Bytes>>,
    bytes_max: usize,
) -> Result<Response<Bytes>, String> {
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| chain("the connection failed", &error))?;
    let answered = async {
        let answer = sender.send_request(request).await.map_err(|error| chain("no answer", &error))?;
        read(answer, bytes_max).await
    };
    drive(connection, answered).await
}

/// The outcome of `work`, which waits for what `connection` reads and writes meanwhile.
async fn drive<T>(connection: impl Future, work: impl Future<Output = T>) -> T {
    let (mut connection, mut work) = (pin!(connection), pin!(work));
    tokio::select! {
        outcome = &mut work => return outcome,
        // It has failed or is used up, and `work` gets to know which.
        _ended = &mut connection => {}
    }
    work.await
}

async fn read(answer: Response<Incoming>, bytes_max: usize) -> Result<Response<Bytes>, String> {
    let too_long = || format!("the answer is longer than {bytes_max} bytes");
    let (head, mut body) = answer.into_parts();
    // What is announced to be too long need not come first.
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_long());
    }
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| chain("the answer broke off", &error))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > bytes_max {
                return Err(too_long());
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(Response::from_parts(head, bytes.freeze()))
}

/// `what`, and why: a chain of causes on one line.
fn chain(what: &str, error: &(dyn Error + 'static)) -> String {
    let mut text = format!("{what}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
