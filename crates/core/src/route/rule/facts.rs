//! What rules can look at, and how they get it.

use std::fmt;

use cel::{
    Value,
    common::{
        types::{CelBool, CelInt, CelString},
        value::{CowVal, Val},
    },
    context::VariableResolver,
};
use http::HeaderName;

use super::check;
use crate::{
    event::Event,
    json::{self, Pointer, WatchedPaths},
};

/// Longest array or object of a body that a rule can look into, in bytes. What is longer counts as missing: nobody who may send
/// should decide how long a rule takes.
const COMPOSITE_BYTES_MAX: usize = 16 * 1024;

/// A value of an event that a rule names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Field {
    Source,
    EventType,
    Method,
    Path,
    ContentType,
    BodySize,
    Attribute(String),
    Header(HeaderName),
    Json { pointer: Pointer, slot: usize },
}

impl Field {
    /// Whether it is a text wherever it is there.
    pub(super) fn is_text(&self) -> bool {
        !matches!(self, Self::BodySize | Self::Json { .. })
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source => f.write_str("source"),
            Self::EventType => f.write_str("type"),
            Self::Method => f.write_str("method"),
            Self::Path => f.write_str("path"),
            Self::ContentType => f.write_str("content_type"),
            Self::BodySize => f.write_str("body_size"),
            Self::Attribute(name) => write!(f, "attr.{name}"),
            Self::Header(name) => write!(f, "headers[\"{name}\"]"),
            Self::Json { pointer, .. } => write!(f, "json{pointer}"),
        }
    }
}

/// The paths of bodies that some rule mentions.
#[derive(Debug, Default)]
pub(in super::super) struct JsonPaths(WatchedPaths);

impl JsonPaths {
    pub(super) fn watch(&mut self, pointer: &Pointer) -> Result<usize, String> {
        self.0.watch(pointer)
    }
}

/// An event as rules see it.
pub(in super::super) struct Facts<'a> {
    event: &'a Event,
    /// What the body has at each of [`JsonPaths`]; empty where it was not read.
    json: Vec<Option<json::Value<'a>>>,
}

impl<'a> Facts<'a> {
    /// Without the body.
    pub(in super::super) fn of(event: &'a Event) -> Self {
        Self { event, json: Vec::new() }
    }

    /// With what the body has at `paths`: nothing, if it is not JSON or has one of their keys twice.
    pub(in super::super) fn with_json(event: &'a Event, paths: &JsonPaths) -> Self {
        Self { event, json: paths.0.read(&event.body).unwrap_or_default() }
    }

    /// The text in `field`, if it is one and is there.
    pub(super) fn text(&self, field: &Field) -> Option<&str> {
        match field {
            Field::Source => Some(self.event.source.name()),
            Field::EventType => Some(&self.event.event_type),
            Field::Method => Some(self.event.request.method.as_str()),
            Field::Path => Some(&self.event.request.path),
            Field::ContentType => self.event.content_type.as_deref(),
            Field::Attribute(name) => self.event.attribute(name),
            Field::Header(name) => self.event.request.header(name),
            Field::BodySize | Field::Json { .. } => None,
        }
    }

    /// The value in `field` for an operator to read, cut off where it is long.
    pub(super) fn shown(&self, field: &Field) -> Option<String> {
        const SHOWN_MAX: usize = 120;
        let whole = self.whole(field)?;
        Some(match whole.char_indices().nth(SHOWN_MAX) {
            Some((end, _)) => format!("{}…", &whole[..end]),
            None => whole,
        })
    }

    fn whole(&self, field: &Field) -> Option<String> {
        match field {
            Field::BodySize => Some(self.event.body.len().to_string()),
            Field::Json { slot, .. } => match self.json.get(*slot)?.as_ref()? {
                json::Value::Composite(text) => Some((*text).to_owned()),
                json::Value::Null => Some("null".to_owned()),
                scalar => scalar.as_text().map(str::to_owned),
            },
            _ => self.text(field).map(str::to_owned),
        }
    }

    /// What looks up the names that stand for `fields`.
    pub(super) fn resolver<'f>(&'f self, fields: &'f [Field]) -> Resolver<'f> {
        Resolver { facts: self, fields }
    }

    fn value<'f>(&'f self, field: &Field) -> Option<CowVal<'f, 'f>> {
        match field {
            Field::BodySize => Some(CowVal::owned(CelInt::from(i64::try_from(self.event.body.len()).ok()?))),
            Field::Json { slot, .. } => {
                let value = match self.json.get(*slot)?.as_ref()? {
                    json::Value::Text(text) => return Some(CowVal::owned(CelString::from(&**text))),
                    json::Value::Bool(value) => Value::Bool(*value),
                    json::Value::Null => Value::Null,
                    json::Value::Number(number) => number_of(number)?,
                    json::Value::Composite(text) => composite(text)?,
                };
                Some(CowVal::Owned(Box::<dyn Val>::try_from(value).ok()?))
            }
            _ => self.text(field).map(|text| CowVal::owned(CelString::from(text))),
        }
    }
}

fn number_of(text: &str) -> Option<Value> {
    let whole = text.parse().map(Value::Int).ok().or_else(|| text.parse().map(Value::UInt).ok());
    whole.or_else(|| text.parse().map(Value::Float).ok())
}

fn composite(text: &str) -> Option<Value> {
    if text.len() > COMPOSITE_BYTES_MAX {
        return None;
    }
    cel::to_value(serde_json::from_str::<serde_json::Value>(text).ok()?).ok()
}

pub(super) struct Resolver<'a> {
    facts: &'a Facts<'a>,
    fields: &'a [Field],
}

impl VariableResolver for Resolver<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        if let Some(place) = check::value_named(name) {
            return self.facts.value(self.fields.get(place)?);
        }
        let there = self.facts.value(self.fields.get(check::presence_named(name)?)?).is_some();
        Some(CowVal::owned(CelBool::from(there)))
    }
}
