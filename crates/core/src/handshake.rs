//! Requests by which a provider makes sure of its receiver: answered here, and never published.
//!
//! Most are one rule: what the request must have, and what to answer. Two have code of their own: the OPTIONS request of
//! CloudEvents, and the confirmation of a subscription by Amazon SNS, which asks for a request of ours.

mod template;

use std::{collections::BTreeMap, fmt, sync::Arc, time::SystemTime};

use http::{HeaderMap, HeaderName, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use self::template::Template;
use crate::{
    auth::{Proof, Request, find_token, query_parameter},
    config::{self, Problem},
    identity::{FieldRef, media_type_is},
    json::{Value, WatchedPaths},
    secret::{ResolveSecret, SecretRef, SecretSlot},
    source::SUCCESSES,
};

/// Longest body that can be a challenge, in bytes. Events longer than this are not read for one.
const CHALLENGE_BYTES_MAX: usize = 16 * 1024;

/// Longest value that is echoed, in bytes.
const VALUE_BYTES_MAX: usize = 4096;

/// A rule for one kind of challenge.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ChallengeConfig {
    /// `"POST"` (default), `"GET"`, `"HEAD"` or `"OPTIONS"`.
    #[serde(default)]
    pub method: ChallengeMethod,
    /// What the request must have; all of these. Default: nothing, so that every request by this method is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<ChallengeCondition>,
    /// A place whose text must be one of the source's `challenge_secrets`; anything else is answered 403.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<ChallengeField>,
    /// Whether `verify` must hold for it too. Default: `true`; with `false` anybody gets the answer, which some providers
    /// demand, since they do not sign this request.
    #[serde(default = "yes", deserialize_with = "config::flag")]
    pub verified: bool,
    /// The status of the answer: 200 (default), 201, 202 or 204.
    #[serde(default = "ok")]
    pub status: u16,
    /// The answer as plain text, in which `{/pointer}`, `{query:NAME}` and `{header:NAME}` are echoed, and
    /// `{hmac-sha256-hex:…}` or `{hmac-sha256-base64:…}` is the HMAC of such a value with the source's secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The answer as a JSON object, whose texts are written like `text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json: Option<BTreeMap<String, serde_json::Value>>,
}

fn yes() -> bool {
    true
}

fn ok() -> u16 {
    200
}

/// The method of a challenge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "RFC 9110 says it")]
pub enum ChallengeMethod {
    Get,
    Head,
    Options,
    #[default]
    Post,
}

impl ChallengeMethod {
    fn is(self, method: &Method) -> bool {
        *method
            == match self {
                Self::Get => Method::GET,
                Self::Head => Method::HEAD,
                Self::Options => Method::OPTIONS,
                Self::Post => Method::POST,
            }
    }
}

/// One thing that a challenge has.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ChallengeCondition {
    /// The place.
    pub field: ChallengeField,
    /// The text that must stand there. Default: any that is not empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Whether there must be nothing at the place instead. Default: `false`.
    #[serde(default, deserialize_with = "config::flag", skip_serializing_if = "std::ops::Not::not")]
    pub absent: bool,
}

/// A place in a challenge: one in body or headers as an event has, or `query:NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChallengeField {
    /// A parameter of the URL's query.
    Query(String),
    /// A header, or a place in the body.
    Event(FieldRef),
}

impl ChallengeField {
    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("query:") {
            Some(name) if !name.is_empty() => Ok(Self::Query(name.to_owned())),
            _ => FieldRef::parse(text)
                .map(Self::Event)
                .map_err(|error| format!("{error}, and a part of the query \"query:name\"")),
        }
    }
}

impl fmt::Display for ChallengeField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Event(field) => field.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for ChallengeField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

config::schema!(ChallengeField, "ChallengePlace", {
    "type": "string",
    "description": "A place in a request: a part of the query, like \"query:challenge\", a header, like \"header:x-hook-secret\", or a JSON \
        pointer into the body, like \"/challenge\".",
});

impl Serialize for ChallengeField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How often a CloudEvents sender may post, as told to it: a number a minute, or `"*"` for as often as it likes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookRate(String);

