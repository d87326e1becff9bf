//! What a request is called: its event id, type and attributes, read from verified headers and body.

use std::{borrow::Cow, fmt, sync::Arc};

use http::{HeaderMap, HeaderName};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    config,
    event::EventId,
    json::{JsonError, Pointer, Value, WatchedPaths},
};

/// Why an authenticated request is no event. The text goes to the sender too, who is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The source demands JSON and the body is none.
    #[error("the body is not JSON: {0}")]
    NotJson(JsonError),
    /// Two values stand where one is read from.
    #[error("the body is ambiguous: {0}")]
    Ambiguous(JsonError),
    /// It says that it is compressed, and cannot be decompressed.
    #[error("the body cannot be decompressed: {0}")]
    NotDecompressed(String),
    /// A header that the event id is read from was sent more than once.
    #[error("the header {0} was sent more than once")]
    RepeatedHeader(HeaderName),
    /// A route takes values out of it, and nobody can find them.
    #[error("the body is not JSON, and values in it are not to be passed on: {0}")]
    NotRedactable(JsonError),
    /// No candidate of `event_id` gave an id.
    #[error("no event id: none of the configured candidates is in the request")]
    NoEventId,
}

/// A place in a request: a JSON pointer into the body (`/job/id`) or a header (`header:x-github-delivery`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldRef {
    /// A value in the JSON body.
    Body(Pointer),
    /// A request header.
    Header(HeaderName),
}

impl FieldRef {
    /// Parses `/pointer` or `header:name`.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("header:") {
            Some(name) => name
                .parse()
                .map(Self::Header)
                .map_err(|_| format!("{name:?} is not a header name; write \"header:x-request-id\"")),
            None => {
                Pointer::parse(text).map(Self::Body).map_err(|error| format!("{error}; a header is \"header:name\""))
            }
        }
    }
}

impl fmt::Display for FieldRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body(pointer) => pointer.fmt(f),
            Self::Header(name) => write!(f, "header:{name}"),
        }
    }
}

impl<'de> Deserialize<'de> for FieldRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

config::schema!(FieldRef, "Place", {
    "type": "string",
    "description": "A place in a request: a JSON pointer into the body, like \"/job/id\", or a header, like \"header:x-github-delivery\".",
});

impl Serialize for FieldRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One candidate for the event id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdCandidate {
    /// These values together; written as a list, or as one string for one value.
    Fields(Vec<FieldRef>),
    /// The SHA-256 of the body; written `"body-sha256"`. Always there.
    BodySha256,
    /// A new one for every request, for senders whose events cannot be told from repeats; written `"unique"`. Always there.
    Unique,
}

impl<'de> Deserialize<'de> for IdCandidate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Candidate;
        impl<'de> de::Visitor<'de> for Candidate {
            type Value = IdCandidate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a list of places like [\"/jobId\", \"header:x-request-id\"], \"body-sha256\", or \"unique\"",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<IdCandidate, E> {
                match text {
                    "body-sha256" => Ok(IdCandidate::BodySha256),
                    "unique" => Ok(IdCandidate::Unique),
                    _ => FieldRef::parse(text).map(|field| IdCandidate::Fields(vec![field])).map_err(E::custom),
                }
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<IdCandidate, A::Error> {
                let fields: Vec<FieldRef> = Vec::deserialize(de::value::SeqAccessDeserializer::new(seq))?;
                match fields.is_empty() {
                    true => Err(de::Error::custom("an id made of nothing would be the same for every event")),
                    false => Ok(IdCandidate::Fields(fields)),
                }
            }
        }
        deserializer.deserialize_any(Candidate)
    }
}

impl JsonSchema for IdCandidate {
    fn schema_name() -> Cow<'static, str> {
        "EventId".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let place = generator.subschema_for::<FieldRef>();
        json_schema!({
            "description": "Places whose values are the id together, like [\"/jobId\", \"/runAtMs\"], or one place; \"body-sha256\", the \
                hash of the body, which is always there; or \"unique\", a new id for every request, for senders whose events cannot be \
                told from repeats.",
            "anyOf": [place, { "enum": ["body-sha256", "unique"] }, { "type": "array", "items": place, "minItems": 1 }],
        })
    }
}

