//! A real `rabbitmq-server`, as a child process in a directory of its own.
//!
//! It keeps its ports and its store for life: it can be killed, paused and restarted, and clients that know its URL find it
//! again. Debian's RabbitMQ 3.10 suffices. It is slow to start (some 7 s), so tests that need nothing special
//! [borrow](RabbitServer::borrow) one that an earlier test has left.
//!
//! The surprising thing: what is kept for later tests is not dropped when the test program ends. So each server has a
//! *warden*, a shell that waits for the end of our process, whatever ends it, and then kills the server and removes its
//! directory.

use std::{
    env, fs,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{self, Process, wait_until};
pub use crate::rabbit_wire::{QueueArgument, RabbitMessage, RabbitWire};

/// Longest wait for a start or a stop. A start takes some 7 s; the rest is for a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// Where Debian and RabbitMQ's own packages keep the program itself. What they put on the `PATH` is a wrapper that changes
/// to a system user and its directories.
const PROGRAM: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// The user of a client under test.
pub const USER: &str = "relay";

/// Its password, until it is changed. A restart sets it back.
pub const PASSWORD: &str = "c0rrect-h0rse";

/// User and password by which the testkit itself gets in.
const READER: &str = "testkit-reader";

/// Servers that no test uses now. Each is in the state in which its last test has left it.
static IDLE: Mutex<Vec<RabbitServer>> = Mutex::new(Vec::new());

/// What is asked of a server. All else is the server's own default; it has no plugins.
#[derive(Debug, Clone, Default)]
pub struct RabbitConfig {
    /// TLS, on a port of its own.
    pub tls: Option<RabbitTls>,
    /// Further lines for the configuration file, in its syntax.
    pub extra: String,
}

/// Files for TLS, all in PEM.
#[derive(Debug, Clone)]
pub struct RabbitTls {
    /// The server's certificate chain.
    pub cert: PathBuf,
    /// The private key to it.
    pub key: PathBuf,
    /// The authority that has signed it.
    pub ca: PathBuf,
    /// Whether clients must show a certificate of that authority.
    pub asks_clients: bool,
}

/// A `rabbitmq-server` on a loopback port. It is killed on drop and its store is removed.
#[derive(Debug)]
pub struct RabbitServer {
    ports: Ports,
    program: PathBuf,
    /// Dropped first: nobody else ends the server then.
    warden: Warden,
    /// The latest process; it may have ended.
    process: Process,
    /// Tells the server's own tools where it listens. The one that Erlang would start by itself would outlive us.
    port_mapper: Process,
    dir: TempDir,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    amqp: u16,
    tls: u16,
    distribution: u16,
    port_mapper: u16,
}

/// A server that later tests use again, unless this test fails or leaves it ended.
#[derive(Debug)]
pub struct Borrowed(Option<RabbitServer>);

impl RabbitServer {
    /// Whether there is a `rabbitmq-server` to start, for those that can do without.
    pub fn is_installed() -> bool {
        Path::new(PROGRAM).is_file() || process::is_installed("rabbitmq-server")
    }

    /// Starts a server on free ports with an empty store, and waits until it lets the testkit in.
    ///
    /// # Panics
    /// When there is no `rabbitmq-server` (see [`process::program`]) or it does not start; its log is shown then.
    pub async fn start(config: &RabbitConfig) -> RabbitServer {
        let program = program();
        let dir = tempfile::Builder::new().prefix("hookgate-rabbit-").tempdir();
        let dir = dir.unwrap_or_else(|error| panic!("make a directory for rabbitmq-server: {error}"));
        let [amqp, tls, distribution, port_mapper] = [(); 4].map(|()| process::free_port());
        let ports = Ports { amqp, tls, distribution, port_mapper };
        write_config(dir.path(), ports, config);
        let mut command = Command::new(process::program("epmd"));
        command.args(["-address", "127.0.0.1", "-port", &port_mapper.to_string()]);
        let mapper = Process::spawn("epmd", command, dir.path());
        let (process, warden) = boot(&program, ports, dir.path(), mapper.id()).await;
        RabbitServer { ports, program, warden, process, port_mapper: mapper, dir }
    }

    /// A server with the default config, for this test alone: one that an earlier test has left, else a new one.
    ///
    /// Queues and exchanges of earlier tests are still there, so give yours a name of your own.
    pub async fn borrow() -> Borrowed {
        let idle = idle().pop();
        Borrowed(Some(match idle {
            Some(server) => server,
            None => Self::start(&RabbitConfig::default()).await,
        }))
    }

    /// The port for AMQP without TLS, the same for life.
    pub fn port(&self) -> u16 {
        self.ports.amqp
    }

    /// `amqp://127.0.0.1:<port>`, without credentials.
    pub fn url(&self) -> String {
        format!("amqp://127.0.0.1:{}", self.ports.amqp)
    }

    /// `amqps://127.0.0.1:<port>`, without credentials. Nobody listens there without [`RabbitConfig::tls`].
    pub fn tls_url(&self) -> String {
        format!("amqps://127.0.0.1:{}", self.ports.tls)
    }

    /// Opens a connection that arranges and reads queues without any client library.
    pub async fn wire(&self) -> RabbitWire {
        let connected = RabbitWire::connect(self.ports.amqp, READER, READER).await;
        connected.unwrap_or_else(|error| panic!("connect to {}: {error}", self.url()))
    }

    /// Stops it in order (SIGTERM). It must be running, and not be paused.
    pub async fn stop(&mut self) -> ExitStatus {
        self.process.terminate();
        self.process.wait(LIMIT).await
    }

    /// Kills it (SIGKILL), if it runs. RabbitMQ does not fsync a binding: one that was made just before is to be made again after the
    /// restart.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same ports and store, and waits until it serves. One that runs is stopped first.
    pub async fn restart(&mut self) {
        if self.process.exit_status().is_none() {
            self.stop().await;
        }
        let mapper = self.port_mapper.id();
        (self.process, self.warden) = boot(&self.program, self.ports, self.dir.path(), mapper).await;
    }

    /// Freezes it (SIGSTOP): connections stay open and nothing is answered. It must be running.
    pub fn pause(&mut self) {
        self.process.pause();
    }

    /// Lets a paused server go on.
    pub fn resume(&mut self) {
        self.process.resume();
    }

    /// Raises or ends the memory alarm, under which it takes nothing from connections that publish.
    pub async fn set_memory_alarm(&self, raised: bool) {
        let watermark = if raised { "0.0000001" } else { "0.4" };
        self.control(&["set_vm_memory_high_watermark", watermark]).await;
    }

    /// Changes a user's password, until the next restart. Connections that are open stay open.
    pub async fn change_password(&self, user: &str, password: &str) {
        self.control(&["change_password", user, password]).await;
    }

    /// Lets a user write to what this pattern matches, and configure and read nothing.
    pub async fn let_write(&self, user: &str, pattern: &str) {
        self.control(&["set_permissions", user, "^$", pattern, "^$"]).await;
    }

    /// Stops the process that is a queue: what is routed there is never confirmed, while other queues go on.
    pub async fn suspend_queue(&self, queue: &str) {
        self.on_queue("suspend", queue).await;
    }

    /// Lets a suspended queue go on.
    pub async fn resume_queue(&self, queue: &str) {
        self.on_queue("resume", queue).await;
    }

    async fn on_queue(&self, what: &str, queue: &str) {
        let find = format!("rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>))");
        let told = self.control(&["eval", &format!("{{ok, Q}} = {find}, sys:{what}(amqqueue:get_pid(Q)).")]).await;
        assert_eq!(told.trim(), "ok", "{what} {queue}");
    }

    /// Runs `rabbitmqctl` against it and returns what that says. It takes some 2 s.
    ///
    /// # Panics
    /// When it fails.
    pub async fn control(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(self.program.with_file_name("rabbitmqctl"));
        environment(&mut command, self.ports, self.dir.path());
        command.arg("--quiet").args(arguments).stdin(Stdio::null());
        let running = tokio::task::spawn_blocking(move || command.output());
        let output = running.await.expect("no panic").unwrap_or_else(|error| panic!("start rabbitmqctl: {error}"));
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {said}");
        said
    }

    /// What it has logged since its first start.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

impl Deref for Borrowed {
    type Target = RabbitServer;

    fn deref(&self) -> &RabbitServer {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl DerefMut for Borrowed {
    fn deref_mut(&mut self) -> &mut RabbitServer {
        self.0.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let server = self.0.take();
        if let Some(mut server) = server
            && !thread::panicking()
            && server.process.exit_status().is_none()
        {
            idle().push(server);
        }
    }
}

fn idle() -> MutexGuard<'static, Vec<RabbitServer>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A shell that ends a server when our process is gone.
#[derive(Debug)]
struct Warden(Child);

impl Warden {
    fn of(processes: [u32; 2], dir: &Path) -> Self {
        // Its standard input ends with us, and with nobody else, as others do not inherit it.
        let script = "cat; kill -9 \"$1\" \"$2\"; rm -rf \"$3\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, "warden"]).args(processes.map(|id| id.to_string())).arg(dir);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|error| panic!("start sh: {error}")))
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        // Both fail only when it is gone, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program() -> PathBuf {
    let named = env::var_os("HOOKGATE_TEST_RABBITMQ_SERVER").is_some();
    let usual = PathBuf::from(PROGRAM);
    if !named && usual.is_file() { usual } else { process::program("rabbitmq-server") }
}

async fn boot(program: &Path, ports: Ports, dir: &Path, port_mapper: u32) -> (Process, Warden) {
    let mut command = Command::new(program);
    environment(&mut command, ports, dir);
    // Else the shell script stays in between, and signals reach it instead of the server.
    command.env("RUNNING_UNDER_SYSTEMD", "true");
    let mut process = Process::spawn("rabbitmq-server", command, dir);
    let warden = Warden::of([process.id(), port_mapper], dir);
    wait_until(LIMIT, "rabbitmq-server lets the testkit in", async || {
        if let Some(status) = process.exit_status() {
            panic!("rabbitmq-server ended while it started ({status}); its log:\n{}", process.log());
        }
        RabbitWire::connect(ports.amqp, READER, READER).await.is_ok()
    })
    .await;
    (process, warden)
}

/// What server and tools are told. Everything is in `dir`, the secret by which they know each other too.
fn environment(command: &mut Command, ports: Ports, dir: &Path) {
    let within = [
        ("HOME", ""),
        ("RABBITMQ_BASE", ""),
        ("RABBITMQ_CONFIG_FILE", "rabbitmq.conf"),
        ("RABBITMQ_CONF_ENV_FILE", "no-rabbitmq-env.conf"),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", "enabled_plugins"),
        ("RABBITMQ_FEATURE_FLAGS_FILE", "feature_flags"),
        ("RABBITMQ_GENERATED_CONFIG_DIR", "generated"),
        ("RABBITMQ_LOG_BASE", "log"),
        ("RABBITMQ_MNESIA_BASE", "store"),
        ("RABBITMQ_PID_FILE", "pid"),
    ];
    for (name, file) in within {
        command.env(name, dir.join(file));
    }
    command
        .env("RABBITMQ_NODENAME", format!("hookgate-{}@localhost", ports.amqp))
        .env("RABBITMQ_DIST_PORT", ports.distribution.to_string())
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
        .env("RABBITMQ_LOGS", "-")
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("ERL_EPMD_PORT", ports.port_mapper.to_string())
        .current_dir(dir);
}

fn write_config(dir: &Path, ports: Ports, config: &RabbitConfig) {
    let write = |name: &str, content: String| {
        fs::write(dir.join(name), content).unwrap_or_else(|error| panic!("write {name}: {error}"));
    };
    let mut lines = format!(
        "listeners.tcp.1 = 127.0.0.1:{}\nloopback_users = none\nload_definitions = {}\n",
        ports.amqp,
        dir.join("definitions.json").display()
    );
    if let Some(tls) = &config.tls {
        lines.push_str(&format!(
            "listeners.ssl.1 = 127.0.0.1:{}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
             ssl_options.cacertfile = {}\nssl_options.verify = {}\nssl_options.fail_if_no_peer_cert = {}\n",
            ports.tls,
            tls.cert.display(),
            tls.key.display(),
            tls.ca.display(),
            if tls.asks_clients { "verify_peer" } else { "verify_none" },
            tls.asks_clients,
        ));
    }
    lines.push_str(&config.extra);
    write("rabbitmq.conf", lines);
    write("enabled_plugins", "[].\n".to_owned());
    write("definitions.json", definitions().to_string());
}

/// Who there is, and what they may do.
fn definitions() -> Value {
    let user = |name: &str, password: &str, tags: &str| json!({ "name": name, "password": password, "tags": tags });
    let everything = |name: &str| json!({ "user": name, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*" });
    json!({
        "vhosts": [{ "name": "/" }],
        "users": [user(READER, READER, "administrator"), user(USER, PASSWORD, "")],
        "permissions": [everything(READER), everything(USER)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test, since a server takes so long to start.
    #[tokio::test]
    async fn a_server_keeps_port_and_queues_and_can_be_killed_paused_stopped_and_told() {
        let mut server = RabbitServer::start(&RabbitConfig::default()).await;
        server.wire().await.declare_queue("kept", &[]).await;
        let url = server.url();
        server.kill();
        assert!(RabbitWire::connect(server.port(), READER, READER).await.is_err());
        server.restart().await;
        assert_eq!(server.url(), url);
        assert_eq!(server.wire().await.messages("kept").await, []);

        server.pause();
        let silent = tokio::time::timeout(Duration::from_millis(200), server.wire()).await;
        assert!(silent.is_err(), "a paused server answered");
        server.resume();
        server.wire().await;

        assert!(RabbitWire::connect(server.port(), USER, "wrong").await.is_err());
        server.change_password(USER, "changed").await;
        RabbitWire::connect(server.port(), USER, "changed").await.expect("the new password is the right one");
        server.restart().await;
        RabbitWire::connect(server.port(), USER, PASSWORD).await.expect("a restart sets it back");

        let dir = server.dir.path().to_owned();
        let id = server.process.id();
        drop(server);
        assert!(!dir.exists() && !Path::new(&format!("/proc/{id}")).exists());
    }
}
