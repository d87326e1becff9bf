//! Where routes may publish to in a sink: patterns that every template is held against at load, so that no event can
//! be sent elsewhere.

#[cfg(test)]
use crate::sink::Target;
use crate::{
    sink::Addressing,
    template::{Symbol, Template},
};

/// A pattern of an `allow` list.
///
/// For subjects the wildcards are those of NATS: `*` is one token, `>` at the end is one or more. Elsewhere `*` is any run of
/// characters; an exchange and its routing key are written as `exchange/routing-key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// One for each place that a target names: an exchange has its own.
    patterns: Vec<Vec<char>>,
    by_token: bool,
}

impl Allowed {
    /// Reads `text` for a sink with `addressing`.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn parse(text: &str, addressing: Addressing) -> Result<Self, String> {
        let by_token = match addressing {
            Addressing::None => return Err(format!("{text:?} allows nothing: the sink has one place only")),
            Addressing::Subject => true,
            Addressing::Topic => false,
            Addressing::Exchange if text.contains('/') => false,
            Addressing::Exchange => {
                return Err(format!("{text:?} has no \"/\"; write exchange/routing-key, like \"hooks/openclaw.*\""));
            }
        };
        if by_token {
            let tokens: Vec<&str> = text.split('.').collect();
            let misplaced = tokens.iter().rev().skip(1).any(|token| *token == ">");
            let wild = |token: &&str| token.len() > 1 && token.contains(['*', '>']);
            if misplaced || tokens.iter().any(|token| token.is_empty() || wild(token)) {
                let advice = "tokens are separated by \".\", \"*\" is one token, and \">\" stands at the end";
                return Err(format!("{text:?} is no subject pattern: {advice}"));
            }
        }
        let parts: Vec<&str> = match addressing {
            Addressing::Exchange => text.splitn(2, '/').collect(),
            _ => vec![text],
        };
        Ok(Self { patterns: parts.iter().map(|part| part.chars().collect()).collect(), by_token })
    }

    /// Whether everything that the templates of one target can render is allowed. `templates` are those of its places, in the
    /// order in which they are written; `false` also when that cannot be proved.
    pub(super) fn covers(&self, templates: &[&Template]) -> bool {
        self.match_all(templates.iter().map(|template| template.symbols().collect()))
    }

    /// Whether `target` is allowed: what [`Self::covers`] promises of every one that is rendered.
    #[cfg(test)]
    fn matches(&self, target: &Target) -> bool {
        let places: &[&String] = match target {
            Target::Whole => &[],
            Target::Subject(subject) => &[subject],
            Target::Topic { topic, .. } => &[topic],
            Target::Exchange { exchange, routing_key } => &[exchange, routing_key],
        };
        self.match_all(places.iter().map(|text| text.chars().map(Symbol::Plain).collect()))
    }

    fn match_all(&self, places: impl ExactSizeIterator<Item = Vec<Symbol>>) -> bool {
        let matches = |(pattern, symbols): (&Vec<char>, Vec<Symbol>)| match self.by_token {
            true => matches_tokens(pattern, &symbols),
            false => matches_glob(pattern, &symbols),
        };
        places.len() == self.patterns.len() && self.patterns.iter().zip(places).all(matches)
    }
}

/// A value has no `.` in it, so tokens can be told apart before it is known.
fn matches_tokens(pattern: &[char], symbols: &[Symbol]) -> bool {
    let mut tokens = symbols.split(|symbol| *symbol == Symbol::Plain('.'));
    for wanted in pattern.split(|c| *c == '.') {
        let Some(token) = tokens.next() else { return false };
        match wanted {
            ['>'] => return true,
            ['*'] => {}
            _ => {
                let same = |(wanted, symbol): (&char, &Symbol)| *symbol == Symbol::Plain(*wanted);
                if wanted.len() != token.len() || !wanted.iter().zip(token).all(same) {
                    return false;
                }
            }
        }
    }
    tokens.next().is_none()
}

