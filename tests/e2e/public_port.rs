//! The public port as its config sets it up: who is taken at their word for a sender's address, and the end of its certificate.

use std::path::Path;

use hookgate_testkit::{
    http::{request, send_raw},
    process::wait_until,
};
use rcgen::{CertificateParams, KeyPair};

use crate::relay::{LIMIT, OPENCLAW, Relay, TO_FILE, run_to_end};

const FROM_THE_LIST: &str = r#"
    [sources.listed]
    path = "/listed"
    verify = [{ scheme = "ip", allow = ["203.0.113.0/24"] }]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_address_list_sees_the_address_that_the_proxy_protocol_tells() {
    let networks = ("HOOKGATE_SERVER__PROXY_PROTOCOL_FROM", r#"["127.0.0.0/8"]"#);
    let relay = Relay::start_with(&format!("{FROM_THE_LIST}{TO_FILE}"), &[networks]).await;
    relay.wait_until_ready().await;
    let through = |line: &str| [line.as_bytes(), &request("POST", "/listed", &[], b"{}")].concat();
    assert_eq!(relay.send(&through("PROXY TCP4 203.0.113.7 198.51.100.1 51000 80\r\n")).await.status, 200);
    assert_eq!(relay.send(&through("PROXY TCP4 192.0.2.7 198.51.100.1 51000 80\r\n")).await.status, 401);
    assert_eq!(relay.stored().len(), 1);
    send_raw(relay.address(), &through(""), LIMIT).await.expect_err("without a header there is no answer");
    let missing = r#"hookgate_proxy_header_failures_total{reason="missing"}"#;
    wait_until(LIMIT, "it is counted", async || relay.metric(missing).await == 1.0).await;
    assert!(relay.log().contains("it has to begin with a PROXY header"), "{}", relay.log());

    let junk = [("HOOKGATE_SERVER__PROXY_PROTOCOL_FROM", r#"["10.0.0.0/99"]"#)];
    let checked = run_to_end(relay.dir(), &["check"], &junk);
    let said = String::from_utf8_lossy(&checked.stderr).into_owned() + &String::from_utf8_lossy(&checked.stdout);
    assert!(!checked.status.success() && said.contains("server.proxy_protocol_from"), "{said}");
}

/// Puts a certificate that ends with `year` into `dir`.
fn issue(dir: &Path, year: i32) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    std::fs::write(dir.join("tls.key"), key.serialize_pem()).expect("writable");
    std::fs::write(dir.join("tls.crt"), params.self_signed(&key).expect("signed").pem()).expect("writable");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_certificate_in_use_is_a_metric() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    issue(dir.path(), 2030);
    let environment = [("HOOKGATE_SERVER__TLS", r#"{ cert = "tls.crt", key = "tls.key" }"#)];
    let relay = Relay::start_in(dir, &format!("{OPENCLAW}{TO_FILE}"), &environment).await;
    let name = "hookgate_tls_certificate_expiry_timestamp_seconds";
    let ends_at = async |unix: f64| relay.metrics().await.get(name) == Some(&unix);
    wait_until(LIMIT, "it is told", async || ends_at(1_893_456_000.0).await).await;
    issue(relay.dir(), 2031);
    wait_until(LIMIT, "the new one is told", async || ends_at(1_924_992_000.0).await).await;
    std::fs::write(relay.dir().join("tls.crt"), "junk").expect("writable");
    wait_until(LIMIT, "it is told", async || relay.log().contains("holds no certificate in PEM form")).await;
    assert!(ends_at(1_924_992_000.0).await, "it is still the one in use");
    send_raw(relay.address(), &request("POST", "/", &[], b"{}"), LIMIT).await.expect_err("it is no TLS");
    let malformed = r#"hookgate_tls_handshake_failures_total{reason="malformed"}"#;
    wait_until(LIMIT, "it is counted", async || relay.metric(malformed).await == 1.0).await;
}
