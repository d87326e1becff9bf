//! Text with places for an event's values, like `openclaw.{attr.job}.failed`, safe against what senders write.
//!
//! Every value is escaped for the grammar of its target, so that no sender can add a token, a wildcard or an over-long
//! key: what the operator wrote decides the shape of the result.

use std::borrow::Cow;

use data_encoding::HEXLOWER;
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::event::Event;

/// Room for what most templates render.
const RENDERED_BYTES: usize = 64;

/// What a rendered template is, which decides what is escaped in values and allowed in the text around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grammar {
    /// A NATS subject: tokens separated by `.`; `*` and `>` are wildcards.
    /// Source: NATS protocol documentation, "Subject names".
    NatsSubject,
    /// A Kafka topic: letters, digits, `.`, `_` and `-`, at most 249 of them.
    /// Source: Apache Kafka 4.1, `org.apache.kafka.common.internals.Topic`.
    KafkaTopic,
    /// A Kafka key: any bytes.
    KafkaKey,
    /// An AMQP exchange, or a routing key, whose words `.` separates: at most 255 bytes.
    /// Source: AMQP 0-9-1 specification, sections 3.1.3.3 (topic exchange) and 4.2.5.3 (short strings).
    AmqpName,
    /// The value of a header: one line of printable ASCII.
    HeaderValue,
}

/// A character of what a template renders, or a value that is not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Symbol {
    Plain(char),
    Value,
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
    grammar: Grammar,
    /// Longest rendering of one value, in bytes.
    value_len_max: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(Value),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Source,
    EventType,
    EventId,
    PartitionKey,
    Attribute(String),
}

/// Longest rendering of one value, in bytes, where the target has room for it. A longer one keeps its beginning and ends in
/// its hash.
const VALUE_LEN_MAX: usize = 128;

/// The same in a header, where there is more room than in a name.
const HEADER_VALUE_LEN_MAX: usize = 1024;

/// Room that a value must have: a hash, and enough before it to be told by.
const VALUE_LEN_MIN: usize = 32;

/// What a value that is absent or empty is rendered as: an empty token is no subject.
const ABSENT: &str = "_";

/// What stays as it is in a token of NATS or AMQP. `%` is what escapes begin with, so two values never render alike.
const TOKEN_PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b':').remove(b'@');

/// What stays as it is in a Kafka topic, where `%` cannot stand: escapes begin with `_`.
const TOPIC_PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-');

/// What is escaped in a header: what would end its line, and what escapes begin with. What is not ASCII is escaped anyway.
const HEADER_ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

impl Grammar {
    /// Longest rendering of one value, in bytes, where the target has room for it.
    fn value_len_max(self) -> usize {
        match self {
            Self::NatsSubject | Self::KafkaTopic | Self::KafkaKey | Self::AmqpName => VALUE_LEN_MAX,
            Self::HeaderValue => HEADER_VALUE_LEN_MAX,
        }
    }

    /// Longest text, in bytes, if there is a bound.
    fn len_max(self) -> Option<usize> {
        match self {
            Self::NatsSubject | Self::KafkaKey | Self::HeaderValue => None,
            Self::KafkaTopic => Some(249),
            Self::AmqpName => Some(255),
        }
    }
}

impl Template {
    /// Parses `text` for `grammar`.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn parse(text: &str, grammar: Grammar) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            let close = rest[open..].find('}').ok_or_else(|| format!("{text:?} has a \"{{\" without \"}}\""))? + open;
            if open > 0 {
                parts.push(Part::Text(rest[..open].to_owned()));
            }
            parts.push(Part::Value(Value::parse(&rest[open + 1..close])?));
            rest = &rest[close + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        let mut template = Self { parts, grammar, value_len_max: grammar.value_len_max() };
        template.check(text)?;
        if let Some(len_max) = grammar.len_max() {
            template.value_len_max = template.room(text, len_max)?;
        }
        Ok(template)
    }

    /// How long each value may be so that the whole is no longer than `len_max`.
    fn room(&self, text: &str, len_max: usize) -> Result<usize, String> {
        let plain = |part: &Part| match part {
            Part::Text(plain) => plain.len(),
            Part::Value(_) => 0,
        };
        let values = self.parts.iter().filter(|part| matches!(part, Part::Value(_))).count();
        let left = len_max.checked_sub(self.parts.iter().map(plain).sum());
        let each = left.map(|left| left.checked_div(values).unwrap_or(VALUE_LEN_MAX).min(VALUE_LEN_MAX));
        match each {
            Some(each) if each >= VALUE_LEN_MIN => Ok(each),
            _ => Err(format!("{text:?} may become longer than the {len_max} bytes that the broker takes; shorten it")),
        }
    }

