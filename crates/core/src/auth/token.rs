//! Tokens that a sender shows as they are: where each is found, and the one comparison for all of them.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderMap, header::AUTHORIZATION};
use subtle::Choice;

use super::AuthFailure;
use crate::secret::{PresentedDigest, SecretSlot};

/// The token of `Authorization: Bearer <token>`.
///
/// The word is case-blind and followed by one or more blanks. A repeated header is refused, since servers differ in
/// which of them they read.
pub(super) fn bearer(headers: &HeaderMap) -> Result<&str, AuthFailure> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(AuthFailure::Missing)?;
    if values.next().is_some() {
        return Err(AuthFailure::Repeated);
    }
    let value = std::str::from_utf8(value.as_bytes()).map_err(|_| AuthFailure::Malformed)?;
    let (word, token) = value.trim_matches([' ', '\t']).split_once(' ').ok_or(AuthFailure::Malformed)?;
    let token = token.trim_start_matches(' ');
    if !word.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(AuthFailure::Malformed);
    }
    Ok(token)
}

/// The value of the query parameter `param`, percent-decoded once, `+` read as a blank as forms do.
pub(super) fn query<'a>(query: Option<&'a str>, param: &str) -> Result<Cow<'a, str>, AuthFailure> {
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
pub(super) fn find(credential: &[u8], secrets: &[Arc<SecretSlot>]) -> Result<Arc<str>, AuthFailure> {
    let presented = PresentedDigest::of(credential);
    let mut matched = None;
    for slot in secrets {
        let equal: Choice = slot.current().matches(&presented);
        if bool::from(equal) && matched.is_none() {
            matched = Some(slot.name());
        }
    }
    matched.cloned().ok_or(AuthFailure::Mismatch)
}
