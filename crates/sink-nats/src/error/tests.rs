//! The tables, row by row.

use async_nats::{ConnectError as NatsConnectError, SubjectError};
use rustls::CertificateError;
use serde_json::json;

use super::*;

const SUBJECT: &str = "hooks.a";

fn stream() -> Arc<str> {
    "HOOKS".into()
}

fn server() -> Arc<str> {
    "nats://a".into()
}

fn ack(stream: &str, sequence: u64, duplicate: bool) -> PublishAck {
    serde_json::from_value(json!({ "stream": stream, "seq": sequence, "duplicate": duplicate })).expect("an ack")
}

fn refusal(code: u64) -> jetstream::Error {
    serde_json::from_value(json!({ "code": 400, "err_code": code, "description": "why" })).expect("an error")
}

/// What it means when the server answers a publish with this.
fn of_answer(error: &NatsPublishError) -> Verdict {
    Cause::of_answer(error, SUBJECT, &stream(), &server()).verdict()
}

#[test]
fn an_acknowledgement_of_the_stream_is_a_position_duplicate_or_not() {
    for duplicate in [false, true] {
        let found = position(ack("HOOKS", 7, duplicate), SUBJECT, &stream()).expect("it is stored");
        assert_eq!((&*found.place, found.offset, found.duplicate), ("HOOKS", 7, duplicate));
    }
}

#[test]
fn an_acknowledgement_of_another_stream_is_misconfigured() {
    let cause = position(ack("OTHER", 7, false), SUBJECT, &stream()).expect_err("it is elsewhere");
    assert_eq!(cause.verdict(), misconfigured(PublishReason::NoDestination));
    assert_eq!(cause.to_string(), "subject \"hooks.a\" goes to stream \"OTHER\", not to \"HOOKS\"");
}

#[test]
fn an_acknowledgement_of_sequence_zero_is_unknown() {
    for duplicate in [false, true] {
        let cause = position(ack("HOOKS", 0, duplicate), SUBJECT, &stream()).expect_err("it is nowhere");
        assert_eq!(cause.verdict(), unknown(PublishReason::Other));
    }
}

#[test]
fn each_refusal_of_jetstream_has_its_verdict() {
    let table = [
        (10060, misconfigured(PublishReason::NoDestination)),
        (10059, misconfigured(PublishReason::NoDestination)),
        (10109, misconfigured(PublishReason::NoDestination)),
        (10120, misconfigured(PublishReason::NoDestination)),
        (10076, misconfigured(PublishReason::NoDestination)),
        (10039, misconfigured(PublishReason::NoDestination)),
        (10077, unavailable(PublishReason::Full)),
        (10023, unavailable(PublishReason::Full)),
        (10047, unavailable(PublishReason::Full)),
        (10028, unavailable(PublishReason::Full)),
        (10002, unavailable(PublishReason::Full)),
        (10054, rejected(PublishReason::TooLarge)),
        (10097, rejected(PublishReason::TooLarge)),
        (10167, throttled()),
        (10008, unavailable(PublishReason::Other)),
        (10006, unavailable(PublishReason::Other)),
        (10009, unavailable(PublishReason::Other)),
        (10004, unavailable(PublishReason::Other)),
        (10118, unavailable(PublishReason::Other)),
        (10194, unavailable(PublishReason::Other)),
        (10158, unknown(PublishReason::Other)),
        (99_999, unknown(PublishReason::Other)),
    ];
    for (code, verdict) in table {
        let error = NatsPublishError::with_source(NatsPublishErrorKind::Other, refusal(code));
        assert_eq!(of_answer(&error), verdict, "{code}");
    }
}

