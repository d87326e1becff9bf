//! The tables, row by row.

use lapin::{protocol::AMQPErrorKind, types::ShortString};
use rustls::CertificateError;

use super::*;

/// What the broker says when it closes a channel or a connection.
fn told(code: u16, words: &str) -> lapin::Error {
    let kind = AMQPErrorKind::from_id(code).unwrap_or_else(|| panic!("{code} is no reply code"));
    ErrorKind::ProtocolError(AMQPError::new(kind, ShortString::from(words))).into()
}

fn io_error(error: impl Into<Box<dyn Error + Send + Sync>>) -> lapin::Error {
    io::Error::new(io::ErrorKind::InvalidData, error).into()
}

#[test]
fn each_end_of_a_connection_has_its_verdict() {
    let table = [
        (told(403, "ACCESS_REFUSED - Login was refused"), misconfigured(PublishReason::Auth)),
        (told(530, "NOT_ALLOWED - access to vhost 'v' refused for user 'u'"), misconfigured(PublishReason::Auth)),
        (told(530, "NOT_ALLOWED - vhost v not found"), misconfigured(PublishReason::NoDestination)),
        (told(530, "NOT_ALLOWED - … connection limit (9) is reached"), throttled()),
        (told(320, "CONNECTION_FORCED - broker forced connection closure"), unavailable(PublishReason::ConnectionLost)),
        (told(541, "INTERNAL_ERROR"), unavailable(PublishReason::ConnectionLost)),
        (ErrorKind::MissingHeartbeatError.into(), unavailable(PublishReason::ConnectionLost)),
        (io_error("connection reset"), unavailable(PublishReason::ConnectionLost)),
        (io_error(rustls::Error::InvalidCertificate(CertificateError::Expired)), misconfigured(PublishReason::Tls)),
        (io_error(rustls::Error::AlertReceived(AlertDescription::UnknownCA)), misconfigured(PublishReason::Tls)),
        (io_error(rustls::Error::AlertReceived(AlertDescription::InternalError)), unavailable(PublishReason::Tls)),
        (io_error(rustls::Error::DecryptError), unavailable(PublishReason::Tls)),
    ];
    for (error, verdict) in table {
        assert_eq!(Disconnected::refused("amqp://a", &error).verdict, verdict, "{error}");
        assert_eq!(Disconnected::lost("amqp://a", Some(&error)).verdict, verdict, "{error}");
    }
    assert_eq!(Disconnected::lost("amqp://a", None).verdict, unavailable(PublishReason::ConnectionLost));
    assert_eq!(Disconnected::blocked("amqp://a", "low on memory").verdict, throttled());
}

#[test]
fn the_end_of_a_channel_refuses_what_was_not_sent_and_leaves_unknown_what_may_be_stored() {
    let too_large = "PRECONDITION_FAILED - message size 9 is larger than configured max size 4";
    let (gone, lost) = (unavailable(PublishReason::ConnectionLost), unknown(PublishReason::ConnectionLost));
    let (no_exchange, no_right) = (misconfigured(PublishReason::NoDestination), misconfigured(PublishReason::Auth));
    // The end; then what it means before sending, alone in flight, and beside others.
    let table = [
        (told(404, "NOT_FOUND - no exchange 'e' in vhost '/'"), no_exchange, no_exchange, lost),
        (told(403, "ACCESS_REFUSED - access to exchange 'e'"), no_right, no_right, lost),
        (told(406, too_large), gone, lost, lost),
        (told(406, "PRECONDITION_FAILED - something new"), gone, lost, lost),
        (told(541, "INTERNAL_ERROR"), gone, lost, lost),
        (io_error("connection reset"), gone, lost, lost),
    ];
    for (error, before, alone, beside) in table {
        let end = ChannelEnd::of(&error);
        assert_eq!(end.before_sending().verdict(), before, "{error}");
        assert_eq!(end.after_sending(4, true).verdict(), alone, "{error}");
        assert_eq!(end.after_sending(4, false).verdict(), beside, "{error}");
    }
    for is_alone in [true, false] {
        let verdict = ChannelEnd::of(&told(406, too_large)).after_sending(5, is_alone).verdict();
        assert_eq!(verdict, rejected(PublishReason::TooLarge));
    }
}

#[test]
fn the_broker_says_how_long_a_body_may_be() {
    assert_eq!(largest_body("message size 9 is larger than configured max size 4"), Some(4));
    assert_eq!(largest_body("message size 9 is larger than max size 536870912."), Some(536_870_912));
    assert_eq!(largest_body("inequivalent arg 'x' 9"), None);
    assert_eq!(largest_body("message size"), None);
}

#[test]
fn each_cause_of_ours_has_its_verdict() {
    let text = || "x".to_owned();
    let table = [
        (Cause::Closed, unavailable(PublishReason::ConnectionLost)),
        (Cause::Broken { broker: "a".into() }, unknown(PublishReason::ConnectionLost)),
        (Cause::NoAnswer, unknown(PublishReason::Timeout)),
        (Cause::NotSent, unavailable(PublishReason::Timeout)),
        (Cause::NoChannel, throttled()),
        (
            Cause::Unroutable { exchange: text(), routing_key: text(), words: "NO_ROUTE".into() },
            misconfigured(PublishReason::NoDestination),
        ),
        (Cause::Nacked { exchange: text(), routing_key: text() }, unavailable(PublishReason::Full)),
        (Cause::TooLarge { bytes: 2, bytes_max: 1, whose: "x" }, rejected(PublishReason::TooLarge)),
        (Cause::HeadersTooLarge { bytes: 2, bytes_max: 1 }, rejected(PublishReason::TooLarge)),
        (Cause::NotADestination { target: text() }, misconfigured(PublishReason::NoDestination)),
        (Cause::NotAHeader { name: text() }, rejected(PublishReason::Other)),
    ];
    for (cause, verdict) in table {
        assert_eq!(cause.verdict(), verdict, "{cause}");
    }
}

#[test]
fn of_two_brokers_the_one_that_waiting_does_not_mend_is_told() {
    let down = || Disconnected::silent("amqp://a");
    let refused = || Disconnected::refused("amqp://b", &told(403, "ACCESS_REFUSED"));
    assert_eq!(down().or_more_telling(refused()), refused());
    assert_eq!(refused().or_more_telling(down()), refused());
}
