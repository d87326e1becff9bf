//! The configuration: one TOML file, overridden by the environment, read strictly, with all problems told at once.
//!
//! The structs stand beside what they configure, in the crates that use them. Here they are put together and figment's
//! behaviour is fenced in: its own environment provider would read `12345` as a number and Kubernetes' service links as
//! keys, and serde would stop at the first problem.

mod effective;
mod environment;
mod place;
mod read;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
    time::Duration,
};

use figment::{Figment, value::Value};
use hookgate_core::{
    config::{self, Problem},
    intake::Rate,
    route::{RouteConfig, UnroutedConfig},
    source::SourceConfig,
};
use hookgate_http::{AdminConfig, OutboundConfig, ServerConfig};
use hookgate_redis as redis;
use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::{Deserialize, Serialize};

use self::place::{Place, Text};
pub(crate) use self::read::Reader;
use crate::{
    sinks::SinkConfig,
    spool::SpoolConfig,
    telemetry::{AuditConfig, TracesConfig},
};

/// The configuration of hookgate.
#[derive(Debug, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The port that senders reach.
    #[schemars(default)]
    pub(crate) server: ServerConfig,
    /// The port for probes and metrics.
    #[schemars(default)]
    pub(crate) admin: AdminConfig,
    /// What hookgate itself asks for.
    #[schemars(default)]
    pub(crate) outbound: OutboundConfig,
    /// What is logged, and how.
    #[schemars(default)]
    pub(crate) log: LogConfig,
    /// How repeats are told.
    #[schemars(default)]
    pub(crate) dedup: DedupConfig,
    /// Where messages wait that a broker does not take in time. Without it their senders are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) spool: Option<SpoolConfig>,
    /// A trail of what became of each event. Without it there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audit: Option<AuditConfig>,
    /// Where spans are exported to, over OTLP. Only in builds with `--features otlp`. Without it there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) traces: Option<TracesConfig>,
    /// Who sends, by name. A name has only a-z, 0-9, _ and -.
    #[schemars(default)]
    pub(crate) sources: BTreeMap<String, SourceConfig>,
    /// Where events can go, by name. A name has only a-z, 0-9, _ and -.
    #[schemars(default)]
    pub(crate) sinks: BTreeMap<String, SinkConfig>,
    /// Which events go where. Every route that matches adds its destinations.
    #[schemars(default)]
    pub(crate) routes: Vec<RouteConfig>,
    /// What becomes of an event that no route takes.
    #[schemars(default)]
    pub(crate) unrouted: UnroutedConfig,
    /// Where each value was set, for problems that are found later.
    #[serde(skip)]
    pub(crate) origins: Origins,
}

/// The keys of `[server]` that take effect in a running process.
const SERVER_KEYS_LIVE: &[&str] = &["public_url", "trusted_proxies", "max_body", "reply_deadline"];

/// The tables that do as a whole.
const TABLES_LIVE: &[&str] = &["sources", "sinks", "routes", "unrouted"];

impl Config {
    /// The SHA-256 of the file that it was read from.
    pub(crate) fn content(&self) -> [u8; 32] {
        self.origins.file.digest()
    }

    /// All of it as it was written, secrets included, to be compared.
    pub(crate) fn as_written(&self) -> &Value {
        &self.origins.root
    }

    /// The table of the sink `name` as it was written, secrets included.
    pub(crate) fn sink_as_written(&self, name: &str) -> Option<&Value> {
        read::child(read::child(&self.origins.root, "sinks")?, name)
    }

