//! What the program asks for itself: keys of a token issuer, certificates of SNS, the confirmation of a subscription.
//!
//! The provider's hosts are played by one TLS server behind a proxy that hookgate is configured with, as in a cluster whose
//! only way out is one. Names, certificates and URLs are the provider's own.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hookgate_testkit::{http::request, process::wait_until, tls};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::relay::{LIMIT, Relay, run_to_end};

const SNS: &str = "sns.us-east-1.amazonaws.com";
const ISSUER: &str = "issuer.example";
const TOPIC: &str = "arn:aws:sns:us-east-1:123456789012:events";
const RSA_PEM: &str = include_str!("../../crates/testkit/fixtures/keys/rsa.pem");

/// The world outside: documents by `host/path`, and what was asked for.
struct World {
    proxy: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    ca: String,
}

impl World {
    async fn start(documents: BTreeMap<String, String>) -> Self {
        let (config, ca) = tls::server(&[SNS, ISSUER]);
        let acceptor = TlsAcceptor::from(config);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (proxy, asked) = (listener.local_addr().expect("bound"), Arc::new(Mutex::new(Vec::new())));
        let (log, documents) = (Arc::clone(&asked), Arc::new(documents));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (acceptor, log, documents) = (acceptor.clone(), Arc::clone(&log), Arc::clone(&documents));
                tokio::spawn(async move {
                    let connect = head(&mut stream).await;
                    let host = connect.split([' ', ':']).nth(1).unwrap_or_default().to_owned();
                    stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.expect("hookgate listens");
                    let mut stream = acceptor.accept(stream).await.expect("hookgate trusts the certificate");
                    let get = head(&mut stream).await;
                    let url = format!("{host}{}", get.split(' ').nth(1).unwrap_or_default());
                    let (status, body) = match documents.get(&url) {
                        Some(document) => ("200 OK", document.as_str()),
                        None => ("404 Not Found", ""),
                    };
                    log.lock().expect("no panic").push(url);
                    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(answer.as_bytes()).await.expect("hookgate listens");
                    stream.flush().await.expect("hookgate listens");
                    let mut rest = Vec::new();
                    let _end = stream.read_to_end(&mut rest).await;
                });
            }
        });
        Self { proxy, asked, ca }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }

    /// A relay whose only way out is this world.
    async fn relay(&self, source: &Value) -> Relay {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("world.pem"), &self.ca).expect("writable");
        let config = json!({
            "outbound": { "proxy": format!("http://{}", self.proxy), "ca": "world.pem" },
            "sources": { "one": source }, "sinks": { "events": { "type": "file", "dir": "events" } },
            "routes": [{ "to": [{ "sink": "events" }] }],
        });
        let relay = Relay::start_in(dir, &toml::to_string(&config).expect("TOML"), &[]).await;
        relay.wait_until_ready().await;
        relay
    }
}

async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("hookgate sends its request"));
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// The signature of `text` under the key of these tests, made by a program that shares no code with us.
fn sign(dir: &Path, text: &str) -> String {
    let (key, message) = (dir.join("rsa.pem"), dir.join("message"));
    std::fs::write(&key, RSA_PEM).expect("writable");
    std::fs::write(&message, text).expect("writable");
    let signed = std::process::Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .args([&key, &message])
        .output()
        .expect("openssl is installed");
    assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    BASE64.encode(signed.stdout)
}

