//! Every provider against the running program: signed requests with verdicts, handshakes, and floods of forgeries.
//!
//! The requests were signed at one time each, so the program's clock is set to it, from outside and request by request: the
//! program is the shipped one.

use std::{collections::BTreeMap, path::Path};

use hookgate_testkit::http::Response;
use serde_json::{Value, json};

use crate::relay::{Relay, run_to_end};

const BATCH: usize = 150;

/// Takes the library that stands between a process and its clock, where it is installed.
fn clock_library() -> Option<String> {
    let named = std::env::var("HOOKGATE_TEST_FAKETIME").ok();
    let installed =
        ["x86_64", "aarch64"].map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1"));
    named.into_iter().chain(installed).find(|path| Path::new(path).exists())
}

/// A relay whose wall clock stands where a file says.
struct Clocked {
    relay: Relay,
    now: u64,
}

impl Clocked {
    async fn start(config: &Value, library: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let clock = dir.path().join("clock");
        set_clock(&clock, 1_795_000_000);
        let clock = clock.display().to_string();
        let environment = [
            ("LD_PRELOAD", library),
            ("TZ", "UTC"),
            ("FAKETIME_TIMESTAMP_FILE", &clock),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            // A batch has far more sources than a config of this world.
            ("HOOKGATE_LOG__LEVEL", "error,hookgate::run=info"),
        ];
        let tables = toml::to_string(config).expect("a config is TOML");
        Self { relay: Relay::start_in(dir, &tables, &environment).await, now: 1_795_000_000 }
    }

    async fn send(&mut self, now: u64, request: &[u8]) -> Response {
        if now != self.now {
            set_clock(&self.relay.dir().join("clock"), now);
            self.now = now;
        }
        self.relay.send(request).await
    }
}

/// The file is replaced as a whole: the process must not read half of it.
fn set_clock(file: &Path, now: u64) {
    let time =
        humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + std::time::Duration::from_secs(now)).to_string();
    let new = file.with_extension("new");
    std::fs::write(&new, time.replace(['T', 'Z'], " ").trim_end()).expect("writable");
    std::fs::rename(&new, file).expect("renamed");
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("one case a line")).collect()
}

/// What each case is called among the sources.
fn name(place: usize) -> String {
    format!("case-{place}")
}

/// The source that a case needs, at a path of its own.
fn source(place: usize, case: &Value) -> Value {
    let (provider, params) = (case["provider"].as_str().expect("a name"), &case["params"]);
    let target = case["path"].as_str().expect("a target");
    let path = format!("/{}{}", name(place), target.split('?').next().expect("a path"));
    let secrets = case["secrets"].clone();
    let tolerance = match case["tolerance_s"].as_u64() {
        None | Some(0) => "off".to_owned(),
        Some(seconds) => format!("{seconds}s"),
    };
    let mut scheme = match case["scheme"].as_str().expect("a scheme") {
        "hmac" => json!({ "scheme": "hmac", "secrets": secrets }),
        "ed25519" => json!({ "scheme": "ed25519", "secrets": secrets }),
        "ecdsa-p256" => json!({ "scheme": "ecdsa-p256", "secrets": secrets }),
        "bearer" => json!({ "scheme": "bearer", "secrets": secrets }),
        "basic" => json!({ "scheme": "basic", "secrets": secrets }),
        "header-token" => json!({ "scheme": "header", "header": params["header"], "secrets": secrets }),
        "query-token" => json!({ "scheme": "query", "param": params["param"], "secrets": secrets }),
        "hmac-url-form" => json!({ "scheme": "twilio", "secrets": secrets }),
        "hmac-json-field" if provider == "mailgun" => json!({ "scheme": "mailgun", "secrets": secrets }),
        "hmac-json-field" => json!({ "scheme": "adyen-item", "secrets": secrets }),
        "jwt-hs256-qsh" => {
            let base_path = format!("/{}", name(place));
            json!({ "scheme": "atlassian", "base_path": base_path, "leeway": "0s", "secrets": secrets })
        }
        "sns-rsa" => {
            let any = json!(["*"]);
            let topics = if params["topic_arns"].is_array() { &params["topic_arns"] } else { &any };
            json!({ "scheme": "aws-sns", "topics": topics, "certificates": params["certs"], "confirm": false })
        }
        "jwt-rs256" => {
            let keys = json!({ "inline": params["jwks"].to_string() });
            let mut scheme = json!({
                "scheme": "jwt", "keys": keys, "issuers": params["issuers"], "audiences": params["audiences"], "leeway": "0s",
            });
            for (key, param) in [("email", "email"), ("client_id", "appid")] {
                if params[param].is_string() {
                    scheme[key] = params[param].clone();
                }
            }
            scheme
        }
        other => panic!("no scheme {other}"),
    };
    if params["url"].is_string() {
        scheme["url"] = params["url"].clone();
    }
    let timed = ["slack", "zoom", "stripe", "calendly", "mux", "workos", "paddle", "linear", "hubspot-v3"];
    let timed_keys = ["standard-webhooks", "standard-webhooks-v1a", "openai", "svix", "discord", "sendgrid", "mailgun"];
    if timed.contains(&provider) || timed_keys.contains(&provider) {
        scheme["tolerance"] = tolerance.into();
    }
    json!({ "path": path, "preset": provider, "verify": [scheme] })
}

