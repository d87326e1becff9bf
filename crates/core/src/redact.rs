//! Takes values out of a copy of a JSON body and leaves every other byte as it was.
//!
//! The document is walked, never rewritten: the places of the values are found, and the copy is made of what is between them. A
//! key that stands twice is redacted twice.

use std::{borrow::Cow, cell::RefCell, fmt};

use bytes::Bytes;
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::json::{JsonError, Pointer, pass_over_scalars};

/// What stands in the place of a value.
const REDACTED: &str = "\"[redacted]\"";

/// A key that stands for every key of an object and every place of an array.
const ANY: &str = "*";

/// The values that a route takes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redaction {
    root: Node,
    pointers: Vec<String>,
}

/// A copy of a body without some of its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redacted {
    /// The copy.
    pub body: Bytes,
    /// The pointers that found something, as the config has them, in its order; blanks between them.
    pub pointers: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Node {
    /// Which pointer ends here.
    ends: Option<usize>,
    children: Vec<(String, Node)>,
}

impl Redaction {
    /// Parses pointers like `/job/delivery/to`; `*` stands for every key and every place.
    ///
    /// # Errors
    /// The place of the one that is wrong, and a sentence.
    pub fn parse(pointers: &[String]) -> Result<Self, (usize, String)> {
        let mut root = Node::default();
        for (place, text) in pointers.iter().enumerate() {
            let pointer = Pointer::parse(text).map_err(|message| (place, message))?;
            let mut node = &mut root;
            for token in pointer.tokens() {
                let child = node.children.iter().position(|(key, _)| key == token).unwrap_or_else(|| {
                    node.children.push((token.clone(), Node::default()));
                    node.children.len() - 1
                });
                node = &mut node.children[child].1;
            }
            node.ends.get_or_insert(place);
        }
        Ok(Self { root, pointers: pointers.to_vec() })
    }

    /// Both of them.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let mut pointers = self.pointers.clone();
        pointers.extend(other.pointers.iter().filter(|pointer| !self.pointers.contains(pointer)).cloned());
        Self::parse(&pointers).expect("each was parsed before")
    }

    /// A copy of `body` without the values.
    ///
    /// # Errors
    /// When it is not JSON: then nobody knows what is in it.
    pub fn of(&self, body: &[u8]) -> Result<Redacted, JsonError> {
        let text = simdutf8::compat::from_utf8(body).map_err(|error| JsonError::NotUtf8 { at: error.valid_up_to() })?;
        let found = RefCell::new(Vec::new());
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let nodes = vec![&self.root];
        let walked = Walk { nodes, text, found: &found }.deserialize(&mut deserializer);
        walked.and_then(|()| deserializer.end()).map_err(|error| JsonError::Syntax { message: error.to_string() })?;
        let (mut copy, mut end, mut hit) = (Vec::with_capacity(body.len()), 0, vec![false; self.pointers.len()]);
        for Span { pointer, from, to } in found.into_inner() {
            copy.extend_from_slice(&body[end..from]);
            copy.extend_from_slice(REDACTED.as_bytes());
            (end, hit[pointer]) = (to, true);
        }
        copy.extend_from_slice(&body[end..]);
        let hit: Vec<&str> =
            self.pointers.iter().zip(hit).filter(|(_, hit)| *hit).map(|(pointer, _)| pointer.as_str()).collect();
        Ok(Redacted { body: copy.into(), pointers: hit.join(" ") })
    }
}

/// A value that is taken out.
struct Span {
    pointer: usize,
    from: usize,
    to: usize,
}

/// Walks one value with everything that watches it.
struct Walk<'n, 'f, 'a> {
    nodes: Vec<&'n Node>,
    text: &'a str,
    /// In the order of the text, none inside another.
    found: &'f RefCell<Vec<Span>>,
}

impl<'n> Walk<'n, '_, '_> {
    /// What watches the value under `key`.
    fn below(&self, key: &str) -> Vec<&'n Node> {
        let children = self.nodes.iter().flat_map(|node| &node.children);
        children.filter(|(name, _)| name == key || name == ANY).map(|(_, node)| node).collect()
    }

    fn at(&self, nodes: Vec<&'n Node>) -> Self {
        Self { nodes, ..*self }
    }
}

impl<'a> DeserializeSeed<'a> for Walk<'_, '_, 'a> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.nodes.is_empty() {
            return <IgnoredAny as serde::Deserialize>::deserialize(deserializer).map(drop);
        }
        let Some(pointer) = self.nodes.iter().find_map(|node| node.ends) else {
            return deserializer.deserialize_any(self);
        };
        // It is borrowed from the text, so that its address tells its place.
        let raw = <&RawValue as serde::Deserialize>::deserialize(deserializer)?.get();
        let from = raw.as_ptr().addr() - self.text.as_ptr().addr();
        self.found.borrow_mut().push(Span { pointer, from, to: from + raw.len() });
        Ok(())
    }
}

