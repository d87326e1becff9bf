//! Adyen's standard webhooks: a signature in each item of the body, over eight of its fields.
//!
//! Source: Adyen, "Verify HMAC signatures", and `@adyen/api-library` 32.1.0: values joined by colons, not escaped.

use std::{borrow::Cow, sync::Arc};

use data_encoding::BASE64;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::{
    AuthFailure, KeyForm, Request, SchemeProblems, secrets,
    sign::Draft,
    signature::{Hash, hmac, resolve_all},
};
use crate::secret::{ResolveSecret, SecretRef, SecretSlot};

/// Adyen's signatures of items.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AdyenConfig {
    /// The HMAC keys that are live, in hexadecimal as Adyen shows them; any one may match.
    #[serde(default)]
    pub secrets: Vec<SecretRef>,
}

/// The scheme, ready to verify.
#[derive(Debug)]
pub(super) struct Adyen {
    secrets: Vec<Arc<SecretSlot>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(borrow)]
    notification_items: Vec<Wrapped<'a>>,
}

#[derive(Deserialize)]
struct Wrapped<'a> {
    #[serde(rename = "NotificationRequestItem", borrow)]
    item: Item<'a>,
}

/// What of an item is signed. An absent field is signed as an empty one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item<'a> {
    #[serde(borrow, default)]
    psp_reference: Field<'a>,
    #[serde(borrow, default)]
    original_reference: Field<'a>,
    #[serde(borrow, default)]
    merchant_account_code: Field<'a>,
    #[serde(borrow, default)]
    merchant_reference: Field<'a>,
    #[serde(borrow)]
    amount: Option<Amount<'a>>,
    #[serde(borrow, default)]
    event_code: Field<'a>,
    #[serde(borrow, default)]
    success: Field<'a>,
    #[serde(borrow)]
    additional_data: Option<AdditionalData<'a>>,
}

#[derive(Deserialize)]
struct Amount<'a> {
    #[serde(borrow, default)]
    value: Field<'a>,
    #[serde(borrow, default)]
    currency: Field<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AdditionalData<'a> {
    #[serde(borrow)]
    hmac_signature: Option<Cow<'a, str>>,
}

/// A scalar as text: numbers and booleans as they were written.
#[derive(Default)]
struct Field<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&serde_json::value::RawValue>::deserialize(deserializer)?.get();
        match raw.as_bytes().first() {
            Some(b'"') => {
                serde_json::from_str::<String>(raw).map(|text| Self(text.into())).map_err(serde::de::Error::custom)
            }
            Some(b'n') => Ok(Self::default()),
            Some(b'{' | b'[') => Err(serde::de::Error::custom("a signed field is no scalar")),
            _ => Ok(Self(raw.into())),
        }
    }
}

impl Item<'_> {
    /// The signed values. Only the merchant's reference may hold what separates them: so there is one way to split the text,
    /// and no value can be shifted into its neighbour.
    fn signed(&self) -> Option<String> {
        let (value, currency) = self.amount.as_ref().map_or(("", ""), |amount| (&amount.value.0, &amount.currency.0));
        let fields = [
            &self.psp_reference.0,
            &self.original_reference.0,
            &self.merchant_account_code.0,
            &self.merchant_reference.0,
            value,
            currency,
            &self.event_code.0,
            &self.success.0,
        ];
        const MERCHANT_REFERENCE: usize = 3;
        let splits = |(place, field): (usize, &&str)| place != MERCHANT_REFERENCE && field.contains(':');
        (!fields.iter().enumerate().any(splits)).then(|| fields.join(":"))
    }
}

impl Adyen {
    pub(super) fn compile(
        config: &AdyenConfig,
        resolve: &mut ResolveSecret<'_>,
        problems: &mut SchemeProblems<'_>,
    ) -> Self {
        Self { secrets: resolve_all(&config.secrets, KeyForm::Hex.check(), resolve, problems) }
    }

    /// Its secrets.
    pub(super) fn secrets(&self) -> &[Arc<SecretSlot>] {
        &self.secrets
    }

    /// Every item must be signed, and all by the same key.
    pub(super) fn verify(&self, request: &Request) -> Result<Arc<str>, AuthFailure> {
        let text = simdutf8::basic::from_utf8(&request.body).map_err(|_| AuthFailure::BodyUnreadable)?;
        let body: Body<'_> = serde_json::from_str(text).map_err(|_| AuthFailure::BodyUnreadable)?;
        let mut signatures = Vec::new();
        for wrapped in &body.notification_items {
            let data = wrapped.item.additional_data.as_ref();
            match data.and_then(|data| data.hmac_signature.as_deref()).filter(|signature| !signature.is_empty()) {
                Some(signature) => {
                    signatures.push((signature, wrapped.item.signed().ok_or(AuthFailure::Malformed)?));
                }
                None => return Err(AuthFailure::Missing),
            }
        }
        if signatures.is_empty() {
            return Err(AuthFailure::Missing);
        }
        secrets::find(&self.secrets, request.received_at, AuthFailure::SignatureMismatch, |secret| {
            let Ok(key) = KeyForm::Hex.decode(secret.expose()) else { return 0.into() };
            signatures.iter().fold(1.into(), |all, (signature, signed)| {
                let expected = BASE64.encode(&hmac(Hash::Sha256, &key, &[signed.as_bytes()]));
                all & expected.as_bytes().ct_eq(signature.as_bytes())
            })
        })
    }

    pub(super) fn sign(&self, draft: &mut Draft) -> Result<(), String> {
        const SHAPE: &str = "the body must be {\"notificationItems\":[{\"NotificationRequestItem\":{…}}]}";
        let secret = draft.live(&self.secrets)?;
        let key = KeyForm::Hex.decode(secret.expose()).map_err(|message| format!("the secret {message}"))?;
        let text = String::from_utf8(draft.body.to_vec()).map_err(|_| SHAPE)?;
        let signatures: Vec<String> = {
            let body: Body<'_> = serde_json::from_str(&text).map_err(|_| SHAPE)?;
            let sign = |wrapped: &Wrapped<'_>| {
                let signed = wrapped.item.signed().ok_or("a colon stands in a field other than merchantReference")?;
                Ok::<_, String>(BASE64.encode(&hmac(Hash::Sha256, &key, &[signed.as_bytes()])))
            };
            body.notification_items.iter().map(sign).collect::<Result<_, _>>()?
        };
        let mut body: serde_json::Value = serde_json::from_str(&text).map_err(|_| SHAPE)?;
        for (place, signature) in signatures.into_iter().enumerate() {
            body["notificationItems"][place]["NotificationRequestItem"]["additionalData"]["hmacSignature"] =
                signature.into();
        }
        draft.body = body.to_string().into();
        Ok(())
    }
}
