//! A source: who sends, how that is proved, and how its requests become events.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    auth::{self, AuthFailure, Authenticated, Draft, Request, SnsRequest, Unverified, Verifier, VerifyConfig},
    config::{self, ByteLimit, OneOrMany, Problem},
    dedup::{DedupPolicy, OnOutage, SourceDedupConfig},
    event::{Event, EventKey, Fingerprint, RequestFacts, SourceId},
    handshake::{ChallengeConfig, HandshakeReply, Handshakes, Origins, WebhookRate},
    identity::{FieldRef, IdCandidate, Identity, Malformed, MissingId, TypeRule},
    intake::{Compression, Intake, NotInflated, Rate},
    limits::Admission,
    message::free_header,
    observe::Rejection,
    preset::{PRESETS, Preset},
    secret::{ResolveSecret, SecretRef, SecretSlot},
    trace::{Spans, Trace},
};

/// A `[sources.<name>]` table.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// The path that this source posts to, like `"/openclaw/webhook"`. Exact: there are no patterns and no redirects.
    pub path: String,
    /// Fills in what is known of a sender: `event_id`, `event_type`, `attributes`, `body`, `max_body`, `challenges`, `reply`,
    /// and the parameters of the schemes in `verify`. What is written beside it wins; `attributes` are merged name by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// The secrets of the preset's own scheme: short for a `verify` list with that scheme alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretRef>,
    /// How the sender is verified: any one entry suffices; a list inside the list means all of its schemes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verify: Vec<VerifyConfig>,
    /// Candidates for the event id, in order; the first whose places all hold a value is taken, and which one it was is
    /// part of the id. Default: `["body-sha256"]`, so that only an exact repeat is one. See [`SourceDedupConfig::missing_id`]
    /// for an event that has none of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<Vec<IdCandidate>>,
    /// Rules for the event type; the first that holds is taken. Default: every event is a `webhook`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_type: Option<Vec<TypeRule>>,
    /// How repeats are dealt with.
    #[serde(default)]
    pub dedup: SourceDedupConfig,
    /// Values for routes, templates and consumers: a name and the place (or places, in order) to read it from.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Places>,
    /// The attribute whose events belong together: they get one partition key, so that Kafka keeps them in order. Default: the
    /// preset's (`"job"` for `openclaw`), else none, and events are spread by their ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition_by: Option<String>,
    /// `"json"` refuses every other body with 400. Default: the preset's, else `"any"`, since a body that nobody can read is
    /// still worth more in the queue than lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<BodyKind>,
    /// Longest body accepted from this source. Default: the preset's, else `server.max_body`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_body: Option<ByteLimit>,
    /// Media types of the bodies that are taken, like `["application/json"]`; others get 415. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub content_types: Vec<String>,
    /// What becomes of a compressed body: `"pass"` publishes it as it came, `"refuse"` answers 415, and `"decompress"` takes gzip
    /// off after verification, up to `max_body`. Default: `"pass"`, since what is published is what was signed.
    #[serde(default, skip_serializing_if = "Compression::is_default")]
    pub compression: Compression,
    /// Most events, like `"100/s"`, `"600/m"` or `"1000/h"`, by each process, and as many at once; past that the sender gets 429 and
    /// is told when to come back. Only authenticated ones count. Default: no limit, since many senders, OpenClaw among them,
    /// never come back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<Rate>,
    /// Most events of this source in flight at once; past that it gets 503, and the others have what is left of
    /// `server.max_in_flight`. Default: that alone.
    #[serde(default, deserialize_with = "config::optional_count", skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<usize>,
    /// Request headers that travel on with the event. Credentials, and names that hookgate or a broker sets, cannot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forward_headers: Vec<String>,
    /// How long after its last byte a request of this source is answered at the latest. Default: `server.reply_deadline`.
    #[serde(default, with = "config::optional_duration", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<config::DurationText>")]
    pub reply_deadline: Option<Duration>,
    /// What an accepted event is answered with, for senders that read it. Default: the preset's, else 200 and a JSON document
    /// with the event's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<ReplyConfig>,
    /// Requests by which the sender makes sure of us, and the answers to them; they are never published. Default: the
    /// preset's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub challenges: Option<Vec<ChallengeConfig>>,
    /// Texts that the operator made up and gave to the provider, for challenges that ask for one (Meta's "verify token").
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub challenge_secrets: Vec<SecretRef>,
    /// Origins that get permission to send by a CloudEvents OPTIONS request, or `"*"`. Default: none, and the request is
    /// answered 405. Source: CloudEvents 1.0.2, HTTP 1.1 Web Hooks, section 4.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub webhook_origins: Vec<String>,
    /// The rate that they are told, in requests a minute, or `"*"`. Default: `"*"` to those that ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook_rate: Option<WebhookRate>,
}

