//! The commands, as an operator types them.

use hookgate_testkit::{
    nats::{NatsConfig, NatsServer},
    process::wait_until,
};

use crate::relay::{LIMIT, OPENCLAW, Relay, TO_FILE, create_stream, finished, hookgate, run_to_end, to_nats};

fn dir_with(config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("relay.toml"), config).expect("writable");
    dir
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_value_is_shown_with_where_it_comes_from() {
    let config = "[server]\nlisten = \"127.0.0.1:1\"\n[sources.github]\npath = \"/github\"\npreset = \"github\"\n\
                  secrets = [{ env = \"NOT_READ\" }, \"hunter2\"]\nattributes = { sender = \"/who\" }\n";
    let dir = dir_with(&format!("{config}{TO_FILE}"));
    let environment = [("HOOKGATE_SERVER__MAX_BODY", "3 MiB"), ("HOOKGATE_SOURCES__GITHUB__BODY", "json")];
    let shown = run_to_end(dir.path(), &["config", "--effective"], &environment);
    let shown = text(&shown.stdout);
    for (value, origin) in [
        ("server.listen = \"127.0.0.1:1\"", "relay.toml:2"),
        ("server.max_body = \"3 MiB\"", "environment variable HOOKGATE_SERVER__MAX_BODY"),
        ("server.keep_alive = \"1m 15s\"", "default"),
        ("sources.github.verify[0].header = [\"X-Hub-Signature-256\"]", "preset github"),
        ("sources.github.verify[0].secrets[0].env = \"NOT_READ\"", "relay.toml:6"),
        ("sources.github.verify[0].secrets[1] = \"[redacted]\"", "relay.toml:6"),
        ("sources.github.attributes.sender = [\"/who\"]", "relay.toml:7"),
        ("sources.github.attributes.action = [\"/action\"]", "preset github"),
        ("sources.github.body = \"json\"", "environment variable HOOKGATE_SOURCES__GITHUB__BODY"),
        ("sources.github.dedup.on_mismatch = \"duplicate\"", "default"),
    ] {
        let line = shown.lines().find(|line| line.starts_with(value));
        assert!(line.is_some_and(|line| line.ends_with(&format!("# {origin}"))), "{value}: {line:?} in\n{shown}");
    }
    assert!(!shown.contains("hunter2"));
    let schema = run_to_end(dir.path(), &["config", "--schema"], &[]);
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).expect("JSON");
    assert_eq!(schema["additionalProperties"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_config_runs_with_no_broker() {
    let shipped =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../relay.toml")).expect("it is there");
    let dir = dir_with(&shipped);
    let checked = run_to_end(dir.path(), &["check"], &[]);
    let told = text(&checked.stdout);
    // A disk that is nearly full is a warning.
    let good: Vec<_> = told.lines().filter(|line| !line.starts_with("WARNING")).collect();
    let expected = ["ok      sources.openclaw (bearer)", "ok      spool (data/spool)", "ok      sinks.events (file)"];
    assert_eq!((checked.status.code(), good.as_slice()), (Some(0), &expected[..]));
    let port = hookgate_testkit::process::free_port();
    let mut command = hookgate(dir.path());
    command
        .arg("run")
        .env("HOOKGATE_SERVER__LISTEN", format!("127.0.0.1:{port}"))
        .env("HOOKGATE_ADMIN__LISTEN", "127.0.0.1:0");
    let process = hookgate_testkit::process::Process::spawn("hookgate", command, dir.path());
    let up = async || process.log().contains("hookgate is up");
    wait_until(LIMIT, "hookgate is up", up).await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let request = crate::relay::post(finished(1));
    assert_eq!(hookgate_testkit::http::send_raw(address, &request, LIMIT).await.expect("an answer").status, 200);
    let stored =
        std::fs::read_to_string(dir.path().join("data/events/events-00000001.jsonl")).expect("the event's file");
    assert!(stored.contains("openclaw.run.finished"), "{stored}");
}

#[test]
fn an_empty_or_missing_secret_is_a_start_up_error() {
    let dir = dir_with(&format!("{OPENCLAW}{TO_FILE}"));
    for command in ["run", "check"] {
        let failed = run_to_end(dir.path(), &[command], &[("OPENCLAW_TOKEN", "")]);
        let message = text(&failed.stderr);
        assert_eq!(failed.status.code(), Some(2), "{message}");
        let expected = "sources.openclaw.verify[0].secrets[0]: the environment variable OPENCLAW_TOKEN is empty";
        assert!(message.contains(expected), "{message}");
    }
    let dir = dir_with(&format!("{}{TO_FILE}", OPENCLAW.replace("[{ env = \"OPENCLAW_TOKEN\" }]", "[]")));
    let failed = run_to_end(dir.path(), &["run"], &[]);
    assert!(text(&failed.stderr).contains("verify[0].secrets: is empty"), "{}", text(&failed.stderr));
}

#[test]
fn a_config_with_many_mistakes_is_told_all_of_them() {
    let config = r#"
        [server]
        listne = "x"
        [sources.openclaw]
        path = "openclaw"
        preset = "opneclaw"
        verify = []
        [sources.b]
        path = "/b"
        verify = [{ scheme = "bearer", secrets = [{ file = "missing" }] }]
        [sinks.events]
        type = "file"
        dir = "events"
        [[routes]]
        when = 'source == "nobody"'
        to = [{ sink = "evnts" }, { sink = "events", subject = "x" }]
    "#;
    let dir = dir_with(&config.replace("listne = \"x\"", ""));
    let failed = run_to_end(dir.path(), &["check"], &[]);
    let message = text(&failed.stderr);
    for part in [
        "sources.openclaw.path: \"openclaw\" must begin with \"/\"",
        "sources.openclaw.preset: there is no preset \"opneclaw\"",
        "sources.openclaw.verify: is empty",
        "sources.b.verify[0].secrets[0]: the file missing cannot be read",
        "routes[0].when: there is no source \"nobody\"",
        "routes[0].to[0].sink: there is no sink \"evnts\"",
        "routes[0].to[1].subject: is not for the sink events, which has one place only",
        "relay.toml:5:9: sources.openclaw.path",
    ] {
        assert!(message.contains(part), "{part} is missing in:\n{message}");
    }
    let dir = dir_with(config);
    let failed = run_to_end(dir.path(), &["check", "--json"], &[]);
    let problems: serde_json::Value = serde_json::from_slice(&failed.stdout).expect("JSON on stdout");
    assert_eq!(problems[0]["key"], "server.listne");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_really_connects_and_says_what_is_wrong() {
    let mut server = NatsServer::start(Default::default()).await;
    let dir = dir_with(&format!("{OPENCLAW}{}", to_nats(&server.url())));
    let checked = run_to_end(dir.path(), &["check"], &[]);
    let output = text(&checked.stdout);
    assert_eq!(checked.status.code(), Some(2), "{output}");
    assert!(
        output.starts_with("ok      sources.openclaw (bearer)\nFAILED  sinks.js (nats)") && output.contains("HOOKS"),
        "it names the missing stream: {output}"
    );
    create_stream(&server).await;
    let checked = run_to_end(dir.path(), &["check"], &[]);
    let output = text(&checked.stdout);
    assert_eq!(checked.status.code(), Some(0), "{output}");
    assert!(output.starts_with("ok      sources.openclaw (bearer)\nok      sinks.js (nats)\n"), "{output}");
    server.kill();
    let checked = run_to_end(dir.path(), &["check", "--json"], &[]);
    let results: serde_json::Value = serde_json::from_slice(&checked.stdout).expect("JSON on stdout");
    assert_eq!((checked.status.code(), results[1]["sink"].as_str()), (Some(2), Some("js")));
    assert!(results[1]["problem"].is_string(), "{results}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_does_not_disturb_a_running_hookgate() {
    let relay = Relay::start(&format!("{OPENCLAW}{TO_FILE}")).await;
    let checked = run_to_end(relay.dir(), &["check"], &[]);
    assert_eq!(checked.status.code(), Some(0), "{}{}", text(&checked.stdout), text(&checked.stderr));
    assert_eq!(relay.post(finished(1)).await.status, 200);
}

#[test]
fn config_prints_defaults_and_no_secret() {
    let literal = OPENCLAW.replace("{ env = \"OPENCLAW_TOKEN\" }", "\"hunter2\"");
    let dir = dir_with(&format!("{literal}{TO_FILE}"));
    let printed = run_to_end(dir.path(), &["config"], &[("HOOKGATE_SERVER__REPLY_DEADLINE", "1500ms")]);
    let output = text(&printed.stdout);
    assert!(printed.status.success(), "{}", text(&printed.stderr));
    assert!(output.contains("[redacted]") && !output.contains("hunter2"), "{output}");
    assert!(output.contains("max_in_flight = 4096"), "defaults are filled in: {output}");
    assert!(output.contains("reply_deadline = \"1s 500ms\""), "{output}");
}

#[test]
fn what_config_prints_can_be_read_back() {
    let nats = "[sinks.js]\ntype = \"nats\"\nservers = [\"nats://127.0.0.1:4222\"]\nstream = \"HOOKS\"\n";
    let dir = dir_with(&format!(
        "{OPENCLAW}attributes = {{ team = [\"/job/description\", \"header:x-team\"] }}\n{TO_FILE}{nats}"
    ));
    let first = run_to_end(dir.path(), &["config"], &[]);
    assert!(first.status.success(), "{}", text(&first.stderr));
    std::fs::write(dir.path().join("relay.toml"), &first.stdout).expect("writable");
    let second = run_to_end(dir.path(), &["config"], &[]);
    assert_eq!(text(&second.stdout), text(&first.stdout), "{}", text(&second.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_cannot_share_a_directory_of_events() {
    let relay = Relay::start(&format!("{OPENCLAW}{TO_FILE}")).await;
    let (server, admin) = (("HOOKGATE_SERVER__LISTEN", "127.0.0.1:0"), ("HOOKGATE_ADMIN__LISTEN", "127.0.0.1:0"));
    let second = run_to_end(relay.dir(), &["run"], &[server, admin]);
    let message = text(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{message}");
    assert!(message.contains("sinks.events") && message.contains("events"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_and_the_log_say_what_is_unwise_about_a_stream() {
    let server = NatsServer::start(NatsConfig::default()).await;
    server.wire().await.create_stream(&serde_json::json!({ "name": "HOOKS", "subjects": ["other.>"] })).await;
    let tables = format!("{OPENCLAW}{}", to_nats(&server.url()));
    let dir = dir_with(&tables);
    let checked = run_to_end(dir.path(), &["check"], &[]);
    let told = text(&checked.stdout);
    assert!(checked.status.success(), "{told}");
    assert!(told.contains("WARNING sinks.js: the stream HOOKS does not listen on openclaw.x"), "{told}");
    let relay = Relay::start(&tables).await;
    wait_until(LIMIT, "the log says it too", async || relay.log().contains("does not listen on openclaw.x")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_whether_the_process_lives() {
    let mut relay = Relay::start(&format!("{OPENCLAW}{TO_FILE}")).await;
    let health = |relay: &Relay| run_to_end(relay.dir(), &["health"], &[]);
    assert!(health(&relay).status.success());
    relay.kill();
    let told = health(&relay);
    assert!(!told.status.success() && text(&told.stderr).contains("/livez"), "{}", text(&told.stderr));
}
