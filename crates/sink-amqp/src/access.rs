//! What a connection needs: where the brokers are, who we are to them, and how it is encrypted.
//!
//! Secrets and files are read anew for each connection, so that a rotated one is used from the next connection on.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use hookgate_core::secret::{ResolveSecret, SecretRef, SecretSlot};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

use crate::{
    broker::BrokerUrl,
    config::{Config, TlsConfig},
};

/// Where the secrets are, and the system's CAs.
pub(crate) struct Access {
    url: Arc<SecretSlot>,
    login: Option<Login>,
    tls: Option<TlsConfig>,
    system_roots: Arc<RootCertStore>,
}

struct Login {
    user: Arc<SecretSlot>,
    password: Arc<SecretSlot>,
}

/// What secrets and files say now.
#[derive(Clone)]
pub(crate) struct Credentials {
    /// In the order of the config.
    pub(crate) brokers: Vec<BrokerUrl>,
    pub(crate) tls: Arc<ClientConfig>,
}

/// Why something that the config names cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("find the secret: {message}")]
    Unresolved { key: &'static str, message: String },
    #[error("read the secret {name} as text")]
    NotText { key: &'static str, name: Arc<str>, source: std::str::Utf8Error },
    #[error("the secret {name} {message}")]
    NotAUrl { name: Arc<str>, message: String },
    #[error("it stands beside {url}, which does not speak TLS; write amqps://")]
    TlsForAPlainUrl { url: String },
    #[error("read {path}")]
    Unreadable { key: &'static str, path: PathBuf, source: io::Error },
    #[error("read {path} as PEM")]
    NotPem { key: &'static str, path: PathBuf, source: pem::Error },
    #[error("{path} holds no certificate")]
    NoCertificate { key: &'static str, path: PathBuf },
    #[error("use a certificate in {path} as a CA")]
    NotACa { path: PathBuf, source: rustls::Error },
    #[error("use {cert} with the private key {key}")]
    NotAPair { cert: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("set up TLS")]
    Tls { source: rustls::Error },
}

impl AccessError {
    /// The key at fault, relative to the sink's table.
    pub(crate) fn key(&self) -> &'static str {
        match self {
            Self::Unresolved { key, .. }
            | Self::NotText { key, .. }
            | Self::Unreadable { key, .. }
            | Self::NotPem { key, .. }
            | Self::NoCertificate { key, .. } => key,
            Self::NotAUrl { .. } => "url",
            Self::NotACa { .. } => "tls.ca",
            Self::NotAPair { .. } => "tls.key",
            Self::TlsForAPlainUrl { .. } | Self::Tls { .. } => "tls",
        }
    }

    /// Whether it is about TLS, else about logging in.
    pub(crate) fn is_about_tls(&self) -> bool {
        self.key().starts_with("tls")
    }
}

impl Access {
    /// Finds the secrets of `config`, which has passed [`Config::check`], and the system's CAs.
    pub(crate) fn resolve(config: &Config, resolve: &mut ResolveSecret<'_>) -> Result<Self, AccessError> {
        let mut slot = |key: &'static str, reference: Option<&SecretRef>| {
            let found = reference.ok_or_else(|| "it is missing".to_owned()).and_then(&mut *resolve);
            found.map_err(|message| AccessError::Unresolved { key, message })
        };
        let url = slot("url", config.url.as_ref())?;
        let login = match (&config.user, &config.password) {
            (None, None) => None,
            (user, password) => {
                Some(Login { user: slot("user", user.as_ref())?, password: slot("password", password.as_ref())? })
            }
        };
        Ok(Self { url, login, tls: config.tls.clone(), system_roots: Arc::new(system_roots()) })
    }

    /// Reads secrets and files as they are now; so it may block.
    pub(crate) fn read(&self) -> Result<Credentials, AccessError> {
        let mut brokers = BrokerUrl::parse_list(&text("url", &self.url)?)
            .map_err(|message| AccessError::NotAUrl { name: Arc::clone(self.url.name()), message })?;
        if let Some(Login { user, password }) = &self.login {
            let (user, password) = (text("user", user)?, text("password", password)?);
            let as_user = |broker: BrokerUrl| broker.logging_in_as(user.clone(), password.clone());
            brokers = brokers.into_iter().map(as_user).collect();
        }
        if let (Some(_), Some(plain)) = (&self.tls, brokers.iter().find(|broker| !broker.speaks_tls())) {
            return Err(AccessError::TlsForAPlainUrl { url: plain.to_string() });
        }
        Ok(Credentials { brokers, tls: Arc::new(self.tls_client_config()?) })
    }

    /// What TLS is spoken with. Names its crypto provider: the library would install one for the whole process, and would
    /// believe the system's CAs beside ours.
    fn tls_client_config(&self) -> Result<ClientConfig, AccessError> {
        let TlsConfig { ca, cert, key } = self.tls.clone().unwrap_or_default();
        let roots = match ca {
            Some(ca) => Arc::new(roots_in(&ca)?),
            None => Arc::clone(&self.system_roots),
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|source| AccessError::Tls { source })?
            .with_root_certificates(roots);
        let (Some(cert), Some(key)) = (cert, key) else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates_in("tls.cert", &cert)?;
        let private_key = PrivateKeyDer::from_pem_slice(&read("tls.key", &key)?)
            .map_err(|source| AccessError::NotPem { key: "tls.key", path: key.clone(), source })?;
        builder.with_client_auth_cert(chain, private_key).map_err(|source| AccessError::NotAPair { cert, key, source })
    }
}

fn text(key: &'static str, slot: &SecretSlot) -> Result<String, AccessError> {
    match std::str::from_utf8(slot.current().expose()) {
        Ok(text) => Ok(text.to_owned()),
        Err(source) => Err(AccessError::NotText { key, name: slot.name().clone(), source }),
    }
}

/// The CAs that the system trusts. Where there are none, no broker's certificate is trusted, and the sink says so then.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn roots_in(ca: &Path) -> Result<RootCertStore, AccessError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates_in("tls.ca", ca)? {
        roots.add(certificate).map_err(|source| AccessError::NotACa { path: ca.to_owned(), source })?;
    }
    Ok(roots)
}

fn certificates_in(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    let not_pem = |source| AccessError::NotPem { key, path: path.to_owned(), source };
    let bytes = read(key, path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(not_pem)?;
    if certificates.is_empty() {
        return Err(AccessError::NoCertificate { key, path: path.to_owned() });
    }
    Ok(certificates)
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, AccessError> {
    fs::read(path).map_err(|source| AccessError::Unreadable { key, path: path.to_owned(), source })
}
