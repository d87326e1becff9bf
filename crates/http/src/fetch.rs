//! What hookgate itself asks for: a few documents an hour, each over a connection of its own.
//!
//! Redirects are not followed: who may answer is decided by the URL, and only there.

use std::{
    error::Error,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, future::BoxFuture};
use hookgate_core::{auth::Fetch, config::Problem};
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::OutboundConfig;

/// The client of the `[outbound]` table.
#[derive(Clone)]
pub struct Fetcher {
    shared: Arc<Shared>,
}

struct Shared {
    proxy: Option<Uri>,
    /// Trusted beside the system's.
    roots: Vec<CertificateDer<'static>>,
    timeout: Duration,
    /// Made at the first use: most configs never reach out.
    tls: OnceLock<Arc<ClientConfig>>,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shared { proxy, timeout, .. } = &*self.shared;
        f.debug_struct("Fetcher").field("proxy", proxy).field("timeout", timeout).finish_non_exhaustive()
    }
}

impl Fetcher {
    /// Checks `config` and reads its certificates.
    ///
    /// # Errors
    /// Every problem found; keys are relative to the table.
    pub fn new(config: &OutboundConfig) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let proxy = config.proxy.as_deref().and_then(|text| {
            let proxy = text.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
            if proxy.is_none() {
                problems.push(Problem::new("proxy", "is no HTTP proxy; write \"http://proxy:3128\""));
            }
            proxy
        });
        let roots = config.ca.as_ref().map_or(Ok(Vec::new()), |path| match std::fs::read(path) {
            Err(error) => Err(format!("the file {} cannot be read: {error}", path.display())),
            Ok(content) => match CertificateDer::pem_slice_iter(&content).collect::<Result<Vec<_>, _>>() {
                Ok(roots) if !roots.is_empty() => Ok(roots),
                _ => Err(format!("the file {} holds no certificate in PEM form", path.display())),
            },
        });
        let roots = roots.map_err(|message| problems.push(Problem::new("ca", message)));
        match roots {
            Ok(roots) if problems.is_empty() => {
                let shared = Shared { proxy, roots, timeout: config.timeout, tls: OnceLock::new() };
                Ok(Self { shared: Arc::new(shared) })
            }
            _ => Err(problems),
        }
    }

    /// Sends `request` to its absolute URL, over http or https, and reads the answer to its end.
    ///
    /// # Errors
    /// A sentence for the operator, without the URL's query: no connection, no trust, no answer in time, an answer longer than
    /// `bytes_max`.
    pub async fn send(&self, request: Request<Bytes>, bytes_max: usize) -> Result<Response<Bytes>, String> {
        let limit = self.shared.timeout;
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
            let uri: Uri = url.parse().map_err(|_| "the URL cannot be read".to_owned())?;
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
        let uri = request.uri().clone();
        let authority = uri.authority().ok_or("the URL has no host")?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("the URL is neither http nor https".to_owned()),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        // What goes on the wire to the server itself is the path.
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        *request.uri_mut() = target.parse().map_err(|_| "the URL cannot be read")?;
        let host_header = authority.as_str().rsplit('@').next().unwrap_or_default();
        let host_header = host_header.parse().map_err(|_| "the URL's host cannot be read")?;
        request.headers_mut().insert(header::HOST, host_header);
        let request = request.map(Full::new);
        let answer = match (&self.proxy, https) {
            (Some(proxy), true) => {
                let stream = tunnel(proxy, &host, port).await?;
                exchange_over(self.encrypted(&host, stream).await?, request).await?
            }
            (None, true) => {
                let stream = connect(&host, port).await?;
                exchange_over(self.encrypted(&host, stream).await?, request).await?
            }
            // A plain request is for a hookgate nearby.
            (_, false) => exchange_over(connect(&host, port).await?, request).await?,
        };
        read(answer, bytes_max).await
    }

    async fn encrypted<S>(&self, host: &str, stream: S) -> Result<tokio_rustls::client::TlsStream<S>, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("{host:?} is no host name"))?;
        let connector = TlsConnector::from(Arc::clone(self.tls.get_or_init(|| self.client_config())));
        connector.connect(name, stream).await.map_err(|error| chain("TLS with the server failed", &error))
    }

    fn client_config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        // A root that cannot be read is one that trusts nobody; what is missing shows in the handshake.
        let system = rustls_native_certs::load_native_certs().certs;
        roots.add_parsable_certificates(system.into_iter().chain(self.roots.iter().cloned()));
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has the suites of both versions");
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|error| chain(&format!("no connection to {host}:{port}"), &error))
}

/// A connection to `host` through `proxy`. Source: RFC 9110, section 9.3.6.
async fn tunnel(proxy: &Uri, host: &str, port: u16) -> Result<TokioIo<hyper::upgrade::Upgraded>, String> {
    let (proxy_host, proxy_port) = (proxy.host().unwrap_or_default(), proxy.port_u16().unwrap_or(80));
    let stream = connect(proxy_host, proxy_port).await?;
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let target = format!("{host}:{port}");
    let request = Request::builder().method(Method::CONNECT).uri(&target).header(header::HOST, &target);
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let answer = exchange_over(stream, request).await?;
    match answer.status() {
        status if status.is_success() => {
            let upgraded = hyper::upgrade::on(answer).await.map_err(|error| chain("the proxy broke off", &error))?;
            Ok(TokioIo::new(upgraded))
        }
        status => Err(format!("the proxy answers {status} to CONNECT {target}")),
    }
}

/// One request and the head of its answer. The connection lives on while the body is read, and no longer.
async fn exchange_over<B>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<B>,
) -> Result<Response<Incoming>, String>
where
    B: hyper::body::Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| chain("the connection failed", &error))?;
    // It ends when the answer is read or let go of: nothing else holds its other side.
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.map_err(|error| chain("no answer", &error))
}

async fn read(answer: Response<Incoming>, bytes_max: usize) -> Result<Response<Bytes>, String> {
    let too_long = || format!("the answer is longer than {bytes_max} bytes");
    let (head, mut body) = answer.into_parts();
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