impl SourceConfig {
    /// The same with everything that its preset knows and that is not written here. What is wrong with it is as wrong as before.
    #[must_use]
    pub fn filled(&self) -> Self {
        let mut filled = self.clone();
        let Some(preset) = self.preset.as_deref().and_then(Preset::find) else { return filled };
        if filled.verify.is_empty() && !filled.secrets.is_empty() {
            if let Some(verify) = preset.verify_with(&filled.secrets) {
                filled.verify = verify;
                filled.secrets.clear();
            }
        } else {
            preset.fill(&mut filled.verify);
        }
        filled.event_id = filled.event_id.or_else(|| Some(preset.event_id.clone()));
        filled.event_type = filled.event_type.or_else(|| Some(preset.event_type.clone()));
        for (name, places) in &preset.attributes {
            filled.attributes.entry(name.clone()).or_insert_with(|| places.clone());
        }
        filled.partition_by = filled.partition_by.or_else(|| preset.partition_by.clone());
        filled.body = filled.body.or(Some(preset.body));
        filled.max_body = filled.max_body.or(preset.max_body);
        filled.challenges = filled.challenges.or_else(|| Some(preset.challenges.clone()));
        filled.reply = filled.reply.or_else(|| preset.reply.clone());
        filled
    }
}

/// The answer to an accepted event.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ReplyConfig {
    /// 200 (default), 201, 202 or 204.
    #[serde(default = "ok")]
    pub status: u16,
    /// The body. Default: a JSON document with the event's id; with status 204 there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The body's content type. Default: `"text/plain"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

fn ok() -> u16 {
    200
}

/// The statuses that providers take for a success.
pub(crate) const SUCCESSES: [u16; 4] = [200, 201, 202, 204];

/// What a source's bodies are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BodyKind {
    /// Any bytes.
    #[default]
    Any,
    /// One JSON document.
    Json,
}

/// The places that an attribute is read from; written as one string or as a list.
pub type Places = OneOrMany<FieldRef>;

/// What a source shares with all others.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The server's own limit of a body.
    pub max_body: ByteLimit,
    /// What becomes of events while the shared dedup store does not answer, where a source does not say.
    pub on_outage: OnOutage,
    /// What schemes need to know of the server.
    pub auth: auth::Context,
    /// Whether events have spans of ours.
    pub spans: Spans,
}

impl From<ByteLimit> for Surroundings {
    fn from(max_body: ByteLimit) -> Self {
        Self { max_body, on_outage: OnOutage::default(), auth: auth::Context::default(), spans: Spans::None }
    }
}

/// A source ready to take requests.
#[derive(Debug)]
pub struct Source {
    id: SourceId,
    path: String,
    max_body: ByteLimit,
    intake: Intake,
    verifier: Verifier,
    identity: Identity,
    forward_headers: Vec<(HeaderName, Arc<str>)>,
    /// Those in which its schemes look for a token.
    token_headers: Vec<HeaderName>,
    attribute_names: Vec<String>,
    partition_by: Option<Arc<str>>,
    handshakes: Handshakes,
    /// The secrets that sign events, for handshakes that are answered with one.
    secrets: Vec<Arc<SecretSlot>>,
    reply: Option<ReplyConfig>,
    reply_deadline: Option<Duration>,
    dedup: DedupPolicy,
    spans: Spans,
}

/// The type of an event of a source that has no preset and no rule that holds.
const DEFAULT_EVENT_TYPE: &str = "webhook";

