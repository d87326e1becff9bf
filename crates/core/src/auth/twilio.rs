//! Twilio: the URL and the form's fields are signed, not the body; for other bodies the URL carries the body's hash.
//!
//! Source: Twilio, "Validating Signatures from Twilio", and the verifier of its Node.js library, 6.2.0, whose order of
//! fields and tries of the URL with and without a port are kept.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use data_encoding::{BASE64, HEXLOWER};
use http::{HeaderMap, HeaderName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::{
    AuthFailure, Context, KeyForm, Request, SchemeProblems, headers, secrets,
    sign::Draft,
    signature::{Hash, hmac, resolve_all},
    token::query_parameter,
    url::Url,
};
use crate::{
    identity::media_type_is,
    secret::{ResolveSecret, SecretRef, SecretSlot},
};

const SIGNATURE: HeaderName = HeaderName::from_static("x-twilio-signature");
/// Names the algorithm when a shared key signs: `key=…,algorithm=HMAC_SHA256`.
const SETTINGS: HeaderName = HeaderName::from_static("x-twilio-webhooks-signature-settings");
/// The parameter of the URL with the hash of a body that is no form.
const BODY_HASH: &str = "bodySHA256";

/// Twilio's signature.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TwilioConfig {
    /// The whole URL that was given to Twilio, query included, where it is always the same and not `server.public_url`
    /// with the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The account's auth tokens (or shared keys) that are live; any one may match.
    #[serde(default)]
    pub secrets: Vec<SecretRef>,
}

/// The scheme, ready to verify.
#[derive(Debug)]
pub(super) struct Twilio {
    url: Url,
    secrets: Vec<Arc<SecretSlot>>,
}

impl Twilio {
    pub(super) fn compile(
        config: &TwilioConfig,
        context: &Context,
        resolve: &mut ResolveSecret<'_>,
        problems: &mut SchemeProblems<'_>,
    ) -> Self {
        let url = Url::new(config.url.as_deref(), context);
        if url.is_unknown() {
            problems.push("url", Url::UNKNOWN);
        }
        Self { url, secrets: resolve_all(&config.secrets, KeyForm::Utf8.check(), resolve, problems) }
    }

    /// Its secrets.
    pub(super) fn secrets(&self) -> &[Arc<SecretSlot>] {
        &self.secrets
    }

    pub(super) fn verify(&self, request: &Request) -> Result<Arc<str>, AuthFailure> {
        let presented = headers::single(&request.headers, &SIGNATURE)?;
        let hash = hash_of(&request.headers)?;
        let url = self.url.of(&request.path, request.query.as_deref());
        let body_hash = body_hash(&url)?;
        let fields = match body_hash {
            // With the hash in the URL no field is signed.
            Some(_) => String::new(),
            None => form_fields(&request.headers, &request.body),
        };
        let urls = Url::without_and_with_port(&url);
        let secret = secrets::find(&self.secrets, request.received_at, AuthFailure::SignatureMismatch, |secret| {
            urls.iter().fold(Choice::from(0), |found, url| {
                let expected = BASE64.encode(&hmac(hash, secret.expose(), &[url.as_bytes(), fields.as_bytes()]));
                found | expected.as_bytes().ct_eq(presented.as_bytes())
            })
        })?;
        match body_hash {
            None if is_form(&request.headers) || request.body.is_empty() => Ok(secret),
            // Neither fields nor a hash: nothing of this body is signed.
            None => Err(AuthFailure::ContentMismatch),
            Some(hash) if hash == HEXLOWER.encode(&Sha256::digest(&request.body)) => Ok(secret),
            Some(_) => Err(AuthFailure::ContentMismatch),
        }
    }

    pub(super) fn sign(&self, draft: &mut Draft) -> Result<(), String> {
        let secret = draft.live(&self.secrets)?;
        if !is_form(&draft.headers) {
            draft.append_to_query(&format!("{BODY_HASH}={}", HEXLOWER.encode(&Sha256::digest(&draft.body))));
        }
        let url = self.url.of(&draft.path, draft.query.as_deref());
        let fields = form_fields(&draft.headers, &draft.body);
        let signature = BASE64.encode(&hmac(Hash::Sha1, secret.expose(), &[url.as_bytes(), fields.as_bytes()]));
        draft.set_header(&SIGNATURE, &signature)
    }
}

/// SHA-1, unless the settings name another hash, which must then be the one.
fn hash_of(headers: &HeaderMap) -> Result<Hash, AuthFailure> {
    let settings = match headers::single(headers, &SETTINGS) {
        Err(AuthFailure::Missing) => return Ok(Hash::Sha1),
        settings => settings?,
    };
    let mut named = settings.split(',').filter_map(|part| part.trim().strip_prefix("algorithm="));
    match (named.next(), named.next()) {
        (Some("HMAC_SHA256"), None) => Ok(Hash::Sha256),
        (Some("HMAC_SHA1"), None) => Ok(Hash::Sha1),
        _ => Err(AuthFailure::AlgorithmRefused),
    }
}

/// The one hash in `url`, if it has one.
fn body_hash(url: &str) -> Result<Option<Cow<'_, str>>, AuthFailure> {
    let query = url.split_once('?').map(|(_, query)| query);
    match query_parameter(query, BODY_HASH) {
        Ok(hash) => Ok(Some(hash)),
        Err(AuthFailure::Missing) if query.is_some_and(|query| query.contains(BODY_HASH)) => {
            Err(AuthFailure::Malformed)
        }
        Err(AuthFailure::Missing) => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn is_form(headers: &HeaderMap) -> bool {
    media_type_is(headers, "application/x-www-form-urlencoded")
}

/// Every pair of name and value once, sorted, without anything between them.
fn form_fields(headers: &HeaderMap, body: &[u8]) -> String {
    if !is_form(headers) {
        return String::new();
    }
    let fields: BTreeSet<_> = form_urlencoded::parse(body).collect();
    fields.into_iter().flat_map(|(name, value)| [name, value]).collect()
}
