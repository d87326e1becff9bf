//! `explain` and `send`, as an operator uses them.

use std::{
    io::Write,
    path::Path,
    process::{Output, Stdio},
};

use hookgate_testkit::openclaw::captures;
use serde_json::{Value, json};

use crate::relay::{OPENCLAW, Relay, TOKEN, hookgate, run_to_end};

const SECRET: &str = "the secret of this test";

/// A config with a source of several kinds, and two routes.
const CONFIG: &str = r#"
    [sources.openclaw]
    path = "/openclaw/webhook"
    preset = "openclaw"
    verify = [{ scheme = "bearer", secrets = [{ name = "old", env = "OLD_TOKEN" }, { name = "new", env = "OPENCLAW_TOKEN" }] }]
    [sources.stripe]
    path = "/stripe"
    preset = "stripe"
    secrets = [{ name = "main", env = "STRIPE_SECRET" }]
    [sinks.events]
    type = "file"
    dir = "events"
    [sinks.js]
    type = "nats"
    servers = ["nats://127.0.0.1:1"]
    stream = "HOOKS"
    [[routes]]
    name = "all"
    to = [{ sink = "events" }]
    [[routes]]
    name = "failed-runs"
    when = 'source == "openclaw" && attr.status == "error"'
    to = [{ sink = "js", subject = "openclaw.{attr.job}.failed" }]
"#;

const SECRETS: [(&str, &str); 2] = [("OLD_TOKEN", "the old token"), ("STRIPE_SECRET", SECRET)];

fn dir_with_config() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("relay.toml"), CONFIG).expect("writable");
    dir
}

/// Runs the program with `input` on its stdin.
fn run_with_input(dir: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = hookgate(dir);
    command.args(arguments).envs(SECRETS).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("hookgate can be started");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_vec();
    // From another thread: both pipes may fill up.
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic").expect("it reads all of its input");
    output
}

fn verdicts(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("one verdict a line")).collect()
}

#[test]
fn a_captured_request_is_explained_down_to_its_destinations() {
    let dir = dir_with_config();
    let capture = captures().into_iter().find(|capture| capture.name.contains("finished-error")).expect("one of them");
    std::fs::write(dir.path().join("captured.http"), capture.request_to("/openclaw/webhook", "localhost", TOKEN))
        .expect("writable");
    let explained = verdicts(&run_to_end(dir.path(), &["explain", "captured.http"], &SECRETS));
    let verdict = &explained[0];
    assert_eq!(
        (&verdict["id"], &verdict["verdict"], &verdict["scheme"], &verdict["secret"], &verdict["status"]),
        (&json!("captured.http"), &json!("accept"), &json!("bearer"), &json!("new"), &json!(200))
    );
    assert_eq!(
        (&verdict["type"], &verdict["attributes"]["status"]),
        (&json!("openclaw.run.finished"), &json!("error"))
    );
    assert_eq!(verdict["routes"], json!(["all", "failed-runs"]));
    let job = verdict["attributes"]["job"].as_str().expect("a job");
    assert_eq!(
        verdict["destinations"],
        json!([
            { "sink": "events", "target": null, "required": true },
            { "sink": "js", "target": format!("openclaw.{job}.failed"), "required": true },
        ])
    );
    assert_eq!(verdict["event_id_candidate"], 3);
}

#[test]
fn a_refusal_says_exactly_why() {
    let dir = dir_with_config();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("writable");
    write("wrong.http", "POST /openclaw/webhook HTTP/1.1\r\nAuthorization: Bearer nope\r\n\r\n{}");
    write("none.http", "POST /stripe HTTP/1.1\r\n\r\n{}");
    write("nowhere.http", "POST /strip HTTP/1.1\r\n\r\n{}");
    write("cut.http", "POST /stripe HTTP/1.1\r\nContent-Length: 10\r\n\r\n{}");
    let files = ["explain", "wrong.http", "none.http", "nowhere.http", "cut.http"];
    let explained = verdicts(&run_to_end(dir.path(), &files, &SECRETS));
    let reasons: Vec<_> = explained.iter().map(|verdict| (&verdict["reason"], &verdict["status"])).collect();
    assert_eq!(
        reasons,
        [
            (&json!("credential_mismatch"), &json!(401)),
            (&json!("credential_missing"), &json!(401)),
            (&json!("unknown_source"), &json!(404)),
            (&json!("unreadable"), &json!(400)),
        ]
    );
    assert!(explained.iter().all(|verdict| verdict["verdict"] == "reject"), "{explained:?}");
    let cut = explained[3]["detail"].as_str().expect("words");
    assert!(cut.contains("10 bytes are announced and 2 are there"), "{cut}");
}

