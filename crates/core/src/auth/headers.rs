//! Headers as verification reads them: one value, its outer blanks cut off.

use http::{HeaderMap, HeaderName};

use super::AuthFailure;

/// The one value of `name`. A repeated header is refused, since servers and frameworks differ in which one they read.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, AuthFailure> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or(AuthFailure::Missing)?;
    if values.next().is_some() {
        return Err(AuthFailure::Repeated);
    }
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| AuthFailure::Malformed)?;
    match text.trim_matches([' ', '\t']) {
        "" => Err(AuthFailure::Missing),
        text => Ok(text),
    }
}

/// The one value of the first of `names` that is there.
pub(super) fn first<'a>(headers: &'a HeaderMap, names: &[HeaderName]) -> Result<&'a str, AuthFailure> {
    let name = names.iter().find(|name| headers.contains_key(*name)).ok_or(AuthFailure::Missing)?;
    single(headers, name)
}

/// What follows `word` in a value like `Bearer <credential>`. The word is case-blind, and blanks follow it.
///
/// Source: RFC 9110, section 11.4.
pub(super) fn after_word<'a>(value: &'a str, word: &str) -> Result<&'a str, AuthFailure> {
    let (found, credential) = value.split_once(' ').ok_or(AuthFailure::Malformed)?;
    let credential = credential.trim_start_matches(' ');
    match found.eq_ignore_ascii_case(word) && !credential.is_empty() {
        true => Ok(credential),
        false => Err(AuthFailure::Malformed),
    }
}
