//! A real `nats-server` with JetStream, as a child process in a directory of its own.
//!
//! It keeps its port and its store for life: it can be killed, paused, restarted and reconfigured, and clients that know
//! its URL find it again. Debian's nats-server 2.9.10 suffices.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;

use crate::nats_wire::NatsWire;
use crate::process::{self, Process, wait_until};

/// Longest wait for a start, a stop or a reload. They take some 10 ms; the rest is for a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// User and password by which the testkit itself gets into a server that asks for an nkey.
const READER: &str = "testkit-reader";

/// What is asked of a server. All else is the server's own default.
#[derive(Debug, Clone)]
pub struct NatsConfig {
    /// Largest payload of a message, headers included, in bytes. Default: 1 MiB, the server's own.
    pub max_payload: u32,
    /// Who may connect.
    pub access: NatsAccess,
    /// TLS, which clients then must use.
    pub tls: Option<NatsTls>,
    /// JetStream domain. Default: none.
    pub domain: Option<String>,
    /// Further lines for the configuration file, in its syntax.
    pub extra: String,
}

impl Default for NatsConfig {
    fn default() -> NatsConfig {
        NatsConfig { max_payload: 1024 * 1024, access: NatsAccess::Open, tls: None, domain: None, extra: String::new() }
    }
}

/// Who may connect to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NatsAccess {
    /// Anybody.
    Open,
    /// One user with one password.
    Password {
        /// User name.
        user: String,
        /// Password, in the clear.
        password: String,
    },
    /// Whoever shows this token.
    Token(String),
    /// Whoever signs with the seed to this public user key (`U...`), and the testkit itself with a password.
    Nkey(String),
}

/// Files for TLS, all in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsTls {
    /// The server's certificate chain.
    pub cert: PathBuf,
    /// The private key to it.
    pub key: PathBuf,
    /// If set, clients must show a certificate from this authority.
    pub client_ca: Option<PathBuf>,
}

/// A `nats-server` on a loopback port. It is killed on drop and its store is removed.
#[derive(Debug)]
pub struct NatsServer {
    config: NatsConfig,
    port: u16,
    /// The latest process; it may have ended. It is dropped before `dir`, so that the server is gone when its files go.
    process: Process,
    dir: TempDir,
}

impl NatsServer {
    /// Starts a server on a free port with an empty store, and waits until it greets clients.
    ///
    /// # Panics
    /// When there is no `nats-server` (see [`process::program`]) or it does not start; its log is shown then.
    pub async fn start(config: NatsConfig) -> NatsServer {
        let dir = tempfile::Builder::new()
            .prefix("hookgate-nats-")
            .tempdir()
            .unwrap_or_else(|error| panic!("make a directory for nats-server: {error}"));
        let port = process::free_port();
        write_config(&dir, port, &config);
        let process = boot(&dir, port).await;
        NatsServer { config, port, process, dir }
    }

    /// The port, the same for life.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `nats://127.0.0.1:<port>`, without credentials.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The URL with credentials that let the testkit in, for [`NatsWire::connect`].
    pub fn access_url(&self) -> String {
        let port = self.port;
        match &self.config.access {
            NatsAccess::Open => self.url(),
            NatsAccess::Password { user, password } => format!("nats://{user}:{password}@127.0.0.1:{port}"),
            NatsAccess::Token(token) => format!("nats://{token}@127.0.0.1:{port}"),
            NatsAccess::Nkey(_) => format!("nats://{READER}:{READER}@127.0.0.1:{port}"),
        }
    }

    /// Opens a connection that reads and writes streams without any client library. The server must not demand TLS.
    pub async fn wire(&self) -> NatsWire {
        NatsWire::connect(&self.access_url()).await
    }

    /// Stops it in order (SIGTERM). It must be running, and not be paused.
    pub async fn stop(&mut self) -> ExitStatus {
        self.process.terminate();
        self.process.wait(LIMIT).await
    }

    /// Kills it (SIGKILL), if it runs.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port and store, and waits until it greets clients. One that runs is stopped first.
    pub async fn restart(&mut self) {
        if self.process.exit_status().is_none() {
            self.stop().await;
        }
        self.process = boot(&self.dir, self.port).await;
    }

    /// Freezes it (SIGSTOP): connections stay open and nothing is answered. It must be running.
    pub fn pause(&mut self) {
        self.process.pause();
    }

