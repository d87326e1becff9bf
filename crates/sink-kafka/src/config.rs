//! A `[sinks.<name>]` table with `type = "kafka"`.

use std::{net::Ipv6Addr, path::PathBuf};

use hookgate_core::{
    config::{self, ByteLimit, Problem},
    secret::SecretRef,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A `[sinks.<name>]` table with `type = "kafka"`.
///
/// The topics that routes name have to exist: hookgate makes none, whatever the broker's `auto.create.topics.enable` says.
/// With access control on, hookgate needs WRITE and DESCRIBE on each of them. How safe an acknowledged message is, the topic
/// decides: give it a replication factor of 3 and `min.insync.replicas=2`.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "KafkaSink")]
pub struct Config {
    /// Some brokers of the cluster, like `["kafka-1:9092", "kafka-2:9092"]`; the others are learnt from them. The port is
    /// 9092 where there is none. No default.
    ///
    /// The cluster names all its brokers by their `advertised.listeners`, and those names have to be reachable too.
    #[serde(default)]
    pub brokers: Vec<String>,
    /// How we log in: with `user` and `password`, shown to the broker by `"plain"`, `"scram-sha-256"` or `"scram-sha-512"`, or
    /// with a `token` by `"oauthbearer"`. Default: none, we do not log in. `"plain"` and `"oauthbearer"` send the secret itself,
    /// so have `tls` beside them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sasl: Option<Sasl>,
    /// User name, beside `password` and `sasl`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<SecretRef>,
    /// Password of `user`. Default: none. While the broker refuses us, user and password are read anew for each attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    /// A token for `sasl = "oauthbearer"`: a JWT, which somebody else keeps fresh in its file (`{ file = "…" }`). It is read
    /// anew when librdkafka asks for it, before the `exp` that stands in it. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretRef>,
    /// TLS. Default: none, since Kafka's ports speak either TLS or not. An empty table demands it, with the system's CAs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// How messages are compressed on their way and in the topic: `"none"`, `"lz4"`, `"snappy"` or `"zstd"`. Default:
    /// `"none"`: a webhook is small and few are sent together, which leaves little to compress, and every consumer reads it.
    #[serde(default)]
    pub compression: Compression,
    /// Messages published and not yet acknowledged, at most; from 1 to 1000000. Default: 1024, which is ample at a few
    /// milliseconds for each acknowledgement; what a broken connection leaves unknown stays small. Twice as many are held
    /// if there are any whose callers have given up; beyond that a message is refused at once.
    #[serde(default = "max_in_flight", deserialize_with = "config::count")]
    pub max_in_flight: usize,
    /// Topics that routes may publish to; `*` is any run of characters: `["openclaw-*"]`. A route whose topic could be rendered
    /// outside of them is an error at the start. Default: none, and any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Largest message, with key and headers: the broker's `message.max.bytes`, or the smallest `max.message.bytes` of the
    /// topics. Larger ones are refused here, for good. Default: `"1048588 B"`, the broker's own. Range: 2 KiB to 900 MiB. It
    /// counts the message as sent before compression, with some 100 bytes of Kafka's own around it.
    #[serde(default = "max_message")]
    pub max_message: ByteLimit,
    /// Whether the producer is idempotent: the broker then recognises what librdkafka repeats after a lost reply, and keeps
    /// it from being stored twice or out of order. Default: `true`. Set it to `false` only for a broker that does not
    /// support it, or where hookgate cannot be allowed IDEMPOTENT_WRITE (brokers before 2.8 ask for it).
    #[serde(default = "idempotence", deserialize_with = "config::flag")]
    pub idempotence: bool,
}

/// How user and password are shown to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "KafkaSasl")]
pub enum Sasl {
    /// As they are (RFC 4616).
    Plain,
    /// By proof, with SHA-256 (RFC 7677).
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// By proof, with SHA-512.
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
    /// By a token (RFC 7628).
    #[serde(rename = "oauthbearer")]
    OauthBearer,
}

impl Sasl {
    /// Kafka's name for it.
    pub(crate) fn mechanism(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::OauthBearer => "OAUTHBEARER",
        }
    }
}

/// How messages are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "KafkaCompression")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// Fast.
    Lz4,
    /// Fast; for consumers that know nothing newer.
    Snappy,
    /// Small. Consumers and brokers since 2.1.
    Zstd,
}

impl Compression {
    /// Kafka's name for it.
    pub(crate) fn codec(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Snappy => "snappy",
            Self::Zstd => "zstd",
        }
    }
}