impl Serialize for IdCandidate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::BodySha256 => serializer.serialize_str("body-sha256"),
            Self::Unique => serializer.serialize_str("unique"),
            Self::Fields(fields) => fields.serialize(serializer),
        }
    }
}

/// One candidate for the event type.
#[derive(Debug, Clone)]
pub enum TypeRule {
    /// The text at this place, as the sender wrote it; printable ASCII of at most 128 bytes. Written as the place.
    From(FieldRef),
    /// A name of our own, when the event's fields are as stated. Written as a table.
    When(NamedType),
}

impl<'de> Deserialize<'de> for TypeRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PlaceOrTable;
        impl<'de> de::Visitor<'de> for PlaceOrTable {
            type Value = TypeRule;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a place like \"header:x-event\", or a table { name = \"…\", present = […], equal = […] }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TypeRule, E> {
                FieldRef::parse(text).map(TypeRule::From).map_err(E::custom)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<TypeRule, A::Error> {
                NamedType::deserialize(de::value::MapAccessDeserializer::new(map)).map(TypeRule::When)
            }
        }
        deserializer.deserialize_any(PlaceOrTable)
    }
}

impl JsonSchema for TypeRule {
    fn schema_name() -> Cow<'static, str> {
        "TypeRule".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (place, named) = (generator.subschema_for::<FieldRef>(), generator.subschema_for::<NamedType>());
        json_schema!({
            "description": "The text at a place, as the sender wrote it, or a name of our own when the event's fields are as stated.",
            "anyOf": [place, named],
        })
    }
}

impl Serialize for TypeRule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::From(field) => field.serialize(serializer),
            Self::When(named) => named.serialize(serializer),
        }
    }
}

/// Gives an event its type when its fields are as stated.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NamedType {
    /// The event type, like `openclaw.run.finished`.
    pub name: String,
    /// Places that must hold a value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub present: Vec<FieldRef>,
    /// Places that must hold exactly this text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub equal: Vec<FieldEquals>,
}

/// A place and the text that must stand there.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FieldEquals {
    /// The place.
    pub field: FieldRef,
    /// The text.
    pub value: String,
}

/// A place with its slot in the values that were read.
#[derive(Debug)]
enum Field {
    Body(usize),
    Header(HeaderName),
}

/// Reads identity out of requests, as one source configures it.
#[derive(Debug)]
pub struct Identity {
    paths: WatchedPaths,
    json_required: bool,
    id: Vec<Candidate>,
    types: Vec<Type>,
    default_type: Arc<str>,
    attributes: Vec<(Arc<str>, Vec<Field>)>,
}

#[derive(Debug)]
enum Candidate {
    Fields(Vec<(String, Field)>),
    BodySha256,
    Unique,
}

/// What becomes of an event that has none of the ids that its source names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
pub enum MissingId {
    /// Its id is the SHA-256 of its body, so that an exact repeat is one. The default.
    #[serde(rename = "body-sha256")]
    BodySha256,
    /// It is never taken for a repeat, nor a repeat for it.
    #[serde(rename = "unique")]
    Unique,
    /// It is refused with 400.
    #[serde(rename = "refuse")]
    Refuse,
}

impl MissingId {
    /// `candidates` with this at their end: what is always there stands last, and nothing after it is ever looked at.
    pub(crate) fn end(self, candidates: &[IdCandidate]) -> Vec<IdCandidate> {
        let named = candidates.iter().take_while(|candidate| matches!(candidate, IdCandidate::Fields(_)));
        let last = match self {
            Self::BodySha256 => Some(IdCandidate::BodySha256),
            Self::Unique => Some(IdCandidate::Unique),
            Self::Refuse => None,
        };
        named.cloned().chain(last).collect()
    }
}

#[derive(Debug)]
enum Type {
    From(Field),
    When { name: Arc<str>, present: Vec<Field>, equal: Vec<(Field, String)> },
}

/// Longest event type that is taken from a sender, in bytes.
const TYPE_LEN_MAX: usize = 128;

