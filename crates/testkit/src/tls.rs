//! A TLS server that vouches for itself, and an authority that vouches for servers and clients.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// An authority in a directory of its own: `ca.pem`, and by it `server`, `client` and `expired` (a server's that is over), each as
/// `.pem`, `.key` (PKCS#8) and `.both` (key, then certificate). All servers are called `127.0.0.1` and `localhost`.
#[derive(Debug)]
pub struct Pki {
    dir: tempfile::TempDir,
}

impl Pki {
    /// A new authority, which nobody trusts yet.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut params = CertificateParams::default();
        // OpenSSL takes a certificate that is called as its issuer is for one that it signed itself.
        params.distinguished_name.push(DnType::CommonName, "the authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed");
        let write = |name: &str, text: String| fs::write(dir.path().join(name), text).expect("a writable directory");
        write("ca.pem", ca.pem());
        for name in ["server", "client", "expired"] {
            let key = KeyPair::generate().expect("a key");
            let names = ["127.0.0.1", "localhost", name].map(str::to_owned);
            let mut params = CertificateParams::new(names).expect("these are names");
            params.distinguished_name.push(DnType::CommonName, name);
            if name == "expired" {
                (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
            }
            let cert = params.signed_by(&key, &ca).expect("signed");
            write(&format!("{name}.key"), key.serialize_pem());
            write(&format!("{name}.pem"), cert.pem());
            write(&format!("{name}.both"), format!("{}{}", key.serialize_pem(), cert.pem()));
        }
        Self { dir }
    }

    /// The path of a file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory of all of them.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A `[tls]` table that names files of this authority, like `[("ca", "ca.pem")]`.
    pub fn table(&self, keys: &[(&str, &str)]) -> String {
        let line = |(key, name): &(&str, &str)| format!("{key} = '{}'", self.path(name).display());
        format!("[tls]\n{}", keys.iter().map(line).collect::<Vec<_>>().join("\n"))
    }
}

impl Default for Pki {
    fn default() -> Self {
        Self::new()
    }
}

/// A server called `names`, and its certificate in PEM form for those who are to trust it.
pub fn server(names: &[&str]) -> (Arc<ServerConfig>, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate().expect("a key");
    let cert = CertificateParams::new(names).expect("names").self_signed(&key).expect("signed").pem();
    let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they fit");
    (Arc::new(config), cert)
}
