//! TLS on the public port, and what a connection tells of its sender.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

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
    ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
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

    /// A certificate for `name`, with the authority's after it, and its key, in PEM form.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        (params.signed_by(&key, &self.issuer).expect("signed").pem() + &self.pem, key.serialize_pem())
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
    served: JoinHandle<()>,
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
    let surroundings = Surroundings { auth, ..config.max_body.into() };
    let mut resolve = |_: &_| Err("no secrets here".to_owned());
    let source = Source::compile(SourceId::new(0, "test"), &source, &surroundings, &mut resolve).expect("good");
    let service = Ingress::new(Arc::clone(&pipeline), &[Arc::new(source)], &config).service();
    let server =
        Server::bind(config.listen, Limits::from(&config), observer).expect("a free port").with_tls(tls.clone());
    let (address, stop) = (server.local_addr().expect("bound"), CancellationToken::new());
    let served = tokio::spawn(server.serve(service, stop.clone(), CancellationToken::new()));
    Relay { address, recorder, tls, stop, served }
}

fn with_client_certificates(files: &Files) -> Relay {
    with_client_certificates_and(files, |_| {})
}

fn with_client_certificates_and(files: &Files, adjust: impl FnOnce(&mut ServerConfig)) -> Relay {
    let tls = Tls::load(&files.config()).unwrap_or_else(|problems| panic!("{problems:?}"));
    start(&json!({ "scheme": "client-cert", "names": ["sender.example"] }), Some(tls), adjust)
}

/// A client that trusts `files`' authority, shows `identity`, and speaks `protocol`.
fn client(files: &Files, identity: Option<(String, String)>, protocol: &str) -> Arc<ClientConfig> {
    client_of(files, identity, protocol, rustls::DEFAULT_VERSIONS)
}

fn client_of(
    files: &Files,
    identity: Option<(String, String)>,
    protocol: &str,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(files.authority.pem.as_bytes()).expect("a certificate")).expect("a root");
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .expect("the provider has them")
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert.as_bytes()).collect();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
            builder.with_client_auth_cert(chain.expect("certificates"), key).expect("they fit")
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Arc::new(config)
}

async fn connect(relay: &Relay, client: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(relay.address).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::clone(client)).connect(name, stream).await
}

const POST: &[u8] = b"POST /hook HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";

/// The status of an answer to [`POST`], or why there is none.
async fn post(relay: &Relay, files: &Files, identity: Option<(String, String)>) -> io::Result<u16> {
    Ok(post_as(relay, &client(files, identity, "http/1.1")).await?.0)
}

/// The same, and how the two shook hands.
async fn post_as(relay: &Relay, client: &Arc<ClientConfig>) -> io::Result<(u16, Option<HandshakeKind>)> {
    let answer = tokio::time::timeout(LIMIT, post_patiently(relay, client)).await;
    answer.unwrap_or_else(|_| Err(io::Error::other("no answer within the limit")))
}

