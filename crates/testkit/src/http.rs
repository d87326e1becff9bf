//! An HTTP/1.1 client that sends exactly the bytes it is given, right or wrong, whole or in drips.
//!
//! A real client library would repair or refuse the very requests a relay must be tested with. Answers are read by the
//! letter: `Content-Length`, chunked, or until the connection closes.

use std::io::{self, ErrorKind};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, ToSocketAddrs};

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Headers in order, names as sent, repeats kept, outer blanks of the values taken off.
    pub headers: Vec<(String, String)>,
    /// The body without its transfer coding.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of that name, in any letter case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    ///
    /// # Panics
    /// When it is not UTF-8.
    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap_or_else(|error| panic!("the body is not text ({error}): {self:?}"))
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("the body is not JSON ({error}): {self:?}"))
    }

    fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }
}

/// The bytes of a request, with `Host: localhost` and the right `Content-Length` unless `headers` bring their own.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let given = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    if !given("host") {
        head.push_str("Host: localhost\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !given("content-length") && !given("transfer-encoding") {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

/// Sends `bytes` over a connection of their own and reads the final answer, interim ones (1xx) passed over.
///
/// # Errors
/// - `ConnectionRefused`, `ConnectionReset` and the like, from the socket.
/// - `UnexpectedEof`: closed without an answer, or in the midst of it.
/// - `InvalidData`: what came is not HTTP/1.1.
/// - `TimedOut`: no whole answer within `limit`, connecting and sending included.
pub async fn send_raw(address: impl ToSocketAddrs, bytes: &[u8], limit: Duration) -> io::Result<Response> {
    within(limit, async { Connection::open(address).await?.exchange(bytes).await }).await
}

/// A connection for several requests, or for one in drips.
#[derive(Debug)]
pub struct Connection {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn open(address: impl ToSocketAddrs) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        // Each drip is to leave at once and by itself.
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        Ok(Connection { read: BufReader::new(read), write })
    }

    /// Sends some bytes and no more: a part of a request, or several requests.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write.write_all(bytes).await
    }

    /// Ends the sending side, while answers can still come.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.write.shutdown().await
    }

    /// Reads the next answer, be it an interim one (1xx). Not for answers to `HEAD`: use `request` for that.
    ///
    /// # Errors
    /// As for [`send_raw`].
    ///
    /// # Cancel safety
    /// Whatever part of an answer came within `limit` is lost when it passes.
    pub async fn receive(&mut self, limit: Duration) -> io::Result<Response> {
        within(limit, read_response(&mut self.read, Body::AsDeclared)).await
    }

    /// Sends a whole request and reads the final answer. An answer that comes before all is sent counts.
    ///
    /// # Errors
    /// As for [`send_raw`].
    pub async fn request(&mut self, bytes: &[u8], limit: Duration) -> io::Result<Response> {
        within(limit, self.exchange(bytes)).await
    }

    /// Everything the server still sends until it closes the connection: empty if it just closes.
    ///
    /// # Errors
    /// Those of the socket, or `TimedOut` when it is still open after `limit`.
    pub async fn rest(&mut self, limit: Duration) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        within(limit, self.read.read_to_end(&mut rest)).await?;
        Ok(rest)
    }

    async fn exchange(&mut self, bytes: &[u8]) -> io::Result<Response> {
        let Connection { read, write } = self;
        let body = if bytes.starts_with(b"HEAD ") { Body::Never } else { Body::AsDeclared };
        let answer = async {
            loop {
                let response = read_response(read, body).await?;
                if !response.is_interim() {
                    return Ok(response);
                }
            }
        };
        let sending = async {
            // A server that answers early (413, say) may stop reading: then its answer counts, not our failure to send.
            let _ = write.write_all(bytes).await;
            std::future::pending().await
        };
        tokio::select! {
            response = answer => response,
            never = sending => never,
        }
    }
}

/// Whether an answer has the body that its headers declare. One to `HEAD` has none, whatever they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    AsDeclared,
    Never,
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(ErrorKind::TimedOut, format!("not done within {limit:?}"))),
    }
}

async fn read_response(read: &mut BufReader<OwnedReadHalf>, body: Body) -> io::Result<Response> {
    let status_line = read_line(read).await?;
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| invalid(format!("status line {status_line:?}")))?;
    let headers = read_headers(read).await?;
    let mut response = Response { status, headers, body: Vec::new() };
    if body == Body::Never || matches!(status, 100..200 | 204 | 304) {
        return Ok(response);
    }
    response.body = match (response.header("transfer-encoding"), response.header("content-length")) {
        (Some("chunked"), None) => read_chunks(read).await?,
        (None, Some(length)) => {
            let length = length.parse().map_err(|_| invalid(format!("Content-Length {length:?}")))?;
            read_exactly(read, length).await?
        }
        (None, None) => {
            let mut body = Vec::new();
            read.read_to_end(&mut body).await?;
            body
        }
        (Some(coding), length) => {
            return Err(invalid(format!("Transfer-Encoding {coding:?} with Content-Length {length:?}")));
        }
    };
    Ok(response)
}

async fn read_headers(read: &mut BufReader<OwnedReadHalf>) -> io::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let line = read_line(read).await?;
        if line.is_empty() {
            return Ok(headers);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid(format!("header line {line:?}")))?;
        headers.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
    }
}

async fn read_chunks(read: &mut BufReader<OwnedReadHalf>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(read).await?;
        let digits = line.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(digits.trim(), 16).map_err(|_| invalid(format!("chunk size {line:?}")))?;
        if size == 0 {
            // Trailers, if any, and the empty line.
            read_headers(read).await?;
            return Ok(body);
        }
        body.extend(read_exactly(read, size).await?);
        let end = read_line(read).await?;
        if !end.is_empty() {
            return Err(invalid(format!("a chunk goes on with {end:?}")));
        }
    }
}

