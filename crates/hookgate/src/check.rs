//! `hookgate check`: everything that `run` would find out at its start, and a look at every broker.

use std::{fmt, path::PathBuf, time::SystemTime};

use hookgate_redis as redis;
use serde::Serialize;

use crate::{
    assemble::{self, Ids},
    config::{Config, Problems},
    secrets::Secrets,
};

/// What is known about one source or sink, or about the dedup store.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Check {
    Source(SourceCheck),
    Dedup(DedupCheck),
    Spool(SpoolCheck),
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

/// What is known about the dedup store.
#[derive(Debug, Serialize)]
pub(crate) struct DedupCheck {
    /// Where it is configured.
    dedup: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// What is known about the spool.
#[derive(Debug, Serialize)]
pub(crate) struct SpoolCheck {
    /// Its directory.
    spool: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
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
    /// What is allowed and unwise about where its events go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl Check {
    pub(crate) fn is_ok(&self) -> bool {
        match self {
            Self::Source(_) => true,
            Self::Dedup(DedupCheck { problem, .. })
            | Self::Spool(SpoolCheck { problem, .. })
            | Self::Sink(SinkCheck { problem, .. }) => problem.is_none(),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(SourceCheck { source, verify, warnings }) => {
                write!(f, "ok      sources.{source} ({verify})")?;
                warnings.iter().try_for_each(|warning| write!(f, "\nWARNING sources.{source}: {warning}"))
            }
            Self::Dedup(DedupCheck { dedup, problem: Some(problem), .. }) => write!(f, "FAILED  {dedup}: {problem}"),
            Self::Dedup(DedupCheck { dedup, problem: None, warnings }) => {
                write!(f, "ok      {dedup}")?;
                warnings.iter().try_for_each(|warning| write!(f, "\nWARNING {dedup}: {warning}"))
            }
            Self::Spool(SpoolCheck { problem: Some(problem), .. }) => write!(f, "FAILED  spool: {problem}"),
            Self::Spool(SpoolCheck { spool, problem: None, warnings }) => {
                write!(f, "ok      spool ({})", spool.display())?;
                warnings.iter().try_for_each(|warning| write!(f, "\nWARNING spool: {warning}"))
            }
            Self::Sink(SinkCheck { sink, kind, problem: None, warnings }) => {
                write!(f, "ok      sinks.{sink} ({kind})")?;
                warnings.iter().try_for_each(|warning| write!(f, "\nWARNING sinks.{sink}: {warning}"))
            }
            Self::Sink(SinkCheck { sink, kind, problem: Some(problem), .. }) => {
                write!(f, "FAILED  sinks.{sink} ({kind}): {problem}")
            }
        }
    }
}

/// Validates `config`, then looks at the dedup store, at the disk of the spool and at every sink.
pub(crate) async fn check(config: &Config) -> Result<Vec<Check>, Problems> {
    let (ids, secrets) = (Ids::of(config), Secrets::default());
    let parts = assemble::prepare(config, &ids, &secrets)?;
    let mut results = Vec::new();
    for source in &parts.sources {
        let verifier = source.verifier();
        let (verify, warnings) = (verifier.summary(), source.warnings(SystemTime::now()));
        results.push(Check::Source(SourceCheck { source: source.id().name().to_owned(), verify, warnings }));
    }
    if let Some(table) = &config.dedup.redis {
        let (problem, warnings) = match redis::inspect(table, &mut |secret| secrets.resolve(secret)).await {
            Ok(warnings) => (None, warnings),
            Err(problem) => (Some(problem), Vec::new()),
        };
        results.push(Check::Dedup(DedupCheck { dedup: "dedup.redis", problem, warnings }));
    }
    if let Some(table) = &config.spool {
        let (problem, warnings) = match table.inspect(ids.sinks()) {
            Ok(warnings) => (None, warnings),
            Err(error) => (Some(format!("{error:#}")), Vec::new()),
        };
        results.push(Check::Spool(SpoolCheck { spool: table.dir.clone(), problem, warnings }));
    }
    for (name, table) in &config.sinks {
        let (id, sink) = (ids.sink(name), name.clone());
        let targets = parts.router.examples(&id);
        let inspected = table.inspect(id, &targets, &mut |secret| secrets.resolve(secret)).await;
        let (problem, warnings) = match inspected {
            Ok(warnings) => (None, warnings),
            Err(problem) => (Some(problem), Vec::new()),
        };
        results.push(Check::Sink(SinkCheck { sink, kind: table.kind(), problem, warnings }));
    }
    Ok(results)
}
