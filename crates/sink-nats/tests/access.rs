//! Who we are to the server and who it is to us: every way to log in, TLS, and what is said when either is wrong.

mod common;

use std::{path::PathBuf, sync::Arc};

use common::{add_stream, config, connect, jwt::Account, message};
use hookgate_core::{
    observe::Chain,
    sink::{
        PublishErrorKind::{Misconfigured, Unavailable},
        PublishReason::{Auth, Tls},
    },
};
use hookgate_testkit::{
    nats::{NatsAccess, NatsConfig, NatsServer, NatsTls},
    sinks::assert_error,
};
use nkeys::KeyPair;
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

#[tokio::test]
async fn a_credentials_file_logs_in_to_its_account() {
    let account = Account::new();
    let server = NatsServer::start(NatsConfig { extra: account.server_config(), ..NatsConfig::default() }).await;
    account.add_stream(&server).await;
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let file = dir.path().join("relay.creds");
    std::fs::write(&file, account.creds(None)).expect("writable");
    let welcome = connect(&config(&server.url(), &format!("creds = {{ file = '{}' }}", file.display()))).await;
    assert_eq!(welcome.publish_well(&message("1")).await.offset, 1);
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
    connected.is_refused().await;
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
async fn without_a_ca_of_ours_a_server_is_believed_as_the_system_would() {
    let authority = Authority::new();
    let server = authority.server(None).await;
    for tls in ["", "tls = {}"] {
        let error = connect(&config(&server.url(), tls)).await.publish_badly(&message("1")).await;
        assert_error(&error, Misconfigured, Tls, &["invalid peer certificate: UnknownIssuer"]);
    }
}

#[tokio::test]
async fn tls_that_is_demanded_of_a_server_without_it_shows_it_no_credentials() {
    let server = server_for(NatsAccess::Token(PASSWORD.to_owned())).await;
    let login = format!("token = '{PASSWORD}'");
    let by_table = config(&server.url(), &format!("{login}\ntls = {{}}"));
    let by_url = config(&server.url().replace("nats://", "tls://"), &login);
    for demanding in [by_table, by_url] {
        let connected = connect(&demanding).await;
        assert_error(&connected.publish_badly(&message("1")).await, Unavailable, Tls, &[]);
        assert_eq!(connected.seen.count("sink_up"), 0);
    }
}

#[tokio::test]
async fn with_first_the_handshake_does_not_wait_for_a_greeting() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("nats://{}", listener.local_addr().expect("it is bound"));
    let demanding = config(&url, "tls = { first = true }");
    let first_byte = async {
        let (mut client, _) = listener.accept().await.expect("the sink connects");
        tokio::io::AsyncReadExt::read_u8(&mut client).await.expect("the sink speaks first")
    };
    let (first_byte, _connected) = tokio::join!(first_byte, connect(&demanding));
    assert_eq!(first_byte, 22, "a TLS handshake record");
}

#[tokio::test]
async fn tls_needs_no_crypto_provider_of_the_process() {
    let authority = Authority::new();
    let server = authority.server(None).await;
    let trusting = config(&server.url(), &format!("tls = {{ ca = '{}' }}", authority.path("ca.pem").display()));
    connect(&trusting).await.publish_well(&message("1")).await;
    assert!(rustls::crypto::CryptoProvider::get_default().is_none(), "somebody asked for the process's own");
}

#[tokio::test]
async fn files_for_tls_that_cannot_be_used_are_a_start_up_error() {
    let (ours, foreign) = (Authority::new(), Authority::new());
    let path = |authority: &Authority, name| authority.path(name).display().to_string();
    let (cert, key) = (path(&ours, "client.pem"), path(&ours, "client.key"));
    for (line, at, words) in [
        (format!("ca = '{key}'"), "tls.ca", "holds no certificate"),
        (format!("cert = '{key}', key = '{key}'"), "tls.cert", "holds no certificate"),
        (format!("cert = '{cert}', key = '{cert}'"), "tls.key", "as PEM"),
        (format!("cert = '{cert}', key = '{}'", path(&foreign, "client.key")), "tls.key", "with the private key"),
    ] {
        let config = config("nats://127.0.0.1:1", &format!("tls = {{ {line} }}"));
        let error = common::try_connect(&config).await.err().unwrap_or_else(|| panic!("{line}"));
        let chain = Chain(&error).to_string();
        assert_eq!(error.key, at, "{chain}");
        assert!(chain.contains(words), "{chain}");
    }
}

#[tokio::test]
async fn what_the_config_names_and_is_not_there_is_a_start_up_error() {
    let seed_of_an_account = KeyPair::new_account().seed().expect("it has one");
    for (line, key) in [
        ("tls = { ca = 'missing.pem' }", "tls.ca"),
        ("creds = { file = 'missing.creds' }", "creds"),
        ("creds = 'no creds at all'", "creds"),
        ("nkey = 'no seed at all'", "nkey"),
        (&format!("nkey = '{seed_of_an_account}'"), "nkey"),
    ] {
        let error =
            common::try_connect(&config("nats://127.0.0.1:1", line)).await.err().unwrap_or_else(|| panic!("{line}"));
        assert_eq!(error.key, key, "{line}");
        let printed = format!("{error:?} {}", Chain(&error));
        assert!(!printed.contains("at all") && !printed.contains(&seed_of_an_account), "{printed}");
    }
}
