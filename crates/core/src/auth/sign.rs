//! Makes requests as senders make them: for `hookgate send`, and for tests of the verifiers.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};

use crate::secret::{Secret, SecretSlot};

/// A request that is being made.
pub struct Draft {
    /// The method.
    pub method: Method,
    /// The path, without the query.
    pub path: String,
    /// The query, without `?`.
    pub query: Option<String>,
    /// The headers so far.
    pub headers: HeaderMap,
    /// The body. Schemes whose signature stands in the body put it there.
    pub body: Bytes,
    /// The time to sign.
    pub now: SystemTime,
    /// The message id to sign, for the schemes that have one.
    pub id: String,
    /// The name of the secret to sign with. Default: the first that is live.
    pub secret: Option<String>,
    /// The private key, for the schemes of which hookgate knows only the public one.
    pub signing_key: Option<SigningKey>,
}

impl std::fmt::Debug for Draft {
    /// Shows neither query nor headers nor body: each may hold a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draft").field("method", &self.method).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Draft {
    /// Sets a header, in place of any that is there.
    pub(super) fn set_header(&mut self, name: &HeaderName, value: &str) -> Result<(), String> {
        let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| {
            format!("what belongs into the header {name} has a line break or another control character in it")
        })?;
        self.headers.insert(name.clone(), value);
        Ok(())
    }

    /// Puts `pair` at the end of the query.
    pub(super) fn append_to_query(&mut self, pair: &str) {
        self.query = Some(match self.query.take() {
            Some(query) => format!("{query}&{pair}"),
            None => pair.to_owned(),
        });
    }

    /// The secret to sign with: the one that is wanted where it is among `slots`, else the first that is live.
    pub(super) fn live(&self, slots: &[Arc<SecretSlot>]) -> Result<Arc<Secret>, String> {
        let wanted = |slot: &&Arc<SecretSlot>| self.secret.as_deref() == Some(&**slot.name());
        let live = |slot: &&Arc<SecretSlot>| slot.is_live(self.now);
        let slot = slots.iter().find(wanted).or_else(|| slots.iter().find(live));
        slot.map(|slot| Arc::clone(&slot.current())).ok_or_else(|| "no secret is live at that time".to_owned())
    }

    /// The private key.
    pub(super) fn signing_key(&self) -> Result<&SigningKey, String> {
        self.signing_key.as_ref().ok_or_else(|| {
            "hookgate knows this sender's public key only; to test, configure the public key of a pair of your own and give \
             the private one with --signing-key"
                .to_owned()
        })
    }
}

/// A private key in PKCS #8 form (RFC 5958).
pub struct SigningKey(Vec<u8>);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(crate::secret::REDACTED)
    }
}

impl SigningKey {
    /// The key in `pem`, which begins with `-----BEGIN PRIVATE KEY-----`.
    ///
    /// # Errors
    /// When there is none in it.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        match x509_parser::pem::parse_x509_pem(pem) {
            Ok((_, block)) if block.label == "PRIVATE KEY" => Ok(Self(block.contents)),
            _ => Err("holds no PKCS #8 private key; it begins with -----BEGIN PRIVATE KEY-----".to_owned()),
        }
    }

    pub(super) fn ed25519(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&self.0).map_err(|_| "the signing key is not Ed25519")?;
        Ok(pair.sign(message).as_ref().to_vec())
    }

    pub(super) fn ecdsa_p256(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &self.0, &random);
        let pair = pair.map_err(|_| "the signing key is not ECDSA over P-256")?;
        Ok(pair.sign(&random, message).map_err(|_| "no random numbers")?.as_ref().to_vec())
    }

    pub(super) fn rsa_sha256(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let pair = RsaKeyPair::from_pkcs8(&self.0).map_err(|_| "the signing key is not RSA with 2048 bits or more")?;
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).map_err(|_| "no random numbers")?;
        Ok(signature)
    }
}
