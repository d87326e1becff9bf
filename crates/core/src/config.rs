//! Value types of the configuration: durations and sizes with units, counts, and the problems found in them.
//!
//! Every type reads a string too, since an environment variable is always text.

use std::{borrow::Cow, fmt, marker::PhantomData, str::FromStr, time::Duration};

use bytesize::ByteSize;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Something in the configuration that has to be mended before hookgate can start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key at fault, in the form `sources.openclaw.verify[0].secrets`.
    pub key: String,
    /// What is wrong and how to mend it, as a lower-case fragment.
    pub message: String,
}

impl Problem {
    /// A problem with the value at `key`.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }

    /// The same problem, seen from the table `parent` in which [`Self::key`] stands.
    #[must_use]
    pub fn within(mut self, parent: &str) -> Self {
        let joint = if self.key.is_empty() || self.key.starts_with('[') { "" } else { "." };
        self.key = format!("{parent}{joint}{}", self.key);
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

/// A name that is none, with the one that was probably meant, or all that there are.
pub fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let distance = |candidate: &&&str| strsim::damerau_levenshtein(name, candidate);
    let nearest = known.iter().min_by_key(distance).filter(|candidate| distance(candidate) <= 1 + name.len() / 3);
    match nearest {
        Some(nearest) => format!("there is no {what} {name:?}; did you mean {nearest:?}?"),
        None if known.is_empty() => format!("there is no {what} {name:?}"),
        None => format!("there is no {what} {name:?}; known: {}", known.join(", ")),
    }
}

/// Gives `$type` a JSON Schema by hand, since serde's derive does not read it.
macro_rules! schema {
    ($type:ty, $name:literal, $schema:tt) => {
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!($schema)
            }
        }
    };
}
pub(crate) use schema;

/// A number of bytes, written with a unit: `"2 MiB"`, `"64KiB"`, `"1 GB"`, or a plain number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteLimit(pub u64);

impl ByteLimit {
    /// `count` mebibytes.
    pub const fn mib(count: u64) -> Self {
        Self(count * 1024 * 1024)
    }
}

impl fmt::Display for ByteLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only an exact rendering may be shown: the text can be read back as configuration.
        const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match UNITS.iter().find(|(size, _)| self.0 >= *size && self.0.is_multiple_of(*size)) {
            Some((size, unit)) => write!(f, "{} {unit}", self.0 / size),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl FromStr for ByteLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<ByteSize>() {
            Ok(size) => Ok(Self(size.as_u64())),
            Err(_) => Err(format!("{text:?} is not a size; write a number and a unit, like \"2 MiB\" or \"512 KiB\"")),
        }
    }
}

impl<'de> Deserialize<'de> for ByteLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Lenient { expected: "a size like \"2 MiB\"", parse: |text| text.parse() })
    }
}

impl Serialize for ByteLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

schema!(ByteLimit, "Size", {
    "type": ["string", "integer"],
    "description": "A number of bytes with a unit, like \"2 MiB\", \"64KiB\" or \"1 GB\"; without one it is bytes.",
});

/// What stands for a duration in the JSON Schema, where [`duration`] reads it.
#[derive(Debug)]
pub struct DurationText(());

schema!(DurationText, "Duration", {
    "type": "string",
    "description": "A span of time with its unit, like \"2500ms\", \"10s\", \"5m\" or \"24h\". A bare number is refused.",
});

/// Reads and writes a [`Duration`] with its unit, like `"2500ms"` or `"24h"`; for `#[serde(with = "…")]`.
///
/// A bare number is refused: whether it means seconds or milliseconds is the commonest mistake in such files.
pub mod duration {
    use super::{Deserializer, Duration, Lenient, Serializer};

    /// # Errors
    /// When the value is no duration with a unit.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_any(Lenient { expected: "a duration like \"2500ms\"", parse })
    }

    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    /// # Errors
    /// When `text` is no duration with a unit.
    pub fn parse(text: &str) -> Result<Duration, String> {
        humantime::parse_duration(text).map_err(|_| {
            format!("{text:?} is not a duration; write a number and a unit, like \"2500ms\", \"10s\" or \"24h\"")
        })
    }
}

/// The same for a duration that may be absent.
pub mod optional_duration {
    use super::{Deserializer, Duration, Serializer, duration};

    /// # Errors
    /// When the value is no duration with a unit.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        duration::deserialize(deserializer).map(Some)
    }

    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => duration::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }
}

