//! `hookgate check`: everything that `run` would find out at its start, and a look at every broker.

use std::{fmt, time::SystemTime};

use serde::Serialize;

use crate::{
    assemble,
    config::{Config, Problems},
};

/// What is known about one source or sink.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Check {
    Source(SourceCheck),
    Sink(SinkCheck),
}

/// What is known about one source.
#[derive(Debug, Serialize)]
pub(crate) struct SourceCheck {
    source: String,
    /// The schemes as the config combines them.
    verify: String,
    /// What is allowed and unwise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// What is known about one sink.
#[derive(Debug, Serialize)]
pub(crate) struct SinkCheck {
    sink: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Check {
    pub(crate) fn is_ok(&self) -> bool {
        !matches!(self, Self::Sink(SinkCheck { problem: Some(_), .. }))
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(SourceCheck { source, verify, warnings }) => {
                write!(f, "ok      sources.{source} ({verify})")?;
                warnings.iter().try_for_each(|warning| write!(f, "\nWARNING sources.{source}: {warning}"))
            }
            Self::Sink(SinkCheck { sink, kind, problem: None }) => write!(f, "ok      sinks.{sink} ({kind})"),
            Self::Sink(SinkCheck { sink, kind, problem: Some(problem) }) => {
                write!(f, "FAILED  sinks.{sink} ({kind}): {problem}")
            }
        }
    }
}

/// Validates `config`, then looks at every sink.
pub(crate) async fn check(config: &Config) -> Result<Vec<Check>, Problems> {
    let mut parts = assemble::prepare(config)?;
    let mut results = Vec::new();
    for source in &parts.sources {
        let verifier = source.verifier();
        let (verify, warnings) = (verifier.summary(), source.warnings(SystemTime::now()));
        results.push(Check::Source(SourceCheck { source: source.id().name().to_owned(), verify, warnings }));
    }
    for (id, table) in assemble::sink_ids(config).into_iter().zip(config.sinks.values()) {
        let sink = id.name().to_owned();
        let problem = table.inspect(id, &mut |secret| parts.secrets.resolve(secret)).await.err();
        results.push(Check::Sink(SinkCheck { sink, kind: table.kind(), problem }));
    }
    Ok(results)
}