/// What [`Identity`] found.
pub(crate) struct Identified {
    pub(crate) id: EventId,
    pub(crate) id_candidate: usize,
    pub(crate) repeatable: bool,
    pub(crate) event_type: Arc<str>,
    pub(crate) attributes: Vec<(Arc<str>, String)>,
}

/// Longest attribute value, in bytes. A longer one counts as absent: it would not fit a header or a subject anyway, and a
/// cut value would match rules that the whole one does not.
pub const ATTRIBUTE_LEN_MAX: usize = 1024;

impl Identity {
    /// Compiles the candidates, rules and attributes of one source.
    ///
    /// # Errors
    /// When more keys of one object are to be read than fit.
    pub fn compile(
        id: &[IdCandidate],
        types: &[TypeRule],
        default_type: &str,
        attributes: &[(String, Vec<FieldRef>)],
        json_required: bool,
    ) -> Result<Self, String> {
        let mut paths = WatchedPaths::default();
        let mut field = |reference: &FieldRef| match reference {
            FieldRef::Body(pointer) => paths.watch(pointer).map(Field::Body),
            FieldRef::Header(name) => Ok(Field::Header(name.clone())),
        };
        let mut candidates = Vec::new();
        for candidate in id {
            candidates.push(match candidate {
                IdCandidate::BodySha256 => Candidate::BodySha256,
                IdCandidate::Unique => Candidate::Unique,
                IdCandidate::Fields(fields) => {
                    let labelled = |reference| Ok::<_, String>((label(reference), field(reference)?));
                    Candidate::Fields(fields.iter().map(labelled).collect::<Result<_, _>>()?)
                }
            });
        }
        let mut rules = Vec::new();
        for rule in types {
            rules.push(match rule {
                TypeRule::From(place) => Type::From(field(place)?),
                TypeRule::When(named) => Type::When {
                    name: named.name.as_str().into(),
                    present: named.present.iter().map(&mut field).collect::<Result<_, _>>()?,
                    equal: (named.equal.iter())
                        .map(|equal| Ok::<_, String>((field(&equal.field)?, equal.value.clone())))
                        .collect::<Result<_, _>>()?,
                },
            });
        }
        let mut named = Vec::new();
        for (name, places) in attributes {
            named.push((name.as_str().into(), places.iter().map(&mut field).collect::<Result<_, _>>()?));
        }
        Ok(Self {
            paths,
            json_required,
            id: candidates,
            types: rules,
            default_type: default_type.into(),
            attributes: named,
        })
    }

    /// Reads id, type and attributes, with one pass over the body.
    pub(crate) fn identify(&self, headers: &HeaderMap, body: &[u8]) -> Result<Identified, Malformed> {
        let values = match self.read_body(body) {
            Ok(values) => values,
            Err(error @ JsonError::DuplicateKey { .. }) => return Err(Malformed::Ambiguous(error)),
            Err(error) if self.json_required => return Err(Malformed::NotJson(error)),
            Err(_) => self.paths.absent(),
        };
        let request = Fields { headers, values };
        let (id_candidate, id) = self.event_id(&request, body)?;
        Ok(Identified {
            id,
            id_candidate,
            repeatable: !matches!(self.id[id_candidate], Candidate::Unique),
            event_type: self.event_type(&request),
            attributes: self.attributes(&request),
        })
    }

    fn read_body<'a>(&self, body: &'a [u8]) -> Result<Vec<Option<Value<'a>>>, JsonError> {
        if self.paths.is_empty() && !self.json_required {
            return Ok(Vec::new());
        }
        self.paths.read(body)
    }

    fn event_id(&self, request: &Fields<'_>, body: &[u8]) -> Result<(usize, EventId), Malformed> {
        for (place, candidate) in self.id.iter().enumerate() {
            match candidate {
                Candidate::BodySha256 => return Ok((place, EventId::of_body(body))),
                Candidate::Unique => return Ok((place, EventId::unique())),
                Candidate::Fields(fields) => {
                    if let Some(id) = request.id_of(fields)? {
                        return Ok((place, id));
                    }
                }
            }
        }
        Err(Malformed::NoEventId)
    }

    fn event_type(&self, request: &Fields<'_>) -> Arc<str> {
        let name = |rule: &Type| match rule {
            Type::From(field) => request.text(field).filter(|text| is_type(text)).map(Arc::from),
            Type::When { name, present, equal } => {
                let holds = present.iter().all(|field| request.text(field).is_some())
                    && equal.iter().all(|(field, value)| request.text(field) == Some(value));
                holds.then(|| Arc::clone(name))
            }
        };
        self.types.iter().find_map(name).unwrap_or_else(|| Arc::clone(&self.default_type))
    }

    fn attributes(&self, request: &Fields<'_>) -> Vec<(Arc<str>, String)> {
        let value = |places: &[Field]| {
            let text = places.iter().find_map(|field| request.text(field))?;
            (text.len() <= ATTRIBUTE_LEN_MAX).then(|| text.to_owned())
        };
        let named = self.attributes.iter().filter_map(|(name, places)| Some((Arc::clone(name), value(places)?)));
        named.collect()
    }
}

