//! Text with places for an event's values, like `openclaw.{attr.job}.failed`, safe against what senders write.
//!
//! Every value is escaped for the grammar of its target, so that no sender can add a token, a wildcard or an over-long
//! key: what the operator wrote decides the shape of the result.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::event::{Event, hex};

/// What a rendered template is, which decides what is escaped in values and allowed in the text around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grammar {
    /// A NATS subject: tokens separated by `.`; `*` and `>` are wildcards.
    /// Source: NATS protocol documentation, "Subject names".
    NatsSubject,
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
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
    Attribute(String),
}

/// Longest rendering of one value, in bytes. A longer one keeps its beginning and ends in its hash.
const VALUE_LEN_MAX: usize = 128;

/// What a value that is absent or empty is rendered as: an empty token is no subject.
const ABSENT: &str = "_";

/// What stays as it is in a NATS token. `%` is what escapes begin with, so two values never render alike.
const NATS_PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b':').remove(b'@');

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
        let template = Self { parts };
        template.check(text, grammar)?;
        Ok(template)
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
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Value(value) => text.push_str(&escape(value.of(event))),
            }
        }
        text
    }

    /// Checks the operator's own text with a stand-in for each value: no value can change its shape.
    fn check(&self, text: &str, grammar: Grammar) -> Result<(), String> {
        let stand_in = |part: &Part| match part {
            Part::Text(plain) => plain.clone(),
            Part::Value(_) => "x".to_owned(),
        };
        let sample: String = self.parts.iter().map(stand_in).collect();
        match grammar {
            Grammar::NatsSubject => {
                if sample.split('.').any(str::is_empty) {
                    return Err(format!("{text:?} is not a NATS subject: a token is empty"));
                }
                match sample.chars().find(|c| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>' | '}')) {
                    Some(found) => Err(format!("{text:?} is not a NATS subject to publish to: it has {found:?}")),
                    None => Ok(()),
                }
            }
        }
    }
}

impl Value {
    fn parse(name: &str) -> Result<Self, String> {
        match (name, name.strip_prefix("attr.")) {
            ("source", _) => Ok(Self::Source),
            ("type", _) => Ok(Self::EventType),
            ("event_id", _) => Ok(Self::EventId),
            (_, Some(attribute)) if !attribute.is_empty() => Ok(Self::Attribute(attribute.to_owned())),
            _ => Err(format!("there is no value {{{name}}}; known: {{source}}, {{type}}, {{event_id}}, {{attr.NAME}}")),
        }
    }

    fn of<'a>(&self, event: &'a Event) -> &'a str {
        match self {
            Self::Source => event.source.name(),
            Self::EventType => &event.event_type,
            Self::EventId => event.id.as_str(),
            Self::Attribute(name) => event.attribute(name).unwrap_or_default(),
        }
    }
}

fn escape(value: &str) -> Cow<'_, str> {
    if value.is_empty() {
        return Cow::Borrowed(ABSENT);
    }
    let escaped = Cow::from(utf8_percent_encode(value, NATS_PLAIN));
    if escaped.len() <= VALUE_LEN_MAX {
        return escaped;
    }
    // `~` is escaped in values, so a shortened one cannot be mistaken for a whole one.
    let digest = hex(&Sha256::digest(value)[..8]);
    Cow::Owned(format!("{}~{digest}", &escaped[..VALUE_LEN_MAX - 1 - digest.len()]))
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
            assert_eq!(escape(value), expected);
        }
    }

    proptest! {
        #[test]
        fn any_value_is_one_bounded_token(value in any::<String>()) {
            let token = escape(&value);
            prop_assert!(!token.is_empty() && token.len() <= VALUE_LEN_MAX);
            prop_assert!(token.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'.' | b'*' | b'>')));
        }

        #[test]
        fn two_values_never_render_alike(a in "\\PC{0,200}", b in "\\PC{0,200}") {
            prop_assume!(a != "_" && b != "_");
            prop_assert_eq!(a == b, escape(&a) == escape(&b));
        }
    }
}
