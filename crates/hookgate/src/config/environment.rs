//! Overrides from the environment: `HOOKGATE_SERVER__LISTEN` is `server.listen`, `HOOKGATE_ROUTES__0__WHEN` is
//! `routes[0].when`.
//!
//! A value is taken as text, whatever it looks like, so that a token of digits stays what it is; only one that begins with
//! `[` or `{` is read as TOML. A variable without `__` is not ours: Kubernetes sets `HOOKGATE_PORT` and the like for a
//! Service of that name.

use figment::{
    Figment, Metadata, Profile, Provider,
    value::{Dict, Map, Value},
};

const PREFIX: &str = "HOOKGATE_";
const SEPARATOR: &str = "__";

/// Merges the overrides among `variables` into `figment`.
pub(super) fn apply(figment: Figment, variables: impl Iterator<Item = (String, String)>) -> Figment {
    let mut overrides: Vec<(String, String)> =
        variables.filter(|(name, _)| name.strip_prefix(PREFIX).is_some_and(|rest| rest.contains(SEPARATOR))).collect();
    // Whole tables before their parts, whatever order the operating system gives them in.
    overrides.sort();
    overrides.into_iter().fold(figment, |figment, (name, text)| {
        let base = figment.data().ok().and_then(|mut profiles| profiles.remove(&Profile::Default)).unwrap_or_default();
        let path = name[PREFIX.len()..].to_lowercase();
        let path: Vec<&str> = path.split(SEPARATOR).collect();
        let data = match set(Some(&Value::from(base)), &path, parse(&text)) {
            Value::Dict(_, table) => table,
            _ => Dict::new(),
        };
        figment.merge(Override { name, data })
    })
}

/// One variable as a provider of its own, so that a problem can name it.
struct Override {
    name: String,
    data: Dict,
}

impl Provider for Override {
    fn metadata(&self) -> Metadata {
        Metadata::named(format!("environment variable {}", self.name))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.data.clone()))
    }
}

fn parse(text: &str) -> Value {
    let plain = || Value::from(text);
    if !text.starts_with(['[', '{']) {
        return plain();
    }
    let table = toml::from_str::<toml::Table>(&format!("value = {text}"));
    table.ok().and_then(|mut table| Value::serialize(table.remove("value")).ok()).unwrap_or_else(plain)
}

/// `base` with `value` at `path`, pared down to what has to be merged: of tables only the path, of lists all items, since
/// figment replaces lists as a whole.
fn set(base: Option<&Value>, path: &[&str], value: Value) -> Value {
    let Some((first, rest)) = path.split_first() else { return value };
    match (base, first.parse::<usize>()) {
        (Some(Value::Array(tag, items)), Ok(place)) if place <= items.len() => {
            let mut items = items.clone();
            let item = set(items.get(place), rest, value);
            match items.get_mut(place) {
                Some(existing) => merge(existing, item),
                None => items.push(item),
            }
            Value::Array(*tag, items)
        }
        _ => {
            let below = base.and_then(|base| super::read::child(base, first));
            Value::from(Dict::from([((*first).to_owned(), set(below, rest, value))]))
        }
    }
}

/// Puts `new` over `existing`, table by table.
fn merge(existing: &mut Value, new: Value) {
    match (existing, new) {
        (Value::Dict(_, existing), Value::Dict(_, new)) => {
            for (key, value) in new {
                match existing.get_mut(&key) {
                    Some(child) => merge(child, value),
                    None => {
                        existing.insert(key, value);
                    }
                }
            }
        }
        (existing, new) => *existing = new,
    }
}
