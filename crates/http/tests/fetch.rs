//! What hookgate asks for itself, from servers that are not always what they should be.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use hookgate_core::auth::Fetch;
use hookgate_http::{Fetcher, OutboundConfig};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

const SNS: &str = "sns.us-east-1.amazonaws.com";

/// A server with a certificate for `name`, which answers every request with `answer`, and then closes or stays silent.
struct Web {
    address: SocketAddr,
    dir: TempDir,
    asked: Arc<AtomicUsize>,
}

impl Web {
    async fn start(name: &str, answer: &'static [u8]) -> Self {
        let key = KeyPair::generate().expect("a key");
        let cert = CertificateParams::new(vec![name.to_owned()]).expect("a name").self_signed(&key).expect("signed");
        let chain = vec![CertificateDer::from_pem_slice(cert.pem().as_bytes()).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("they fit");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (address, asked) = (listener.local_addr().expect("bound"), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, count) = (acceptor.clone(), Arc::clone(&count));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        head.push(byte);
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    // The client may have had enough before the end.
                    let _written = stream.write_all(answer).await;
                    let _flushed = stream.flush().await;
                    let mut rest = Vec::new();
                    let _end = stream.read_to_end(&mut rest).await;
                });
            }
        });
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("ca.pem"), cert.pem()).expect("writable");
        Self { address, dir, asked }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/keys?token=hunter2", self.address.port())
    }

    /// A client that trusts this server.
    fn fetcher(&self, proxy: Option<SocketAddr>) -> Fetcher {
        let config = OutboundConfig {
            ca: Some(self.dir.path().join("ca.pem")),
            proxy: proxy.map(|proxy| format!("http://{proxy}")),
            timeout: Duration::from_millis(1500),
        };
        Fetcher::new(&config).expect("a good config")
    }

    async fn fetch(&self, bytes_max: usize) -> Result<Bytes, String> {
        let answer = self.fetcher(None).get(self.url(), bytes_max).await;
        if let Err(message) = &answer {
            assert!(!message.contains("hunter2"), "a query is a secret: {message}");
        }
        answer
    }
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_fetched_from_a_server_that_is_trusted() {
    let web = Web::start("localhost", OK).await;
    assert_eq!(web.fetch(5).await, Ok(Bytes::from_static(b"hello")));
    let stranger = Fetcher::new(&OutboundConfig::default()).expect("the defaults are good");
    let refused = stranger.get(web.url(), 100).await.expect_err("nobody vouches for it");
    assert!(refused.contains("TLS with the server failed"), "{refused}");
    let misnamed = Web::start("another.example", OK).await;
    let refused = misnamed.fetch(100).await.expect_err("it is another's certificate");
    assert!(refused.contains("TLS with the server failed"), "{refused}");
    assert_eq!(misnamed.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_not_the_document_is_an_error_that_says_so() {
    for (answer, hint) in [
        (
            &b"HTTP/1.1 302 Found\r\nLocation: https://evil.test/\r\nContent-Length: 0\r\n\r\n"[..],
            "redirects are not followed",
        ),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "the answer is 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello!", "longer than 5 bytes"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n",
            "longer than 5 bytes",
        ),
        (b"nonsense\r\n\r\n", "no answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", "no answer within 1.5s"),
        (b"", "no answer within 1.5s"),
    ] {
        let web = Web::start("localhost", answer).await;
        let message = web.fetch(5).await.expect_err(hint);
        assert!(message.contains(hint), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_https_is_fetched() {
    let web = Web::start("localhost", OK).await;
    for url in ["http://localhost/keys", "file:///etc/passwd", "ftp://localhost/", "localhost", ""] {
        assert!(web.fetcher(None).get(url.to_owned(), 100).await.is_err(), "{url}");
    }
}

/// A proxy that connects everybody to `target`, whatever was asked for, and tells what was.
async fn proxy(target: SocketAddr, answer: &'static [u8]) -> (SocketAddr, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (told, asked) = tokio::sync::mpsc::channel(10);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
                told.send(line).await.expect("somebody asks");
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
    let web = Web::start(SNS, OK).await;
    let (address, mut asked) = proxy(web.address, b"HTTP/1.1 200 Connection established\r\n\r\n").await;
    let fetcher = web.fetcher(Some(address));
    assert_eq!(fetcher.get(format!("https://{SNS}/a.pem"), 100).await, Ok(Bytes::from_static(b"hello")));
    assert_eq!(asked.recv().await.as_deref(), Some("CONNECT sns.us-east-1.amazonaws.com:443 HTTP/1.1"));
    let evil =
        fetcher.get("https://sns.evil.test/a.pem".to_owned(), 100).await.expect_err("its certificate is another's");
    assert!(evil.contains("TLS with the server failed"), "{evil}");
    let (unwilling, _asked) = proxy(web.address, b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
    let refused =
        web.fetcher(Some(unwilling)).get(format!("https://{SNS}/a.pem"), 100).await.expect_err("it is refused");
    assert!(refused.contains("the proxy answers 403 Forbidden to CONNECT"), "{refused}");
}

#[test]
fn what_is_wrong_with_the_config_is_told() {
    let message = |config: OutboundConfig| {
        let problems = Fetcher::new(&config).expect_err("a problem");
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let config = OutboundConfig {
        proxy: Some("proxy:3128".to_owned()),
        ca: Some("no/such/file".into()),
        ..OutboundConfig::default()
    };
    let message = message(config);
    assert!(
        message.contains("proxy: is no HTTP proxy") && message.contains("ca: the file no/such/file cannot be read"),
        "{message}"
    );
}
