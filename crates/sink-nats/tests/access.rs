//! Who we are to the server and who it is to us: every way to log in, TLS, and what is said when either is wrong.

mod common;

use std::{path::PathBuf, sync::Arc};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use common::{add_stream, assert_error, config, connect, message};
use hookgate_core::sink::{
    PublishErrorKind::Misconfigured,
    PublishReason::{Auth, Tls},
};
use hookgate_testkit::nats::{NatsAccess, NatsConfig, NatsServer, NatsTls};
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

/// What no output may hold.
const PASSWORD: &str = "secret-of-this-test";

async fn server_for(access: NatsAccess) -> NatsServer {
    let server = NatsServer::start(NatsConfig { access, ..NatsConfig::default() }).await;
    add_stream(&server).await;
    server
}

/// Publishes with `right`, and sees `wrong` refused in the server's words.
async fn let_in_and_kept_out(server: &NatsServer, right: &str, wrong: &str) {
    let welcome = connect(&config(&server.url(), right)).await;
    welcome.publish_well(&message("1")).await;
    let stranger = connect(&config(&server.url(), wrong)).await;
    let error = stranger.publish_badly(&message("2")).await;
    assert_error(&error, Misconfigured, Auth, &["authorization violation"]);
    assert_error(&stranger.probe_badly().await, Misconfigured, Auth, &["authorization violation"]);
    let printed =
        format!("{:?} {:?} {:?} {error:?}", welcome.sink, config(&server.url(), right), stranger.seen.lines());
    assert!(!printed.contains(PASSWORD), "{printed}");
}

#[tokio::test]
async fn a_user_logs_in_with_the_right_password_only() {
    let server = server_for(NatsAccess::Password { user: "relay".to_owned(), password: PASSWORD.to_owned() }).await;
    let right = format!("user = 'relay'\npassword = '{PASSWORD}'");
    let_in_and_kept_out(&server, &right, "user = 'relay'\npassword = 'wrong'").await;
}

#[tokio::test]
async fn a_token_lets_in_when_it_is_the_right_one_only() {
    let server = server_for(NatsAccess::Token(PASSWORD.to_owned())).await;
    let_in_and_kept_out(&server, &format!("token = '{PASSWORD}'"), "token = 'wrong'").await;
}

#[tokio::test]
async fn an_nkey_lets_in_whoever_has_its_seed() {
    let (ours, foreign) = (KeyPair::new_user(), KeyPair::new_user());
    let server = server_for(NatsAccess::Nkey(ours.public_key())).await;
    let line = |pair: &KeyPair| format!("nkey = '{}'", pair.seed().expect("it has one"));
    let_in_and_kept_out(&server, &line(&ours), &line(&foreign)).await;
}

