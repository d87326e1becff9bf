//! Reads the merged values into the config structs and collects every problem on the way.
//!
//! serde stops at the first problem of a value. So the offending part is taken out and the rest read again, until nothing
//! is left to complain about.

use std::collections::{BTreeMap, BTreeSet};

use figment::{
    error::{Actual, Error, Kind},
    value::{Dict, Value},
};
use hookgate_core::config::{Problem, unknown};
use serde::de::DeserializeOwned;

pub(crate) struct Reader<'a> {
    root: &'a Value,
    known: BTreeSet<&'static str>,
    problems: Vec<Problem>,
}

/// The value `part` of a table or list.
pub(super) fn child<'a>(value: &'a Value, part: &str) -> Option<&'a Value> {
    match value {
        Value::Dict(_, table) => table.get(part),
        Value::Array(_, list) => list.get(part.parse::<usize>().ok()?),
        _ => None,
    }
}

/// The keys of a table.
pub(super) fn keys(value: &Value) -> impl Iterator<Item = &String> {
    value.as_dict().into_iter().flat_map(Dict::keys)
}

fn child_mut<'a>(value: &'a mut Value, part: &str) -> Option<&'a mut Value> {
    match value {
        Value::Dict(_, table) => table.get_mut(part),
        Value::Array(_, list) => list.get_mut(part.parse::<usize>().ok()?),
        _ => None,
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(root: &'a Value) -> Self {
        Self { root, known: BTreeSet::new(), problems: Vec::new() }
    }

    /// A table of the top level; an absent one has its defaults.
    pub(super) fn table<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<T> {
        self.known.insert(name);
        let empty = Value::from(Dict::new());
        let value = child(self.root, name).unwrap_or(&empty);
        self.value(name, value)
    }

    /// A table of the top level that may be absent.
    pub(super) fn optional_table<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<Option<T>> {
        self.known.insert(name);
        match child(self.root, name) {
            None => Some(None),
            Some(value) => self.value(name, value).map(Some),
        }
    }

    /// A table of tables, each read by `read`.
    pub(super) fn named_tables<T>(
        &mut self,
        name: &'static str,
        read: impl Fn(&mut Self, &str, &Value) -> Option<T>,
    ) -> Option<BTreeMap<String, T>> {
        self.known.insert(name);
        let tables = match child(self.root, name) {
            None => return Some(BTreeMap::new()),
            Some(Value::Dict(_, tables)) => tables,
            Some(_) => {
                self.problems.push(Problem::new(name, format!("is not a table; write [{name}.NAME]")));
                return None;
            }
        };
        let mut named = BTreeMap::new();
        for (table_name, value) in tables {
            let key = format!("{name}.{table_name}");
            let valid = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
            if !table_name.bytes().all(valid) {
                self.problems.push(Problem::new(&key, "a name has only a-z, 0-9, _ and -: it is a metric label"));
            }
            named.insert(table_name.clone(), read(self, &key, value));
        }
        named.into_iter().map(|(name, value)| Some((name, value?))).collect()
    }

    /// A list of tables of the top level; an absent one is empty.
    pub(super) fn list<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<Vec<T>> {
        self.known.insert(name);
        match child(self.root, name) {
            None => Some(Vec::new()),
            Some(Value::Array(_, list)) => {
                let items: Vec<Option<T>> = list
                    .iter()
                    .enumerate()
                    .map(|(place, value)| self.value(&format!("{name}[{place}]"), value))
                    .collect();
                items.into_iter().collect()
            }
            Some(_) => {
                self.problems.push(Problem::new(name, format!("is not a list of tables; write [[{name}]]")));
                None
            }
        }
    }

    /// One value at `key`.
    pub(crate) fn value<T: DeserializeOwned>(&mut self, key: &str, value: &Value) -> Option<T> {
        let found_before = self.problems.len();
        let mut value = value.clone();
        let mut taken_out = BTreeSet::new();
        loop {
            let error = match value.deserialize::<T>() {
                Ok(read) => return (self.problems.len() == found_before).then_some(read),
                Err(error) => error,
            };
            let (path, message) = describe(&error);
            if !taken_out.contains(&path) {
                self.problems.push(Problem::new(render(&path), message).within(key));
            }
            // What is missing cannot be taken out: then the table around it goes.
            let removed = (1..=path.len()).rev().find(|length| take_out(&mut value, &path[..*length]))?;
            taken_out.insert(path[..removed].to_vec());
        }
    }

    pub(crate) fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Every problem, those of unknown tables included.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        if let Value::Dict(_, tables) = self.root {
            for name in tables.keys().filter(|name| !self.known.contains(name.as_str())) {
                let known: Vec<&str> = self.known.iter().copied().collect();
                self.problems.push(Problem::new(name, unknown("table", name, &known)));
            }
        }
        self.problems
    }
}

/// Where an error is and what to say of it.
fn describe(error: &Error) -> (Vec<String>, String) {
    let mut path = error.path.clone();
    let message = match &error.kind {
        // figment's path ends in the key already.
        Kind::UnknownField(name, known) => unknown("key", name, known),
        Kind::MissingField(name) => {
            path.push(name.to_string());
            "is missing".to_owned()
        }
        Kind::UnknownVariant(name, known) => unknown("value", name, known),
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
            format!("is {}, expected {}", form(found), in_toml(expected))
        }
        other => other.to_string(),
    };
    (path, message)
}

/// serde's word for a kind of value as TOML has it.
fn in_toml(expected: &str) -> &str {
    match expected {
        "a sequence" => "a list",
        "a map" => "a table",
        "a string" | "string" => "a text",
        "a boolean" | "bool" => "true or false",
        other if other.starts_with("struct ") => "a table",
        other => other,
    }
}

/// What a value is, without saying it: it may be a secret in the wrong place.
fn form(value: &Actual) -> &'static str {
    match value {
        Actual::Bool(_) => "a boolean",
        Actual::Unsigned(_) | Actual::Signed(_) => "a whole number",
        Actual::Float(_) => "a number with a fraction",
        Actual::Char(_) | Actual::Str(_) => "a text",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "something else",
    }
}

/// Removes the value at `path` from its table. An item of a list stays, since the others would change their places.
fn take_out(value: &mut Value, path: &[String]) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    let mut parent = value;
    for part in parents {
        match child_mut(parent, part) {
            Some(child) => parent = child,
            None => return false,
        }
    }
    match parent {
        Value::Dict(_, table) => table.remove(last).is_some(),
        _ => false,
    }
}

/// `a`, `0`, `b` as `a[0].b`.
pub(super) fn render(path: &[String]) -> String {
    let mut key = String::new();
    for part in path {
        match part.parse::<usize>() {
            Ok(place) => key.push_str(&format!("[{place}]")),
            Err(_) if key.is_empty() => key.push_str(part),
            Err(_) => key.push_str(&format!(".{part}")),
        }
    }
    key
}
