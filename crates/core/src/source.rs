//! A source: who sends, how that is proved, and how its requests become events.

use std::{collections::BTreeMap, fmt, sync::Arc};

use http::{HeaderMap, HeaderName, header};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    auth::{AuthFailure, Authenticated, Request, Unverified, Verifier, VerifyConfig},
    config::{ByteLimit, Problem},
    event::{Event, EventKey, SourceId},
    identity::{FieldRef, IdCandidate, Identity, Malformed, TypeRule},
    preset::{PRESETS, Preset},
    secret::ResolveSecret,
    trace::Trace,
};

/// A `[sources.<name>]` table.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// The path that this source posts to, like `"/openclaw/webhook"`. Exact: there are no patterns and no redirects.
    pub path: String,
    /// Fills `event_id`, `event_type`, `attributes` and `max_body` for a sender that is known. What is written beside it
    /// wins; `attributes` are merged name by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// How the sender is verified: any one entry suffices; a list inside the list means all of its schemes.
    pub verify: Vec<VerifyConfig>,
    /// Candidates for the event id, in order; the first whose places all hold a value is taken, and which one it was is
    /// part of the id. Default: `["body-sha256"]`, so that only an exact repeat is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<Vec<IdCandidate>>,
    /// Rules for the event type; the first that holds is taken. Default: every event is a `webhook`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_type: Option<Vec<TypeRule>>,
    /// Values for routes, templates and consumers: a name and the place (or places, in order) to read it from.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Places>,
    /// `"json"` refuses every other body with 400. Default: `"any"`, since a body that nobody can read is still worth
    /// more in the queue than lost.
    #[serde(default)]
    pub body: BodyKind,
    /// Longest body accepted from this source. Default: the preset's, else `server.max_body`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_body: Option<ByteLimit>,
    /// Request headers that travel on with the event. Credentials, and names that hookgate or a broker sets, cannot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forward_headers: Vec<String>,
}

/// What a source's bodies are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BodyKind {
    /// Any bytes.
    #[default]
    Any,
    /// One JSON document.
    Json,
}

/// The places that an attribute is read from; written as one string or as a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Places(pub Vec<FieldRef>);

