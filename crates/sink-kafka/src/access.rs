//! How a producer proves who we are and how its connections are encrypted: from the config and its secrets to librdkafka's
//! properties.
//!
//! Secrets and files are read anew for each producer. librdkafka reads neither again afterwards.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hookgate_core::secret::{ResolveSecret, SecretRef, SecretSlot};
use rdkafka::{ClientConfig, client::OAuthToken};

use crate::config::{Config, Sasl, TlsConfig};

/// What a producer needs besides brokers.
pub(crate) struct Access {
    login: Option<Login>,
    tls: Option<TlsConfig>,
}

enum Login {
    Password { sasl: Sasl, user: Arc<SecretSlot>, password: Arc<SecretSlot> },
    Token(Arc<SecretSlot>),
}

/// Why something that the config names cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("find the secret: {message}")]
    Unresolved { key: &'static str, message: String },
    #[error("the secret {name} is not text")]
    NotText { key: &'static str, name: Arc<str> },
    #[error("the secret {name} is no JWT")]
    NotAToken { name: Arc<str> },
    #[error("read {path}")]
    Unreadable { key: &'static str, path: PathBuf, source: io::Error },
    #[error("the path {path} is not text")]
    NotAPath { key: &'static str, path: PathBuf },
    #[error("{words}")]
    Refused { key: &'static str, words: String },
}

impl AccessError {
    /// The key at fault, relative to the sink's table.
    pub(crate) fn key(&self) -> &'static str {
        match self {
            Self::NotAToken { .. } => "token",
            Self::Unresolved { key, .. }
            | Self::NotText { key, .. }
            | Self::Unreadable { key, .. }
            | Self::NotAPath { key, .. }
            | Self::Refused { key, .. } => key,
        }
    }

    /// Whether it is about TLS, else about logging in.
    pub(crate) fn is_about_tls(&self) -> bool {
        self.key().starts_with("tls")
    }
}

impl Access {
    /// Finds the secrets of `config`, which has passed [`Config::check`].
    pub(crate) fn resolve(config: &Config, resolve: &mut ResolveSecret<'_>) -> Result<Self, AccessError> {
        let mut slot = |key: &'static str, reference: &SecretRef| {
            resolve(reference).map_err(|message| AccessError::Unresolved { key, message })
        };
        let login = match (config.sasl, &config.token, &config.user, &config.password) {
            (Some(_), Some(token), ..) => Some(Login::Token(slot("token", token)?)),
            (Some(sasl), None, Some(user), Some(password)) => {
                Some(Login::Password { sasl, user: slot("user", user)?, password: slot("password", password)? })
            }
            _ => None,
        };
        Ok(Self { login, tls: config.tls.clone() })
    }

    /// Adds login and TLS, as secrets and files say now, to `properties`. Reads files, so it may block.
    ///
    /// `properties` holds the password afterwards; it is not to be printed.
    pub(crate) fn apply(&self, properties: &mut ClientConfig) -> Result<(), AccessError> {
        let protocol = match (&self.login, &self.tls) {
            (None, None) => "plaintext",
            (None, Some(_)) => "ssl",
            (Some(_), None) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        properties.set("security.protocol", protocol);
        match &self.login {
            Some(Login::Password { sasl, user, password }) => {
                properties.set("sasl.mechanism", sasl.mechanism());
                properties.set("sasl.username", text("user", user)?);
                properties.set("sasl.password", text("password", password)?);
            }
            // librdkafka asks for the token itself when it needs one.
            Some(Login::Token(_)) => {
                properties.set("sasl.mechanism", Sasl::OauthBearer.mechanism());
            }
            None => {}
        }
        let Some(TlsConfig { ca, cert, key }) = &self.tls else {
            return Ok(());
        };
        match ca {
            Some(ca) => properties.set("ssl.ca.location", readable("tls.ca", ca)?),
            // The OpenSSL within knows no place of the system's CAs; librdkafka then looks where the systems have them.
            None => properties.set("ssl.ca.location", "probe"),
        };
        if let Some(cert) = cert {
            properties.set("ssl.certificate.location", readable("tls.cert", cert)?);
        }
        if let Some(key) = key {
            properties.set("ssl.key.location", readable("tls.key", key)?);
        }
        Ok(())
    }
}

impl Access {
    /// The token, as its secret says now. The error does not repeat it.
    pub(crate) fn token(&self) -> Result<OAuthToken, AccessError> {
        let Some(Login::Token(slot)) = &self.login else {
            return Err(refused("sasl: no token is configured"));
        };
        let token = text("token", slot)?.trim().to_owned();
        let claims = claims(&token).ok_or_else(|| AccessError::NotAToken { name: slot.name().clone() })?;
        let seconds = |claim: &str| claims[claim].as_f64();
        // One that does not say when it ends is taken for good and asked for again in an hour.
        let in_an_hour =
            || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64() + 3600.0;
        Ok(OAuthToken {
            principal_name: claims["sub"].as_str().unwrap_or("hookgate").to_owned(),
            lifetime_ms: (seconds("exp").unwrap_or_else(in_an_hour) * 1000.0) as i64,
            token,
        })
    }
}

/// What a JWT claims, which only the broker verifies. Source: RFC 7519, section 3.
fn claims(token: &str) -> Option<serde_json::Value> {
    let payload = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&claims).ok()
}

/// The key at fault when librdkafka does not take its properties. It says so in words only.
pub(crate) fn refused(words: &str) -> AccessError {
    let blamed = [
        ("ssl.ca", "tls.ca"),
        ("ssl.certificate", "tls.cert"),
        ("ssl.key", "tls.key"),
        ("rivate key", "tls.key"),
        ("ssl", "tls"),
        ("SSL", "tls"),
        ("sasl", "sasl"),
    ];
    let key = blamed.iter().find(|(part, _)| words.contains(part)).map_or("brokers", |(_, key)| key);
    AccessError::Refused { key, words: words.to_owned() }
}

fn text(key: &'static str, slot: &SecretSlot) -> Result<String, AccessError> {
    match std::str::from_utf8(slot.current().expose()) {
        // A zero would end the text for librdkafka, and the library's complaint of one shows all of it.
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(AccessError::NotText { key, name: slot.name().clone() }),
    }
}

/// The path, if its file can be read now. What librdkafka says of one that cannot be is hard to read.
fn readable(key: &'static str, path: &Path) -> Result<String, AccessError> {
    fs::read(path).map_err(|source| AccessError::Unreadable { key, path: path.to_owned(), source })?;
    path.to_str().map(str::to_owned).ok_or_else(|| AccessError::NotAPath { key, path: path.to_owned() })
}
