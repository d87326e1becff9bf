//! A request as it was on the wire: HTTP/1.1, with or without carriage returns.

use data_encoding::BASE64;
use hookgate_core::explain::Record;

/// Most headers that a request can have, as in the server.
const HEADERS_MAX: usize = 64;

/// Takes `bytes` apart. What follows the announced length is passed over: it is another request.
///
/// # Errors
/// Why they are no whole request.
pub fn parse(bytes: &[u8]) -> Result<Record, String> {
    if bytes.is_empty() {
        return Err("there is nothing in it".to_owned());
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => {
            return Err("the request ends in its headers; the blank line is missing".to_owned());
        }
        Err(error) => return Err(format!("it is neither JSON Lines nor an HTTP/1.1 request: {error}")),
    };
    let (method, target) = (head.method.unwrap_or_default(), head.path.unwrap_or_default());
    let mut pairs = Vec::new();
    for header in head.headers.iter() {
        let value =
            std::str::from_utf8(header.value).map_err(|_| format!("the header {} is not UTF-8", header.name))?;
        pairs.push((header.name.to_owned(), value.to_owned()));
    }
    let body = body(&bytes[length..], &pairs)?;
    // A proxy is asked for the whole URL.
    let path = match target.split_once("://").and_then(|(_, rest)| rest.find('/').map(|slash| &rest[slash..])) {
        Some(path) if !target.starts_with('/') => path,
        _ => target,
    };
    let record = serde_json::json!({
        "method": method, "path": path, "headers": pairs, "body_base64": BASE64.encode(&body),
    });
    serde_json::from_value(record).map_err(|error| error.to_string())
}

fn body(rest: &[u8], headers: &[(String, String)]) -> Result<Vec<u8>, String> {
    let header =
        |name: &str| headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str());
    if header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        return unchunked(rest);
    }
    match header("content-length") {
        None => Ok(rest.to_vec()),
        Some(text) => {
            let length: usize = text.trim().parse().map_err(|_| format!("{text:?} is no Content-Length"))?;
            match rest.get(..length) {
                Some(body) => Ok(body.to_vec()),
                None => {
                    Err(format!("the body is cut short: {length} bytes are announced and {} are there", rest.len()))
                }
            }
        }
    }
}

/// Source: RFC 9112, section 7.1.
fn unchunked(mut rest: &[u8]) -> Result<Vec<u8>, String> {
    const CUT: &str = "the chunked body is cut short";
    let mut body = Vec::new();
    loop {
        let (begin, size) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return Err(CUT.to_owned()),
            Err(_) => return Err("the body is not chunked as its header says".to_owned()),
        };
        if size == 0 {
            return Ok(body);
        }
        let end = usize::try_from(size).ok().and_then(|size| begin.checked_add(size)).ok_or(CUT)?;
        body.extend_from_slice(rest.get(begin..end).ok_or(CUT)?);
        rest = rest[end..].strip_prefix(b"\r\n").ok_or(CUT)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Record {
        parse(text.as_bytes()).expect("a request")
    }

    fn body_of(text: &str) -> Vec<u8> {
        BASE64.decode(parsed(text).body_base64.as_bytes()).expect("base64")
    }

    #[test]
    fn a_capture_is_read_with_any_line_ends_and_framing() {
        for text in [
            "POST /in?a=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi",
            "POST /in?a=1 HTTP/1.1\nHost: x\n\nhi",
            "POST /in?a=1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n",
            "POST http://x/in?a=1 HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi and another request",
        ] {
            assert_eq!(parsed(text).path, "/in?a=1", "{text}");
            assert_eq!(body_of(text), b"hi", "{text}");
        }
    }

    #[test]
    fn what_is_no_whole_request_says_why() {
        for (text, hint) in [
            ("", "there is nothing in it"),
            ("POST /in HTTP/1.1\r\nHost: x\r\n", "blank line is missing"),
            ("hello\r\n\r\n", "neither JSON Lines nor an HTTP/1.1 request"),
            ("POST /in HTTP/1.1\r\nContent-Length: 9\r\n\r\nhi", "9 bytes are announced and 2 are there"),
            ("POST /in HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhi", "cut short"),
        ] {
            let message = parse(text.as_bytes()).expect_err(text);
            assert!(message.contains(hint), "{text}: {message}");
        }
    }
}