#[test]
fn what_send_prints_explain_accepts_until_it_is_too_old() {
    let dir = dir_with_config();
    let printed = run_to_end(dir.path(), &["send", "stripe", "--at", "1795000000", "--print"], &SECRETS);
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    assert!(!String::from_utf8_lossy(&printed.stdout).contains(SECRET));
    std::fs::write(dir.path().join("sent.http"), &printed.stdout).expect("writable");
    let at =
        |unix: &str| verdicts(&run_to_end(dir.path(), &["explain", "sent.http", "--at", unix], &SECRETS)).remove(0);
    let piped =
        verdicts(&run_with_input(dir.path(), &["explain", "-", "--at", "1795000000"], &printed.stdout)).remove(0);
    assert_eq!(
        (&piped["id"], &piped["verdict"]),
        (&json!("-"), &json!("accept")),
        "by relay.toml, as raw requests are"
    );
    assert_eq!((&at("1795000300")["verdict"], &at("1795000300")["secret"]), (&json!("accept"), &json!("main")));
    assert_eq!(
        (&at("1795000301")["verdict"], &at("1795000301")["reason"]),
        (&json!("reject"), &json!("timestamp_stale"))
    );
}

#[test]
fn records_are_judged_by_what_they_carry_thousands_at_a_time() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let vectors = include_str!("../../crates/testkit/fixtures/vectors/signed.jsonl");
    let explained = verdicts(&run_with_input(dir.path(), &["explain", "-"], vectors.as_bytes()));
    let cases: Vec<Value> = vectors.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(explained.len(), cases.len());
    for (verdict, case) in explained.iter().zip(&cases).filter(|(_, case)| case["level"] == "must") {
        assert_eq!((&verdict["id"], &verdict["verdict"]), (&case["id"], &case["expect"]), "{} {verdict}", case["why"]);
        assert_eq!(
            verdict["verdict"] == "reject",
            verdict["reason"].is_string() && verdict["status"] != 200,
            "{verdict}"
        );
    }
}

#[test]
fn a_preset_can_be_tried_without_any_config() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let body = b"{\"action\":\"opened\"}";
    // printf '{"action":"opened"}' | openssl dgst -sha256 -hmac "the secret of this test"
    let signature = "X-Hub-Signature-256: sha256=";
    let mac = hmac_of(body);
    let request =
        format!("POST /in HTTP/1.1\r\nX-GitHub-Event: issues\r\n{signature}{mac}\r\n\r\n{{\"action\":\"opened\"}}");
    let explain = |secret: &str| {
        let arguments = ["explain", "--preset", "github", "--secret", "another", "--secret", secret, "-"];
        verdicts(&run_with_input(dir.path(), &arguments, request.as_bytes())).remove(0)
    };
    let accepted = explain(SECRET);
    assert_eq!((&accepted["verdict"], &accepted["secret"]), (&json!("accept"), &json!("secrets[1]")), "{accepted}");
    assert_eq!((&accepted["type"], &accepted["attributes"]["action"]), (&json!("issues"), &json!("opened")));
    assert_eq!(explain("wrong")["reason"], "signature_mismatch");
    let unknown = ["explain", "--preset", "githbu", "--secret", "x", "-"];
    let verdict = verdicts(&run_with_input(dir.path(), &unknown, request.as_bytes())).remove(0);
    assert_eq!(verdict["reason"], "config_refused");
    assert!(verdict["detail"].as_str().expect("words").contains("did you mean \"github\"?"), "{verdict}");
}

