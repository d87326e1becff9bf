//! AMQP 0-9-1 over a plain socket: enough of it to arrange queues and to read what is in them.
//!
//! Tests that ask "did the broker store exactly these bytes and headers?" must not ask the library that wrote them. So
//! this file knows nothing but the wire. One connection has one channel, and each method waits for its answer.
//!
//! Source: AMQP 0-9-1 specification, sections 2.3 and 4.2; RabbitMQ's "AMQP 0-9-1 Errata" for the types in tables.

use std::{future::Future, io, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

/// Longest wait for any single answer of the broker.
const REPLY_LIMIT: Duration = Duration::from_secs(10);

/// The octet that ends each frame.
const FRAME_END: u8 = 0xce;

/// The one channel that is used.
const CHANNEL: u16 = 1;

/// Class and method, as they begin a method frame.
type Method = (u16, u16);

const CONNECTION_START: Method = (10, 10);
const CONNECTION_TUNE: Method = (10, 30);
const CONNECTION_OPEN_OK: Method = (10, 41);
const CONNECTION_CLOSE: Method = (10, 50);
const CONNECTION_BLOCKED: Method = (10, 60);
const CONNECTION_UNBLOCKED: Method = (10, 61);
const CHANNEL_OPEN_OK: Method = (20, 11);
const CHANNEL_CLOSE: Method = (20, 40);
const CHANNEL_CLOSE_OK: Method = (20, 41);
const EXCHANGE_DECLARE_OK: Method = (40, 11);
const EXCHANGE_DELETE_OK: Method = (40, 21);
const QUEUE_DECLARE_OK: Method = (50, 11);
const QUEUE_BIND_OK: Method = (50, 21);
const QUEUE_PURGE_OK: Method = (50, 31);
const QUEUE_DELETE_OK: Method = (50, 41);
const QUEUE_UNBIND_OK: Method = (50, 51);
const BASIC_GET_OK: Method = (60, 71);
const BASIC_GET_EMPTY: Method = (60, 72);

/// One message as the broker holds it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RabbitMessage {
    /// The exchange that it was published to.
    pub exchange: String,
    /// The routing key that it was published with.
    pub routing_key: String,
    /// The property of this name.
    pub content_type: Option<String>,
    /// The property of this name.
    pub content_encoding: Option<String>,
    /// The headers that are text, in the order of the table.
    pub headers: Vec<(String, String)>,
    /// 2 if it survives a restart.
    pub delivery_mode: Option<u8>,
    /// The property of this name.
    pub message_id: Option<String>,
    /// Seconds since 1970.
    pub timestamp: Option<u64>,
    /// The property of this name.
    pub app_id: Option<String>,
    /// The body, byte for byte.
    pub body: Bytes,
}

/// An argument of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueArgument {
    /// A whole number.
    Number(i64),
    /// A text.
    Text(&'static str),
}

/// Time between two looks at a queue that is not there yet.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// What `basic.get` comes to.
enum Got {
    Message(Box<RabbitMessage>),
    Nothing,
    /// The channel is closed instead.
    Closed,
}

/// A connection. Every method panics when the broker answers with an error or not within 10 s.
#[derive(Debug)]
pub struct RabbitWire {
    stream: BufReader<TcpStream>,
}

struct Frame {
    kind: u8,
    payload: Bytes,
}

