//! TLS of the public port: its certificate, the clients' certificates, and their renewal while the server runs.
//!
//! A client's certificate is asked for and not demanded: which source demands one is that source's own `verify`.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use hookgate_core::{config::Problem, observe::TlsFailure};
use rustls::{
    Error, InconsistentKeys, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ServerConfig, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SigningKey, SingleCertAndKey},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::pem;

/// `server.tls`: where the certificates are. All files are read again when they change.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ServerTls")]
pub struct TlsConfig {
    /// The server's certificate in PEM form, with the intermediate ones after it.
    pub cert: PathBuf,
    /// Its private key in PEM form, without a password.
    pub key: PathBuf,
    /// Certificates in PEM form that clients' certificates must come from, for sources that verify by `client-cert`. A client
    /// that shows another one is turned away in the handshake; one that shows none is not. Default: clients are not asked for
    /// one.
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
    served: ArcSwap<Served>,
    /// What the files were when they were last looked at, usable or not: each state of theirs is told of once.
    seen: Mutex<Fingerprint>,
}

/// What new connections are served with.
struct Served {
    server: Arc<ServerConfig>,
    /// When the server's own certificate ends. Not that of those after it: a chain may end in a root that ended years ago
    /// and that nobody looks at, as that of Let's Encrypt did.
    expires: Option<SystemTime>,
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
    /// Every problem found: a file that cannot be read, is empty or is not in PEM form, and a key that is not the
    /// certificate's. Keys are relative to the `[server]` table.
    pub fn load(config: &TlsConfig) -> Result<Self, Vec<Problem>> {
        let files = Files::read(config);
        let (served, seen) = (ArcSwap::from_pointee(files.served()?), Mutex::new(files.fingerprint()));
        Ok(Self { shared: Arc::new(Shared { config: config.clone(), served, seen }) })
    }

    /// Looks at the files again. `None` when they are as they were the last time; else new connections have the new
    /// certificates and no session from before is resumed, or `Err` says why the files cannot be used and the certificates
    /// from before stay. Reads from disk: not for a thread that serves requests.
    pub fn refresh(&self) -> Option<Result<(), String>> {
        let Shared { config, served, seen } = &*self.shared;
        // Held until the end, so that of two at once the one that has read later also has the last word.
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let files = Files::read(config);
        let fingerprint = files.fingerprint();
        if *seen == fingerprint {
            return None;
        }
        *seen = fingerprint;
        Some(match files.served() {
            Ok(renewed) => {
                served.store(Arc::new(renewed));
                Ok(())
            }
            Err(problems) => Err(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
        })
    }

    /// When the certificate that new connections are shown ends; `None` where it is too unusual to be read.
    pub fn expires(&self) -> Option<SystemTime> {
        self.shared.served.load().expires
    }

    /// Shakes hands with a client.
    ///
    /// # Errors
    /// When the client does not speak TLS, shows a certificate that `client_ca` does not vouch for, or goes away.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(Arc::clone(&self.shared.served.load().server)).accept(stream).await
    }
}

/// Why a handshake failed, as far as an operator can do something about it.
pub(crate) fn failure(error: &io::Error) -> TlsFailure {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(Error::AlertReceived(_)) => TlsFailure::RefusedByClient,
        Some(Error::InvalidCertificate(_) | Error::NoCertificatesPresented | Error::InvalidCertRevocationList(_)) => {
            TlsFailure::ClientCertificate
        }
        Some(Error::PeerIncompatible(_) | Error::NoApplicationProtocol) => TlsFailure::Incompatible,
        Some(
            Error::InvalidMessage(_)
            | Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::PeerMisbehaved(_)
            | Error::DecryptError
            | Error::PeerSentOversizedRecord,
        ) => TlsFailure::Malformed,
        Some(_) => TlsFailure::Other,
        // What is no word of the library's is the connection's.
        None => TlsFailure::Closed,
    }
}

