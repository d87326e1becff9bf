//! What is made of the config structs and their doc comments: `relay.toml`, the reference page and the JSON Schema. The test
//! here fails when one of them is behind; with `HOOKGATE_WRITE=1` in the environment it writes them.

use std::{
    collections::{BTreeSet, HashSet},
    fmt::Write,
    path::Path,
};

use serde_json::{Map, Value};

use super::{load, schema};

/// Longest line of a comment in `relay.toml`.
const COMMENT_WIDTH: usize = 118;

#[test]
fn relay_toml_the_reference_and_the_schema_are_what_the_code_says() {
    let schema = schema().to_value();
    let json = serde_json::to_string_pretty(&schema).expect("JSON");
    let relay = relay_toml(&schema, include_str!("relay.skeleton.toml"));
    for (path, made) in [
        ("relay.toml", relay),
        ("docs/reference.md", reference(&schema)),
        ("docs/relay.schema.json", format!("{json}\n")),
    ] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
        if std::env::var_os("HOOKGATE_WRITE").is_some() {
            std::fs::write(&file, &made).expect("writable");
        }
        let found = std::fs::read_to_string(&file).unwrap_or_default();
        let differs = found.lines().zip(made.lines()).position(|(found, made)| found != made);
        let line = differs.unwrap_or(found.lines().count().min(made.lines().count())) + 1;
        assert!(found == made, "{path} is behind the code from line {line} on; write it by HOOKGATE_WRITE=1");
    }
}

#[test]
fn every_line_that_stands_commented_can_be_used() {
    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with([' ', ':']) => rest.to_owned(),
        _ => line.to_owned(),
    };
    let text: Vec<String> = include_str!("relay.skeleton.toml").lines().map(uncommented).collect();
    let file = tempfile::NamedTempFile::with_suffix(".toml").expect("a temporary file");
    std::fs::write(file.path(), text.join("\n")).expect("writable");
    let config = load(file.path(), std::iter::empty()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!((config.sources.len(), config.sinks.len(), config.routes.len()), (2, 5, 3));
}

/// The skeleton with what the code says of each key above it.
///
/// # Panics
/// When a key is missing or unknown, or one that stands as a default is another.
fn relay_toml(schema: &Value, skeleton: &str) -> String {
    let mut made = String::new();
    let (mut table, mut told) = (Value::Null, HashSet::new());
    let (mut missing, mut depth) = (BTreeSet::new(), 0);
    let lines: Vec<&str> = skeleton.lines().collect();
    for (place, line) in lines.iter().enumerate() {
        let bare = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
        if let Some(header) = bare.strip_prefix('[').filter(|_| depth == 0) {
            let kind = lines[place + 1..].iter().find_map(|line| line.trim_start_matches('#').strip_prefix("type = "));
            table = table_at(schema, header.trim_end_matches(']').trim_start_matches('['), kind);
            let name = table["title"].as_str().unwrap_or_default().to_owned();
            // A table in a table is a key of that.
            if let Some((parent, key)) = name.split_once('.') {
                missing.remove(&(parent.to_owned(), key.to_owned()));
            }
            if told.insert((name.clone(), String::new())) {
                missing.extend(properties(&table).into_iter().map(|(key, _)| (name.clone(), key)));
            }
        } else if let Some((key, value)) = bare.split_once(" = ").filter(|_| depth == 0) {
            let name = table["title"].as_str().unwrap_or_default().to_owned();
            let property = properties(&table).into_iter().find(|(known, _)| known == key);
            let (_, property) = property.unwrap_or_else(|| panic!("there is no key {key} in {name}"));
            if bare != *line && told.insert((name.clone(), key.to_owned())) {
                check_default(key, value, &property);
            }
            if missing.remove(&(name, key.to_owned())) {
                comment(&mut made, &summary(&property));
            }
        }
        // Inside of a list over several lines there are no keys of the table.
        let count = |open: char| bare.matches(open).count();
        depth = if bare.starts_with('[') && depth == 0 { 0 } else { depth + count('[') - count(']') };
        writeln!(made, "{line}").expect("memory");
    }
    assert!(missing.is_empty(), "the skeleton lacks {missing:?}");
    made
}

