//! Where Redis is and who we are there, as the secrets and files say at the moment.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hookgate_core::{
    dedup::StoreReason,
    secret::{ResolveSecret, SecretRef, SecretSlot},
};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    TlsCertificates, TlsMode,
    cluster::ClusterClient,
    io::tcp::TcpSettings,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};

use crate::{
    config::{Config, TlsConfig, Topology},
    error::{Cure, Trouble},
    link::Connection,
};

/// How long bytes may stay unacknowledged before the system gives a connection up.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(3);

/// Requests that may be queued in the library for one connection. Its own 50 would have callers wait for one another.
const QUEUED_MAX: usize = 2048;

/// What connects us.
pub(crate) struct Access {
    url: Arc<SecretSlot>,
    topology: Topology,
    master: Option<String>,
    user: Option<Arc<SecretSlot>>,
    password: Option<Arc<SecretSlot>>,
    tls: Option<TlsConfig>,
    timeout: Duration,
}

/// What the config names and cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("{message}")]
    Unresolved { key: &'static str, message: String },
    #[error("the secret {name} is not text")]
    NotText { key: &'static str, name: Arc<str> },
    /// Never with the text, which may have a password in it.
    #[error(
        "the secret {name} is no Redis URL; write it like \"redis://host:6379\" or \"rediss://user:password@host:6379\""
    )]
    NotAUrl { name: Arc<str> },
    #[error("the secret {name} names several servers; that is for topology = \"cluster\" and \"sentinel\"")]
    Several { name: Arc<str> },
    #[error("the secret {name} names a database; a cluster has only one")]
    DatabaseInCluster { name: Arc<str> },
    #[error("the secret {name} has redis:// and rediss:// in it; use one of them")]
    Mixed { name: Arc<str> },
    #[error("is of no use: `url` begins with redis://, which is without TLS; write rediss://")]
    TlsWithoutTls,
    #[error("read {path}")]
    Unreadable { key: &'static str, path: PathBuf, source: io::Error },
}

impl AccessError {
    /// The key at fault, relative to the table.
    pub(crate) fn key(&self) -> &'static str {
        match self {
            Self::Unresolved { key, .. } | Self::NotText { key, .. } | Self::Unreadable { key, .. } => key,
            Self::NotAUrl { .. } | Self::Several { .. } | Self::DatabaseInCluster { .. } | Self::Mixed { .. } => "url",
            Self::TlsWithoutTls => "tls",
        }
    }
}

impl From<AccessError> for Trouble {
    fn from(error: AccessError) -> Self {
        let reason = if error.key().starts_with("tls") { StoreReason::Tls } else { StoreReason::Auth };
        let words = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Self::new(reason, words, Cure::Wait)
    }
}

