//! Certificates from the files that an operator names, and the words for what is wrong with a file.
//!
//! Nothing from inside a file is ever quoted: it may be a key.

use std::path::Path;

use hookgate_core::config::Problem;
use rustls::pki_types::{CertificateDer, pem::PemObject};

/// All certificates in `content`, at least one, or what is wrong, as the rest of a sentence that begins with the file.
pub(crate) fn certificates(content: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    if content.trim_ascii().is_empty() {
        return Err("is empty; write a certificate in PEM form there");
    }
    match CertificateDer::pem_slice_iter(content).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err("holds no certificate in PEM form; it begins with -----BEGIN CERTIFICATE-----"),
    }
}

/// Why there is no private key in `content`, likewise.
pub(crate) fn no_private_key(content: &[u8]) -> &'static str {
    const ENCRYPTED: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
    if content.trim_ascii().is_empty() {
        "is empty; write a private key in PEM form there"
    } else if content.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED) {
        "holds a private key behind a password, which nobody is there to type; write it without, by `openssl pkey`"
    } else {
        "holds no private key in PEM form; it begins with -----BEGIN PRIVATE KEY-----"
    }
}

/// A problem with the file at `path`.
pub(crate) fn problem(key: &str, path: &Path, message: &str) -> Problem {
    Problem::new(key, format!("the file {} {message}", path.display()))
}
