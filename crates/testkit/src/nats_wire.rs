//! JetStream over a plain TCP socket, in the NATS text protocol itself.
//!
//! Tests that ask "did the broker store exactly these bytes and headers?" must not ask the library that wrote them. So
//! this file knows nothing but the wire: `CONNECT`, `SUB`, `PUB`, `HPUB`, `MSG`, `HMSG`, and the JSON replies of the
//! JetStream API. No TLS: to read what a TLS-only server stored, restart it without
//! ([`NatsServer::reconfigure`](crate::nats::NatsServer::reconfigure)).
//!
//! Source: <https://docs.nats.io/reference/reference-protocols/nats-protocol>,
//! <https://docs.nats.io/reference/reference-protocols/nats_api_reference>.

use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Longest wait for any single answer of the broker.
const REPLY_LIMIT: Duration = Duration::from_secs(10);

/// First line of every NATS header block.
const HEADER_VERSION: &str = "NATS/1.0";

/// The server's `err_code` for a sequence that holds no message (deleted, or purged).
const NO_MESSAGE_FOUND: u64 = 10037;

/// One message as the broker holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// The subject it was published to.
    pub subject: String,
    /// Headers in stored order, repeats kept. Of the blanks after the colon exactly one is taken off.
    pub headers: Vec<(String, String)>,
    /// The payload, byte for byte.
    pub payload: Bytes,
    /// Its place in the stream, counted from 1.
    pub sequence: u64,
}

impl StoredMessage {
    /// The first header of that name. NATS header names are case-sensitive.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A connection that speaks the NATS text protocol. Every method panics when the broker answers with an error or not
/// within 10 s.
#[derive(Debug)]
pub struct NatsWire {
    stream: BufReader<TcpStream>,
    inbox: String,
    requests: u64,
}

impl NatsWire {
    /// Connects to `nats://host:port`, `nats://user:password@host:port` or `nats://token@host:port`.
    ///
    /// User, password and token stand in the URL as they are, without percent escapes, and so hold no `@`; a user holds
    /// no `:`.
    pub async fn connect(url: &str) -> NatsWire {
        let connecting = async {
            let (credentials, address) = split_url(url);
            let mut stream = BufReader::new(TcpStream::connect(address).await?);
            let info = read_line(&mut stream).await?;
            assert!(info.starts_with("INFO "), "{url} greets with {info:?}, not with INFO");
            let connect = connect_options(credentials);
            let inbox = format!("_INBOX.testkit-{:016x}", fastrand::u64(..));
            let hello = format!("CONNECT {connect}\r\nSUB {inbox}.* 1\r\nPING\r\n");
            stream.write_all(hello.as_bytes()).await?;
            loop {
                match read_line(&mut stream).await?.as_str() {
                    "PONG" => {
                        return Ok(NatsWire { stream, inbox, requests: 0 });
                    }
                    // The server may ask first.
                    "PING" => stream.write_all(b"PONG\r\n").await?,
                    refusal if refusal.starts_with("-ERR") => panic!("{url} refuses the connection: {refusal}"),
                    _ => {}
                }
            }
        };
        within_limit(&format!("connect to {url}"), connecting).await
    }

    /// Creates a stream from its JSON configuration (`name`, `subjects`, ...) and returns the broker's description.
    pub async fn create_stream(&mut self, config: &Value) -> Value {
        let name = config["name"].as_str().expect("a stream configuration has a `name`");
        self.api(&format!("STREAM.CREATE.{name}"), config).await
    }

    /// The broker's description of a stream: `config` and `state`.
    pub async fn stream_info(&mut self, stream: &str) -> Value {
        self.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await
    }

    /// Deletes a stream with all its messages.
    pub async fn delete_stream(&mut self, stream: &str) {
        self.api(&format!("STREAM.DELETE.{stream}"), &Value::Null).await;
    }

    /// Deletes all messages of a stream. Sequence numbers go on where they were.
    pub async fn purge(&mut self, stream: &str) {
        self.api(&format!("STREAM.PURGE.{stream}"), &Value::Null).await;
    }

