//! Where an answer ends, and what its status is: all that the load generator wants to know of it.

/// A whole answer at the beginning of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The status code.
    pub(crate) status: u16,
    /// How many bytes it takes.
    pub(crate) bytes: usize,
    /// Whether the server keeps the connection.
    pub(crate) connection: After,
}

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// It takes further requests.
    Stays,
    /// The server closes it.
    Closes,
}

/// What a buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// A final answer, and perhaps more.
    Answer(Answer),
    /// The beginning of one.
    Part,
    /// The beginning of one that ends with the connection.
    UntilClosed(u16),
    /// Something else.
    NoHttp,
}

const HEADERS_MAX: usize = 64;

/// Looks for the final answer to a request that was not `HEAD`. Interim answers (1xx) before it are counted as part of it.
pub(crate) fn find(buffer: &[u8]) -> Found {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let head_bytes = match head.parse(buffer) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) => return Found::Part,
        Err(_) => return Found::NoHttp,
    };
    let Some(status) = head.code else { return Found::NoHttp };
    let rest = &buffer[head_bytes..];
    if (100..200).contains(&status) {
        return match find(rest) {
            Found::Answer(answer) => Found::Answer(Answer { bytes: head_bytes + answer.bytes, ..answer }),
            other => other,
        };
    }
    let value = |name: &str| {
        let header = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        str::from_utf8(header.value).ok().map(str::trim)
    };
    let closes = value("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let connection = if closes || head.version == Some(0) { After::Closes } else { After::Stays };
    let body_bytes = match (value("transfer-encoding"), value("content-length").map(str::parse::<usize>)) {
        _ if matches!(status, 204 | 304) => Some(0),
        (Some(_), _) => match chunks_end(rest) {
            Ok(end) => end,
            Err(httparse::InvalidChunkSize) => return Found::NoHttp,
        },
        (None, Some(Ok(length))) => (rest.len() >= length).then_some(length),
        (None, Some(Err(_))) => return Found::NoHttp,
        (None, None) => return Found::UntilClosed(status),
    };
    match body_bytes {
        Some(body_bytes) => Found::Answer(Answer { status, bytes: head_bytes + body_bytes, connection }),
        None => Found::Part,
    }
}

/// Where a chunked body ends, if it does. Trailers are none of an answer to a webhook.
fn chunks_end(body: &[u8]) -> Result<Option<usize>, httparse::InvalidChunkSize> {
    let mut at = 0;
    loop {
        let Some(rest) = body.get(at..) else { return Ok(None) };
        let httparse::Status::Complete((line_bytes, size)) = httparse::parse_chunk_size(rest)? else { return Ok(None) };
        let size = usize::try_from(size).map_err(|_| httparse::InvalidChunkSize)?;
        at = at.saturating_add(line_bytes).saturating_add(size).saturating_add("\r\n".len());
        if size == 0 {
            return Ok((at <= body.len()).then_some(at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, bytes: usize, connection: After) -> Found {
        Found::Answer(Answer { status, bytes, connection })
    }

    #[test]
    fn an_answer_ends_where_its_framing_says() {
        use After::{Closes, Stays};
        for (bytes, found) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", answer(200, 40, Stays)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 ", answer(200, 40, Stays)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{", Found::Part),
            ("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", answer(503, 59, Closes)),
            ("HTTP/1.1 204 No Content\r\n\r\n", answer(204, 27, Stays)),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", answer(200, 60, Stays)),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r", Found::Part),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", Found::Part),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n", Found::NoHttp),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", answer(204, 52, Stays)),
            ("HTTP/1.1 100 Continue\r\n\r\n", Found::Part),
            ("HTTP/1.1 200 OK\r\n\r\nuntil", Found::UntilClosed(200)),
            ("HTTP/1.1 200", Found::Part),
            ("SMTP\r\n", Found::NoHttp),
        ] {
            assert_eq!(find(bytes.as_bytes()), found, "{bytes:?}");
        }
    }
}
