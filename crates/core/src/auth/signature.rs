//! The one declarative signature scheme: which header, which bytes, which algorithm, how old. Most providers are a row of
//! parameters for it, and so is a provider that nobody has heard of yet.
//!
//! The signed bytes are what was sent, before any decoding: the raw body, and timestamp and id as text.

mod candidates;
mod config;
mod signed;
mod timestamp;

use std::{sync::Arc, time::SystemTime};

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use ed25519_dalek::VerifyingKey;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderName;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use subtle::{Choice, ConstantTimeEq};
use x509_parser::prelude::FromDer;

pub use self::config::{Future, SignatureConfig, Tolerance};
use self::{candidates::List, config::Encoding, signed::Signed, timestamp::Timestamp};
pub(super) use self::{
    config::AlgorithmName,
    timestamp::{check_age, parse_digits},
};
use super::{AuthFailure, KeyForm, Request, SchemeProblems, headers, secrets, sign::Draft, url::Url};
use crate::{
    config::Problem,
    secret::{ResolveSecret, Secret, SecretSlot},
};

/// A hash to make an HMAC with (RFC 2104).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, schemars::JsonSchema, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hash {
    /// SHA-1: broken as a hash, still sound in an HMAC; only for providers that have nothing else.
    Sha1,
    /// SHA-256.
    #[default]
    Sha256,
    /// SHA-512.
    Sha512,
}

/// The HMAC of `parts`, one after the other.
pub(crate) fn hmac(hash: Hash, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    fn run<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().to_vec()
    }
    match hash {
        Hash::Sha1 => run::<Hmac<Sha1>>(key, parts),
        Hash::Sha256 => run::<Hmac<Sha256>>(key, parts),
        Hash::Sha512 => run::<Hmac<Sha512>>(key, parts),
    }
}

/// A shared secret shorter than this, in bytes, can be found by trying.
const KEY_BYTES_ADVISED: usize = 16;

/// How a signature is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Hmac(Hash, KeyForm),
    /// Ed25519 (RFC 8032) with a raw public key.
    Ed25519,
    /// ECDSA over P-256 with SHA-256, the signature in DER.
    EcdsaP256,
}

/// The scheme, ready to verify.
#[derive(Debug)]
pub(super) struct Signature {
    algorithm: Algorithm,
    headers: Vec<HeaderName>,
    encoding: Encoding,
    prefix: String,
    list: List,
    signed: Signed,
    timestamp: Option<Timestamp>,
    id: Vec<HeaderName>,
    url: Url,
    unescape_url: bool,
    secrets: Vec<Arc<SecretSlot>>,
}

impl Signature {
    /// Its secrets.
    pub(super) fn secrets(&self) -> &[Arc<SecretSlot>] {
        &self.secrets
    }

    /// What is allowed and unwise.
    pub(super) fn warnings(&self) -> Vec<String> {
        let Algorithm::Hmac(_, form) = self.algorithm else { return Vec::new() };
        let is_short = |slot: &&Arc<SecretSlot>| {
            form.decode(slot.current().expose()).is_ok_and(|key| key.len() < KEY_BYTES_ADVISED)
        };
        let warning = |slot: &Arc<SecretSlot>| {
            format!(
                "the secret {} has less than {KEY_BYTES_ADVISED} bytes and can be guessed from one request",
                slot.name()
            )
        };
        self.secrets.iter().filter(is_short).map(warning).collect()
    }

