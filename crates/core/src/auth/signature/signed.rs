//! What is signed: literals and parts of the request, in the provider's order.

use std::{fmt, str::FromStr};

/// A template like `v0:{timestamp}:{body}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signed(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    Value(Part),
}

/// A part of the request that can be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Body,
    Timestamp,
    Id,
    Method,
    Url,
}

const PARTS: [(&str, Part); 5] = [
    ("body", Part::Body),
    ("timestamp", Part::Timestamp),
    ("id", Part::Id),
    ("method", Part::Method),
    ("url", Part::Url),
];

/// The parts of one request.
pub(super) struct Values<'a> {
    pub(super) body: &'a [u8],
    pub(super) timestamp: &'a str,
    pub(super) id: &'a str,
    pub(super) method: &'a str,
    pub(super) url: &'a str,
}

impl Default for Signed {
    fn default() -> Self {
        Self(vec![Piece::Value(Part::Body)])
    }
}

impl FromStr for Signed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or_else(|| format!("{text:?} has a \"{{\" without \"}}\""))?;
            let (_, part) = PARTS.iter().find(|(known, _)| *known == name).ok_or_else(|| {
                let known: Vec<_> = PARTS.iter().map(|(name, _)| format!("{{{name}}}")).collect();
                format!("nothing called {{{name}}} can be signed; known: {}", known.join(", "))
            })?;
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            pieces.push(Piece::Value(*part));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self(pieces))
    }
}

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(text),
            Piece::Value(part) => {
                let name = PARTS.iter().find(|(_, known)| known == part).map_or("", |(name, _)| name);
                write!(f, "{{{name}}}")
            }
        })
    }
}

impl Signed {
    /// Whether `part` is signed.
    pub(super) fn has(&self, part: Part) -> bool {
        self.0.contains(&Piece::Value(part))
    }

    /// The bytes to sign, piece by piece: the body is not copied.
    pub(super) fn parts<'a>(&'a self, values: &Values<'a>) -> Vec<&'a [u8]> {
        let piece = |piece: &'a Piece| match piece {
            Piece::Text(text) => text.as_bytes(),
            Piece::Value(Part::Body) => values.body,
            Piece::Value(Part::Timestamp) => values.timestamp.as_bytes(),
            Piece::Value(Part::Id) => values.id.as_bytes(),
            Piece::Value(Part::Method) => values.method.as_bytes(),
            Piece::Value(Part::Url) => values.url.as_bytes(),
        };
        self.0.iter().map(piece).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_read_and_written_alike() {
        for text in ["{body}", "v0:{timestamp}:{body}", "{method}{url}{body}{timestamp}", "{id}.{timestamp}.{body}"] {
            assert_eq!(text.parse::<Signed>().expect("valid").to_string(), text);
        }
        let unknown = "{bdy}".parse::<Signed>().expect_err("no such part");
        assert!(unknown.contains("{bdy}") && unknown.contains("{body}"), "{unknown}");
        assert!("{body".parse::<Signed>().is_err());
    }

    #[test]
    fn the_pieces_stand_in_the_order_of_the_template() {
        let signed: Signed = "v0:{timestamp}:{body}".parse().expect("valid");
        let values = Values { body: b"b", timestamp: "1", id: "", method: "", url: "" };
        assert_eq!(signed.parts(&values).concat(), b"v0:1:b");
    }
}