impl RabbitWire {
    /// Connects to a loopback port, as `user`, to the vhost `/`.
    ///
    /// # Errors
    /// When nobody listens there, or the broker ends the connection. One that answers, but not as it should, panics.
    pub async fn connect(port: u16, user: &str, password: &str) -> io::Result<Self> {
        let connecting = async {
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.set_nodelay(true)?;
            let mut wire = Self { stream: BufReader::new(stream) };
            wire.stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
            wire.receive(CONNECTION_START).await?;
            let mut start = method((10, 11));
            start.put_u32(0);
            put_short(&mut start, "PLAIN");
            put_long(&mut start, format!("\0{user}\0{password}").as_bytes());
            put_short(&mut start, "en_US");
            wire.send(0, &start).await?;
            let mut tune = wire.receive(CONNECTION_TUNE).await?;
            let (channels_max, frame_max) = (tune.get_u16(), tune.get_u32());
            let mut tuned = method((10, 31));
            tuned.put_u16(channels_max);
            tuned.put_u32(frame_max);
            // No heartbeats: the broker would have to be answered while a test does something else.
            tuned.put_u16(0);
            wire.send(0, &tuned).await?;
            let mut open = method((10, 40));
            put_short(&mut open, "/");
            put_short(&mut open, "");
            open.put_u8(0);
            wire.send(0, &open).await?;
            wire.receive(CONNECTION_OPEN_OK).await?;
            wire.open_channel().await?;
            Ok(wire)
        };
        tokio::time::timeout(REPLY_LIMIT, connecting).await?
    }

    /// Makes a durable exchange of this kind (`direct`, `topic`, …).
    pub async fn declare_exchange(&mut self, name: &str, kind: &str) {
        let mut declare = method((40, 10));
        declare.put_u16(0);
        put_short(&mut declare, name);
        put_short(&mut declare, kind);
        declare.put_u8(0b10);
        declare.put_u32(0);
        self.ask(&declare, EXCHANGE_DECLARE_OK).await;
    }

    /// Removes an exchange; one that is not there is no error.
    pub async fn delete_exchange(&mut self, name: &str) {
        let mut delete = method((40, 20));
        delete.put_u16(0);
        put_short(&mut delete, name);
        delete.put_u8(0);
        self.ask(&delete, EXCHANGE_DELETE_OK).await;
    }

    /// Makes a durable queue.
    pub async fn declare_queue(&mut self, name: &str, arguments: &[(&str, QueueArgument)]) {
        let mut declare = method((50, 10));
        declare.put_u16(0);
        put_short(&mut declare, name);
        declare.put_u8(0b10);
        let mut table = BytesMut::new();
        for (name, argument) in arguments {
            put_short(&mut table, name);
            match argument {
                QueueArgument::Number(number) => {
                    table.put_u8(b'l');
                    table.put_i64(*number);
                }
                QueueArgument::Text(text) => {
                    table.put_u8(b'S');
                    put_long(&mut table, text.as_bytes());
                }
            }
        }
        put_long(&mut declare, &table);
        self.ask(&declare, QUEUE_DECLARE_OK).await;
    }

    /// Binds a queue to an exchange.
    pub async fn bind(&mut self, queue: &str, exchange: &str, routing_key: &str) {
        let mut bind = binding((50, 20), queue, exchange, routing_key);
        bind.put_u8(0);
        bind.put_u32(0);
        self.ask(&bind, QUEUE_BIND_OK).await;
    }

    /// Undoes [`Self::bind`].
    pub async fn unbind(&mut self, queue: &str, exchange: &str, routing_key: &str) {
        let mut unbind = binding((50, 50), queue, exchange, routing_key);
        unbind.put_u32(0);
        self.ask(&unbind, QUEUE_UNBIND_OK).await;
    }

    /// Removes every message from a queue.
    pub async fn purge(&mut self, queue: &str) {
        let mut purge = method((50, 30));
        purge.put_u16(0);
        put_short(&mut purge, queue);
        purge.put_u8(0);
        self.ask(&purge, QUEUE_PURGE_OK).await;
    }

    /// Removes a queue; one that is not there is no error.
    pub async fn delete_queue(&mut self, queue: &str) {
        let mut delete = method((50, 40));
        delete.put_u16(0);
        put_short(&mut delete, queue);
        delete.put_u8(0);
        self.ask(&delete, QUEUE_DELETE_OK).await;
    }

