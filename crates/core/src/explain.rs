//! Judges captured requests as the relay would, and says why: what `hookgate explain` prints. Nothing is published.
//!
//! A record is one JSON object: a request with the clock to judge it by and, where no config is at hand, the preset, secrets
//! and parameters to judge it with.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    auth::{AuthFailure, Peer, Proof, Request, SchemeConfig, SnsRequest, Tolerance, Unverified, VerifyConfig},
    config::ByteLimit,
    event::SourceId,
    identity::Malformed,
    limits::Admission,
    observe::RouteResult,
    preset::Preset,
    route::{Routed, Router, RuleLook},
    secret::{self, SecretRef},
    sink::Target,
    source::{Source, SourceConfig, Surroundings},
};

/// A captured request, with what it is to be judged by. Further keys are passed over.
#[derive(Debug, Clone, Deserialize)]
pub struct Record {
    /// What the verdict calls it.
    #[serde(default)]
    pub id: Option<Value>,
    /// The preset to judge it by, where no config is given.
    #[serde(default)]
    pub provider: Option<String>,
    /// The secrets that are live, as the provider shows them, where no config is given.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// The method. Default: `POST`.
    #[serde(default = "post")]
    pub method: String,
    /// The target: path and query.
    pub path: String,
    /// Names and values of the headers, in their order.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The body in base64.
    #[serde(default)]
    pub body_base64: String,
    /// The clock to judge by, in seconds since 1970. Default: the caller's.
    #[serde(default)]
    pub now_unix: Option<f64>,
    /// How old a request may be, in seconds, where no config is given; 0 and null leave its age unchecked. Default: the
    /// preset's.
    #[serde(default, deserialize_with = "present")]
    pub tolerance_s: Option<Option<u64>>,
    /// What else the preset's schemes are configured with, where no config is given.
    #[serde(default)]
    pub params: Map<String, Value>,
    /// The address that it came from.
    #[serde(default)]
    pub peer: Option<IpAddr>,
}

fn post() -> String {
    "POST".to_owned()
}

/// Tells a value that is null from one that is not there.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::<u64>::deserialize(deserializer).map(Some)
}

/// What would become of a request. Its JSON form is stable: keys may be added, none is renamed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verdict {
    /// The record's own id, or where the request stands.
    pub id: Value,
    /// `accept` when the sender is verified, else `reject`.
    pub verdict: &'static str,
    /// The scheme that held, or that came furthest; several joined by `+`.
    pub scheme: Option<String>,
    /// The name of the secret that matched.
    pub secret: Option<String>,
    /// Why it is rejected, or why a verified request is no event that is published; a word from a closed set.
    pub reason: Option<&'static str>,
    /// The same in words, with particulars.
    pub detail: Option<String>,
    /// The status that the sender would be answered with, if every sink were up.
    pub status: u16,
    /// Whether it is a handshake, which is answered and never published.
    pub handshake: bool,
    /// The event's id.
    pub event_id: Option<String>,
    /// Which candidate of `event_id` gave it, counted from 0.
    pub event_id_candidate: Option<usize>,
    /// The event's type.
    pub r#type: Option<String>,
    /// The event's attributes.
    pub attributes: BTreeMap<String, String>,
    /// What each rule makes of it, and by which values.
    pub rules: Vec<RuleLook>,
    /// The routes that it goes by.
    pub routes: Vec<String>,
    /// Where it would go, as rendered.
    pub destinations: Vec<Destination>,
}

/// One destination of an event.
#[derive(Debug, Clone, Serialize)]
pub struct Destination {
    /// The sink.
    pub sink: String,
    /// The subject, topic, or exchange and routing key in it, where it has such.
    pub target: Option<String>,
    /// The key, where there are keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Whether the answer depends on it.
    pub required: bool,
    /// What is taken out of the body, where something is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redacted: Option<String>,
}

impl Verdict {
    /// A request that never comes to be verified.
    pub fn refused(reason: &'static str, status: u16, detail: impl Into<String>) -> Self {
        Self { verdict: "reject", reason: Some(reason), status, detail: Some(detail.into()), ..Self::default() }
    }
}