    /// The attributes that it reads.
    pub fn attributes(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Value(Value::Attribute(name)) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The text for `event`.
    pub fn render(&self, event: &Event) -> String {
        self.fill(|value| value.of(event))
    }

    fn fill<'a>(&self, of: impl Fn(&Value) -> &'a str) -> String {
        let mut text = String::with_capacity(RENDERED_BYTES);
        for part in &self.parts {
            match part {
                Part::Text(plain) => text.push_str(plain),
                // It is printable ASCII as it is, and stands so in every other header.
                Part::Value(value @ Value::EventId) if self.grammar == Grammar::HeaderValue => text.push_str(of(value)),
                Part::Value(value) => text.push_str(&escape(of(value), self.grammar, self.value_len_max)),
            }
        }
        text
    }

    /// What it renders, as far as that is known before there is an event.
    pub(crate) fn symbols(&self) -> impl Iterator<Item = Symbol> {
        self.parts.iter().flat_map(|part| {
            let (plain, value) = match part {
                Part::Text(plain) => (plain.as_str(), None),
                Part::Value(_) => ("", Some(Symbol::Value)),
            };
            plain.chars().map(Symbol::Plain).chain(value)
        })
    }

    /// The text with an `x` for each value.
    pub fn example(&self) -> String {
        let stand_in = |part: &Part| match part {
            Part::Text(plain) => plain.clone(),
            Part::Value(_) => "x".to_owned(),
        };
        self.parts.iter().map(stand_in).collect()
    }

    /// Checks the operator's own text with a stand-in for each value: no value can change its shape.
    fn check(&self, text: &str) -> Result<(), String> {
        let sample = self.example();
        match self.grammar {
            Grammar::NatsSubject => {
                if sample.split('.').any(str::is_empty) {
                    return Err(format!("{text:?} is not a NATS subject: a token is empty"));
                }
                match sample.chars().find(|c| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>' | '}')) {
                    Some(found) => Err(format!("{text:?} is not a NATS subject to publish to: it has {found:?}")),
                    None => Ok(()),
                }
            }
            Grammar::KafkaTopic => {
                let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
                match sample.chars().find(|c| !legal(*c)) {
                    Some(found) => Err(format!("{text:?} is not a Kafka topic: it has {found:?}")),
                    None if matches!(sample.as_str(), "" | "." | "..") => {
                        Err(format!("{text:?} is not a Kafka topic; give it a name"))
                    }
                    None => Ok(()),
                }
            }
            Grammar::HeaderValue => match sample.chars().find(|c| !(c.is_ascii_graphic() || *c == ' ') || *c == '}') {
                Some(found) => Err(format!("{text:?} is not the value of a header: it has {found:?}")),
                None => Ok(()),
            },
            Grammar::KafkaKey | Grammar::AmqpName => match sample.chars().find(|c| c.is_control() || *c == '}') {
                Some(found) => Err(format!("{text:?} has {found:?} in it")),
                None => Ok(()),
            },
        }
    }
}

impl Value {
    fn parse(name: &str) -> Result<Self, String> {
        match (name, name.strip_prefix("attr.")) {
            ("source", _) => Ok(Self::Source),
            ("type", _) => Ok(Self::EventType),
            ("event_id", _) => Ok(Self::EventId),
            ("partition_key", _) => Ok(Self::PartitionKey),
            (_, Some(attribute)) if !attribute.is_empty() => Ok(Self::Attribute(attribute.to_owned())),
            _ => Err(format!(
                "there is no value {{{name}}}; known: {{source}}, {{type}}, {{event_id}}, {{partition_key}}, {{attr.NAME}}"
            )),
        }
    }

    fn of<'a>(&self, event: &'a Event) -> &'a str {
        match self {
            Self::Source => event.source.name(),
            Self::EventType => &event.event_type,
            Self::EventId => event.id.as_str(),
            Self::PartitionKey => event.partition_key(),
            Self::Attribute(name) => event.attribute(name).unwrap_or_default(),
        }
    }
}

fn escape(value: &str, grammar: Grammar, len_max: usize) -> Cow<'_, str> {
    if value.is_empty() {
        return Cow::Borrowed(ABSENT);
    }
    // What a shortened one has before its hash is escaped in values, so that it cannot be mistaken for a whole one.
    let (escaped, before_hash) = match grammar {
        Grammar::NatsSubject | Grammar::AmqpName => (Cow::from(utf8_percent_encode(value, TOKEN_PLAIN)), '~'),
        Grammar::KafkaTopic => (Cow::from(utf8_percent_encode(value, TOPIC_PLAIN).to_string().replace('%', "_")), '.'),
        // Nothing in a key means anything to Kafka.
        Grammar::KafkaKey => (Cow::from(value), '~'),
        Grammar::HeaderValue => (Cow::from(utf8_percent_encode(value, HEADER_ESCAPED)), '~'),
    };
    if escaped.len() <= len_max {
        return escaped;
    }
    let digest = HEXLOWER.encode(&Sha256::digest(value)[..8]);
    let mut cut = len_max - 1 - digest.len();
    while !escaped.is_char_boundary(cut) {
        cut -= 1;
    }
    Cow::Owned(format!("{}{before_hash}{digest}", &escaped[..cut]))
}