/// The HMAC-SHA-256 of `body` under [`SECRET`], made by a program that shares no code with us.
fn hmac_of(body: &[u8]) -> String {
    let mut child = std::process::Command::new("openssl")
        .args(["dgst", "-sha256", "-hmac", SECRET, "-r"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl is installed");
    child.stdin.take().expect("a pipe").write_all(body).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().expect("a digest").to_owned()
}

#[test]
fn a_line_that_is_no_record_does_not_stop_the_others() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let input = b"{\"id\":1,\"provider\":\"bearer\",\"secrets\":[\"s\"],\"path\":\"/\",\"headers\":[[\"Authorization\",\"Bearer s\"]]}\n\
                  {broken\n\n{\"provider\":\"nobody\",\"path\":\"/\"}\n";
    let explained = verdicts(&run_with_input(dir.path(), &["explain", "-"], input));
    let told: Vec<_> =
        explained.iter().map(|verdict| (&verdict["id"], &verdict["verdict"], &verdict["reason"])).collect();
    assert_eq!(
        told,
        [
            (&json!(1), &json!("accept"), &Value::Null),
            (&json!("-:2"), &json!("reject"), &json!("unreadable")),
            (&json!("-:4"), &json!("reject"), &json!("config_refused")),
        ]
    );
    let missing = run_to_end(dir.path(), &["explain", "no/such/file"], &[]);
    assert!(!missing.status.success() && String::from_utf8_lossy(&missing.stderr).contains("no/such/file"));
}

#[tokio::test(flavor = "multi_thread")]
async fn send_posts_an_event_that_is_accepted_once() {
    let relay = Relay::start_with(CONFIG, &SECRETS).await;
    let config = std::fs::read_to_string(relay.dir().join("relay.toml")).expect("readable");
    // The broker of this config does not exist: the route to it takes failed runs only.
    assert!(config.contains("127.0.0.1:1\""));
    for (source, extra) in [("stripe", vec![]), ("openclaw", vec![]), ("openclaw", vec!["--secret", "old"])] {
        let arguments: Vec<&str> = ["send", source, "--id", source].into_iter().chain(extra).collect();
        let sent = run_to_end(relay.dir(), &arguments, &SECRETS);
        assert!(sent.status.success(), "{source}: {}", String::from_utf8_lossy(&sent.stderr));
    }
    let types: Vec<Value> = relay.stored().into_iter().map(|event| event["type"].clone()).collect();
    assert_eq!(types.iter().filter(|name| **name == json!("ping")).count(), 1, "{types:?}");
    let metrics = relay.metrics().await;
    let verified = |scheme: &str, source: &str, secret: &str| {
        metrics[&format!(r#"hookgate_sender_verified_total{{source="{source}",scheme="{scheme}",secret="{secret}"}}"#)]
    };
    assert_eq!(
        (
            verified("hmac", "stripe", "main"),
            verified("bearer", "openclaw", "new"),
            verified("bearer", "openclaw", "old")
        ),
        (1.0, 0.0, 2.0),
        "the first live secret signs, and a metric says which one matched"
    );
    let wrong = [("OLD_TOKEN", "a token that nobody knows"), ("STRIPE_SECRET", SECRET)];
    let refused = run_to_end(relay.dir(), &["send", "openclaw", "--json"], &wrong);
    let answer: Value = serde_json::from_slice(&refused.stdout).expect("JSON");
    assert_eq!((refused.status.code(), &answer["status"]), (Some(1), &json!(401)), "the exit code says it too");
    let unknown = run_to_end(relay.dir(), &["send", "strip"], &SECRETS);
    let message = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(message.contains("there is no source \"strip\"; did you mean \"stripe\"?"), "{message}");
}

#[test]
fn check_tells_how_senders_are_verified_and_what_is_unwise() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let open = r#"
        [sources.open]
        path = "/open"
        verify = [{ scheme = "insecure-accept-anyone" }]
        [sources.short]
        path = "/short"
        preset = "github"
        secrets = [{ env = "SHORT" }, { env = "OLD", not_after = "2020-01-01T00:00:00Z" }]
        [sinks.events]
        type = "file"
        dir = "events"
    "#;
    std::fs::write(dir.path().join("relay.toml"), format!("{OPENCLAW}{open}")).expect("writable");
    let checked = run_to_end(dir.path(), &["check"], &[("SHORT", "hunter2"), ("OLD", "a long secret of last year")]);
    let output = String::from_utf8_lossy(&checked.stdout).into_owned();
    for line in [
        "ok      sources.open (insecure-accept-anyone)",
        "WARNING sources.open: insecure-accept-anyone: whoever finds the path can put events into the queue",
        "ok      sources.openclaw (bearer)",
        "ok      sources.short (hmac)",
        "WARNING sources.short: the secret env:SHORT has less than 16 bytes",
        "WARNING sources.short: the secret env:OLD is past its not_after",
        "ok      sinks.events (file)",
    ] {
        assert!(output.contains(line), "{line} is missing in:\n{output}");
    }
    assert_eq!(checked.status.code(), Some(0), "a warning is no failure");
    assert!(!output.contains("hunter2"));
}