impl Source {
    /// Checks and prepares `config`.
    ///
    /// # Errors
    /// Every problem found; keys are relative to the source's table.
    pub fn compile(
        id: SourceId,
        config: &SourceConfig,
        surroundings: &Surroundings,
        resolve: &mut ResolveSecret<'_>,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        problems.extend(check_path(&config.path));
        let preset = config.preset.as_deref().and_then(|name| {
            let found = Preset::find(name);
            if found.is_none() {
                let known: Vec<_> = PRESETS.keys().map(String::as_str).collect();
                problems.push(Problem::new("preset", config::unknown("preset", name, &known)));
            }
            found
        });
        let verifier = compile_verifier(config, preset, surroundings, resolve, &mut problems);
        let config = &config.filled();
        let forward_headers = check_forwarded(&config.forward_headers, verifier.as_ref(), &mut problems);
        let attributes: Vec<(String, Vec<FieldRef>)> =
            config.attributes.iter().map(|(name, places)| (name.clone(), places.0.clone())).collect();
        problems.extend(attributes.iter().filter_map(|(name, places)| check_attribute(name, places)));
        let attribute_names: Vec<String> = attributes.iter().map(|(name, _)| name.clone()).collect();
        let partition_by = &config.partition_by;
        if let Some(name) = partition_by.as_ref().filter(|name| !attribute_names.contains(name)) {
            let known: Vec<&str> = attribute_names.iter().map(String::as_str).collect();
            problems.push(Problem::new("partition_by", config::unknown("attribute", name, &known)));
        }
        let event_id = config.event_id.clone().unwrap_or_else(|| vec![IdCandidate::BodySha256]);
        if event_id.is_empty() {
            problems.push(Problem::new(
                "event_id",
                "is empty; give a place to read it from, \"body-sha256\" or \"unique\"",
            ));
        }
        let stated = match event_id.iter().find(|candidate| !matches!(candidate, IdCandidate::Fields(_))) {
            Some(IdCandidate::Unique) => MissingId::Unique,
            _ => MissingId::BodySha256,
        };
        let event_id = config.dedup.missing_id.unwrap_or(stated).end(&event_id);
        if event_id.is_empty() {
            problems.push(Problem::new(
                "dedup.missing_id",
                "refuses every event: event_id names no place to read one from",
            ));
        }
        let types = config.event_type.clone().unwrap_or_default();
        for rule in &types {
            if matches!(rule, TypeRule::When(named) if named.name.is_empty()) {
                problems.push(Problem::new("event_type", format!("a rule has no name: {rule:?}")));
            }
        }
        let body = config.body.unwrap_or_default();
        let identity = Identity::compile(&event_id, &types, DEFAULT_EVENT_TYPE, &attributes, body == BodyKind::Json);
        let identity = identity.map_err(|message| problems.push(Problem::new("attributes", message)));
        let origins = Origins { allowed: config.webhook_origins.clone(), rate: config.webhook_rate.clone() };
        let handshakes = Handshakes::compile(
            config.challenges.as_deref().unwrap_or_default(),
            &config.challenge_secrets,
            origins,
            body == BodyKind::Json,
            resolve,
            &mut problems,
        );
        let max_body = config.max_body.unwrap_or(surroundings.max_body);
        let intake = Intake::compile(config, max_body, &mut problems);
        problems.extend(config.reply.as_ref().and_then(check_reply));
        match (verifier, identity) {
            (Some(verifier), Ok(identity)) if problems.is_empty() => Ok(Self {
                id,
                path: config.path.clone(),
                max_body,
                intake,
                secrets: verifier.signing_secrets(),
                token_headers: verifier.token_headers().into_iter().cloned().collect(),
                verifier,
                identity,
                forward_headers,
                attribute_names,
                partition_by: partition_by.as_deref().map(Arc::from),
                handshakes,
                reply: config.reply.clone(),
                reply_deadline: config.reply_deadline,
                dedup: DedupPolicy {
                    on_outage: config.dedup.on_outage.unwrap_or(surroundings.on_outage),
                    on_mismatch: config.dedup.on_mismatch,
                },
                spans: surroundings.spans,
            }),
            _ => Err(problems),
        }
    }

    /// Its name and place in the config.
    pub fn id(&self) -> &SourceId {
        &self.id
    }

    /// The path that it posts to.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Longest body accepted from it.
    pub fn max_body(&self) -> ByteLimit {
        self.max_body
    }

    /// Whether a body with these headers is taken.
    ///
    /// # Errors
    /// Why not.
    pub fn takes(&self, headers: &HeaderMap) -> Result<(), Rejection> {
        self.intake.takes(headers)
    }

    /// The places in flight that it shares with nobody, if they are bounded.
    pub fn share(&self) -> Option<&Arc<Admission>> {
        self.intake.share()
    }

    /// Counts one event against its rate.
    ///
    /// # Errors
    /// How long to wait when there is none left.
    pub(crate) fn charge(&self) -> Result<(), Duration> {
        self.intake.charge()
    }

    /// Takes off the compression, where the config says so.
    ///
    /// # Errors
    /// When it is no gzip, or too much.
    pub fn inflate(&self, request: Authenticated<Request>) -> Result<Authenticated<Request>, NotInflated> {
        self.intake.inflate(request)
    }

    /// The attributes that its events can have.
    pub fn attribute_names(&self) -> &[String] {
        &self.attribute_names
    }

