//! Redis over a plain socket, in its own protocol.
//!
//! Tests that ask "what is in Redis now?" must not ask the library that wrote it. So this file knows nothing but RESP2:
//! an array of texts goes out, one value comes back. Source: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use std::{collections::BTreeMap, fmt, io, path::Path, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpStream, UnixStream},
};

/// Longest wait for any single answer.
const REPLY_LIMIT: Duration = Duration::from_secs(10);

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisValue {
    /// A status, like `OK`.
    Simple(String),
    /// An error, its code first.
    Error(String),
    /// A whole number.
    Integer(i64),
    /// A text, or any bytes.
    Text(Vec<u8>),
    /// Several values.
    List(Vec<RedisValue>),
    /// Nothing.
    Nil,
}

/// The two halves of any socket.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// A connection. Every method panics when it breaks, or gives no answer within 10 s.
pub struct RedisWire {
    stream: BufReader<Box<dyn Socket>>,
}

impl fmt::Debug for RedisWire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisWire").finish_non_exhaustive()
    }
}

impl RedisWire {
    /// Connects to a Unix socket.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn unix(path: &Path) -> io::Result<Self> {
        let stream: Box<dyn Socket> = Box::new(UnixStream::connect(path).await?);
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Connects to a loopback port.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn tcp(port: u16) -> io::Result<Self> {
        let stream: Box<dyn Socket> = Box::new(TcpStream::connect(("127.0.0.1", port)).await?);
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a command and returns its answer, an error of the server included.
    pub async fn command(&mut self, parts: &[&str]) -> RedisValue {
        self.try_command(parts).await.unwrap_or_else(|error| panic!("{parts:?}: {error}"))
    }

    /// The same where the connection may break.
    pub(crate) async fn try_command(&mut self, parts: &[&str]) -> io::Result<RedisValue> {
        let mut request = format!("*{}\r\n", parts.len());
        for part in parts {
            request.push_str(&format!("${}\r\n{part}\r\n", part.len()));
        }
        let answering = async {
            self.stream.write_all(request.as_bytes()).await?;
            read(&mut self.stream).await
        };
        tokio::time::timeout(REPLY_LIMIT, answering).await?
    }

    /// A command that must not fail.
    pub async fn done(&mut self, parts: &[&str]) -> RedisValue {
        match self.command(parts).await {
            RedisValue::Error(error) => panic!("{parts:?}: {error}"),
            value => value,
        }
    }

    /// The text that a command answers with, if any.
    pub async fn text(&mut self, parts: &[&str]) -> Option<String> {
        match self.done(parts).await {
            RedisValue::Nil => None,
            RedisValue::Text(text) => Some(String::from_utf8_lossy(&text).into_owned()),
            RedisValue::Simple(text) => Some(text),
            other => panic!("{parts:?} is answered with {other:?}, no text"),
        }
    }

    /// The number that a command answers with.
    pub async fn integer(&mut self, parts: &[&str]) -> i64 {
        match self.done(parts).await {
            RedisValue::Integer(number) => number,
            other => panic!("{parts:?} is answered with {other:?}, no number"),
        }
    }

    /// Every key, sorted.
    pub async fn keys(&mut self) -> Vec<String> {
        let RedisValue::List(keys) = self.done(&["KEYS", "*"]).await else { panic!("KEYS gives a list") };
        let mut keys: Vec<String> = keys
            .into_iter()
            .map(|key| match key {
                RedisValue::Text(text) => String::from_utf8_lossy(&text).into_owned(),
                other => panic!("{other:?} is no key"),
            })
            .collect();
        keys.sort();
        keys
    }

    /// How often each command was called so far, by anybody, by its name in lower case.
    pub async fn calls(&mut self) -> BTreeMap<String, u64> {
        let info = self.text(&["INFO", "commandstats"]).await.expect("INFO gives a text");
        let call = |line: &str| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
        };
        info.lines().filter_map(call).collect()
    }
}

fn read(stream: &mut BufReader<Box<dyn Socket>>) -> BoxFuture<'_, io::Result<RedisValue>> {
    Box::pin(async move {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, format!("{line:?} is no RESP"));
        let text = line.strip_suffix("\r\n").ok_or_else(invalid)?;
        let number = |text: &str| text.parse::<i64>().map_err(|_| invalid());
        let (kind, rest) = text.split_at_checked(1).ok_or_else(invalid)?;
        Ok(match kind {
            "+" => RedisValue::Simple(rest.to_owned()),
            "-" => RedisValue::Error(rest.to_owned()),
            ":" => RedisValue::Integer(number(rest)?),
            "$" | "*" if rest == "-1" => RedisValue::Nil,
            "$" => {
                let length = usize::try_from(number(rest)?).map_err(|_| invalid())?;
                let mut bytes = vec![0; length + 2];
                stream.read_exact(&mut bytes).await?;
                bytes.truncate(length);
                RedisValue::Text(bytes)
            }
            "*" => {
                let mut list = Vec::new();
                for _ in 0..number(rest)? {
                    list.push(read(stream).await?);
                }
                RedisValue::List(list)
            }
            _ => return Err(invalid()),
        })
    })
}
