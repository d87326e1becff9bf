//! The signatures in a header's value: one, several in a list, or those with one label among named parts.

use std::{fmt, str::FromStr};

use super::super::AuthFailure;

/// Most signatures that are looked at in one header. Providers send one for each secret of a rotation.
const CANDIDATES_MAX: usize = 64;

/// How a header's value holds signatures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum List {
    /// The whole value is one signature.
    #[default]
    One,
    /// Signatures with this character between them.
    Separated { separator: char, trim: bool },
    /// Parts like `t=1,v1=abc`, with this character between them; the signatures have this label.
    Labelled { separator: char, label: String, trim: bool },
}

impl FromStr for List {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one_of = |text: &str| {
            let mut chars = text.chars();
            chars.next().filter(|c| chars.next().is_none() && !c.is_alphanumeric() && *c != '=')
        };
        let labelled = text.strip_prefix("kv:").and_then(|rest| rest.split_once(':')).and_then(|(separator, label)| {
            let separator = one_of(separator).filter(|_| !label.is_empty() && !label.contains('='))?;
            Some(Self::Labelled { separator, label: label.to_owned(), trim: false })
        });
        let separated = |separator| Self::Separated { separator, trim: false };
        labelled.or_else(|| one_of(text).map(separated)).ok_or_else(|| {
            format!("{text:?} is no list; write the separator, like \",\", or \"kv:,:v1\" for parts like t=1,v1=abc")
        })
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One => Ok(()),
            Self::Separated { separator, .. } => write!(f, "{separator}"),
            Self::Labelled { separator, label, .. } => write!(f, "kv:{separator}:{label}"),
        }
    }
}

impl List {
    /// The texts in `value` that could be signatures: those with `prefix`, which is cut off. Others are of versions that
    /// are not ours.
    pub(super) fn candidates<'a>(&self, value: &'a str, prefix: &str) -> Result<Vec<&'a str>, AuthFailure> {
        let strip = |text: &'a str| text.strip_prefix(prefix).filter(|rest| !rest.is_empty());
        let found: Vec<&str> = match self {
            Self::One => strip(value).into_iter().collect(),
            Self::Separated { separator, trim } => {
                split(value, *separator, *trim).filter_map(strip).take(CANDIDATES_MAX).collect()
            }
            Self::Labelled { label, .. } => {
                self.labelled(value, label).filter_map(strip).take(CANDIDATES_MAX).collect()
            }
        };
        if found.is_empty() { Err(AuthFailure::Malformed) } else { Ok(found) }
    }

    /// The one part with `label`.
    pub(super) fn part<'a>(&self, value: &'a str, label: &str) -> Result<Option<&'a str>, AuthFailure> {
        let mut parts = self.labelled(value, label);
        let part = parts.next();
        if parts.next().is_some() { Err(AuthFailure::Repeated) } else { Ok(part) }
    }

    fn labelled<'a>(&self, value: &'a str, label: &str) -> impl Iterator<Item = &'a str> {
        let parts = match self {
            Self::Labelled { separator, trim, .. } => Some(split(value, *separator, *trim)),
            Self::One | Self::Separated { .. } => None,
        };
        let named = parts.into_iter().flatten().filter_map(|part| part.split_once('='));
        named.filter(move |(name, _)| *name == label).map(|(_, text)| text)
    }

    /// A value with one signature, as the provider writes it.
    pub(super) fn write(&self, signature: &str, timestamp_label: Option<&str>, timestamp: &str) -> String {
        match self {
            Self::One | Self::Separated { .. } => signature.to_owned(),
            Self::Labelled { separator, label, .. } => match timestamp_label {
                Some(timestamp_label) => format!("{timestamp_label}={timestamp}{separator}{label}={signature}"),
                None => format!("{label}={signature}"),
            },
        }
    }
}

/// The parts of `value`, with the blanks around them cut off where `trim` says so.
fn split(value: &str, separator: char, trim: bool) -> impl Iterator<Item = &str> {
    value.split(separator).map(move |part| if trim { part.trim_matches([' ', '\t']) } else { part })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> List {
        text.parse().expect("a list")
    }

    #[test]
    fn a_list_is_read_as_it_is_written() {
        for text in [",", " ", ";", "kv:,:v1", "kv:;:h1"] {
            assert_eq!(list(text).to_string(), text);
        }
        for bad in ["", "x", ",,", "kv:", "kv:,", "kv:,:", "kv:=:v1", "kv:,:a=b"] {
            assert!(bad.parse::<List>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_has_the_prefix_can_be_a_signature() {
        assert_eq!(List::One.candidates("sha256=ab", "sha256="), Ok(vec!["ab"]));
        assert_eq!(List::One.candidates("sha1=ab", "sha256="), Err(AuthFailure::Malformed));
        assert_eq!(List::One.candidates("sha256=", "sha256="), Err(AuthFailure::Malformed));
        assert_eq!(list(" ").candidates("v1a,x v1,y  v1,z", "v1,"), Ok(vec!["y", "z"]));
        assert_eq!(list("kv:,:v1").candidates("t=1,v1=a,v0=b,v1=c", ""), Ok(vec!["a", "c"]));
        assert_eq!(list("kv:,:v1").candidates("t=1, v1=a", ""), Err(AuthFailure::Malformed));
    }

    #[test]
    fn a_part_that_stands_twice_is_ambiguous() {
        assert_eq!(list("kv:,:v1").part("t=1,v1=a", "t"), Ok(Some("1")));
        assert_eq!(list("kv:,:v1").part("v1=a", "t"), Ok(None));
        assert_eq!(list("kv:,:v1").part("t=1,t=1,v1=a", "t"), Err(AuthFailure::Repeated));
    }

    #[test]
    fn a_flood_of_candidates_is_cut_off() {
        let many = vec!["v1=a"; 10 * CANDIDATES_MAX].join(",");
        assert_eq!(list("kv:,:v1").candidates(&many, "").map(|found| found.len()), Ok(CANDIDATES_MAX));
    }
}