impl Access {
    /// Finds the secrets of `config`, which has passed [`Config::check`].
    pub(crate) fn resolve(config: &Config, resolve: &mut ResolveSecret<'_>) -> Result<Self, AccessError> {
        let mut slot = |key: &'static str, reference: &SecretRef| {
            resolve(reference).map_err(|message| AccessError::Unresolved { key, message })
        };
        let access = Self {
            url: slot("url", &config.url)?,
            topology: config.topology,
            master: config.master.clone(),
            user: config.user.as_ref().map(|user| slot("user", user)).transpose()?,
            password: config.password.as_ref().map(|password| slot("password", password)).transpose()?,
            tls: config.tls.clone(),
            timeout: config.timeout,
        };
        // Tried now, when an operator is looking, and again for each connection.
        access.servers()?;
        access.certificates()?;
        access.login()?;
        Ok(access)
    }

    /// What the operator calls the place, for logs: hosts and ports, no more.
    pub(crate) fn place(&self) -> String {
        let servers = self.servers().unwrap_or_default();
        let addresses: Vec<String> = servers.iter().map(|server| server.addr().to_string()).collect();
        addresses.join(", ")
    }

    /// Opens a connection, as the secrets and files say now.
    pub(crate) async fn connect(&self) -> Result<Connection, Trouble> {
        let servers = self.servers()?;
        let is_tls = servers.iter().any(|server| matches!(server.addr(), ConnectionAddr::TcpTls { .. }));
        let certificates = if is_tls { Some(self.certificates()?) } else { None };
        let (user, password) = self.login()?;
        let login = Login { user: user.as_deref(), password: password.as_deref() };
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(Some(self.timeout))
            .set_pipeline_buffer_size(QUEUED_MAX);
        Ok(match self.topology {
            Topology::Single => {
                let server = login.apply(servers.into_iter().next().expect("checked: there is one"));
                let client = match certificates {
                    Some(certificates) => Client::build_with_tls(server, certificates),
                    None => Client::open(server),
                }?;
                Connection::One(client.get_multiplexed_async_connection_with_config(&settings).await?)
            }
            Topology::Sentinel => {
                let mut client = self.sentinels(&servers, &login, certificates)?;
                Connection::One(client.get_async_connection_with_config(&settings).await?)
            }
            Topology::Cluster => {
                let mut builder = ClusterClient::builder(servers.into_iter().map(|server| login.apply(server)))
                    .tcp_settings(tcp_settings())
                    .response_timeout(self.timeout)
                    .overall_response_timeout(Some(self.timeout));
                if let Some(certificates) = certificates {
                    builder = builder.tls(TlsMode::Secure).certs(certificates);
                }
                Connection::Cluster(builder.build()?.get_async_connection().await?)
            }
        })
    }

    /// A client that asks the Sentinels for the master. They have the login in `url`, Redis the one beside it.
    fn sentinels(
        &self,
        servers: &[ConnectionInfo],
        login: &Login<'_>,
        certificates: Option<TlsCertificates>,
    ) -> Result<SentinelClient, Trouble> {
        let addresses = servers.iter().map(|server| server.addr().clone());
        let master = self.master.as_deref().expect("checked: there is a name");
        let url = servers[0].redis_settings();
        let mut builder = SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?
            .set_client_to_redis_db(url.db())
            .set_client_to_redis_tcp_settings(tcp_settings())
            .set_client_to_sentinel_tcp_settings(tcp_settings());
        if let Some(certificates) = certificates {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates);
        }
        if let Some(user) = login.user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = login.password {
            builder = builder.set_client_to_redis_password(password);
        }
        if let Some(user) = url.username() {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = url.password() {
            builder = builder.set_client_to_sentinel_password(password);
        }
        Ok(builder.build()?)
    }

    /// The servers in `url`. Never empty.
    fn servers(&self) -> Result<Vec<ConnectionInfo>, AccessError> {
        let name = || Arc::clone(self.url.name());
        let url = text("url", &self.url)?;
        let parse = |part: &str| part.trim().into_connection_info().map_err(|_| AccessError::NotAUrl { name: name() });
        let servers: Vec<ConnectionInfo> = url.split(',').map(parse).collect::<Result<_, _>>()?;
        let tls = servers.iter().filter(|server| matches!(server.addr(), ConnectionAddr::TcpTls { .. })).count();
        match self.topology {
            Topology::Single if servers.len() > 1 => return Err(AccessError::Several { name: name() }),
            Topology::Cluster if servers.iter().any(|server| server.redis_settings().db() != 0) => {
                return Err(AccessError::DatabaseInCluster { name: name() });
            }
            _ if servers.iter().any(|server| matches!(server.addr(), ConnectionAddr::Unix(_)))
                && self.topology != Topology::Single =>
            {
                return Err(AccessError::NotAUrl { name: name() });
            }
            _ => {}
        }
        match tls {
            0 if self.tls.is_some() => Err(AccessError::TlsWithoutTls),
            some if some != 0 && some != servers.len() => Err(AccessError::Mixed { name: name() }),
            _ => Ok(servers.into_iter().map(|server| server.set_tcp_settings(tcp_settings())).collect()),
        }
    }

    fn certificates(&self) -> Result<TlsCertificates, AccessError> {
        let TlsConfig { ca, cert, key } = self.tls.clone().unwrap_or_default();
        let root_cert = ca.map(|path| read("tls.ca", &path)).transpose()?;
        let client_tls = match (cert, key) {
            (Some(cert), Some(key)) => {
                Some(ClientTlsConfig { client_cert: read("tls.cert", &cert)?, client_key: read("tls.key", &key)? })
            }
            _ => None,
        };
        Ok(TlsCertificates { client_tls, root_cert })
    }

    /// User and password that stand beside the URL.
    fn login(&self) -> Result<(Option<String>, Option<String>), AccessError> {
        let optional = |key, slot: &Option<Arc<SecretSlot>>| slot.as_ref().map(|slot| text(key, slot)).transpose();
        Ok((optional("user", &self.user)?, optional("password", &self.password)?))
    }
}

/// User and password that stand beside the URL.
struct Login<'a> {
    user: Option<&'a str>,
    password: Option<&'a str>,
}

impl Login<'_> {
    fn apply(&self, server: ConnectionInfo) -> ConnectionInfo {
        let mut settings = server.redis_settings().clone();
        if let Some(user) = self.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = self.password {
            settings = settings.set_password(password);
        }
        server.set_redis_settings(settings)
    }
}

/// The library's own defaults hold small commands back for more, and wait for minutes on a path that has gone dead.
fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_nodelay(true).set_user_timeout(UNACKNOWLEDGED_MAX)
}

fn text(key: &'static str, slot: &SecretSlot) -> Result<String, AccessError> {
    match std::str::from_utf8(slot.current().expose()) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(AccessError::NotText { key, name: Arc::clone(slot.name()) }),
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, AccessError> {
    fs::read(path).map_err(|source| AccessError::Unreadable { key, path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use hookgate_core::secret::literal;

    use super::*;

    fn access(toml: &str) -> Result<Access, AccessError> {
        let config: Config = toml::from_str(toml).expect("well-formed");
        assert_eq!(config.check(), []);
        Access::resolve(&config, &mut |reference| literal(reference))
    }

    #[test]
    fn a_url_is_read_as_the_topology_allows() {
        assert_eq!(access("url = 'redis://:hunter2@a/3'").expect("good").place(), "a:6379");
        let cluster = access("url = 'rediss://a:1, rediss://b:2'\ntopology = 'cluster'").expect("good");
        assert_eq!(cluster.place(), "a:1, b:2");
        for wrong in [
            "url = 'http://hunter2@a'",
            "url = 'hunter2'",
            "url = 'redis://hunter2@a,redis://b'",
            "url = 'redis://hunter2@a/1'\ntopology = 'cluster'",
            "url = 'redis://hunter2@a,rediss://b'\ntopology = 'cluster'",
            "url = 'unix:///hunter2,redis://a'\ntopology = 'cluster'",
            "url = 'redis://hunter2@a'\ntls = {}",
            "url = 'rediss://hunter2@a'\ntls = { ca = '/nowhere/ca.pem' }",
        ] {
            let error = access(wrong).err().unwrap_or_else(|| panic!("{wrong}"));
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
