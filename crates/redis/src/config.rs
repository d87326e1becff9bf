//! The `redis` table in `[dedup]`.

use std::{path::PathBuf, time::Duration};

use hookgate_core::{
    config::{self, Problem},
    dedup::OnOutage,
    secret::SecretRef,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `redis` table in `[dedup]`.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Redis")]
pub struct Config {
    /// Where Redis is: `"redis://host:6379"`, `"rediss://host:6379"` with TLS, with `user:password@` before the host and the
    /// number of a database after it (`/0`) if need be. Several, separated by commas, are nodes of one cluster or Sentinels.
    /// It can hold a password, so it is a secret: `{ env = "REDIS_URL" }`. Read anew for each connection.
    pub url: SecretRef,
    /// What stands at `url`. Default: `"single"`.
    #[serde(default)]
    pub topology: Topology,
    /// What the Sentinels call the master. No default; only with `topology = "sentinel"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// User, instead of the one in `url`. With Sentinels it is the user of Redis itself, and `url` has that of the
    /// Sentinels. Default: none, which is Redis' own `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<SecretRef>,
    /// Password, likewise. Read anew for each connection. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    /// Files for TLS, which `rediss://` asks for. Default: the system's CAs and no certificate of our own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// How long one operation may take; from 1 ms to 1 s. Default: 150 ms, some hundred times what Redis needs. Three in a
    /// row that take longer end the connection, and events do without Redis until it is quick again.
    #[serde(default = "timeout", with = "config::duration")]
    #[schemars(with = "config::DurationText")]
    pub timeout: Duration,
    /// What becomes of events while Redis does not answer: `"accept"` publishes them, `"refuse"` answers 503. A source can say
    /// otherwise in its `dedup`. Default: `"accept"`, since a duplicate can be mended and a loss cannot.
    #[serde(default)]
    pub on_outage: OnOutage,
    /// What all keys begin with; from 1 to 64 printable characters. Default: `"hookgate:"`. Deployments that share a Redis and
    /// not their events need one each.
    #[serde(default = "prefix")]
    pub prefix: String,
}

/// How Redis is set up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "RedisTopology")]
pub enum Topology {
    /// One server, or a name that always leads to the one that takes writes.
    #[default]
    Single,
    /// Sentinels, which know the master.
    Sentinel,
    /// A cluster.
    Cluster,
}

/// The `tls` table. The files are read anew for each connection.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RedisTls")]
pub struct TlsConfig {
    /// PEM file with the CAs that may have signed the server's certificate. Default: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM file with the certificate chain that we show, beside `key`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// PEM file with the private key to `cert`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// What `timeout` can be.
const TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(1);

/// Longest `prefix`, in bytes. It is part of every key.
const PREFIX_LEN_MAX: usize = 64;

fn timeout() -> Duration {
    Duration::from_millis(150)
}

fn prefix() -> String {
    "hookgate:".to_owned()
}

impl Config {
    /// Everything in the table that has to be mended before it can be used; keys are relative to the table.
    ///
    /// Secrets and files are looked at when connecting, not here.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        match (self.topology, &self.master) {
            (Topology::Sentinel, None) => {
                problems.push(Problem::new("master", "is missing: by which name do the Sentinels know the master?"));
            }
            (Topology::Single | Topology::Cluster, Some(_)) => {
                problems.push(Problem::new("master", "is for topology = \"sentinel\" only"));
            }
            _ => {}
        }
        if !TIMEOUTS.contains(&self.timeout) {
            problems
                .push(Problem::new("timeout", "must be from 1ms to 1s: every event waits for it while Redis is slow"));
        }
        let printable = self.prefix.bytes().all(|byte| byte.is_ascii_graphic());
        if self.prefix.is_empty() || self.prefix.len() > PREFIX_LEN_MAX || !printable {
            problems.push(Problem::new("prefix", "must be 1 to 64 printable characters, like \"hookgate:\""));
        }
        // In a cluster, braces would decide which node all keys are on.
        if self.prefix.contains(['{', '}']) {
            problems.push(Problem::new("prefix", "must not have braces: in a cluster they put all keys on one node"));
        }
        match &self.tls {
            Some(TlsConfig { cert: Some(_), key: None, .. }) => {
                problems.push(Problem::new("tls.key", "is missing: `tls.cert` needs its private key"));
            }
            Some(TlsConfig { cert: None, key: Some(_), .. }) => {
                problems.push(Problem::new("tls.cert", "is missing: `tls.key` needs its certificate"));
            }
            _ => {}
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(toml: &str) -> Vec<String> {
        let config: Config = toml::from_str(&format!("url = 'redis://a'\n{toml}")).expect("well-formed");
        config.check().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_url_suffices() {
        assert_eq!(problems(""), [] as [&str; 0]);
    }

    #[test]
    fn all_problems_are_reported_together() {
        let found = problems("topology = 'sentinel'\ntimeout = '2s'\nprefix = 'a {b}'\ntls = { cert = 'c.pem' }");
        let keys: Vec<_> = found.iter().map(|problem| problem.split(':').next().expect("a key")).collect();
        assert_eq!(keys, ["master", "timeout", "prefix", "prefix", "tls.key"], "{found:?}");
        assert_eq!(problems("master = 'm'\ntls = { key = 'k' }").len(), 2);
        assert_eq!(problems("timeout = '0s'").len(), 1);
        assert_eq!(problems("topology = 'sentinel'\nmaster = 'm'"), [] as [&str; 0]);
    }

    #[test]
    fn neither_debug_nor_the_printed_config_shows_a_secret() {
        let config: Config = toml::from_str("url = 'redis://:hunter2@a'\npassword = 'hunter2'").expect("well-formed");
        let printed = format!("{config:?}\n{}", toml::to_string(&config).expect("plain data"));
        assert!(printed.contains("[redacted]") && !printed.contains("hunter2"), "{printed}");
    }
}