#[test]
fn each_missing_answer_has_its_verdict() {
    let table = [
        (NatsPublishErrorKind::StreamNotFound, misconfigured(PublishReason::NoDestination)),
        (NatsPublishErrorKind::BrokenPipe, unknown(PublishReason::ConnectionLost)),
        (NatsPublishErrorKind::TimedOut, unknown(PublishReason::Timeout)),
        (NatsPublishErrorKind::Other, unknown(PublishReason::Other)),
    ];
    for (kind, verdict) in table {
        assert_eq!(of_answer(&NatsPublishError::new(kind)), verdict, "{kind}");
    }
    let garbage = NatsPublishError::with_source(NatsPublishErrorKind::Other, "expected value at line 1");
    assert_eq!(of_answer(&garbage), unknown(PublishReason::Other));
}

#[test]
fn what_was_not_sent_is_never_unknown() {
    let (kind, broken) = (NatsPublishErrorKind::Other, io::Error::other("channel closed"));
    let table = [
        (NatsPublishError::new(NatsPublishErrorKind::MaxPayloadExceeded), rejected(PublishReason::TooLarge)),
        (NatsPublishError::new(NatsPublishErrorKind::TimedOut), unavailable(PublishReason::Timeout)),
        (NatsPublishError::with_source(kind, broken), unavailable(PublishReason::ConnectionLost)),
        (NatsPublishError::with_source(kind, SubjectError::InvalidFormat), misconfigured(PublishReason::NoDestination)),
        (NatsPublishError::new(NatsPublishErrorKind::MaxAckPending), unavailable(PublishReason::Other)),
    ];
    for (error, verdict) in table {
        assert_eq!(Cause::of_sending(&error, SUBJECT, &server()).verdict(), verdict, "{error}");
    }
    assert_eq!(Cause::NotSent.verdict(), unavailable(PublishReason::Timeout));
    assert_eq!(Cause::Closed.verdict(), unavailable(PublishReason::ConnectionLost));
}

#[test]
fn only_the_want_of_listeners_may_pass_at_once() {
    let cause = |kind| Cause::of_answer(&NatsPublishError::new(kind), SUBJECT, &stream(), &server());
    assert!(cause(NatsPublishErrorKind::StreamNotFound).may_pass_at_once());
    assert!(!cause(NatsPublishErrorKind::BrokenPipe).may_pass_at_once());
    assert!(!Cause::NoStream { stream: stream(), server: server() }.may_pass_at_once());
}

#[test]
fn each_complaint_of_a_server_has_its_verdict() {
    let table = [
        ("Authorization Violation", misconfigured(PublishReason::Auth)),
        ("Permissions Violation for Publish to \"hooks.a\"", misconfigured(PublishReason::Auth)),
        ("User Authentication Expired", misconfigured(PublishReason::Auth)),
        ("User Authentication Revoked", misconfigured(PublishReason::Auth)),
        ("Account Authentication Expired", misconfigured(PublishReason::Auth)),
        ("Secure Connection - TLS Required", misconfigured(PublishReason::Tls)),
        ("maximum connections exceeded", unavailable(PublishReason::ConnectionLost)),
        ("maximum account active connections exceeded", unavailable(PublishReason::ConnectionLost)),
        ("Authentication Timeout", unavailable(PublishReason::ConnectionLost)),
        ("Stale Connection", unavailable(PublishReason::ConnectionLost)),
        ("Maximum Payload Violation", unavailable(PublishReason::ConnectionLost)),
        ("something new", unavailable(PublishReason::ConnectionLost)),
    ];
    for (words, verdict) in table {
        assert_eq!(server_verdict(words), verdict, "{words}");
        assert_eq!(Disconnected::lost("nats://a", Some(words)).verdict, verdict, "{words}");
    }
    assert_eq!(Disconnected::lost("nats://a", None).verdict, unavailable(PublishReason::ConnectionLost));
}