    /// Every message a stream holds, in order.
    pub async fn read_stream(&mut self, stream: &str) -> Vec<StoredMessage> {
        let info = self.stream_info(stream).await;
        let state = |key: &str| info["state"][key].as_u64().unwrap_or_else(|| panic!("no state.{key} in {info}"));
        if state("messages") == 0 {
            return Vec::new();
        }
        let mut messages = Vec::new();
        for sequence in state("first_seq")..=state("last_seq") {
            messages.extend(self.read_message(stream, sequence).await);
        }
        messages
    }

    /// The message at `sequence`, or `None` if the stream holds none there.
    pub async fn read_message(&mut self, stream: &str, sequence: u64) -> Option<StoredMessage> {
        let call = format!("STREAM.MSG.GET.{stream}");
        let reply = self.try_api(&call, &json!({ "seq": sequence })).await;
        if reply["error"]["err_code"] == NO_MESSAGE_FOUND {
            return None;
        }
        assert!(reply["error"].is_null(), "{call} of {sequence} failed: {}", reply["error"]);
        Some(stored_message(&reply["message"]))
    }

    /// Publishes one message, waits for JetStream's acknowledgement and returns the sequence it got.
    pub async fn publish(&mut self, subject: &str, headers: &[(&str, &str)], payload: &[u8]) -> u64 {
        let ack = self.request(subject, headers, payload).await;
        let ack: Value = serde_json::from_slice(&ack).expect("a publish acknowledgement is JSON");
        ack["seq"].as_u64().unwrap_or_else(|| panic!("{subject} was not stored: {ack}"))
    }

    /// Calls `$JS.API.<call>` and returns the reply, be it an error or not.
    pub async fn try_api(&mut self, call: &str, request: &Value) -> Value {
        let payload = if request.is_null() { Vec::new() } else { request.to_string().into_bytes() };
        let reply = self.request(&format!("$JS.API.{call}"), &[], &payload).await;
        serde_json::from_slice(&reply).unwrap_or_else(|error| panic!("{call} answered no JSON: {error}"))
    }

    /// Calls `$JS.API.<call>` and panics on an error reply.
    async fn api(&mut self, call: &str, request: &Value) -> Value {
        let reply = self.try_api(call, request).await;
        assert!(reply["error"].is_null(), "{call} failed: {}", reply["error"]);
        reply
    }

