//! Who sent it: turns what anybody may have sent into something with proof.
//!
//! A source states alternatives; one of them must hold, and an alternative may demand several schemes at once. This is the
//! only place that makes an [`Authenticated`].

mod token;

use std::{ops::Deref, sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    config::Problem,
    limits::Admitted,
    secret::{ResolveSecret, SecretRef, SecretSlot},
};

/// A request as it arrived: nothing in it is known to be true.
#[derive(Debug)]
pub struct Unverified {
    request: Request,
}

impl Unverified {
    /// Takes up a request that was read to its last byte.
    pub fn new(request: Request) -> Self {
        Self { request }
    }
}

/// The parts of a request that verification and identity look at.
pub struct Request {
    /// The method, as sent.
    pub method: Method,
    /// The path of the target, without the query.
    pub path: String,
    /// The query of the target, without `?`. It may hold a token: it is never logged and never travels on.
    pub query: Option<String>,
    /// All headers, as sent.
    pub headers: HeaderMap,
    /// The body, byte for byte.
    pub body: Bytes,
    /// When its last byte arrived, by the clock that verification is to use.
    pub received_at: SystemTime,
    /// Its place among what is in flight.
    pub admitted: Admitted,
}

impl std::fmt::Debug for Request {
    /// Shows neither query nor headers nor body: each may hold a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body_bytes = self.body.len();
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("body_bytes", &body_bytes)
            .finish()
    }
}

/// A `T` that is known to come from who the source says it comes from.
///
/// Only [`Verifier::verify`] makes one; what is derived from it inside this crate keeps the proof.
#[derive(Debug)]
pub struct Authenticated<T> {
    value: T,
    proof: Proof,
}

impl<T> Authenticated<T> {
    /// What was proved, and by which secret.
    pub fn proof(&self) -> &Proof {
        &self.proof
    }

    /// Derives another value that the same proof covers.
    pub(crate) fn try_map<U, E>(self, derive: impl FnOnce(T) -> Result<U, E>) -> Result<Authenticated<U>, E> {
        Ok(Authenticated { value: derive(self.value)?, proof: self.proof })
    }
}

impl<T> Deref for Authenticated<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// What verified a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The scheme, as named in the config.
    pub scheme: &'static str,
    /// The name of the secret that matched; tells an operator when the old one of a rotation is out of use.
    pub secret: Arc<str>,
}

/// Why a request was not verified. For the operator: every sender gets the same answer.
///
/// Ordered by how far verification came, so that of several alternatives the most telling reason is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum AuthFailure {
    /// There was no credential where any scheme looks for one.
    #[error("no credential")]
    Missing,
    /// A credential was there in another form than its scheme writes it.
    #[error("a credential in the wrong form")]
    Malformed,
    /// A credential was there more than once.
    #[error("more than one credential")]
    Repeated,
    /// A credential was there and no secret matches it.
    #[error("a credential that matches no secret")]
    Mismatch,
}

/// One entry of a source's `verify` list: a scheme, or several that must all hold.
#[derive(Debug, Clone)]
pub enum VerifyConfig {
    /// This scheme suffices.
    One(SchemeConfig),
    /// All of these must hold.
    All(Vec<SchemeConfig>),
}

/// A way to verify a sender, with its secrets.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(tag = "scheme", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SchemeConfig {
    /// `Authorization: Bearer <token>` (RFC 6750, section 2.1).
    Bearer {
        /// The tokens that are live; any one may match.
        secrets: Vec<SecretRef>,
    },
    /// A token in the URL's query. It ends in the logs of every proxy on the way: prefer `bearer` where the sender can.
    Query {
        /// Name of the query parameter, like `token`.
        param: String,
        /// The tokens that are live; any one may match.
        secrets: Vec<SecretRef>,
    },
}

impl<'de> Deserialize<'de> for VerifyConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrAll;
        impl<'de> de::Visitor<'de> for OneOrAll {
            type Value = VerifyConfig;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(
                    "a scheme like { scheme = \"bearer\", secrets = […] }, or a list of schemes that must all hold",
                )
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<VerifyConfig, A::Error> {
                SchemeConfig::deserialize(de::value::MapAccessDeserializer::new(map)).map(VerifyConfig::One)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<VerifyConfig, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(VerifyConfig::All)
            }
        }
        deserializer.deserialize_any(OneOrAll)
    }
}

