//! What is no event gets its status and a problem document, and leaves no trace.

use hookgate_testkit::http::{Connection, request};

use crate::relay::{LIMIT, OPENCLAW, PATH, Relay, TO_FILE, TOKEN, finished};

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_and_nothing_is_remembered_of_them() {
    let strict = OPENCLAW.replace("preset", "body = \"json\"\nmax_body = \"64 KiB\"\npreset");
    let relay = Relay::start(&format!("{strict}{TO_FILE}")).await;
    let (right, wrong) = (format!("Bearer {TOKEN}"), "Bearer wrong".to_owned());
    let token = |value: &'static str| [("authorization", value)];
    let right: &'static str = right.leak();
    let wrong: &'static str = wrong.leak();
    let event = finished(1).into_bytes();
    let oversize = vec![b' '; (64 << 10) + 1];
    let chunked_oversize = {
        let head =
            format!("POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: {right}\r\ntransfer-encoding: chunked\r\n\r\n");
        [head.as_bytes(), b"10001\r\n", &oversize, b"\r\n0\r\n\r\n"].concat()
    };
    for (what, bytes, status, code) in [
        ("no token", request("POST", PATH, &[], &event), 401, "unauthorized"),
        ("wrong token", request("POST", PATH, &token(wrong), &event), 401, "unauthorized"),
        ("oversize with a length", request("POST", PATH, &token(right), &oversize), 413, "body-too-large"),
        ("oversize without a length", chunked_oversize, 413, "body-too-large"),
        ("no JSON", request("POST", PATH, &token(right), b"{\"jobId\":"), 400, "malformed-event"),
        (
            "an ambiguous event",
            request("POST", PATH, &token(right), br#"{"jobId":1,"jobId":2}"#),
            400,
            "malformed-event",
        ),
        ("another path", request("POST", "/openclaw", &token(right), &event), 404, "unknown-source"),
        ("another method", request("GET", PATH, &token(right), b""), 405, "method-not-allowed"),
    ] {
        let response = relay.send(&bytes).await;
        assert_eq!((response.status, response.json()["code"].as_str()), (status, Some(code)), "{what}");
        assert_eq!(response.header("content-type"), Some("application/problem+json"), "{what}");
    }
    assert_eq!(relay.metrics().await["hookgate_dedup_entries"], 0.0);
    assert_eq!(relay.stored().len(), 0);
    assert_eq!(relay.post(&event).await.json()["outcome"], "delivered", "the event itself is taken afterwards");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_ends_is_answered_in_time() {
    let relay = Relay::start_with(&format!("{OPENCLAW}{TO_FILE}"), &[("HOOKGATE_SERVER__BODY_TIMEOUT", "300ms")]).await;
    let mut connection = Connection::open(relay.address()).await.expect("connected");
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    connection.send(head.as_bytes()).await.expect("sent");
    connection.send(b"5\r\nhello\r\n").await.expect("sent");
    let response = connection.receive(LIMIT).await.expect("an answer");
    assert_eq!((response.status, response.json()["code"].as_str()), (408, Some("body-timeout")));
    assert_eq!(relay.metrics().await["hookgate_dedup_entries"], 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_of_a_stranger_reads_the_same() {
    let relay = Relay::start(&format!("{OPENCLAW}{TO_FILE}")).await;
    let mut bodies = Vec::new();
    for headers in [
        vec![],
        vec![("authorization", "Bearer wrong")],
        vec![("authorization", "Basic d3Jvbmc=")],
        vec![("authorization", "Bearer a"), ("authorization", "Bearer b")],
    ] {
        let response = relay.send(&request("POST", PATH, &headers, finished(1).as_bytes())).await;
        assert_eq!(response.status, 401);
        bodies.push(response.body);
    }
    assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]));
}
