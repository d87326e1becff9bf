//! A token taken apart: `header.claims.signature`, each in canonical base64url without padding.

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::AuthFailure;

/// A token whose signature is not checked yet.
pub(in super::super) struct Compact<'a> {
    pub(in super::super) header: Header,
    /// What the signature covers, as it was sent.
    pub(in super::super) signed: &'a str,
    claims: &'a str,
    pub(in super::super) signature: Vec<u8>,
}

/// What the signature of a token with this header and these claims covers.
pub(in super::super) fn signed_part(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    format!("{}.{}", part(header), part(claims))
}

/// What is read of a token's header.
#[derive(Debug, Deserialize)]
pub(in super::super) struct Header {
    pub(in super::super) alg: String,
    pub(in super::super) kid: Option<String>,
    crit: Option<Value>,
}

/// What a token says.
pub(in super::super) struct Claims(Map<String, Value>);

impl<'a> Compact<'a> {
    pub(in super::super) fn parse(token: &'a str) -> Result<Self, AuthFailure> {
        let (signed, signature) = token.rsplit_once('.').ok_or(AuthFailure::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(AuthFailure::Malformed)?;
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| AuthFailure::Malformed)?;
        // We know no extension, so whatever the token calls critical is not understood (RFC 7515, section 4.1.11).
        if header.crit.is_some() {
            return Err(AuthFailure::AlgorithmRefused);
        }
        // An empty signature is nobody's, and fails as one; the algorithm that goes with it is refused before.
        Ok(Self { header, signed, claims, signature: decode(signature)? })
    }

    /// What the token says; to be asked for once its signature is known to be right.
    pub(in super::super) fn claims(&self) -> Result<Claims, AuthFailure> {
        serde_json::from_slice(&decode(self.claims)?).map(Claims).map_err(|_| AuthFailure::Malformed)
    }
}

/// A dot among the characters is no base64url, so a token of four parts does not pass.
fn decode(part: &str) -> Result<Vec<u8>, AuthFailure> {
    BASE64URL_NOPAD.decode(part.as_bytes()).map_err(|_| AuthFailure::Malformed)
}

impl Claims {
    pub(in super::super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    pub(in super::super) fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    /// A text, or each text of a list.
    pub(in super::super) fn texts(&self, name: &str) -> Vec<&str> {
        match self.get(name) {
            Some(Value::String(text)) => vec![text],
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }

    /// Seconds since 1970, which must be a number (RFC 7519, section 2, "NumericDate").
    pub(in super::super) fn time(&self, name: &str) -> Result<Option<f64>, AuthFailure> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(AuthFailure::Malformed),
        }
    }
}
