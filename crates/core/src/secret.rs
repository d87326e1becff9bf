//! Secrets: where the config says they are, and the value in use, which can change while hookgate runs.
//!
//! A secret never shows in `Debug`, `Display` or serialized configuration. Reading files and the environment is the
//! program's work; here are only the reference and the slot that the value is put into.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::config;

/// What is shown in place of a secret.
pub const REDACTED: &str = "[redacted]";

/// A secret value. Never empty: an empty token would verify a request that has none.
pub struct Secret {
    bytes: Zeroizing<Vec<u8>>,
    digest: [u8; 32],
}

/// A secret that was empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the secret is empty")]
pub struct EmptySecret;

impl Secret {
    /// # Errors
    /// When `bytes` is empty.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, EmptySecret> {
        let bytes = Zeroizing::new(bytes.into());
        if bytes.is_empty() {
            return Err(EmptySecret);
        }
        let digest = Sha256::digest(&*bytes).into();
        Ok(Self { bytes, digest })
    }

    /// The secret itself. Callers hand it to the library that needs it and keep no copy.
    pub fn expose(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the value that hashes to `digest` is this secret, in time that depends on neither.
    ///
    /// Digests are compared, not texts, so that not even the length can be measured.
    pub fn matches(&self, digest: &PresentedDigest) -> subtle::Choice {
        self.digest.ct_eq(&digest.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// SHA-256 of a credential that a sender presented.
pub struct PresentedDigest([u8; 32]);

impl PresentedDigest {
    /// Hashes `credential` once, to be compared with every secret that is live.
    pub fn of(credential: &[u8]) -> Self {
        Self(Sha256::digest(credential).into())
    }
}

/// Where a secret is found, as the config says it: `{ env = "…" }`, `{ file = "…" }`, or the text itself.
#[derive(Debug, Clone)]
pub struct SecretRef {
    /// The operator's name for it, told in logs and metrics in place of the value.
    pub name: Option<String>,
    /// Where the value is.
    pub origin: SecretOrigin,
    /// When it ceases to be accepted, like `"2027-01-31T00:00:00Z"`: the end of a rotation that nobody has to remember.
    /// Default: never.
    pub not_after: Option<SystemTime>,
}

/// The place that holds a secret's value.
#[derive(Clone)]
pub enum SecretOrigin {
    /// The environment variable of this name, read once at the start.
    Env(String),
    /// The file at this path, re-read when its content changes. One newline at its end is not part of the secret.
    File(PathBuf),
    /// Written in the config file itself. Never in a shipped example.
    Literal(Arc<Zeroizing<String>>),
}

impl fmt::Debug for SecretOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(variable) => write!(f, "env {variable}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Literal(_) => f.write_str(REDACTED),
        }
    }
}

impl SecretRef {
    /// A secret that is written in the config itself.
    pub fn literal(text: impl Into<String>) -> Self {
        SecretRefVisitor::literal(text.into())
    }

    /// A secret in a file.
    pub fn file(path: PathBuf) -> Self {
        Self { name: None, origin: SecretOrigin::File(path), not_after: None }
    }

    /// What this secret is called in logs and metrics.
    pub fn display_name(&self) -> String {
        match (&self.name, &self.origin) {
            (Some(name), _) => name.clone(),
            (None, SecretOrigin::Env(variable)) => format!("env:{variable}"),
            (None, SecretOrigin::File(path)) => format!("file:{}", path.display()),
            (None, SecretOrigin::Literal(_)) => "literal".to_owned(),
        }
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecretRefVisitor)
    }
}

config::schema!(SecretRef, "Secret", {
    "description": "Where a secret is found: an environment variable, a file that is read again when it changes, or the text itself, \
        which does not belong into a file that others can read. `name` is told in logs and metrics in its place, and `not_after` is \
        when it ceases to be accepted, like \"2027-01-31T00:00:00Z\".",
    "anyOf": [
        { "type": ["string", "integer", "boolean"] },
        {
            "type": "object",
            "properties": {
                "env": { "type": "string", "description": "The environment variable that holds it." },
                "file": { "type": "string", "description": "The file that holds it; one newline at its end is not part of it." },
                "name": { "type": "string", "description": "What it is called in logs and metrics." },
                "not_after": { "type": "string", "description": "When it ceases to be accepted. Default: never." },
            },
            "oneOf": [{ "required": ["env"] }, { "required": ["file"] }],
            "additionalProperties": false,
        },
    ],
});

