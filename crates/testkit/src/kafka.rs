//! A real Apache Kafka, broker and controller in one, as a child process in a directory of its own.
//!
//! It keeps its ports and its store for life: it can be killed, paused and restarted, and clients that know its address
//! find it again. It runs on Java 17 from jars that `tests/run` fetches with Maven. Topics are made and read by the tests
//! themselves, since that takes a client, and this crate has none.
//!
//! The surprising thing: a broker tells its clients where to connect, and they believe it. A proxy in front of it is
//! therefore named to the broker too ([`KafkaConfig::proxy_port`]), and there is a second way in that goes around it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::LazyLock,
    time::Duration,
};

use tempfile::TempDir;

use crate::process::{self, Process, wait_until};

/// The version that `tests/run` fetches; it stands there too.
pub const KAFKA_VERSION: &str = "4.4.0";

/// Longest wait for a start or a stop. A start takes 3 to 6 s, the rest is for a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The node id of [`KafkaServer::start_second`], to have a topic put there. That of the first is 1.
pub const SECOND: i32 = 2;

/// The last line of a start.
const STARTED: &str = "Kafka Server started";

/// What is asked of a server. All else is the server's own default, but that topics are not made by being named.
#[derive(Debug, Clone, Default)]
pub struct KafkaConfig {
    /// Port of a proxy in front of the server, which clients are then sent to. Default: none, they come directly.
    pub proxy_port: Option<u16>,
    /// User and password by which clients log in, with PLAIN or SCRAM. Default: anybody may come in.
    pub login: Option<KafkaLogin>,
    /// TLS, which clients then must use. Default: none.
    pub tls: Option<KafkaTls>,
    /// Further lines for `server.properties`.
    pub extra: String,
}

/// Who may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaLogin {
    /// User name.
    pub user: String,
    /// Password, in the clear.
    pub password: String,
}

/// Files for TLS, all in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaTls {
    /// The server's private key (PKCS#8) and, after it, its certificate chain.
    pub key_and_cert: PathBuf,
    /// If set, clients must show a certificate from this authority.
    pub client_ca: Option<PathBuf>,
}

/// An Apache Kafka on loopback ports. It is killed on drop and its store is removed.
#[derive(Debug)]
pub struct KafkaServer {
    ports: Ports,
    /// The latest process; it may have ended. It is dropped before `dir`, so that the server is gone when its files go.
    process: Process,
    dir: TempDir,
}

/// What a process is in its cluster.
#[derive(Debug, Clone, Copy)]
struct Node {
    id: i32,
    roles: &'static str,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    /// For the clients under test: with login, TLS and proxy as configured.
    clients: u16,
    /// For the tests themselves: open, and around the proxy.
    direct: u16,
    controller: u16,
}

impl KafkaServer {
    /// Whether there are a Java and the jars to start one, for those that can do without.
    pub fn is_installed() -> bool {
        process::is_installed("java") && libs_dir().is_dir()
    }

    /// Starts a server on free ports with an empty store, and waits until it serves.
    ///
    /// # Panics
    /// When there is no Java, there are no jars, or it does not start; its log is shown then.
    pub async fn start(config: &KafkaConfig) -> KafkaServer {
        let ports =
            Ports { clients: process::free_port(), direct: process::free_port(), controller: process::free_port() };
        KafkaServer::start_on(ports, config).await
    }

    /// As [`Self::start`], with a proxy in front: `proxy_port` is that of one whose upstream is `127.0.0.1:<port>`.
    pub async fn start_behind(proxy_port: u16, port: u16, config: &KafkaConfig) -> KafkaServer {
        let ports = Ports { clients: port, direct: process::free_port(), controller: process::free_port() };
        let config = KafkaConfig { proxy_port: Some(proxy_port), ..config.clone() };
        KafkaServer::start_on(ports, &config).await
    }

    /// Starts a second broker of this server's cluster. It has no controller: it serves while this server runs.
    pub async fn start_second(&self, config: &KafkaConfig) -> KafkaServer {
        let ports = Ports { clients: process::free_port(), direct: process::free_port(), ..self.ports };
        KafkaServer::start_node(Node { id: SECOND, roles: "broker" }, ports, config).await
    }

    async fn start_on(ports: Ports, config: &KafkaConfig) -> KafkaServer {
        KafkaServer::start_node(Node { id: 1, roles: "broker,controller" }, ports, config).await
    }

    async fn start_node(node: Node, ports: Ports, config: &KafkaConfig) -> KafkaServer {
        let dir = tempfile::Builder::new()
            .prefix("hookgate-kafka-")
            .tempdir()
            .unwrap_or_else(|error| panic!("make a directory for Kafka: {error}"));
        let properties = properties(node, dir.path(), ports, config);
        fs::write(dir.path().join("server.properties"), properties)
            .unwrap_or_else(|error| panic!("write server.properties: {error}"));
        format_store(dir.path(), config.login.as_ref());
        let process = boot(dir.path()).await;
        KafkaServer { ports, process, dir }
    }

    /// The port for the clients under test, the same for life. With a proxy, clients are to be given that one's.
    pub fn port(&self) -> u16 {
        self.ports.clients
    }