async fn read_exactly(read: &mut BufReader<OwnedReadHalf>, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    read.read_exact(&mut buffer).await?;
    Ok(buffer)
}

async fn read_line(read: &mut BufReader<OwnedReadHalf>) -> io::Result<String> {
    let mut line = Vec::new();
    read.read_until(b'\n', &mut line).await?;
    match line.strip_suffix(b"\r\n") {
        Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
        None if line.is_empty() => Err(io::Error::new(ErrorKind::UnexpectedEof, "closed without an answer")),
        None if line.ends_with(b"\n") => Err(invalid("a line ends without CR".to_owned())),
        None => Err(io::Error::new(ErrorKind::UnexpectedEof, "closed in the midst of an answer")),
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A server for one connection: it reads `request_bytes`, sends `answer`, and closes. It returns what it has read.
    async fn server(request_bytes: usize, answer: &'static str) -> (u16, JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port can be bound");
        let port = listener.local_addr().expect("a bound port is known").port();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client comes");
            let mut request = vec![0; request_bytes];
            stream.read_exact(&mut request).await.expect("the client sends");
            stream.write_all(answer.as_bytes()).await.expect("the client reads");
            request
        });
        (port, serving)
    }

    async fn answered(answer: &'static str) -> io::Result<Response> {
        let bytes = request("GET", "/", &[], b"");
        let (port, _serving) = server(bytes.len(), answer).await;
        send_raw(("127.0.0.1", port), &bytes, LIMIT).await
    }

    #[test]
    fn a_request_carries_host_and_length_unless_told_otherwise() {
        let plain = request("POST", "/in?a=b", &[("X-A", "1")], b"\x00\xff");
        assert_eq!(plain, b"POST /in?a=b HTTP/1.1\r\nHost: localhost\r\nX-A: 1\r\nContent-Length: 2\r\n\r\n\x00\xff");
        let lying = request("POST", "/", &[("host", "h"), ("content-length", "9")], b"x");
        assert_eq!(lying, b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nx");
        let chunked = request("POST", "/", &[("Transfer-Encoding", "chunked")], b"0\r\n\r\n");
        assert!(!String::from_utf8_lossy(&chunked).contains("Content-Length"));
    }

    #[tokio::test]
    async fn a_body_of_known_length_is_read() {
        let response = answered("HTTP/1.1 503 Busy\r\nretry-After:  7 \r\nContent-Length: 2\r\n\r\n{}more").await;
        let response = response.expect("an answer");
        assert_eq!((response.status, response.header("Retry-After"), response.text()), (503, Some("7"), "{}"));
        assert_eq!(response.json(), serde_json::json!({}));
    }

    #[tokio::test]
    async fn a_chunked_body_is_put_together() {
        let answer =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n";
        assert_eq!(answered(answer).await.expect("an answer").text(), "abc0123456789");
    }

    #[tokio::test]
    async fn a_body_without_length_ends_with_the_connection() {
        let answer = "HTTP/1.1 200 OK\r\n\r\nuntil the end";
        assert_eq!(answered(answer).await.expect("an answer").text(), "until the end");
    }

    #[tokio::test]
    async fn an_interim_answer_is_passed_over() {
        let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(answered(answer).await.expect("an answer").status, 204);
    }

    #[tokio::test]
    async fn a_broken_answer_says_how_it_is_broken() {
        for (answer, kind) in [
            ("", ErrorKind::UnexpectedEof),
            ("HTTP/1.1 20", ErrorKind::UnexpectedEof),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", ErrorKind::UnexpectedEof),
            ("SMTP\r\n", ErrorKind::InvalidData),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", ErrorKind::InvalidData),
        ] {
            assert_eq!(answered(answer).await.expect_err("a broken answer").kind(), kind, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn an_early_answer_counts_though_the_request_is_not_all_sent() {
        let (port, _serving) = server(10, "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n").await;
        let bytes = request("POST", "/", &[], &vec![b'x'; 64 * 1024 * 1024]);
        let response = send_raw(("127.0.0.1", port), &bytes, LIMIT).await.expect("an answer");
        assert_eq!(response.status, 413);
    }

    #[tokio::test]
    async fn an_answer_to_head_has_no_body_whatever_its_length() {
        let (port, _serving) = server(5, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await;
        let bytes = request("HEAD", "/", &[], b"");
        let response = send_raw(("127.0.0.1", port), &bytes, LIMIT).await.expect("an answer");
        assert_eq!((response.header("content-length"), response.body.len()), (Some("5"), 0));
    }

    #[tokio::test]
    async fn a_connection_takes_drips_and_several_requests() {
        let answers = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 202 OK\r\nContent-Length: 1\r\n\r\nb";
        let (port, serving) = server(8, answers).await;
        let mut connection = Connection::open(("127.0.0.1", port)).await.expect("the server accepts");
        connection.send(b"GET").await.expect("the server reads");
        connection.send(b" / ").await.expect("the server reads");
        let early = connection.receive(Duration::from_millis(20)).await.expect_err("no answer to half a request");
        assert_eq!(early.kind(), ErrorKind::TimedOut);
        connection.send(b"HT").await.expect("the server reads");
        assert_eq!(serving.await.expect("the server serves"), b"GET / HT");
        assert_eq!(connection.receive(LIMIT).await.expect("the first answer").text(), "a");
        assert_eq!(connection.receive(LIMIT).await.expect("the second answer").text(), "b");
        assert_eq!(connection.rest(LIMIT).await.expect("an end in order"), b"");
    }
}
