//! Reads a few values out of a JSON document in one pass, and checks the whole of it on the way.
//!
//! The document is never turned into a tree and never rewritten. Numbers keep the text that was sent: an id above 2^53
//! survives, and `1` stays different from `"1"`. A key that stands twice on a watched path is refused, since two readers
//! of such a document may see two different events.

use std::{borrow::Cow, cell::RefCell, fmt};

use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A JSON Pointer (RFC 6901), like `/job/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    text: String,
    tokens: Vec<String>,
}

impl Pointer {
    /// Parses `text`, which must begin with `/`: the whole document is nothing that a field can be read from.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix('/') else {
            return Err(format!("{text:?} is not a JSON pointer: it begins with \"/\", like \"/job/id\""));
        };
        let unescape = |token: &str| {
            let plain = token.replace("~1", "").replace("~0", "");
            match plain.contains('~') {
                true => Err(format!("{text:?} is not a JSON pointer: write \"~0\" for \"~\"")),
                false => Ok(token.replace("~1", "/").replace("~0", "~")),
            }
        };
        let tokens = path.split('/').map(unescape).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), tokens })
    }

    /// Its keys, unescaped.
    pub(crate) fn tokens(&self) -> &[String] {
        &self.tokens
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A value found at a watched path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// A string, unescaped.
    Text(Cow<'a, str>),
    /// A number, as it was written.
    Number(&'a str),
    /// `true` or `false`.
    Bool(bool),
    /// `null`.
    Null,
    /// An object or an array, as it was written: present, but nothing to use as text.
    Composite(&'a str),
}

impl Value<'_> {
    /// The value as text, if it is a scalar that says something: `null`, objects and arrays are none.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(text) => Some(text),
            Self::Bool(true) => Some("true"),
            Self::Bool(false) => Some("false"),
            Self::Null | Self::Composite(_) => None,
        }
    }
}

/// The part of a visitor of objects and arrays that meets a scalar: nothing below it exists.
macro_rules! pass_over_scalars {
    () => {
        fn visit_bool<E>(self, _: bool) -> Result<(), E> {
            Ok(())
        }

        fn visit_i64<E>(self, _: i64) -> Result<(), E> {
            Ok(())
        }

        fn visit_u64<E>(self, _: u64) -> Result<(), E> {
            Ok(())
        }

        fn visit_f64<E>(self, _: f64) -> Result<(), E> {
            Ok(())
        }

        fn visit_str<E>(self, _: &str) -> Result<(), E> {
            Ok(())
        }

        fn visit_unit<E>(self) -> Result<(), E> {
            Ok(())
        }
    };
}
pub(crate) use pass_over_scalars;

/// Why a body could not be read as JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not UTF-8, so not JSON (RFC 8259, section 8.1).
    #[error("byte {at} is not UTF-8")]
    NotUtf8 {
        /// Offset of the first byte that is wrong.
        at: usize,
    },
    /// Not a JSON document.
    #[error("{message}")]
    Syntax {
        /// What is wrong, with line and column.
        message: String,
    },
    /// A watched key stands twice in one object.
    #[error("the key {key:?} stands twice in one object")]
    DuplicateKey {
        /// The key.
        key: String,
    },
}

/// The paths that are watched, compiled to a tree: what a source's id, type and attributes need.
#[derive(Debug, Default)]
pub struct WatchedPaths {
    root: Node,
    slots: usize,
}

#[derive(Debug, Default)]
struct Node {
    /// Where the value goes, if this very path is watched.
    slot: Option<usize>,
    children: Vec<(Child, Node)>,
}

#[derive(Debug)]
struct Child {
    key: String,
    /// The key as a place in an array, where it is one.
    index: Option<usize>,
}

impl WatchedPaths {
    /// Most keys watched in one object; they are ticked off in one machine word.
    const CHILDREN_MAX: usize = 64;

    /// Adds `pointer` and returns the place of its value in the result of [`Self::read`].
    ///
    /// # Errors
    /// When more than 64 keys of one object would be watched.
    pub fn watch(&mut self, pointer: &Pointer) -> Result<usize, String> {
        let mut node = &mut self.root;
        for token in &pointer.tokens {
            let place = match node.children.iter().position(|(child, _)| child.key == *token) {
                Some(place) => place,
                None if node.children.len() == Self::CHILDREN_MAX => {
                    return Err(format!("at most {} keys of one object can be read", Self::CHILDREN_MAX));
                }
                None => {
                    node.children.push((Child { key: token.clone(), index: token.parse().ok() }, Node::default()));
                    node.children.len() - 1
                }
            };
            node = &mut node.children[place].1;
        }
        let slots = &mut self.slots;
        Ok(*node.slot.get_or_insert_with(|| {
            *slots += 1;
            *slots - 1
        }))
    }

    /// Whether nothing is watched, so that nothing needs to be read.
    pub fn is_empty(&self) -> bool {
        self.slots == 0
    }

    /// No value at any watched path: what a body that is not JSON has.
    pub fn absent<'a>(&self) -> Vec<Option<Value<'a>>> {
        vec![None; self.slots]
    }

    /// Reads `body` once, from its first byte to its last.
    ///
    /// # Errors
    /// When it is not one JSON document, or a watched key stands twice.
    pub fn read<'a>(&self, body: &'a [u8]) -> Result<Vec<Option<Value<'a>>>, JsonError> {
        // serde_json checks strings that it skips for escapes, not for UTF-8, so that is done before.
        let text = simdutf8::compat::from_utf8(body).map_err(|error| JsonError::NotUtf8 { at: error.valid_up_to() })?;
        let found = RefCell::new(Found { values: self.absent(), duplicate: None });
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let walked = Walk { node: &self.root, found: &found }.deserialize(&mut deserializer);
        let outcome = walked.and_then(|()| deserializer.end());
        let found = found.into_inner();
        match (outcome, found.duplicate) {
            (Ok(()), _) => Ok(found.values),
            (Err(_), Some(key)) => Err(JsonError::DuplicateKey { key }),
            (Err(error), None) => Err(JsonError::Syntax { message: error.to_string() }),
        }
    }
}

struct Found<'a> {
    values: Vec<Option<Value<'a>>>,
    duplicate: Option<String>,
}

/// Reads one value of the document with `node` watching it.
#[derive(Clone, Copy)]
struct Walk<'n, 'f, 'a> {
    node: &'n Node,
    found: &'f RefCell<Found<'a>>,
}

impl<'a> DeserializeSeed<'a> for Walk<'_, '_, 'a> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        let Some(slot) = self.node.slot else {
            return deserializer.deserialize_any(self);
        };
        // The raw text is taken first: it alone has the number as it was sent.
        let raw = <&RawValue as serde::Deserialize>::deserialize(deserializer)?.get();
        let value = match raw.as_bytes().first() {
            Some(b'"') => Value::Text(text_of(raw).map_err(de::Error::custom)?),
            Some(b't') => Value::Bool(true),
            Some(b'f') => Value::Bool(false),
            Some(b'n') => Value::Null,
            Some(b'{' | b'[') => Value::Composite(raw),
            _ => Value::Number(raw),
        };
        let composite = matches!(value, Value::Composite(_));
        self.found.borrow_mut().values[slot] = Some(value);
        if composite && !self.node.children.is_empty() {
            // Only a path that is watched itself and has watched paths below it is read a second time.
            let mut below = serde_json::Deserializer::from_str(raw);
            de::Deserializer::deserialize_any(&mut below, self).map_err(de::Error::custom)?;
        }
        Ok(())
    }
}

/// The string in `raw`, borrowed when it has no escapes.
fn text_of(raw: &str) -> serde_json::Result<Cow<'_, str>> {
    match raw.contains('\\') {
        true => serde_json::from_str::<String>(raw).map(Cow::Owned),
        false => serde_json::from_str::<&str>(raw).map(Cow::Borrowed),
    }
}

impl<'a> Visitor<'a> for Walk<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = 0_u64;
        while let Some(place) = map.next_key_seed(WatchedKey(&self.node.children))? {
            let Some(place) = place else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let (child, node) = &self.node.children[place];
            if seen & (1 << place) != 0 {
                self.found.borrow_mut().duplicate = Some(child.key.clone());
                return Err(de::Error::custom("duplicate key"));
            }
            seen |= 1 << place;
            map.next_value_seed(Walk { node, ..self })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<(), A::Error> {
        for place in 0.. {
            let watched = self.node.children.iter().find(|(child, _)| child.index == Some(place));
            let more = match watched {
                Some((_, node)) => seq.next_element_seed(Walk { node, ..self })?.is_some(),
                None => seq.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    pass_over_scalars!();
}

/// Reads a key and says which watched child it is, without keeping it.
struct WatchedKey<'n>(&'n [(Child, Node)]);

impl<'a> DeserializeSeed<'a> for WatchedKey<'_> {
    type Value = Option<usize>;

    fn deserialize<D: de::Deserializer<'a>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for WatchedKey<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Option<usize>, E> {
        Ok(self.0.iter().position(|(child, _)| child.key == key))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read<'a>(pointers: &[&str], body: &'a [u8]) -> Result<Vec<Option<Value<'a>>>, JsonError> {
        let mut paths = WatchedPaths::default();
        for pointer in pointers {
            paths.watch(&Pointer::parse(pointer).expect("valid pointer")).expect("few pointers");
        }
        paths.read(body)
    }

    fn text(pointer: &str, body: &str) -> Option<String> {
        let found = read(&[pointer], body.as_bytes()).expect("valid document");
        found[0].as_ref().and_then(Value::as_text).map(str::to_owned)
    }

    #[test]
    fn numbers_keep_their_text() {
        for number in ["9007199254740993", "123456789012345678901234567890", "1.0", "1e5", "-0"] {
            assert_eq!(text("/id", &format!(r#"{{"id": {number} }}"#)).as_deref(), Some(number));
        }
    }

    #[test]
    fn a_number_is_not_its_text() {
        assert_eq!(read(&["/id"], br#"{"id":1}"#).expect("valid")[0], Some(Value::Number("1")));
        assert_eq!(read(&["/id"], br#"{"id":"1"}"#).expect("valid")[0], Some(Value::Text("1".into())));
    }

    #[test]
    fn nested_and_escaped_paths_are_found() {
        let body = r#"{"a":{"b":[{"c":"x"},{"c":"y\n"}]},"d/e":{"~":true},"f":null}"#;
        assert_eq!(text("/a/b/1/c", body).as_deref(), Some("y\n"));
        assert_eq!(text("/d~1e/~0", body).as_deref(), Some("true"));
        assert_eq!(text("/f", body), None);
        assert_eq!(text("/a/b/c", body), None);
        assert_eq!(text("/a/b/2/c", body), None);
    }

    #[test]
    fn a_path_and_one_below_it_are_both_watched() {
        let found = read(&["/a", "/a/b"], br#"{"a":{"b":2}}"#).expect("valid");
        assert_eq!(found, [Some(Value::Composite(r#"{"b":2}"#)), Some(Value::Number("2"))]);
        let found = read(&["/a", "/a/b"], br#"{"a":7}"#).expect("valid");
        assert_eq!(found, [Some(Value::Number("7")), None]);
    }

    #[test]
    fn a_key_twice_on_a_watched_path_is_refused() {
        let twice = |key: &str| Err(JsonError::DuplicateKey { key: key.to_owned() });
        assert_eq!(read(&["/id"], br#"{"id":1,"id":2}"#), twice("id"));
        assert_eq!(read(&["/a/b"], br#"{"a":{"b":1},"a":{}}"#), twice("a"), "also above the value");
        assert_eq!(read(&["/id"], br#"{"id":1,"\u0069d":2}"#), twice("id"), "also when it is escaped");
        assert_eq!(read(&["/a", "/a/b"], br#"{"a":{"b":1,"b":2}}"#), twice("b"));
        assert!(read(&["/id"], br#"{"id":1,"x":1,"x":2}"#).is_ok(), "what nobody reads may stand twice");
    }

    #[test]
    fn the_whole_document_is_checked() {
        for bad in ["", "{", r#"{"id":1}x"#, r#"{"id":01}"#, r#"{"a":nul}"#, "{\"a\":\"\u{1}\"}", r#"{"a":"\x"}"#] {
            assert!(matches!(read(&["/id"], bad.as_bytes()), Err(JsonError::Syntax { .. })), "{bad}");
        }
        assert_eq!(read(&["/id"], b"{\"a\":\"\xff\"}"), Err(JsonError::NotUtf8 { at: 6 }));
    }

    #[test]
    fn deep_nesting_needs_no_stack() {
        let deep = "[".repeat(200_000);
        assert!(read(&["/id"], deep.as_bytes()).is_err());
        let valid = format!(r#"{{"x":{}{},"id":5}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(text("/id", &valid).as_deref(), Some("5"));
    }

    #[test]
    fn pointers_that_are_none_are_refused() {
        assert!(Pointer::parse("id").is_err());
        assert!(Pointer::parse("").is_err());
        assert!(Pointer::parse("/a~2").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_value_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&["/a", "/a/b", "/0"], &body);
        }

        #[test]
        fn reading_agrees_with_a_full_parse(key in "[a-c]", inner in "[a-c]", number in any::<i64>(), word in "\\PC*") {
            let document = serde_json::json!({ key.clone(): { inner.clone(): number }, "other": word });
            let body = document.to_string();
            let expected = document.pointer("/a/b").map(ToString::to_string);
            prop_assert_eq!(text("/a/b", &body), expected);
            prop_assert_eq!(text("/other", &body), Some(word));
        }
    }
}
