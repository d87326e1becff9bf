//! Where a broker is, as a URL says it, and who we are to it.
//!
//! The library has a parser too, but that one takes `[::1]` for `localhost`, and repeats a URL that it cannot read, with
//! its password, in the error.

use std::fmt;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use percent_encoding::percent_decode_str;

/// The user and the password of a URL that names none. Source: RabbitMQ documentation, "URI Specification".
const DEFAULT_USER: &str = "guest";

/// Seconds within which each side must have said something; the library gives up after two such times. The broker's own,
/// a minute, would leave publishes to run into their deadlines for as long on a path that has gone dead.
const HEARTBEAT: u16 = 10;

/// One broker. It has no `Debug`, since it has a password.
#[derive(Clone)]
pub(crate) struct BrokerUrl(AMQPUri);

impl BrokerUrl {
    /// Reads URLs with commas between them. The error repeats nothing that may be secret.
    pub(crate) fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        text.trim().split(',').map(|url| Self::parse(url.trim())).collect()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let form = || "is no URL of a broker; write it like \"amqp://user:password@host:5672/vhost\"".to_owned();
        let (scheme, rest) = text.split_once("://").ok_or_else(form)?;
        let scheme = match scheme {
            "amqp" => AMQPScheme::AMQP,
            "amqps" => AMQPScheme::AMQPS,
            // Only a word is a scheme; anything else may be a part of a password.
            other if other.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
                return Err(format!("begins with {other}://; only amqp:// and amqps:// are supported"));
            }
            _ => return Err(form()),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, Some(path)),
            None => (rest, None),
        };
        let (login, address) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (username, password) = login.split_once(':').unwrap_or((login, ""));
        let (host, port) = split_port(address).ok_or_else(form)?;
        let port = match port {
            Some(port) => port.parse().map_err(|_| "has a port that is no number".to_owned())?,
            None => scheme.default_port(),
        };
        if host.is_empty() || path.is_some_and(|path| path.contains('/')) || text.contains('#') {
            return Err(form());
        }
        let userinfo = match login {
            "" => AMQPUserInfo { username: DEFAULT_USER.to_owned(), password: DEFAULT_USER.to_owned() },
            _ => AMQPUserInfo { username: decoded(username)?, password: decoded(password)? },
        };
        Ok(Self(AMQPUri {
            scheme,
            authority: AMQPAuthority { userinfo, host: host.to_owned(), port },
            vhost: decoded(path.unwrap_or("/"))?,
            query: AMQPQueryString {
                heartbeat: Some(HEARTBEAT),
                auth_mechanism: mechanism(query)?,
                ..AMQPQueryString::default()
            },
        }))
    }

    /// The same broker, as somebody else.
    #[must_use]
    pub(crate) fn logging_in_as(mut self, username: String, password: String) -> Self {
        self.0.authority.userinfo = AMQPUserInfo { username, password };
        self
    }

    pub(crate) fn host(&self) -> &str {
        &self.0.authority.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.authority.port
    }

    pub(crate) fn speaks_tls(&self) -> bool {
        self.0.scheme == AMQPScheme::AMQPS
    }

    pub(crate) fn into_library(self) -> AMQPUri {
        self.0
    }
}

/// Without user and password.
impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority: AMQPAuthority { host, port, .. }, vhost, .. } = &self.0;
        match host.contains(':') {
            true => write!(f, "{scheme}://[{host}]:{port}")?,
            false => write!(f, "{scheme}://{host}:{port}")?,
        }
        match vhost.as_str() {
            "/" => Ok(()),
            vhost => write!(f, "/{vhost}"),
        }
    }
}

/// Host and port, the brackets of an IPv6 address taken off.
fn split_port(address: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = address.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest {
            "" => Some((host, None)),
            rest => Some((host, Some(rest.strip_prefix(':')?))),
        };
    }
    match address.split_once(':') {
        Some((_, port)) if port.contains(':') => None,
        Some((host, port)) => Some((host, Some(port))),
        None => Some((address, None)),
    }
}