/// Greedy, with one way back: the last `*` takes one more. A value is taken by a `*` only.
fn matches_glob(pattern: &[char], symbols: &[Symbol]) -> bool {
    let (mut at, mut here) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while here < symbols.len() {
        match pattern.get(at) {
            Some('*') => {
                back = Some((at, here));
                at += 1;
            }
            Some(wanted) if symbols[here] == Symbol::Plain(*wanted) => {
                at += 1;
                here += 1;
            }
            _ => {
                let Some((star, taken)) = back else { return false };
                back = Some((star, taken + 1));
                (at, here) = (star + 1, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::template::{Grammar, render_with};

    fn subject(pattern: &str, template: &str) -> bool {
        let template = Template::parse(template, Grammar::NatsSubject).expect("a subject");
        Allowed::parse(pattern, Addressing::Subject).expect("a pattern").covers(&[&template])
    }

    #[test]
    fn what_cannot_be_rendered_elsewhere_is_allowed() {
        for (pattern, template, covered) in [
            ("openclaw.>", "openclaw.{attr.job}.failed", true),
            ("openclaw.*.failed", "openclaw.{attr.job}.failed", true),
            ("openclaw.*", "openclaw.{attr.job}.failed", false),
            ("openclaw.*", "openclaw.x-{attr.job}", true),
            ("openclaw.x", "openclaw.{attr.job}", false),
            ("openclaw.>", "openclaw", false),
            ("openclaw.>", "{source}.x", false),
            ("*.x", "{source}.x", true),
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
        ] {
            assert_eq!(subject(pattern, template), covered, "{pattern} {template}");
        }
        let names = |pattern: &str, exchange: &str, key: &str| {
            let [exchange, key] = [exchange, key].map(|text| Template::parse(text, Grammar::AmqpName).expect("a name"));
            Allowed::parse(pattern, Addressing::Exchange).expect("a pattern").covers(&[&exchange, &key])
        };
        assert!(names("hooks/openclaw.*", "hooks", "openclaw.{attr.job}.failed"));
        assert!(!names("hooks/openclaw.*", "hooks-{source}", "openclaw.x"));
        assert!(!names("hooks/openclaw.*", "hooks", "{source}"));
        assert!(names("*/*", "{source}", "{type}"));
        assert!(!names("hooks/*", "hooks/other", "x"), "the exchange is a part of its own");
        assert!(names("a*b*c/x", "a{source}b-b{type}c", "x"));
    }

    #[test]
    fn a_pattern_that_is_none_is_refused() {
        for (bad, addressing) in [
            ("a.>.b", Addressing::Subject),
            ("a..b", Addressing::Subject),
            ("a.b*", Addressing::Subject),
            ("", Addressing::Subject),
            ("hooks", Addressing::Exchange),
            ("x", Addressing::None),
        ] {
            assert!(Allowed::parse(bad, addressing).is_err(), "{bad}");
        }
    }

    /// What a sender may write: anything, and more often than by chance what means something to a broker.
    fn hostile() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[.*>#/ a-c~%_\\n\\x00-]{0,12}",
            Just(String::new()),
            Just("x".repeat(10_000)),
            Just(".".repeat(10_000)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_proved_holds_for_every_value(
            pattern in "[a-c]([.](\\*|[a-c]{1,2})){0,3}([.]>)?",
            template in "[a-c]?(\\{source\\}|[a-c])([.][a-c]?(\\{type\\}|[a-c])){0,3}",
            values in (hostile(), hostile()),
        ) {
            let allowed = Allowed::parse(&pattern, Addressing::Subject).expect("a pattern");
            let template = Template::parse(&template, Grammar::NatsSubject).expect("a subject");
            let rendered = Target::Subject(render_with(&template, &values.0, &values.1));
            prop_assert!(!allowed.covers(&[&template]) || allowed.matches(&rendered), "{rendered}");
        }

        #[test]
        fn the_same_of_topics_and_routing_keys(
            pattern in "[a-c*]{0,4}/[a-c*.]{0,4}",
            exchange in "[a-c]{0,2}(\\{source\\})?[a-c]?",
            key in "[a-c]?(\\{type\\})?[a-c.]{0,2}",
            values in (hostile(), hostile()),
        ) {
            let allowed = Allowed::parse(&pattern, Addressing::Exchange).expect("a pattern");
            let [exchange, key] = [&exchange, &key].map(|text| Template::parse(text, Grammar::AmqpName).expect("a name"));
            let [one, other] = [&exchange, &key].map(|template| render_with(template, &values.0, &values.1));
            let rendered = Target::Exchange { exchange: one, routing_key: other };
            prop_assert!(!allowed.covers(&[&exchange, &key]) || allowed.matches(&rendered), "{rendered}");
        }

        #[test]
        fn no_value_adds_a_token_or_changes_what_stands_before_it(
            before in "[a-z]{1,8}([.][a-z]{1,4}){0,2}",
            after in "([.][a-z]{1,4}){0,2}",
            values in (hostile(), hostile()),
        ) {
            let text = format!("{before}.{{source}}.{{type}}{after}");
            for grammar in [Grammar::NatsSubject, Grammar::AmqpName] {
                let template = Template::parse(&text, grammar).expect("a template");
                let rendered = render_with(&template, &values.0, &values.1);
                prop_assert_eq!(rendered.split('.').count(), text.split('.').count());
                let prefix = format!("{before}.");
                prop_assert!(rendered.starts_with(&prefix) && rendered.ends_with(&after));
            }
            let topic = text.replace('.', "-");
            let rendered = render_with(&Template::parse(&topic, Grammar::KafkaTopic).expect("a topic"), &values.0, &values.1);
            let prefix = format!("{}-", before.replace('.', "-"));
            prop_assert!(rendered.starts_with(&prefix) && rendered.len() <= 249);
        }
    }
}