    /// Every message of a queue, in order. They stay there.
    pub async fn messages(&mut self, queue: &str) -> Vec<RabbitMessage> {
        let mut messages = Vec::new();
        let mut get = method((60, 70));
        get.put_u16(0);
        put_short(&mut get, queue);
        get.put_u8(0);
        self.within_limit(&format!("read {queue}"), async |wire| {
            loop {
                match wire.get(&get).await? {
                    Got::Message(message) => messages.push(*message),
                    Got::Nothing => return Ok(()),
                    // For a moment after a restart the server takes clients and has not found its queues yet.
                    Got::Closed => {
                        messages.clear();
                        wire.send(CHANNEL, &method(CHANNEL_CLOSE_OK)).await?;
                        tokio::time::sleep(RETRY_INTERVAL).await;
                        wire.open_channel().await?;
                    }
                }
            }
        })
        .await;
        // A channel that is closed gives back all that it was given, before it says that it is closed.
        self.within_limit(&format!("give back {queue}"), Self::renew_channel).await;
        messages
    }

    /// The next message of the queue in `get`.
    async fn get(&mut self, get: &[u8]) -> io::Result<Got> {
        self.send(CHANNEL, get).await?;
        let (found, mut fields) = self.method().await?;
        match found {
            BASIC_GET_OK => {}
            BASIC_GET_EMPTY => return Ok(Got::Nothing),
            CHANNEL_CLOSE => return Ok(Got::Closed),
            other => panic!("basic.get is answered with {other:?}"),
        }
        fields.advance(8 + 1);
        let (exchange, routing_key) = (take_short(&mut fields), take_short(&mut fields));
        let mut header = self.frame().await?;
        assert_eq!(header.kind, 2, "a content header comes before the body");
        header.payload.advance(2 + 2);
        let length = header.payload.get_u64();
        let mut message = RabbitMessage { exchange, routing_key, ..properties(header.payload) };
        let mut body = BytesMut::new();
        while (body.len() as u64) < length {
            body.extend_from_slice(&self.frame().await?.payload);
        }
        message.body = body.freeze();
        Ok(Got::Message(Box::new(message)))
    }

    /// Closes the channel and opens it again.
    async fn renew_channel(&mut self) -> io::Result<()> {
        let mut close = method(CHANNEL_CLOSE);
        close.put_u16(200);
        put_short(&mut close, "");
        close.put_u32(0);
        self.send(CHANNEL, &close).await?;
        self.receive(CHANNEL_CLOSE_OK).await?;
        self.open_channel().await
    }

    async fn open_channel(&mut self) -> io::Result<()> {
        let mut open = method((20, 10));
        put_short(&mut open, "");
        self.send(CHANNEL, &open).await?;
        self.receive(CHANNEL_OPEN_OK).await?;
        Ok(())
    }

    /// Sends a method that is answered with `expected`.
    async fn ask(&mut self, request: &[u8], expected: Method) {
        let asking = async |wire: &mut Self| {
            wire.send(CHANNEL, request).await?;
            wire.receive(expected).await.map(drop)
        };
        self.within_limit(&format!("wait for {expected:?}"), asking).await;
    }

    async fn within_limit<T>(&mut self, what: &str, doing: impl AsyncFnOnce(&mut Self) -> io::Result<T>) -> T {
        within_limit(what, doing(self)).await
    }

    async fn send(&mut self, channel: u16, method: &[u8]) -> io::Result<()> {
        let mut frame = BytesMut::with_capacity(method.len() + 8);
        frame.put_u8(1);
        frame.put_u16(channel);
        put_long(&mut frame, method);
        frame.put_u8(FRAME_END);
        self.stream.write_all(&frame).await
    }

    /// The fields of the next method, which must be `expected`.
    async fn receive(&mut self, expected: Method) -> io::Result<Bytes> {
        let (found, mut fields) = self.method().await?;
        if matches!(found, CONNECTION_CLOSE | CHANNEL_CLOSE) {
            let (code, text) = (fields.get_u16(), take_short(&mut fields));
            return Err(io::Error::other(format!("the broker says {code}: {text}")));
        }
        assert_eq!(found, expected, "the broker answers with another method");
        Ok(fields)
    }