fn is_type(text: &str) -> bool {
    text.len() <= TYPE_LEN_MAX && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

/// The headers and the watched body values of one request.
struct Fields<'a> {
    headers: &'a HeaderMap,
    values: Vec<Option<Value<'a>>>,
}

impl Fields<'_> {
    /// The text at `field`; an empty one says nothing and counts as absent.
    fn text(&self, field: &Field) -> Option<&str> {
        let text = match field {
            Field::Body(slot) => self.values[*slot].as_ref()?.as_text()?,
            Field::Header(name) => self.headers.get(name)?.to_str().ok()?,
        };
        (!text.is_empty()).then_some(text)
    }

    /// The id that `fields` make together, if all of them are there.
    ///
    /// The form is `action=finished&runAtMs=1795441803026`: the names are in it, so that two candidates never give the
    /// same id, and values are escaped, so that no value can pass for two.
    fn id_of(&self, fields: &[(String, Field)]) -> Result<Option<EventId>, Malformed> {
        let mut id = String::new();
        for (label, field) in fields {
            if let Field::Header(name) = field
                && self.headers.get_all(name).iter().nth(1).is_some()
            {
                return Err(Malformed::RepeatedHeader(name.clone()));
            }
            let Some(text) = self.text(field) else { return Ok(None) };
            if !id.is_empty() {
                id.push('&');
            }
            id.push_str(label);
            id.push('=');
            let bare = match field {
                Field::Body(slot) => !matches!(self.values[*slot], Some(Value::Text(_))) || !reads_as_literal(text),
                Field::Header(_) => true,
            };
            // A string that could be a number or a boolean stands in quotes: `1` is not `"1"`.
            let quote = if bare { "" } else { "\"" };
            id.push_str(quote);
            id.extend(utf8_percent_encode(text, RESERVED));
            id.push_str(quote);
        }
        Ok(Some(EventId::from_text(id)))
    }
}

/// Whether the body is said to be of `media_type`, whatever its parameters.
pub(crate) fn media_type_is(headers: &HeaderMap, media_type: &str) -> bool {
    let value = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(media_type)
}

/// What is escaped in the values and names of an id: everything that is not printable ASCII, and what an id is built with.
const RESERVED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%').add(b'&').add(b'=');

fn label(field: &FieldRef) -> String {
    let text = field.to_string();
    utf8_percent_encode(text.strip_prefix('/').unwrap_or(&text), RESERVED).to_string()
}

