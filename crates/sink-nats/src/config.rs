//! A `[sinks.<name>]` table with `type = "nats"`.

use std::path::PathBuf;

use async_nats::ServerAddr;
use hookgate_core::{
    config::{self, Problem},
    secret::SecretRef,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A `[sinks.<name>]` table with `type = "nats"`.
///
/// A connection logs in in one way at most: user and password, token, nkey or creds.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NatsSink")]
pub struct Config {
    /// The servers, like `["nats://127.0.0.1:4222"]`; with `tls://` a server must speak TLS. Tried in random order, names
    /// resolved anew each time. No default. Only these are used: a server that the cluster advertises gets no credentials
    /// of ours, so list every one. Credentials do not stand in them, so that they can be logged.
    #[serde(default)]
    pub servers: Vec<String>,
    /// The stream that stores the messages. No default. It has to exist and to listen on the routes' subjects: a subject
    /// that another stream has come to listen on is an error instead of events in the wrong place.
    #[serde(default)]
    pub stream: String,
    /// JetStream domain of the stream, where a leaf node is between us and it. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// User name, beside `password`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<SecretRef>,
    /// Password of `user`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    /// Token. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretRef>,
    /// Seed of a user nkey (`SU…`); the server never sees it. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nkey: Option<SecretRef>,
    /// Content of a `.creds` file (a JWT and its seed); `{ file = "…" }` is the usual form. Default: none.
    ///
    /// Like every secret here it is read anew for each connection: a rotated one is used from the next connection on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creds: Option<SecretRef>,
    /// TLS. Default: used when the server asks for it, with the system's CAs. An empty table already demands it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Messages published and not yet acknowledged, at most; from 1 up. Default: 1024, since one connection gets no faster
    /// beyond some 500 (measured with 1 KiB messages and file storage), and what a broken connection leaves unknown stays
    /// small.
    #[serde(default = "max_in_flight", deserialize_with = "config::count")]
    pub max_in_flight: usize,
    /// Subjects that routes may publish to, with the wildcards of NATS: `["openclaw.>"]`. A route whose subject could be rendered
    /// outside of them is an error at the start. Default: none, and any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
}

/// The `tls` table of a NATS sink. The files are read anew for each connection.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NatsTls")]
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
    /// Whether TLS begins before the server's greeting, as its `handshake_first` wants. Default: `false`, the server's own.
    #[serde(default, deserialize_with = "config::flag")]
    pub first: bool,
}

fn max_in_flight() -> usize {
    1024
}

impl Config {
    /// Everything in the table that has to be mended before the sink can connect; keys are relative to the table.
    ///
    /// Secrets and files are looked at when connecting, not here.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.servers.is_empty() {
            let message = "is missing; name at least one server, like [\"nats://127.0.0.1:4222\"]";
            problems.push(Problem::new("servers", message));
        }
        for (index, text) in self.servers.iter().enumerate() {
            if let Err(message) = parse_server(text) {
                problems.push(Problem::new(format!("servers[{index}]"), message));
            }
        }
        if let Err(message) = check_stream(&self.stream) {
            problems.push(Problem::new("stream", message));
        }
        if let Some(Err(message)) = self.domain.as_deref().map(check_domain) {
            problems.push(Problem::new("domain", message));
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
        problems
    }

    fn check_login(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        match (&self.user, &self.password) {
            (Some(_), None) => problems.push(Problem::new("password", "is missing: `user` needs one")),
            (None, Some(_)) => problems.push(Problem::new("user", "is missing: `password` needs one")),
            _ => {}
        }
        let ways = [
            ("user", self.user.is_some() || self.password.is_some()),
            ("token", self.token.is_some()),
            ("nkey", self.nkey.is_some()),
            ("creds", self.creds.is_some()),
        ];
        let mut given = ways.iter().filter(|(_, given)| *given).map(|(key, _)| *key);
        if let Some(first) = given.next() {
            let beside = |key| Problem::new(key, format!("stands beside `{first}`; keep one way to log in"));
            problems.extend(given.map(beside));
        }
        problems
    }
}

/// Reads one entry of `servers`. The message never repeats the text, which may hold a password.
pub(crate) fn parse_server(text: &str) -> Result<ServerAddr, String> {
    let address: ServerAddr =
        text.parse().map_err(|_| "is not a server; write it like \"nats://127.0.0.1:4222\"".to_owned())?;
    let url = address.clone().into_inner();
    if !matches!(url.scheme(), "nats" | "tls") {
        return Err(format!("begins with {}://; only nats:// and tls:// are supported", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has credentials in it; move them to `user` and `password`, or to `token`".to_owned());
    }
    if address.host().is_empty() {
        return Err("has no host".to_owned());
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err("has something after host and port; remove it".to_owned());
    }
    Ok(address)
}

/// Source: NATS documentation, "JetStream, Streams, Configuration": a name holds no whitespace, `.`, `*`, `>` or slashes.
fn check_stream(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is missing; name the stream that listens on the routes' subjects".to_owned());
    }
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '>' | '/' | '\\');
    match name.chars().find(|c| forbidden(*c)) {
        Some(found) => Err(format!("{name:?} is not the name of a stream: it has {found:?}")),
        None => Ok(()),
    }
}

