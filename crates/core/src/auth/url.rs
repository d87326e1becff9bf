//! The URL as the sender knows it: from the config, never from the Host header, which anybody can write.

use std::{borrow::Cow, sync::Arc};

use super::Context;

/// The public URL of a source's requests.
#[derive(Debug, Clone)]
pub(super) enum Url {
    /// Always this one, query included.
    Exact(String),
    /// This, with the request's path and query after it.
    Under(Arc<str>),
    /// Nobody has said.
    Unknown,
}

impl Url {
    /// What to tell an operator whose scheme needs it.
    pub(super) const UNKNOWN: &str = "is missing: this scheme signs the URL as the sender knows it; set server.public_url, \
                                      like \"https://hooks.example.com\", or this source's whole url";

    pub(super) fn new(exact: Option<&str>, context: &Context) -> Self {
        match (exact, &context.public_url) {
            (Some(url), _) => Self::Exact(url.to_owned()),
            (None, Some(base)) => Self::Under(Arc::clone(base)),
            (None, None) => Self::Unknown,
        }
    }

    pub(super) fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown)
    }

    /// The URL of a request for `path` and `query`.
    pub(super) fn of(&self, path: &str, query: Option<&str>) -> Cow<'_, str> {
        match self {
            Self::Exact(url) => url.into(),
            Self::Under(base) => {
                let (mark, query) = query.map_or(("", ""), |query| ("?", query));
                format!("{base}{path}{mark}{query}").into()
            }
            Self::Unknown => "".into(),
        }
    }

    /// The same URL with the escapes of some reserved characters decoded.
    ///
    /// Source: HubSpot, "Validating requests", the table of version 3.
    pub(super) fn unescaped(url: &str) -> String {
        let mut unescaped = String::with_capacity(url.len());
        let mut rest = url;
        while let Some((before, after)) = rest.split_once('%') {
            unescaped.push_str(before);
            let byte = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
            rest = match byte.map(char::from).filter(|c| ":/?@!$'()*,;".contains(*c)) {
                Some(reserved) => {
                    unescaped.push(reserved);
                    &after[2..]
                }
                None => {
                    unescaped.push('%');
                    after
                }
            };
        }
        unescaped + rest
    }

    /// The same URL without its port, and with the port spelt out that it has or that its scheme implies.
    pub(super) fn without_and_with_port(url: &str) -> [String; 2] {
        let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let host_begin = authority.rfind('@').map_or(0, |at| at + 1);
        let (user, host_port) = authority.split_at(host_begin);
        // In an IPv6 literal only a colon after the bracket begins a port.
        let port_search = host_port.rfind(']').unwrap_or(0);
        let (host, port) = match host_port[port_search..].find(':') {
            Some(colon) => host_port.split_at(port_search + colon),
            None => (host_port, ""),
        };
        let port = match (port, scheme.eq_ignore_ascii_case("http")) {
            ("", true) => ":80",
            ("", false) => ":443",
            (port, _) => port,
        };
        [format!("{scheme}://{user}{host}{tail}"), format!("{scheme}://{user}{host}{port}{tail}")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_taken_away_and_spelt_out() {
        for (url, without, with) in [
            ("https://a.test/x?y=1:2", "https://a.test/x?y=1:2", "https://a.test:443/x?y=1:2"),
            ("http://a.test", "http://a.test", "http://a.test:80"),
            ("https://a.test:8443/x", "https://a.test/x", "https://a.test:8443/x"),
            ("https://u:p@a.test/x", "https://u:p@a.test/x", "https://u:p@a.test:443/x"),
            ("https://[::1]:1/x", "https://[::1]/x", "https://[::1]:1/x"),
            ("https://[::1]/x", "https://[::1]/x", "https://[::1]:443/x"),
        ] {
            assert_eq!(Url::without_and_with_port(url), [without, with], "{url}");
        }
    }

    #[test]
    fn only_reserved_characters_are_unescaped() {
        assert_eq!(
            Url::unescaped("https://a.test/?u=a%40b%3ac%2Fd%20%25%C3%A9%"),
            "https://a.test/?u=a@b:c/d%20%25%C3%A9%"
        );
    }

    #[test]
    fn the_public_url_is_followed_by_path_and_query_as_sent() {
        let context = Context { public_url: Some("https://a.test/in".into()), ..Context::default() };
        assert_eq!(Url::new(None, &context).of("/b%20c", Some("d=%2F")), "https://a.test/in/b%20c?d=%2F");
        assert_eq!(Url::new(Some("https://b.test/?q"), &context).of("/x", None), "https://b.test/?q");
    }
}