/// A config with these sources, whose events are let go of.
fn config(sources: &BTreeMap<String, Value>) -> Value {
    json!({
        "sources": sources, "unrouted": { "action": "drop" }, "sinks": { "events": { "type": "file", "dir": "events" } },
    })
}

/// The request of a case, byte for byte, sent to the path that its source has here. `None` where it has no HTTP form.
fn request(prefix: &str, case: &Value) -> Option<Vec<u8>> {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.decode(case["body_base64"].as_str().expect("text"));
    let body = body.expect("base64");
    let (method, target) = (case["method"].as_str().expect("a method"), case["path"].as_str().expect("a target"));
    let mut raw = format!("{method} {prefix}{target} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
    for pair in case["headers"].as_array().expect("a list") {
        let (name, value) = (pair[0].as_str().expect("text"), pair[1].as_str().expect("text"));
        if value.contains(['\r', '\n', '\0']) {
            return None;
        }
        raw.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    raw.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
    raw.extend_from_slice(&body);
    Some(raw)
}

/// Whether the program let the sender in. What it then thought of the event is another matter.
fn accepts(response: &Response) -> bool {
    match response.status {
        200..=299 => true,
        400 => serde_json::from_str::<Value>(response.text()).is_ok_and(|body| body["code"] == "malformed-event"),
        _ => false,
    }
}

/// A case and its place among all.
type Placed = (usize, Value);

/// Cases whose secrets the program refuses to start with, and all others.
fn by_config(cases: Vec<Placed>) -> (Vec<Placed>, Vec<Placed>) {
    let sources = cases.iter().map(|(place, case)| (name(*place), source(*place, case))).collect();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let text = toml::to_string(&config(&sources)).expect("a config is TOML");
    std::fs::write(dir.path().join("relay.toml"), text).expect("writable");
    let checked = run_to_end(dir.path(), &["check", "--json"], &[]);
    let found: Value = serde_json::from_slice(&checked.stdout).expect("JSON");
    let refused: Vec<&str> = found
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|problem| problem["key"].as_str()?.split('.').nth(1))
        .collect();
    cases.into_iter().partition(|(place, _)| refused.contains(&name(*place).as_str()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_program_gives_every_signed_request_its_verdict() {
    let Some(library) = clock_library() else {
        eprintln!("SKIPPED: libfaketime is not installed, so requests that were signed at another time are not sent");
        return;
    };
    let cases: Vec<Placed> =
        lines(include_str!("../../crates/testkit/fixtures/vectors/signed.jsonl")).into_iter().enumerate().collect();
    let (refused_at_start, cases) = by_config(cases);
    let let_in: Vec<&Value> =
        refused_at_start.iter().map(|(_, case)| case).filter(|case| case["expect"] == "accept").collect();
    assert_eq!(let_in, Vec::<&Value>::new(), "these secrets are good");
    assert!(refused_at_start.len() > 50, "{}", refused_at_start.len());
    let (mut wrong, mut sent) = (Vec::new(), 0);
    for batch in cases.chunks(BATCH) {
        let sources = batch.iter().map(|(place, case)| (name(*place), source(*place, case))).collect();
        let mut relay = Clocked::start(&config(&sources), &library).await;
        for (place, case) in batch {
            let Some(request) = request(&format!("/{}", name(*place)), case) else { continue };
            let response = relay.send(case["now_unix"].as_u64().expect("a time"), &request).await;
            sent += 1;
            let differs = accepts(&response) != (case["expect"] == "accept");
            // Two recommendations are not followed: see the same test of the library.
            let is_known = matches!(
                (case["provider"].as_str(), case["variant"].as_str()),
                (Some("discord"), Some("upper-case hex signature")) | (Some("query-token"), Some("plus as blank"))
            );
            if differs && !is_known {
                wrong.push(format!("{} ({}) got {}: {}", case["id"], case["why"], response.status, response.text()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(sent > 2300, "{sent}");
}

/// The source that a handshake needs.
fn handshake_source(case: &Value) -> Value {
    let (provider, params) = (case["provider"].as_str().expect("a name"), &case["params"]);
    let target = case["path"].as_str().expect("a target");
    let path = target.split('?').next().expect("a path");
    let given = case["secrets"].as_array().expect("a list");
    // Where the case has no secret, its answer needs none, and the source has one all the same.
    let secrets = if given.is_empty() { json!(["a secret of this test"]) } else { case["secrets"].clone() };
    let mut source = json!({ "path": path, "preset": provider, "secrets": secrets });
    if provider == "aws-sns" {
        source = json!({ "path": path, "preset": provider, "verify": [{ "scheme": "aws-sns", "topics": ["arn:aws:sns:x"] }] });
    }
    if params["verify_token"].is_string() {
        source["challenge_secrets"] = json!([params["verify_token"]]);
    }
    if params["allowed_origins"].is_array() {
        source["webhook_origins"] = params["allowed_origins"].clone();
    }
    if params["allowed_rate"].is_string() {
        source["webhook_rate"] = params["allowed_rate"].clone();
    }
    source
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_program_answers_every_handshake_and_publishes_none() {
    let Some(library) = clock_library() else {
        eprintln!("SKIPPED: libfaketime is not installed, so handshakes that were signed at another time are not sent");
        return;
    };
    for case in lines(include_str!("../../crates/testkit/fixtures/vectors/handshakes.jsonl")) {
        let sources = BTreeMap::from([("one".to_owned(), handshake_source(&case))]);
        let config = json!({
            "sources": sources, "sinks": { "events": { "type": "file", "dir": "events" } },
            "routes": [{ "to": [{ "sink": "events" }] }],
        });
        let mut relay = Clocked::start(&config, &library).await;
        let request = request("", &case).expect("an HTTP form");
        let response = relay.send(case["now_unix"].as_u64().expect("a time"), &request).await;
        let (id, expected) = (&case["id"], &case["response"]);
        if case["provider"] == "aws-sns" {
            // The body is empty here: nothing is signed, and nothing must be confirmed.
            assert_eq!(response.status, 401, "{id}");
            continue;
        }
        assert_eq!(response.status, expected["status"], "{id}: {}", response.text());
        for (header, value) in expected["headers"].as_object().into_iter().flatten() {
            assert_eq!(response.header(header), value.as_str(), "{id}: {header}");
        }
        if expected["body"].is_string() {
            assert_eq!(Some(response.text()), expected["body"].as_str(), "{id}");
            assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{id}: an echo is no page");
        }
        if expected["body_json"].is_object() {
            assert_eq!(response.json(), expected["body_json"], "{id}");
        }
        assert_eq!(relay.relay.stored(), Vec::<Value>::new(), "{id}: it is no event");
        assert_eq!(relay.relay.metrics().await[r#"hookgate_events_received_total{source="one"}"#], 0.0, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_forgeries_leaves_nothing_behind() {
    const FLOOD: usize = 2000;
    let source = json!({ "path": "/github", "preset": "github", "secrets": ["the secret of this test"] });
    let config = json!({
        "sources": { "github": source }, "sinks": { "events": { "type": "file", "dir": "events" } },
        "routes": [{ "to": [{ "sink": "events" }] }],
    });
    let relay = Relay::start(&toml::to_string(&config).expect("TOML")).await;
    relay.wait_until_ready().await;
    let before = relay.metrics().await;
    let forge = async |number: usize| {
        let (delivery, signature) = (format!("forged-{number}"), format!("sha256={:064x}", number));
        let headers = [("x-github-delivery", delivery.as_str()), ("x-hub-signature-256", signature.as_str())];
        let request = hookgate_testkit::http::request("POST", "/github", &headers, b"{\"forged\":true}");
        relay.send(&request).await.status
    };
    for chunk in 0..FLOOD / 50 {
        let all = (0..50).map(|place| forge(chunk * 50 + place));
        assert!(futures_util::future::join_all(all).await.iter().all(|status| *status == 401));
    }
    let after = relay.metrics().await;
    let untouched = ["hookgate_dedup_entries", "hookgate_dedup_checks_total", "hookgate_events_", "hookgate_publish_"];
    for (series, value) in after.iter().filter(|(series, _)| untouched.iter().any(|name| series.starts_with(name))) {
        assert_eq!(Some(value), before.get(series), "{series}");
    }
    let refused = r#"hookgate_http_rejections_total{source="github",reason="signature_mismatch"}"#;
    assert_eq!(after[refused], FLOOD as f64);
    assert_eq!(relay.stored(), Vec::<Value>::new());
    let warnings = relay.log().lines().filter(|line| line.contains("a request was refused")).count();
    assert!((1..=3).contains(&warnings), "the log is not flooded: {warnings} lines");
    // An id that forgers used is the sender's own still.
    let dir = relay.dir().display().to_string();
    let sent = run_to_end(relay.dir(), &["send", "github", "--id", "forged-7", "--json"], &[]);
    assert!(
        sent.status.success(),
        "{dir}: {}{}",
        String::from_utf8_lossy(&sent.stdout),
        String::from_utf8_lossy(&sent.stderr)
    );
    let stored = relay.stored();
    assert_eq!((stored.len(), &stored[0]["id"]), (1, &json!("header:x-github-delivery=forged-7")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_is_no_handshake_is_told_which_are() {
    let source = json!({ "path": "/meta", "preset": "meta", "secrets": ["the secret of this test"] });
    let relay =
        Relay::start(&toml::to_string(&config(&BTreeMap::from([("one".to_owned(), source)]))).expect("TOML")).await;
    let answer = relay.send(&hookgate_testkit::http::request("PUT", "/meta", &[], b"")).await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, POST")));
    assert!(relay.log().contains("challenge_secrets is empty"), "{}", relay.log());
}
