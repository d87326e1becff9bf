//! What hookgate asks for itself, from servers that are not always what they should be.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use hookgate_core::auth::Fetch;
use hookgate_http::{Fetcher, OutboundConfig};
use hookgate_testkit::{
    process::{free_port, wait_until},
    tls,
};
use http::{Method, Request};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;

const SNS: &str = "sns.us-east-1.amazonaws.com";

/// For what is to be given up.
const TIMEOUT: Duration = Duration::from_millis(500);

/// For what is to be over before, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(20);

/// What a server does once it has read a request's head.
#[derive(Debug, Clone, Copy)]
enum Answer {
    /// Writes this, and nothing more until the client goes away.
    Bytes(&'static [u8]),
    /// Writes this again and again for as long as somebody reads it.
    Endless(&'static [u8], &'static [u8]),
    /// Writes this and is gone, without the last word of TLS: anybody on the way can do that.
    Cut(&'static [u8]),
    /// Does not even shake hands.
    NoHandshake,
}

const OK: Answer = Answer::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");

/// A server with a certificate for one name.
struct Web {
    address: SocketAddr,
    dir: TempDir,
    /// Requests that have come, head and body.
    asked: mpsc::UnboundedReceiver<String>,
    /// Connections that are open.
    open: Arc<AtomicUsize>,
}

impl Web {
    async fn start(name: &str, answer: Answer) -> Self {
        Self::serve(name, answer, true).await
    }

    /// One that speaks plain HTTP.
    async fn plain(answer: Answer) -> Self {
        Self::serve("localhost", answer, false).await
    }

    async fn serve(name: &str, answer: Answer, encrypted: bool) -> Self {
        let (config, cert) = tls::server(&[name]);
        let acceptor = encrypted.then(|| TlsAcceptor::from(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (told, asked) = mpsc::unbounded_channel();
        let open = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&open);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (acceptor, told, count) = (acceptor.clone(), told.clone(), Arc::clone(&count));
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    match acceptor {
                        _ if matches!(answer, Answer::NoHandshake) => {
                            let _end = stream.read_to_end(&mut Vec::new()).await;
                        }
                        None => converse(stream, answer, &told).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                converse(stream, answer, &told).await;
                            }
                        }
                    }
                    count.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("ca.pem"), cert).expect("writable");
        Self { address, dir, asked, open }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/keys?token=hunter2", self.address.port())
    }

    /// A client that trusts this server.
    fn fetcher(&self, proxy: Option<SocketAddr>, timeout: Duration) -> Fetcher {
        let ca = Some(self.dir.path().join("ca.pem"));
        let proxy = proxy.map(|proxy| format!("http://{proxy}"));
        Fetcher::new(&OutboundConfig { proxy, ca, timeout }).expect("a good config")
    }

    async fn fetch(&self, bytes_max: usize) -> Result<Bytes, String> {
        self.fetch_within(LIMIT, bytes_max).await
    }

    async fn fetch_within(&self, timeout: Duration, bytes_max: usize) -> Result<Bytes, String> {
        get(&self.fetcher(None, timeout), &self.url(), bytes_max).await
    }
}