impl<'de> Deserialize<'de> for WebhookRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = config::text("a number of requests a minute, or \"*\"", deserializer)?;
        match text == "*" || text.parse::<u32>().is_ok_and(|rate| rate > 0) {
            true => Ok(Self(text)),
            false => Err(de::Error::custom(format!("{text:?} is neither a number of requests a minute nor \"*\""))),
        }
    }
}

config::schema!(WebhookRate, "WebhookRate", {
    "type": ["string", "integer"],
    "description": "A number of requests a minute, or \"*\" for as many as the sender likes.",
});

impl Serialize for WebhookRate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Who may ask by a CloudEvents OPTIONS request, and what is answered.
#[derive(Debug)]
pub(crate) struct Origins {
    pub(crate) allowed: Vec<String>,
    pub(crate) rate: Option<WebhookRate>,
}

/// The handshakes of one source.
#[derive(Debug)]
pub(crate) struct Handshakes {
    rules: Vec<Rule>,
    tokens: Vec<Arc<SecretSlot>>,
    origins: Origins,
}

#[derive(Debug)]
struct Rule {
    method: ChallengeMethod,
    conditions: Vec<(Place, ChallengeCondition)>,
    token: Option<Place>,
    verified: bool,
    status: u16,
    answer: Answer,
    paths: WatchedPaths,
}

#[derive(Debug)]
enum Answer {
    Empty,
    Text(Template),
    Json(Vec<(String, JsonAnswer)>),
}

#[derive(Debug)]
enum JsonAnswer {
    Text(Template),
    Plain(serde_json::Value),
}

/// A place with its slot among the values that were read.
#[derive(Debug)]
enum Place {
    Query(String),
    Header(HeaderName),
    Body(usize),
}

impl Place {
    fn is_content_type(&self) -> bool {
        matches!(self, Self::Header(name) if *name == http::header::CONTENT_TYPE)
    }
}

/// The answer to a handshake. Its status is what the provider wants to see, a 2xx for the right request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandshakeReply {
    status: u16,
    headers: Vec<(HeaderName, String)>,
    body: String,
}

impl HandshakeReply {
    /// Status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Headers with their values.
    pub fn headers(&self) -> &[(HeaderName, String)] {
        &self.headers
    }

    /// Body.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// Nothing but a status.
    pub(crate) fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: String::new() }
    }

    fn with_body(status: u16, content_type: &str, body: String) -> Self {
        // An echo must not become a page in somebody's browser.
        let headers = vec![
            (http::header::CONTENT_TYPE, content_type.to_owned()),
            (http::header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        ];
        Self { status, headers, body }
    }
}

impl Handshakes {
    /// Checks and prepares the rules of a source.
    pub(crate) fn compile(
        rules: &[ChallengeConfig],
        tokens: &[SecretRef],
        origins: Origins,
        body_is_json: bool,
        resolve: &mut ResolveSecret<'_>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut compiled = Vec::new();
        for (place, rule) in rules.iter().enumerate() {
            match Rule::compile(rule, body_is_json) {
                Ok(rule) => compiled.push(rule),
                Err((key, message)) => problems.push(Problem::new(format!("challenges[{place}].{key}"), message)),
            }
        }
        let mut slots = Vec::new();
        for (place, secret) in tokens.iter().enumerate() {
            match resolve(secret) {
                Ok(slot) => slots.push(slot),
                Err(message) => problems.push(Problem::new(format!("challenge_secrets[{place}]"), message)),
            }
        }
        if origins.rate.is_some() && origins.allowed.is_empty() {
            problems.push(Problem::new("webhook_rate", "needs webhook_origins: nobody may ask for it"));
        }
        Self { rules: compiled, tokens: slots, origins }
    }

