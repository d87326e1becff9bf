//! How the scheme is written in the config, and what must fit together.

use std::time::Duration;

use http::HeaderName;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    super::{Context, KeyForm, SchemeProblems, url::Url},
    Algorithm, Hash, Signature,
    candidates::List,
    check_ed25519, check_p256, resolve_all,
    signed::{Part, Signed},
    timestamp::{Timestamp, TimestampPlace},
};
use crate::{
    config::{self, OneOrMany},
    identity::FieldRef,
    secret::{ResolveSecret, SecretRef},
};

/// Which of the three schemes that share [`SignatureConfig`] is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum AlgorithmName {
    /// `hmac`: a shared secret.
    Hmac,
    /// `ed25519`: the sender's public key.
    Ed25519,
    /// `ecdsa-p256`: the sender's public key.
    EcdsaP256,
}

/// A signature over the request. What is left out comes from the source's preset, unless `header` is written out; else from
/// the defaults told here.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SignatureConfig {
    /// The header that holds the signature, or several: the first that is there is read. No default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<OneOrMany<String>>,
    /// The hash of the HMAC: `"sha256"` (default), `"sha1"` or `"sha512"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<Hash>,
    /// How the signature is written: `"hex"` (default, lower case) or `"base64"` (padded).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// How an HMAC's secret becomes the key: `"utf8"` (default), `"hex"`, `"base64"` or `"whsec"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyForm>,
    /// Text before each signature, like `"sha256="`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// How several signatures stand in the header: `","` or `" "` between them, or `"kv:,:v1"` for parts like
    /// `t=1,v1=abc,v1=def`. Any one may match. Default: the header has one signature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// Whether blanks around the parts of a list are not part of them. Default: `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trim: Option<bool>,
    /// What is signed: text, and `{body}` `{timestamp}` `{id}` `{method}` `{url}` as they were sent. Default: `"{body}"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed: Option<String>,
    /// Where the time of signing is: `"header:NAME"`, `"kv:LABEL"`, or a JSON pointer into the body; several are tried in
    /// order. Default: there is none, so that a captured request stays good for ever and only dedup stops it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<OneOrMany<String>>,
    /// What the timestamp counts: `"s"` (default) or `"ms"`; `"rfc3339"` where it is written out, in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
    /// How old a request may be, like `"5m"`, the limit itself included; `"off"` leaves its age unchecked. A sender that
    /// repeats an event with its first timestamp needs its whole span of retries. Default: `"5m"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<Tolerance>,
    /// How far ahead of our clock a timestamp may be: `"same"` as `tolerance` (default), `"any"`, or a duration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub future: Option<Future>,
    /// Where the message id is that `{id}` stands for: `"header:NAME"`; several are tried in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<OneOrMany<FieldRef>>,
    /// The whole URL that `{url}` stands for, query included, where it is always the same and not `server.public_url` with
    /// the path. Never taken from the Host header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Whether `{url}` may also be the URL with the escapes of `:/?@!$'()*,;` decoded, as HubSpot describes it and its
    /// libraries do not. Default: `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unescape_url: Option<bool>,
    /// The shared secrets, or the sender's public keys, that are live; any one may match. A public key is 64 hexadecimal
    /// digits or `whpk_…` for Ed25519, and the base64 of its DER form for ECDSA.
    #[serde(default)]
    pub secrets: Vec<SecretRef>,
}

/// How a signature is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Lower-case hexadecimal.
    #[default]
    Hex,
    /// Padded base64 of the standard alphabet.
    Base64,
}

/// What a timestamp counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
pub enum Unit {
    /// Seconds since 1970.
    #[default]
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds since 1970.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Nothing: it is written out in UTC, like `2026-11-25T10:00:00.5Z` (RFC 3339).
    #[serde(rename = "rfc3339")]
    Rfc3339,
}

/// How old a request may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tolerance {
    /// As old as this.
    Within(Duration),
    /// As old as it likes.
    Off,
}

