//! Bearer tokens that are signed JWTs: Google Pub/Sub, Microsoft Entra, and any other OpenID Connect issuer.
//!
//! The keys come from the config, never from the token: `jku`, `jwk`, `x5u` and `x5c` in its header are not looked at. The
//! algorithm must be one that the config allows and the key is for, so a public key cannot pass for a shared secret.
//!
//! Source: RFC 7515 (JWS), RFC 7517 (JWK), RFC 7519 (JWT), RFC 8725 (best current practices).

pub(super) mod compact;
pub(super) mod keys;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use data_encoding::BASE64URL_NOPAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::{
    compact::{Claims, Compact},
    keys::{KeyDocument, KeysConfig},
};
use super::{AuthFailure, Request, SchemeProblems, headers, remote::Wanted, sign::Draft};
use crate::{config, secret::ResolveSecret};

/// Tokens longer than this are refused unread, in bytes. Those of the providers have one to two thousand.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// A signed JWT in `Authorization: Bearer …`. It covers who sends, not what: keep the path private and the transport TLS.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct JwtConfig {
    /// Where the issuer's public keys are: `{ url = "https://…" }`, or a JWK set in a `{ file = "…" }`. No default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeysConfig>,
    /// Issuers that are accepted, compared whole. No default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuers: Option<Vec<String>>,
    /// Audiences that mean us, compared whole; one of them must be in the token. No default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audiences: Option<Vec<String>>,
    /// Signature algorithms that are accepted. Default: `["RS256"]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithms: Option<Vec<JwtAlgorithm>>,
    /// The service account that must have asked for the token: its `email`, which the issuer must have verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// The application that must have asked for the token: `azp`, or `appid` in older tokens of Entra.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// Further claims and the text that each must have, like `{ sub = "…" }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, String>,
    /// How far our clock and the issuer's may be apart. Default: `"60s"`.
    #[serde(default, with = "config::optional_duration", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<config::DurationText>")]
    pub leeway: Option<Duration>,
}

/// A signature algorithm of RFC 7518 or RFC 8037.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[allow(missing_docs, reason = "the names of the standard say it")]
pub enum JwtAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    ES256,
    ES384,
    EdDSA,
}

/// The scheme, ready to verify.
#[derive(Debug)]
pub(super) struct Jwt {
    keys: KeyDocument,
    issuers: Vec<String>,
    audiences: Vec<String>,
    algorithms: Vec<JwtAlgorithm>,
    email: Option<String>,
    client_id: Option<String>,
    claims: BTreeMap<String, String>,
    leeway: Duration,
    name: Arc<str>,
}

impl JwtConfig {
    /// Takes from `preset` what is left out here.
    pub(super) fn fill_from(&mut self, preset: &Self) {
        macro_rules! fill {
            ($($field:ident)+) => { $(if self.$field.is_none() { self.$field.clone_from(&preset.$field); })+ };
        }
        fill!(keys issuers audiences algorithms email client_id leeway);
    }
}

impl Jwt {
    pub(super) fn compile(
        config: &JwtConfig,
        resolve: &mut ResolveSecret<'_>,
        problems: &mut SchemeProblems<'_>,
    ) -> Option<Self> {
        let (issuers, audiences) =
            (config.issuers.clone().unwrap_or_default(), config.audiences.clone().unwrap_or_default());
        let algorithms = config.algorithms.clone().unwrap_or_else(|| vec![JwtAlgorithm::RS256]);
        for (key, empty, message) in [
            ("issuers", issuers.is_empty(), "is empty: anybody's tokens would do; name the issuer"),
            (
                "audiences",
                audiences.is_empty(),
                "is empty: tokens meant for others would do; name the audience that means you",
            ),
            ("algorithms", algorithms.is_empty(), "is empty; the default is [\"RS256\"]"),
        ] {
            if empty {
                problems.push(key, message);
            }
        }
        let keys = KeyDocument::compile(config.keys.as_ref(), resolve, problems)?;
        Some(Self {
            name: keys.name(),
            keys,
            issuers,
            audiences,
            algorithms,
            email: config.email.clone(),
            client_id: config.client_id.clone(),
            claims: config.claims.clone(),
            leeway: config.leeway.unwrap_or(Duration::from_secs(60)),
        })
    }

    /// What is allowed and unwise.
    pub(super) fn warnings(&self) -> Vec<String> {
        let anybody = self.email.is_none() && self.client_id.is_none() && self.claims.is_empty();
        let warning = "jwt names no email, client_id or claims: every account of the issuer that can have a token made for \
                       this audience is let in, which is anybody where the issuer serves the public, like Google";
        anybody.then(|| warning.to_owned()).into_iter().collect()
    }

    /// What stands for the secret's name.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The key document, if it has to be fetched before `request` can be judged.
    pub(super) fn wanted(&self, request: &Request) -> Option<Wanted> {
        // What has not the form of a token is refused for that.
        let compact = token(request).and_then(Compact::parse).ok()?;
        self.keys.wanted(|keys| keys.find(compact.header.kid.as_deref()).is_some())
    }

