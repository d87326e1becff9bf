//! What routes do with events, as senders, consumers and operators see it.

use hookgate_testkit::{
    http::request,
    nats::{NatsConfig, NatsServer},
    process::wait_until,
};

use crate::relay::{LIMIT, OPENCLAW, Relay, TO_FILE, create_stream, run_to_end};

const ROUTES: &str = r#"
    [[routes]]
    name = "noise"
    when = 'json.jobId == "noisy" || headers["user-agent"].startsWith("probe")'
    drop = true
    final = true
    [[routes]]
    name = "failed"
    when = 'attr.status == "error" && json.durationMs > 1000'
    redact = ["/job/delivery", "/summary"]
    to = [{ sink = "js", subject = "openclaw.failed.{attr.job}" }]
    [[routes]]
    name = "runs"
    when = 'source == "openclaw"'
    to = [{ sink = "js", subject = "openclaw.all.{attr.job}" }]
"#;

fn tables(server: &NatsServer) -> String {
    format!(
        "{OPENCLAW}[spool]\ndir = \"spool\"\nmin_free = \"1 MiB\"\n[sinks.js]\ntype = \"nats\"\nservers = [\"{}\"]\nstream = \"HOOKS\"\n{ROUTES}",
        server.url()
    )
}

fn run(job: &str, number: usize, rest: &str) -> String {
    format!(
        r#"{{"jobId":"{job}","action":"finished","runAtMs":{number},"summary":"hush","job":{{"delivery":{{"to":"u"}}}}{rest}}}"#
    )
}