    /// The answer to an accepted event, where it is not the usual one.
    pub fn reply(&self) -> Option<&ReplyConfig> {
        self.reply.as_ref()
    }

    /// How long after its last byte a request is answered at the latest, where that is not the server's own limit.
    pub fn reply_deadline(&self) -> Option<Duration> {
        self.reply_deadline
    }

    /// What it wants of deduplication.
    pub fn dedup(&self) -> DedupPolicy {
        self.dedup
    }

    /// What is allowed and unwise, each as a sentence for the operator.
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let mut warnings = self.verifier.warnings(now);
        warnings.extend(self.handshakes.warnings());
        warnings
    }

    /// What verifies its requests.
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// The methods besides POST that it answers, for handshakes.
    pub fn handshake_methods(&self) -> Vec<Method> {
        self.handshakes.methods()
    }

    /// The answer to a handshake that no scheme covers, if `request` is one. Nothing in it is known to be true: the answer
    /// gives away what the provider demands that anybody may ask, and changes nothing.
    pub fn answer_unverified(&self, request: &Unverified) -> Option<HandshakeReply> {
        self.handshakes.unverified(request.peek(), &self.secrets)
    }

    /// The answer to a handshake, if `request` is one.
    pub fn answer(&self, request: &Authenticated<Request>) -> Option<HandshakeReply> {
        self.handshakes.verified(request, request.proof(), &self.secrets)
    }

    /// What an authentic message of Amazon SNS asks for besides being published.
    pub(crate) fn sns_request(&self, request: &Authenticated<Request>) -> Option<SnsRequest> {
        self.verifier.sns_request(request)
    }

    /// Signs `draft` as the sender would; see [`Verifier::sign`].
    ///
    /// # Errors
    /// What is missing to sign it.
    pub fn sign(&self, draft: &mut Draft) -> Result<(), String> {
        self.verifier.sign(draft)
    }

    /// Proves who sent the request.
    ///
    /// # Errors
    /// Why nothing proved it; for the operator only.
    pub fn verify(&self, unverified: Unverified) -> Result<Authenticated<Request>, AuthFailure> {
        self.verifier.verify(unverified)
    }

    /// The trace that a request of it belongs to. Where events have spans of ours, each call begins one.
    pub fn trace(&self, request: &Authenticated<Request>) -> Trace {
        Trace::of_request(&request.headers, request.proof(), self.spans)
    }

    /// Makes the event that an authenticated request is.
    ///
    /// # Errors
    /// Why it is none; may be told to the sender, who is known by now.
    pub fn identify(&self, request: Authenticated<Request>) -> Result<Authenticated<Event>, Malformed> {
        let trace = self.trace(&request);
        self.identify_in(trace, request)
    }

    /// The same, for a request whose trace is known already.
    pub(crate) fn identify_in(
        &self,
        trace: Trace,
        request: Authenticated<Request>,
    ) -> Result<Authenticated<Event>, Malformed> {
        request.try_map(|request| {
            let found = self.identity.identify(&request.headers, &request.body)?;
            Ok(Event {
                key: EventKey::new(&self.id, &found.id),
                source: self.id.clone(),
                id: found.id,
                id_candidate: found.id_candidate,
                repeatable: found.repeatable,
                fingerprint: Fingerprint::of(&request.body),
                event_type: found.event_type,
                attributes: found.attributes,
                partition_by: self.partition_by.clone(),
                received_at: request.received_at,
                content_type: text(&request.headers, &header::CONTENT_TYPE),
                content_encoding: text(&request.headers, &header::CONTENT_ENCODING),
                forwarded_headers: self.forwarded(&request.headers),
                trace: Some(trace),
                request: RequestFacts::new(request.method, request.path, self.without_tokens(request.headers)),
                body: request.body,
                admitted: request.admitted,
            })
        })
    }

    /// Rules see no credentials.
    fn without_tokens(&self, mut headers: HeaderMap) -> HeaderMap {
        for name in &self.token_headers {
            headers.remove(name);
        }
        headers
    }

    fn forwarded(&self, headers: &HeaderMap) -> Vec<(Arc<str>, String)> {
        let forward = |(header, name): &(HeaderName, Arc<str>)| Some((Arc::clone(name), text(headers, header)?));
        self.forward_headers.iter().filter_map(forward).collect()
    }
}

