//! What is known of a sender from its connection: its address, and the certificate it showed.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use x509_parser::{extensions::GeneralName, prelude::FromDer};

use super::{AuthFailure, Request, SchemeProblems};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The other end of a request's connection.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// Its address: the one that its PROXY header names, or that of the last proxy, where there is one.
    pub address: Option<IpAddr>,
    /// The certificate that it showed, in DER form, if TLS has verified it against `server.tls.client_ca`.
    pub certificate: Option<Arc<[u8]>>,
}

/// An allow-list of addresses. It proves little by itself; use it beside a signature.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AddressConfig {
    /// Networks or addresses that may send, like `"192.0.2.0/24"` or `"2001:db8::1"`. Behind proxies the sender's address is
    /// taken from `X-Forwarded-For`, as far as `server.trusted_proxies` vouches for it.
    pub allow: Vec<String>,
}

/// The scheme, ready to verify.
#[derive(Debug)]
pub(super) struct Address {
    allow: Vec<IpNet>,
    trusted_proxies: Arc<[IpNet]>,
    name: Arc<str>,
}

impl Address {
    pub(super) fn compile(
        config: &AddressConfig,
        trusted_proxies: &Arc<[IpNet]>,
        problems: &mut SchemeProblems<'_>,
    ) -> Self {
        if config.allow.is_empty() {
            problems.push("allow", "is empty: nobody could send; write networks like \"192.0.2.0/24\"");
        }
        let allow = networks(&config.allow).map_err(|message| problems.push("allow", message)).unwrap_or_default();
        Self { allow, trusted_proxies: Arc::clone(trusted_proxies), name: "address list".into() }
    }

    /// What stands for the secret's name.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn verify(&self, request: &Request) -> Result<Arc<str>, AuthFailure> {
        let address = sender(&request.headers, request.peer.address, &self.trusted_proxies)?;
        match self.allow.iter().any(|network| network.contains(&address)) {
            true => Ok(Arc::clone(&self.name)),
            false => Err(AuthFailure::AddressRefused),
        }
    }
}

/// Networks as an operator writes them; a single address is a network of its own.
///
/// # Errors
/// The first that is none.
pub fn networks(texts: &[String]) -> Result<Vec<IpNet>, String> {
    let network = |text: &String| {
        let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        network.ok_or_else(|| format!("{text:?} is no network; write \"192.0.2.0/24\" or a single address"))
    };
    texts.iter().map(network).collect()
}

/// The address that `request` comes from: the connection's, or, while that is a trusted proxy's, the one before it in
/// `X-Forwarded-For`, read from its end. What stands before the first address that is no proxy's, the sender wrote itself.
fn sender(headers: &HeaderMap, peer: Option<IpAddr>, trusted: &[IpNet]) -> Result<IpAddr, AuthFailure> {
    let mut address = peer.ok_or(AuthFailure::AddressRefused)?.to_canonical();
    let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
    let values: Vec<_> = headers.get_all(&FORWARDED_FOR).iter().collect();
    for value in values.into_iter().rev() {
        let text = value.to_str().map_err(|_| AuthFailure::Malformed)?;
        for hop in text.rsplit(',') {
            if !is_trusted(&address) {
                return Ok(address);
            }
            address = hop_address(hop.trim()).ok_or(AuthFailure::Malformed)?.to_canonical();
        }
    }
    Ok(address)
}

/// An address; some proxies write its port after it.
fn hop_address(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// The identity in a client certificate, which TLS has verified against `server.tls.client_ca`.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateConfig {
    /// Names that may send: a DNS name, e-mail address or URI among the certificate's alternative names, or, where it has
    /// none, its common name. Compared whole.
    pub names: Vec<String>,
}

/// The scheme, ready to verify.
#[derive(Debug)]
pub(super) struct Certificate {
    names: Vec<Arc<str>>,
}

impl Certificate {
    pub(super) fn compile(config: &CertificateConfig, problems: &mut SchemeProblems<'_>) -> Self {
        if config.names.is_empty() {
            problems
                .push("names", "is empty: nobody could send; write the names that are in the clients' certificates");
        }
        Self { names: config.names.iter().map(|name| name.as_str().into()).collect() }
    }

    /// What stands for the secrets' names.
    pub(super) fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    pub(super) fn verify(&self, request: &Request) -> Result<Arc<str>, AuthFailure> {
        let der = request.peer.certificate.as_deref().ok_or(AuthFailure::Missing)?;
        let found = certificate_names(der).ok_or(AuthFailure::Malformed)?;
        let known = self.names.iter().find(|known| found.iter().any(|name| **name == ***known));
        known.cloned().ok_or(AuthFailure::CertificateRefused)
    }
}

fn certificate_names(der: &[u8]) -> Option<Vec<String>> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    if let Some(alternatives) = certificate.subject_alternative_name().ok()? {
        let name = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) => {
                Some((*text).to_owned())
            }
            _ => None,
        };
        return Some(alternatives.value.general_names.iter().filter_map(name).collect());
    }
    Some(certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok().map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn sender_of(forwarded: &[&str], peer: &str) -> Result<IpAddr, AuthFailure> {
        let trusted = networks(&["10.0.0.0/8".to_owned(), "::1".to_owned()]).expect("networks");
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED_FOR, HeaderValue::from_str(value).expect("a value"));
        }
        sender(&headers, Some(ip(peer)), &trusted)
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        assert_eq!(sender_of(&[], "192.0.2.1"), Ok(ip("192.0.2.1")));
        assert_eq!(sender_of(&["198.51.100.7"], "192.0.2.1"), Ok(ip("192.0.2.1")), "a stranger's header says nothing");
        assert_eq!(sender_of(&["198.51.100.7"], "10.0.0.1"), Ok(ip("198.51.100.7")));
        assert_eq!(sender_of(&["203.0.113.9, 198.51.100.7, 10.0.0.2"], "10.0.0.1"), Ok(ip("198.51.100.7")));
        assert_eq!(
            sender_of(&["203.0.113.9", "198.51.100.7"], "10.0.0.1"),
            Ok(ip("198.51.100.7")),
            "several lines are one"
        );
        assert_eq!(sender_of(&["10.0.0.3"], "::ffff:10.0.0.1"), Ok(ip("10.0.0.3")), "an IPv4 address in IPv6 clothes");
        assert_eq!(sender_of(&["198.51.100.7:4711"], "10.0.0.1"), Ok(ip("198.51.100.7")));
        assert_eq!(sender_of(&["junk"], "10.0.0.1"), Err(AuthFailure::Malformed));
    }

    #[test]
    fn what_is_no_network_is_told() {
        assert!(networks(&["192.0.2.0/33".to_owned()]).expect_err("too long").contains("192.0.2.0/33"));
    }
}