/// One value, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrList<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for TextOrList<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one text, or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany<T>, E> {
                T::deserialize(de::value::StrDeserializer::new(text)).map(|value| OneOrMany(vec![value]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<OneOrMany<T>, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(OneOrMany)
            }
        }
        deserializer.deserialize_any(TextOrList(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
    }
}

/// Reads any scalar as the text that the operator wrote.
pub(crate) fn text<'de, D: Deserializer<'de>>(expected: &'static str, deserializer: D) -> Result<String, D::Error> {
    deserializer.deserialize_any(Lenient { expected, parse: |text| Ok(text.to_owned()) })
}

/// Reads a count, also from the text of an environment variable; for `#[serde(deserialize_with = "…")]`.
///
/// # Errors
/// When the value is not a whole number from 1 up.
pub fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    deserializer.deserialize_any(Lenient {
        expected: "a whole number from 1 up",
        parse: |text| match text.replace('_', "").parse() {
            Ok(0) | Err(_) => Err(format!("{text:?} is not a whole number from 1 up")),
            Ok(count) => Ok(count),
        },
    })
}

/// Reads a count that may be absent; for `#[serde(deserialize_with = "…")]`.
///
/// # Errors
/// As [`count`].
pub fn optional_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    count(deserializer).map(Some)
}

/// Reads a yes or no, also from the text of an environment variable; for `#[serde(deserialize_with = "…")]`.
///
/// # Errors
/// When the value is neither `true` nor `false`.
pub fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    deserializer.deserialize_any(Lenient {
        expected: "true or false",
        parse: |text| text.parse().map_err(|_| format!("{text:?} is neither true nor false")),
    })
}

/// Reads a part of a whole, from 0 to 1, also from the text of an environment variable; for `#[serde(deserialize_with = "…")]`.
///
/// # Errors
/// When the value is not a number from 0 to 1.
pub fn part<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    deserializer.deserialize_any(Part)
}

struct Part;

impl de::Visitor<'_> for Part {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number from 0 to 1")
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<f64, E> {
        match (0.0..=1.0).contains(&value) {
            true => Ok(value),
            false => Err(E::custom(format!("{value} is not a number from 0 to 1"))),
        }
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<f64, E> {
        self.visit_f64(value as f64)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<f64, E> {
        self.visit_f64(value as f64)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<f64, E> {
        self.visit_f64(text.parse().map_err(|_| E::custom(format!("{text:?} is not a number from 0 to 1")))?)
    }
}

/// Takes any scalar as the text that the operator wrote, and parses that.
struct Lenient<T> {
    expected: &'static str,
    parse: fn(&str) -> Result<T, String>,
}

impl<T> de::Visitor<'_> for Lenient<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<T, E> {
        self.visit_str(if value { "true" } else { "false" })
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_carry_units() {
        for (text, bytes) in [("2 MiB", 2 << 20), ("64KiB", 64 << 10), ("1 kB", 1000), ("17", 17)] {
            assert_eq!(text.parse(), Ok(ByteLimit(bytes)), "{text}");
        }
        assert!("two".parse::<ByteLimit>().is_err());
    }

    #[test]
    fn a_printed_size_reads_back_exactly() {
        for bytes in [1, 1023, 1024, 2 << 20, (2 << 20) + 1, 3 << 30] {
            assert_eq!(ByteLimit(bytes).to_string().parse(), Ok(ByteLimit(bytes)));
        }
    }

    #[test]
    fn a_duration_without_a_unit_is_refused() {
        let read = |text: &str| duration::deserialize(de::value::StrDeserializer::<de::value::Error>::new(text));
        assert_eq!(read("2500ms"), Ok(Duration::from_millis(2500)));
        assert!(read("2500").is_err());
        let number = de::value::U64Deserializer::<de::value::Error>::new(2500);
        assert!(duration::deserialize(number).is_err());
    }

    #[test]
    fn counts_and_flags_are_read_from_environment_text() {
        let text = |text| de::value::StrDeserializer::<de::value::Error>::new(text);
        assert_eq!(count(text("200_000")), Ok(200_000));
        assert!(count(text("0")).is_err());
        assert_eq!(flag(text("false")), Ok(false));
        assert!(flag(text("no")).is_err());
        assert_eq!(part(text("0.25")), Ok(0.25));
        assert!(["1.1", "-0.1", "NaN", "half"].iter().all(|wrong| part(text(wrong)).is_err()));
    }

    #[test]
    fn a_problem_is_seen_from_its_parent_table() {
        let problem = Problem::new("[0].secrets", "is empty").within("verify").within("sources.a");
        assert_eq!(problem.to_string(), "sources.a.verify[0].secrets: is empty");
    }
}