/// A header's value as text; bytes that are not UTF-8 are replaced, since metadata is text in every broker.
fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn check_path(path: &str) -> Option<Problem> {
    let plain =
        path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && !b"{}*?#%\\\"".contains(&byte));
    (!plain).then(|| {
        let advice = "begin with \"/\" and hold no blanks, patterns, query or escapes, like \"/openclaw/webhook\"";
        Problem::new("path", format!("{path:?} must {advice}"))
    })
}

/// Headers that must not travel: credentials, and what hookgate and the brokers set themselves.
fn check_forwarded(
    names: &[String],
    verifier: Option<&Verifier>,
    problems: &mut Vec<Problem>,
) -> Vec<(HeaderName, Arc<str>)> {
    const CREDENTIALS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "set-cookie"];
    let tokens = verifier.map(Verifier::token_headers).unwrap_or_default();
    let mut headers = Vec::new();
    for (place, name) in names.iter().enumerate() {
        let mut refuse = |message: &str| {
            problems.push(Problem::new(format!("forward_headers[{place}]"), format!("{name:?} {message}")))
        };
        match free_header(name) {
            Err(why) => refuse(why),
            Ok(header) if CREDENTIALS.contains(&header.as_str()) || tokens.contains(&&header) => {
                refuse("holds credentials, which never travel on");
            }
            Ok(header) => {
                let text = header.as_str().into();
                headers.push((header, text));
            }
        }
    }
    headers
}

/// The schemes that are written out, filled up by the preset, or those of the preset with the source's secrets.
fn compile_verifier(
    config: &SourceConfig,
    preset: Option<&Preset>,
    surroundings: &Surroundings,
    resolve: &mut ResolveSecret<'_>,
    problems: &mut Vec<Problem>,
) -> Option<Verifier> {
    let mut verify = config.verify.clone();
    match (config.secrets.is_empty(), verify.is_empty(), preset) {
        (true, true, Some(preset)) => {
            let message = match preset.verify_with(&[]) {
                Some(_) => {
                    "is missing: give the secrets that the provider signs with, secrets = [{ env = \"…\" }], or a verify list"
                }
                None => "is missing: this preset needs more than secrets; docs/sources has the verify list for it",
            };
            problems.push(Problem::new("secrets", message));
            return None;
        }
        (true, _, Some(preset)) => preset.fill(&mut verify),
        (true, _, None) => {}
        (false, false, _) => {
            problems.push(Problem::new("secrets", "and verify are two ways to say the same; give one of them"));
            return None;
        }
        (false, true, Some(preset)) => match preset.verify_with(&config.secrets) {
            Some(with_secrets) => verify = with_secrets,
            None => {
                problems.push(Problem::new("secrets", "are not what this preset verifies by; write a verify list"));
                return None;
            }
        },
        // That there is no such preset is told already.
        (false, true, None) if config.preset.is_some() => return None,
        (false, true, None) => {
            problems.push(Problem::new("secrets", "needs a preset that knows the scheme; else write a verify list"));
            return None;
        }
    }
    // Problems in the preset's own schemes are problems of the secrets that were put into them.
    let within = |problem: Problem| match config.secrets.is_empty() {
        true => problem.within("verify"),
        false => match problem.key.split_once(".secrets") {
            Some((_, place)) => Problem::new(format!("secrets{place}"), problem.message),
            None => problem.within("verify"),
        },
    };
    Verifier::compile(&verify, &surroundings.auth, resolve)
        .map_err(|found| problems.extend(found.into_iter().map(within)))
        .ok()
}

fn check_reply(reply: &ReplyConfig) -> Option<Problem> {
    if !SUCCESSES.contains(&reply.status) {
        let message =
            format!("{} does not tell the sender that its event is safe; use 200, 201, 202 or 204", reply.status);
        return Some(Problem::new("reply.status", message));
    }
    if reply.status == 204 && reply.body.as_ref().is_some_and(|body| !body.is_empty()) {
        return Some(Problem::new("reply.body", "cannot be sent with status 204"));
    }
    match reply.content_type.as_deref().map(HeaderValue::from_str) {
        Some(Err(_)) => Some(Problem::new("reply.content_type", "cannot stand in a header")),
        _ => None,
    }
}

fn check_attribute(name: &str, places: &[FieldRef]) -> Option<Problem> {
    let valid = !name.is_empty() && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    let key = format!("attributes.{name}");
    match (valid, places.is_empty()) {
        (false, _) => {
            Some(Problem::new(key, "an attribute's name has only a-z, 0-9 and _, so that every broker can carry it"))
        }
        (true, true) => Some(Problem::new(key, "is empty; give a place like \"/job/name\"")),
        (true, false) => None,
    }
}
