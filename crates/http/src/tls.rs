//! TLS of the public port: its certificate, the clients' certificates, and their renewal while the server runs.
//!
//! A client's certificate is asked for and not demanded: which source demands one is that source's own `verify`.

use std::{fmt, io, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use hookgate_core::config::Problem;
use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ServerConfig, WebPkiClientVerifier},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// `server.tls`: where the certificates are. All files are read again when they change.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The server's certificate in PEM form, with the intermediate ones after it.
    pub cert: PathBuf,
    /// Its private key in PEM form.
    pub key: PathBuf,
    /// Certificates in PEM form that clients' certificates must come from, for sources that verify by `client-cert`. Default:
    /// clients are not asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
}

/// The certificates in use. Clones share them.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    config: TlsConfig,
    current: ArcSwap<Loaded>,
}

/// What was made of the files, and a digest of their contents.
struct Loaded {
    digest: [u8; 32],
    server: Arc<ServerConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files of `config`.
    ///
    /// # Errors
    /// What is wrong with which file; keys are relative to the `[server]` table.
    pub fn load(config: &TlsConfig) -> Result<Self, Vec<Problem>> {
        let loaded = Files::read(config).and_then(|files| files.load(config)).map_err(|problem| vec![problem])?;
        Ok(Self { shared: Arc::new(Shared { config: config.clone(), current: ArcSwap::from_pointee(loaded) }) })
    }

    /// Looks at the files again. `None` when they are as they were; else new connections have the new certificates, or
    /// `Err` says why they cannot be used and the old ones stay. Reads from disk: not for a thread that serves requests.
    pub fn refresh(&self) -> Option<Result<(), String>> {
        let Shared { config, current } = &*self.shared;
        let files = match Files::read(config) {
            Ok(files) if files.digest() == current.load().digest => return None,
            files => files,
        };
        let loaded = files.and_then(|files| files.load(config)).map_err(|problem| problem.to_string());
        Some(loaded.map(|loaded| current.store(Arc::new(loaded))))
    }

    /// Shakes hands with a client.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let server = Arc::clone(&self.shared.current.load().server);
        TlsAcceptor::from(server).accept(stream).await
    }
}

/// The contents of the files.
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Files {
    fn read(config: &TlsConfig) -> Result<Self, Problem> {
        let read = |key: &str, path: &PathBuf| {
            let cannot = |error| Problem::new(key, format!("the file {} cannot be read: {error}", path.display()));
            std::fs::read(path).map_err(cannot)
        };
        let client_ca = config.client_ca.as_ref().map(|path| read("tls.client_ca", path)).transpose()?;
        Ok(Self { cert: read("tls.cert", &config.cert)?, key: read("tls.key", &config.key)?, client_ca })
    }

    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for file in [&self.cert, &self.key, self.client_ca.as_ref().unwrap_or(&Vec::new())] {
            hash.update((file.len() as u64).to_le_bytes());
            hash.update(file);
        }
        hash.finalize().into()
    }

    fn load(&self, config: &TlsConfig) -> Result<Loaded, Problem> {
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let chain = certificates("tls.cert", &config.cert, &self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| {
            let message = "holds no private key in PEM form; it begins with -----BEGIN PRIVATE KEY-----";
            Problem::new("tls.key", format!("the file {} {message}", config.key.display()))
        })?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| Problem::new("tls", error.to_string()))?;
        let builder = match (&self.client_ca, &config.client_ca) {
            (Some(content), Some(path)) => {
                let mut roots = RootCertStore::empty();
                let cannot = |error: String| {
                    Problem::new("tls.client_ca", format!("the file {} cannot be used: {error}", path.display()))
                };
                for certificate in certificates("tls.client_ca", path, content)? {
                    roots.add(certificate).map_err(|error| cannot(error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = verifier.allow_unauthenticated().build().map_err(|error| cannot(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut server = builder.with_single_cert(chain, key).map_err(|error| {
            let (key, cert) = (config.key.display(), config.cert.display());
            Problem::new("tls.key", format!("{key} is not the private key of the certificate {cert}: {error}"))
        })?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Loaded { digest: self.digest(), server: Arc::new(server) })
    }
}

fn certificates(key: &str, path: &std::path::Path, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(content).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => {
            let message = "holds no certificate in PEM form; it begins with -----BEGIN CERTIFICATE-----";
            Err(Problem::new(key, format!("the file {} {message}", path.display())))
        }
    }
}
