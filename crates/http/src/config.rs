//! The `[server]` and `[admin]` tables.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZero,
    path::PathBuf,
    thread,
    time::Duration,
};

use hookgate_core::{
    auth,
    config::{self, ByteLimit, Problem},
    intake::Rate,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ProxyProtocol, TlsConfig};

/// The `[server]` table: the port that senders reach.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Address and port to listen on. Default: `"0.0.0.0:8080"`.
    pub listen: SocketAddr,
    /// The URL under which senders reach this server, like `"https://hooks.example.com"`, for schemes that sign it (Square,
    /// HubSpot, Twilio); a path in it stands before those of the sources. Never taken from the Host header, which anybody can
    /// write. Default: unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// Networks of the proxies before this server, whose `X-Forwarded-For` tells the sender's address. Default: none, so that
    /// the header is not looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<String>,
    /// Networks of the load balancers before this server whose connections begin with a header of the PROXY protocol, version
    /// 1 or 2, before TLS where that is spoken. The address in it counts as the connection's, also where `trusted_proxies` is
    /// asked. A connection from there without one is closed; one from elsewhere cannot use it. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub proxy_protocol_from: Vec<String>,
    /// Certificates, so that clients speak TLS to this port. Default: none; a proxy before it does that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Longest accepted body. Longer requests get 413 and are not buffered. A source may set its own. Default: 2 MiB,
    /// above what most providers send; GitHub may send 25 MB.
    pub max_body: ByteLimit,
    /// How long after its last byte a request is answered at the latest. Default: 2500 ms, since Slack, Discord and Zoom
    /// give up after 3 s.
    #[serde(with = "config::duration")]
    #[schemars(with = "config::DurationText")]
    pub reply_deadline: Duration,
    /// How long a new connection may take to send its first request's head, a PROXY header before it included; with `tls`, that
    /// header and the handshake may take as long before it. Default: 10 s.
    #[serde(with = "config::duration")]
    #[schemars(with = "config::DurationText")]
    pub header_timeout: Duration,
    /// How long a body may take, plus one second for every 64 KiB that have arrived. Default: 10 s.
    #[serde(with = "config::duration")]
    #[schemars(with = "config::DurationText")]
    pub body_timeout: Duration,
    /// How long a connection may stay idle between requests. Default: 75 s, longer than the 60 s after which most load
    /// balancers drop theirs, so that it is never us who close one that is just being used.
    #[serde(with = "config::duration")]
    #[schemars(with = "config::DurationText")]
    pub keep_alive: Duration,
    /// Most connections at once. A new one then takes the place of the one that has waited longest for a request of its own; one
    /// whose request is being answered, or that has had one that succeeded, keeps its place. Default: 4096. Each takes a file descriptor.
    #[serde(deserialize_with = "config::count")]
    pub max_connections: usize,
    /// Most events in flight at once; past that senders get 503. Default: 4096.
    #[serde(deserialize_with = "config::count")]
    pub max_in_flight: usize,
    /// Most body bytes held at once; past that senders get 503. Default: 256 MiB. Memory use can reach about twice that
    /// while bodies are being read.
    pub max_in_flight_bytes: ByteLimit,
    /// Refusals (4xx) that are told at once; beyond that each waits for some 100 ms, so that whoever sends wrong signatures as fast
    /// as they are refused does not keep the processor from the events of others. Default: `"1000/s"`.
    pub prompt_refusals: Rate,
    /// Threads that events are worked on by. Each has connections of its own to NATS, RabbitMQ and Redis, and serves tens of
    /// thousands of events a second; a sender's connection stays with one. Default: one for each core that the process may use,
    /// four at most.
    #[serde(default, deserialize_with = "config::optional_count", skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// How long to go on serving after SIGTERM, until every load balancer has noticed. Default: 5 s.
    #[serde(with = "config::duration")]
    #[schemars(with = "config::DurationText")]
    pub drain_delay: Duration,
    /// How long requests and publishes in flight may take to finish after that. Default: 20 s, so that with `drain_delay`
    /// it stays inside Kubernetes' grace period of 30 s.
    #[serde(with = "config::duration")]
    #[schemars(with = "config::DurationText")]
    pub shutdown_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            public_url: None,
            trusted_proxies: Vec::new(),
            proxy_protocol_from: Vec::new(),
            tls: None,
            max_body: ByteLimit::mib(2),
            reply_deadline: Duration::from_millis(2500),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(75),
            max_connections: 4096,
            max_in_flight: 4096,
            max_in_flight_bytes: ByteLimit::mib(256),
            prompt_refusals: "1000/s".parse().expect("it is a rate"),
            threads: None,
            drain_delay: Duration::from_secs(5),
            shutdown_timeout: Duration::from_secs(20),
        }
    }
}

impl ServerConfig {
    /// Threads that events are worked on by.
    pub fn threads(&self) -> usize {
        /// More have to be asked for.
        const UNASKED_MAX: usize = 4;
        // Of what the scheduler and the control group leave to the process.
        self.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get).min(UNASKED_MAX))
    }

    /// What the schemes of the sources need to know of this server.
    ///
    /// # Errors
    /// Every problem found; keys are relative to the table.
    pub fn auth(&self) -> Result<auth::Context, Vec<Problem>> {
        let mut problems = Vec::new();
        let url = self.public_url.as_deref().map(|url| url.trim_end_matches('/'));
        let is_url = |url: &str| {
            let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or_default();
            !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\\\"".contains(&byte))
        };
        if let Some(url) = url.filter(|url| !is_url(url)) {
            let advice = "must be like \"https://hooks.example.com\", with neither query nor fragment";
            problems.push(Problem::new("public_url", format!("{url:?} {advice}")));
        }
        let trusted = auth::networks(&self.trusted_proxies)
            .map_err(|message| problems.push(Problem::new("trusted_proxies", message)))
            .unwrap_or_default();
        match problems.is_empty() {
            true => Ok(auth::Context { public_url: url.map(Into::into), trusted_proxies: trusted.into() }),
            false => Err(problems),
        }
    }

    /// Which connections begin with a PROXY header.
    ///
    /// # Errors
    /// Every problem found; keys are relative to the table.
    pub fn proxy_protocol(&self) -> Result<ProxyProtocol, Vec<Problem>> {
        let networks = auth::networks(&self.proxy_protocol_from);
        networks.map(ProxyProtocol::new).map_err(|message| vec![Problem::new("proxy_protocol_from", message)])
    }
}

/// The `[outbound]` table: what hookgate itself asks for, key sets of token issuers and certificates of Amazon SNS.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutboundConfig {
    /// An HTTP proxy that is asked to CONNECT to the host of each https URL, like `"http://proxy:3128"`. Plain http goes
    /// straight to its host. Default: none; the environment is not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// Certificates in PEM form that are trusted beside the system's, which are those in `SSL_CERT_FILE` and `SSL_CERT_DIR`
    /// where these are set. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// How long an answer may take, from the connection to its last byte. Default: 2 s, below the reply deadline: a sender may
    /// be waiting for it.
    #[serde(with = "config::duration")]
    #[schemars(with = "config::DurationText")]
    pub timeout: Duration,
}

impl Default for OutboundConfig {
    fn default() -> Self {
        Self { proxy: None, ca: None, timeout: Duration::from_secs(2) }
    }
}

/// The `[admin]` table: the port for probes and metrics. It has no authentication; keep it private.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Address and port to listen on. Default: `"127.0.0.1:9090"`, reachable from this machine only.
    pub listen: SocketAddr,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)) }
    }
}
