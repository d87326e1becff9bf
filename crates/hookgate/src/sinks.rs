//! The sinks that exist: for a closed set an enum and a `match` are the registry, and the compiler checks it.

use std::{sync::Arc, time::Duration};

use figment::value::Value;
use hookgate_core::{
    config::{Problem, unknown},
    event::SinkId,
    limits::Deadline,
    observe::{Chain, Observer, Unobserved},
    route::Allowed,
    secret::ResolveSecret,
    sink::{Addressing, Sink, Target},
};
use hookgate_sink_amqp as amqp;
use hookgate_sink_file as file;
#[cfg(feature = "kafka")]
use hookgate_sink_kafka as kafka;
use hookgate_sink_nats as nats;
use hookgate_sink_stdout as stdout;
use schemars::JsonSchema;
use serde::Serialize;

use crate::config::Reader;

/// A `[sinks.<name>]` table; `type` says which kind.
#[derive(Debug, JsonSchema, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum SinkConfig {
    /// The exchanges of a RabbitMQ.
    Amqp(Box<amqp::Config>),
    /// Files, one JSON line for each event.
    File(file::Config),
    /// The topics of an Apache Kafka. Only in builds with `--features kafka`.
    #[cfg(feature = "kafka")]
    Kafka(Box<kafka::Config>),
    /// A JetStream stream of NATS.
    Nats(Box<nats::Config>),
    /// Standard output, one JSON line for each event.
    Stdout(stdout::Config),
}

/// How long a broker may take to answer an inspection.
const INSPECTION_LIMIT: Duration = Duration::from_secs(5);

/// What `type` can be.
const TYPES: &[&str] = &["amqp", "file", "kafka", "nats", "stdout"];

impl SinkConfig {
    /// Reads the table at `key`.
    pub(crate) fn read(reader: &mut Reader<'_>, key: &str, table: &Value) -> Option<Self> {
        let Value::Dict(tag, fields) = table else {
            reader.problem(Problem::new(key, "is not a table"));
            return None;
        };
        let mut fields = fields.clone();
        let kind = fields.remove("type");
        let rest = Value::Dict(*tag, fields);
        match kind.as_ref().and_then(Value::as_str) {
            Some("amqp") => reader.value(key, &rest).map(|config| Self::Amqp(Box::new(config))),
            Some("file") => reader.value(key, &rest).map(Self::File),
            #[cfg(feature = "kafka")]
            Some("kafka") => reader.value(key, &rest).map(|config| Self::Kafka(Box::new(config))),
            #[cfg(not(feature = "kafka"))]
            Some("kafka") => {
                let message = "is not in this build of hookgate; build it with --features kafka";
                reader.problem(Problem::new(format!("{key}.type"), message));
                None
            }
            Some("nats") => reader.value(key, &rest).map(|config| Self::Nats(Box::new(config))),
            Some("stdout") => reader.value(key, &rest).map(Self::Stdout),
            Some(other) => {
                reader.problem(Problem::new(format!("{key}.type"), unknown("sink type", other, TYPES)));
                None
            }
            None => {
                reader
                    .problem(Problem::new(format!("{key}.type"), format!("is missing; one of: {}", TYPES.join(", "))));
                None
            }
        }
    }

    /// What is wrong with it beyond its form; keys are relative to its table.
    pub(crate) fn check(&self) -> Vec<Problem> {
        let mut problems = match self {
            Self::File(_) | Self::Stdout(_) => Vec::new(),
            Self::Amqp(config) => config.check(),
            #[cfg(feature = "kafka")]
            Self::Kafka(config) => config.check(),
            Self::Nats(config) => config.check(),
        };
        problems.extend(self.allow().iter().enumerate().filter_map(|(place, pattern)| {
            let message = Allowed::parse(pattern, self.addressing()).err()?;
            Some(Problem::new(format!("allow[{place}]"), message))
        }));
        problems
    }

