//! The events that are sent: GitHub's form, all different, all signed, and cheap to make.
//!
//! Whatever differs between two events stands at the end of the body, and the hash of what comes before is kept: signing one of
//! a megabyte costs as little as signing one of a hundred bytes.

use std::num::NonZeroU64;

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What the shortest body takes, its number included.
pub(crate) const BODY_BYTES_MIN: usize = 256;

const SIGNATURE_DIGITS: usize = 64;
const NUMBER_DIGITS: usize = 12;

/// A prime, so that each of any smaller number of events gets its turn.
const STRIDE: u64 = 2_654_435_647;

/// What is right or wrong about the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Each has an id, a body and a signature of its own.
    New,
    /// All are the same event.
    Duplicate,
    /// Each has an id and a body of its own, and a signature that is wrong in one digit.
    Unsigned,
}

/// Makes whole requests.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    kind: Kind,
    run: u32,
    /// If set, all are among the first so many.
    among: Option<NonZeroU64>,
    /// A request whose id, signature and number are still to be filled in.
    template: Vec<u8>,
    id_at: usize,
    signature_at: usize,
    number_at: usize,
    /// The HMAC of all of the body that stands before the number.
    begun: Hmac<Sha256>,
}

impl Events {
    /// Events for `path` of `host`, with bodies of `body_bytes` (at least [`BODY_BYTES_MIN`]). `run` stands in every id.
    pub(crate) fn new(kind: Kind, host: &str, path: &str, secret: &[u8], body_bytes: usize, run: u32) -> Self {
        let body = body(body_bytes);
        let (id, signature) = (text_of(run, 0), "0".repeat(SIGNATURE_DIGITS));
        let length = body.len();
        // What GitHub sends, with its own names and in its own order.
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: GitHub-Hookshot/bench\r\nContent-Length: {length}\r\n\
             Accept: */*\r\nContent-Type: application/json\r\nX-GitHub-Delivery: {id}\r\nX-GitHub-Event: issues\r\n\
             X-GitHub-Hook-ID: 1\r\nX-GitHub-Hook-Installation-Target-Type: repository\r\n\
             X-Hub-Signature-256: sha256={signature}\r\n\r\n"
        );
        let place = |text: &str| head.find(text).expect("the head has it");
        let (id_at, signature_at) = (place(&id), place(&signature));
        let begun = Hmac::new_from_slice(secret).expect("HMAC takes keys of any length");
        let number_in_body = body.len() - NUMBER_DIGITS - END.len();
        let begun = begun.chain_update(&body[..number_in_body]);
        let number_at = head.len() + number_in_body;
        Self {
            kind,
            run,
            among: None,
            template: [head.as_bytes(), &body].concat(),
            id_at,
            signature_at,
            number_at,
            begun,
        }
    }

    /// The same events, of which only the first `count` are sent, again and again, those that follow each other far apart.
    #[must_use]
    pub(crate) fn among(&self, count: u64) -> Self {
        Self { among: NonZeroU64::new(count), ..self.clone() }
    }

    /// Puts the request with this number in the place of what `request` holds.
    pub(crate) fn write(&self, number: u64, request: &mut Vec<u8>) {
        let number = match (self.kind, self.among) {
            (Kind::New | Kind::Unsigned, None) => number,
            (Kind::New | Kind::Unsigned, Some(count)) => number.wrapping_mul(STRIDE) % count,
            (Kind::Duplicate, _) => 0,
        };
        request.clear();
        request.extend_from_slice(&self.template);
        let id = text_of(self.run, number);
        request[self.id_at..][..id.len()].copy_from_slice(id.as_bytes());
        request[self.number_at..][..NUMBER_DIGITS].copy_from_slice(&id.as_bytes()[id.len() - NUMBER_DIGITS..]);
        let whole = self.begun.clone().chain_update(&request[self.number_at..]);
        let mut signature = [0; SIGNATURE_DIGITS];
        HEXLOWER.encode_mut(&whole.finalize().into_bytes(), &mut signature);
        if self.kind == Kind::Unsigned {
            signature[SIGNATURE_DIGITS - 1] = if signature[SIGNATURE_DIGITS - 1] == b'0' { b'1' } else { b'0' };
        }
        request[self.signature_at..][..SIGNATURE_DIGITS].copy_from_slice(&signature);
    }

    /// The number of the event that `text` ends with the id of, if it is of this run. Systems put words of theirs before it.
    pub(crate) fn number_of(&self, text: &str) -> Option<u64> {
        let digits = text.rsplit_once('-')?.1;
        let number = u64::from_str_radix(digits, 16).ok()?;
        text.ends_with(&text_of(self.run, number)).then_some(number)
    }
}

/// An id in the form of GitHub's.
fn text_of(run: u32, number: u64) -> String {
    format!("{run:08x}-0000-4000-8000-{number:012x}")
}

const END: &[u8] = b"\"}";

/// A body of that many bytes, its number zero: many short fields, as GitHub's have, not one long text that a parser flies over.
fn body(bytes: usize) -> Vec<u8> {
    let mut body =
        br#"{"action":"opened","repository":{"id":7,"full_name":"hookgate/bench"},"sender":{"login":"bench"}"#.to_vec();
    body.extend_from_slice(br#","issue":{"number":17,"state":"open","title":"what does it cost?"}"#);
    let number = format!("\"number\":\"{:0NUMBER_DIGITS$}\"}}", 0);
    for place in 0.. {
        let field = format!(",\"url_{place}\":\"https://api.github.com/repos/hookgate/bench/{place}\"");
        // Room has to be left for the smallest filler.
        if body.len() + field.len() + ",\"fill\":\"\",".len() + number.len() > bytes {
            break;
        }
        body.extend_from_slice(field.as_bytes());
    }
    let missing = bytes.saturating_sub(body.len() + ",\"fill\":\"\",".len() + number.len());
    body.extend_from_slice(format!(",\"fill\":\"{}\",{number}", "x".repeat(missing)).as_bytes());
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"It's a Secret to Everybody";

    fn events(kind: Kind) -> Events {
        Events::new(kind, "localhost", "/github", SECRET, 1024, 7)
    }

    fn request(events: &Events, number: u64) -> String {
        let mut request = Vec::new();
        events.write(number, &mut request);
        String::from_utf8(request).expect("a request is text")
    }

    fn header<'a>(request: &'a str, name: &str) -> &'a str {
        let line = request.lines().find_map(|line| line.strip_prefix(name)).expect("it is there");
        line.trim_start_matches([':', ' '])
    }

    fn body_of(request: &str) -> &str {
        request.split_once("\r\n\r\n").expect("a body").1
    }

    /// Without any shortcut.
    fn signature_of(body: &[u8]) -> String {
        let mac = Hmac::<Sha256>::new_from_slice(SECRET).expect("any length").chain_update(body);
        format!("sha256={}", HEXLOWER.encode(&mac.finalize().into_bytes()))
    }

    /// Source: <https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries>, "Testing the webhook payload
    /// validation".
    #[test]
    fn the_signature_is_the_one_that_github_documents() {
        let known = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert_eq!(signature_of(b"Hello, World!"), known);
    }

    #[test]
    fn a_signature_from_a_kept_hash_is_that_of_the_whole_body() {
        let events = events(Kind::New);
        for number in [0, 1, 0xabc_def, u64::from(u32::MAX)] {
            let request = request(&events, number);
            assert_eq!(header(&request, "X-Hub-Signature-256"), signature_of(body_of(&request).as_bytes()));
        }
    }

    #[test]
    fn a_wrong_signature_is_wrong_and_has_the_right_form() {
        let request = request(&events(Kind::Unsigned), 5);
        let (sent, right) = (header(&request, "X-Hub-Signature-256"), signature_of(body_of(&request).as_bytes()));
        assert_ne!(sent, right);
        assert_eq!(sent[..sent.len() - 1], right[..right.len() - 1]);
    }

    #[test]
    fn bodies_are_json_of_the_length_that_was_asked_for() {
        for bytes in [BODY_BYTES_MIN, 257, 1000, 1024, 65_536] {
            let events = Events::new(Kind::New, "localhost", "/", SECRET, bytes, 1);
            let request = request(&events, 3);
            let body = body_of(&request);
            assert_eq!((body.len(), header(&request, "Content-Length")), (bytes, bytes.to_string().as_str()));
            let value: serde_json::Value = serde_json::from_str(body).expect("JSON");
            assert_eq!(value["number"], "000000000003");
            assert_eq!(value["repository"]["full_name"], "hookgate/bench");
        }
    }

    #[test]
    fn new_events_differ_and_duplicates_do_not() {
        let (new, same) = (events(Kind::New), events(Kind::Duplicate));
        assert_ne!(header(&request(&new, 1), "X-GitHub-Delivery"), header(&request(&new, 2), "X-GitHub-Delivery"));
        assert_ne!(body_of(&request(&new, 1)), body_of(&request(&new, 2)));
        assert_eq!(request(&same, 1), request(&same, 2));
    }

    #[test]
    fn events_among_the_first_are_these_each_as_often_as_the_others() {
        let all = events(Kind::New);
        let first: Vec<String> = (0..10).map(|number| request(&all, number)).collect();
        let mut again: Vec<String> = (0..20).map(|number| request(&all.among(10), number)).collect();
        assert_ne!(again[..10], first, "in another order");
        again.sort();
        assert_eq!(again, first.iter().flat_map(|request| [request.clone(), request.clone()]).collect::<Vec<_>>());
    }

    #[test]
    fn a_number_is_found_in_an_id_of_this_run_only() {
        let events = events(Kind::New);
        let id = header(&request(&events, 0xbeef), "X-GitHub-Delivery").to_owned();
        assert_eq!(events.number_of(&id), Some(0xbeef));
        assert_eq!(events.number_of(&format!("github:{id}")), Some(0xbeef));
        assert_eq!(events.number_of(&id.replacen("00000007", "00000008", 1)), None);
        assert_eq!(events.number_of("none"), None);
    }
}
