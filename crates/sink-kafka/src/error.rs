//! What can go wrong with Kafka, and what that means to the caller: one table for each place that an answer comes from.

use std::{error::Error, sync::Arc};

use hookgate_core::{
    event::SinkId,
    sink::{
        Position, PublishError, PublishReason, Verdict,
        verdict::{misconfigured, rejected, throttled, unavailable, unknown},
    },
};
use rdkafka::{error::KafkaError, producer::future_producer::Delivery, types::RDKafkaErrorCode as Code};

use crate::access::AccessError;

/// Why no broker can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action}: {words}")]
pub(crate) struct Disconnected {
    pub(crate) verdict: Verdict,
    /// What was being done, and with which brokers.
    action: String,
    /// librdkafka's own words, which name the broker, or the system's.
    words: String,
}

impl Disconnected {
    /// Before the first answer.
    pub(crate) fn not_yet(brokers: &str) -> Self {
        Self::reaching(brokers, unavailable(PublishReason::ConnectionLost), "no answer yet")
    }

    /// Nothing came in time, and nothing else is known.
    pub(crate) fn silent(brokers: &str) -> Self {
        Self::reaching(brokers, unavailable(PublishReason::ConnectionLost), "no answer in time")
    }

    /// librdkafka reported this.
    pub(crate) fn reported(brokers: &str, code: Code, words: &str) -> Self {
        Self::reaching(brokers, connection_verdict(code), words)
    }

    /// The producer can publish nothing any more.
    pub(crate) fn fatal(brokers: &str, code: Code, words: &str) -> Self {
        let action = format!("publish to {brokers} with this producer");
        Self { verdict: connection_verdict(code), action, words: words.to_owned() }
    }

    /// What we need for a producer cannot be used any more.
    pub(crate) fn unprepared(brokers: &str, error: &AccessError) -> Self {
        let reason = if error.is_about_tls() { PublishReason::Tls } else { PublishReason::Auth };
        let words = match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Self::reaching(brokers, misconfigured(reason), &words)
    }

    /// Of two troubles the one that tells the operator more: the latest, unless only the one before needs him.
    pub(crate) fn or_more_telling(self, later: Self) -> Self {
        let keep = self.verdict.needs_an_operator() && !later.verdict.needs_an_operator();
        if keep { self } else { later }
    }

    fn reaching(brokers: &str, verdict: Verdict, words: &str) -> Self {
        Self { verdict, action: format!("reach Kafka at {brokers}"), words: words.to_owned() }
    }
}

/// Why a publish gave no receipt, or a probe no all-clear.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    #[error(transparent)]
    Disconnected(Arc<Disconnected>),
    #[error("the sink is closed")]
    Closed,
    #[error("{target} is no topic")]
    NotATopic { target: String },
    #[error("topic {topic:?} does not exist; create it with: kafka-topics.sh --create --topic {topic}")]
    NoTopic { topic: String },
    #[error("topic {topic:?} has no leader now")]
    NoLeader { topic: String },
    #[error("librdkafka took no message for topic {topic:?}: {}", words(*code))]
    NotTaken { topic: String, code: Code },
    #[error("topic {topic:?} answered: {}", words(*code))]
    Answered { topic: String, code: Code },
    #[error("the message is larger than `max_message`, {limit} B, allows")]
    TooLarge { limit: u64 },
    #[error("librdkafka's queue is full")]
    QueueFull,
    #[error("no answer came before the deadline")]
    NoAnswer,
    #[error("the deadline passed before the message could be sent")]
    NotSent,
    #[error("the producer was given up before the acknowledgement")]
    GivenUp,
    #[error("topic {topic:?} has the message at no offset: it may not be stored")]
    NoOffset { topic: String },
}

