//! A `[sinks.<name>]` table with `type = "file"`.

use std::path::PathBuf;

use hookgate_core::config::{self, ByteLimit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A `[sinks.<name>]` table with `type = "file"`.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "FileSink")]
pub struct Config {
    /// The directory for the files; made when it is not there. No default. Each sink needs its own, on a disk that keeps
    /// what it has fsynced. Owner and group can read what is in it, nobody else.
    pub dir: PathBuf,
    /// Size at which a new file is begun, in bytes; a longer event gets a file of its own. Default: 64 MiB, small enough
    /// to be moved and read at once, large enough that files stay few. No file is ever deleted.
    #[serde(default = "rotate_at")]
    pub rotate_at: ByteLimit,
    /// Events accepted and not yet fsynced, at most; from 1 up. Default: 4096, since one fsync serves all that wait for it
    /// and a disk that takes 10 ms for it then still stores far more than arrives.
    #[serde(default = "max_in_flight", deserialize_with = "config::count")]
    pub max_in_flight: usize,
}

fn rotate_at() -> ByteLimit {
    ByteLimit::mib(64)
}

fn max_in_flight() -> usize {
    4096
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_suffices() {
        let config: Config = serde_json::from_str(r#"{"dir":"data/events"}"#).expect("well-formed");
        let set = (config.dir, config.rotate_at, config.max_in_flight);
        assert_eq!(set, ("data/events".into(), ByteLimit::mib(64), 4096));
    }

    #[test]
    fn what_is_misspelt_missing_or_zero_is_refused() {
        for bad in ["{}", r#"{"dir":"d","rotateat":"1 MiB"}"#, r#"{"dir":"d","max_in_flight":0}"#] {
            assert!(serde_json::from_str::<Config>(bad).is_err(), "{bad}");
        }
    }
}