/// Whether `text` could have been written without quotes in JSON; a superset will do.
fn reads_as_literal(text: &str) -> bool {
    text == "true" || text == "false" || text.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn identity(candidates: &[&[&str]]) -> Identity {
        let field = |text: &&str| FieldRef::parse(text).expect("valid field");
        let fields = |texts: &&[&str]| IdCandidate::Fields(texts.iter().map(field).collect());
        let mut id: Vec<IdCandidate> = candidates.iter().map(fields).collect();
        id.push(IdCandidate::BodySha256);
        Identity::compile(&id, &[], "test", &[], false).expect("few paths")
    }

    fn id(candidates: &[&[&str]], body: &str) -> String {
        let identified = identity(candidates).identify(&HeaderMap::new(), body.as_bytes()).expect("an event");
        identified.id.as_str().to_owned()
    }

    #[test]
    fn the_first_candidate_that_is_all_there_gives_the_id() {
        let candidates: &[&[&str]] = &[&["/a", "/b"], &["/a"]];
        assert_eq!(id(candidates, r#"{"a":"x","b":7}"#), "a=x&b=7");
        assert_eq!(id(candidates, r#"{"a":"x","b":""}"#), "a=x", "an empty value says nothing");
        assert_eq!(id(candidates, r#"{"a":"x","b":null}"#), "a=x");
        assert_eq!(id(candidates, r#"{"a":"x","b":{}}"#), "a=x");
        assert!(id(candidates, "{}").starts_with("body-sha256="));
        assert!(id(candidates, "not json").starts_with("body-sha256="));
    }

    #[test]
    fn no_value_can_pass_for_two() {
        let candidates: &[&[&str]] = &[&["/a", "/b"], &["/a"]];
        assert_ne!(id(candidates, r#"{"a":"x&b=7"}"#), id(candidates, r#"{"a":"x","b":7}"#));
        assert_ne!(id(candidates, r#"{"a":1}"#), id(candidates, r#"{"a":"1"}"#));
        assert_ne!(id(candidates, r#"{"a":1}"#), id(candidates, r#"{"a":1.0}"#));
        assert_ne!(id(candidates, r#"{"a":true}"#), id(candidates, r#"{"a":"true"}"#));
    }

    #[test]
    fn a_header_can_be_part_of_the_id_but_not_twice() {
        let identity = identity(&[&["header:x-delivery"]]);
        let mut headers = HeaderMap::from_iter([("x-delivery".parse().expect("name"), HeaderValue::from_static("7"))]);
        assert_eq!(identity.identify(&headers, b"").expect("an event").id.as_str(), "header:x-delivery=7");
        headers.append("x-delivery", HeaderValue::from_static("8"));
        assert!(matches!(identity.identify(&headers, b""), Err(Malformed::RepeatedHeader(_))));
    }

    #[test]
    fn a_source_that_demands_json_gets_json_or_nothing() {
        let strict = Identity::compile(&[IdCandidate::BodySha256], &[], "t", &[], true).expect("no paths");
        assert!(matches!(strict.identify(&HeaderMap::new(), b"{"), Err(Malformed::NotJson(_))));
        assert!(strict.identify(&HeaderMap::new(), b"{}").is_ok());
    }

    #[test]
    fn an_ambiguous_body_is_refused_even_where_json_is_not_demanded() {
        let outcome = identity(&[&["/a"]]).identify(&HeaderMap::new(), br#"{"a":1,"a":2}"#);
        assert!(matches!(outcome, Err(Malformed::Ambiguous(_))));
    }

    #[test]
    fn an_attribute_takes_the_first_place_that_has_a_value_and_is_not_cut() {
        let field = |text| FieldRef::parse(text).expect("valid");
        let places = vec![("name".to_owned(), vec![field("/job/name"), field("/jobName")])];
        let identity = Identity::compile(&[IdCandidate::BodySha256], &[], "t", &places, false).expect("few paths");
        let name = |body: String| {
            identity
                .identify(&HeaderMap::new(), body.as_bytes())
                .expect("an event")
                .attributes
                .pop()
                .map(|(_, value)| value)
        };
        assert_eq!(name(r#"{"jobName":"b","job":{"name":"a"}}"#.to_owned()).as_deref(), Some("a"));
        assert_eq!(name(r#"{"jobName":"b"}"#.to_owned()).as_deref(), Some("b"));
        assert_eq!(name(format!(r#"{{"jobName":"{}"}}"#, "x".repeat(ATTRIBUTE_LEN_MAX + 1))), None);
    }

    proptest! {
        #[test]
        fn different_values_give_different_ids(a in "\\PC{1,8}", b in "\\PC{1,8}", c in "\\PC{1,8}", d in "\\PC{1,8}") {
            let candidates: &[&[&str]] = &[&["/x", "/y"]];
            let body = |x: &str, y: &str| serde_json::json!({"x": x, "y": y}).to_string();
            prop_assert_eq!(id(candidates, &body(&a, &b)) == id(candidates, &body(&c, &d)), (&a, &b) == (&c, &d));
        }
    }
}