impl Serialize for VerifyConfig {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::One(scheme) => scheme.serialize(serializer),
            Self::All(schemes) => schemes.serialize(serializer),
        }
    }
}

/// A scheme ready to verify. Adding one produces the list of places to think of.
#[derive(Debug)]
enum Scheme {
    Bearer(Vec<Arc<SecretSlot>>),
    Query { param: String, tokens: Vec<Arc<SecretSlot>> },
}

impl Scheme {
    fn verify(&self, request: &Request) -> Result<Proof, AuthFailure> {
        match self {
            Self::Bearer(tokens) => {
                let token = token::bearer(&request.headers)?;
                Ok(Proof { scheme: "bearer", secret: token::find(token.as_bytes(), tokens)? })
            }
            Self::Query { param, tokens } => {
                let token = token::query(request.query.as_deref(), param)?;
                Ok(Proof { scheme: "query", secret: token::find(token.as_bytes(), tokens)? })
            }
        }
    }
}

/// Verifies the requests of one source.
#[derive(Debug)]
pub struct Verifier {
    /// Not empty, and no alternative is: what demands nothing would accept everything.
    alternatives: Vec<Vec<Scheme>>,
}

impl Verifier {
    /// Prepares the schemes of `config` and resolves their secrets.
    ///
    /// # Errors
    /// Every problem found; keys are relative to the `verify` list.
    pub fn compile(config: &[VerifyConfig], resolve: &mut ResolveSecret<'_>) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        if config.is_empty() {
            problems.push(Problem::new("", "is empty: a source without verification would take events from anybody"));
        }
        let mut alternatives = Vec::new();
        for (place, alternative) in config.iter().enumerate() {
            let schemes: Vec<(String, &SchemeConfig)> = match alternative {
                VerifyConfig::One(scheme) => vec![(format!("[{place}]"), scheme)],
                VerifyConfig::All(schemes) => {
                    schemes.iter().enumerate().map(|(inner, scheme)| (format!("[{place}][{inner}]"), scheme)).collect()
                }
            };
            if schemes.is_empty() {
                problems.push(Problem::new(format!("[{place}]"), "is an empty list, which anybody would satisfy"));
            }
            let compiled =
                schemes.into_iter().filter_map(|(key, scheme)| compile_scheme(&key, scheme, resolve, &mut problems));
            alternatives.push(compiled.collect());
        }
        if problems.is_empty() { Ok(Self { alternatives }) } else { Err(problems) }
    }

    /// Proves who sent `request`. All live secrets are tried in constant time.
    ///
    /// # Errors
    /// Why no alternative held: the reason of the one that came furthest.
    pub fn verify(&self, unverified: Unverified) -> Result<Authenticated<Request>, AuthFailure> {
        let mut furthest = AuthFailure::Missing;
        for alternative in &self.alternatives {
            let mut proof = Err(AuthFailure::Missing);
            for scheme in alternative {
                proof = scheme.verify(&unverified.request);
                if proof.is_err() {
                    break;
                }
            }
            match proof {
                Ok(proof) => {
                    return Ok(Authenticated { value: unverified.request, proof });
                }
                Err(failure) => furthest = furthest.max(failure),
            }
        }
        Err(furthest)
    }
}

fn compile_scheme(
    key: &str,
    scheme: &SchemeConfig,
    resolve: &mut ResolveSecret<'_>,
    problems: &mut Vec<Problem>,
) -> Option<Scheme> {
    let found_before = problems.len();
    let (SchemeConfig::Bearer { secrets } | SchemeConfig::Query { secrets, .. }) = scheme;
    if secrets.is_empty() {
        problems.push(Problem::new(format!("{key}.secrets"), "is empty: with no secret nothing can be verified"));
    }
    let mut slots = Vec::new();
    for (place, reference) in secrets.iter().enumerate() {
        match resolve(reference) {
            Ok(slot) => slots.push(slot),
            Err(message) => problems.push(Problem::new(format!("{key}.secrets[{place}]"), message)),
        }
    }
    let scheme = match scheme {
        SchemeConfig::Bearer { .. } => Scheme::Bearer(slots),
        SchemeConfig::Query { param, .. } => {
            if param.is_empty() {
                problems
                    .push(Problem::new(format!("{key}.param"), "is empty; name the query parameter, like \"token\""));
            }
            Scheme::Query { param: param.clone(), tokens: slots }
        }
    };
    (problems.len() == found_before).then_some(scheme)
}
