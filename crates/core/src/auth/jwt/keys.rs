//! The public keys of a token issuer.

use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use ring::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    super::{
        AuthFailure, SchemeProblems,
        remote::{Remote, Wanted},
    },
    JwtAlgorithm,
};
use crate::{
    config::Problem,
    secret::{ResolveSecret, SecretRef, SecretSlot},
};

/// Where an issuer's public keys are.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeysConfig {
    /// A JWK set (or a map of key names to PEM certificates) at an https URL; fetched at the start, every hour, and when a
    /// token names a key that is not in it.
    Url(String),
    /// The same in a file, re-read when it changes.
    File(std::path::PathBuf),
    /// The same in the config itself.
    Inline(String),
}

/// The keys of one issuer, as they are kept.
#[derive(Debug)]
pub(super) enum KeyDocument {
    Fetched(Arc<Remote<KeySet>>),
    Given(Arc<SecretSlot>),
}

impl KeyDocument {
    pub(super) fn compile(
        config: Option<&KeysConfig>,
        resolve: &mut ResolveSecret<'_>,
        problems: &mut SchemeProblems<'_>,
    ) -> Option<Self> {
        let mut reference = match config {
            None => {
                problems
                    .push("keys", "is missing: say where the issuer's public keys are, like { url = \"https://…\" }");
                return None;
            }
            Some(KeysConfig::Url(url)) if url.starts_with("https://") => {
                return Some(Self::Fetched(Arc::new(Remote::new(url, KeySet::parse))));
            }
            Some(KeysConfig::Url(url)) => {
                problems
                    .push("keys.url", format!("{url:?} must begin with \"https://\": whoever answers can sign events"));
                return None;
            }
            Some(KeysConfig::File(path)) => SecretRef::file(path.clone()),
            Some(KeysConfig::Inline(text)) => SecretRef::literal(text.clone()),
        };
        reference.name = Some("jwks".to_owned());
        let given = resolve(&reference).and_then(|slot| {
            slot.demand(|text| KeySet::parse(text).map(|_| ())).map_err(|message| format!("the key set {message}"))?;
            Ok(Self::Given(slot))
        });
        given.map_err(|message| problems.add(Problem::new("keys", message))).ok()
    }

    pub(super) fn name(&self) -> Arc<str> {
        match self {
            Self::Fetched(_) => "jwks".into(),
            Self::Given(slot) => Arc::clone(slot.name()),
        }
    }

    /// The keys that are known now.
    pub(super) fn current(&self) -> Result<Arc<KeySet>, AuthFailure> {
        match self {
            Self::Fetched(remote) => remote.current().ok_or(AuthFailure::KeysUnavailable),
            Self::Given(slot) => {
                KeySet::parse(slot.current().expose()).map(Arc::new).map_err(|_| AuthFailure::KeysUnavailable)
            }
        }
    }

    /// Why a key is not among them: the issuer has none of that name, or may have and cannot be asked.
    pub(super) fn unknown(&self) -> AuthFailure {
        match self {
            Self::Fetched(remote) if remote.has_failed() => AuthFailure::KeysUnavailable,
            Self::Fetched(_) | Self::Given(_) => AuthFailure::KeyUnknown,
        }
    }

    /// The document, if it is not there yet or `suffices` says that it is not enough.
    pub(super) fn wanted(&self, suffices: impl FnOnce(&KeySet) -> bool) -> Option<Wanted> {
        match self {
            Self::Given(_) => None,
            Self::Fetched(remote) => {
                let enough = remote.current().is_some_and(|keys| suffices(&keys));
                (!enough).then(|| Wanted::document(remote)).flatten()
            }
        }
    }

    /// The document, to be fetched anew.
    pub(super) fn refresh(&self) -> Option<Wanted> {
        match self {
            Self::Given(_) => None,
            Self::Fetched(remote) => Some(Wanted::refresh(remote)),
        }
    }
}

/// The keys of one issuer.
#[derive(Debug)]
pub(in super::super) struct KeySet(Vec<NamedKey>);

#[derive(Debug)]
struct NamedKey {
    kid: Option<String>,
    key: Key,
}

/// A public key and the algorithm it is kept for, if it says so.
#[derive(Debug)]
pub(in super::super) struct Key {
    algorithm: Option<String>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Deserialize)]
