//! Answers with values of the challenge in them.

use std::sync::Arc;

use data_encoding::{BASE64, HEXLOWER};

use super::{ChallengeField, Fields, Place};
use crate::{
    auth::{Hash, hmac},
    secret::SecretSlot,
};

/// Text with places like `{/challenge}` or `{hmac-sha256-hex:/payload/plainToken}`.
#[derive(Debug)]
pub(super) struct Template(Vec<Piece>);

#[derive(Debug)]
enum Piece {
    Text(String),
    Echo(Place),
    Hmac(Written, Place),
}

#[derive(Debug, Clone, Copy)]
enum Written {
    Hex,
    Base64,
}

/// Longest text that is signed, in bytes.
const SIGNED_BYTES_MAX: usize = 256;

impl Template {
    pub(super) fn parse(
        text: &str,
        place: &mut impl FnMut(&ChallengeField) -> Result<Place, String>,
    ) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (inner, after) =
                after.split_once('}').ok_or_else(|| format!("{text:?} has a \"{{\" without \"}}\""))?;
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            let mut field = |text: &str| place(&ChallengeField::parse(text)?);
            pieces.push(match (inner.strip_prefix("hmac-sha256-hex:"), inner.strip_prefix("hmac-sha256-base64:")) {
                (Some(signed), _) => Piece::Hmac(Written::Hex, field(signed)?),
                (_, Some(signed)) => Piece::Hmac(Written::Base64, field(signed)?),
                (None, None) => Piece::Echo(field(inner)?),
            });
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self(pieces))
    }

    /// Whether anything is signed in it.
    pub(super) fn signs(&self) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Hmac(..)))
    }

    /// The text for one challenge; `None` when a value is missing, or is nothing that may be signed.
    pub(super) fn render(&self, fields: &Fields<'_>, secret: Option<&Arc<SecretSlot>>) -> Option<String> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(plain) => text.push_str(plain),
                Piece::Echo(place) => text.push_str(&fields.text(place)?),
                Piece::Hmac(written, place) => {
                    let signed = fields.text(place).filter(|text| may_be_signed(text))?;
                    let mac = hmac(Hash::Sha256, secret?.current().expose(), &[signed.as_bytes()]);
                    text.push_str(&match written {
                        Written::Hex => HEXLOWER.encode(&mac),
                        Written::Base64 => BASE64.encode(&mac),
                    });
                }
            }
        }
        Some(text)
    }
}

/// Whether a text can be a token and cannot be an event: whoever asks gets it signed with the secret that events are signed
/// with. Letters, digits and the signs of base64 only, and no JSON, of which `123` and `true` are the shortest documents.
fn may_be_signed(text: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'=' | b'+' | b'/');
    text.len() <= SIGNED_BYTES_MAX
        && text.bytes().all(token)
        && serde_json::from_str::<serde::de::IgnoredAny>(text).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_could_be_an_event_is_signed() {
        assert!(may_be_signed("qgg8vlvZRS6UYooatFL8Aw") && may_be_signed("c5d30d28eee3fecff") && may_be_signed("YQ=="));
        for event in ["123", "true", "null", "-1", "{}", "[]", "\"x\"", "v0:1795000000:{}", "a b", "1e5"] {
            assert!(!may_be_signed(event), "{event}");
        }
        assert!(!may_be_signed(&"x".repeat(SIGNED_BYTES_MAX + 1)));
    }
}