impl<'a> Visitor<'a> for Walk<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            let below = self.below(&key);
            map.next_value_seed(self.at(below))?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<(), A::Error> {
        for place in 0_usize.. {
            let below = self.below(&place.to_string());
            if seq.next_element_seed(self.at(below))?.is_none() {
                break;
            }
        }
        Ok(())
    }

    pass_over_scalars!();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn redacted(pointers: &[&str], body: &str) -> (String, String) {
        let pointers: Vec<String> = pointers.iter().map(|&pointer| pointer.to_owned()).collect();
        let redacted = Redaction::parse(&pointers).expect("good pointers").of(body.as_bytes()).expect("JSON");
        (String::from_utf8(redacted.body.to_vec()).expect("UTF-8"), redacted.pointers)
    }

    #[test]
    fn values_are_taken_out_and_nothing_else_is_touched() {
        let body = "{ \"a\" : {\"b\":[1, {\"c\": \"x\\u0020y\"}], \"d\":null},\n\"e\": 1.50, \"f\\u0061\": true }";
        for (pointers, expected, hit) in [
            (&["/a/d"][..], body.replace("null", REDACTED), "/a/d"),
            (&["/e", "/nowhere"], body.replace("1.50", REDACTED), "/e"),
            (&["/a/b/1/c"], body.replace("\"x\\u0020y\"", REDACTED), "/a/b/1/c"),
            (&["/a/*/1/c"], body.replace("\"x\\u0020y\"", REDACTED), "/a/*/1/c"),
            (&["/fa"], body.replace("true", REDACTED), "/fa"),
            (&["/a", "/a/d"], body.replace("{\"b\":[1, {\"c\": \"x\\u0020y\"}], \"d\":null}", REDACTED), "/a"),
            (&["/e/f", "/a/d/x"], body.to_owned(), ""),
        ] {
            assert_eq!(redacted(pointers, body), (expected, hit.to_owned()), "{pointers:?}");
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_taken_out_twice() {
        let (body, _) = redacted(&["/a/t"], r#"{"a":{"t":1,"t":2},"a":{"t":3}}"#);
        assert_eq!(body, r#"{"a":{"t":"[redacted]","t":"[redacted]"},"a":{"t":"[redacted]"}}"#);
    }

    #[test]
    fn what_is_not_json_is_not_copied() {
        let redaction = Redaction::parse(&["/a".to_owned()]).expect("good");
        for body in [&b"text"[..], b"", b"{\"a\": 1", b"{\"a\": 1} x", b"\"\xff\""] {
            assert!(redaction.of(body).is_err(), "{body:?}");
        }
        assert_eq!(Redaction::parse(&["/a".to_owned(), "b".to_owned()]).expect_err("no pointer").0, 1);
    }

    fn documents() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,6}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[abc~/*]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// The same with a tree.
    fn replace(value: &mut Value, path: &[&str]) {
        let Some((key, rest)) = path.split_first() else { return *value = json!("[redacted]") };
        match value {
            Value::Object(map) => map
                .iter_mut()
                .filter(|(name, _)| name == key || *key == "*")
                .for_each(|(_, value)| replace(value, rest)),
            Value::Array(list) => list
                .iter_mut()
                .enumerate()
                .filter(|(place, _)| place.to_string() == *key || *key == "*")
                .for_each(|(_, value)| replace(value, rest)),
            _ => {}
        }
    }

    proptest! {
        #[test]
        fn the_copy_is_the_document_with_those_values_replaced(document in documents(), path in prop::collection::vec("[abc01*]", 1..4)) {
            let pointer: String = path.iter().map(|key| format!("/{key}")).collect();
            let mut expected = document.clone();
            replace(&mut expected, &path.iter().map(String::as_str).collect::<Vec<_>>());
            for body in [document.to_string(), format!("{document:#}")] {
                let (copy, hit) = redacted(&[&pointer], &body);
                prop_assert_eq!(serde_json::from_str::<Value>(&copy).expect("JSON"), expected.clone());
                if hit.is_empty() {
                    prop_assert_eq!(&copy, &body);
                }
                // What is between the values is there byte for byte, in order.
                let mut rest = body.as_str();
                for piece in copy.split(REDACTED) {
                    let at = rest.find(piece);
                    prop_assert!(at.is_some(), "{piece:?} is not in {body:?}");
                    rest = &rest[at.unwrap_or_default() + piece.len()..];
                }
            }
        }
    }
}