/// Judges `request` as one to `source`, routed by `router` if there is one.
pub fn judge(source: &Source, router: Option<&Router>, request: Unverified) -> Verdict {
    if let Some(reply) = source.answer_unverified(&request) {
        let answered = Verdict {
            verdict: "accept",
            status: reply.status(),
            handshake: true,
            detail: Some("an unsigned handshake, answered as the provider wants".to_owned()),
            ..Verdict::default()
        };
        return match reply.status() {
            200..=299 => answered,
            status => {
                let detail = "an unsigned handshake with a token that is none of challenge_secrets";
                Verdict { handshake: true, ..Verdict::refused("challenge_refused", status, detail) }
            }
        };
    }
    let request = match source.verifier().attempt(request) {
        Ok(request) => request,
        Err(refusal) => {
            let failure = refusal.failure;
            let status = if failure == AuthFailure::KeysUnavailable { 503 } else { 401 };
            let scheme = Some(refusal.scheme.to_owned());
            return Verdict { scheme, ..Verdict::refused(failure.label(), status, failure.to_string()) };
        }
    };
    let mut verdict = Verdict { verdict: "accept", status: 200, ..Verdict::default() };
    match request.proof() {
        Proof::Spooled => unreachable!("a captured request comes from no spool"),
        Proof::Waived => verdict.scheme = Some("insecure-accept-anyone".to_owned()),
        Proof::Verified(credentials) => {
            let join = |part: fn(&crate::auth::Credential) -> &str| {
                Some(credentials.iter().map(part).collect::<Vec<_>>().join("+"))
            };
            verdict.scheme = join(|credential| credential.scheme);
            verdict.secret = join(|credential| &credential.secret);
        }
    }
    let status = match (source.answer(&request), source.sns_request(&request)) {
        (Some(reply), _) => Some((reply.status(), "a handshake")),
        (_, Some(SnsRequest::Confirm(_))) => Some((200, "a subscription that would be confirmed")),
        (_, Some(SnsRequest::Ignore)) => Some((200, "a subscription that the config says not to confirm")),
        (_, Some(SnsRequest::Unsubscribed)) => Some((200, "the end of a subscription")),
        (None, None) => None,
    };
    if let Some((status, what)) = status {
        return Verdict { status, handshake: true, detail: Some(what.to_owned()), ..verdict };
    }
    if request.method != Method::POST {
        let detail = Some("neither an event nor a handshake".to_owned());
        return Verdict { status: 405, reason: Some("method"), detail, ..verdict };
    }
    if source.takes(&request.headers).is_err() {
        let detail = Some("the source takes no bodies of this type or encoding".to_owned());
        return Verdict { status: 415, reason: Some("media_type"), detail, ..verdict };
    }
    let inflated = source.inflate(request).map_err(|error| error.to_string());
    let event = match inflated.and_then(|request| source.identify(request).map_err(|malformed| malformed.to_string())) {
        Ok(event) => event,
        Err(malformed) => {
            let detail = Some(malformed);
            return Verdict { status: 400, reason: Some("malformed_event"), detail, ..verdict };
        }
    };
    verdict.event_id = Some(event.id.to_string());
    verdict.event_id_candidate = Some(event.id_candidate);
    verdict.r#type = Some(event.event_type.to_string());
    verdict.attributes = event.attributes.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    if let Some(reply) = source.reply() {
        verdict.status = reply.status;
    }
    let Some(router) = router else { return verdict };
    verdict.rules = router.look(&event);
    let decision = router.plan(&event);
    let taking = |(_, result): &&(_, RouteResult)| *result == RouteResult::Matched;
    verdict.routes = decision.routes.iter().filter(taking).map(|(route, _)| route.to_string()).collect();
    match decision.routed {
        Routed::To(plan) => {
            let destination = |leg: &crate::route::Leg| Destination {
                sink: leg.sink.name().to_owned(),
                target: (leg.target != Target::Whole).then(|| leg.target.to_string()),
                key: match &leg.target {
                    Target::Topic { key, .. } => Some(key.clone()),
                    Target::Whole | Target::Subject(_) | Target::Exchange { .. } => None,
                },
                required: leg.required,
                redacted: leg.redacted.as_ref().map(|redacted| redacted.pointers.clone()),
            };
            verdict.destinations = plan.legs().iter().map(destination).collect();
        }
        Routed::Unredactable(error) => {
            (verdict.status, verdict.reason) = (400, Some("malformed_event"));
            verdict.detail = Some(Malformed::NotRedactable(error).to_string());
        }
        Routed::Reject => (verdict.status, verdict.reason) = (422, Some("unrouted")),
        Routed::Drop(_) => verdict.reason = Some("dropped"),
    }
    verdict
}

/// The time this many seconds after 1970, if there is such a time.
pub fn time_at(seconds: f64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
}

impl Record {
    /// The clock to judge by; `default` where the record has none that can be.
    pub fn now(&self, default: SystemTime) -> SystemTime {
        self.now_unix.and_then(time_at).unwrap_or(default)
    }

    /// The path of the target, without the query.
    pub fn path(&self) -> &str {
        self.path.split_once('?').map_or(self.path.as_str(), |(path, _)| path)
    }

