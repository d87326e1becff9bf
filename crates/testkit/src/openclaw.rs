//! Requests as OpenClaw's cron jobs really sent them, over five of its releases.
//!
//! They are the ground truth for the `openclaw` preset: header names in their own letter case and order, bodies byte for
//! byte. The files in `fixtures/openclaw/` are raw HTTP/1.1 and can be given to `hookgate explain` as they are.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// One captured request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// The name of the file without its ending: `<release>-<kind>-<number>`.
    pub name: String,
    /// The request line: method, path with query, version.
    pub request_line: String,
    /// Headers in order, names as sent.
    pub headers: Vec<(String, String)>,
    /// The body, byte for byte.
    pub body: Bytes,
}

impl Capture {
    /// The first header of that name, in any letter case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The raw request again, sent to `path` (with its query) on `host` with `token` as its bearer token. All other
    /// headers and the body are as captured.
    pub fn request_to(&self, path: &str, host: &str, token: &str) -> Vec<u8> {
        let mut head = format!("POST {path} HTTP/1.1\r\n");
        for (name, value) in &self.headers {
            let bearer = format!("Bearer {token}");
            let value = match name.to_ascii_lowercase().as_str() {
                "host" => host,
                "authorization" => &bearer,
                _ => value,
            };
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        [head.as_bytes(), &self.body].concat()
    }
}

/// Every capture, ordered by name.
///
/// # Panics
/// When a fixture is missing or is not a whole request.
pub fn captures() -> Vec<Capture> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/openclaw");
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("list {}: {error}", dir.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap_or_else(|error| panic!("list {}: {error}", dir.display())).path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "http"))
        .collect();
    paths.sort();
    paths.iter().map(|path| read_capture(path)).collect()
}

/// The capture of that name.
///
/// # Panics
/// When there is none.
pub fn capture(name: &str) -> Capture {
    let found = captures().into_iter().find(|capture| capture.name == name);
    found.unwrap_or_else(|| panic!("there is no capture {name:?} in fixtures/openclaw"))
}

fn read_capture(path: &Path) -> Capture {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    parse(&name, &bytes).unwrap_or_else(|problem| panic!("{}: {problem}", path.display()))
}

/// Parses a raw request. A body longer or shorter than its `content-length` is a damaged file.
fn parse(name: &str, bytes: &[u8]) -> Result<Capture, String> {
    const HEAD_END: &[u8] = b"\r\n\r\n";
    let head_end = bytes.windows(HEAD_END.len()).position(|window| window == HEAD_END);
    let (head, rest) = bytes.split_at(head_end.ok_or("no empty line after the headers (CRLF is wanted)")?);
    let body = Bytes::copy_from_slice(&rest[HEAD_END.len()..]);
    let head = str::from_utf8(head).map_err(|error| format!("the head is not text: {error}"))?;

    let mut lines = head.split("\r\n");
    let request_line = lines.next().unwrap_or_default().to_owned();
    let headers = lines
        .map(|line| {
            let (name, value) = line.split_once(": ").ok_or_else(|| format!("no header: {line:?}"))?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect::<Result<Vec<_>, String>>()?;
    let capture = Capture { name: name.to_owned(), request_line, headers, body };
    let length = capture.header("content-length").ok_or("no content-length")?;
    if length != capture.body.len().to_string() {
        return Err(format!("content-length is {length}, the body has {} bytes", capture.body.len()));
    }
    Ok(capture)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn every_capture_is_a_whole_post_of_a_json_object() {
        let captures = captures();
        assert_eq!(captures.len(), 32);
        for capture in captures {
            assert!(capture.request_line.starts_with("POST /"), "{}", capture.name);
            assert_eq!(capture.header("content-type"), Some("application/json"), "{}", capture.name);
            let body: Value = serde_json::from_slice(&capture.body).expect("the body is JSON");
            assert!(body.is_object(), "{}", capture.name);
        }
    }

    #[test]
    fn the_captures_span_five_releases() {
        let names: Vec<String> = captures().into_iter().map(|capture| capture.name).collect();
        let releases: BTreeSet<&str> = names.iter().filter_map(|name| name.split('-').next()).collect();
        assert_eq!(releases, BTreeSet::from(["2026.2.17", "2026.3.31", "2026.5.28", "2026.7.35", "2026.9.6"]));
    }

    #[test]
    fn no_capture_holds_a_token() {
        for capture in captures() {
            assert_eq!(capture.header("authorization"), Some("Bearer <token:18-bytes>"), "{}", capture.name);
            if let Some((_, query)) = capture.request_line.split_once("?token=") {
                assert_eq!(query, "QUERYTOKEN HTTP/1.1", "{}", capture.name);
            }
        }
    }

    #[test]
    fn a_request_is_the_capture_save_for_path_host_and_token() {
        let capture = capture("2026.2.17-finished-ok-1");
        let request = capture.request_to("/openclaw/webhook?x=1", "relay.test", "s3cret");
        let again = parse(&capture.name, &request).expect("it is a whole request still");

        assert_eq!(again.request_line, "POST /openclaw/webhook?x=1 HTTP/1.1");
        assert_eq!(again.body, capture.body);
        let changed: Vec<_> = again.headers.iter().filter(|header| !capture.headers.contains(header)).collect();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(changed, [&pair("host", "relay.test"), &pair("Authorization", "Bearer s3cret")]);
        let names = |capture: &Capture| capture.headers.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&again), names(&capture));
    }

    #[test]
    fn a_damaged_file_is_noticed() {
        let good = capture("2026.9.6-failure-alert-1").request_to("/", "h", "t");
        let with_newline = [good.as_slice(), b"\n"].concat();
        assert_eq!(parse("x", &with_newline), Err("content-length is 198, the body has 199 bytes".to_owned()));
        let unix_lines = String::from_utf8(good).expect("text").replace("\r\n", "\n");
        assert!(parse("x", unix_lines.as_bytes()).is_err());
    }
}
