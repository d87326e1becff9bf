//! TLS on the public port, and what a connection tells of its sender.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use hookgate_core::{
    auth::{Context, networks},
    event::{SinkId, SourceId},
    observe::Observer,
    source::{Source, Surroundings},
};
use hookgate_http::{Ingress, Limits, Server, ServerConfig, Tls, TlsConfig};
use hookgate_testkit::{
    event::TestEvent, fake_sink::FakeSink, http::send_raw, process::wait_until, recorder::Recorder,
};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(10);

/// An authority that signs certificates.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for `name` and its key, in PEM form.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        (params.signed_by(&key, &self.issuer).expect("signed").pem(), key.serialize_pem())
    }
}

/// The files of a server's certificates.
struct Files {
    dir: TempDir,
    authority: Authority,
    clients: Authority,
}

impl Files {
    fn new() -> Self {
        let files = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            authority: Authority::new(),
            clients: Authority::new(),
        };
        files.renew("localhost");
        files.write("ca.pem", &files.clients.pem);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("writable");
    }

    /// Gives the server a new certificate.
    fn renew(&self, name: &str) {
        let (cert, key) = self.authority.issue(name);
        self.write("tls.crt", &cert);
        self.write("tls.key", &key);
    }

    fn config(&self) -> TlsConfig {
        TlsConfig { cert: self.path("tls.crt"), key: self.path("tls.key"), client_ca: Some(self.path("ca.pem")) }
    }
}

struct Relay {
    address: SocketAddr,
    recorder: Arc<Recorder>,
    tls: Option<Tls>,
    stop: CancellationToken,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A relay with one source that verifies by `scheme`.
fn start(scheme: &Value, tls: Option<Tls>, adjust: impl FnOnce(&mut ServerConfig)) -> Relay {
    let mut config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), ..ServerConfig::default() };
    adjust(&mut config);
    let (sink, recorder) = (FakeSink::new(SinkId::new(0, "sink")), Arc::new(Recorder::default()));
    let observer: Arc<dyn Observer> = Arc::clone(&recorder) as _;
    let routes = json!([{ "to": [{ "sink": "sink" }] }]);
    let pipeline = Arc::new(TestEvent::new("any").pipeline(std::slice::from_ref(&sink), &routes, &observer));
    let source = serde_json::from_value(json!({ "path": "/hook", "verify": [scheme] })).expect("a valid config");
    let auth =
        Context { trusted_proxies: networks(&config.trusted_proxies).expect("networks").into(), ..Context::default() };
    let surroundings = Surroundings { max_body: config.max_body, auth };
    let mut resolve = |_: &_| Err("no secrets here".to_owned());
    let source = Source::compile(SourceId::new(0, "test"), &source, &surroundings, &mut resolve).expect("good");
    let router = Ingress::new(Arc::clone(&pipeline), &config).router(&[Arc::new(source)]);
    let server =
        Server::bind(config.listen, Limits::from(&config), observer).expect("a free port").with_tls(tls.clone());
    let (address, stop) = (server.local_addr().expect("bound"), CancellationToken::new());
    tokio::spawn(server.serve(router, stop.clone(), CancellationToken::new()));
    Relay { address, recorder, tls, stop }
}

fn with_client_certificates(files: &Files) -> Relay {
    let tls = Tls::load(&files.config()).unwrap_or_else(|problems| panic!("{problems:?}"));
    start(&json!({ "scheme": "client-cert", "names": ["sender.example"] }), Some(tls), |config| {
        config.header_timeout = Duration::from_millis(500);
        config.max_connections = 4;
    })
}

/// A TLS connection that trusts `files`' authority and shows `identity`.
async fn connect(
    relay: &Relay,
    files: &Files,
    identity: Option<(String, String)>,
    protocol: &str,
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(files.authority.pem.as_bytes()).expect("a certificate")).expect("a root");
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let cert = CertificateDer::from_pem_slice(cert.as_bytes()).expect("a certificate");
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
            builder.with_client_auth_cert(vec![cert], key).expect("they fit")
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = TcpStream::connect(relay.address).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

const POST: &[u8] = b"POST /hook HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";

