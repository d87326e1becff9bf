//! The config as it takes effect, value by value, with where each comes from.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::{Config, Origin};

/// Every value that takes effect, in the order of the keys.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Effective(Vec<Line>);

#[derive(Debug, Serialize)]
struct Line {
    key: String,
    value: Value,
    origin: String,
}

impl Config {
    /// The config with what presets fill in, and where each value comes from. Secrets are not in it.
    pub(crate) fn effective(&self) -> Effective {
        let written = serde_json::to_value(self).expect("a config is text, numbers and tables of them");
        let mut filled = written.clone();
        for (name, source) in &self.sources {
            filled["sources"][name] =
                serde_json::to_value(source.filled()).expect("a source is text, numbers and tables of them");
        }
        let mut lines = Vec::new();
        flatten(&mut Vec::new(), &filled, &mut |path, value| {
            let origin = self.origin_of(path, &written, value);
            lines.push(Line { key: super::read::render(path), value: value.clone(), origin });
        });
        Effective(lines)
    }

    fn origin_of(&self, path: &[String], written: &Value, value: &Value) -> String {
        let parts: Vec<&str> = path.iter().map(String::as_str).collect();
        if let Some(origin) = self.set_by(&parts) {
            return origin;
        }
        let ["sources", name, rest @ ..] = parts.as_slice() else { return "default".to_owned() };
        // The secrets of the preset's own schemes are written beside them.
        if let ["verify", _, "secrets", place @ ..] = rest
            && let Some(origin) = self.set_by(&[&["sources", name, "secrets"], place].concat())
        {
            return origin;
        }
        let here = parts.iter().try_fold(written, |value, part| match value {
            Value::Array(items) => items.get(part.parse::<usize>().ok()?),
            value => value.get(part),
        });
        match &self.sources[*name].preset {
            Some(preset) if here != Some(value) => format!("preset {preset}"),
            _ => "default".to_owned(),
        }
    }

    /// The file and line, or the variable, that set exactly the value at `path`.
    fn set_by(&self, path: &[&str]) -> Option<String> {
        path.iter().try_fold(&self.origins.root, |value, part| super::read::child(value, part))?;
        Some(match self.origins.of(path)? {
            Origin::Elsewhere(name) => name,
            Origin::File => match self.origins.file.find(path, "") {
                Some(place) => format!("{}:{}", self.origins.file.path(), place.line),
                None => self.origins.file.path().to_owned(),
            },
        })
    }
}

/// Calls `each` with every value that has no table in it.
fn flatten(path: &mut Vec<String>, value: &Value, each: &mut impl FnMut(&[String], &Value)) {
    let below: Vec<(String, &Value)> = match value {
        Value::Object(table) => table.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            items.iter().enumerate().map(|(place, value)| (place.to_string(), value)).collect()
        }
        _ => return each(path, value),
    };
    for (key, value) in below {
        path.push(key);
        flatten(path, value, each);
        path.pop();
    }
}

impl fmt::Display for Effective {
    /// One line of TOML for each value, with its origin as a comment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const COLUMN: usize = 60;
        for Line { key, value, origin } in &self.0 {
            let value = toml::Value::try_from(value).map_err(|_| fmt::Error)?;
            let setting = format!("{key} = {value}");
            writeln!(f, "{setting:<COLUMN$}  # {origin}")?;
        }
        Ok(())
    }
}
