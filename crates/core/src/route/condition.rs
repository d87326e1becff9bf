//! The rules of routes: for now equalities joined by `&&`, written as CEL, so that every rule stays valid when the rest of
//! the language comes.

use super::{Names, unknown_attribute};
use crate::event::Event;

/// A rule over an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    /// All of these hold; none means always.
    equalities: Vec<(Subject, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Source,
    EventType,
    Attribute(String),
}

impl Condition {
    /// The rule that every event fits.
    pub(super) fn always() -> Self {
        Self { equalities: Vec::new() }
    }

    /// Parses `attr.status == "error" && source == "openclaw"`.
    pub(super) fn parse(text: &str, names: &Names<'_>) -> Result<Self, String> {
        let mut rest = Cursor { whole: text, rest: text };
        let mut equalities = Vec::new();
        loop {
            let subject = rest.subject(names)?;
            rest.expect("==")?;
            let value = rest.string()?;
            if let Subject::Source = subject
                && !names.sources.contains(&value)
            {
                return Err(format!("there is no source {value:?}; known: {}", names.sources.join(", ")));
            }
            equalities.push((subject, value));
            if rest.at_end() {
                return Ok(Self { equalities });
            }
            rest.expect("&&")?;
        }
    }

    /// Whether `event` fits. An attribute that it does not have equals nothing.
    pub(super) fn holds(&self, event: &Event) -> bool {
        self.equalities.iter().all(|(subject, value)| {
            let actual = match subject {
                Subject::Source => Some(event.source.name()),
                Subject::EventType => Some(&*event.event_type),
                Subject::Attribute(name) => event.attribute(name),
            };
            actual == Some(value)
        })
    }
}

struct Cursor<'a> {
    whole: &'a str,
    rest: &'a str,
}

impl Cursor<'_> {
    fn at_end(&mut self) -> bool {
        self.rest = self.rest.trim_start();
        self.rest.is_empty()
    }

    fn fail<T>(&self, message: &str) -> Result<T, String> {
        let column = self.whole.len() - self.rest.len() + 1;
        let form = "a rule is like 'source == \"openclaw\" && attr.status == \"error\"'";
        Err(format!("{message} at column {column} of '{}'; {form}", self.whole))
    }

    fn expect(&mut self, symbol: &str) -> Result<(), String> {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(symbol) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => self.fail(&format!("expected {symbol}")),
        }
    }

    fn subject(&mut self, names: &Names<'_>) -> Result<Subject, String> {
        self.rest = self.rest.trim_start();
        let end =
            self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.').unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        let subject = match (word, word.strip_prefix("attr.")) {
            ("source", _) => Subject::Source,
            ("type", _) => Subject::EventType,
            (_, Some(name)) if names.attributes.iter().any(|known| known == name) => {
                Subject::Attribute(name.to_owned())
            }
            (_, Some(name)) => return Err(unknown_attribute(name, names)),
            _ => return self.fail("expected source, type or attr.NAME"),
        };
        self.rest = rest;
        Ok(subject)
    }

    /// A CEL string in either quotes, with `\\`, `\"` and `\'`.
    fn string(&mut self) -> Result<String, String> {
        self.rest = self.rest.trim_start();
        let Some(quote) = self.rest.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
            return self.fail("expected a string in quotes");
        };
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((place, c)) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some((_, escaped @ ('\\' | '"' | '\''))) => text.push(escaped),
                    _ => return self.fail("only \\\\, \\\" and \\' are escapes in the string"),
                },
                _ if c == quote => {
                    self.rest = &self.rest[place + 1..];
                    return Ok(text);
                }
                _ => text.push(c),
            }
        }
        self.fail("the string has no closing quote")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Condition, String> {
        let (sources, attributes) = (["openclaw".to_owned()], ["status".to_owned()]);
        Condition::parse(text, &Names { sinks: &[], sources: &sources, attributes: &attributes })
    }

    #[test]
    fn equalities_are_parsed_as_cel_writes_them() {
        let condition = parse(r#" source=="openclaw" && attr.status == 'it\'s "bad"\\' "#).expect("valid");
        let expected = [
            (Subject::Source, "openclaw".to_owned()),
            (Subject::Attribute("status".to_owned()), r#"it's "bad"\"#.to_owned()),
        ];
        assert_eq!(condition.equalities, expected);
    }

    #[test]
    fn a_rule_that_is_none_says_where_and_why() {
        for (text, hint) in [
            ("", "expected source, type or attr.NAME at column 1"),
            ("source = \"openclaw\"", "expected == at column 8"),
            ("source == openclaw", "expected a string in quotes at column 11"),
            ("source == \"openclaw\" || type == \"x\"", "expected && at column 22"),
            ("source == \"openclaw", "no closing quote"),
            ("source == \"opneclaw\"", "there is no source \"opneclaw\"; known: openclaw"),
            ("attr.state == \"x\"", "no source has an attribute \"state\"; known: status"),
        ] {
            let message = parse(text).expect_err(text);
            assert!(message.contains(hint), "{text}: {message}");
        }
    }
}