/// What `template` renders with these for `{source}` and `{type}`.
#[cfg(test)]
pub(crate) fn render_with(template: &Template, source: &str, event_type: &str) -> String {
    template.fill(|value| match value {
        Value::Source => source,
        Value::EventType => event_type,
        other => unreachable!("{other:?} is not in these templates"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_template_that_is_no_subject_is_refused() {
        for bad in ["", "a..b", ".a", "a.", "a b", "a.*", "a.>", "a.{attr.}", "a.{job}", "a.{attr.job", "a}"] {
            assert!(Template::parse(bad, Grammar::NatsSubject).is_err(), "{bad}");
        }
        assert!(Template::parse("hooks.{source}.job-{attr.job}", Grammar::NatsSubject).is_ok());
    }

    #[test]
    fn hostile_values_stay_one_token() {
        for (value, expected) in
            [("a.b", "a%2Eb"), ("*", "%2A"), (">", "%3E"), ("a b\n", "a%20b%0A"), ("$JS", "%24JS"), ("", "_")]
        {
            assert_eq!(escape(value, Grammar::NatsSubject, VALUE_LEN_MAX), expected);
        }
        for (value, expected) in [("a.b", "a_2Eb"), ("a_b", "a_5Fb"), ("a/b", "a_2Fb"), ("ä", "_C3_A4"), ("", "_")] {
            assert_eq!(escape(value, Grammar::KafkaTopic, VALUE_LEN_MAX), expected);
        }
        assert_eq!(escape("a.b#*", Grammar::AmqpName, VALUE_LEN_MAX), "a%2Eb%23%2A");
        assert_eq!(escape("a.b ü", Grammar::KafkaKey, VALUE_LEN_MAX), "a.b ü");
    }

    #[test]
    fn a_text_that_the_broker_would_not_take_is_refused() {
        for (bad, grammar) in [
            ("", Grammar::KafkaTopic),
            ("..", Grammar::KafkaTopic),
            ("a b", Grammar::KafkaTopic),
            ("a/{source}", Grammar::KafkaTopic),
            ("a\n", Grammar::AmqpName),
            ("a}", Grammar::KafkaKey),
        ] {
            assert!(Template::parse(bad, grammar).is_err(), "{bad:?}");
        }
        let long = "a".repeat(230);
        assert!(Template::parse(&long, Grammar::KafkaTopic).is_ok());
        assert!(Template::parse(&format!("{long}{{source}}"), Grammar::KafkaTopic).is_err(), "no room for a value");
        assert!(Template::parse("", Grammar::AmqpName).is_ok(), "the default exchange");
        let two = Template::parse("{source}.{attr.a}.{attr.b}", Grammar::AmqpName).expect("room for each");
        assert!(two.value_len_max * 3 + 2 <= 255);
    }

    proptest! {
        #[test]
        fn any_value_is_one_bounded_token(value in any::<String>()) {
            for grammar in [Grammar::NatsSubject, Grammar::AmqpName] {
                let token = escape(&value, grammar, VALUE_LEN_MAX);
                prop_assert!(!token.is_empty() && token.len() <= VALUE_LEN_MAX);
                prop_assert!(token.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'.' | b'*' | b'#' | b'>')));
            }
            let topic = escape(&value, Grammar::KafkaTopic, VALUE_LEN_MIN);
            prop_assert!(!topic.is_empty() && topic.len() <= VALUE_LEN_MIN);
            prop_assert!(topic.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')));
            prop_assert!(escape(&value, Grammar::KafkaKey, VALUE_LEN_MAX).len() <= VALUE_LEN_MAX);
            let header = escape(&value, Grammar::HeaderValue, HEADER_VALUE_LEN_MAX);
            prop_assert!(!header.is_empty() && header.len() <= HEADER_VALUE_LEN_MAX);
            prop_assert!(header.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
        }

        #[test]
        fn two_values_never_render_alike(a in "\\PC{0,200}", b in "\\PC{0,200}") {
            prop_assume!(a != "_" && b != "_");
            for grammar in [Grammar::NatsSubject, Grammar::AmqpName, Grammar::KafkaTopic] {
                let escape = |value| escape(value, grammar, VALUE_LEN_MAX);
                prop_assert_eq!(a == b, escape(&a) == escape(&b));
            }
        }
    }
}
