//! Atlassian Connect: a JWT made with the shared secret of the installation, which covers method, path and query.
//!
//! The body is not covered. Source: Atlassian, "Understanding JWT for Connect apps" (the query string hash), and
//! `atlassian-jwt` 2.0.3, whose order and escapes are kept.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use http::header::AUTHORIZATION;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    AuthFailure, KeyForm, Request, SchemeProblems, headers,
    jwt::compact::{self, Compact},
    secrets,
    sign::Draft,
    signature::{Hash, hmac, resolve_all},
};
use crate::{
    config,
    secret::{ResolveSecret, SecretRef, SecretSlot},
};

/// Atlassian's token with a query string hash, in `Authorization: JWT …`.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AtlassianConfig {
    /// The path of the app's base URL, which the hash leaves out, like `"/jira"`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_path: Option<String>,
    /// How far our clock and Atlassian's may be apart. Default: `"60s"`.
    #[serde(default, with = "config::optional_duration", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<config::DurationText>")]
    pub leeway: Option<Duration>,
    /// The shared secrets of the installations that are live; any one may match.
    #[serde(default)]
    pub secrets: Vec<SecretRef>,
}

/// The scheme, ready to verify.
#[derive(Debug)]
pub(super) struct Atlassian {
    base_path: String,
    leeway: Duration,
    secrets: Vec<Arc<SecretSlot>>,
}

/// What RFC 3986 calls unreserved.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Atlassian {
    pub(super) fn compile(
        config: &AtlassianConfig,
        resolve: &mut ResolveSecret<'_>,
        problems: &mut SchemeProblems<'_>,
    ) -> Self {
        Self {
            base_path: config.base_path.clone().unwrap_or_default(),
            leeway: config.leeway.unwrap_or(Duration::from_secs(60)),
            secrets: resolve_all(&config.secrets, KeyForm::Utf8.check(), resolve, problems),
        }
    }

    /// Its secrets.
    pub(super) fn secrets(&self) -> &[Arc<SecretSlot>] {
        &self.secrets
    }

    pub(super) fn verify(&self, request: &Request) -> Result<Arc<str>, AuthFailure> {
        let token = headers::after_word(headers::single(&request.headers, &AUTHORIZATION)?, "jwt")?;
        let compact = Compact::parse(token)?;
        if compact.header.alg != "HS256" {
            return Err(AuthFailure::AlgorithmRefused);
        }
        let secret = secrets::find(&self.secrets, request.received_at, AuthFailure::SignatureMismatch, |secret| {
            hmac(Hash::Sha256, secret.expose(), &[compact.signed.as_bytes()]).ct_eq(&compact.signature)
        })?;
        let claims = compact.claims()?;
        claims.check_times(request.received_at, self.leeway)?;
        let expected = self.query_string_hash(request.method.as_str(), &request.path, request.query.as_deref());
        match claims.text("qsh") {
            Some(hash) if hash == expected => Ok(secret),
            _ => Err(AuthFailure::ContentMismatch),
        }
    }

    fn query_string_hash(&self, method: &str, path: &str, query: Option<&str>) -> String {
        let path = path.strip_prefix(&self.base_path).unwrap_or(path);
        let path = path.strip_suffix('/').unwrap_or(path).replace('&', "%26");
        let slash = if path.starts_with('/') { "" } else { "/" };
        let mut parameters: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if name != "jwt" {
                parameters.entry(name.into_owned()).or_default().push(value.into_owned());
            }
        }
        let escape = |text: &str| utf8_percent_encode(text, UNRESERVED).to_string();
        let pair = |(name, mut values): (String, Vec<String>)| {
            values.sort();
            let values: Vec<String> = values.iter().map(|value| escape(value)).collect();
            format!("{}={}", escape(&name), values.join(","))
        };
        let query: Vec<String> = parameters.into_iter().map(pair).collect();
        let canonical = format!("{}&{slash}{path}&{}", method.to_ascii_uppercase(), query.join("&"));
        HEXLOWER.encode(&Sha256::digest(canonical))
    }

    pub(super) fn sign(&self, draft: &mut Draft) -> Result<(), String> {
        let secret = draft.live(&self.secrets)?;
        let now = super::since_1970(draft.now).as_secs();
        let hash = self.query_string_hash(draft.method.as_str(), &draft.path, draft.query.as_deref());
        let claims = json!({ "iss": "hookgate-send", "iat": now, "exp": now + 180, "qsh": hash });
        let signed = compact::signed_part(&json!({ "typ": "JWT", "alg": "HS256" }), &claims);
        let signature = BASE64URL_NOPAD.encode(&hmac(Hash::Sha256, secret.expose(), &[signed.as_bytes()]));
        draft.set_header(&AUTHORIZATION, &format!("JWT {signed}.{signature}"))
    }
}