    /// What is allowed and unwise.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let asks = self.rules.iter().any(|rule| rule.token.is_some()) && self.tokens.is_empty();
        let warning =
            "challenge_secrets is empty: the challenge by which the provider accepts this URL is answered 403";
        asks.then(|| warning.to_owned()).into_iter().collect()
    }

    /// The methods besides POST that are answered.
    pub(crate) fn methods(&self) -> Vec<Method> {
        let mut methods = Vec::new();
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            let origins = method == Method::OPTIONS && !self.origins.allowed.is_empty();
            if origins || self.rules.iter().any(|rule| rule.method.is(&method)) {
                methods.push(method);
            }
        }
        methods
    }

    /// The answer to a handshake that needs no proof, if `request` is one. `secrets` are the source's.
    pub(crate) fn unverified(&self, request: &Request, secrets: &[Arc<SecretSlot>]) -> Option<HandshakeReply> {
        if request.method == Method::OPTIONS && !self.origins.allowed.is_empty() {
            return Some(self.origins.answer(&request.headers));
        }
        let secret = secrets.iter().find(|slot| slot.is_live(request.received_at));
        self.answer(request, false, secret)
    }

    /// The answer to a handshake from a sender who has proved himself by `proof`, if `request` is one.
    pub(crate) fn verified(
        &self,
        request: &Request,
        proof: &Proof,
        secrets: &[Arc<SecretSlot>],
    ) -> Option<HandshakeReply> {
        let matched = |slot: &&Arc<SecretSlot>| match proof {
            // The same name, not an equal one: secrets may be called alike.
            Proof::Verified(credentials) => credentials.iter().any(|found| Arc::ptr_eq(&found.secret, slot.name())),
            Proof::Waived | Proof::Spooled => false,
        };
        self.answer(request, true, secrets.iter().find(matched))
    }

    fn answer(&self, request: &Request, verified: bool, secret: Option<&Arc<SecretSlot>>) -> Option<HandshakeReply> {
        let mut rules = self.rules.iter().filter(|rule| rule.verified == verified && rule.method.is(&request.method));
        rules.find_map(|rule| rule.answer(request, &self.tokens, secret))
    }
}

impl Origins {
    /// Permission is in the headers: without them a sender has none, whatever the status.
    ///
    /// Source: CloudEvents 1.0.2, HTTP 1.1 Web Hooks, section 4.
    fn answer(&self, headers: &HeaderMap) -> HandshakeReply {
        const ORIGIN: HeaderName = HeaderName::from_static("webhook-request-origin");
        let origin = headers.get(ORIGIN).and_then(|value| value.to_str().ok());
        let mut reply = HandshakeReply::empty(200);
        reply.headers.push((http::header::ALLOW, "POST".to_owned()));
        if let Some(origin) =
            origin.filter(|origin| self.allowed.iter().any(|allowed| allowed == "*" || allowed == origin))
        {
            let allowed = HeaderName::from_static("webhook-allowed-origin");
            reply.headers.push((allowed, origin.to_owned()));
            let rate = self.rate.as_ref().map(|rate| rate.0.as_str());
            let asked = headers.contains_key("webhook-request-rate");
            // A sender that asks for a rate must be told one.
            if let Some(rate) = rate.or(asked.then_some("*")) {
                reply.headers.push((HeaderName::from_static("webhook-allowed-rate"), rate.to_owned()));
            }
        }
        reply
    }
}

impl Rule {
    fn compile(config: &ChallengeConfig, body_is_json: bool) -> Result<Self, (String, String)> {
        let mut paths = WatchedPaths::default();
        let mut place = |field: &ChallengeField| match field {
            ChallengeField::Query(name) => Ok(Place::Query(name.clone())),
            ChallengeField::Event(FieldRef::Header(name)) => Ok(Place::Header(name.clone())),
            ChallengeField::Event(FieldRef::Body(pointer)) => paths.watch(pointer).map(Place::Body),
        };
        let at = |key: &'static str| move |message: String| (key.to_owned(), message);
        let mut conditions = Vec::new();
        for condition in &config.when {
            conditions.push((place(&condition.field).map_err(at("when"))?, condition.clone()));
        }
        let token = config.token.as_ref().map(&mut place).transpose().map_err(at("token"))?;
        let mut template = |text: &str| Template::parse(text, &mut place);
        let answer = match (&config.text, &config.json) {
            (Some(_), Some(_)) => return Err(("text".to_owned(), "and json cannot both be the answer".to_owned())),
            (Some(text), None) => Answer::Text(template(text).map_err(at("text"))?),
            (None, Some(fields)) => {
                let mut answers = Vec::new();
                for (name, value) in fields {
                    answers.push((
                        name.clone(),
                        match value {
                            serde_json::Value::String(text) => JsonAnswer::Text(template(text).map_err(at("json"))?),
                            other => JsonAnswer::Plain(other.clone()),
                        },
                    ));
                }
                Answer::Json(answers)
            }
            (None, None) => Answer::Empty,
        };
        let signs = match &answer {
            Answer::Empty => false,
            Answer::Text(template) => template.signs(),
            Answer::Json(answers) => {
                answers.iter().any(|(_, answer)| matches!(answer, JsonAnswer::Text(template) if template.signs()))
            }
        };
        if signs && !config.verified && !body_is_json {
            let message = "signs what anybody asks for with the secret of the events; set the source's body = \"json\", so that no \
                           such text can pass for one";
            return Err(("verified".to_owned(), message.to_owned()));
        }
        if !SUCCESSES.contains(&config.status) {
            let message = format!("{} is no success; use 200, 201, 202 or 204", config.status);
            return Err(("status".to_owned(), message));
        }
        if config.method == ChallengeMethod::Post && config.when.is_empty() {
            return Err(("when".to_owned(), "is empty: every event would be taken for a challenge".to_owned()));
        }
        let (method, verified, status) = (config.method, config.verified, config.status);
        Ok(Self { method, conditions, token, verified, status, answer, paths })
    }