/// What `fetcher` gets, sooner or later.
async fn get(fetcher: &Fetcher, url: &str, bytes_max: usize) -> Result<Bytes, String> {
    let answer = tokio::time::timeout(2 * LIMIT, fetcher.get(url.to_owned(), bytes_max)).await;
    let answer = answer.expect("a fetch has a limit of its own");
    if let Err(message) = &answer {
        assert!(!message.contains("hunter2"), "a query is a secret: {message}");
        assert!(!message.contains('\n'), "one line: {message}");
    }
    answer
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: Answer,
    told: &mpsc::UnboundedSender<String>,
) {
    let Some(head) = read_head(&mut stream).await else { return };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    if stream.read_exact(&mut body).await.is_err() {
        return;
    }
    // The test may be over.
    let _told = told.send(head + &String::from_utf8_lossy(&body));
    // The client may have had enough before the end.
    let mut written = match answer {
        Answer::Bytes(bytes) | Answer::Endless(bytes, _) | Answer::Cut(bytes) => stream.write_all(bytes).await,
        Answer::NoHandshake => Ok(()),
    };
    let _flushed = stream.flush().await;
    if matches!(answer, Answer::Cut(_)) {
        return;
    }
    while let (Answer::Endless(_, bytes), Ok(())) = (answer, &written) {
        written = stream.write_all(bytes).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let _end = stream.read_to_end(&mut Vec::new()).await;
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_fetched_from_a_server_that_is_trusted() {
    let mut web = Web::start("localhost", OK).await;
    assert_eq!(web.fetch(5).await, Ok(Bytes::from_static(b"hello")));
    let asked = web.asked.recv().await.expect("a request");
    assert!(asked.starts_with("GET /keys?token=hunter2 HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains(&format!("host: localhost:{}\r\n", web.address.port())), "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_trusted_is_asked_for_nothing() {
    let mut web = Web::start("localhost", OK).await;
    let stranger = Web::start("localhost", OK).await.fetcher(None, LIMIT);
    let refused = get(&stranger, &web.url(), 100).await.expect_err("nobody vouches for it");
    assert!(refused.contains("TLS with the server failed"), "{refused}");
    let mut misnamed = Web::start("another.example", OK).await;
    let refused = misnamed.fetch(100).await.expect_err("it is another's certificate");
    assert!(refused.contains("TLS with the server failed"), "{refused}");
    assert!(web.asked.try_recv().is_err() && misnamed.asked.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_not_the_document_is_an_error_that_says_so() {
    for (answer, hint) in [
        (&b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"[..], "the answer is 404"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "the answer is 204"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello!", "longer than 5 bytes"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n",
            "longer than 5 bytes",
        ),
        (b"nonsense\r\n\r\n", "no answer"),
    ] {
        let message = Web::start("localhost", Answer::Bytes(answer)).await.fetch(5).await.expect_err(hint);
        assert!(message.contains(hint), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_cut_off_is_none() {
    for (answer, hint) in [
        (&b""[..], "no answer: "),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "no answer: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", "the answer broke off: "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n", "the answer broke off: "),
        // Its length is where it ends, so that nothing but TLS tells a cut from the end.
        (b"HTTP/1.1 200 OK\r\n\r\nhel", "the answer broke off: "),
    ] {
        let message = Web::start("localhost", Answer::Cut(answer)).await.fetch(100).await.expect_err(hint);
        assert!(message.starts_with(hint), "{message}");
        // The library says that it could not read, and its cause why.
        assert!(message.contains(": peer closed connection without sending TLS close_notify"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed() {
    let mut web = Web::start(
        "localhost",
        Answer::Bytes(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 5\r\n\r\nhello"),
    )
    .await;
    let message = web.fetch(100).await.expect_err("it is elsewhere");
    assert!(message.contains("302") && message.contains("redirects are not followed"), "{message}");
    assert!(web.asked.recv().await.is_some() && web.asked.try_recv().is_err(), "one request and no other");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_is_too_long_is_not_read_to_its_end() {
    let announced = Answer::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n");
    let chunked =
        Answer::Endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10\r\n0123456789abcdef\r\n");
    let until_closed = Answer::Endless(b"HTTP/1.1 200 OK\r\n\r\n", b"0123456789abcdef");
    for answer in [announced, chunked, until_closed] {
        let web = Web::start("localhost", answer).await;
        let message = web.fetch(5).await.expect_err("it is too long");
        assert!(message.contains("longer than 5 bytes"), "{answer:?}: {message}");
        wait_until(LIMIT, "the connection is closed", async || web.open.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_too_long_is_given_up_and_its_connection_closed() {
    for answer in [
        Answer::NoHandshake,
        Answer::Bytes(b""),
        Answer::Bytes(b"HTTP/1.1 200 OK\r\nContent-Le"),
        Answer::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"),
        Answer::Endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ] {
        let web = Web::start("localhost", answer).await;
        let begun = Instant::now();
        let message = web.fetch_within(TIMEOUT, 100_000_000).await.expect_err("no answer, or no end to it");
        assert!(message.contains("no answer within 500ms"), "{answer:?}: {message}");
        assert!(begun.elapsed() >= TIMEOUT, "{answer:?}");
        wait_until(LIMIT, "the connection is closed", async || web.open.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_https_is_fetched_and_anything_is_sent() {
    let (mut plain, mut web) = (Web::plain(OK).await, Web::start("localhost", OK).await);
    let url = format!("http://localhost:{}/hook", plain.address.port());
    let message = get(&web.fetcher(None, LIMIT), &url, 100).await.expect_err("it is not https");
    assert_eq!(message, "the URL is not https");
    assert!(plain.asked.try_recv().is_err());
    for url in ["file:///etc/passwd", "ftp://localhost/", "localhost", ""] {
        assert!(get(&web.fetcher(None, LIMIT), url, 100).await.is_err(), "{url}");
    }

    let secure = format!("https://localhost:{}/hook", web.address.port());
    for (asked, url) in [(&mut plain.asked, url), (&mut web.asked, secure)] {
        let request = Request::builder().method(Method::PUT).uri(url).header("x-signature", "v1=abc");
        let request = request.body(Bytes::from_static(b"{\"id\":1}")).expect("a valid request");
        // The server trusts itself, and the plain one needs no trust.
        let fetcher =
            Fetcher::new(&OutboundConfig { ca: Some(web.dir.path().join("ca.pem")), ..OutboundConfig::default() });
        let answer = fetcher.expect("a good config").send(request, 100).await.expect("an answer");
        assert_eq!((answer.status().as_u16(), &answer.body()[..]), (200, &b"hello"[..]));
        let asked = asked.recv().await.expect("a request");
        assert!(asked.starts_with("PUT /hook HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("x-signature: v1=abc\r\n") && asked.ends_with("\r\n\r\n{\"id\":1}"), "{asked}");
    }
}

/// A proxy that connects everybody to `target`, whatever was asked for, and tells what was.
async fn proxy(target: SocketAddr, answer: &'static [u8]) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (told, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                let Some(head) = read_head(&mut stream).await else { return };
                let _told = told.send(head);
                let _written = stream.write_all(answer).await;
                let mut server = TcpStream::connect(target).await.expect("the server is there");
                let _ended = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
            });
        }
    });
    (address, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_proxy_the_certificate_is_still_the_servers() {
    let mut web = Web::start(SNS, OK).await;
    let (address, mut asked) = proxy(web.address, b"HTTP/1.1 200 Connection established\r\n\r\n").await;
    let fetcher = web.fetcher(Some(address), LIMIT);
    assert_eq!(get(&fetcher, &format!("https://{SNS}/a.pem?x=hunter2"), 100).await, Ok(Bytes::from_static(b"hello")));
    let told = asked.recv().await.expect("it went through the proxy");
    assert!(told.starts_with("CONNECT sns.us-east-1.amazonaws.com:443 HTTP/1.1\r\n"), "{told}");
    assert!(!told.contains("hunter2"), "the path is the server's alone: {told}");
    let request = web.asked.recv().await.expect("a request");
    assert!(request.starts_with("GET /a.pem?x=hunter2 ") && request.contains(&format!("host: {SNS}\r\n")), "{request}");
    let evil = get(&fetcher, "https://sns.evil.test/a.pem", 100).await.expect_err("its certificate is another's");
    assert!(evil.contains("TLS with the server failed"), "{evil}");
    assert!(web.asked.try_recv().is_err(), "who is not who it should be is asked for nothing");
    wait_until(LIMIT, "the connections are closed", async || web.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_does_not_connect_is_told_from_the_server() {
    let web = Web::start(SNS, OK).await;
    for (answer, timeout, hint) in [
        (
            &b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"[..],
            LIMIT,
            "the proxy answers 403 Forbidden to CONNECT",
        ),
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 9\r\n\r\nwho?",
            LIMIT,
            "the proxy answers 407",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n", LIMIT, "no answer from the proxy"),
        (b"", TIMEOUT, "no answer within 500ms"),
    ] {
        let (address, _asked) = proxy(web.address, answer).await;
        let fetcher = web.fetcher(Some(address), timeout);
        let message = get(&fetcher, &format!("https://{SNS}/a.pem"), 100).await.expect_err("it does not connect");
        assert!(message.contains(hint), "{message}");
        wait_until(LIMIT, "the connections are closed", async || web.open.load(Ordering::SeqCst) == 0).await;
    }
    let gone = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let fetcher = web.fetcher(Some(gone), LIMIT);
    let message = get(&fetcher, &format!("https://{SNS}/a.pem"), 100).await.expect_err("nobody is there");
    assert!(message.contains(&format!("the proxy is out of reach: no connection to {gone}: ")), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_in_the_clear_goes_straight_to_its_host() {
    let (plain, web) = (Web::plain(OK).await, Web::start(SNS, OK).await);
    let (address, mut asked) = proxy(web.address, b"HTTP/1.1 200 OK\r\n\r\n").await;
    let request = Request::post(format!("http://{}/hook", plain.address)).body(Bytes::new()).expect("a valid request");
    assert_eq!(web.fetcher(Some(address), LIMIT).send(request, 100).await.expect("an answer").status(), 200);
    assert!(asked.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_systems_authorities_are_trusted_too_and_may_be_none() {
    // The environment belongs to a whole process, so this test runs itself as others: one for each line of the table.
    const URL: &str = "HOOKGATE_TEST_URL";
    const CA: &str = "HOOKGATE_TEST_CA";
    if let Some(url) = std::env::var_os(URL) {
        let config = OutboundConfig { ca: std::env::var_os(CA).map(PathBuf::from), timeout: LIMIT, proxy: None };
        let fetcher = Fetcher::new(&config).expect("the system's are not looked for yet");
        return eprintln!("{:?}", fetcher.get(url.into_string().expect("a URL"), 100).await);
    }
    let (web, other) = (Web::start("localhost", OK).await, Web::start("localhost", OK).await);
    let (ours, others) = (web.dir.path().join("ca.pem"), other.dir.path().join("ca.pem"));
    for (system, ca, expected) in [
        (&ours, None, r#"Ok(b"hello")"#),
        (&ours, Some(&others), r#"Ok(b"hello")"#),
        (&others, Some(&ours), r#"Ok(b"hello")"#),
        (&others, None, "TLS with the server failed"),
        (&"/no/such/file".into(), Some(&ours), r#"Ok(b"hello")"#),
        (&"/no/such/file".into(), None, "no authority is known"),
    ] {
        let mut child = Command::new(std::env::current_exe().expect("this program"));
        child.args(["--exact", "the_systems_authorities_are_trusted_too_and_may_be_none", "--nocapture"]);
        child.env(URL, web.url()).env("SSL_CERT_FILE", system).env_remove("SSL_CERT_DIR");
        child.envs(ca.map(|ca| (CA, ca)));
        let output = tokio::task::spawn_blocking(move || child.output()).await.expect("no panic").expect("it starts");
        let output = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.contains(expected), "{system:?} {ca:?}: {output}");
    }
}

#[test]
fn everything_that_is_wrong_with_the_config_is_told_and_no_password_with_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str, text: &str| -> Option<PathBuf> {
        std::fs::write(dir.path().join(name), text).expect("writable");
        Some(dir.path().join(name))
    };
    let proxy = |text: &str| OutboundConfig { proxy: Some(text.to_owned()), ..OutboundConfig::default() };
    let ca = |ca: Option<PathBuf>| OutboundConfig { ca, ..OutboundConfig::default() };
    let both = OutboundConfig { ca: Some("no/such/file".into()), ..proxy("proxy:3128") };
    let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (config, hints) in [
        (both, &["proxy: is no HTTP proxy", "ca: the file no/such/file cannot be read"][..]),
        (proxy("https://proxy:3128"), &["proxy: is no HTTP proxy"]),
        (proxy("http://proxy:3128/path"), &["proxy: is no HTTP proxy"]),
        (proxy("http://user:hunter2@proxy:3128"), &["proxy: ", "password"]),
        (ca(file("empty.pem", "")), &["ca: ", "empty.pem", "is empty"]),
        (ca(file("text.pem", "hello")), &["ca: ", "text.pem", "holds no certificate"]),
        (ca(file("junk.pem", junk)), &["ca: ", "junk.pem", "cannot be used"]),
        (OutboundConfig { timeout: Duration::ZERO, ..OutboundConfig::default() }, &["timeout: "]),
    ] {
        let problems = Fetcher::new(&config).expect_err("a problem");
        let told = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(hints.iter().all(|hint| told.contains(hint)), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
    assert!(Fetcher::new(&proxy("http://proxy:3128/")).is_ok());
}

#[test]
fn the_table_has_defaults_and_no_keys_that_nobody_knows() {
    let read = |table: serde_json::Value| serde_json::from_value::<OutboundConfig>(table);
    let config = read(serde_json::json!({})).expect("all keys have defaults");
    assert_eq!((config.proxy, config.ca, config.timeout), (None, None, Duration::from_secs(2)));
    let config = serde_json::json!({ "proxy": "http://proxy:3128", "ca": "ca.pem", "timeout": "1s" });
    assert_eq!(serde_json::to_value(read(config.clone()).expect("good")).expect("written"), config);
    assert_eq!(
        serde_json::to_value(OutboundConfig::default()).expect("written"),
        serde_json::json!({ "timeout": "2s" })
    );
    assert!(read(serde_json::json!({ "porxy": "http://proxy:3128" })).is_err());
}
