//! Tokens that a sender shows as they are: where each is found, and the one comparison for all of them.

use std::{borrow::Cow, sync::Arc};

use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, header::AUTHORIZATION};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{AuthFailure, headers, secrets, sign::Draft};
use crate::secret::{PresentedDigest, SecretSlot};

/// Where a token is.
#[derive(Debug)]
pub(super) enum Place {
    /// `Authorization: Bearer <token>` (RFC 6750, section 2.1).
    Bearer,
    /// `Authorization: Basic <base64 of user:password>` (RFC 7617).
    Basic,
    /// The whole value of a header.
    Header(HeaderName),
    /// A parameter of the query.
    Query(String),
}

impl Place {
    /// The token in a request.
    pub(super) fn token<'a>(
        &self,
        headers: &'a HeaderMap,
        query: Option<&'a str>,
    ) -> Result<Cow<'a, [u8]>, AuthFailure> {
        match self {
            Self::Bearer => headers::after_word(headers::single(headers, &AUTHORIZATION)?, "bearer")
                .map(|token| token.as_bytes().into()),
            Self::Basic => {
                basic(headers::after_word(headers::single(headers, &AUTHORIZATION)?, "basic")?).map(Cow::from)
            }
            Self::Header(name) => headers::single(headers, name).map(|token| token.as_bytes().into()),
            Self::Query(param) => query_token(query, param),
        }
    }
}

impl Place {
    /// Puts `token` where the sender puts it.
    pub(super) fn write(&self, draft: &mut Draft, token: &str) -> Result<(), String> {
        let (name, value) = match self {
            Self::Bearer => (&AUTHORIZATION, format!("Bearer {token}")),
            Self::Basic => (&AUTHORIZATION, format!("Basic {}", BASE64.encode(token.as_bytes()))),
            Self::Header(name) => (name, token.to_owned()),
            Self::Query(param) => {
                let escaped = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
                draft.append_to_query(&format!("{}={}", escaped(param), escaped(token)));
                return Ok(());
            }
        };
        draft.set_header(name, &value)
    }
}

/// The pair in `credential`, which stands in canonical base64: padded, and without stray bits.
fn basic(credential: &str) -> Result<Vec<u8>, AuthFailure> {
    let pair = BASE64.decode(credential.as_bytes()).map_err(|_| AuthFailure::Malformed)?;
    if pair.contains(&b':') { Ok(pair) } else { Err(AuthFailure::Malformed) }
}

/// Whether `text` is a pair that is worth something: an empty user with an empty password is nobody's.
pub(super) fn check_pair(text: &[u8]) -> Result<(), String> {
    match text.contains(&b':') && text != b":" {
        true => Ok(()),
        false => Err("must be \"user:password\"".to_owned()),
    }
}

/// The token in the query parameter `param`, percent-decoded once. A `+` is itself: providers post to the URL as the operator
/// pasted it, and tokens in base64 hold it, while none holds a blank.
fn query_token<'a>(query: Option<&'a str>, param: &str) -> Result<Cow<'a, [u8]>, AuthFailure> {
    let pairs = query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values = pairs.filter(|(name, _)| percent_decode_str(name).eq(param.bytes())).map(|(_, value)| value);
    let token = values.next().ok_or(AuthFailure::Missing)?;
    match values.next() {
        Some(_) => Err(AuthFailure::Repeated),
        None if token.is_empty() => Err(AuthFailure::Missing),
        None => Ok(percent_decode_str(token).into()),
    }
}

/// The value of the query parameter `param`, percent-decoded once, `+` read as a blank as forms do.
pub(crate) fn query_parameter<'a>(query: Option<&'a str>, param: &str) -> Result<Cow<'a, str>, AuthFailure> {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let mut values = pairs.filter(|(name, _)| name == param).map(|(_, value)| value);
    let token = values.next().ok_or(AuthFailure::Missing)?;
    match values.next() {
        Some(_) => Err(AuthFailure::Repeated),
        None if token.is_empty() => Err(AuthFailure::Missing),
        None => Ok(token),
    }
}

/// The name of the secret that `credential` equals. Every secret is tried, so that time does not tell which matched.
pub(crate) fn find(
    credential: &[u8],
    secrets: &[Arc<SecretSlot>],
    now: std::time::SystemTime,
) -> Result<Arc<str>, AuthFailure> {
    let presented = PresentedDigest::of(credential);
    secrets::find(secrets, now, AuthFailure::Mismatch, |secret| secret.matches(&presented))
}