struct SecretRefVisitor;

impl SecretRefVisitor {
    fn literal(text: String) -> SecretRef {
        SecretRef { name: None, origin: SecretOrigin::Literal(Arc::new(Zeroizing::new(text))), not_after: None }
    }
}

impl<'de> de::Visitor<'de> for SecretRefVisitor {
    type Value = SecretRef;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret: { env = \"NAME\" }, { file = \"PATH\" } or the text itself")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretRef, E> {
        Ok(Self::literal(text.to_owned()))
    }

    // A token of digits only, or the word `true`, is a number or a boolean to the TOML reader and still a secret to us.
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<SecretRef, E> {
        Ok(Self::literal(value.to_string()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<SecretRef, E> {
        Ok(Self::literal(value.to_string()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<SecretRef, E> {
        Ok(Self::literal(value.to_string()))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<SecretRef, E> {
        // `1e5` and `100000.0` are the same number and different secrets; the text is gone by now.
        Err(E::custom("put the secret in quotes: as a number with a fraction or exponent its exact text is lost"))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<SecretRef, A::Error> {
        let (mut name, mut origin, mut not_after) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let found = match key.as_str() {
                "name" => {
                    name = Some(map.next_value::<String>()?);
                    continue;
                }
                "not_after" => {
                    not_after = Some(parse_time(&map.next_value::<String>()?).map_err(de::Error::custom)?);
                    continue;
                }
                "env" => SecretOrigin::Env(map.next_value()?),
                "file" => SecretOrigin::File(map.next_value()?),
                _ => return Err(de::Error::unknown_field(&key, &["env", "file", "name", "not_after"])),
            };
            if origin.replace(found).is_some() {
                return Err(de::Error::custom("a secret has one place: give either env or file"));
            }
        }
        let origin =
            origin.ok_or_else(|| de::Error::custom("a secret needs { env = \"NAME\" } or { file = \"PATH\" }"))?;
        Ok(SecretRef { name, origin, not_after })
    }
}

fn parse_time(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339(text)
        .map_err(|_| format!("{text:?} is not a time; write it in UTC, like \"2027-01-31T00:00:00Z\""))
}

impl Serialize for SecretRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let (key, value) = match &self.origin {
            SecretOrigin::Env(variable) => ("env", variable.clone()),
            SecretOrigin::File(path) => ("file", path.display().to_string()),
            SecretOrigin::Literal(_) => return serializer.serialize_str(REDACTED),
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(key, &value)?;
        if let Some(name) = &self.name {
            map.serialize_entry("name", name)?;
        }
        if let Some(not_after) = self.not_after {
            map.serialize_entry("not_after", &humantime::format_rfc3339(not_after).to_string())?;
        }
        map.end()
    }
}

/// Whether the text of a secret has the form that its user needs; `Err` says what is wrong without saying the text.
pub type CheckForm = fn(&[u8]) -> Result<(), String>;

/// A live secret: read by every request, replaced when its file changes.
#[derive(Debug)]
pub struct SecretSlot {
    name: Arc<str>,
    current: ArcSwap<Secret>,
    not_after: Option<SystemTime>,
    form: OnceLock<CheckForm>,
}

impl SecretSlot {
    /// A slot called `name` (as in [`SecretRef::display_name`]) that holds `secret`.
    pub fn new(name: impl Into<Arc<str>>, secret: Secret) -> Self {
        Self { name: name.into(), current: ArcSwap::from_pointee(secret), not_after: None, form: OnceLock::new() }
    }

    /// The same slot, accepted until `not_after`.
    #[must_use]
    pub fn until(self, not_after: Option<SystemTime>) -> Self {
        Self { not_after, ..self }
    }

    /// Demands that this and every later value has a form. One slot has one user, so the first demand stays.
    ///
    /// # Errors
    /// What is wrong with the value in use.
    pub fn demand(&self, form: CheckForm) -> Result<(), String> {
        self.form.get_or_init(|| form)(self.current().expose())
    }

    /// Whether it is accepted at `now`.
    pub fn is_live(&self, now: SystemTime) -> bool {
        self.not_after.is_none_or(|end| now <= end)
    }

    /// The operator's name for this secret.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The value in use now.
    pub fn current(&self) -> arc_swap::Guard<Arc<Secret>> {
        self.current.load()
    }

    /// Puts a new value in place; requests that are being verified finish with the one they began with.
    ///
    /// # Errors
    /// When it has not the form that was demanded; the old value stays.
    pub fn replace(&self, secret: Secret) -> Result<(), String> {
        if let Some(form) = self.form.get() {
            form(secret.expose())?;
        }
        self.current.store(Arc::new(secret));
        Ok(())
    }
}

/// The secret that stands in `reference` itself, for those who read neither files nor the environment.
///
/// # Errors
/// A sentence: it stands elsewhere, or is empty.
pub fn literal(reference: &SecretRef) -> Result<Arc<SecretSlot>, String> {
    let SecretOrigin::Literal(text) = &reference.origin else { return Err("nothing is read here".to_owned()) };
    let secret = Secret::new(text.as_bytes()).map_err(|empty| empty.to_string())?;
    Ok(Arc::new(SecretSlot::new(reference.display_name(), secret).until(reference.not_after)))
}

/// Turns references into live secrets; the program's side of [`SecretRef`].
///
/// # Errors
/// A sentence for the operator: the variable is not set, the file cannot be read, the value is empty.
pub type ResolveSecret<'a> = dyn FnMut(&SecretRef) -> Result<Arc<SecretSlot>, String> + Send + 'a;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<SecretRef, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn a_secret_of_digits_keeps_its_text() {
        for (json, text) in [("12345", "12345"), ("true", "true"), ("\"007\"", "007")] {
            match parse(json).expect("valid").origin {
                SecretOrigin::Literal(literal) => assert_eq!(literal.as_str(), text),
                other => panic!("{other:?}"),
            }
        }
        assert!(parse("1e5").is_err(), "the text of a float is lost");
    }

    #[test]
    fn nothing_prints_a_secret() {
        let reference = parse("\"hunter2\"").expect("valid");
        let slot = SecretSlot::new("token", Secret::new("hunter2").expect("not empty"));
        let printed = format!("{reference:?} {slot:?} {}", serde_json::to_string(&reference).expect("plain data"));
        assert!(!printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn a_secret_has_exactly_one_place() {
        assert!(parse(r#"{"env":"A","file":"b"}"#).is_err());
        assert!(parse(r#"{"name":"a"}"#).is_err());
        let unknown = parse(r#"{"evn":"A"}"#).expect_err("misspelt").to_string();
        assert!(unknown.contains("evn"), "{unknown}");
    }

    #[test]
    fn a_secret_ends_when_the_config_says_so() {
        let reference = parse(r#"{"env":"A","not_after":"2027-01-31T00:00:00Z"}"#).expect("valid");
        let slot = SecretSlot::new("a", Secret::new("x").expect("not empty")).until(reference.not_after);
        let end = humantime::parse_rfc3339("2027-01-31T00:00:00Z").expect("a time");
        assert!(slot.is_live(end) && !slot.is_live(end + std::time::Duration::from_secs(1)));
        assert!(serde_json::to_string(&reference).expect("plain data").contains("2027-01-31T00:00:00Z"));
        let wrong = parse(r#"{"env":"A","not_after":"31.1.2027"}"#).expect_err("no time").to_string();
        assert!(wrong.contains("31.1.2027") && wrong.contains("2027-01-31T00:00:00Z"), "{wrong}");
    }

    #[test]
    fn a_new_value_in_the_wrong_form_is_not_put_in_place() {
        let digits: CheckForm =
            |text| if text.iter().all(u8::is_ascii_digit) { Ok(()) } else { Err("is not digits".to_owned()) };
        let slot = SecretSlot::new("pin", Secret::new("12").expect("not empty"));
        assert_eq!(slot.demand(digits), Ok(()));
        assert_eq!(slot.replace(Secret::new("x").expect("not empty")), Err("is not digits".to_owned()));
        assert_eq!(slot.current().expose(), b"12");
        assert_eq!(slot.replace(Secret::new("34").expect("not empty")), Ok(()));
        assert_eq!(slot.current().expose(), b"34");
    }

    #[test]
    fn an_empty_secret_cannot_be_made() {
        assert_eq!(Secret::new("").map(|_| ()), Err(EmptySecret));
    }
}