impl Cause {
    /// What it means to the caller.
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Self::Disconnected(disconnected) => disconnected.verdict,
            Self::Closed => unavailable(PublishReason::ConnectionLost),
            Self::NotATopic { .. } | Self::NoTopic { .. } => misconfigured(PublishReason::NoDestination),
            Self::NoLeader { .. } => unavailable(PublishReason::Other),
            Self::NotTaken { code, .. } => refusal_verdict(*code),
            Self::Answered { code, .. } => answer_verdict(*code),
            Self::TooLarge { .. } => rejected(PublishReason::TooLarge),
            Self::QueueFull => throttled(),
            Self::NoAnswer => unknown(PublishReason::Timeout),
            Self::NotSent => unavailable(PublishReason::Timeout),
            Self::GivenUp => unknown(PublishReason::ConnectionLost),
            Self::NoOffset { .. } => unknown(PublishReason::Other),
        }
    }

    /// Why librdkafka took no message. Nothing was sent.
    pub(crate) fn of_sending(error: &KafkaError, topic: &str, max_message: u64) -> Self {
        match error.rdkafka_error_code() {
            Some(Code::QueueFull) => Self::QueueFull,
            Some(Code::MessageSizeTooLarge) => Self::TooLarge { limit: max_message },
            Some(code) if is_missing_topic(code) => Self::NoTopic { topic: topic.to_owned() },
            Some(code) => Self::NotTaken { topic: topic.to_owned(), code },
            None => Self::NotTaken { topic: topic.to_owned(), code: Code::InvalidArgument },
        }
    }

    /// A delivery report of a failure.
    pub(crate) fn of_delivery(error: &KafkaError, topic: &str) -> Self {
        match error.rdkafka_error_code() {
            Some(code) if is_missing_topic(code) => Self::NoTopic { topic: topic.to_owned() },
            Some(Code::PurgeQueue | Code::PurgeInflight | Code::BrokerDestroy | Code::Fatal) | None => Self::GivenUp,
            Some(Code::MessageTimedOut) => Self::NoAnswer,
            Some(code) => Self::Answered { topic: topic.to_owned(), code },
        }
    }

    /// What the cluster says of a topic when it is asked.
    pub(crate) fn of_topic(code: Code, topic: &str) -> Self {
        match code {
            code if is_missing_topic(code) => Self::NoTopic { topic: topic.to_owned() },
            Code::LeaderNotAvailable => Self::NoLeader { topic: topic.to_owned() },
            code => Self::NotTaken { topic: topic.to_owned(), code },
        }
    }

    /// Whether librdkafka may have said it from memory: it believes what it once heard of a topic until it asks again.
    pub(crate) fn may_be_remembered(&self) -> bool {
        match self {
            Self::NoTopic { .. } => true,
            Self::NotTaken { code, .. } | Self::Answered { code, .. } => *code == Code::TopicAuthorizationFailed,
            _ => false,
        }
    }

    /// The error for the caller.
    pub(crate) fn into_error(self, sink: &SinkId) -> PublishError {
        let Verdict { kind, reason } = self.verdict();
        PublishError::new(sink, kind, reason).because(self)
    }
}

/// Where the broker says that it has stored a message.
///
/// An idempotent producer may be told that a message was there already, and then not always where. That earns no receipt: it
/// cannot be told from a broker that has lost it.
pub(crate) fn position(delivery: &Delivery, topic: &str) -> Result<Position, Cause> {
    match u64::try_from(delivery.offset) {
        Ok(offset) => {
            let place = format!("{topic}/{}", delivery.partition).into();
            Ok(Position { place, offset, duplicate: false })
        }
        Err(_) => Err(Cause::NoOffset { topic: topic.to_owned() }),
    }
}

/// Kafka's description of `code`.
fn words(code: Code) -> String {
    code.to_string()
}

/// Whether `code` says that there is no such topic.
pub(crate) fn is_missing_topic(code: Code) -> bool {
    matches!(
        code,
        Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::UnknownTopicId
            | Code::InvalidTopic
    )
}

/// Whether the cluster does not let us in, or not do this.
fn is_refusal_of_us(code: Code) -> bool {
    matches!(
        code,
        Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::IllegalSASLState
            | Code::SecurityDisabled
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
    )
}

/// What librdkafka's trouble with a connection means.
fn connection_verdict(code: Code) -> Verdict {
    match code {
        code if is_refusal_of_us(code) => misconfigured(PublishReason::Auth),
        // Of a handshake that breaks off for want of a network it says that the transport failed.
        Code::SSL => misconfigured(PublishReason::Tls),
        Code::UnsupportedFeature => misconfigured(PublishReason::Other),
        _ => unavailable(PublishReason::ConnectionLost),
    }
}

/// What it means that librdkafka took no message, or that the cluster says this of a topic.
fn refusal_verdict(code: Code) -> Verdict {
    match code {
        code if is_refusal_of_us(code) => misconfigured(PublishReason::Auth),
        Code::InvalidArgument => rejected(PublishReason::Other),
        _ => unavailable(PublishReason::Other),
    }
}

/// What the answer to a message that was handed over means. What librdkafka repeats by itself comes here only when it has
/// given up.
///
/// Source: Apache Kafka protocol guide, "Error Codes"; librdkafka `rdkafka_request.c`, `rd_kafka_handle_Produce_error`.
fn answer_verdict(code: Code) -> Verdict {
    match code {
        code if is_refusal_of_us(code) => misconfigured(PublishReason::Auth),
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => rejected(PublishReason::TooLarge),
        Code::InvalidRecord | Code::InvalidMessage | Code::InvalidTimestamp | Code::PolicyViolation => {
            rejected(PublishReason::Other)
        }
        Code::UnsupportedCompressionType | Code::UnsupportedForMessageFormat | Code::InvalidRequiredAcks => {
            misconfigured(PublishReason::Other)
        }
        Code::ThrottlingQuotaExceeded => throttled(),
        // Said before anything is appended.
        Code::NotEnoughReplicas | Code::LeaderNotAvailable | Code::NotLeaderForPartition | Code::BrokerNotAvailable => {
            unavailable(PublishReason::Other)
        }
        Code::RequestTimedOut => unknown(PublishReason::Timeout),
        Code::BrokerTransportFailure | Code::AllBrokersDown | Code::NetworkException => {
            unknown(PublishReason::ConnectionLost)
        }
        // Among them: appended and not replicated, sequence numbers that do not follow.
        _ => unknown(PublishReason::Other),
    }
}

#[cfg(test)]
mod tests;