impl Tolerance {
    const DEFAULT: Self = Self::Within(Duration::from_secs(300));

    /// The limit, if there is one.
    pub(in super::super) fn limit(self) -> Option<Duration> {
        match self {
            Self::Within(limit) => Some(limit),
            Self::Off => None,
        }
    }
}

impl<'de> Deserialize<'de> for Tolerance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = config::text("a duration like \"5m\", or \"off\"", deserializer)?;
        match (text.as_str(), config::duration::parse(&text)) {
            ("off", _) => Ok(Self::Off),
            (_, Ok(Duration::ZERO)) => Err(de::Error::custom("write \"off\" to leave the age of requests unchecked")),
            (_, limit) => limit.map(Self::Within).map_err(de::Error::custom),
        }
    }
}

config::schema!(Tolerance, "Tolerance", {
    "type": "string",
    "description": "How old a request may be: a duration like \"5m\", or \"off\".",
});

impl Serialize for Tolerance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Within(limit) => config::duration::serialize(limit, serializer),
            Self::Off => serializer.serialize_str("off"),
        }
    }
}

/// How far ahead of our clock a timestamp may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Future {
    /// As far as it may lie behind.
    #[default]
    Same,
    /// As far as it likes: what the libraries of some providers do.
    Any,
    /// As far as this.
    Within(Duration),
}

impl<'de> Deserialize<'de> for Future {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match config::text("\"same\", \"any\", or a duration like \"30s\"", deserializer)?.as_str() {
            "same" => Ok(Self::Same),
            "any" => Ok(Self::Any),
            text => config::duration::parse(text).map(Self::Within).map_err(de::Error::custom),
        }
    }
}

config::schema!(Future, "Future", {
    "type": "string",
    "description": "How far ahead of our clock a timestamp may be: \"same\" (as far as it may lie behind), \"any\", or a duration like \"30s\".",
});

impl Serialize for Future {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Same => serializer.serialize_str("same"),
            Self::Any => serializer.serialize_str("any"),
            Self::Within(limit) => config::duration::serialize(limit, serializer),
        }
    }
}

impl SignatureConfig {
    /// Takes from `preset` what is left out here, unless it names its own header: then it describes another signature, and a
    /// prefix or timestamp of the preset would make it one that nobody sends. Secrets are never a preset's.
    pub(in super::super) fn fill_from(&mut self, preset: &Self) {
        if self.header.is_some() {
            return;
        }
        macro_rules! fill {
            ($($field:ident)+) => { $(if self.$field.is_none() { self.$field.clone_from(&preset.$field); })+ };
        }
        fill!(header hash encoding key prefix list trim signed timestamp unit tolerance future id url unescape_url);
    }

    /// Checks it, with the preset's parameters filled in already.
    pub(in super::super) fn compile(
        &self,
        name: AlgorithmName,
        context: &Context,
        resolve: &mut ResolveSecret<'_>,
        problems: &mut SchemeProblems<'_>,
    ) -> Option<Signature> {
        let found_before = problems.len();
        let headers = self.headers(problems);
        let signed: Signed = problems.parsed("signed", self.signed.as_deref()).unwrap_or_default();
        let mut list: List = problems.parsed("list", self.list.as_deref()).unwrap_or_default();
        match (&mut list, self.trim) {
            (List::Labelled { trim, .. } | List::Separated { trim, .. }, Some(wanted)) => *trim = wanted,
            (List::One, Some(true)) => problems.push("trim", "needs a list"),
            _ => {}
        }
        let id = self.id_headers(&signed, problems);
        let timestamp = self.timestamp(name, &signed, &list, problems);
        if !signed.has(Part::Body) {
            problems.push("signed", "must have {body}: a signature that does not cover the event proves nothing of it");
        }
        let url = Url::new(self.url.as_deref(), context);
        if signed.has(Part::Url) && url.is_unknown() {
            problems.push("url", Url::UNKNOWN);
        }
        if name != AlgorithmName::Hmac {
            for (key, set) in [("hash", self.hash.is_some()), ("key", self.key.is_some())] {
                if set {
                    problems.push(key, "is for scheme \"hmac\" only; remove it");
                }
            }
        }
        let key_form = self.key.unwrap_or_default();
        let (algorithm, form) = match name {
            AlgorithmName::Hmac => (Algorithm::Hmac(self.hash.unwrap_or_default(), key_form), key_form.check()),
            AlgorithmName::Ed25519 => (Algorithm::Ed25519, check_ed25519 as _),
            AlgorithmName::EcdsaP256 => (Algorithm::EcdsaP256, check_p256 as _),
        };
        let secrets = resolve_all(&self.secrets, form, resolve, problems);
        (problems.len() == found_before).then(|| Signature {
            algorithm,
            headers,
            encoding: self.encoding.unwrap_or_default(),
            prefix: self.prefix.clone().unwrap_or_default(),
            list,
            signed,
            timestamp,
            id,
            url,
            unescape_url: self.unescape_url.unwrap_or_default(),
            secrets,
        })
    }