#[test]
fn each_failed_attempt_to_connect_has_its_verdict_and_keeps_the_servers_words() {
    let io = |source: io::Error| NatsConnectError::with_source(ConnectErrorKind::Io, source);
    let said = |words: &str| NatsConnectError::with_source(ConnectErrorKind::Io, ServerError::Other(words.to_owned()));
    let refused = ServerError::AuthorizationViolation;
    let tls = |error| io(io::Error::other(error));
    let unknown_issuer = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
    let table = [
        (
            NatsConnectError::with_source(ConnectErrorKind::AuthorizationViolation, refused),
            misconfigured(PublishReason::Auth),
            "authorization violation",
        ),
        (said("User Authentication Expired"), misconfigured(PublishReason::Auth), "User Authentication Expired"),
        (
            said("maximum connections exceeded"),
            unavailable(PublishReason::ConnectionLost),
            "maximum connections exceeded",
        ),
        (
            NatsConnectError::new(ConnectErrorKind::Authentication),
            misconfigured(PublishReason::Auth),
            "failed signing nonce",
        ),
        (tls(unknown_issuer), misconfigured(PublishReason::Tls), "invalid peer certificate: UnknownIssuer"),
        (io(io::ErrorKind::ConnectionRefused.into()), unavailable(PublishReason::ConnectionLost), "connection refused"),
        (NatsConnectError::new(ConnectErrorKind::TimedOut), unavailable(PublishReason::ConnectionLost), "timed out"),
        (NatsConnectError::new(ConnectErrorKind::Dns), unavailable(PublishReason::ConnectionLost), "DNS error"),
        (
            NatsConnectError::with_source(ConnectErrorKind::Tls, "no platform certs"),
            misconfigured(PublishReason::Tls),
            "no platform certs",
        ),
    ];
    for (error, verdict, words) in table {
        let disconnected = Disconnected::refused("nats://a", &error);
        assert_eq!(disconnected.verdict, verdict, "{error}");
        assert_eq!(disconnected.to_string(), format!("connect to nats://a: {words}"));
    }
}

#[test]
fn a_handshake_that_fails_for_want_of_trust_is_for_an_operator_and_another_may_pass() {
    let (mend, pass) = (misconfigured(PublishReason::Tls), unavailable(PublishReason::Tls));
    let table = [
        (rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer), mend),
        (rustls::Error::InvalidCertificate(CertificateError::Expired), mend),
        (rustls::Error::InvalidCertificate(CertificateError::NotValidForName), mend),
        (rustls::Error::AlertReceived(AlertDescription::CertificateRequired), mend),
        (rustls::Error::AlertReceived(AlertDescription::BadCertificate), mend),
        (rustls::Error::AlertReceived(AlertDescription::UnknownCA), mend),
        (rustls::Error::AlertReceived(AlertDescription::CertificateExpired), mend),
        (rustls::Error::AlertReceived(AlertDescription::InternalError), pass),
        (rustls::Error::AlertReceived(AlertDescription::HandshakeFailure), pass),
        (rustls::Error::HandshakeNotComplete, pass),
    ];
    for (error, verdict) in table {
        assert_eq!(tls_verdict(&error), verdict, "{error}");
    }
}

#[test]
fn of_two_servers_the_one_that_refuses_us_is_told() {
    let down = Disconnected::silent("nats://down");
    let refuses = Disconnected::denied("nats://refuses", "Authorization Violation");
    for told in [down.clone().or_more_telling(refuses.clone()), refuses.clone().or_more_telling(down)] {
        assert_eq!(told, refuses);
    }
}

#[test]
fn a_chain_of_causes_says_each_thing_once() {
    let error = NatsPublishError::with_source(NatsPublishErrorKind::Other, refusal(10077));
    let cause = Cause::of_answer(&error, SUBJECT, &stream(), &server());
    let error = cause.into_error(&SinkId::new(0, "js"));
    assert_eq!(
        hookgate_core::observe::Chain(&error).to_string(),
        "publish to js failed: the broker is unavailable: stream \"HOOKS\" answered: why (code 400, error code 10077)"
    );
}
