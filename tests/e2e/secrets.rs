//! Secrets come from where the config says, change while hookgate runs, and show up nowhere.

use hookgate_testkit::{http::request, nats::NatsServer, process::wait_until};

use crate::relay::{LIMIT, PATH, Relay, TO_FILE, create_stream, finished, run_to_end, to_nats};

fn bearer(token: &str) -> Vec<u8> {
    request("POST", PATH, &[("authorization", &format!("Bearer {token}"))], finished(1).as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secrets_file_is_read_again_when_it_changes() {
    let source = r#"
        [sources.openclaw]
        path = "/openclaw/webhook"
        preset = "openclaw"
        verify = [{ scheme = "bearer", secrets = [{ file = "token", name = "current" }, { env = "OPENCLAW_TOKEN" }] }]
    "#;
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("token"), "first\n").expect("writable");
    let relay = Relay::start_in(dir, &format!("{source}{TO_FILE}"), &[]).await;
    assert_eq!(relay.send(&bearer("first")).await.status, 200);
    assert_eq!(relay.send(&bearer(crate::relay::TOKEN)).await.status, 200, "several are live at once");
    // As Kubernetes does it: a new file is put in the place of the old one.
    std::fs::write(relay.dir().join("token.new"), "second\n").expect("writable");
    std::fs::rename(relay.dir().join("token.new"), relay.dir().join("token")).expect("renamed");
    wait_until(LIMIT, "the new one is in use", async || relay.send(&bearer("second")).await.status == 200).await;
    assert_eq!(relay.send(&bearer("first")).await.status, 401, "the old one is not");
    std::fs::write(relay.dir().join("token"), "").expect("writable");
    wait_until(LIMIT, "the empty file is noticed", async || relay.log().contains("cannot be read any more")).await;
    assert_eq!(relay.send(&bearer("second")).await.status, 200, "what was good stays in use");
    assert!(!relay.log().contains("second"), "and is not logged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_token_appears_in_no_log_metric_or_message() {
    const SECRET: &str = "query-token-of-this-test";
    let source = format!(
        r#"
        [sources.openclaw]
        path = "/openclaw/webhook"
        preset = "openclaw"
        forward_headers = ["user-agent"]
        verify = [{{ scheme = "query", param = "token", secrets = ["{SECRET}"] }}]
        "#
    );
    let server = NatsServer::start(Default::default()).await;
    create_stream(&server).await;
    let (nats, file) = (to_nats(&server.url()), TO_FILE);
    let relay = Relay::start_with(&format!("{source}{nats}{file}"), &[("HOOKGATE_LOG__LEVEL", "trace")]).await;
    relay.wait_until_ready().await;
    let post = |query: &str, body: &str| {
        request("POST", &format!("{PATH}?{query}"), &[("user-agent", "e2e")], body.as_bytes())
    };
    assert_eq!(relay.send(&post(&format!("token={SECRET}"), &finished(1))).await.status, 200);
    assert_eq!(relay.send(&post(&format!("token={SECRET}"), r#"{"jobId":1,"jobId":2}"#)).await.status, 400);
    assert_eq!(relay.send(&post(&format!("token={SECRET}&token={SECRET}"), &finished(2))).await.status, 401);
    assert_eq!(relay.send(&post(&format!("token={SECRET}x"), &finished(2))).await.status, 401);
    let stored = format!("{:?}", relay.stored());
    let messages = format!("{:?}", server.wire().await.read_stream("HOOKS").await);
    assert!(stored.contains("e2e") && messages.contains("e2e"), "the listed header travels on");
    let log = relay.log();
    assert!(log.contains("\"outcome\":\"delivered\""), "the log is on:\n{log}");
    for (what, text) in [("log", log), ("metrics", relay.metrics_text().await), ("file", stored), ("stream", messages)]
    {
        assert!(!text.contains(SECRET), "the token is in the {what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_secret_in_the_wrong_form_is_not_put_in_place() {
    let source = r#"
        [sources.partner]
        path = "/partner"
        preset = "standard-webhooks"
        secrets = [{ file = "whsec" }]
    "#;
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("whsec"), "whsec_YSBrZXkgb2YgdHdlbnR5LWZvdXIgYnl0\n").expect("writable");
    let relay = Relay::start_in(dir, &format!("{source}{TO_FILE}"), &[]).await;
    let signed = run_to_end(relay.dir(), &["send", "partner", "--print"], &[]).stdout;
    assert_eq!(relay.send(&signed).await.status, 200);
    std::fs::write(relay.dir().join("whsec"), "whsec_what is this\n").expect("writable");
    wait_until(LIMIT, "the junk is noticed", async || relay.log().contains("and base64 after it")).await;
    assert_eq!(relay.send(&signed).await.status, 200, "what was good stays in use");
    assert!(!relay.log().contains("what is this"), "and the junk is not logged: it may be another secret");
}