struct JsonWebKey {
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a JWK set (RFC 7517, section 5), or an object of key names and PEM certificates as Google offers it too. Keys
    /// that are for something else, or of a kind we do not know, are passed over.
    ///
    /// # Errors
    /// When `document` is neither, or has no key that is of use.
    pub(super) fn parse(document: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(document).map_err(|error| format!("is not JSON: {error}"))?;
        if let Some(keys) = value.get("keys").and_then(Value::as_array) {
            return Self::usable(keys.iter().filter_map(|key| JsonWebKey::deserialize(key).ok()?.named()).collect());
        }
        let certificates = value.as_object().ok_or("is neither a JWK set nor a map of certificates")?;
        let mut keys = Vec::new();
        for (kid, pem) in certificates {
            let pem = pem.as_str().ok_or("is neither a JWK set nor a map of certificates")?;
            let (n, e) = rsa_of_certificate(pem.as_bytes())?;
            keys.push(NamedKey {
                kid: Some(kid.clone()),
                key: Key { algorithm: None, material: Material::Rsa { n, e } },
            });
        }
        Self::usable(keys)
    }

    /// A set without keys would refuse everybody, and take the place of a good one.
    fn usable(keys: Vec<NamedKey>) -> Result<Self, String> {
        if keys.is_empty() { Err("has no key that can verify tokens".to_owned()) } else { Ok(Self(keys)) }
    }

    /// The key called `kid`; a token that names none may use the only one.
    pub(in super::super) fn find(&self, kid: Option<&str>) -> Option<&Key> {
        match (kid, self.0.as_slice()) {
            (None, [only]) => Some(&only.key),
            (None, _) => None,
            (Some(kid), keys) => keys.iter().find(|named| named.kid.as_deref() == Some(kid)).map(|named| &named.key),
        }
    }

    /// The name of the first key.
    pub(super) fn first_kid(&self) -> Option<String> {
        self.0.first()?.kid.clone()
    }
}

impl JsonWebKey {
    fn named(self) -> Option<NamedKey> {
        if self.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        let bytes = |text: &Option<String>| BASE64URL_NOPAD.decode(text.as_deref()?.as_bytes()).ok();
        let point = || Some([&[4][..], &bytes(&self.x)?, &bytes(&self.y)?].concat());
        let material = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => Material::Rsa { n: bytes(&self.n)?, e: bytes(&self.e)? },
            ("EC", Some("P-256")) => Material::P256(point()?),
            ("EC", Some("P-384")) => Material::P384(point()?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes(&self.x)?),
            _ => return None,
        };
        Some(NamedKey { kid: self.kid, key: Key { algorithm: self.alg, material } })
    }
}

impl Key {
    /// Whether `signature` over `message` is this key's, by `algorithm` and no other.
    pub(super) fn verify(&self, algorithm: JwtAlgorithm, message: &[u8], signature: &[u8]) -> Result<(), AuthFailure> {
        if self.algorithm.as_deref().is_some_and(|kept_for| kept_for != algorithm.name()) {
            return Err(AuthFailure::AlgorithmRefused);
        }
        let rsa = |parameters: &'static RsaParameters| match &self.material {
            Material::Rsa { n, e } => Ok(RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)),
            _ => Err(AuthFailure::AlgorithmRefused),
        };
        let point = |algorithm: &'static dyn signature::VerificationAlgorithm, point: &[u8]| {
            UnparsedPublicKey::new(algorithm, point).verify(message, signature)
        };
        let verified = match (algorithm, &self.material) {
            (JwtAlgorithm::RS256, _) => rsa(&RSA_PKCS1_2048_8192_SHA256)?,
            (JwtAlgorithm::RS384, _) => rsa(&RSA_PKCS1_2048_8192_SHA384)?,
            (JwtAlgorithm::RS512, _) => rsa(&RSA_PKCS1_2048_8192_SHA512)?,
            (JwtAlgorithm::PS256, _) => rsa(&RSA_PSS_2048_8192_SHA256)?,
            (JwtAlgorithm::ES256, Material::P256(key)) => point(&ECDSA_P256_SHA256_FIXED, key),
            (JwtAlgorithm::ES384, Material::P384(key)) => point(&ECDSA_P384_SHA384_FIXED, key),
            (JwtAlgorithm::EdDSA, Material::Ed25519(key)) => point(&signature::ED25519, key),
            _ => return Err(AuthFailure::AlgorithmRefused),
        };
        verified.map_err(|_| AuthFailure::SignatureMismatch)
    }
}

/// Modulus and exponent of the key in a PEM certificate.
fn rsa_of_certificate(pem: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
    const BAD: &str = "has a certificate that cannot be read";
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).map_err(|_| BAD)?;
    let certificate = pem.parse_x509().map_err(|_| BAD)?;
    match certificate.public_key().parsed() {
        Ok(x509_parser::public_key::PublicKey::RSA(key)) => {
            let unsigned = |bytes: &[u8]| bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
            Ok((unsigned(key.modulus), unsigned(key.exponent)))
        }
        _ => Err("has a certificate whose key is not RSA".to_owned()),
    }
}