async fn post_patiently(relay: &Relay, client: &Arc<ClientConfig>) -> io::Result<(u16, Option<HandshakeKind>)> {
    let mut stream = connect(relay, client).await?;
    let handshake = stream.get_ref().1.handshake_kind();
    stream.write_all(POST).await?;
    let mut answer = Vec::new();
    // The end has to be said in TLS too: without it a client cannot tell it from a cut.
    stream.read_to_end(&mut answer).await?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no status in {text:?}")))?;
    Ok((status, handshake))
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
    let refused = post(&relay, &files, stranger).await.expect_err("another authority's certificate ends the handshake");
    assert!(refused.to_string().contains("received fatal alert"), "{refused}");
    assert_eq!(relay.recorder.count("request_started"), 3, "it never came to a request");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_client_ca_nobody_is_asked_for_a_certificate() {
    let files = Files::new();
    let tls = Tls::load(&TlsConfig { client_ca: None, ..files.config() }).expect("good files");
    let relay = start(&json!({ "scheme": "client-cert", "names": ["sender.example"] }), Some(tls), |_| {});
    let stranger = Some(Authority::new().issue("sender.example"));
    assert_eq!(post(&relay, &files, stranger).await.expect("an answer"), 401);
    assert_eq!(relay.recorder.count("sender_refused source=test reason=credential_missing"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_of_tls_are_spoken_and_show_the_clients_certificate() {
    let files = Files::new();
    let relay = with_client_certificates(&files);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = client_of(&files, Some(files.clients.issue("sender.example")), "http/1.1", &[version]);
        assert_eq!(post_as(&relay, &client).await.expect("an answer").0, 200, "{version:?}");
        let nobody = client_of(&files, None, "http/1.1", &[version]);
        assert_eq!(post_as(&relay, &nobody).await.expect("an answer").0, 401, "{version:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_session_still_has_its_certificate_until_its_authority_is_gone() {
    let files = Files::new();
    let relay = with_client_certificates(&files);
    let client = client(&files, Some(files.clients.issue("sender.example")), "http/1.1");
    assert_eq!(post_as(&relay, &client).await.expect("an answer"), (200, Some(HandshakeKind::Full)));
    assert_eq!(post_as(&relay, &client).await.expect("an answer"), (200, Some(HandshakeKind::Resumed)));
    files.write("ca.pem", &Authority::new().pem);
    assert_eq!(relay.tls.as_ref().and_then(Tls::refresh), Some(Ok(())));
    let refused = post_as(&relay, &client).await.expect_err("its authority is trusted no more");
    assert!(refused.to_string().contains("received fatal alert"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_and_2_are_spoken_as_the_client_asks() {
    let files = Files::new();
    let relay = with_client_certificates(&files);
    let identity = files.clients.issue("sender.example");
    let stream = connect(&relay, &client(&files, Some(identity.clone()), "http/1.1")).await.expect("a connection");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(post(&relay, &files, Some(identity.clone())).await.expect("an answer"), 200);

    let stream = connect(&relay, &client(&files, Some(identity), "h2")).await.expect("a connection");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    let post = || {
        let request = http::Request::post("https://localhost/hook").body(Full::new(Bytes::from_static(b"{}")));
        request.expect("valid")
    };
    // Every request of a connection has the certificate, not only its first.
    for _ in 0..2 {
        let answer = sender.send_request(post()).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        assert!(answer.into_body().collect().await.is_ok());
    }
    assert!(connect(&relay, &client(&files, None, "smtp")).await.is_err(), "nothing else is spoken");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_shake_hands_keeps_nobody_out_and_is_dropped() {
    let files = Files::new();
    let relay = with_client_certificates_and(&files, |config| {
        config.header_timeout = Duration::from_secs(2);
        config.max_connections = 4;
    });
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(relay.address).await.expect("a connection"));
    }
    assert_eq!(post(&relay, &files, Some(files.clients.issue("sender.example"))).await.expect("an answer"), 200);
    for mut stream in silent {
        let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "a silent client is not waited for");
    }
    all_closed(&relay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_are_waited_for_side_by_side() {
    let files = Files::new();
    // The time of the default is longer than the test may take.
    let relay = with_client_certificates(&files);
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(relay.address).await.expect("a connection"));
    }
    let answer =
        tokio::time::timeout(Duration::from_secs(5), post(&relay, &files, Some(files.clients.issue("sender.example"))));
    assert_eq!(answer.await.expect("nobody stands in the way").expect("an answer"), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shakes_hands_and_asks_nothing_is_dropped_too() {
    let files = Files::new();
    let relay = with_client_certificates_and(&files, |config| config.header_timeout = Duration::from_secs(2));
    let mut stream = connect(&relay, &client(&files, None, "http/1.1")).await.expect("a connection");
    let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "who asks nothing is not waited for");
    all_closed(&relay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_on_the_port_ends_its_connection_and_disturbs_nobody() {
    let files = Files::new();
    let relay = with_client_certificates(&files);
    let mut plain = TcpStream::connect(relay.address).await.expect("a connection");
    plain.write_all(POST).await.expect("it is taken");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(5), plain.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "it is over at once");
    assert!(!rest.starts_with(b"HTTP/"), "{:?}", String::from_utf8_lossy(&rest));
    assert_eq!(post(&relay, &files, Some(files.clients.issue("sender.example"))).await.expect("an answer"), 200);
    assert_eq!(relay.recorder.count("request_started"), 1);
    all_closed(&relay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_handshakes() {
    let files = Files::new();
    let mut relay = with_client_certificates(&files);
    let _silent = TcpStream::connect(relay.address).await.expect("a connection");
    wait_until(LIMIT, "it is accepted", async || relay.recorder.count("connection_opened") == 1).await;
    relay.stop.cancel();
    let stopped = tokio::time::timeout(Duration::from_secs(5), &mut relay.served).await;
    assert!(stopped.is_ok_and(|served| served.is_ok()), "the default's time for a handshake is longer");
}

async fn all_closed(relay: &Relay) {
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
    let anybody = client(&files, None, "http/1.1");
    let shown = async || {
        let stream = connect(&relay, &anybody).await.expect("a connection");
        stream.get_ref().1.peer_certificates().expect("a chain")[0].to_vec()
    };
    let first = shown().await;
    assert_eq!(tls.refresh(), None, "nothing has changed");
    files.renew("localhost");
    assert_eq!(shown().await, first, "until they are looked at");
    assert_eq!(tls.refresh(), Some(Ok(())));
    let second = shown().await;
    assert_ne!(first, second);
    assert_eq!(tls.refresh(), None, "nothing has changed since");

    let key = std::fs::read_to_string(files.path("tls.key")).expect("it is there");
    files.write("tls.key", "junk");
    let broken = tls.refresh().expect("it has changed").expect_err("it is no key");
    assert!(broken.contains("tls.key") && broken.contains("no private key"), "{broken}");
    assert_eq!(tls.refresh(), None, "the same mistake is told once");
    let cert = std::fs::read_to_string(files.path("tls.crt")).expect("it is there");
    std::fs::remove_file(files.path("tls.crt")).expect("it is there");
    let both = tls.refresh().expect("it has changed").expect_err("it is gone");
    assert!(both.contains("tls.crt") && both.contains("cannot be read") && both.contains("no private key"), "{both}");
    assert_eq!(tls.refresh(), None, "the same mistake is told once");
    assert_eq!(shown().await, second, "what was good stays");

    files.write("tls.key", &key);
    files.write("tls.crt", &cert);
    assert_eq!(tls.refresh(), Some(Ok(())), "that it is mended is told as well");
    assert_eq!(shown().await, second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_fails_is_told_with_its_reason() {
    let files = Files::new();
    let relay = with_client_certificates_and(&files, |config| config.header_timeout = Duration::from_secs(2));
    let is_told = async |reason: &str| {
        let line = format!("tls_handshake_failed reason={reason}");
        wait_until(LIMIT, &line, async || relay.recorder.count(&line) == 1).await;
        assert_eq!(relay.recorder.count("tls_handshake_failed"), 1, "{:?}", relay.recorder.lines());
        relay.recorder.clear();
    };
    assert_eq!(post(&relay, &files, Some(files.clients.issue("sender.example"))).await.expect("an answer"), 200);
    assert_eq!(relay.recorder.count("tls_handshake_failed"), 0);

    let stranger = Some(Authority::new().issue("sender.example"));
    post(&relay, &files, stranger).await.expect_err("it is refused");
    is_told("client_certificate").await;

    let distrustful = client(&Files::new(), None, "http/1.1");
    connect(&relay, &distrustful).await.expect_err("it trusts another authority");
    is_told("refused_by_client").await;

    connect(&relay, &client(&files, None, "smtp")).await.expect_err("nothing in common");
    is_told("incompatible").await;

    for (bytes, reason) in [(POST, "malformed"), (b"", "closed"), (b"\x16\x03\x01", "closed")] {
        let mut stream = TcpStream::connect(relay.address).await.expect("a connection");
        stream.write_all(bytes).await.expect("it is taken");
        drop(stream);
        is_told(reason).await;
    }
    let _silent = TcpStream::connect(relay.address).await.expect("a connection");
    is_told("timeout").await;
}

#[test]
fn the_end_of_a_certificate_is_that_of_the_servers_own_and_changes_with_it() {
    let files = Files::new();
    let issue = |year: i32| {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let cert = params.signed_by(&key, &files.authority.issuer).expect("signed").pem();
        // One that has ended long ago comes after it.
        let mut root = CertificateParams::new(Vec::new()).expect("no names");
        root.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let root = root.self_signed(&key).expect("signed").pem();
        files.write("tls.crt", &(cert + &root));
        files.write("tls.key", &key.serialize_pem());
    };
    // Of the first of January, in seconds.
    let end = |unix: u64| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(unix));
    issue(2030);
    let tls = Tls::load(&files.config()).expect("good files");
    assert_eq!(tls.expires(), end(1_893_456_000));
    issue(2031);
    assert_eq!(tls.expires(), end(1_893_456_000), "until it is looked at");
    assert_eq!(tls.refresh(), Some(Ok(())));
    assert_eq!(tls.expires(), end(1_924_992_000));
    files.write("tls.crt", "junk");
    assert!(tls.refresh().is_some_and(|refreshed| refreshed.is_err()));
    assert_eq!(tls.expires(), end(1_924_992_000), "it is still the one in use");
    issue(1969);
    assert_eq!(tls.refresh(), Some(Ok(())));
    assert_eq!(tls.expires(), end(0), "what has ended is not unknown");
}

#[test]
fn what_is_wrong_with_the_files_is_told_by_name_and_all_at_once() {
    let files = Files::new();
    let (_, other_key) = files.authority.issue("localhost");
    let junk = |what: &str| format!("-----BEGIN {what}-----\nAAAA\n-----END {what}-----\n");
    let secret = "c2VjcmV0c2VjcmV0c2VjcmV0";
    for (name, text) in [
        ("other.key", &other_key[..]),
        ("empty.pem", ""),
        ("blank.pem", " \n\n"),
        ("text.pem", "hello"),
        ("junk.crt", &junk("CERTIFICATE")),
        ("junk.key", &junk("PRIVATE KEY")),
        ("cut.key", &format!("-----BEGIN PRIVATE KEY-----\n{secret}\n")),
        ("odd.key", &format!("-----BEGIN {secret}\n{secret}\n")),
        ("encrypted.key", &junk("ENCRYPTED PRIVATE KEY")),
    ] {
        files.write(name, text);
    }
    let good = files.config();
    let cert = |name: &str| TlsConfig { cert: files.path(name), ..good.clone() };
    let key = |name: &str| TlsConfig { key: files.path(name), ..good.clone() };
    let client_ca = |name: &str| TlsConfig { client_ca: Some(files.path(name)), ..good.clone() };
    let all = TlsConfig { cert: files.path("missing"), key: files.path("empty.pem"), ..client_ca("text.pem") };
    for (config, expected) in [
        (cert("missing"), &["tls.cert: the file {}/missing cannot be read: "][..]),
        (cert("empty.pem"), &["tls.cert: the file {}/empty.pem is empty"]),
        (cert("blank.pem"), &["tls.cert: the file {}/blank.pem is empty"]),
        (cert("text.pem"), &["tls.cert: the file {}/text.pem holds no certificate in PEM form"]),
        (cert("tls.key"), &["tls.cert: the file {}/tls.key holds no certificate in PEM form"]),
        (cert("junk.crt"), &["tls.cert: the file {}/junk.crt holds a certificate that cannot be used: "]),
        (key("missing"), &["tls.key: the file {}/missing cannot be read: "]),
        (key("empty.pem"), &["tls.key: the file {}/empty.pem is empty"]),
        (key("text.pem"), &["tls.key: the file {}/text.pem holds no private key in PEM form"]),
        (key("tls.crt"), &["tls.key: the file {}/tls.crt holds no private key in PEM form"]),
        (key("cut.key"), &["tls.key: the file {}/cut.key holds no private key in PEM form"]),
        (key("odd.key"), &["tls.key: the file {}/odd.key holds no private key in PEM form"]),
        (key("junk.key"), &["tls.key: the file {}/junk.key holds a private key that cannot be used: "]),
        (key("encrypted.key"), &["tls.key: the file {}/encrypted.key holds a private key behind a password"]),
        (key("other.key"), &["tls.key: the file {}/other.key is not the private key of the certificate in {}/tls.crt"]),
        (client_ca("missing"), &["tls.client_ca: the file {}/missing cannot be read: "]),
        (client_ca("empty.pem"), &["tls.client_ca: the file {}/empty.pem is empty"]),
        (client_ca("text.pem"), &["tls.client_ca: the file {}/text.pem holds no certificate in PEM form"]),
        (client_ca("junk.crt"), &["tls.client_ca: the file {}/junk.crt holds a certificate that cannot be used: "]),
        (
            all,
            &[
                "tls.cert: the file {}/missing cannot be read: ",
                "tls.key: the file {}/empty.pem is empty",
                "tls.client_ca: the file {}/text.pem holds no certificate",
            ],
        ),
    ] {
        let problems = Tls::load(&config).expect_err("a problem");
        let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let expected: Vec<_> =
            expected.iter().map(|start| start.replace("{}", &files.dir.path().display().to_string())).collect();
        assert!(
            told.len() == expected.len() && told.iter().zip(&expected).all(|(told, start)| told.starts_with(start)),
            "{told:#?}\n{expected:#?}"
        );
        assert!(!told.concat().contains(secret), "{told:?}");
    }
    let debug = format!("{:?}", Tls::load(&good).expect("good files"));
    assert!(!debug.contains("PRIVATE"), "{debug}");
}

#[test]
fn the_table_is_absent_or_whole_and_has_no_keys_that_nobody_knows() {
    let read = |tls: Value| serde_json::from_value::<ServerConfig>(json!({ "tls": tls }));
    let written = |config: &ServerConfig| serde_json::to_value(config).expect("written").get("tls").cloned();
    assert_eq!(written(&ServerConfig::default()), None);
    for tls in [
        json!({ "cert": "tls.crt", "key": "tls.key" }),
        json!({ "cert": "tls.crt", "key": "tls.key", "client_ca": "ca.pem" }),
    ] {
        assert_eq!(written(&read(tls.clone()).expect("good")), Some(tls));
    }
    for tls in [json!({ "cert": "tls.crt" }), json!({ "cert": "tls.crt", "key": "tls.key", "ca": "ca.pem" })] {
        assert!(read(tls.clone()).is_err(), "{tls}");
    }
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