    /// Patterns of where routes may publish to; empty for anywhere.
    pub(crate) fn allow(&self) -> &[String] {
        match self {
            Self::File(_) | Self::Stdout(_) => &[],
            Self::Amqp(config) => &config.allow,
            #[cfg(feature = "kafka")]
            Self::Kafka(config) => &config.allow,
            Self::Nats(config) => &config.allow,
        }
    }

    /// What its destinations name.
    pub(crate) fn addressing(&self) -> Addressing {
        match self {
            Self::Amqp(_) => amqp::ADDRESSING,
            Self::File(_) => file::ADDRESSING,
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => kafka::ADDRESSING,
            Self::Nats(_) => nats::ADDRESSING,
            Self::Stdout(_) => stdout::ADDRESSING,
        }
    }

    /// Most messages that it is given at once.
    pub(crate) fn max_in_flight(&self) -> usize {
        match self {
            Self::Amqp(config) => config.max_in_flight,
            Self::File(config) => config.max_in_flight,
            #[cfg(feature = "kafka")]
            Self::Kafka(config) => config.max_in_flight,
            Self::Nats(config) => config.max_in_flight,
            Self::Stdout(config) => config.max_in_flight,
        }
    }

    /// Whether workers share it: it has threads of its own through which all that is published goes, and what they are given stays
    /// in its order.
    pub(crate) fn is_one_for_all_workers(&self) -> bool {
        match self {
            Self::File(_) | Self::Stdout(_) => true,
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => true,
            Self::Amqp(_) | Self::Nats(_) => false,
        }
    }

    /// Whether it needs something that a process can have but once, and that the sink of `before` has.
    pub(crate) fn is_held_by(&self, before: &Self) -> bool {
        matches!((self, before), (Self::File(now), Self::File(before)) if now.dir == before.dir)
    }

    /// Its `type`.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Amqp(_) => "amqp",
            Self::File(_) => "file",
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => "kafka",
            Self::Nats(_) => "nats",
            Self::Stdout(_) => "stdout",
        }
    }

    /// Looks whether events could be published to `targets` now, and changes nothing; says what is unwise about them. `Err`
    /// says what would stop them.
    pub(crate) async fn inspect(
        &self,
        id: SinkId,
        targets: &[Target],
        resolve: &mut ResolveSecret<'_>,
    ) -> Result<Vec<String>, String> {
        match self {
            // Its files belong to one process, which may be running.
            Self::File(config) => {
                file::inspect(&id, config).map(|()| Vec::new()).map_err(|error| Chain(&error).to_string())
            }
            // There is nothing to ask, and what is checked here prints to the same place.
            Self::Stdout(_) => Ok(Vec::new()),
            _ => {
                let sink = self.connect(id, resolve, Arc::new(Unobserved)).await;
                let sink = sink.map_err(|error| Chain(&*error).to_string())?;
                let deadline = Deadline::after(INSPECTION_LIMIT);
                let reviewed = match sink.probe(deadline).await {
                    Ok(()) => sink.review(targets, deadline).await,
                    Err(error) => Err(error),
                };
                sink.close(Deadline::after(INSPECTION_LIMIT)).await;
                reviewed.map_err(|error| Chain(&error).to_string())
            }
        }
    }

    /// Sets the sink up. A broker that is down is no error: the sink connects when it can.
    pub(crate) async fn connect(
        &self,
        id: SinkId,
        resolve: &mut ResolveSecret<'_>,
        observer: Arc<dyn Observer>,
    ) -> anyhow::Result<Arc<dyn Sink>> {
        Ok(match self {
            Self::Amqp(config) => Arc::new(amqp::connect(id, config, resolve, observer).await?),
            Self::File(config) => Arc::new(file::connect(id, config, observer).await?),
            #[cfg(feature = "kafka")]
            Self::Kafka(config) => Arc::new(kafka::connect(id, config, resolve, observer).await?),
            Self::Nats(config) => Arc::new(nats::connect(id, config, resolve, observer).await?),
            Self::Stdout(config) => Arc::new(stdout::connect(id, config, observer)?),
        })
    }
}