/// The object at `header`, like `dedup.redis` or `sinks.js`, which is of this `kind`; its `title` is a name for it.
fn table_at(schema: &Value, header: &str, kind: Option<&str>) -> Value {
    let mut found = schema.clone();
    let mut parts = header.split('.');
    while let Some(part) = parts.next() {
        let property = properties(&found).into_iter().find(|(key, _)| key == part);
        let (_, property) = property.unwrap_or_else(|| panic!("there is no table {header}"));
        found = resolve(schema, &property);
        if let Some(values) = found.get("additionalProperties").filter(|values| values.is_object()) {
            parts.next();
            found = resolve(schema, &values.clone());
        }
        if let Some(items) = found.get("items") {
            found = resolve(schema, &items.clone());
        }
    }
    let mut title = header.split('.').next().unwrap_or_default().to_owned();
    if let Some(variants) = found.get("oneOf").and_then(Value::as_array) {
        let kind = kind.expect("a sink has a type").trim_matches('"');
        let variant = variants.iter().find(|variant| variant["properties"]["type"]["const"] == *kind);
        found = variant.unwrap_or_else(|| panic!("there is no type {kind}")).clone();
        title = format!("{title} {kind}");
    } else if header.starts_with("dedup.") {
        header.clone_into(&mut title);
    }
    found["title"] = title.into();
    found
}

/// What `value` refers to, if it is a reference or may be absent.
fn resolve(schema: &Value, value: &Value) -> Value {
    if let Some(reference) = reference_of(value) {
        let target = &schema["definitions"][reference];
        assert!(target.is_object(), "{reference}");
        return target.clone();
    }
    value.clone()
}

/// The name of the definition that `value` is, if it is one.
fn reference_of(value: &Value) -> Option<&str> {
    let whole = value["$ref"].as_str().or_else(|| match value["allOf"].as_array().map(Vec::as_slice) {
        Some([only]) => only["$ref"].as_str(),
        _ => None,
    });
    let optional = || {
        let some = value["anyOf"].as_array()?.iter().filter(|one| one["type"] != "null").collect::<Vec<_>>();
        if let [only] = some.as_slice() { only["$ref"].as_str() } else { None }
    };
    whole.or_else(optional)?.strip_prefix("#/definitions/")
}

fn properties(table: &Value) -> Vec<(String, Value)> {
    let properties = table.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::iter);
    properties.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn check_default(key: &str, written: &str, property: &Value) {
    let Some(default) = property.get("default").filter(|default| !is_nothing(default)) else { return };
    let read: toml::Table =
        toml::from_str(&format!("value = {written}")).unwrap_or_else(|error| panic!("{key}: {error}"));
    let read = serde_json::to_value(&read["value"]).expect("JSON");
    let same = match default.as_object() {
        Some(table) => table.iter().all(|(key, value)| read[key] == *value),
        None => read == *default,
    };
    assert!(same, "{key} stands with its default, which is {default}");
}

fn is_nothing(default: &Value) -> bool {
    default.is_null()
        || default == ""
        || default.as_array().is_some_and(Vec::is_empty)
        || default.as_object().is_some_and(Map::is_empty)
}

/// What a doc comment says of a key before it comes to the default, as far as it is short.
fn summary(property: &Value) -> String {
    const SHORT: usize = 190;
    let text = plain(property["description"].as_str().unwrap_or_default());
    let first = text.split("\n\n").next().unwrap_or_default().replace('\n', " ");
    let end = ["Default:", "No default"].iter().filter_map(|word| first.find(word)).min().unwrap_or(first.len());
    let mut summary = String::new();
    for sentence in first[..end].trim().split_inclusive(". ") {
        if !summary.is_empty() && summary.len() + sentence.len() > SHORT {
            break;
        }
        summary.push_str(sentence);
    }
    summary.trim_end().replace('`', "")
}

fn comment(made: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > COMMENT_WIDTH {
            writeln!(made, "{line}").expect("memory");
            "#".clone_into(&mut line);
        }
        write!(line, " {word}").expect("memory");
    }
    if line.len() > 1 {
        writeln!(made, "{line}").expect("memory");
    }
}

/// A doc comment without its links, which lead nowhere outside of the code.
fn plain(text: &str) -> String {
    let mut made = String::new();
    let mut rest = text;
    while let Some(open) = rest.find("[`") {
        let Some(close) = rest[open..].find("`]") else { break };
        let name = &rest[open + 2..open + close];
        write!(made, "{}`{}`", &rest[..open], name.rsplit("::").next().unwrap_or(name)).expect("memory");
        rest = &rest[open + close + 2..];
    }
    made.push_str(rest);
    made
}

