//! A `[sinks.<name>]` table with `type = "stdout"`.

use hookgate_core::config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A `[sinks.<name>]` table with `type = "stdout"`. One of them is enough: all would write to the same place.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "StdoutSink")]
pub struct Config {
    /// Events accepted and not yet written, at most; from 1 up. Default: 1024.
    #[serde(default = "max_in_flight", deserialize_with = "config::count")]
    pub max_in_flight: usize,
}

fn max_in_flight() -> usize {
    1024
}