    /// Sends one message with a reply subject and returns the payload of the reply.
    async fn request(&mut self, subject: &str, headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
        self.requests += 1;
        let reply_to = format!("{}.{}", self.inbox, self.requests);
        let packet = packet(subject, &reply_to, headers, payload);
        let exchange = async {
            self.stream.write_all(&packet).await?;
            loop {
                let line = read_line(&mut self.stream).await?;
                let words: Vec<&str> = line.split_ascii_whitespace().collect();
                match words[..] {
                    ["PING"] => self.stream.write_all(b"PONG\r\n").await?,
                    ["MSG" | "HMSG", to, ..] => {
                        let (headers, payload) = read_body(&mut self.stream, &words).await?;
                        if to != reply_to {
                            continue;
                        }
                        // A header block with a status and no payload: nobody listens there.
                        let answered = !headers.starts_with("NATS/1.0 503");
                        assert!(answered, "nobody answers on {subject:?}: no stream takes it, or JetStream is off");
                        return Ok(payload);
                    }
                    ["-ERR", ..] => panic!("the broker refuses {subject:?}: {line}"),
                    _ => {}
                }
            }
        };
        within_limit(&format!("answer on {subject:?}"), exchange).await
    }
}

/// Reads every message of `stream` over a connection of its own. For the URL see [`NatsWire::connect`].
pub async fn read_stream(url: &str, stream: &str) -> Vec<StoredMessage> {
    NatsWire::connect(url).await.read_stream(stream).await
}

/// Creates a stream over a connection of its own. For the URL see [`NatsWire::connect`].
pub async fn create_stream(url: &str, config: &Value) -> Value {
    NatsWire::connect(url).await.create_stream(config).await
}

#[derive(Debug, Clone, Copy)]
enum Credentials<'a> {
    None,
    Token(&'a str),
    Password { user: &'a str, password: &'a str },
}

fn split_url(url: &str) -> (Credentials<'_>, &str) {
    let rest = url.strip_prefix("nats://").unwrap_or_else(|| panic!("{url} does not begin with nats://"));
    let Some((who, address)) = rest.rsplit_once('@') else {
        return (Credentials::None, rest);
    };
    match who.split_once(':') {
        Some((user, password)) => (Credentials::Password { user, password }, address),
        None => (Credentials::Token(who), address),
    }
}

fn connect_options(credentials: Credentials<'_>) -> Value {
    let mut options = json!({
        "verbose": false, "pedantic": true, "protocol": 1, "headers": true, "no_responders": true,
        "name": "hookgate-testkit", "lang": "text", "version": "1",
    });
    match credentials {
        Credentials::None => {}
        Credentials::Token(token) => options["auth_token"] = token.into(),
        Credentials::Password { user, password } => {
            options["user"] = user.into();
            options["pass"] = password.into();
        }
    }
    options
}

/// A `PUB`, or an `HPUB` if there are headers.
fn packet(subject: &str, reply_to: &str, headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
    let mut packet = if headers.is_empty() {
        format!("PUB {subject} {reply_to} {}\r\n", payload.len()).into_bytes()
    } else {
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let block = format!("{HEADER_VERSION}\r\n{lines}\r\n");
        let total = block.len() + payload.len();
        format!("HPUB {subject} {reply_to} {} {total}\r\n{block}", block.len()).into_bytes()
    };
    packet.extend_from_slice(payload);
    packet.extend_from_slice(b"\r\n");
    packet
}

/// Reads what follows a `MSG` or `HMSG` line: the header block (empty for `MSG`) and the payload.
async fn read_body(stream: &mut BufReader<TcpStream>, words: &[&str]) -> io::Result<(String, Vec<u8>)> {
    let size = |word: &str| word.parse::<usize>().unwrap_or_else(|_| panic!("no size in {words:?}"));
    // An optional reply subject stands before the sizes, so that they are counted from the end.
    let (headers_size, total) = match words {
        ["HMSG", .., headers, total] => (size(headers), size(total)),
        [.., total] => (0, size(total)),
        [] => panic!("a message line has words"),
    };
    let mut headers = vec![0; total];
    stream.read_exact(&mut headers).await?;
    let payload = headers.split_off(headers_size);
    let mut end = [0; 2];
    stream.read_exact(&mut end).await?;
    assert_eq!(&end, b"\r\n", "a message ends where its size says");
    Ok((String::from_utf8_lossy(&headers).into_owned(), payload))
}

async fn read_line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await?;
    if !line.ends_with(b"\r\n") {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the broker closed the connection"));
    }
    line.truncate(line.len() - 2);
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// The `message` object of a `STREAM.MSG.GET` reply. `data` and `hdrs` are left out by the server when they are empty.
fn stored_message(message: &Value) -> StoredMessage {
    let decode = |key: &str| {
        let text = message[key].as_str().unwrap_or_default();
        STANDARD.decode(text).unwrap_or_else(|error| panic!("`{key}` is not base64 ({error}): {message}"))
    };
    let block = String::from_utf8(decode("hdrs")).expect("stored headers are UTF-8");
    StoredMessage {
        subject: message["subject"].as_str().expect("a stored message has a subject").to_owned(),
        headers: parse_headers(&block),
        payload: decode("data").into(),
        sequence: message["seq"].as_u64().expect("a stored message has a sequence"),
    }
}

fn parse_headers(block: &str) -> Vec<(String, String)> {
    let mut lines = block.split("\r\n");
    let version = lines.next().unwrap_or_default();
    assert!(block.is_empty() || version == HEADER_VERSION, "headers begin with {version:?}");
    lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no colon in header {line:?}"));
            (name.to_owned(), value.strip_prefix(' ').unwrap_or(value).to_owned())
        })
        .collect()
}