    /// The keys that `before` has otherwise and that take effect at the next start only.
    pub(crate) fn needing_restart(&self, before: &Value) -> Vec<String> {
        let now = &self.origins.root;
        let mut keys = Vec::new();
        for table in read::keys(now).chain(read::keys(before)).filter(|table| !TABLES_LIVE.contains(&table.as_str())) {
            let (now, before) = (read::child(now, table), read::child(before, table));
            let of =
                |table: Option<&'_ Value>| table.into_iter().flat_map(read::keys).cloned().collect::<BTreeSet<_>>();
            for key in of(now).union(&of(before)) {
                let value = |table: Option<&'_ Value>| table.and_then(|table| read::child(table, key)).cloned();
                let live = table == "server" && SERVER_KEYS_LIVE.contains(&key.as_str());
                let key = format!("{table}.{key}");
                if !live && value(now) != value(before) && !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
        keys
    }
}

/// The `[dedup]` table.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DedupConfig {
    /// How long an accepted event is remembered. Default: 24 h, longer than most senders repeat an event.
    #[serde(with = "config::duration")]
    #[schemars(with = "config::DurationText")]
    pub(crate) window: Duration,
    /// How many accepted events each process remembers by itself; past that the oldest are forgotten first. Default:
    /// 200 000, about 10 MB.
    #[serde(deserialize_with = "config::count")]
    pub(crate) memory_entries: usize,
    /// The Redis in which replicas share what they accepted. Default: none; each process is on its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) redis: Option<redis::Config>,
}

impl Default for DedupConfig {
    fn default() -> Self {
        Self { window: Duration::from_secs(24 * 60 * 60), memory_entries: 200_000, redis: None }
    }
}

/// The `[log]` table.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LogConfig {
    /// `"json"` for machines, `"pretty"` for people. Default: `"auto"`, pretty where stderr is a terminal.
    pub(crate) format: LogFormat,
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or directives like `"info,hookgate=debug"`. At `debug`
    /// there is one line for each event. Default: `"info"`.
    pub(crate) level: LogLevel,
    /// At which level there is a line for each event: `"debug"`, or `"info"`. Default: `"debug"`, so that by default there is
    /// none; metrics count them all, and the audit trail is for looking one up.
    pub(crate) events: EventLevel,
    /// Most of these lines at `"info"`, like `"100/s"`; the next one says how many were left out. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) events_max: Option<Rate>,
}

/// The level of the lines for events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EventLevel {
    /// Only with `level = "debug"`.
    #[default]
    Debug,
    /// With `level = "info"` too.
    Info,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    #[default]
    Auto,
    Json,
    Pretty,
}

/// Directives of [`tracing_subscriber::EnvFilter`], checked when they are read.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct LogLevel(pub(crate) String);

impl Default for LogLevel {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl TryFrom<String> for LogLevel {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match tracing_subscriber::EnvFilter::builder().parse(&text) {
            Ok(_) => Ok(Self(text)),
            Err(_) => Err(format!("{text:?} is not a log level; write \"info\", \"debug\" or \"info,hookgate=debug\"")),
        }
    }
}

impl From<LogLevel> for String {
    fn from(level: LogLevel) -> Self {
        level.0
    }
}

/// The JSON Schema of the config file. Draft 7, which editors for TOML read.
pub(crate) fn schema() -> Schema {
    SchemaSettings::draft07().into_generator().into_root_schema_for::<Config>()
}

/// Where values were set.
pub(crate) struct Origins {
    figment: Figment,
    root: Value,
    file: Text,
}

/// Where one value was set.
enum Origin {
    File,
    /// An environment variable, as it is told.
    Elsewhere(String),
}

impl fmt::Debug for Origins {
    /// Shows nothing: the values as they were read have the secrets in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origins").finish_non_exhaustive()
    }
}

impl Origins {
    /// What set the value at `path`, or the nearest table around it that was set at all.
    fn of(&self, path: &[&str]) -> Option<Origin> {
        let mut found = &self.root;
        for part in path {
            match read::child(found, part) {
                Some(child) => found = child,
                None => break,
            }
        }
        let metadata = self.figment.get_metadata(found.tag())?;
        Some(match metadata.source {
            Some(_) => Origin::File,
            None => Origin::Elsewhere(metadata.name.to_string()),
        })
    }

    /// `problems` with where each was set.
    pub(crate) fn locate(&self, problems: Vec<Problem>) -> Problems {
        let locate = |Problem { key, message }: Problem| {
            let path: Vec<&str> = parts(&key).collect();
            let (set_in, place) = match self.of(&path) {
                Some(Origin::Elsewhere(name)) => (Some(name), None),
                Some(Origin::File) | None => (Some(self.file.path().to_owned()), self.file.find(&path, &message)),
            };
            Located { key, message, set_in, place }
        };
        let mut located: Vec<Located> = problems.into_iter().map(locate).collect();
        // As somebody meets them who reads the file.
        located
            .sort_by_key(|located| located.place.as_ref().map_or((usize::MAX, 0), |place| (place.line, place.column)));
        Problems(located)
    }
}