fn mechanism(query: &str) -> Result<Option<SASLMechanism>, String> {
    match query {
        "" | "auth_mechanism=plain" => Ok(None),
        "auth_mechanism=external" => Ok(Some(SASLMechanism::External)),
        _ => {
            Err("has an unknown query; only ?auth_mechanism=plain and ?auth_mechanism=external are supported"
                .to_owned())
        }
    }
}

fn decoded(text: &str) -> Result<String, String> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err("is not UTF-8 once its percent escapes are undone".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> AMQPUri {
        BrokerUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).into_library()
    }

    #[test]
    fn a_url_names_host_port_vhost_and_user() {
        for (text, host, port, vhost, user, password) in [
            ("amqp://a", "a", 5672, "/", "guest", "guest"),
            ("amqps://a", "a", 5671, "/", "guest", "guest"),
            ("amqp://a:1/", "a", 1, "", "guest", "guest"),
            ("amqp://a/%2f", "a", 5672, "/", "guest", "guest"),
            ("amqp://a/v%2Fw", "a", 5672, "v/w", "guest", "guest"),
            ("amqp://u:p%40%2C@a.b:99/v", "a.b", 99, "v", "u", "p@,"),
            ("amqp://u@a", "a", 5672, "/", "u", ""),
            ("amqp://127.0.0.1:1", "127.0.0.1", 1, "/", "guest", "guest"),
            ("amqp://[::1]:1/v", "::1", 1, "v", "guest", "guest"),
            ("amqp://[::1]", "::1", 5672, "/", "guest", "guest"),
        ] {
            let AMQPUri { authority, vhost: found, query, .. } = parse(text);
            let expected = AMQPAuthority {
                userinfo: AMQPUserInfo { username: user.to_owned(), password: password.to_owned() },
                host: host.to_owned(),
                port,
            };
            assert_eq!((authority, &*found), (expected, vhost), "{text}");
            assert_eq!((query.heartbeat, query.auth_mechanism), (Some(HEARTBEAT), None));
        }
        let external = parse("amqps://a?auth_mechanism=external").query.auth_mechanism;
        assert_eq!(external, Some(SASLMechanism::External));
    }

    #[test]
    fn several_urls_have_commas_between_them() {
        let listed = BrokerUrl::parse_list(" amqp://a, amqps://b:1\n").unwrap_or_else(|error| panic!("{error}"));
        let printed: Vec<String> = listed.iter().map(ToString::to_string).collect();
        assert_eq!(printed, ["amqp://a:5672", "amqps://b:1"]);
    }

    #[test]
    fn what_is_no_url_is_refused_and_not_repeated() {
        for bad in [
            "",
            "hunter2",
            "amqp:hunter2",
            "amqp://",
            "amqp://u:hunter2@",
            "amqp://u:hunter2@a,",
            "http://u:hunter2@a",
            "hunter2:x@y://a",
            "amqp://u:hunter2@a:port",
            "amqp://u:hunter2@a:1:2",
            "amqp://u:hunter2@[::1",
            "amqp://u:hunter2@[::1]x",
            "amqp://u:hunter2%ff@a",
            "amqp://u:hunter2@a/v/w",
            "amqp://u:hunter2@a?heartbeat=hunter2",
            "amqp://u:hunter2#x@a",
        ] {
            let Err(message) = BrokerUrl::parse_list(bad) else { panic!("{bad} is taken") };
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn a_printed_url_has_no_login() {
        for (text, printed) in
            [("amqp://u:hunter2@a/v", "amqp://a:5672/v"), ("amqps://u:hunter2@[::1]", "amqps://[::1]:5671")]
        {
            let url = BrokerUrl::parse(text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(url.to_string(), printed);
            assert_eq!(url.logging_in_as("v".to_owned(), "hunter2".to_owned()).to_string(), printed);
        }
    }
}