    /// The name of the secret that signed `request`.
    pub(super) fn verify(&self, request: &Request) -> Result<Arc<str>, AuthFailure> {
        let value = headers::first(&request.headers, &self.headers)?;
        let candidates = self.list.candidates(value, &self.prefix)?;
        let timestamp =
            self.timestamp.as_ref().map(|timestamp| timestamp.text(request, value, &self.list)).transpose()?;
        let id = match self.id.as_slice() {
            [] => "",
            names => headers::first(&request.headers, names).map_err(|failure| match failure {
                AuthFailure::Missing => AuthFailure::IdMissing,
                other => other,
            })?,
        };
        let url = self.url.of(&request.path, request.query.as_deref());
        let find = |url: &str| {
            let parts = self.signed.parts(&signed::Values {
                body: &request.body,
                timestamp: timestamp.as_ref().map_or("", |timestamp| timestamp.text()),
                id,
                method: request.method.as_str(),
                url,
            });
            self.find(&candidates, &parts, request.received_at)
        };
        let secret = match find(&url) {
            Err(_) if self.unescape_url => find(&Url::unescaped(&url))?,
            found => found?,
        };
        if let (Some(rule), Some(timestamp)) = (&self.timestamp, &timestamp) {
            rule.check(timestamp, request.received_at)?;
        }
        Ok(secret)
    }

    fn find(&self, candidates: &[&str], parts: &[&[u8]], now: SystemTime) -> Result<Arc<str>, AuthFailure> {
        let search = |matches: &mut dyn FnMut(&Secret) -> Choice| {
            secrets::find(&self.secrets, now, AuthFailure::SignatureMismatch, matches)
        };
        match self.algorithm {
            Algorithm::Hmac(hash, form) => search(&mut |secret| {
                let Ok(key) = form.decode(secret.expose()) else { return Choice::from(0) };
                let expected = self.encoding.encode(&hmac(hash, &key, parts));
                // As text, so that there is one way to write each signature.
                candidates
                    .iter()
                    .fold(Choice::from(0), |found, text| found | expected.as_bytes().ct_eq(text.as_bytes()))
            }),
            Algorithm::Ed25519 | Algorithm::EcdsaP256 => {
                let signatures: Vec<Vec<u8>> =
                    candidates.iter().filter_map(|text| self.encoding.decode(text)).collect();
                if !(1..=PUBLIC_KEY_SIGNATURES_MAX).contains(&signatures.len()) {
                    return Err(AuthFailure::Malformed);
                }
                let message = parts.concat();
                search(&mut |secret| {
                    let fits = |signature: &Vec<u8>| match self.algorithm {
                        Algorithm::EcdsaP256 => ecdsa_fits(secret.expose(), &message, signature),
                        _ => ed25519_fits(secret.expose(), &message, signature),
                    };
                    Choice::from(u8::from(signatures.iter().any(fits)))
                })
            }
        }
    }

    /// Signs `draft` as the provider does, with the first secret that is live.
    pub(super) fn sign(&self, draft: &mut Draft) -> Result<(), String> {
        if let Some(timestamp) = &self.timestamp {
            timestamp.write(draft)?;
        }
        let id = draft.id.clone();
        if let Some(name) = self.id.first() {
            draft.set_header(name, &id)?;
        }
        let url = self.url.of(&draft.path, draft.query.as_deref()).into_owned();
        let timestamp = self.timestamp.as_ref().map(|rule| rule.now(draft.now)).unwrap_or_default();
        let parts = self.signed.parts(&signed::Values {
            body: &draft.body,
            timestamp: &timestamp,
            id: &id,
            method: draft.method.as_str(),
            url: &url,
        });
        let signature = match self.algorithm {
            Algorithm::Hmac(hash, form) => {
                let secret = draft.live(&self.secrets)?;
                let key = form.decode(secret.expose()).map_err(|message| format!("the secret {message}"))?.into_owned();
                hmac(hash, &key, &parts)
            }
            Algorithm::Ed25519 => draft.signing_key()?.ed25519(&parts.concat())?,
            Algorithm::EcdsaP256 => draft.signing_key()?.ecdsa_p256(&parts.concat())?,
        };
        let text = format!("{}{}", self.prefix, self.encoding.encode(&signature));
        let value = self.list.write(&text, self.timestamp.as_ref().and_then(Timestamp::part), &timestamp);
        draft.set_header(&self.headers[0], &value)
    }
}

impl Encoding {
    fn encode(self, bytes: &[u8]) -> String {
        match self {
            Self::Hex => HEXLOWER.encode(bytes),
            Self::Base64 => BASE64.encode(bytes),
        }
    }