/// `a[0].b` as `a`, `0`, `b`.
fn parts(key: &str) -> impl Iterator<Item = &str> {
    key.split(['.', '[']).map(|part| part.trim_end_matches(']')).filter(|part| !part.is_empty())
}

/// All that is wrong with a config. Never empty.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Problems(Vec<Located>);

#[derive(Debug, Serialize)]
struct Located {
    key: String,
    message: String,
    /// The file, or the environment variable.
    #[serde(skip_serializing_if = "Option::is_none")]
    set_in: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    place: Option<Place>,
}

impl Problems {
    fn one(key: &str, message: String) -> Self {
        Self(vec![Located { key: key.to_owned(), message, set_in: None, place: None }])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "" } else { "s" };
        writeln!(f, "hookgate: the configuration has {} problem{plural}", self.0.len())?;
        for Located { key, message, set_in, place } in &self.0 {
            match (set_in, place) {
                (Some(file), Some(place)) => write!(f, "{file}:{}:{}: ", place.line, place.column)?,
                (Some(origin), None) => write!(f, "{origin}: ")?,
                (None, _) => {}
            }
            match key.is_empty() {
                true => writeln!(f, "{message}")?,
                false => writeln!(f, "{key}: {message}")?,
            }
            if let Some(place) = place {
                write!(f, "{place}")?;
            }
        }
        Ok(())
    }
}

/// Reads the config from `file` and from those variables of `environment` that override it.
///
/// # Errors
/// Every problem found.
pub(crate) fn load(file: &Path, environment: impl Iterator<Item = (String, String)>) -> Result<Config, Problems> {
    let path = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|error| {
        let advice = "give the path with --config";
        Problems::one(&path, format!("cannot be read: {error}; {advice}"))
    })?;
    let text = Text::new(path.clone(), text);
    text.parse().map_err(|(message, place)| {
        Problems(vec![Located { key: String::new(), message, set_in: Some(path.clone()), place }])
    })?;
    let figment = environment::apply(Figment::from(&text), environment);
    let root: Value = figment.extract().map_err(|error| Problems::one(&path, error.kind.to_string()))?;
    parse(Origins { figment, root, file: text })
}

fn parse(origins: Origins) -> Result<Config, Problems> {
    let mut reader = Reader::new(&origins.root);
    let server = reader.table("server");
    let admin = reader.table("admin");
    let outbound = reader.table("outbound");
    let log = reader.table("log");
    let dedup = reader.table("dedup");
    let spool = reader.optional_table("spool");
    let audit = reader.optional_table("audit");
    let traces = reader.optional_table("traces");
    if cfg!(not(feature = "otlp")) && read::child(&origins.root, "traces").is_some() {
        reader.problem(Problem::new("traces", "is not in this build of hookgate; build it with --features otlp"));
    }
    let sources = reader.named_tables("sources", |reader, key, table| reader.value::<SourceConfig>(key, table));
    let sinks = reader.named_tables("sinks", SinkConfig::read);
    let routes = reader.list("routes");
    let unrouted = reader.table("unrouted");
    let problems = reader.finish();
    match (server, admin, outbound, log, dedup, spool, audit, traces, sources, sinks, routes, unrouted) {
        (
            Some(server),
            Some(admin),
            Some(outbound),
            Some(log),
            Some(dedup),
            Some(spool),
            Some(audit),
            Some(traces),
            Some(sources),
            Some(sinks),
            Some(routes),
            Some(unrouted),
        ) if problems.is_empty() => Ok(Config {
            server,
            admin,
            outbound,
            log,
            dedup,
            spool,
            audit,
            traces,
            sources,
            sinks,
            routes,
            unrouted,
            origins,
        }),
        _ => Err(origins.locate(problems)),
    }
}

// All of it has to be there.
#[cfg(all(test, feature = "kafka", feature = "otlp"))]
mod generated;
#[cfg(test)]
mod tests;
