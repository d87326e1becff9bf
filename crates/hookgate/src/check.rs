//! `hookgate check`: everything that `run` would find out at its start, and a look at every broker.

use std::fmt;

use serde::Serialize;

use crate::{
    assemble,
    config::{Config, Problems},
};

/// What is known about one sink.
#[derive(Debug, Serialize)]
pub(crate) struct SinkCheck {
    sink: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl SinkCheck {
    pub(crate) fn is_ok(&self) -> bool {
        self.problem.is_none()
    }
}

impl fmt::Display for SinkCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problem {
            None => write!(f, "ok      sinks.{} ({})", self.sink, self.kind),
            Some(problem) => write!(f, "FAILED  sinks.{} ({}): {problem}", self.sink, self.kind),
        }
    }
}

/// Validates `config`, then looks at every sink.
pub(crate) async fn check(config: &Config) -> Result<Vec<SinkCheck>, Problems> {
    let mut parts = assemble::prepare(config)?;
    let mut results = Vec::new();
    for (id, table) in assemble::sink_ids(config).into_iter().zip(config.sinks.values()) {
        let sink = id.name().to_owned();
        let problem = table.inspect(id, &mut |secret| parts.secrets.resolve(secret)).await.err();
        results.push(SinkCheck { sink, kind: table.kind(), problem });
    }
    Ok(results)
}