async fn within_limit<T>(what: &str, exchange: impl Future<Output = io::Result<T>>) -> T {
    match tokio::time::timeout(REPLY_LIMIT, exchange).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => panic!("{what}: {error}"),
        Err(_) => panic!("{what}: nothing within {REPLY_LIMIT:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::{NatsConfig, NatsServer};

    /// A fresh server with the stream `HOOKS` over `hooks.>`.
    async fn hooks() -> (NatsServer, NatsWire) {
        let server = NatsServer::start(NatsConfig::default()).await;
        let mut wire = server.wire().await;
        wire.create_stream(&json!({ "name": "HOOKS", "subjects": ["hooks.>"] })).await;
        (server, wire)
    }

    #[tokio::test]
    async fn headers_and_payload_come_back_as_they_were_sent() {
        let (server, mut wire) = hooks().await;
        let payload: Vec<u8> = (0..=255).collect();
        let headers = [("Nats-Msg-Id", "a 1"), ("ce-Type", "x:y"), ("ce-Type", " two blanks first"), ("empty", "")];
        wire.publish("hooks.a", &headers, &payload).await;

        let stored = read_stream(&server.access_url(), "HOOKS").await;
        assert_eq!(stored.len(), 1);
        assert_eq!((stored[0].subject.as_str(), stored[0].sequence), ("hooks.a", 1));
        assert_eq!(stored[0].payload, payload);
        assert_eq!(stored[0].headers, headers.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(stored[0].header("Nats-Msg-Id"), Some("a 1"));
        assert_eq!(stored[0].header("nats-msg-id"), None);
    }

    #[tokio::test]
    async fn a_message_without_headers_and_payload_is_read_too() {
        let (_server, mut wire) = hooks().await;
        wire.publish("hooks.a", &[], b"").await;
        let expected =
            StoredMessage { subject: "hooks.a".to_owned(), headers: vec![], payload: Bytes::new(), sequence: 1 };
        assert_eq!(wire.read_stream("HOOKS").await, [expected]);
    }

    #[tokio::test]
    async fn a_message_as_large_as_the_broker_allows_is_read() {
        let (_server, mut wire) = hooks().await;
        let payload = vec![b'\n'; 1024 * 1024];
        wire.publish("hooks.large", &[], &payload).await;
        assert!(wire.read_stream("HOOKS").await[0].payload == payload);
    }

    #[tokio::test]
    async fn gaps_in_a_stream_are_passed_over() {
        let (_server, mut wire) = hooks().await;
        for subject in ["hooks.1", "hooks.2", "hooks.3"] {
            wire.publish(subject, &[], b"x").await;
        }
        wire.api("STREAM.MSG.DELETE.HOOKS", &json!({ "seq": 2 })).await;
        let sequences: Vec<u64> = wire.read_stream("HOOKS").await.iter().map(|message| message.sequence).collect();
        assert_eq!(sequences, [1, 3]);
    }

    #[tokio::test]
    async fn a_purged_stream_is_empty_and_a_deleted_one_is_gone() {
        let (_server, mut wire) = hooks().await;
        wire.publish("hooks.a", &[], b"x").await;
        wire.purge("HOOKS").await;
        assert_eq!(wire.read_stream("HOOKS").await, []);
        assert_eq!(wire.stream_info("HOOKS").await["state"]["last_seq"], 1);
        wire.delete_stream("HOOKS").await;
        assert_eq!(wire.try_api("STREAM.INFO.HOOKS", &Value::Null).await["error"]["code"], 404);
    }

    #[tokio::test]
    async fn publishing_where_no_stream_listens_fails_at_once() {
        let (server, _wire) = hooks().await;
        let publishing = tokio::spawn(async move { server.wire().await.publish("elsewhere", &[], b"x").await });
        let panic = publishing.await.expect_err("nothing stores `elsewhere`").into_panic();
        let message = panic.downcast_ref::<String>().expect("the panic has a message");
        assert!(message.starts_with("nobody answers on \"elsewhere\""), "{message}");
    }
}
