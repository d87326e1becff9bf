//! Where in the config file a key stands, shown without any value that the message beside it does not tell anyway: whatever
//! is wrong with a file, there may be a secret on the line.

use std::{borrow::Cow, fmt, ops::Range};

use figment::{
    Metadata, Profile, Provider,
    error::Kind,
    value::{Dict, Map},
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use toml::{
    Spanned,
    de::{DeTable, DeValue, Error},
};

/// The file as it was read.
pub(super) struct Text {
    path: String,
    text: String,
}

impl Provider for &Text {
    fn metadata(&self) -> Metadata {
        Metadata::from("file", self.path.as_str())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        // The text of a TOML error has the line in it, where there may be a secret.
        let table: Dict = toml::from_str(&self.text).map_err(|error| Kind::Message(error.message().to_owned()))?;
        Ok(Profile::Default.collect(table))
    }
}

/// A place in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Place {
    /// Counted from 1.
    pub(super) line: usize,
    /// Counted from 1, in characters.
    pub(super) column: usize,
    /// The line, with `…` for what is not shown.
    excerpt: String,
    /// What is meant, as columns of the excerpt from 0.
    #[serde(skip)]
    marked: Range<usize>,
}

impl Text {
    /// Keeps `text`, the content of `path`.
    pub(super) fn new(path: String, text: String) -> Self {
        Self { path, text }
    }

    /// The SHA-256 of the text.
    pub(super) fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.text).into()
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Whether it is TOML.
    ///
    /// # Errors
    /// The first syntax error, without what stands there, and where it is.
    pub(super) fn parse(&self) -> Result<(), (String, Option<Place>)> {
        let (_, errors) = DeTable::parse_recoverable(&self.text);
        let place = |error: &Error| error.span().map_or(usize::MAX, |span| span.start);
        // Those after the first come of it, more often than not.
        let Some(first) = errors.into_iter().min_by_key(place) else { return Ok(()) };
        let mut message = first.message().lines().collect::<Vec<_>>().join(", ");
        let place = first.span().map(|span| {
            if message == "duplicate key" {
                message = format!("the key {} stands twice", &self.text[span.clone()]);
            }
            let (line, column, _) = self.line_at(span.start);
            Place { line, column, excerpt: String::new(), marked: 0..0 }
        });
        Err((message, place))
    }

    /// Where `key`, or the nearest table around it, stands; with an excerpt that shows what `message` tells.
    pub(super) fn find(&self, key: &[&str], message: &str) -> Option<Place> {
        let root = DeTable::parse(&self.text).ok()?;
        let span = find(root.get_ref(), key)?;
        let (line, column, bounds) = self.line_at(span.start);
        let mut leaves = Vec::new();
        for (_, value) in root.get_ref() {
            collect(value, &mut leaves);
        }
        let mut excerpt = Excerpt { text: String::new(), marked: 0..0, span };
        let mut at = bounds.start;
        for (leaf, content) in leaves {
            let (from, to) = (leaf.start.max(bounds.start), leaf.end.min(bounds.end));
            if from >= to || from < at {
                continue;
            }
            if !excerpt.plain(&self.text[at..from], at) {
                at = bounds.end;
                break;
            }
            let harmless = message.contains(&format!("{content:?}")) || matches!(&*content, "true" | "false");
            let told = harmless && leaf.end <= bounds.end;
            let shown = if told { &self.text[from..to] } else { "…" };
            excerpt.value(shown, from, to);
            at = to;
        }
        excerpt.plain(&self.text[at..bounds.end], at);
        let Excerpt { text, marked, .. } = excerpt;
        let text = text.trim_end();
        let end = marked.end.min(text.chars().count());
        Some(Place { line, column, marked: marked.start.min(end)..end, excerpt: text.to_owned() })
    }

    /// Line and column of the byte `at`, from 1, and the bytes of the line.
    fn line_at(&self, at: usize) -> (usize, usize, Range<usize>) {
        let at = at.min(self.text.len());
        let start = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let end = self.text[start..].find('\n').map_or(self.text.len(), |length| start + length);
        let line = self.text[..start].matches('\n').count() + 1;
        (line, self.text[start..at].chars().count() + 1, start..end)
    }
}

