//! The PROXY protocol on the public port: whose word is taken for a sender's address, as an address list sees it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use hookgate_core::{
    auth::{Context, networks},
    event::{SinkId, SourceId},
    observe::Observer,
    source::{Source, Surroundings},
};
use hookgate_http::{Ingress, Limits, Server, ServerConfig, Tls, TlsConfig};
use hookgate_testkit::{
    event::TestEvent,
    fake_sink::FakeSink,
    http::{Connection, request, send_raw},
    process::wait_until,
    recorder::Recorder,
};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::sleep,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(10);

/// The network that the address list of every source here lets in, and with it the IPv6 one.
const ALLOWED: &[&str] = &["203.0.113.0/24", "2001:db8::/32"];

struct Relay {
    address: SocketAddr,
    recorder: Arc<Recorder>,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A relay that takes the word of this machine, with one source that lets `allowed` in.
fn start(allowed: &[&str], tls: Option<Tls>, adjust: impl FnOnce(&mut ServerConfig)) -> Relay {
    let mut config = ServerConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        proxy_protocol_from: vec!["127.0.0.0/8".to_owned()],
        ..ServerConfig::default()
    };
    adjust(&mut config);
    let (sink, recorder) = (FakeSink::new(SinkId::new(0, "sink")), Arc::new(Recorder::default()));
    let observer: Arc<dyn Observer> = Arc::clone(&recorder) as _;
    let routes = json!([{ "to": [{ "sink": "sink" }] }]);
    let pipeline = Arc::new(TestEvent::new("any").pipeline(std::slice::from_ref(&sink), &routes, &observer));
    let source = json!({ "path": "/hook", "verify": [{ "scheme": "ip", "allow": allowed }] });
    let source = serde_json::from_value(source).expect("a valid config");
    let auth =
        Context { trusted_proxies: networks(&config.trusted_proxies).expect("networks").into(), ..Context::default() };
    let surroundings = Surroundings { auth, ..config.max_body.into() };
    let mut resolve = |_: &_| Err("no secrets here".to_owned());
    let source = Source::compile(SourceId::new(0, "test"), &source, &surroundings, &mut resolve).expect("good");
    let service = Ingress::new(pipeline, &[Arc::new(source)], &config).service();
    let server = Server::bind(config.listen, Limits::from(&config), observer)
        .expect("a free port")
        .with_proxy_protocol(config.proxy_protocol().expect("networks"))
        .with_tls(tls);
    let (address, stop) = (server.local_addr().expect("bound"), CancellationToken::new());
    let served = tokio::spawn(server.serve(service, stop.clone(), CancellationToken::new()));
    Relay { address, recorder, stop, served }
}

impl Relay {
    /// The status of what answers `bytes`.
    async fn send(&self, bytes: &[u8]) -> u16 {
        send_raw(self.address, bytes, LIMIT).await.expect("an answer").status
    }

    async fn is_told(&self, line: &str) {
        wait_until(LIMIT, line, async || self.recorder.count(line) > 0).await;
    }
}

fn post() -> Vec<u8> {
    request("POST", "/hook", &[], b"{}")
}

/// A line of version 1.
fn line(sender: &str) -> Vec<u8> {
    let (family, proxy) = if sender.contains(':') { ("TCP6", "2001:db8:ffff::1") } else { ("TCP4", "198.51.100.1") };
    format!("PROXY {family} {sender} {proxy} 51000 443\r\n").into_bytes()
}

/// A header of version 2, with some extensions.
fn header(sender: &str) -> Vec<u8> {
    const EXTENSIONS: &[u8] = b"\x01\0\x02h2\x05\0\x05an-id\xea\0\x03\x01vp";
    match sender.parse().expect("an address") {
        IpAddr::V4(sender) => binary(0x21, 0x11, &[&sender.octets(), &[198, 51, 100, 1][..], &[0x80; 4], EXTENSIONS]),
        IpAddr::V6(sender) => binary(0x21, 0x21, &[&sender.octets(), &[0x20; 16][..], &[0x80; 4], EXTENSIONS]),
    }
}

fn binary(command: u8, family: u8, block: &[&[u8]]) -> Vec<u8> {
    let block = block.concat();
    let length = u16::try_from(block.len()).expect("short").to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, &block].concat()
}