impl<'de> Deserialize<'de> for Places {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> de::Visitor<'de> for OneOrMany {
            type Value = Places;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a place like \"/job/name\" or \"header:x-event\", or a list of places")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Places, E> {
                FieldRef::parse(text).map(|field| Places(vec![field])).map_err(E::custom)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Places, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(Places)
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

/// A source ready to take requests.
#[derive(Debug)]
pub struct Source {
    id: SourceId,
    path: String,
    max_body: ByteLimit,
    verifier: Verifier,
    identity: Identity,
    forward_headers: Vec<(HeaderName, Arc<str>)>,
    attribute_names: Vec<String>,
}

/// The type of an event of a source that has no preset and no rule that holds.
const DEFAULT_EVENT_TYPE: &str = "webhook";

impl Source {
    /// Checks and prepares `config`. `max_body` is the server's own limit.
    ///
    /// # Errors
    /// Every problem found; keys are relative to the source's table.
    pub fn compile(
        id: SourceId,
        config: &SourceConfig,
        max_body: ByteLimit,
        resolve: &mut ResolveSecret<'_>,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        problems.extend(check_path(&config.path));
        let preset = config.preset.as_deref().and_then(|name| {
            let found = Preset::find(name);
            if found.is_none() {
                let known: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
                let message = format!("there is no preset {name:?}; known: {}", known.join(", "));
                problems.push(Problem::new("preset", message));
            }
            found
        });
        let verifier = Verifier::compile(&config.verify, resolve);
        let verifier = verifier.map_err(|found| problems.extend(found.into_iter().map(|p| p.within("verify"))));
        let forward_headers = check_forwarded(&config.forward_headers, &mut problems);
        let attributes = merged_attributes(preset, &config.attributes);
        problems.extend(attributes.iter().filter_map(|(name, places)| check_attribute(name, places)));
        let attribute_names = attributes.iter().map(|(name, _)| name.clone()).collect();
        let event_id = match (&config.event_id, preset) {
            (Some(candidates), _) => candidates.clone(),
            (None, Some(preset)) => preset.event_id(),
            (None, None) => vec![IdCandidate::BodySha256],
        };
        if event_id.is_empty() {
            problems.push(Problem::new("event_id", "is empty; give a place to read it from, or \"body-sha256\""));
        }
        let types = config.event_type.clone().or_else(|| preset.map(Preset::event_types)).unwrap_or_default();
        for rule in types.iter().filter(|rule| rule.name.is_empty()) {
            problems.push(Problem::new("event_type", format!("a rule has no name: {rule:?}")));
        }
        let default_type = preset.map_or(DEFAULT_EVENT_TYPE, |preset| preset.default_type);
        let identity = Identity::compile(&event_id, &types, default_type, &attributes, config.body == BodyKind::Json);
        let identity = identity.map_err(|message| problems.push(Problem::new("attributes", message)));
        match (verifier, identity) {
            (Ok(verifier), Ok(identity)) if problems.is_empty() => Ok(Self {
                id,
                path: config.path.clone(),
                max_body: config.max_body.or(preset.map(|preset| preset.max_body)).unwrap_or(max_body),
                verifier,
                identity,
                forward_headers,
                attribute_names,
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

    /// The attributes that its events can have.
    pub fn attribute_names(&self) -> &[String] {
        &self.attribute_names
    }

    /// Proves who sent the request.
    ///
    /// # Errors
    /// Why nothing proved it; for the operator only.
    pub fn verify(&self, unverified: Unverified) -> Result<Authenticated<Request>, AuthFailure> {
        self.verifier.verify(unverified)
    }

    /// Makes the event that an authenticated request is.
    ///
    /// # Errors
    /// Why it is none; may be told to the sender, who is known by now.
    pub fn identify(&self, request: Authenticated<Request>) -> Result<Authenticated<Event>, Malformed> {
        request.try_map(|request| {
            let found = self.identity.identify(&request.headers, &request.body)?;
            Ok(Event {
                key: EventKey::new(&self.id, &found.id),
                source: self.id.clone(),
                id: found.id,
                event_type: found.event_type,
                attributes: found.attributes,
                received_at: request.received_at,
                content_type: text(&request.headers, &header::CONTENT_TYPE),
                content_encoding: text(&request.headers, &header::CONTENT_ENCODING),
                forwarded_headers: self.forwarded(&request.headers),
                trace: Trace::from_headers(&request.headers),
                body: request.body,
                admitted: request.admitted,
            })
        })
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
fn check_forwarded(names: &[String], problems: &mut Vec<Problem>) -> Vec<(HeaderName, Arc<str>)> {
    const CREDENTIALS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "set-cookie"];
    const TAKEN: [&str; 4] = ["content-type", "content-encoding", "traceparent", "tracestate"];
    const TAKEN_PREFIXES: [&str; 3] = ["nats-", "ce-", "hookgate-"];
    let mut headers = Vec::new();
    for (place, name) in names.iter().enumerate() {
        let mut refuse = |message: &str| {
            problems.push(Problem::new(format!("forward_headers[{place}]"), format!("{name:?} {message}")))
        };
        match name.parse::<HeaderName>() {
            Err(_) => refuse("is not a header name"),
            Ok(header) if CREDENTIALS.contains(&header.as_str()) => refuse("holds credentials, which never travel on"),
            Ok(header) if TAKEN.contains(&header.as_str()) => refuse("travels on anyway"),
            Ok(header) if TAKEN_PREFIXES.iter().any(|prefix| header.as_str().starts_with(prefix)) => {
                refuse("belongs to hookgate or the broker, which set it themselves");
            }
            Ok(header) => {
                let text = header.as_str().into();
                headers.push((header, text));
            }
        }
    }
    headers
}

fn merged_attributes(preset: Option<&Preset>, written: &BTreeMap<String, Places>) -> Vec<(String, Vec<FieldRef>)> {
    let mut merged = preset.map(Preset::attributes).unwrap_or_default();
    for (name, places) in written {
        merged.retain(|(known, _)| known != name);
        merged.push((name.clone(), places.0.clone()));
    }
    merged
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
