//! How a connection proves who we are and how it is encrypted: from the config and its secrets to the library's options.
//!
//! Secrets and files are read anew for each connection, so that a rotated one is used from the next connection on.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_nats::ConnectOptions;
use hookgate_core::secret::{ResolveSecret, SecretRef, SecretSlot};
use nkeys::{KeyPair, KeyPairType};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

use crate::config::{Config, TlsConfig};

/// What a connection needs besides a server.
pub(crate) struct Access {
    login: Login,
    tls: Option<TlsConfig>,
    system_roots: Arc<RootCertStore>,
}

enum Login {
    Anonymous,
    Password { user: Arc<SecretSlot>, password: Arc<SecretSlot> },
    Token(Arc<SecretSlot>),
    Nkey(Arc<SecretSlot>),
    Creds(Arc<SecretSlot>),
}

/// Why something that the config names cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("find the secret: {message}")]
    Unresolved { key: &'static str, message: String },
    #[error("read the secret {name} as text")]
    NotText { key: &'static str, name: Arc<str>, source: std::str::Utf8Error },
    #[error("read the secret {name} as an nkey seed")]
    NotASeed { name: Arc<str>, source: nkeys::error::Error },
    #[error("the secret {name} is the seed of another kind of key, not of a user (SU…)")]
    NotAUserSeed { name: Arc<str> },
    #[error("read the secret {name} as the content of a .creds file")]
    NotCreds { name: Arc<str>, source: io::Error },
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
            Self::NotASeed { .. } | Self::NotAUserSeed { .. } => "nkey",
            Self::NotCreds { .. } => "creds",
            Self::NotACa { .. } => "tls.ca",
            Self::NotAPair { .. } => "tls.key",
            Self::Tls { .. } => "tls",
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
        let mut slot = |key: &'static str, reference: &SecretRef| {
            resolve(reference).map_err(|message| AccessError::Unresolved { key, message })
        };
        let login = if let (Some(user), Some(password)) = (&config.user, &config.password) {
            Login::Password { user: slot("user", user)?, password: slot("password", password)? }
        } else if let Some(token) = &config.token {
            Login::Token(slot("token", token)?)
        } else if let Some(seed) = &config.nkey {
            Login::Nkey(slot("nkey", seed)?)
        } else if let Some(creds) = &config.creds {
            Login::Creds(slot("creds", creds)?)
        } else {
            Login::Anonymous
        };
        Ok(Self { login, tls: config.tls.clone(), system_roots: Arc::new(system_roots()) })
    }

    /// Adds login and TLS, as secrets and files say now, to `options`. Reads files, so it may block.
    pub(crate) fn apply(&self, options: ConnectOptions) -> Result<ConnectOptions, AccessError> {
        let options = self.login.apply(options)?.tls_client_config(self.tls_client_config()?);
        Ok(match &self.tls {
            Some(TlsConfig { first: true, .. }) => options.require_tls(true).tls_first(),
            Some(TlsConfig { first: false, .. }) => options.require_tls(true),
            None => options,
        })
    }

    /// What TLS is spoken with, should the server or we demand it.
    ///
    /// Names its crypto provider. What the library would build without it asks for the process's default one, and panics
    /// where there are two to choose from.
    fn tls_client_config(&self) -> Result<ClientConfig, AccessError> {
        let TlsConfig { ca, cert, key, .. } = self.tls.clone().unwrap_or_default();
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

impl Login {
    fn apply(&self, options: ConnectOptions) -> Result<ConnectOptions, AccessError> {
        Ok(match self {
            Self::Anonymous => options,
            Self::Password { user, password } => {
                options.user_and_password(text("user", user)?, text("password", password)?)
            }
            Self::Token(slot) => options.token(text("token", slot)?),
            Self::Nkey(slot) => options.nkey(user_seed(slot)?),
            Self::Creds(slot) => options
                .credentials(&text("creds", slot)?)
                .map_err(|source| AccessError::NotCreds { name: slot.name().clone(), source })?,
        })
    }
}

fn text(key: &'static str, slot: &SecretSlot) -> Result<String, AccessError> {
    match std::str::from_utf8(slot.current().expose()) {
        Ok(text) => Ok(text.to_owned()),
        Err(source) => Err(AccessError::NotText { key, name: slot.name().clone(), source }),
    }
}

/// The library takes any text for a seed and fails once the server has greeted it; here a bad one stops the start.
fn user_seed(slot: &SecretSlot) -> Result<String, AccessError> {
    let seed = text("nkey", slot)?.trim().to_owned();
    let name = slot.name().clone();
    match KeyPair::from_seed(&seed) {
        Ok(pair) if matches!(pair.key_pair_type(), KeyPairType::User) => Ok(seed),
        Ok(_) => Err(AccessError::NotAUserSeed { name }),
        Err(source) => Err(AccessError::NotASeed { name, source }),
    }
}

/// The CAs that the system trusts. Where there are none, no server's certificate is trusted, and the sink says so then.
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