    /// The request as the relay would take it up.
    ///
    /// # Errors
    /// A sentence, when no HTTP server would let it through.
    pub fn request(&self, now: SystemTime) -> Result<Unverified, String> {
        let method =
            Method::from_bytes(self.method.as_bytes()).map_err(|_| format!("{:?} is no method", self.method))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let header: HeaderName = name.parse().map_err(|_| format!("{name:?} is no header name"))?;
            // Blanks around a value are not part of it: an HTTP server cuts them off.
            let value = value.trim_matches([' ', '\t']);
            let value =
                HeaderValue::from_bytes(value.as_bytes()).map_err(|_| format!("the value of {name} is none"))?;
            headers.append(header, value);
        }
        let body = BASE64.decode(self.body_base64.as_bytes()).map_err(|_| "body_base64 is not base64")?;
        let query = self.path.split_once('?').map(|(_, query)| query.to_owned());
        let admitted = Admission::new(1, 0).begin().try_enter().ok_or("no room for one request")?;
        Ok(Unverified::new(Request {
            method,
            path: self.path().to_owned(),
            query,
            headers,
            body: Bytes::from(body),
            received_at: now,
            peer: Peer { address: self.peer, certificate: None },
            admitted,
        }))
    }

    /// A source as the record itself describes it: preset, secrets and parameters.
    ///
    /// # Errors
    /// What the relay would say at its start, on one line.
    pub fn source(&self) -> Result<Source, String> {
        let name = self.provider.as_deref().ok_or("the record names no provider, and no config is given")?;
        let preset = Preset::find(name).ok_or_else(|| {
            let known: Vec<&str> = crate::preset::PRESETS.keys().map(String::as_str).collect();
            crate::config::unknown("preset", name, &known)
        })?;
        let mut verify = preset.verify.clone();
        for scheme in verify.iter_mut().flat_map(VerifyConfig::schemes_mut) {
            self.configure(scheme)?;
        }
        let mut config: SourceConfig =
            serde_json::from_value(json!({ "path": "/", "preset": name })).map_err(|error| error.to_string())?;
        config.verify = verify;
        config.challenge_secrets = self.text("verify_token").map(SecretRef::literal).into_iter().collect();
        config.webhook_origins = self.list("allowed_origins").unwrap_or_default();
        if let Some(rate) = self.params.get("allowed_rate") {
            config.webhook_rate = Some(Deserialize::deserialize(rate).map_err(|error| error.to_string())?);
        }
        let surroundings = Surroundings::from(ByteLimit::mib(64));
        Source::compile(SourceId::new(0, name), &config, &surroundings, &mut secret::literal)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    }

    /// Puts the record's secrets and parameters into one of the preset's schemes.
    fn configure(&self, scheme: &mut SchemeConfig) -> Result<(), String> {
        if let Some(secrets) = scheme.secrets_mut() {
            let named = |(place, text): (usize, &String)| {
                let name = Some(format!("secrets[{place}]"));
                SecretRef { name, ..SecretRef::literal(text.as_str()) }
            };
            *secrets = self.secrets.iter().enumerate().map(named).collect();
        }
        match scheme {
            SchemeConfig::Header { header, .. } => *header = self.text("header").or_else(|| header.take()),
            SchemeConfig::Query { param, .. } => *param = self.text("param").or_else(|| param.take()),
            SchemeConfig::Hmac(config) | SchemeConfig::Ed25519(config) | SchemeConfig::EcdsaP256(config) => {
                config.url = self.text("url").or_else(|| config.url.take());
                if config.timestamp.is_some() {
                    config.tolerance = self.tolerance().or(config.tolerance);
                }
            }
            SchemeConfig::Twilio(config) => config.url = self.text("url"),
            SchemeConfig::Mailgun(config) => config.tolerance = self.tolerance().or(config.tolerance),
            SchemeConfig::AwsSns(config) => {
                config.topics = self.list("topic_arns").unwrap_or_else(|| vec!["*".to_owned()]);
                let certificates = self.params.get("certs").and_then(Value::as_object);
                let pem = |(url, pem): (&String, &Value)| Some((url.clone(), SecretRef::literal(pem.as_str()?)));
                config.certificates = certificates.into_iter().flatten().filter_map(pem).collect();
            }
            SchemeConfig::Jwt(config) => {
                let keys = self.params.get("jwks").or_else(|| self.params.get("certs_by_kid"));
                config.keys =
                    keys.map(|keys| crate::auth::KeysConfig::Inline(keys.to_string())).or_else(|| config.keys.take());
                config.issuers = self.list("issuers").or_else(|| config.issuers.take());
                config.audiences = self.list("audiences").or_else(|| config.audiences.take());
                config.email = self.text("email");
                config.client_id = self.text("appid");
                config.leeway = self.leeway()?;
            }
            SchemeConfig::Atlassian(config) => config.leeway = self.leeway()?,
            _ => {}
        }
        Ok(())
    }

    fn tolerance(&self) -> Option<Tolerance> {
        self.tolerance_s.map(|seconds| match seconds {
            None | Some(0) => Tolerance::Off,
            Some(seconds) => Tolerance::Within(Duration::from_secs(seconds)),
        })
    }

    fn leeway(&self) -> Result<Option<Duration>, String> {
        match self.params.get("leeway_s") {
            None => Ok(self.tolerance_s.flatten().map(Duration::from_secs)),
            Some(value) => {
                let seconds = value.as_u64().ok_or("leeway_s is no whole number of seconds")?;
                Ok(Some(Duration::from_secs(seconds)))
            }
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        self.params.get(name).and_then(Value::as_str).map(str::to_owned)
    }

    fn list(&self, name: &str) -> Option<Vec<String>> {
        let items = self.params.get(name)?.as_array()?;
        Some(items.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }
}