/// The status of an answer to [`POST`], or why there is none.
async fn post(relay: &Relay, files: &Files, identity: Option<(String, String)>) -> io::Result<u16> {
    let mut stream = connect(relay, files, identity, "http/1.1").await?;
    stream.write_all(POST).await?;
    let mut answer = Vec::new();
    match tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect("within the limit") {
        Ok(_) => {}
        // A server that closes without the last word of TLS has said its status all the same.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !answer.is_empty() => {}
        Err(error) => return Err(error),
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| io::Error::other(format!("no status in {text:?}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_in_a_clients_certificate_is_what_its_source_is_verified_by() {
    let files = Files::new();
    let relay = with_client_certificates(&files);
    let issue = |name: &str| Some(files.clients.issue(name));
    assert_eq!(post(&relay, &files, issue("sender.example")).await.expect("an answer"), 200);
    assert_eq!(post(&relay, &files, issue("another.example")).await.expect("an answer"), 401);
    assert_eq!(post(&relay, &files, None).await.expect("an answer"), 401);
    let reasons = ["certificate_refused", "credential_missing"];
    for reason in reasons {
        assert_eq!(relay.recorder.count(&format!("sender_refused source=test reason={reason}")), 1, "{reason}");
    }
    assert_eq!(relay.recorder.count("sender_verified source=test by=client-cert:sender.example"), 1);
    let stranger = Some(Authority::new().issue("sender.example"));
    assert!(post(&relay, &files, stranger).await.is_err(), "another authority's certificate ends the handshake");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_spoken_where_the_client_asks_for_it() {
    let files = Files::new();
    let relay = with_client_certificates(&files);
    let stream =
        connect(&relay, &files, Some(files.clients.issue("sender.example")), "h2").await.expect("a connection");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request =
        http::Request::post("https://localhost/hook").body(Full::new(Bytes::from_static(b"{}"))).expect("valid");
    let answer = sender.send_request(request).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert!(answer.into_body().collect().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_shake_hands_is_dropped_and_stops_nobody() {
    let files = Files::new();
    let relay = with_client_certificates(&files);
    // As many as there are places, and one of them speaks plain HTTP.
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(relay.address).await.expect("a connection"));
    }
    let mut plain = TcpStream::connect(relay.address).await.expect("a connection");
    plain.write_all(POST).await.expect("it is taken");
    assert_eq!(post(&relay, &files, Some(files.clients.issue("sender.example"))).await.expect("an answer"), 200);
    let mut rest = Vec::new();
    let _reset = plain.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP/"), "{:?}", String::from_utf8_lossy(&rest));
    for mut stream in silent {
        let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "a silent client is not waited for");
    }
    wait_until(LIMIT, "every connection is closed", async || {
        relay.recorder.count("connection_opened") == relay.recorder.count("connection_closed")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_used_and_a_broken_one_is_not() {
    let files = Files::new();
    let relay = with_client_certificates(&files);
    let tls = relay.tls.as_ref().expect("it has certificates");
    let shown = async || {
        let stream = connect(&relay, &files, None, "http/1.1").await.expect("a connection");
        stream.get_ref().1.peer_certificates().expect("a chain")[0].to_vec()
    };
    let first = shown().await;
    assert_eq!(tls.refresh(), None, "nothing has changed");
    files.renew("localhost");
    assert_eq!(tls.refresh(), Some(Ok(())));
    let second = shown().await;
    assert_ne!(first, second);
    files.write("tls.key", "junk");
    let broken = tls.refresh().expect("it has changed").expect_err("it is no key");
    assert!(broken.contains("tls.key") && broken.contains("no private key"), "{broken}");
    std::fs::remove_file(files.path("tls.crt")).expect("it is there");
    let missing = tls.refresh().expect("it has changed").expect_err("it is gone");
    assert!(missing.contains("tls.crt") && missing.contains("cannot be read"), "{missing}");
    assert_eq!(shown().await, second, "what was good stays");
}

#[test]
fn what_is_wrong_with_the_files_is_told_by_name() {
    let files = Files::new();
    let message = |config: &TlsConfig| {
        let problems = Tls::load(config).expect_err("a problem");
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems[0].to_string()
    };
    let (_, other_key) = files.authority.issue("localhost");
    files.write("other.key", &other_key);
    files.write("empty.pem", "");
    for (config, parts) in [
        (TlsConfig { key: files.path("other.key"), ..files.config() }, ["tls.key", "is not the private key of"]),
        (TlsConfig { cert: files.path("empty.pem"), ..files.config() }, ["tls.cert", "holds no certificate"]),
        (TlsConfig { key: files.path("empty.pem"), ..files.config() }, ["tls.key", "holds no private key"]),
        (
            TlsConfig { client_ca: Some(files.path("empty.pem")), ..files.config() },
            ["tls.client_ca", "holds no certificate"],
        ),
        (TlsConfig { cert: files.path("missing"), ..files.config() }, ["tls.cert", "cannot be read"]),
    ] {
        let message = message(&config);
        assert!(
            parts.iter().all(|part| message.contains(part)) && !message.contains("BEGIN PRIVATE KEY-----\n"),
            "{message}"
        );
    }
    let debug = format!("{:?}", Tls::load(&files.config()).expect("good files"));
    assert!(!debug.contains("PRIVATE"), "{debug}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_list_sees_the_connections_address_and_believes_only_trusted_proxies() {
    let send = async |relay: &Relay, forwarded: &str| {
        let request =
            format!("POST /hook HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {forwarded}\r\nContent-Length: 2\r\n\r\n{{}}");
        send_raw(relay.address, request.as_bytes(), LIMIT).await.expect("an answer").status
    };
    let direct = start(&json!({ "scheme": "ip", "allow": ["127.0.0.0/8"] }), None, |_| {});
    assert_eq!(send(&direct, "203.0.113.9").await, 200, "the header says nothing here");
    let far = start(&json!({ "scheme": "ip", "allow": ["203.0.113.0/24"] }), None, |_| {});
    assert_eq!(send(&far, "203.0.113.9").await, 401, "anybody can write the header");
    let behind = start(&json!({ "scheme": "ip", "allow": ["203.0.113.0/24"] }), None, |config| {
        config.trusted_proxies = vec!["127.0.0.1".to_owned()];
    });
    assert_eq!(send(&behind, "203.0.113.9").await, 200);
    assert_eq!(
        send(&behind, "203.0.113.9, 198.51.100.7").await,
        401,
        "what stands before a stranger's address is its own word"
    );
}
