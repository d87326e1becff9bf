//! Mailgun: the signature stands in the body and covers a time and a token, not the event.
//!
//! So whoever has seen one signed request can put another event beside its signature while it is fresh: the docs say so,
//! and `tolerance` is what limits it.
//!
//! Source: Mailgun, "Securing Webhooks".

use std::{borrow::Cow, sync::Arc, time::Duration};

use data_encoding::HEXLOWER;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::{
    AuthFailure, KeyForm, Request, SchemeProblems, secrets,
    sign::Draft,
    signature::{Hash, Tolerance, check_age, hmac, parse_digits, resolve_all},
};
use crate::{
    identity::media_type_is,
    json::{JsonError, Pointer, Value, WatchedPaths},
    secret::{ResolveSecret, SecretRef, SecretSlot},
};

/// Mailgun's signature.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MailgunConfig {
    /// How old a request may be, both ways. Default: `"15m"`; Mailgun repeats with a new signature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<Tolerance>,
    /// The HTTP webhook signing keys that are live; any one may match.
    #[serde(default)]
    pub secrets: Vec<SecretRef>,
}

/// The scheme, ready to verify.
#[derive(Debug)]
pub(super) struct Mailgun {
    tolerance: Option<Duration>,
    paths: WatchedPaths,
    secrets: Vec<Arc<SecretSlot>>,
}

/// The three parts, at these places of a JSON body and under these names of a form.
const PARTS: [(&str, &str); 3] =
    [("/signature/timestamp", "timestamp"), ("/signature/token", "token"), ("/signature/signature", "signature")];

impl Mailgun {
    pub(super) fn compile(
        config: &MailgunConfig,
        resolve: &mut ResolveSecret<'_>,
        problems: &mut SchemeProblems<'_>,
    ) -> Self {
        let mut paths = WatchedPaths::default();
        for (pointer, _) in PARTS {
            paths.watch(&Pointer::parse(pointer).expect("a pointer")).expect("few paths");
        }
        Self {
            tolerance: config.tolerance.unwrap_or(Tolerance::Within(Duration::from_secs(900))).limit(),
            paths,
            secrets: resolve_all(&config.secrets, KeyForm::Utf8.check(), resolve, problems),
        }
    }

    /// Its secrets.
    pub(super) fn secrets(&self) -> &[Arc<SecretSlot>] {
        &self.secrets
    }

    pub(super) fn verify(&self, request: &Request) -> Result<Arc<str>, AuthFailure> {
        let [timestamp, token, signature] = self.parts(request)?;
        let sent = parse_digits(&timestamp)?;
        if token.is_empty() || signature.is_empty() {
            return Err(AuthFailure::Missing);
        }
        let secret = secrets::find(&self.secrets, request.received_at, AuthFailure::SignatureMismatch, |secret| {
            let mac = hmac(Hash::Sha256, secret.expose(), &[timestamp.as_bytes(), token.as_bytes()]);
            HEXLOWER.encode(&mac).as_bytes().ct_eq(signature.as_bytes())
        })?;
        if let Some(limit) = self.tolerance {
            check_age(Duration::from_secs(sent), super::since_1970(request.received_at), limit, Some(limit))?;
        }
        Ok(secret)
    }

    fn parts<'a>(&self, request: &'a Request) -> Result<[Cow<'a, str>; 3], AuthFailure> {
        if media_type_is(&request.headers, "application/x-www-form-urlencoded") {
            let part = |name: &str| {
                let mut values = form_urlencoded::parse(&request.body).filter(|(key, _)| key == name);
                let value = values.next().ok_or(AuthFailure::Missing)?.1;
                if values.next().is_some() { Err(AuthFailure::Repeated) } else { Ok(value) }
            };
            return Ok([part(PARTS[0].1)?, part(PARTS[1].1)?, part(PARTS[2].1)?]);
        }
        let values = self.paths.read(&request.body).map_err(|error| match error {
            JsonError::DuplicateKey { .. } => AuthFailure::Repeated,
            _ => AuthFailure::BodyUnreadable,
        })?;
        let mut parts = values.into_iter().map(|value| match value {
            Some(Value::Text(text)) => Ok(text),
            Some(Value::Number(text)) => Ok(text.into()),
            Some(_) => Err(AuthFailure::Malformed),
            None => Err(AuthFailure::Missing),
        });
        let mut next = || parts.next().unwrap_or(Err(AuthFailure::Missing));
        Ok([next()?, next()?, next()?])
    }

    pub(super) fn sign(&self, draft: &mut Draft) -> Result<(), String> {
        let secret = draft.live(&self.secrets)?;
        let mut body: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&draft.body)
            .map_err(|_| "the body must be a JSON object, to put the signature in")?;
        let timestamp = super::since_1970(draft.now).as_secs().to_string();
        let token = HEXLOWER.encode(draft.id.as_bytes());
        let signature =
            HEXLOWER.encode(&hmac(Hash::Sha256, secret.expose(), &[timestamp.as_bytes(), token.as_bytes()]));
        let part = serde_json::json!({ "timestamp": timestamp, "token": token, "signature": signature });
        body.insert("signature".to_owned(), part);
        draft.body = serde_json::Value::Object(body).to_string().into();
        Ok(())
    }
}