    async fn method(&mut self) -> io::Result<(Method, Bytes)> {
        loop {
            let mut frame = self.frame().await?;
            assert_eq!(frame.kind, 1, "a method was due");
            let found = (frame.payload.get_u16(), frame.payload.get_u16());
            if !matches!(found, CONNECTION_BLOCKED | CONNECTION_UNBLOCKED) {
                return Ok((found, frame.payload));
            }
        }
    }

    async fn frame(&mut self) -> io::Result<Frame> {
        let mut head = [0; 7];
        self.stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let mut payload = vec![0; length as usize + 1];
        self.stream.read_exact(&mut payload).await?;
        assert_eq!(payload.pop(), Some(FRAME_END), "a frame has its end");
        Ok(Frame { kind: head[0], payload: payload.into() })
    }
}

async fn within_limit<T>(what: &str, doing: impl Future<Output = io::Result<T>>) -> T {
    match tokio::time::timeout(REPLY_LIMIT, doing).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => panic!("{what}: {error}"),
        Err(_) => panic!("{what}: no answer in {REPLY_LIMIT:?}"),
    }
}

fn method((class, method): Method) -> BytesMut {
    let mut bytes = BytesMut::new();
    bytes.put_u16(class);
    bytes.put_u16(method);
    bytes
}

fn binding(what: Method, queue: &str, exchange: &str, routing_key: &str) -> BytesMut {
    let mut bytes = method(what);
    bytes.put_u16(0);
    for text in [queue, exchange, routing_key] {
        put_short(&mut bytes, text);
    }
    bytes
}

fn put_short(bytes: &mut BytesMut, text: &str) {
    bytes.put_u8(text.len().try_into().expect("a short text has at most 255 bytes"));
    bytes.extend_from_slice(text.as_bytes());
}

fn put_long(bytes: &mut BytesMut, value: &[u8]) {
    bytes.put_u32(value.len().try_into().expect("nothing here is that long"));
    bytes.extend_from_slice(value);
}

fn take_short(bytes: &mut Bytes) -> String {
    let length = bytes.get_u8().into();
    text(bytes.split_to(length))
}

fn text(bytes: Bytes) -> String {
    String::from_utf8(bytes.into()).expect("texts are UTF-8")
}

/// The properties behind a content header's length: flags, then those that are there, in the order of the flags.
fn properties(mut bytes: Bytes) -> RabbitMessage {
    let flags = bytes.get_u16();
    let has = |bit: u8| flags & (1 << bit) != 0;
    let mut message = RabbitMessage {
        content_type: has(15).then(|| take_short(&mut bytes)),
        content_encoding: has(14).then(|| take_short(&mut bytes)),
        ..RabbitMessage::default()
    };
    if has(13) {
        let length = bytes.get_u32() as usize;
        message.headers = table(bytes.split_to(length));
    }
    message.delivery_mode = has(12).then(|| bytes.get_u8());
    if has(11) {
        bytes.advance(1);
    }
    for skipped in [10, 9, 8] {
        if has(skipped) {
            take_short(&mut bytes);
        }
    }
    message.message_id = has(7).then(|| take_short(&mut bytes));
    message.timestamp = has(6).then(|| bytes.get_u64());
    for skipped in [5, 4] {
        if has(skipped) {
            take_short(&mut bytes);
        }
    }
    message.app_id = has(3).then(|| take_short(&mut bytes));
    message
}

fn table(mut bytes: Bytes) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    while bytes.has_remaining() {
        let name = take_short(&mut bytes);
        match bytes.get_u8() {
            b'S' => {
                let length = bytes.get_u32() as usize;
                fields.push((name, text(bytes.split_to(length))));
            }
            other => panic!("the header {name} is of type {:?}, no text", char::from(other)),
        }
    }
    fields
}