/// A JWT as NATS uses it. Source: nats-io/jwt, version 2 of the claims.
fn jwt(issuer: &KeyPair, subject: &KeyPair, kind: &str, mut claims: Value) -> String {
    claims["type"] = kind.into();
    claims["version"] = 2.into();
    let claims = json!({
        "jti": "test", "iat": 1, "iss": issuer.public_key(), "name": kind, "sub": subject.public_key(), "nats": claims,
    });
    let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), encode(&claims));
    let signature = issuer.sign(signed.as_bytes()).expect("it has a seed");
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn a_credentials_file_logs_in_to_its_account() {
    let (operator, system) = (KeyPair::new_operator(), KeyPair::new_account());
    let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
    let limits = json!({ "limits": {
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    } });
    let of_account = jwt(&operator, &account, "account", limits);
    let of_system = jwt(&operator, &system, "account", json!({ "limits": { "conn": -1, "subs": -1, "leaf": -1 } }));
    let of_user = jwt(&account, &user, "user", json!({ "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 }));
    let extra = format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {of_account}, {}: {of_system} }}\n",
        jwt(&operator, &operator, "operator", json!({})),
        system.public_key(),
        account.public_key(),
        system.public_key(),
    );
    let server = NatsServer::start(NatsConfig { extra, ..NatsConfig::default() }).await;
    let seed = user.seed().expect("it has one");
    let creds = format!(
        "-----BEGIN NATS USER JWT-----\n{of_user}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    // The testkit's own reader has no creds: the library makes the stream here.
    let options = async_nats::ConnectOptions::with_credentials(&creds).expect("well formed");
    let maker = async_nats::jetstream::new(options.connect(server.url()).await.expect("let in"));
    let stream = async_nats::jetstream::stream::Config {
        name: "HOOKS".to_owned(),
        subjects: vec!["hooks.>".to_owned()],
        ..Default::default()
    };
    maker.create_stream(stream).await.expect("it is made");

    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let file = dir.path().join("relay.creds");
    std::fs::write(&file, &creds).expect("writable");
    let welcome = connect(&config(&server.url(), &format!("creds = {{ file = '{}' }}", file.display()))).await;
    assert_eq!(welcome.publish_well(&message("1")).await.offset, 1);
    assert!(!format!("{:?}", welcome.sink).contains(&seed));
    let stranger = connect(&config(&server.url(), "")).await;
    assert_error(&stranger.publish_badly(&message("2")).await, Misconfigured, Auth, &["authorization violation"]);
}

#[tokio::test]
async fn a_login_that_the_server_changes_is_refused_until_it_is_changed_back() {
    let access = NatsAccess::Token(PASSWORD.to_owned());
    let mut server = server_for(access.clone()).await;
    let connected = connect(&config(&server.url(), &format!("token = '{PASSWORD}'"))).await;
    connected.publish_well(&message("1")).await;
    server.reconfigure(NatsConfig { access: NatsAccess::Token("rotated".to_owned()), ..NatsConfig::default() }).await;
    connected.tells_down(1).await;
    assert_error(&connected.publish_badly(&message("2")).await, Misconfigured, Auth, &[]);
    server.reconfigure(NatsConfig { access, ..NatsConfig::default() }).await;
    connected.recovers().await;
    connected.publish_well(&message("2")).await;
}

/// A CA, and certificates of it for the server on loopback and for a client.
struct Authority {
    dir: TempDir,
}

impl Authority {
    fn new() -> Arc<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let write = |name: &str, pem: String| std::fs::write(dir.path().join(name), pem).expect("writable");
        let ca_key = rcgen::KeyPair::generate().expect("a key");
        let mut ca = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        write("ca.pem", ca.self_signed(&ca_key).expect("a certificate").pem());
        let issuer = rcgen::Issuer::new(ca, ca_key);
        for name in ["server", "client"] {
            let key = rcgen::KeyPair::generate().expect("a key");
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let certificate = rcgen::CertificateParams::new(names).expect("names").signed_by(&key, &issuer);
            write(&format!("{name}.pem"), certificate.expect("a certificate").pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        Arc::new(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A server of this authority, with the stream.
    async fn server(&self, client_ca: Option<PathBuf>) -> NatsServer {
        // The testkit's reader speaks no TLS: it makes the stream before.
        let mut server = common::server_with_stream().await;
        server.stop().await;
        let tls = NatsTls { cert: self.path("server.pem"), key: self.path("server.key"), client_ca };
        server.reconfigure(NatsConfig { tls: Some(tls), ..NatsConfig::default() }).await;
        server.restart().await;
        server
    }
}

#[tokio::test]
async fn a_server_is_believed_when_a_ca_of_ours_has_signed_it_only() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let server = authority.server(None).await;
    let trusting = |ca: PathBuf| config(&server.url(), &format!("tls = {{ ca = '{}' }}", ca.display()));
    connect(&trusting(authority.path("ca.pem"))).await.publish_well(&message("1")).await;
    let error = connect(&trusting(foreign.path("ca.pem"))).await.publish_badly(&message("2")).await;
    assert_error(&error, Misconfigured, Tls, &["certificate"]);
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_ours() {
    let authority = Authority::new();
    let server = authority.server(Some(authority.path("ca.pem"))).await;
    let path = |name| authority.path(name).display().to_string();
    let ca = path("ca.pem");
    let shown = format!("tls = {{ ca = '{ca}', cert = '{}', key = '{}' }}", path("client.pem"), path("client.key"));
    connect(&config(&server.url(), &shown)).await.publish_well(&message("1")).await;
    let error =
        connect(&config(&server.url(), &format!("tls = {{ ca = '{ca}' }}"))).await.publish_badly(&message("2")).await;
    assert_error(&error, Misconfigured, Tls, &[]);
}

#[tokio::test]
async fn what_the_config_names_and_is_not_there_is_a_start_up_error() {
    for (line, key) in [
        ("tls = { ca = 'missing.pem' }", "tls.ca"),
        ("creds = { file = 'missing.creds' }", "creds"),
        ("creds = 'no creds at all'", "creds"),
        ("nkey = 'no seed at all'", "nkey"),
    ] {
        let error =
            common::try_connect(&config("nats://127.0.0.1:1", line)).await.err().unwrap_or_else(|| panic!("{line}"));
        assert_eq!(error.key, key, "{line}");
        assert!(!format!("{error:?} {error}").contains("at all"), "{error:?}");
    }
}
