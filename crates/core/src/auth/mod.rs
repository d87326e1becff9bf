//! Who sent it: turns what anybody may have sent into something with proof.
//!
//! A source states alternatives; one of them must hold, and an alternative may demand several schemes at once. This is the
//! only place that makes an [`Authenticated`]. Each scheme has its own file; most providers need none, since they are
//! parameters of [`signature`].

mod adyen;
mod atlassian;
mod config;
mod failure;
mod headers;
mod jwt;
mod mailgun;
mod peer;
mod remote;
mod secrets;
mod sign;
mod signature;
mod sns;
mod token;
mod twilio;
mod url;

use std::{
    ops::Deref,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method};
use ipnet::IpNet;

pub(crate) use self::sns::SnsRequest;
use self::{
    adyen::Adyen, atlassian::Atlassian, jwt::Jwt, mailgun::Mailgun, signature::Signature, sns::Sns, twilio::Twilio,
};
pub use self::{
    config::{SchemeConfig, VerifyConfig},
    failure::AuthFailure,
    jwt::{JwtAlgorithm, JwtConfig, keys::KeysConfig},
    peer::{Peer, networks},
    remote::{Fetch, Offline, Wanted},
    secrets::KeyForm,
    sign::{Draft, SigningKey},
    signature::{Future, Hash, SignatureConfig, Tolerance},
};
pub(crate) use self::{
    signature::hmac,
    token::{find as find_token, query_parameter},
};
use crate::{
    config::Problem,
    limits::Admitted,
    secret::{ResolveSecret, SecretSlot},
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

    /// What it says, for those who know that nothing of it is known to be true.
    pub(crate) fn peek(&self) -> &Request {
        &self.request
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
    /// The other end of its connection.
    pub peer: Peer,
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
    /// Takes up what was verified before it was written to the spool.
    pub(crate) fn from_spool(value: T) -> Self {
        Self { value, proof: Proof::Spooled }
    }

    /// What was proved, and by which secret.
    pub fn proof(&self) -> &Proof {
        &self.proof
    }

    /// Derives another value that the same proof covers.
    pub(crate) fn try_map<U, E>(self, derive: impl FnOnce(T) -> Result<U, E>) -> Result<Authenticated<U>, E> {
        Ok(Authenticated { value: derive(self.value)?, proof: self.proof })
    }

    /// Derives another value that the same proof covers, and keeps this one.
    pub(crate) fn map_ref<U>(&self, derive: impl FnOnce(&T) -> U) -> Authenticated<U> {
        Authenticated { value: derive(&self.value), proof: self.proof.clone() }
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
pub enum Proof {
    /// Every scheme of one alternative, with the secret that matched. Not empty.
    Verified(Vec<Credential>),
    /// Nothing: the operator's config says that anybody may send here.
    Waived,
    /// It was verified before it was written to the spool.
    Spooled,
}

/// A scheme and one of the secrets that it accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The scheme, as named in the config.
    pub scheme: &'static str,
    /// The operator's name for the secret; tells when the old one of a rotation is out of use.
    pub secret: Arc<str>,
}

/// What the schemes of all sources share.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// `server.public_url`, without a slash at its end.
    pub public_url: Option<Arc<str>>,
    /// Networks whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Arc<[IpNet]>,
}

/// A scheme ready to verify. Adding one produces the list of places to think of.
#[derive(Debug)]
enum Scheme {
    Token { name: &'static str, place: token::Place, secrets: Vec<Arc<SecretSlot>> },
    Signature(&'static str, Box<Signature>),
    Twilio(Twilio),
    Mailgun(Mailgun),
    Adyen(Adyen),
    Sns(Sns),
    Jwt(Box<Jwt>),
    Atlassian(Atlassian),
    Address(peer::Address),
    Certificate(peer::Certificate),
    AcceptAnyone,
}

impl Scheme {
    /// As the config writes it.
    fn name(&self) -> &'static str {
        match self {
            Self::Token { name, .. } | Self::Signature(name, _) => name,
            Self::Twilio(_) => "twilio",
            Self::Mailgun(_) => "mailgun",
            Self::Adyen(_) => "adyen-item",
            Self::Sns(_) => "aws-sns",
            Self::Jwt(_) => "jwt",
            Self::Atlassian(_) => "atlassian",
            Self::Address(_) => "ip",
            Self::Certificate(_) => "client-cert",
            Self::AcceptAnyone => config::ACCEPT_ANYONE,
        }
    }

    fn verify(&self, request: &Request) -> Result<Arc<str>, AuthFailure> {
        match self {
            Self::Token { place, secrets, .. } => {
                let token = place.token(&request.headers, request.query.as_deref())?;
                token::find(&token, secrets, request.received_at)
            }
            Self::Signature(_, signature) => signature.verify(request),
            Self::Twilio(twilio) => twilio.verify(request),
            Self::Mailgun(mailgun) => mailgun.verify(request),
            Self::Adyen(adyen) => adyen.verify(request),
            Self::Sns(sns) => sns.verify(request),
            Self::Jwt(jwt) => jwt.verify(request),
            Self::Atlassian(atlassian) => atlassian.verify(request),
            Self::Address(address) => address.verify(request),
            Self::Certificate(certificate) => certificate.verify(request),
            Self::AcceptAnyone => Ok("nobody".into()),
        }
    }

    fn sign(&self, draft: &mut Draft) -> Result<(), String> {
        match self {
            Self::Token { place, secrets, .. } => {
                let secret = draft.live(secrets)?;
                let text = String::from_utf8(secret.expose().to_vec()).map_err(|_| "the secret is not UTF-8")?;
                place.write(draft, &text)
            }
            Self::Signature(_, signature) => signature.sign(draft),
            Self::Twilio(twilio) => twilio.sign(draft),
            Self::Mailgun(mailgun) => mailgun.sign(draft),
            Self::Adyen(adyen) => adyen.sign(draft),
            Self::Sns(_) => Err("only Amazon can sign for SNS; publish to the topic: aws sns publish".to_owned()),
            Self::Jwt(jwt) => jwt.sign(draft),
            Self::Atlassian(atlassian) => atlassian.sign(draft),
            // What the connection proves, no header can.
            Self::Address(_) | Self::Certificate(_) | Self::AcceptAnyone => Ok(()),
        }
    }

    /// The names of what it accepts, as [`Credential::secret`] tells them.
    fn secret_names(&self) -> Vec<Arc<str>> {
        match self {
            Self::Sns(sns) => vec![Arc::clone(sns.name())],
            Self::Jwt(jwt) => vec![Arc::clone(jwt.name())],
            Self::Address(address) => vec![Arc::clone(address.name())],
            Self::Certificate(certificate) => certificate.names().to_vec(),
            _ => self.secrets().iter().map(|slot| Arc::clone(slot.name())).collect(),
        }
    }

    /// What is allowed and unwise in it.
    fn warnings(&self, now: SystemTime) -> Vec<String> {
        let mut warnings = match self {
            Self::Signature(_, signature) => signature.warnings(),
            Self::Sns(sns) => sns.warnings(),
            Self::Jwt(jwt) => jwt.warnings(),
            _ => Vec::new(),
        };
        for slot in self.secrets().iter().filter(|slot| !slot.is_live(now)) {
            warnings.push(format!("the secret {} is past its not_after and verifies nothing any more", slot.name()));
        }
        warnings
    }

    /// Its secrets and public keys, where the config gives any.
    fn secrets(&self) -> &[Arc<SecretSlot>] {
        match self {
            Self::Token { secrets, .. } => secrets,
            Self::Signature(_, signature) => signature.secrets(),
            Self::Twilio(twilio) => twilio.secrets(),
            Self::Mailgun(mailgun) => mailgun.secrets(),
            Self::Adyen(adyen) => adyen.secrets(),
            Self::Atlassian(atlassian) => atlassian.secrets(),
            Self::Sns(_) | Self::Jwt(_) | Self::Address(_) | Self::Certificate(_) | Self::AcceptAnyone => &[],
        }
    }

    /// What has to be fetched before `request` can be judged.
    fn wanted(&self, request: &Request) -> Option<Wanted> {
        match self {
            Self::Jwt(jwt) => jwt.wanted(request),
            Self::Sns(sns) => sns.wanted(request),
            _ => None,
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
    pub fn compile(
        config: &[VerifyConfig],
        context: &Context,
        resolve: &mut ResolveSecret<'_>,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        if config.is_empty() {
            problems.push(Problem::new("", "is empty: a source without verification would take events from anybody"));
        }
        let mut alternatives = Vec::new();
        for (place, alternative) in config.iter().enumerate() {
            let schemes: Vec<(String, &SchemeConfig)> = match alternative {
                VerifyConfig::One(scheme) => vec![(format!("[{place}]"), &**scheme)],
                VerifyConfig::All(schemes) => {
                    schemes.iter().enumerate().map(|(inner, scheme)| (format!("[{place}][{inner}]"), scheme)).collect()
                }
            };
            if schemes.is_empty() {
                problems.push(Problem::new(format!("[{place}]"), "is an empty list, which anybody would satisfy"));
            }
            let compiled = schemes.into_iter().filter_map(|(key, scheme)| {
                let mut found = SchemeProblems { key: &key, problems: &mut problems };
                scheme.compile(context, resolve, &mut found)
            });
            alternatives.push(compiled.collect());
        }
        if problems.is_empty() { Ok(Self { alternatives }) } else { Err(problems) }
    }

    /// Proves who sent `request`. All live secrets are tried in constant time.
    ///
    /// # Errors
    /// Why no alternative held: the reason of the one that came furthest.
    pub fn verify(&self, unverified: Unverified) -> Result<Authenticated<Request>, AuthFailure> {
        self.attempt(unverified).map_err(|refusal| refusal.failure)
    }

    /// Like [`Self::verify`], and gives back a request that is not proved, since it may be once something is fetched.
    pub(crate) fn attempt(&self, unverified: Unverified) -> Result<Authenticated<Request>, Box<Refusal>> {
        match self.examine(&unverified.request) {
            Ok(proof) => Ok(Authenticated { value: unverified.request, proof }),
            Err((scheme, failure)) => Err(Box::new(Refusal { unverified, scheme, failure })),
        }
    }

    fn examine(&self, request: &Request) -> Result<Proof, (&'static str, AuthFailure)> {
        let mut furthest: Option<(&'static str, AuthFailure)> = None;
        for alternative in &self.alternatives {
            match prove(alternative, request) {
                Ok(proof) => return Ok(proof),
                Err(failed) if furthest.is_none_or(|(_, failure)| failed.1 > failure) => furthest = Some(failed),
                Err(_) => {}
            }
        }
        Err(furthest.unwrap_or(("none", AuthFailure::Missing)))
    }

    /// Documents without which `unverified`, which is not proved yet, cannot be judged: keys that its token names, the
    /// certificate of its signature. Most schemes want nothing.
    pub fn wanted(&self, unverified: &Unverified) -> Vec<Wanted> {
        self.schemes().filter_map(|scheme| scheme.wanted(&unverified.request)).collect()
    }

    /// Documents that are best there before the first request: the key sets of token issuers.
    pub fn documents(&self) -> Vec<Wanted> {
        self.schemes().filter_map(|scheme| if let Scheme::Jwt(jwt) = scheme { jwt.document() } else { None }).collect()
    }

    /// Everything that can verify a request, each once.
    pub fn credentials(&self) -> Vec<Credential> {
        let mut credentials: Vec<Credential> = Vec::new();
        for scheme in self.schemes() {
            for secret in scheme.secret_names() {
                let credential = Credential { scheme: scheme.name(), secret };
                if !credentials.contains(&credential) {
                    credentials.push(credential);
                }
            }
        }
        credentials
    }

    /// The names of the schemes as the config combines them: `hmac or bearer and ip`.
    pub fn summary(&self) -> String {
        let all = |alternative: &Vec<Scheme>| alternative.iter().map(Scheme::name).collect::<Vec<_>>().join(" and ");
        self.alternatives.iter().map(all).collect::<Vec<_>>().join(" or ")
    }

    /// What is allowed and unwise, each as a sentence for the operator.
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let mut warnings = Vec::new();
        for alternative in &self.alternatives {
            match alternative.as_slice() {
                schemes if schemes.iter().all(|scheme| matches!(scheme, Scheme::AcceptAnyone)) => {
                    let word = config::ACCEPT_ANYONE;
                    warnings.push(format!("{word}: whoever finds the path can put events into the queue"));
                }
                [Scheme::Address(_)] => {
                    warnings
                        .push("ip alone: an address proves little; demand a signature or a token beside it".to_owned());
                }
                _ => {}
            }
        }
        warnings.extend(self.schemes().flat_map(|scheme| scheme.warnings(now)));
        warnings
    }

    /// Signs `draft` so that the first alternative accepts it, as far as a sender can.
    ///
    /// # Errors
    /// A sentence for the operator: what is missing to sign it.
    pub fn sign(&self, draft: &mut Draft) -> Result<(), String> {
        let schemes = self.alternatives.first().map(Vec::as_slice).unwrap_or_default();
        if let Some(wanted) = &draft.secret {
            let known: Vec<String> =
                schemes.iter().flat_map(Scheme::secret_names).map(|name| name.to_string()).collect();
            if !known.contains(wanted) {
                return Err(crate::config::unknown(
                    "secret",
                    wanted,
                    &known.iter().map(String::as_str).collect::<Vec<_>>(),
                ));
            }
        }
        // Tokens in the URL first: another scheme may sign the URL.
        let (first, then): (Vec<&Scheme>, Vec<&Scheme>) =
            schemes.iter().partition(|scheme| matches!(scheme, Scheme::Token { .. }));
        first.into_iter().chain(then).try_for_each(|scheme| scheme.sign(draft))
    }

    /// The secrets that sign events: some handshakes are answered with one. A token would be given away by that.
    pub(crate) fn signing_secrets(&self) -> Vec<Arc<SecretSlot>> {
        let signs = |scheme: &&Scheme| matches!(scheme, Scheme::Signature(..));
        self.schemes().filter(signs).flat_map(|scheme| scheme.secrets()).cloned().collect()
    }

    /// Headers whose whole value is a token.
    pub(crate) fn token_headers(&self) -> Vec<&HeaderName> {
        let header = |scheme| match scheme {
            &Scheme::Token { place: token::Place::Header(ref name), .. } => Some(name),
            _ => None,
        };
        self.schemes().filter_map(header).collect()
    }

    /// What an authentic message of Amazon SNS asks for besides being published.
    ///
    /// Only when the message's own signature proved it: what another scheme lets in is an event like any other.
    pub(crate) fn sns_request(&self, request: &Authenticated<Request>) -> Option<SnsRequest> {
        let Proof::Verified(credentials) = request.proof() else { return None };
        self.schemes().find_map(|scheme| match scheme {
            Scheme::Sns(sns) if credentials.iter().any(|credential| credential.scheme == scheme.name()) => {
                sns.request(&request.body)
            }
            _ => None,
        })
    }

    fn schemes(&self) -> impl Iterator<Item = &Scheme> {
        self.alternatives.iter().flatten()
    }
}

/// A request that is not proved.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) unverified: Unverified,
    /// The scheme that came furthest.
    pub(crate) scheme: &'static str,
    /// Why it did not hold.
    pub(crate) failure: AuthFailure,
}

/// All of `schemes` hold for `request`, or which does not.
fn prove(schemes: &[Scheme], request: &Request) -> Result<Proof, (&'static str, AuthFailure)> {
    let mut credentials = Vec::with_capacity(schemes.len());
    for scheme in schemes {
        let secret = scheme.verify(request).map_err(|failure| (scheme.name(), failure))?;
        if !matches!(scheme, Scheme::AcceptAnyone) {
            credentials.push(Credential { scheme: scheme.name(), secret });
        }
    }
    Ok(if credentials.is_empty() { Proof::Waived } else { Proof::Verified(credentials) })
}

/// Collects the problems of one scheme, whose keys are relative to it.
struct SchemeProblems<'a> {
    key: &'a str,
    problems: &'a mut Vec<Problem>,
}

impl SchemeProblems<'_> {
    fn push(&mut self, key: &str, message: impl Into<String>) {
        self.add(Problem::new(key, message));
    }

    fn add(&mut self, problem: Problem) {
        self.problems.push(problem.within(self.key));
    }

    fn len(&self) -> usize {
        self.problems.len()
    }

    /// `text` as what it should be, if it is there.
    fn parsed<T: FromStr<Err = String>>(&mut self, key: &str, text: Option<&str>) -> Option<T> {
        text?.parse().map_err(|message: String| self.push(key, message)).ok()
    }

    fn header(&mut self, key: &str, name: &str) -> Option<HeaderName> {
        name.parse().map_err(|_| self.push(key, format!("{name:?} is not a header name"))).ok()
    }
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