/// The page with every key.
fn reference(schema: &Value) -> String {
    let mut made = String::from(
        "# Configuration reference\n\nMade of the code by its tests. Every key of `relay.toml`, table by table; an unknown key is an \
         error. What it is for, in the order of a first setup: [relay.toml](../relay.toml). For editors there is a [JSON \
         Schema](relay.schema.json); `hookgate config --schema` prints it too.\n",
    );
    for (name, table) in properties(schema) {
        let target = resolve(schema, &table);
        let (title, target) = match (target.get("additionalProperties"), target.get("items")) {
            (Some(values), _) if values.is_object() => (format!("[{name}.NAME]"), resolve(schema, values)),
            (_, Some(items)) => (format!("[[{name}]]"), resolve(schema, items)),
            _ => (format!("[{name}]"), target),
        };
        section(&mut made, &format!("`{title}`"), &table, &target);
    }
    made.push_str("\n# Types\n");
    let tables: BTreeSet<String> =
        properties(schema).iter().filter_map(|(_, table)| top_reference(table).map(str::to_owned)).collect();
    let definitions = schema["definitions"].as_object().into_iter().flatten();
    for (name, definition) in definitions.filter(|(name, _)| !tables.contains(*name)) {
        section(&mut made, name, definition, definition);
    }
    made
}

/// The definition that a table of the top level is made of.
fn top_reference(table: &Value) -> Option<&str> {
    reference_of(table)
        .or_else(|| reference_of(&table["additionalProperties"]))
        .or_else(|| reference_of(&table["items"]))
}

fn section(made: &mut String, title: &str, described: &Value, target: &Value) {
    writeln!(made, "\n## {title}\n").expect("memory");
    let description = described.get("description").or(target.get("description")).and_then(Value::as_str);
    if let Some(description) = description {
        writeln!(made, "{}", plain(description).replace('\n', " ")).expect("memory");
    }
    let variants = target.get("oneOf").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for variant in variants {
        match tag(variant) {
            Some((tag, name)) => {
                writeln!(made, "\n### `{tag} = {name}`\n").expect("memory");
                writeln!(made, "{}", one_line(variant)).expect("memory");
                let others = properties(variant).into_iter().filter(|(key, _)| *key != tag).collect();
                keys(made, others, variant);
            }
            None => {
                let names: Vec<String> = match (variant.get("const"), variant.get("enum").and_then(Value::as_array)) {
                    (Some(name), _) => vec![name.to_string()],
                    (None, Some(names)) => names.iter().map(ToString::to_string).collect(),
                    (None, None) => vec![kind(variant)],
                };
                writeln!(made, "- `{}`: {}", names.join("`, `").replace("``", "`"), one_line(variant)).expect("memory");
            }
        }
    }
    if variants.is_empty() {
        let all = properties(target);
        match all.is_empty() {
            true => writeln!(made, "\nWritten as: {}.", kind(target)).expect("memory"),
            false => keys(made, all, target),
        }
    }
}

/// The key that tells the variants of `table` apart, and its value here.
fn tag(table: &Value) -> Option<(String, String)> {
    properties(table).into_iter().find_map(|(key, value)| value.get("const").map(|name| (key, name.to_string())))
}

fn keys(made: &mut String, properties: Vec<(String, Value)>, table: &Value) {
    if properties.is_empty() {
        return;
    }
    let required: Vec<&str> = table["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    made.push_str("\n| Key | Type | Default | |\n|---|---|---|---|\n");
    for (key, property) in properties {
        let default = match property.get("default").filter(|default| !is_nothing(default)) {
            Some(default) => format!("`{}`", toml::Value::try_from(default).expect("a default is TOML")),
            None if required.contains(&key.as_str()) => "needed".to_owned(),
            None => String::new(),
        };
        writeln!(made, "| `{key}` | {} | {default} | {} |", kind(&property), one_line(&property)).expect("memory");
    }
}

fn one_line(value: &Value) -> String {
    let text = plain(value["description"].as_str().unwrap_or_default());
    text.replace("\n\n", "<br>").replace('\n', " ").replace('|', "\\|")
}

/// What is written for a value, in a word or two.
fn kind(value: &Value) -> String {
    if let Some(name) = reference_of(value) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(any) = value["anyOf"].as_array().or(value["oneOf"].as_array()) {
        let kinds: Vec<String> = any.iter().filter(|one| one["type"] != "null").map(kind).collect();
        return kinds.join(" or ");
    }
    if let Some(name) = value.get("const") {
        return format!("`{name}`");
    }
    if let Some(names) = value["enum"].as_array() {
        return names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ");
    }
    let kinds: Vec<&str> = match &value["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect(),
        _ => vec!["any"],
    };
    let named = kinds.iter().map(|name| match *name {
        "string" => "text".to_owned(),
        "integer" => "whole number".to_owned(),
        "boolean" => "`true` or `false`".to_owned(),
        "array" => format!("list of {}", kind(&value["items"])),
        "object" => match &value["additionalProperties"] {
            values if values.is_object() => format!("table of {}", kind(values)),
            _ => "table".to_owned(),
        },
        other => other.to_owned(),
    });
    named.collect::<Vec<_>>().join(" or ")
}
