//! The tables, row by row.

use rdkafka::Timestamp;

use super::*;

fn delivery_failed(code: Code) -> Verdict {
    Cause::of_delivery(&KafkaError::MessageProduction(code), "hooks").verdict()
}

fn not_taken(code: Code) -> Verdict {
    Cause::of_sending(&KafkaError::MessageProduction(code), "hooks", 1000).verdict()
}

#[test]
fn a_delivery_is_a_position() {
    let delivery = Delivery { partition: 3, offset: 7, timestamp: Timestamp::NotAvailable };
    let found = position(&delivery, "hooks").expect("it is stored");
    assert_eq!((&*found.place, found.offset, found.duplicate), ("hooks/3", 7, false));
}

#[test]
fn a_delivery_at_no_offset_is_unknown() {
    let delivery = Delivery { partition: 3, offset: -1, timestamp: Timestamp::NotAvailable };
    let cause = position(&delivery, "hooks").expect_err("it is nowhere");
    assert_eq!(cause.verdict(), unknown(PublishReason::Other));
}

#[test]
fn each_failed_delivery_has_its_verdict() {
    let table = [
        (Code::UnknownTopicOrPartition, misconfigured(PublishReason::NoDestination)),
        (Code::UnknownTopic, misconfigured(PublishReason::NoDestination)),
        (Code::UnknownPartition, misconfigured(PublishReason::NoDestination)),
        (Code::TopicAuthorizationFailed, misconfigured(PublishReason::Auth)),
        (Code::ClusterAuthorizationFailed, misconfigured(PublishReason::Auth)),
        (Code::MessageSizeTooLarge, rejected(PublishReason::TooLarge)),
        (Code::InvalidRecord, rejected(PublishReason::Other)),
        (Code::NotEnoughReplicas, unavailable(PublishReason::Other)),
        (Code::LeaderNotAvailable, unavailable(PublishReason::Other)),
        (Code::NotEnoughReplicasAfterAppend, unknown(PublishReason::Other)),
        (Code::MessageTimedOut, unknown(PublishReason::Timeout)),
        (Code::RequestTimedOut, unknown(PublishReason::Timeout)),
        (Code::BrokerTransportFailure, unknown(PublishReason::ConnectionLost)),
        (Code::PurgeQueue, unknown(PublishReason::ConnectionLost)),
        (Code::PurgeInflight, unknown(PublishReason::ConnectionLost)),
        (Code::Fatal, unknown(PublishReason::ConnectionLost)),
        (Code::OutOfOrderSequenceNumber, unknown(PublishReason::Other)),
        (Code::KafkaStorageError, unknown(PublishReason::Other)),
    ];
    for (code, verdict) in table {
        assert_eq!(delivery_failed(code), verdict, "{code:?}");
    }
}

#[test]
fn what_was_never_taken_is_never_unknown() {
    let table = [
        (Code::QueueFull, throttled()),
        (Code::MessageSizeTooLarge, rejected(PublishReason::TooLarge)),
        (Code::UnknownTopic, misconfigured(PublishReason::NoDestination)),
        (Code::TopicAuthorizationFailed, misconfigured(PublishReason::Auth)),
        (Code::Fatal, unavailable(PublishReason::Other)),
        (Code::State, unavailable(PublishReason::Other)),
    ];
    for (code, verdict) in table {
        assert_eq!(not_taken(code), verdict, "{code:?}");
    }
}

#[test]
fn each_trouble_with_a_connection_has_its_verdict() {
    let table = [
        (Code::Authentication, misconfigured(PublishReason::Auth)),
        (Code::SSL, misconfigured(PublishReason::Tls)),
        (Code::BrokerTransportFailure, unavailable(PublishReason::ConnectionLost)),
        (Code::Resolve, unavailable(PublishReason::ConnectionLost)),
        (Code::Fatal, unavailable(PublishReason::ConnectionLost)),
    ];
    for (code, verdict) in table {
        assert_eq!(connection_verdict(code), verdict, "{code:?}");
    }
}

#[test]
fn a_refusal_is_told_rather_than_what_comes_after_it() {
    let refused = || Disconnected::reported("a", Code::Authentication, "no");
    let lost = || Disconnected::reported("a", Code::BrokerTransportFailure, "gone");
    assert_eq!(refused().or_more_telling(lost()), refused());
    assert_eq!(lost().or_more_telling(refused()), refused());
    assert_eq!(lost().to_string(), "reach Kafka at a: gone");
}