/// The `tls` table of a Kafka sink. While TLS cannot be agreed, the files are read anew for each attempt.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "KafkaTls")]
pub struct TlsConfig {
    /// PEM file with the CAs that may have signed the brokers' certificates. Default: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM file with the certificate chain that we show, beside `key`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// PEM file with the private key to `cert`, not encrypted. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

fn max_in_flight() -> usize {
    1024
}

/// Source: Apache Kafka 4.4, broker configuration, `message.max.bytes`.
fn max_message() -> ByteLimit {
    ByteLimit(1_048_588)
}

fn idempotence() -> bool {
    true
}

/// What `max_in_flight` may be; librdkafka's queue has room for ten times as many.
const IN_FLIGHT_MAX: usize = 1_000_000;

/// What `max_message` may be. Source: librdkafka `CONFIGURATION.md`, `message.max.bytes`, 1000 to 1000000000.
const MESSAGE_MAX_RANGE: std::ops::RangeInclusive<u64> = 2 * 1024..=900 * 1024 * 1024;

impl Config {
    /// Everything in the table that has to be mended before the sink can connect; keys are relative to the table.
    ///
    /// Secrets and files are looked at when connecting, not here.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.brokers.is_empty() {
            problems.push(Problem::new("brokers", "is missing; name at least one broker, like [\"127.0.0.1:9092\"]"));
        }
        for (index, text) in self.brokers.iter().enumerate() {
            if let Err(message) = check_broker(text) {
                problems.push(Problem::new(format!("brokers[{index}]"), message));
            }
        }
        problems.extend(self.check_login());
        match &self.tls {
            Some(TlsConfig { cert: Some(_), key: None, .. }) => {
                problems.push(Problem::new("tls.key", "is missing: `tls.cert` needs its private key"));
            }
            Some(TlsConfig { cert: None, key: Some(_), .. }) => {
                problems.push(Problem::new("tls.cert", "is missing: `tls.key` needs its certificate"));
            }
            _ => {}
        }
        if self.max_in_flight > IN_FLIGHT_MAX {
            problems.push(Problem::new("max_in_flight", format!("is more than {IN_FLIGHT_MAX}")));
        }
        if !MESSAGE_MAX_RANGE.contains(&self.max_message.0) {
            problems.push(Problem::new("max_message", "is not between \"2 KiB\" and \"900 MiB\""));
        }
        problems
    }

    fn check_login(&self) -> Vec<Problem> {
        match (self.sasl, &self.token) {
            (Some(Sasl::OauthBearer), None) => {
                return vec![Problem::new("token", "is missing: `sasl = \"oauthbearer\"` needs one")];
            }
            (Some(Sasl::OauthBearer), Some(_)) => {
                let beside = [("user", self.user.is_some()), ("password", self.password.is_some())];
                let beside = beside.into_iter().filter(|(_, given)| *given);
                return beside
                    .map(|(key, _)| Problem::new(key, "stands beside `token`; keep one way to log in"))
                    .collect();
            }
            (_, Some(_)) => {
                return vec![Problem::new("token", "is for `sasl = \"oauthbearer\"` only")];
            }
            (_, None) => {}
        }
        let keys =
            [("user", self.user.is_some()), ("password", self.password.is_some()), ("sasl", self.sasl.is_some())];
        let Some((present, _)) = keys.iter().find(|(_, given)| *given) else {
            return Vec::new();
        };
        let missing = keys.iter().filter(|(_, given)| !given);
        let problem = |key: &str| match key {
            "sasl" => Problem::new(key, "is missing; one of: plain, scram-sha-256, scram-sha-512, oauthbearer"),
            _ => Problem::new(key, format!("is missing: `{present}` needs one")),
        };
        missing.map(|(key, _)| problem(key)).collect()
    }
}