    /// Public-key signatures are decoded before they are checked, from the one form in which each can be written.
    fn decode(self, text: &str) -> Option<Vec<u8>> {
        match self {
            Self::Hex => HEXLOWER.decode(text.as_bytes()).ok(),
            Self::Base64 => BASE64.decode(text.as_bytes()).ok(),
        }
    }
}

/// Most signatures in one request that are checked by public keys, each of which costs a pass over the body.
const PUBLIC_KEY_SIGNATURES_MAX: usize = 4;

/// A public key in `text`: 64 hexadecimal digits (Discord), or `whpk_` and base64 (Standard Webhooks).
///
/// A key of small order is refused: signatures under it can be made without any private key.
/// Source: RFC 8032, section 5.1.3; Standard Webhooks specification, "Signature scheme".
fn ed25519_key(text: &[u8]) -> Result<VerifyingKey, String> {
    let decoded = match text.strip_prefix(b"whpk_") {
        Some(base64) => BASE64.decode(base64).map_err(|_| "is not \"whpk_\" and base64 after it"),
        None => HEXLOWER_PERMISSIVE.decode(text).map_err(|_| "is neither hexadecimal nor \"whpk_\" and base64"),
    };
    let bytes: [u8; 32] = decoded?.try_into().map_err(|_| "is not 32 bytes long")?;
    let key = VerifyingKey::from_bytes(&bytes).map_err(|_| "is no point of the curve")?;
    if key.is_weak() { Err("is a point of small order, for which anybody can sign".to_owned()) } else { Ok(key) }
}

/// Verified strictly: the scalar below the group's order, and no point of small order.
fn ed25519_fits(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let (Ok(key), Ok(signature)) = (ed25519_key(key), ed25519_dalek::Signature::from_slice(signature)) else {
        return false;
    };
    key.verify_strict(message, &signature).is_ok()
}

/// The point in `text`, which is the base64 of a DER SubjectPublicKeyInfo (RFC 5280, section 4.1).
fn p256_key(text: &[u8]) -> Result<Vec<u8>, String> {
    const POINT_BYTES: usize = 65;
    let der = BASE64.decode(text).map_err(|_| "is not base64")?;
    let (rest, info) =
        x509_parser::x509::SubjectPublicKeyInfo::from_der(&der).map_err(|_| "is no public key in DER form")?;
    // Other curves have points of that length too. The identifier: RFC 5480, section 2.1.1.1.
    let curve = info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let is_p256 = curve.is_some_and(|curve| curve.to_id_string() == "1.2.840.10045.3.1.7");
    match info.subject_public_key.data.as_ref() {
        point if rest.is_empty() && is_p256 && point.len() == POINT_BYTES => Ok(point.to_owned()),
        _ => Err("is no public key of the curve P-256".to_owned()),
    }
}

fn ecdsa_fits(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let Ok(point) = p256_key(key) else { return false };
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(message, signature).is_ok()
}

fn check_ed25519(text: &[u8]) -> Result<(), String> {
    ed25519_key(text).map(|_| ())
}

fn check_p256(text: &[u8]) -> Result<(), String> {
    p256_key(text).map(|_| ())
}

/// Resolves `secrets` and demands their form of each.
pub(super) fn resolve_all(
    references: &[crate::secret::SecretRef],
    form: crate::secret::CheckForm,
    resolve: &mut ResolveSecret<'_>,
    problems: &mut SchemeProblems<'_>,
) -> Vec<Arc<SecretSlot>> {
    if references.is_empty() {
        problems.push("secrets", "is empty: with no secret nothing can be verified");
    }
    let mut slots = Vec::new();
    for (place, reference) in references.iter().enumerate() {
        let slot = resolve(reference).and_then(|slot| {
            slot.demand(form).map_err(|message| format!("the secret {message}"))?;
            Ok(slot)
        });
        match slot {
            Ok(slot) => slots.push(slot),
            Err(message) => problems.add(Problem::new(format!("secrets[{place}]"), message)),
        }
    }
    slots
}