    /// The key document, to be there before the first request.
    pub(super) fn document(&self) -> Option<Wanted> {
        self.keys.refresh()
    }

    pub(super) fn verify(&self, request: &Request) -> Result<Arc<str>, AuthFailure> {
        let compact = Compact::parse(token(request)?)?;
        let algorithm = self.algorithms.iter().find(|known| known.name() == compact.header.alg);
        let algorithm = *algorithm.ok_or(AuthFailure::AlgorithmRefused)?;
        let keys = self.keys.current()?;
        let key = keys.find(compact.header.kid.as_deref()).ok_or_else(|| self.keys.unknown())?;
        key.verify(algorithm, compact.signed.as_bytes(), &compact.signature)?;
        let claims = compact.claims()?;
        claims.check_times(request.received_at, self.leeway)?;
        self.check_claims(&claims)?;
        Ok(Arc::clone(&self.name))
    }

    fn check_claims(&self, claims: &Claims) -> Result<(), AuthFailure> {
        let issuer = claims.text("iss").ok_or(AuthFailure::IssuerRefused)?;
        if !self.issuers.iter().any(|known| known == issuer) {
            return Err(AuthFailure::IssuerRefused);
        }
        if !claims.texts("aud").iter().any(|audience| self.audiences.iter().any(|ours| ours == audience)) {
            return Err(AuthFailure::AudienceRefused);
        }
        if let Some(email) = &self.email
            && (claims.text("email") != Some(email) || claims.get("email_verified") != Some(&Value::Bool(true)))
        {
            return Err(AuthFailure::ClaimRefused);
        }
        if let Some(client_id) = &self.client_id
            && claims.text("azp").or_else(|| claims.text("appid")) != Some(client_id)
        {
            return Err(AuthFailure::ClaimRefused);
        }
        match self.claims.iter().all(|(name, wanted)| claims.text(name) == Some(wanted)) {
            true => Ok(()),
            false => Err(AuthFailure::ClaimRefused),
        }
    }

    pub(super) fn sign(&self, draft: &mut Draft) -> Result<(), String> {
        let now = super::since_1970(draft.now).as_secs();
        let mut claims = json!({
            "iss": self.issuers[0], "aud": self.audiences[0], "sub": "hookgate-send",
            "iat": now, "nbf": now, "exp": now + 300,
        });
        if let Some(email) = &self.email {
            claims["email"] = email.as_str().into();
            claims["email_verified"] = true.into();
        }
        if let Some(client_id) = &self.client_id {
            claims["azp"] = client_id.as_str().into();
        }
        for (name, value) in &self.claims {
            claims[name] = value.as_str().into();
        }
        let algorithm = self.algorithms[0];
        let mut header = json!({ "typ": "JWT", "alg": algorithm.name() });
        if let Some(kid) = self.keys.current().ok().and_then(|keys| keys.first_kid()) {
            header["kid"] = kid.into();
        }
        let signed = compact::signed_part(&header, &claims);
        let key = draft.signing_key()?;
        let signature = match algorithm {
            JwtAlgorithm::RS256 => key.rsa_sha256(signed.as_bytes())?,
            JwtAlgorithm::EdDSA => key.ed25519(signed.as_bytes())?,
            other => return Err(format!("send cannot sign with {}; put RS256 or EdDSA first", other.name())),
        };
        let token = format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature));
        draft.set_header(&http::header::AUTHORIZATION, &format!("Bearer {token}"))
    }
}

impl JwtAlgorithm {
    fn name(self) -> &'static str {
        match self {
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::EdDSA => "EdDSA",
        }
    }
}

fn token(request: &Request) -> Result<&str, AuthFailure> {
    let value = headers::single(&request.headers, &http::header::AUTHORIZATION)?;
    match headers::after_word(value, "bearer") {
        Ok(token) if token.len() > TOKEN_BYTES_MAX => Err(AuthFailure::Malformed),
        token => token,
    }
}

impl Claims {
    /// Whether the token is valid at `now`: it must say when it ends, and that must lie ahead.
    pub(super) fn check_times(&self, now: SystemTime, leeway: Duration) -> Result<(), AuthFailure> {
        let now = super::since_1970(now).as_secs_f64();
        let leeway = leeway.as_secs_f64();
        match self.time("exp")? {
            Some(exp) if now < exp + leeway => {}
            Some(_) => return Err(AuthFailure::TokenExpired),
            None => return Err(AuthFailure::Malformed),
        }
        let begun = |time: Option<f64>| time.is_none_or(|time| time <= now + leeway);
        match begun(self.time("nbf")?) && begun(self.time("iat")?) {
            true => Ok(()),
            false => Err(AuthFailure::TokenNotYetValid),
        }
    }
}