async fn decided(relay: &Relay, route: &str, result: &str) -> f64 {
    relay.metric(&format!("hookgate_route_events_total{{route=\"{route}\",result=\"{result}\"}}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_look_into_the_body_and_copies_are_redacted_even_by_way_of_the_spool() {
    let mut server = NatsServer::start(NatsConfig::default()).await;
    create_stream(&server).await;
    let relay = Relay::start_with(&tables(&server), &[("HOOKGATE_SERVER__REPLY_DEADLINE", "1s")]).await;
    wait_until(LIMIT, "it is connected", async || relay.ready().await.1["sinks"][0]["up"] == true).await;
    let failed = |number| run("a", number, r#","status":"error","durationMs":2000"#);
    assert_eq!(relay.post(run("noisy", 1, "")).await.json()["outcome"], "dropped");
    assert_eq!(relay.post(run("a", 2, "")).await.json()["outcome"], "delivered");
    assert_eq!(relay.post(failed(3)).await.json()["outcome"], "delivered");
    server.kill();
    assert_eq!(relay.post(failed(4)).await.json()["outcome"], "spooled");
    server.restart().await;
    wait_until(LIMIT, "the spool is empty", async || relay.metric("hookgate_spool_events{sink=\"js\"}").await == 0.0)
        .await;
    let mut stored: Vec<_> = server.wire().await.read_stream("HOOKS").await;
    stored.sort_by_key(|message| (message.header("ce-id").map(str::to_owned), message.subject.clone()));
    let expect = |subject: &str, number, is_redacted: bool| {
        let (body, redacted) = match is_redacted {
            true => (
                failed(number).replace("\"hush\"", "\"[redacted]\"").replace(r#"{"to":"u"}"#, "\"[redacted]\""),
                Some("/job/delivery /summary".to_owned()),
            ),
            false if number == 2 => (run("a", 2, ""), None),
            false => (failed(number), None),
        };
        (subject.to_owned(), body, redacted)
    };
    let found: Vec<_> = stored
        .iter()
        .map(|message| {
            let body = String::from_utf8(message.payload.to_vec()).expect("UTF-8");
            (message.subject.clone(), body, message.header("hookgate-redacted").map(str::to_owned))
        })
        .collect();
    let expected = [
        expect("openclaw.all.a", 2, false),
        expect("openclaw.all.a", 3, false),
        expect("openclaw.failed.a", 3, true),
        expect("openclaw.all.a", 4, false),
        expect("openclaw.failed.a", 4, true),
    ];
    assert_eq!(found, expected);
    assert_eq!((decided(&relay, "noise", "dropped").await, decided(&relay, "runs", "matched").await), (1.0, 3.0));
    assert_eq!(decided(&relay, "failed", "incomplete").await, 1.0, "a run without a status");
    let refused = relay.post("no JSON").await;
    assert_eq!(
        (refused.status, decided(&relay, "failed", "matched").await),
        (200, 2.0),
        "no rule that redacts holds for it"
    );
}

#[test]
fn explain_shows_what_each_rule_looks_at() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sink = "[sinks.js]\ntype = \"nats\"\nservers = [\"nats://127.0.0.1:1\"]\nstream = \"HOOKS\"\n";
    std::fs::write(dir.path().join("relay.toml"), format!("{OPENCLAW}{sink}{ROUTES}")).expect("writable");
    let request = crate::relay::post(run("a", 1, r#","status":"error","durationMs":2000"#));
    std::fs::write(dir.path().join("captured.http"), request).expect("writable");
    let ended = run_to_end(dir.path(), &["explain", "--json", "captured.http"], &[]);
    let verdict: serde_json::Value = serde_json::from_slice(&ended.stdout).expect("JSON");
    assert_eq!(verdict["routes"], serde_json::json!(["failed", "runs"]));
    let rule = |place: usize| verdict["rules"][place].clone();
    assert_eq!(
        rule(0),
        serde_json::json!({ "route": "noise", "held": null, "values": { "json/jobId": "a", "headers[\"user-agent\"]": null } })
    );
    let values = serde_json::json!({ "attr.status": "error", "json/durationMs": "2000" });
    assert_eq!(rule(1), serde_json::json!({ "route": "failed", "held": true, "values": values }));
    assert_eq!(verdict["destinations"][0]["redacted"], "/job/delivery /summary");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_route_sets_travels_in_headers_by_way_of_the_spool_and_into_files() {
    const SET: &str = r#"headers = { "x-job" = "job {attr.job}", "x-run" = "{event_id}", "user-agent" = "hookgate" }"#;
    let mut server = NatsServer::start(NatsConfig::default()).await;
    create_stream(&server).await;
    let openclaw = OPENCLAW.replace("preset", "forward_headers = [\"user-agent\", \"x-other\"]\npreset");
    let tables = format!(
        "{openclaw}[spool]\ndir = \"spool\"\nmin_free = \"1 MiB\"\n\
         [sinks.js]\ntype = \"nats\"\nservers = [\"{}\"]\nstream = \"HOOKS\"\nallow = [\"openclaw.*.*\"]\n\
         [sinks.events]\ntype = \"file\"\ndir = \"events\"\n\
         [[routes]]\nto = [{{ sink = \"js\", subject = \"openclaw.all.{{attr.job}}\", {SET} }}, {{ sink = \"events\", {SET} }}]\n",
        server.url()
    );
    let relay = Relay::start_with(&tables, &[("HOOKGATE_SERVER__REPLY_DEADLINE", "1s")]).await;
    wait_until(LIMIT, "it is connected", async || relay.ready().await.1["sinks"][0]["up"] == true).await;
    assert_eq!(relay.post(run("a\\nb: ü%", 1, "")).await.json()["outcome"], "delivered");
    server.kill();
    assert_eq!(relay.post(run("a\\nb: ü%", 2, "")).await.json()["outcome"], "spooled");
    server.restart().await;
    wait_until(LIMIT, "the spool is empty", async || relay.metric("hookgate_spool_events{sink=\"js\"}").await == 0.0)
        .await;
    let messages = server.wire().await.read_stream("HOOKS").await;
    assert_eq!(messages.len(), 2);
    for message in messages {
        assert_eq!(message.header("x-job"), Some("job a%0Ab: %C3%BC%25"));
        assert_eq!(message.header("x-run"), message.header("ce-id"));
        assert_eq!(message.header("user-agent"), Some("hookgate"), "not the sender's");
    }
    assert_eq!(relay.stored()[0]["headers"]["x-job"], "job a%0Ab: %C3%BC%25");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_rule_sees_the_token_of_a_source() {
    let tables = format!(
        "[sources.own]\npath = \"/own\"\nverify = [{{ scheme = \"header\", header = \"X-Token\", secrets = [\"t0ken\"] }}]\n\
         {TO_FILE}[[routes]]\nname = \"token\"\nwhen = 'headers[\"x-token\"] != \"\"'\ndrop = true\n"
    );
    let relay = Relay::start(&tables).await;
    let answer = relay.send(&request("POST", "/own", &[("x-token", "t0ken")], b"{}")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(decided(&relay, "token", "incomplete").await, 1.0, "it is not there for rules");
}