/// It is one token of a subject.
fn check_domain(name: &str) -> Result<(), String> {
    let token = name.chars().all(|c| !c.is_whitespace() && !c.is_control() && !matches!(c, '.' | '*' | '>'));
    if token && !name.is_empty() { Ok(()) } else { Err(format!("{name:?} is not the name of a domain")) }
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

    /// The problems of a table whose servers and stream are right.
    fn problems_beside(toml: &str) -> Vec<String> {
        problems(&format!("servers = ['nats://a:4222', 'tls://b', 'c:4223']\nstream = 'HOOKS'\n{toml}"))
    }

    #[test]
    fn a_table_with_servers_and_a_stream_suffices() {
        assert_eq!(problems_beside(""), [] as [&str; 0]);
        assert_eq!(config("").max_in_flight, 1024);
    }

    #[test]
    fn all_problems_are_reported_together() {
        let found = problems("servers = ['ws://a']\nuser = 'u'\ntoken = 't'\n[tls]\ncert = 'c.pem'");
        assert_eq!(
            found,
            [
                "servers[0]: begins with ws://; only nats:// and tls:// are supported",
                "stream: is missing; name the stream that listens on the routes' subjects",
                "password: is missing: `user` needs one",
                "token: stands beside `user`; keep one way to log in",
                "tls.key: is missing: `tls.cert` needs its private key",
            ]
        );
        assert!(problems("")[0].starts_with("servers: is missing"));
    }

    #[test]
    fn every_way_to_log_in_is_accepted_alone_and_refused_beside_another() {
        let ways = ["user = 'u'\npassword = 'p'", "token = 't'", "nkey = 'SU'", "creds = { file = 'a.creds' }"];
        for (index, way) in ways.iter().enumerate() {
            assert_eq!(problems_beside(way), [] as [&str; 0], "{way}");
            for other in &ways[index + 1..] {
                assert_eq!(problems_beside(&format!("{way}\n{other}")).len(), 1, "{way} and {other}");
            }
        }
        assert_eq!(problems_beside("password = 'p'"), ["user: is missing: `password` needs one"]);
        assert_eq!(problems_beside("tls = { key = 'k' }"), ["tls.cert: is missing: `tls.key` needs its certificate"]);
    }

    #[test]
    fn a_server_is_a_host_and_a_port() {
        for good in ["nats://127.0.0.1:4222", "tls://nats.example.com", "localhost", "nats://[::1]:4222/"] {
            assert!(parse_server(good).is_ok(), "{good}");
        }
        for bad in ["", "nats://", "ws://a", "http://a", "nats://a/b", "nats://a?b=c", "nats://a:port", "nats://a b"] {
            assert!(parse_server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_repeated() {
        for url in
            ["nats://relay:hunter2@a:4222", "nats://hunter2@a", "nats://:hunter2@a", "hunter2@a", "http://hunter2@a"]
        {
            let message = parse_server(url).expect_err(url);
            assert!(!message.contains("hunter2"), "{message}");
        }
        let message = parse_server("nats://hunter2@a").expect_err("it has a token");
        assert!(message.contains("`token`"), "{message}");
    }

    #[test]
    fn a_stream_has_a_name_that_nats_allows() {
        assert_eq!(check_stream("HOOKS-1_a"), Ok(()));
        for bad in ["", "A.B", "A B", "A*", ">", "a/b", "a\\b", "a\tb"] {
            assert!(check_stream(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_domain_is_one_token() {
        assert_eq!(problems_beside("domain = 'hub'"), [] as [&str; 0]);
        for bad in ["", "a.b", "a*", "a b"] {
            assert_eq!(problems_beside(&format!("domain = '{bad}'")).len(), 1, "{bad}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = toml::from_str::<Config>("server = 'nats://a'").expect_err("misspelt");
        assert!(error.to_string().contains("unknown field `server`"), "{error}");
    }

    #[test]
    fn neither_debug_nor_the_printed_config_shows_a_secret() {
        let config =
            config("user = 'hunter2'\npassword = 'hunter2'\ntoken = 'hunter2'\nnkey = 'hunter2'\ncreds = 'hunter2'");
        let printed = format!("{config:?}\n{}", toml::to_string(&config).expect("plain data"));
        assert!(printed.contains("[redacted]") && !printed.contains("hunter2"), "{printed}");
    }
}
