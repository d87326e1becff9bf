//! `hookgate health`: for containers whose image has no shell and no HTTP client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{anyhow, bail};
use bytes::Bytes;
use hookgate_http::{Fetcher, OutboundConfig};

use crate::config::Config;

/// The answer is a word.
const ANSWER_BYTES_MAX: usize = 1024;

/// Asks the admin port of the process that runs with `config` whether it is alive.
///
/// # Errors
/// When it does not answer, or says that it is not.
pub(crate) async fn health(config: &Config) -> anyhow::Result<()> {
    let url = format!("http://{}/livez", reachable(config.admin.listen));
    // It is on this machine: whatever stands between us and the rest of the world is not asked.
    let fetcher = Fetcher::new(&OutboundConfig::default()).map_err(|problems| anyhow!("outbound: {}", problems[0]))?;
    let asked = http::Request::get(&url).body(Bytes::new())?;
    let answer = fetcher.send(asked, ANSWER_BYTES_MAX).await.map_err(|problem| anyhow!("{url}: {problem}"))?;
    if !answer.status().is_success() {
        bail!("{url} says {}", answer.status());
    }
    Ok(())
}

/// Where something that listens on all addresses is reached from this machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