/// Whether the connection is over, with nothing said.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut said = Vec::new();
    // What was not read is answered with a reset.
    let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut said)).await;
    ended.is_ok() && said.is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_in_a_header_of_either_version_is_the_senders() {
    let relay = start(ALLOWED, None, |_| {});
    for sender in ["203.0.113.7", "2001:db8::7", "::ffff:203.0.113.7"] {
        for header in [line(sender), header(sender)] {
            assert_eq!(relay.send(&[header, post()].concat()).await, 200, "{sender}");
        }
    }
    let refused = "sender_refused source=test reason=address_refused";
    assert_eq!(relay.recorder.count(refused), 0);
    for sender in ["203.0.114.7", "2001:db9::7", "127.0.0.1"] {
        for header in [line(sender), header(sender)] {
            assert_eq!(relay.send(&[header, post()].concat()).await, 401, "{sender}");
        }
    }
    assert_eq!(relay.recorder.count(refused), 6);
    assert_eq!(relay.recorder.count("proxy_header_refused"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_may_come_byte_by_byte_and_counts_for_every_request_of_its_connection() {
    let relay = start(ALLOWED, None, |_| {});
    for header in [line("203.0.113.7"), header("203.0.113.7"), line("2001:db8::7"), header("2001:db8::7")] {
        let mut connection = Connection::open(relay.address).await.expect("a connection");
        for byte in header {
            connection.send(&[byte]).await.expect("it is taken");
            // Else the kernel hands over several at once.
            sleep(Duration::from_millis(2)).await;
        }
        for _ in 0..2 {
            assert_eq!(connection.request(&post(), LIMIT).await.expect("an answer").status, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_names_no_sender_leaves_the_proxys_own_address() {
    let relay = start(&["127.0.0.1"], None, |_| {});
    let block: &[u8] = &[203, 0, 113, 7, 198, 51, 100, 1, 0, 80, 0, 80];
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 203.0.113.7 198.51.100.1 80 80\r\n".to_vec(),
        // LOCAL, without and with addresses, which are not to be looked at.
        binary(0x20, 0x00, &[]),
        binary(0x20, 0x11, &[block]),
        // PROXY, from who knows where, and from a local socket.
        binary(0x21, 0x00, &[b"\x04\0\x02no"]),
        binary(0x21, 0x31, &[&[0; 216]]),
    ] {
        assert_eq!(relay.send(&[&header[..], &post()].concat()).await, 200, "{header:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_good_header_is_closed_at_once_and_told() {
    let v2 = |length: u16| [b"\r\n\r\n\0\r\nQUIT\n\x21\x11", &length.to_be_bytes()[..], &[0; 5000]].concat();
    for (bytes, reason) in [
        (post(), "missing"),
        (b"\x16\x03\x01\x02\0\x01\0".to_vec(), "missing"),
        (b"\n".to_vec(), "missing"),
        (b"PROXY TCP4 203.0.113.7 198.51.100.1 51000 http\r\n".to_vec(), "malformed"),
        ([line("203.0.113.7.7"), post()].concat(), "malformed"),
        ([b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat(), "malformed"),
        (v2(3), "malformed"),
        (v2(4081), "too_large"),
        (v2(u16::MAX), "too_large"),
    ] {
        let relay = start(ALLOWED, None, |_| {});
        let mut stream = TcpStream::connect(relay.address).await.expect("a connection");
        stream.write_all(&bytes).await.expect("it is taken");
        let begun = Instant::now();
        assert!(is_closed(&mut stream).await, "{reason}");
        assert!(begun.elapsed() < Duration::from_secs(5), "the default's time for a header is longer: {reason}");
        relay.is_told(&format!("proxy_header_refused peer=127.0.0.1 reason={reason}")).await;
        assert_eq!(relay.recorder.count("request_started"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_drips_is_waited_for_as_long_as_a_request_is() {
    let relay = start(ALLOWED, None, |config| config.header_timeout = Duration::from_secs(1));
    let mut silent = TcpStream::connect(relay.address).await.expect("a connection");
    let (begun, mut dripping) = (Instant::now(), TcpStream::connect(relay.address).await.expect("a connection"));
    let mut sent = 0;
    // At this pace it would be complete after five seconds.
    let header = line("203.0.113.7");
    for byte in &header {
        if dripping.write_all(&[*byte]).await.is_err() {
            break;
        }
        sent += 1;
        sleep(Duration::from_millis(100)).await;
    }
    assert!(sent < header.len());
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(is_closed(&mut silent).await);
    wait_until(LIMIT, "both are told", async || {
        relay.recorder.count("proxy_header_refused peer=127.0.0.1 reason=timeout") == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_comes_late_leaves_its_request_what_is_left_of_the_time() {
    let relay = start(ALLOWED, None, |config| config.header_timeout = Duration::from_secs(3));
    let begun = Instant::now();
    let mut late = TcpStream::connect(relay.address).await.expect("a connection");
    sleep(Duration::from_millis(2500)).await;
    late.write_all(&line("203.0.113.7")).await.expect("it is taken");
    assert!(is_closed(&mut late).await);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(relay.recorder.count("proxy_header_refused"), 0, "it was in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_before_its_header_does_is_closed() {
    let relay = start(ALLOWED, None, |_| {});
    for part in [0, 5, 20] {
        let mut connection = Connection::open(relay.address).await.expect("a connection");
        connection.send(&line("203.0.113.7")[..part]).await.expect("it is taken");
        connection.finish().await.expect("it is taken");
        assert_eq!(connection.rest(LIMIT).await.expect("it is closed"), b"");
    }
    wait_until(LIMIT, "all are told", async || {
        relay.recorder.count("proxy_header_refused peer=127.0.0.1 reason=closed") == 3
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_elsewhere_a_header_is_bytes_like_any_others() {
    let elsewhere = |config: &mut ServerConfig| config.proxy_protocol_from = vec!["10.0.0.0/8".to_owned()];
    let relay = start(&["127.0.0.1"], None, elsewhere);
    assert_eq!(relay.send(&post()).await, 200, "nobody is asked for one");
    assert_eq!(relay.recorder.count("request_started"), 1);
    for sender in ["127.0.0.1", "203.0.113.7"] {
        for header in [line(sender), header(sender)] {
            let mut stream = TcpStream::connect(relay.address).await.expect("a connection");
            stream.write_all(&[header, post()].concat()).await.expect("it is taken");
            let mut answer = Vec::new();
            let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "it is closed");
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
        }
    }
    assert_eq!(relay.recorder.count("request_started"), 1, "none of them was a request");
    assert_eq!(relay.recorder.count("proxy_header_refused"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn trusted_proxies_are_asked_about_the_address_in_the_header() {
    let forwarded = request("POST", "/hook", &[("x-forwarded-for", "203.0.113.7")], b"{}");
    let through = |sender: &str| [header(sender), forwarded.clone()].concat();
    let relay = start(ALLOWED, None, |config| config.trusted_proxies = vec!["198.51.100.0/24".to_owned()]);
    assert_eq!(relay.send(&through("198.51.100.9")).await, 200, "a trusted proxy behind the load balancer");
    assert_eq!(relay.send(&through("192.0.2.9")).await, 401, "a stranger behind it, who can write what they like");
    let relay = start(ALLOWED, None, |config| config.trusted_proxies = vec!["127.0.0.0/8".to_owned()]);
    assert_eq!(relay.send(&through("192.0.2.9")).await, 401, "the load balancer itself wrote no such header");
}

/// A certificate for localhost, and a client that trusts it.
fn certificate() -> (Tls, TlsConnector) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let key = KeyPair::generate().expect("a key");
    let cert = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name").self_signed(&key).expect("signed");
    let config = TlsConfig { cert: dir.path().join("tls.crt"), key: dir.path().join("tls.key"), client_ca: None };
    std::fs::write(&config.cert, cert.pem()).expect("writable");
    std::fs::write(&config.key, key.serialize_pem()).expect("writable");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(cert.pem().as_bytes()).expect("a certificate")).expect("a root");
    let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Tls::load(&config).expect("good files"), TlsConnector::from(Arc::new(client)))
}

/// The status of an answer to what is sent through TLS, `before` standing before it on the connection.
async fn post_by_tls(relay: &Relay, client: &TlsConnector, before: &[u8], inside: &[u8]) -> io::Result<u16> {
    let mut stream = TcpStream::connect(relay.address).await?;
    stream.write_all(before).await?;
    let mut stream = client.connect(ServerName::try_from("localhost").expect("a name"), stream).await?;
    stream.write_all(inside).await?;
    let mut start = [0; 12];
    stream.read_exact(&mut start).await?;
    let status = String::from_utf8_lossy(&start[9..]).parse();
    status.map_err(|_| io::Error::other(format!("no status in {start:?}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_comes_before_tls() {
    let (tls, client) = certificate();
    let relay = start(ALLOWED, Some(tls), |_| {});
    for header in [line("203.0.113.7"), header("2001:db8::7")] {
        assert_eq!(post_by_tls(&relay, &client, &header, &post()).await.expect("an answer"), 200);
    }
    assert_eq!(post_by_tls(&relay, &client, &header("192.0.2.7"), &post()).await.expect("an answer"), 401);
    let inside = [header("203.0.113.7"), post()].concat();
    let without = post_by_tls(&relay, &client, b"", &inside).await;
    assert!(without.is_err(), "{without:?}");
    relay.is_told("proxy_header_refused peer=127.0.0.1 reason=missing").await;
    assert_eq!(relay.recorder.count("request_started"), 3);
    assert_eq!(relay.recorder.count("tls_handshake_failed"), 0, "it did not come to one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_gives_a_connection_the_time_to_introduce_itself_and_no_more() {
    let mut relay = start(ALLOWED, None, |_| {});
    let _silent = TcpStream::connect(relay.address).await.expect("a connection");
    let mut connection = Connection::open(relay.address).await.expect("a connection");
    wait_until(LIMIT, "both are accepted", async || relay.recorder.count("connection_opened") == 2).await;
    relay.stop.cancel();
    let bytes = [header("203.0.113.7"), post()].concat();
    let answer = connection.request(&bytes, LIMIT).await.expect("what comes at once is answered");
    assert_eq!(answer.status, 200);
    let stopped = tokio::time::timeout(Duration::from_secs(5), &mut relay.served).await;
    assert!(stopped.is_ok_and(|served| served.is_ok()), "the default's time for a header is longer");
}

#[test]
fn what_is_no_network_is_told_by_its_key() {
    let config = ServerConfig { proxy_protocol_from: vec!["10.0.0.0/33".to_owned()], ..ServerConfig::default() };
    let problems = config.proxy_protocol().expect_err("no network");
    let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert!(told.len() == 1 && told[0].starts_with("proxy_protocol_from: \"10.0.0.0/33\" is no network"), "{told:?}");
    let written = serde_json::to_value(ServerConfig::default()).expect("written");
    assert!(written.get("proxy_protocol_from").is_none(), "it is not there unless it is set");
}