/// Whether an entry of `brokers` is a host and perhaps a port. The message never repeats the text, which may hold a password.
fn check_broker(text: &str) -> Result<(), &'static str> {
    if text.contains("://") {
        return Err("has a scheme before its host; remove it, `tls` and `sasl` say how we connect");
    }
    if text.contains('@') {
        return Err("has credentials in it; move them to `user` and `password`");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let (is_host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (address.parse::<Ipv6Addr>().is_ok(), Some("9092")),
        Some((address, rest)) => (address.parse::<Ipv6Addr>().is_ok(), rest.strip_prefix(':')),
        None => {
            let (host, port) = text.split_once(':').unwrap_or((text, "9092"));
            (!host.is_empty() && host.chars().all(plain), Some(port))
        }
    };
    let is_port = port.and_then(|port| port.parse::<u16>().ok()).is_some_and(|port| port > 0);
    if is_host && is_port { Ok(()) } else { Err("is not a broker; write it like \"127.0.0.1:9092\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(toml: &str) -> Config {
        toml::from_str(toml).expect("well-formed")
    }

    fn problems(toml: &str) -> Vec<String> {
        config(toml).check().iter().map(ToString::to_string).collect()
    }

    /// The problems of a table whose brokers are right.
    fn problems_beside(toml: &str) -> Vec<String> {
        problems(&format!("brokers = ['a:9092', 'b', '[::1]:9093']\n{toml}"))
    }

    #[test]
    fn a_table_with_brokers_suffices() {
        assert_eq!(problems_beside(""), [] as [&str; 0]);
        let defaults = config("");
        assert_eq!((defaults.max_in_flight, defaults.max_message), (1024, ByteLimit(1_048_588)));
        assert_eq!((defaults.compression, defaults.idempotence), (Compression::None, true));
    }

    #[test]
    fn all_problems_are_reported_together() {
        let found = problems(
            "brokers = ['kafka://a']\nuser = 'u'\nmax_in_flight = 1000001\nmax_message = '1 KiB'\n[tls]\ncert = 'c.pem'",
        );
        assert_eq!(
            found,
            [
                "brokers[0]: has a scheme before its host; remove it, `tls` and `sasl` say how we connect",
                "password: is missing: `user` needs one",
                "sasl: is missing; one of: plain, scram-sha-256, scram-sha-512, oauthbearer",
                "tls.key: is missing: `tls.cert` needs its private key",
                "max_in_flight: is more than 1000000",
                "max_message: is not between \"2 KiB\" and \"900 MiB\"",
            ]
        );
        assert!(problems("")[0].starts_with("brokers: is missing"));
    }

    #[test]
    fn a_login_has_three_parts() {
        for mechanism in ["plain", "scram-sha-256", "scram-sha-512"] {
            let whole = format!("user = 'u'\npassword = 'p'\nsasl = '{mechanism}'");
            assert_eq!(problems_beside(&whole), [] as [&str; 0]);
        }
        assert_eq!(problems_beside("password = 'p'\nsasl = 'plain'"), ["user: is missing: `password` needs one"]);
        assert_eq!(problems_beside("sasl = 'plain'").len(), 2);
        assert_eq!(problems_beside("sasl = 'oauthbearer'\ntoken = { file = 't' }"), [] as [&str; 0]);
        for bad in ["sasl = 'oauthbearer'", "token = 't'", "sasl = 'oauthbearer'\ntoken = 't'\nuser = 'u'"] {
            assert_eq!(problems_beside(bad).len(), 1, "{bad}");
        }
        assert_eq!(problems_beside("tls = { key = 'k' }"), ["tls.cert: is missing: `tls.key` needs its certificate"]);
    }

    #[test]
    fn a_broker_is_a_host_and_a_port() {
        for good in ["127.0.0.1:9092", "kafka-1.example.com:9092", "localhost", "[::1]:9092", "[::1]"] {
            assert_eq!(check_broker(good), Ok(()), "{good}");
        }
        for bad in ["", ":9092", "a:", "a:port", "a:0", "a:70000", "a b", "a,b", "a/b", "[a]:1", "[::1]9092", "::1"] {
            assert!(check_broker(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn credentials_beside_a_broker_are_refused_and_not_repeated() {
        for text in ["hunter2@a:9092", "relay:hunter2@a", "sasl://relay:hunter2@a", "a:hunter2"] {
            let message = check_broker(text).expect_err(text);
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn unknown_keys_and_values_are_refused() {
        let error = toml::from_str::<Config>("broker = 'a'").expect_err("misspelt");
        assert!(error.to_string().contains("unknown field `broker`"), "{error}");
        let error = toml::from_str::<Config>("compression = 'gzip'").expect_err("not built in");
        assert!(error.to_string().contains("unknown variant `gzip`"), "{error}");
    }

    #[test]
    fn neither_debug_nor_the_printed_config_shows_a_secret() {
        let config = config("user = 'hunter2'\npassword = 'hunter2'\nsasl = 'plain'");
        let printed = format!("{config:?}\n{}", toml::to_string(&config).expect("plain data"));
        assert!(printed.contains("[redacted]") && !printed.contains("hunter2"), "{printed}");
    }
}