/// A message of SNS, signed.
fn message(dir: &Path, r#type: &str, certificate: &str, topic: &str) -> Vec<u8> {
    let mut body = json!({
        "Type": r#type, "MessageId": "m1", "TopicArn": topic, "Message": "hi", "Timestamp": "2026-11-25T00:00:00.000Z",
        "SignatureVersion": "2", "SigningCertURL": certificate, "Token": "t",
        "SubscribeURL": format!("https://{SNS}/?Action=ConfirmSubscription&TopicArn={TOPIC}&Token=t"),
    });
    let names: &[&str] = match r#type {
        "Notification" => &["Message", "MessageId", "Timestamp", "TopicArn", "Type"],
        _ => &["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"],
    };
    let line = |name: &&str| format!("{name}\n{}\n", body[*name].as_str().expect("a text"));
    body["Signature"] = sign(dir, &names.iter().map(line).collect::<String>()).into();
    request("POST", "/one", &[("content-type", "text/plain; charset=UTF-8")], body.to_string().as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_is_confirmed_at_the_service_and_its_messages_are_events() {
    let key = KeyPair::from_pem(RSA_PEM).expect("a key");
    let certificate = CertificateParams::new(Vec::new()).expect("no names").self_signed(&key).expect("signed").pem();
    let confirm = format!("{SNS}/?Action=ConfirmSubscription&TopicArn={TOPIC}&Token=t");
    let documents = BTreeMap::from([(format!("{SNS}/cert.pem"), certificate), (confirm.clone(), "<ok/>".to_owned())]);
    let world = World::start(documents).await;
    let scheme = json!({ "scheme": "aws-sns", "topics": [TOPIC] });
    let relay = world.relay(&json!({ "path": "/one", "preset": "aws-sns", "verify": [scheme] })).await;
    let (dir, certificate) = (relay.dir().to_owned(), format!("https://{SNS}/cert.pem"));
    let send = async |r#type: &str, certificate: &str, topic: &str| {
        relay.send(&message(&dir, r#type, certificate, topic)).await.status
    };
    assert_eq!(send("SubscriptionConfirmation", &certificate, "arn:aws:sns:us-east-1:666:theirs").await, 401);
    assert_eq!(send("SubscriptionConfirmation", "https://evil.test/cert.pem", TOPIC).await, 401);
    assert_eq!(world.asked(), Vec::<String>::new(), "nobody makes hookgate reach out for a stranger");
    assert_eq!(send("SubscriptionConfirmation", &certificate, TOPIC).await, 200);
    assert_eq!(world.asked(), [format!("{SNS}/cert.pem"), confirm]);
    assert_eq!(relay.stored(), Vec::<Value>::new(), "it is no event");
    assert_eq!(send("Notification", &certificate, TOPIC).await, 200);
    assert_eq!(send("Notification", &certificate, TOPIC).await, 200);
    let stored = relay.stored();
    assert_eq!(
        (stored.len(), &stored[0]["id"], &stored[0]["type"]),
        (1, &json!("MessageId=m1"), &json!("Notification"))
    );
    assert_eq!(world.asked().len(), 2, "the certificate is kept");
    let metrics = relay.metrics().await;
    assert_eq!(metrics[r#"hookgate_handshakes_total{source="one",result="answered"}"#], 1.0);
    assert_eq!(metrics[r#"hookgate_key_fetches_total{result="ok"}"#], 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuers_keys_are_there_before_the_first_token() {
    // Modulus and exponent of the key of these tests, as its certificate tells them: the other form of a key set.
    let key = KeyPair::from_pem(RSA_PEM).expect("a key");
    let certificate = CertificateParams::new(Vec::new()).expect("no names").self_signed(&key).expect("signed").pem();
    let keys = json!({ "one": certificate }).to_string();
    let world = World::start(BTreeMap::from([(format!("{ISSUER}/keys"), keys)])).await;
    let scheme = json!({
        "scheme": "jwt", "keys": { "url": format!("https://{ISSUER}/keys") }, "issuers": [format!("https://{ISSUER}")],
        "audiences": ["https://hooks.example.com/one"], "email": "push@example.iam.gserviceaccount.com",
    });
    let relay = world.relay(&json!({ "path": "/one", "preset": "google-pubsub", "verify": [scheme] })).await;
    wait_until(LIMIT, "the keys are here", async || world.asked().len() == 1).await;
    std::fs::write(relay.dir().join("rsa.pem"), RSA_PEM).expect("writable");
    let sent = run_to_end(relay.dir(), &["send", "one", "--signing-key", "rsa.pem", "--json"], &[]);
    // send does not know the key's name, and the only key of a set needs none.
    let answer: Value =
        serde_json::from_slice(&sent.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&sent.stderr)));
    assert_eq!(answer["status"], 200, "{answer}");
    assert_eq!(relay.stored().len(), 1);
    assert_eq!(world.asked().len(), 1);
    let explained = |arguments: &[&str]| -> Value {
        let printed = run_to_end(relay.dir(), &["send", "one", "--signing-key", "rsa.pem", "--print"], &[]);
        std::fs::write(relay.dir().join("sent.http"), printed.stdout).expect("writable");
        let explained = run_to_end(relay.dir(), &[&["explain", "sent.http"], arguments].concat(), &[]);
        serde_json::from_slice(&explained.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&explained.stderr)))
    };
    assert_eq!(explained(&[])["reason"], "keys_unavailable", "explain reaches out only when it is told to");
    assert_eq!(explained(&["--fetch"])["verdict"], "accept");
}

#[tokio::test(flavor = "multi_thread")]
async fn send_speaks_tls_to_a_hookgate_that_has_a_certificate() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let key = KeyPair::generate().expect("a key");
    let cert = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name").self_signed(&key).expect("signed");
    std::fs::write(dir.path().join("tls.crt"), cert.pem()).expect("writable");
    std::fs::write(dir.path().join("tls.key"), key.serialize_pem()).expect("writable");
    let environment =
        [("HOOKGATE_SERVER__TLS", r#"{ cert = "tls.crt", key = "tls.key" }"#), ("HOOKGATE_OUTBOUND__CA", "tls.crt")];
    let tables = format!("{}{}", crate::relay::OPENCLAW, crate::relay::TO_FILE);
    let relay = Relay::start_in(dir, &tables, &environment).await;
    relay.wait_until_ready().await;
    let sent = run_to_end(relay.dir(), &["send", "openclaw"], &environment);
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    assert_eq!(relay.stored().len(), 1);
    let distrustful = run_to_end(relay.dir(), &["send", "openclaw"], &environment[..1]);
    let message = String::from_utf8_lossy(&distrustful.stderr).into_owned();
    assert!(!distrustful.status.success() && message.contains("TLS with the server failed"), "{message}");
}