/// A line that is being copied.
struct Excerpt {
    text: String,
    marked: Range<usize>,
    /// What is to be marked, in bytes of the file.
    span: Range<usize>,
}

impl Excerpt {
    /// Adds what is no value, up to a comment; `false` when there was one.
    fn plain(&mut self, text: &str, at: usize) -> bool {
        let end = text.find('#').unwrap_or(text.len());
        for (offset, c) in text[..end].char_indices() {
            self.place(at + offset, at + offset + c.len_utf8(), |excerpt| excerpt.push(c));
        }
        end == text.len()
    }

    /// Adds what stands for a value.
    fn value(&mut self, shown: &str, from: usize, to: usize) {
        self.place(from, to, |excerpt| excerpt.push_str(shown));
    }

    fn place(&mut self, from: usize, to: usize, push: impl FnOnce(&mut String)) {
        let before = self.text.chars().count();
        push(&mut self.text);
        if from < self.span.end && to > self.span.start {
            if self.marked.is_empty() {
                self.marked.start = before;
            }
            self.marked.end = self.text.chars().count();
        }
    }
}

/// From the beginning of the last key of `path` that is there to the end of its value.
fn find(table: &DeTable<'_>, path: &[&str]) -> Option<Range<usize>> {
    let (first, rest) = path.split_first()?;
    let (key, value) = table.iter().find(|(key, _)| key.get_ref() == first)?;
    let below = match value.get_ref() {
        DeValue::Table(table) => find(table, rest),
        DeValue::Array(items) => find_in(items, rest),
        _ => None,
    };
    // A table's own span is its header's, if it has one.
    let whole = match value.get_ref() {
        DeValue::Table(_) if value.span().start <= key.span().start => value.span(),
        _ => key.span().start..value.span().end,
    };
    Some(below.unwrap_or(whole))
}

fn find_in(items: &[Spanned<DeValue<'_>>], path: &[&str]) -> Option<Range<usize>> {
    let (first, rest) = path.split_first()?;
    let item = items.get(first.parse::<usize>().ok()?)?;
    let below = match item.get_ref() {
        DeValue::Table(table) => find(table, rest),
        DeValue::Array(items) => find_in(items, rest),
        _ => None,
    };
    Some(below.unwrap_or_else(|| item.span()))
}

/// Every value that has no other in it, in the order of the file, with its text as it is meant.
fn collect<'a>(value: &'a Spanned<DeValue<'_>>, leaves: &mut Vec<(Range<usize>, Cow<'a, str>)>) {
    match value.get_ref() {
        DeValue::Table(table) => table.iter().for_each(|(_, value)| collect(value, leaves)),
        DeValue::Array(items) => items.iter().for_each(|value| collect(value, leaves)),
        DeValue::String(text) => leaves.push((value.span(), Cow::Borrowed(text))),
        DeValue::Integer(number) => leaves.push((value.span(), number.to_string().into())),
        DeValue::Float(number) => leaves.push((value.span(), number.to_string().into())),
        DeValue::Boolean(yes) => leaves.push((value.span(), yes.to_string().into())),
        DeValue::Datetime(time) => leaves.push((value.span(), time.to_string().into())),
    }
    leaves.sort_by_key(|(span, _)| span.start);
}

impl fmt::Display for Place {
    /// The excerpt, with what is meant underlined; nothing where there is none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.excerpt.is_empty() {
            return Ok(());
        }
        writeln!(f, "{:>6} | {}", self.line, self.excerpt)?;
        let (before, marks) = (" ".repeat(self.marked.start), "^".repeat(self.marked.len().max(1)));
        writeln!(f, "       | {before}{marks}")
    }
}