    /// Lets a paused server go on.
    pub fn resume(&mut self) {
        self.process.resume();
    }

    /// Rewrites its configuration and, if it runs, waits until it has reloaded it.
    ///
    /// # Panics
    /// When the server refuses to reload; some changes want a restart, so do `kill` or `stop` first for those.
    pub async fn reconfigure(&mut self, config: NatsConfig) {
        write_config(&self.dir, self.port, &config);
        self.config = config;
        if self.process.exit_status().is_some() {
            return;
        }
        let read = self.process.log().len();
        self.process.hang_up();
        wait_until(LIMIT, "nats-server has reloaded its configuration", async || {
            let log = self.process.log();
            let news = &log[read..];
            assert!(!news.contains("Failed to reload server configuration"), "nats-server did not reload:\n{news}");
            news.contains("Reloaded server configuration")
        })
        .await;
    }

    /// What it has logged since its first start.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

async fn boot(dir: &TempDir, port: u16) -> Process {
    let mut command = Command::new(process::program("nats-server"));
    command.arg("--config").arg(config_path(dir));
    let mut process = Process::spawn("nats-server", command, dir.path());
    wait_until(LIMIT, "nats-server greets a client", async || {
        if let Some(status) = process.exit_status() {
            panic!("nats-server ended while it started ({status}); its log:\n{}", process.log());
        }
        greets(port).await
    })
    .await;
    process
}

fn config_path(dir: &TempDir) -> PathBuf {
    dir.path().join("nats.conf")
}

/// Writes the configuration file. Its language takes JSON for values, and JSON is what quotes a password rightly.
fn write_config(dir: &TempDir, port: u16, config: &NatsConfig) {
    let listen = json!(format!("127.0.0.1:{port}"));
    let mut jetstream = json!({
        "store_dir": dir.path(), "max_memory_store": 256 * 1024 * 1024, "max_file_store": 1024 * 1024 * 1024,
    });
    if let Some(domain) = &config.domain {
        jetstream["domain"] = json!(domain);
    }
    let mut lines = format!("listen: {listen}\njetstream: {jetstream}\nmax_payload: {}\n", config.max_payload);
    if let Some(authorization) = authorization(&config.access) {
        lines.push_str(&format!("authorization: {authorization}\n"));
    }
    if let Some(tls) = &config.tls {
        lines.push_str(&format!("tls: {}\n", tls_section(tls)));
    }
    lines.push_str(&config.extra);
    fs::write(config_path(dir), lines).unwrap_or_else(|error| panic!("write nats.conf: {error}"));
}

fn authorization(access: &NatsAccess) -> Option<Value> {
    match access {
        NatsAccess::Open => None,
        NatsAccess::Password { user, password } => Some(json!({ "user": user, "password": password })),
        NatsAccess::Token(token) => Some(json!({ "token": token })),
        NatsAccess::Nkey(key) => Some(json!({ "users": [{ "nkey": key }, { "user": READER, "password": READER }] })),
    }
}

fn tls_section(tls: &NatsTls) -> Value {
    let mut section = json!({ "cert_file": tls.cert, "key_file": tls.key });
    if let Some(ca) = &tls.client_ca {
        section["ca_file"] = json!(ca);
        section["verify"] = json!(true);
    }
    section
}

/// Whether a server sends its INFO line on that port. It does so before any TLS handshake.
async fn greets(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await else {
        return false;
    };
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await.is_ok() && line.starts_with("INFO ")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store_one(server: &NatsServer) {
        let mut wire = server.wire().await;
        wire.create_stream(&json!({ "name": "HOOKS", "subjects": ["hooks.>"] })).await;
        wire.publish("hooks.a", &[("Nats-Msg-Id", "1")], b"kept").await;
    }

    async fn stored_payloads(server: &NatsServer) -> Vec<bytes::Bytes> {
        server.wire().await.read_stream("HOOKS").await.into_iter().map(|message| message.payload).collect()
    }

    /// The INFO line that a client gets, as JSON.
    async fn info(server: &NatsServer) -> Value {
        let stream = TcpStream::connect(("127.0.0.1", server.port())).await.expect("the server accepts clients");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await.expect("the server greets");
        serde_json::from_str(line.trim_start_matches("INFO ")).expect("INFO is JSON")
    }

    fn open_with(max_payload: u32) -> NatsConfig {
        NatsConfig { max_payload, ..NatsConfig::default() }
    }

    #[tokio::test]
    async fn a_killed_server_comes_back_with_its_streams_on_the_same_port() {
        let mut server = NatsServer::start(NatsConfig::default()).await;
        store_one(&server).await;
        let url = server.url();
        server.kill();
        assert!(!greets(server.port()).await);
        server.restart().await;
        assert_eq!(server.url(), url);
        assert_eq!(stored_payloads(&server).await, ["kept"]);
    }

    #[tokio::test]
    async fn a_stopped_server_comes_back_with_its_streams() {
        let mut server = NatsServer::start(NatsConfig::default()).await;
        store_one(&server).await;
        server.stop().await;
        server.restart().await;
        assert_eq!(stored_payloads(&server).await, ["kept"]);
        server.restart().await;
        assert_eq!(stored_payloads(&server).await, ["kept"]);
    }

    #[tokio::test]
    async fn a_paused_server_answers_when_it_is_resumed() {
        let mut server = NatsServer::start(NatsConfig::default()).await;
        store_one(&server).await;
        server.pause();
        let silent = tokio::time::timeout(Duration::from_millis(100), stored_payloads(&server)).await;
        assert!(silent.is_err(), "a paused server answered {silent:?}");
        server.resume();
        assert_eq!(stored_payloads(&server).await, ["kept"]);
    }

    #[tokio::test]
    async fn a_running_server_takes_a_new_configuration_without_losing_clients() {
        let mut server = NatsServer::start(NatsConfig::default()).await;
        let mut wire = server.wire().await;
        assert_eq!(info(&server).await["max_payload"], 1024 * 1024);
        server.reconfigure(open_with(4096)).await;
        assert_eq!(info(&server).await["max_payload"], 4096);
        server.reconfigure(open_with(8192)).await;
        assert_eq!(info(&server).await["max_payload"], 8192);
        wire.create_stream(&json!({ "name": "HOOKS" })).await;
    }

    #[tokio::test]
    async fn every_kind_of_access_lets_the_testkit_in_and_a_stranger_not() {
        let nkey = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
        for access in [
            NatsAccess::Password { user: "relay".to_owned(), password: "pa\"ss\\ $x".to_owned() },
            NatsAccess::Token("t0ken".to_owned()),
            NatsAccess::Nkey(nkey.to_owned()),
        ] {
            let server = NatsServer::start(NatsConfig { access: access.clone(), ..NatsConfig::default() }).await;
            store_one(&server).await;
            let url = server.url();
            let stranger = tokio::spawn(async move { NatsWire::connect(&url).await });
            let panic = stranger.await.expect_err("a stranger is refused").into_panic();
            let message = panic.downcast_ref::<String>().expect("the panic has a message");
            assert!(message.contains("Authorization Violation"), "{access:?}: {message}");
        }
    }

    #[tokio::test]
    async fn a_server_with_tls_demands_it_and_can_be_read_after_a_restart_without() {
        let files = tempfile::tempdir().expect("a temporary directory can be made");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate can be made");
        let tls = NatsTls {
            cert: files.path().join("cert.pem"),
            key: files.path().join("key.pem"),
            client_ca: Some(files.path().join("cert.pem")),
        };
        fs::write(&tls.cert, made.cert.pem()).expect("the certificate can be written");
        fs::write(&tls.key, made.signing_key.serialize_pem()).expect("the key can be written");

        let mut server = NatsServer::start(NatsConfig { tls: Some(tls), ..NatsConfig::default() }).await;
        let greeting = info(&server).await;
        assert_eq!((&greeting["tls_required"], &greeting["tls_verify"]), (&json!(true), &json!(true)));
        server.stop().await;
        server.reconfigure(NatsConfig::default()).await;
        server.restart().await;
        store_one(&server).await;
    }

    #[tokio::test]
    async fn extra_lines_reach_the_server() {
        let extra = "server_name: \"extra\"".to_owned();
        let server = NatsServer::start(NatsConfig { extra, ..NatsConfig::default() }).await;
        assert_eq!(info(&server).await["server_name"], "extra");
        assert!(server.log().contains("Server is ready"));
    }
}