    /// `127.0.0.1:<port>` for the clients under test.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.clients)
    }

    /// `127.0.0.1:<port>` for the tests themselves: no login, no TLS, no proxy.
    pub fn direct_address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.direct)
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

    /// Starts it again on the same ports and store, and waits until it serves. One that runs is killed first.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = boot(self.dir.path()).await;
    }

    /// Freezes it (SIGSTOP): connections stay open and nothing is answered. It must be running.
    pub fn pause(&mut self) {
        self.process.pause();
    }

    /// Lets a paused server go on.
    pub fn resume(&mut self) {
        self.process.resume();
    }

    /// What it has logged since its first start.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// The directory with the jars: `HOOKGATE_TEST_KAFKA_LIBS` (the `libs` of any unpacked Kafka will do), or where `tests/run`
/// puts them.
fn libs() -> &'static Path {
    static LIBS: LazyLock<PathBuf> = LazyLock::new(|| {
        let libs = libs_dir();
        assert!(
            libs.is_dir(),
            "no Kafka in {}: let tests/run fetch it, or set HOOKGATE_TEST_KAFKA_LIBS to the libs directory of one",
            libs.display()
        );
        libs
    });
    &LIBS
}

fn libs_dir() -> PathBuf {
    let fetched = format!("{}/../../target/tools/kafka-{KAFKA_VERSION}/libs", env!("CARGO_MANIFEST_DIR"));
    env::var_os("HOOKGATE_TEST_KAFKA_LIBS").map_or_else(|| PathBuf::from(fetched), PathBuf::from)
}

/// A Java that starts quickly rather than one that runs fast.
fn java() -> Command {
    let mut command = Command::new(process::program("java"));
    command.args(["-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]);
    command.args([
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
    ]);
    command.arg("-cp").arg(libs().join("*"));
    command
}

/// Gives the store its ids, and the users that the server keeps in it.
fn format_store(dir: &Path, login: Option<&KafkaLogin>) {
    let mut command = java();
    command.args(["kafka.tools.StorageTool", "format", "--cluster-id", "aG9va2dhdGUtdGVzdGtpdA", "--config"]);
    command.arg(dir.join("server.properties"));
    if let Some(KafkaLogin { user, password }) = login {
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            command.arg("--add-scram").arg(format!("{mechanism}=[name={user},password={password}]"));
        }
    }
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("start java: {error}"));
    assert!(
        output.status.success(),
        "Kafka's store was not formatted:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn boot(dir: &Path) -> Process {
    let logged = fs::read(dir.join("kafka.log")).map_or(0, |log| log.len());
    let mut command = java();
    command.arg("kafka.Kafka").arg(dir.join("server.properties"));
    let mut process = Process::spawn("kafka", command, dir);
    wait_until(LIMIT, "Kafka serves", async || {
        if let Some(status) = process.exit_status() {
            panic!("Kafka ended while it started ({status}); its log:\n{}", process.log());
        }
        process.log()[logged..].contains(STARTED)
    })
    .await;
    process
}

fn properties(node: Node, dir: &Path, ports: Ports, config: &KafkaConfig) -> String {
    let Node { id, roles } = node;
    let mut listeners = format!("CLIENTS://127.0.0.1:{},DIRECT://127.0.0.1:{}", ports.clients, ports.direct);
    if roles.contains("controller") {
        listeners.push_str(&format!(",CONTROLLER://127.0.0.1:{}", ports.controller));
    }
    let Ports { clients, direct, controller } = ports;
    let advertised = config.proxy_port.unwrap_or(clients);
    let store = dir.join("store");
    let protocol = match (&config.login, &config.tls) {
        (None, None) => "PLAINTEXT",
        (None, Some(_)) => "SSL",
        (Some(_), None) => "SASL_PLAINTEXT",
        (Some(_), Some(_)) => "SASL_SSL",
    };
    let mut lines = format!(
        "process.roles={roles}\n\
         node.id={id}\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners={listeners}\n\
         advertised.listeners=CLIENTS://127.0.0.1:{advertised},DIRECT://127.0.0.1:{direct}\n\
         listener.security.protocol.map=CLIENTS:{protocol},DIRECT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         controller.listener.names=CONTROLLER\n\
         inter.broker.listener.name=DIRECT\n\
         log.dirs={store}\n\
         auto.create.topics.enable=false\n\
         offsets.topic.replication.factor=1\n\
         group.initial.rebalance.delay.ms=0\n",
        store = store.display()
    );
    if let Some(KafkaLogin { user, password }) = &config.login {
        const MODULES: &str = "org.apache.kafka.common.security";
        lines.push_str(&format!(
            "listener.name.clients.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
             listener.name.clients.plain.sasl.jaas.config={MODULES}.plain.PlainLoginModule required \
             user_{user}=\"{password}\";\n\
             listener.name.clients.scram-sha-256.sasl.jaas.config={MODULES}.scram.ScramLoginModule required;\n\
             listener.name.clients.scram-sha-512.sasl.jaas.config={MODULES}.scram.ScramLoginModule required;\n",
        ));
    }
    if let Some(KafkaTls { key_and_cert, client_ca }) = &config.tls {
        let key_and_cert = key_and_cert.display();
        lines.push_str(&format!(
            "listener.name.clients.ssl.keystore.type=PEM\nlistener.name.clients.ssl.keystore.location={key_and_cert}\n"
        ));
        if let Some(ca) = client_ca {
            lines.push_str(&format!(
                "listener.name.clients.ssl.truststore.type=PEM\nlistener.name.clients.ssl.truststore.location={}\n\
                 listener.name.clients.ssl.client.auth=required\n",
                ca.display()
            ));
        }
    }
    lines.push_str(&config.extra);
    lines
}