    fn headers(&self, problems: &mut SchemeProblems<'_>) -> Vec<HeaderName> {
        let names = self.header.as_ref().map(|names| names.0.as_slice()).unwrap_or_default();
        if names.is_empty() {
            problems.push("header", "is missing: name the header that holds the signature, or a preset that knows it");
        }
        names.iter().filter_map(|name| problems.header("header", name)).collect()
    }

    fn id_headers(&self, signed: &Signed, problems: &mut SchemeProblems<'_>) -> Vec<HeaderName> {
        let places = self.id.as_ref().map(|places| places.0.as_slice()).unwrap_or_default();
        if places.is_empty() == signed.has(Part::Id) {
            problems.push("id", "and {id} in signed belong together: give both or none");
        }
        let header = |place: &FieldRef| match place {
            FieldRef::Header(name) => Some(name.clone()),
            FieldRef::Body(_) => None,
        };
        let headers: Vec<_> = places.iter().filter_map(header).collect();
        if headers.len() < places.len() {
            problems.push("id", "must be in headers, like \"header:webhook-id\"");
        }
        headers
    }

    fn timestamp(
        &self,
        name: AlgorithmName,
        signed: &Signed,
        list: &List,
        problems: &mut SchemeProblems<'_>,
    ) -> Option<Timestamp> {
        let places = self.timestamp.as_ref().map(|places| places.0.as_slice()).unwrap_or_default();
        let places: Vec<TimestampPlace> =
            places.iter().filter_map(|place| problems.parsed("timestamp", Some(place.as_str()))).collect();
        let beside = places.iter().any(|place| !matches!(place, TimestampPlace::Body(_)));
        match (beside, signed.has(Part::Timestamp)) {
            (true, false) => {
                problems
                    .push("timestamp", "is outside the body and {timestamp} is not in signed: anybody could change it");
            }
            (false, true) => problems.push("timestamp", "is missing: signed has {timestamp}"),
            _ => {}
        }
        let labelled = places.iter().any(|place| matches!(place, TimestampPlace::Part(_)));
        if labelled && !matches!(list, List::Labelled { .. }) {
            problems.push("timestamp", "is a part of the header, so list must be like \"kv:,:v1\"");
        }
        if places.is_empty() {
            for (key, set) in [
                ("tolerance", self.tolerance.is_some()),
                ("future", self.future.is_some()),
                ("unit", self.unit.is_some()),
            ] {
                if set {
                    problems.push(key, "needs a timestamp");
                }
            }
            return None;
        }
        let past = self.tolerance.unwrap_or(Tolerance::DEFAULT).limit();
        let future = match self.future.unwrap_or_default() {
            Future::Same => past,
            Future::Any => None,
            Future::Within(limit) => Some(limit),
        };
        let opaque = past.is_none() && name != AlgorithmName::Hmac;
        Some(Timestamp { places, unit: self.unit.unwrap_or_default(), past, future, opaque })
    }
}