    fn answer(
        &self,
        request: &Request,
        tokens: &[Arc<SecretSlot>],
        secret: Option<&Arc<SecretSlot>>,
    ) -> Option<HandshakeReply> {
        let body = if self.paths.is_empty() {
            Vec::new()
        } else if request.body.len() > CHALLENGE_BYTES_MAX {
            return None;
        } else {
            self.paths.read(&request.body).ok()?
        };
        let fields = Fields { request, body };
        let holds = |(place, condition): &(Place, ChallengeCondition)| match (fields.text(place), &condition.value) {
            (found, _) if condition.absent => found.is_none() && !fields.is_present(place),
            (Some(_), Some(value)) if place.is_content_type() => media_type_is(&request.headers, value),
            (Some(found), Some(value)) => found == *value,
            (found, None) => found.is_some(),
            (None, Some(_)) => false,
        };
        if !self.conditions.iter().all(holds) {
            return None;
        }
        if let Some(place) = &self.token {
            let token = fields.text(place);
            let known = |token: &str, now: SystemTime| find_token(token.as_bytes(), tokens, now).is_ok();
            if !token.is_some_and(|token| known(&token, request.received_at)) {
                return Some(HandshakeReply::empty(403));
            }
        }
        match &self.answer {
            Answer::Empty => Some(HandshakeReply::empty(self.status)),
            Answer::Text(template) => {
                Some(HandshakeReply::with_body(self.status, "text/plain", template.render(&fields, secret)?))
            }
            Answer::Json(answers) => {
                let mut object = serde_json::Map::new();
                for (name, answer) in answers {
                    let value = match answer {
                        JsonAnswer::Plain(value) => value.clone(),
                        JsonAnswer::Text(template) => template.render(&fields, secret)?.into(),
                    };
                    object.insert(name.clone(), value);
                }
                let body = serde_json::Value::Object(object).to_string();
                Some(HandshakeReply::with_body(self.status, "application/json", body))
            }
        }
    }
}

/// The values of one request.
struct Fields<'a> {
    request: &'a Request,
    body: Vec<Option<Value<'a>>>,
}

impl Fields<'_> {
    /// The text at `place`, if there is one that says something and is not too long to be echoed.
    fn text(&self, place: &Place) -> Option<String> {
        let text = match place {
            Place::Query(name) => query_parameter(self.request.query.as_deref(), name).ok()?.into_owned(),
            Place::Header(name) => {
                let mut values = self.request.headers.get_all(name).iter();
                let value = values.next().filter(|_| values.next().is_none())?;
                value.to_str().ok()?.to_owned()
            }
            Place::Body(slot) => self.body[*slot].as_ref()?.as_text()?.to_owned(),
        };
        (!text.is_empty() && text.len() <= VALUE_BYTES_MAX).then_some(text)
    }

    /// Whether there is anything at `place`, a text or not.
    fn is_present(&self, place: &Place) -> bool {
        match place {
            Place::Body(slot) => self.body[*slot].is_some(),
            Place::Header(name) => self.request.headers.contains_key(name),
            Place::Query(_) => self.text(place).is_some(),
        }
    }
}
