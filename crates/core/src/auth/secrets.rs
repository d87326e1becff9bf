//! Several live secrets of one scheme: their forms, and the search through all of them.

use std::{borrow::Cow, sync::Arc, time::SystemTime};

use data_encoding::{BASE64, BASE64_NOPAD, HEXLOWER_PERMISSIVE};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use subtle::Choice;

use super::AuthFailure;
use crate::secret::{CheckForm, Secret, SecretSlot};

/// How the text of a shared secret becomes the key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyForm {
    /// The text itself is the key, whatever it looks like.
    #[default]
    Utf8,
    /// Hexadecimal, in either case.
    Hex,
    /// Base64, with or without padding.
    Base64,
    /// `whsec_` and base64, as Standard Webhooks writes it; the prefix may be left out.
    /// Source: Standard Webhooks specification, "Signature scheme".
    Whsec,
}

impl KeyForm {
    /// What every secret in this form must satisfy.
    pub(super) fn check(self) -> CheckForm {
        match self {
            Self::Utf8 => |_| Ok(()),
            Self::Hex => |text| Self::Hex.decode(text).map(|_| ()),
            Self::Base64 => |text| Self::Base64.decode(text).map(|_| ()),
            Self::Whsec => |text| Self::Whsec.decode(text).map(|_| ()),
        }
    }

    /// The key.
    pub(super) fn decode(self, text: &[u8]) -> Result<Cow<'_, [u8]>, String> {
        let decoded = match self {
            Self::Utf8 => return Ok(text.into()),
            Self::Hex => HEXLOWER_PERMISSIVE.decode(text).map_err(|_| "is not hexadecimal"),
            Self::Base64 => base64(text).ok_or("is not base64"),
            Self::Whsec => {
                base64(text.strip_prefix(b"whsec_").unwrap_or(text)).ok_or("is not \"whsec_\" and base64 after it")
            }
        };
        match decoded {
            Ok(key) if key.is_empty() => Err("decodes to nothing".to_owned()),
            Ok(key) => Ok(key.into()),
            Err(message) => Err(message.to_owned()),
        }
    }
}

fn base64(text: &[u8]) -> Option<Vec<u8>> {
    BASE64.decode(text).or_else(|_| BASE64_NOPAD.decode(text)).ok()
}

/// The name of the first secret that `matches`. Every secret is tried, so that time does not tell which matched; one past
/// its `not_after` is told apart from a credential that nobody knows.
pub(super) fn find(
    secrets: &[Arc<SecretSlot>],
    now: SystemTime,
    otherwise: AuthFailure,
    mut matches: impl FnMut(&Secret) -> Choice,
) -> Result<Arc<str>, AuthFailure> {
    let mut matched = Err(otherwise);
    for slot in secrets {
        let equal = matches(&slot.current());
        if bool::from(equal) && matched.is_err() {
            matched = if slot.is_live(now) { Ok(Arc::clone(slot.name())) } else { Err(AuthFailure::SecretExpired) };
        }
    }
    matched
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_key_is_decoded_from_the_form_that_the_provider_shows() {
        assert_eq!(KeyForm::Utf8.decode(b"whsec_AA==").as_deref(), Ok(&b"whsec_AA=="[..]));
        assert_eq!(KeyForm::Hex.decode(b"00fF").as_deref(), Ok(&[0, 255][..]));
        assert_eq!(KeyForm::Base64.decode(b"/w").as_deref(), Ok(&[255][..]));
        assert_eq!(KeyForm::Whsec.decode(b"whsec_/w==").as_deref(), Ok(&[255][..]));
        assert_eq!(KeyForm::Whsec.decode(b"/w==").as_deref(), Ok(&[255][..]));
        for (form, bad) in [
            (KeyForm::Hex, "0"),
            (KeyForm::Hex, "xx"),
            (KeyForm::Base64, "a b="),
            (KeyForm::Whsec, "whsec_"),
            (KeyForm::Whsec, "whpk_/w=="),
        ] {
            let message = form.decode(bad.as_bytes()).expect_err(bad);
            assert!(!message.contains(bad) || bad.len() < 3, "the secret is not told: {message}");
        }
    }

    #[test]
    fn an_expired_secret_is_told_apart_and_a_live_twin_wins() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let slot = |name: &str, end| {
            Arc::new(
                SecretSlot::new(name, Secret::new("x").expect("not empty")).until(Some(SystemTime::UNIX_EPOCH + end)),
            )
        };
        let (expired, live) = (slot("old", Duration::from_secs(999)), slot("new", Duration::from_secs(1000)));
        let found = |slots: &[Arc<SecretSlot>], yes: u8| {
            find(slots, now, AuthFailure::Mismatch, |_| Choice::from(yes)).map(|name| name.to_string())
        };
        assert_eq!(found(&[Arc::clone(&expired)], 1), Err(AuthFailure::SecretExpired));
        assert_eq!(found(&[Arc::clone(&expired)], 0), Err(AuthFailure::Mismatch));
        assert_eq!(found(&[expired, live], 1), Ok("new".to_owned()));
    }
}