/// When the certificate `der` ends.
fn end_of(der: &[u8]) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let seconds = certificate.validity().not_after.timestamp();
    // What ended before 1970 has ended.
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Tells contents of the files apart without keeping a second copy of the key.
type Fingerprint = [u8; 32];

/// The files, as they were at one look.
struct Files<'a> {
    cert: File<'a>,
    key: File<'a>,
    client_ca: Option<File<'a>>,
}

impl<'a> Files<'a> {
    fn read(config: &'a TlsConfig) -> Self {
        Self {
            cert: File::read("tls.cert", &config.cert),
            key: File::read("tls.key", &config.key),
            client_ca: config.client_ca.as_deref().map(|path| File::read("tls.client_ca", path)),
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        for file in [&self.cert, &self.key].into_iter().chain(&self.client_ca) {
            let (is_read, bytes) = match &file.content {
                Ok(content) => (1, &content[..]),
                Err(message) => (0, message.as_bytes()),
            };
            hash.update([is_read]);
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        hash.finalize().into()
    }

    /// What a server needs of them.
    fn served(&self) -> Result<Served, Vec<Problem>> {
        let provider = Arc::new(ring::default_provider());
        let mut problems = Vec::new();
        let mut told = |problem| problems.push(problem);
        let chain = self.cert.certificates().map_err(&mut told);
        let key = self.key.signing_key(&provider).map_err(&mut told);
        let verifier = self.client_ca.as_ref().map(|file| file.client_verifier(&provider)).transpose();
        let verifier = verifier.map_err(&mut told);
        let (Ok(chain), Ok(key), Ok(verifier)) = (chain, key, verifier) else { return Err(problems) };
        let expires = chain.first().and_then(|leaf| end_of(leaf));
        let certified = self.certified(chain, key).map_err(|problem| vec![problem])?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the suites of both versions");
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut server = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Served { server: Arc::new(server), expires })
    }

    /// The certificate with its key, if that is its key.
    fn certified(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: Arc<dyn SigningKey>,
    ) -> Result<CertifiedKey, Problem> {
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) => Ok(certified),
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(self.key.problem(&format!(
                "is not the private key of the certificate in {}; renew both together",
                self.cert.path.display()
            ))),
            // All keys of ring know their public half, so what is left is the certificate itself.
            Err(error) => Err(self.cert.problem(&format!("holds a certificate that cannot be used: {error}"))),
        }
    }
}

/// One file: its key in the configuration, and its contents or why they cannot be read.
struct File<'a> {
    key: &'static str,
    path: &'a Path,
    content: Result<Vec<u8>, String>,
}

impl<'a> File<'a> {
    fn read(key: &'static str, path: &'a Path) -> Self {
        Self { key, path, content: std::fs::read(path).map_err(|error| format!("cannot be read: {error}")) }
    }

    fn problem(&self, message: &str) -> Problem {
        pem::problem(self.key, self.path, message)
    }

    fn content(&self) -> Result<&[u8], Problem> {
        self.content.as_deref().map_err(|message| self.problem(message))
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Problem> {
        pem::certificates(self.content()?).map_err(|message| self.problem(message))
    }

    fn signing_key(&self, provider: &CryptoProvider) -> Result<Arc<dyn SigningKey>, Problem> {
        let content = self.content()?;
        // The library's own messages quote the file.
        let key = PrivateKeyDer::from_pem_slice(content).map_err(|_| self.problem(pem::no_private_key(content)))?;
        let usable = provider.key_provider.load_private_key(key);
        usable.map_err(|error| self.problem(&format!("holds a private key that cannot be used: {error}")))
    }

    fn client_verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, Problem> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            let added = roots.add(certificate);
            added.map_err(|error| self.problem(&format!("holds a certificate that cannot be used: {error}")))?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let verifier = builder.allow_unauthenticated().build();
        verifier.map_err(|error| self.problem(&format!("cannot be used: {error}")))
    }
}
