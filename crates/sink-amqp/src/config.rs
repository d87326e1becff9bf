//! A `[sinks.<name>]` table with `type = "amqp"`.

use std::path::PathBuf;

use hookgate_core::{
    config::{self, ByteLimit, Problem},
    secret::{SecretOrigin, SecretRef},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::broker::BrokerUrl;

/// A `[sinks.<name>]` table with `type = "amqp"`.
///
/// Exchanges, queues and their bindings are an operator's to make: the sink declares nothing. Make the queues durable and,
/// where they must survive the loss of a node, quorum queues.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "AmqpSink")]
pub struct Config {
    /// The broker, like `"amqp://user:password@rabbit.example.com:5672/vhost"`, or several with a comma between them, which
    /// are tried in random order. No default. It is a secret, since it may have a password in it.
    ///
    /// `amqps://` speaks TLS; the ports are 5672 and 5671 unless given. User, password and vhost are percent-encoded (a comma
    /// is `%2C`). Without a path the vhost is `/`; with the path `/` it is the empty one, as RabbitMQ reads it. Without a
    /// user it is `guest`, whom RabbitMQ lets in from its own machine only. `?auth_mechanism=external` logs in by the
    /// certificate of `tls.cert`. Read anew, and names are resolved anew, for each connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<SecretRef>,
    /// User name, in place of the one in `url`; beside `password`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<SecretRef>,
    /// Password of `user`. Default: none.
    ///
    /// Like every secret here it is read anew for each connection: a rotated one is used from the next connection on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    /// TLS, for `amqps://` only. Default: the system's CAs and no certificate of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Messages published and not yet acknowledged, at most; from 1 up. It holds for each exchange on its own too, where a
    /// message counts until the broker answers, however long its publisher has given up. Default: 1024, since a quorum queue
    /// confirms in batches after each write to disk, and what a broken connection leaves unknown stays small.
    #[serde(default = "max_in_flight", deserialize_with = "config::count")]
    pub max_in_flight: usize,
    /// Where routes may publish to, as exchange/routing-key; `*` is any run of characters: `["hooks/openclaw.*"]`. A route whose
    /// names could be rendered outside of them is an error at the start. Default: none, and any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Longest body that the broker takes. A longer one is refused for good before it is sent. Default: 16 MiB, the
    /// `max_message_size` of RabbitMQ 4; that of 3.x is 128 MiB. A broker with a lower limit says so when it is first exceeded,
    /// and its limit holds then.
    ///
    /// Source: RabbitMQ documentation, "Configuration", `max_message_size`.
    #[serde(default = "max_message")]
    pub max_message: ByteLimit,
}

/// The `tls` table of an AMQP sink. The files are read anew for each connection.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "AmqpTls")]
pub struct TlsConfig {
    /// PEM file with the CAs that may have signed the broker's certificate. Default: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM file with the certificate chain that we show, beside `key`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// PEM file with the private key to `cert`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

fn max_in_flight() -> usize {
    1024
}

fn max_message() -> ByteLimit {
    ByteLimit::mib(16)
}

impl Config {
    /// Everything in the table that has to be mended before the sink can connect; keys are relative to the table.
    ///
    /// Secrets and files are looked at when connecting, not here, unless they stand in the table itself.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        match self.url.as_ref().map(|url| &url.origin) {
            None => problems.push(Problem::new("url", "is missing; write it like { env = \"AMQP_URL\" }")),
            Some(SecretOrigin::Literal(text)) => {
                if let Err(message) = BrokerUrl::parse_list(text) {
                    problems.push(Problem::new("url", message));
                }
            }
            Some(SecretOrigin::Env(_) | SecretOrigin::File(_)) => {}
        }
        match (&self.user, &self.password) {
            (Some(_), None) => problems.push(Problem::new("password", "is missing: `user` needs one")),
            (None, Some(_)) => problems.push(Problem::new("user", "is missing: `password` needs one")),
            _ => {}
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

    fn config(toml: &str) -> Config {
        toml::from_str(toml).expect("well-formed")
    }

    fn problems(toml: &str) -> Vec<String> {
        config(toml).check().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_table_with_a_url_suffices() {
        for url in ["'amqp://a'", "'amqps://u:p@a/v,amqps://b'", "{ env = 'AMQP_URL' }", "{ file = 'amqp-url' }"] {
            assert_eq!(problems(&format!("url = {url}")), [] as [&str; 0], "{url}");
        }
        let config = config("url = 'amqp://a'");
        assert_eq!((config.max_in_flight, config.max_message), (1024, ByteLimit::mib(16)));
    }

    #[test]
    fn all_problems_are_reported_together() {
        assert_eq!(
            problems("user = 'u'\n[tls]\ncert = 'c.pem'"),
            [
                "url: is missing; write it like { env = \"AMQP_URL\" }",
                "password: is missing: `user` needs one",
                "tls.key: is missing: `tls.cert` needs its private key",
            ]
        );
        assert_eq!(
            problems("url = 'http://hunter2@a'\npassword = 'p'\n[tls]\nkey = 'k.pem'"),
            [
                "url: begins with http://; only amqp:// and amqps:// are supported",
                "user: is missing: `password` needs one",
                "tls.cert: is missing: `tls.key` needs its certificate",
            ]
        );
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = toml::from_str::<Config>("uri = 'amqp://a'").expect_err("misspelt");
        assert!(error.to_string().contains("unknown field `uri`"), "{error}");
    }

    #[test]
    fn neither_debug_nor_the_printed_config_shows_a_secret() {
        let config = config("url = 'amqp://hunter2:hunter2@a'\nuser = 'hunter2'\npassword = 'hunter2'");
        let printed = format!("{config:?}\n{}", toml::to_string(&config).expect("plain data"));
        assert!(printed.contains("[redacted]") && !printed.contains("hunter2"), "{printed}");
    }
}
