//! A real `redis-server`, as a child process in a directory of its own: alone, as a cluster, or behind a Sentinel.
//!
//! It keeps its port for life: it can be killed, paused and restarted, and clients that know its URL find it again, empty.
//! Redis 7.0 suffices; a `valkey-server` can be named by `HOOKGATE_TEST_REDIS_SERVER`.

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitStatus},
    time::Duration,
};

use tempfile::TempDir;

use crate::process::{self, Process, wait_until};
pub use crate::redis_wire::{RedisValue, RedisWire};

/// Longest wait for a start, a stop or a failover.
const LIMIT: Duration = Duration::from_secs(20);

/// The user by which the testkit itself gets into any server, and its password.
const WATCHER: &str = "testkit";

/// What the Sentinel calls the master.
pub const MASTER_NAME: &str = "hooks";

/// What is asked of a server. All else is the server's own default, and nothing is written to disk.
#[derive(Debug, Clone, Default)]
pub struct RedisConfig {
    /// Password of the user `default`.
    pub password: Option<String>,
    /// TLS, which clients then must use.
    pub tls: Option<RedisTls>,
    /// Further lines for the configuration file, in its syntax.
    pub extra: String,
}

/// Files for TLS, all in PEM.
#[derive(Debug, Clone)]
pub struct RedisTls {
    /// The server's certificate chain.
    pub cert: PathBuf,
    /// The private key to it.
    pub key: PathBuf,
    /// If set, clients must show a certificate from this authority.
    pub client_ca: Option<PathBuf>,
}

/// A `redis-server` on a loopback port. It is killed on drop.
#[derive(Debug)]
pub struct RedisServer {
    scheme: &'static str,
    port: u16,
    /// The latest process; it may have ended. Dropped before `dir`.
    process: Process,
    dir: TempDir,
}

impl RedisServer {
    /// Starts a server on a free port and waits until it answers.
    ///
    /// # Panics
    /// When there is no `redis-server` (see [`process::program`]) or it does not start; its log is shown then.
    pub async fn start(config: &RedisConfig) -> RedisServer {
        // Short, since the path of a Unix socket has to fit into 107 bytes.
        let dir = tempfile::Builder::new().prefix("hg-redis-").tempdir();
        let dir = dir.unwrap_or_else(|error| panic!("make a directory for redis-server: {error}"));
        let port = process::free_port();
        let path = dir.path().display();
        let mut lines = format!(
            "bind 127.0.0.1\ndir {path}\nunixsocket {path}/socket\nsave \"\"\nappendonly no\n\
             user {WATCHER} on >{WATCHER} ~* &* +@all\n"
        );
        match &config.tls {
            None => lines.push_str(&format!("port {port}\n")),
            Some(tls) => {
                let (cert, key) = (tls.cert.display(), tls.key.display());
                lines.push_str(&format!("port 0\ntls-port {port}\ntls-cert-file {cert}\ntls-key-file {key}\n"));
                match &tls.client_ca {
                    Some(ca) => lines.push_str(&format!("tls-ca-cert-file {}\ntls-auth-clients yes\n", ca.display())),
                    None => lines.push_str("tls-auth-clients no\n"),
                }
            }
        }
        if let Some(password) = &config.password {
            lines.push_str(&format!("requirepass {password}\n"));
        }
        lines.push_str(&config.extra);
        fs::write(dir.path().join("redis.conf"), lines).unwrap_or_else(|error| panic!("write redis.conf: {error}"));
        let process = boot(&dir).await;
        let scheme = if config.tls.is_some() { "rediss" } else { "redis" };
        RedisServer { scheme, port, process, dir }
    }

    /// The port, the same for life.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `redis://127.0.0.1:<port>`, or `rediss://…`; without credentials.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address())
    }

    /// Opens a connection of the testkit's own, whatever the server asks of others.
    pub async fn wire(&self) -> RedisWire {
        try_wire(&self.dir).await.unwrap_or_else(|error| panic!("connect to redis-server: {error}"))
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

    /// Starts it again on the same port, and waits until it answers. One that runs is killed first.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = boot(&self.dir).await;
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

async fn boot(dir: &TempDir) -> Process {
    let mut command = Command::new(process::program("redis-server"));
    command.arg(dir.path().join("redis.conf"));
    let mut process = Process::spawn("redis-server", command, dir.path());
    wait_until(LIMIT, "redis-server answers", async || {
        if let Some(status) = process.exit_status() {
            panic!("redis-server ended while it started ({status}); its log:\n{}", process.log());
        }
        match try_wire(dir).await {
            Ok(mut wire) => {
                wire.try_command(&["PING"]).await.is_ok_and(|pong| pong == RedisValue::Simple("PONG".into()))
            }
            Err(_) => false,
        }
    })
    .await;
    process
}

async fn try_wire(dir: &TempDir) -> std::io::Result<RedisWire> {
    let mut wire = RedisWire::unix(&dir.path().join("socket")).await?;
    match wire.try_command(&["AUTH", WATCHER, WATCHER]).await? {
        RedisValue::Simple(_) => Ok(wire),
        other => Err(std::io::Error::other(format!("the testkit is not let in: {other:?}"))),
    }
}

/// Three masters that share all slots.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts it and waits until every node knows every slot.
    pub async fn start() -> RedisCluster {
        const SLOTS: [(&str, &str); 3] = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
        let mut nodes = Vec::new();
        let mut buses = Vec::new();
        for (first, last) in SLOTS {
            // The port between nodes is by default one that outgoing connections use as well.
            let bus = process::free_port();
            let extra = format!("cluster-enabled yes\ncluster-port {bus}\ncluster-node-timeout 2000\n");
            let node = RedisServer::start(&RedisConfig { extra, ..RedisConfig::default() }).await;
            node.wire().await.done(&["CLUSTER", "ADDSLOTSRANGE", first, last]).await;
            nodes.push(node);
            buses.push(bus);
        }
        let mut wire = nodes[0].wire().await;
        for (node, bus) in nodes.iter().zip(&buses).skip(1) {
            wire.done(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), &bus.to_string()]).await;
        }
        wait_until(LIMIT, "the cluster is complete", async || {
            for node in &nodes {
                let info = node.wire().await.text(&["CLUSTER", "INFO"]).await.unwrap_or_default();
                if !info.contains("cluster_state:ok") || !info.contains("cluster_known_nodes:3") {
                    return false;
                }
            }
            true
        })
        .await;
        RedisCluster { nodes }
    }

    /// The nodes.
    pub fn nodes(&mut self) -> &mut [RedisServer] {
        &mut self.nodes
    }

    /// The URLs of all nodes, separated by commas.
    pub fn urls(&self) -> String {
        self.nodes.iter().map(RedisServer::url).collect::<Vec<_>>().join(",")
    }

    /// The keys of each node.
    pub async fn keys(&self) -> Vec<Vec<String>> {
        let mut keys = Vec::new();
        for node in &self.nodes {
            keys.push(node.wire().await.keys().await);
        }
        keys
    }
}

/// A master, its replica, and a Sentinel that watches over them and calls the master [`MASTER_NAME`].
#[derive(Debug)]
pub struct RedisSentinel {
    master: RedisServer,
    replica: RedisServer,
    port: u16,
    _process: Process,
    _dir: TempDir,
}

impl RedisSentinel {
    /// Starts them and waits until the Sentinel knows both servers.
    pub async fn start() -> RedisSentinel {
        let master = RedisServer::start(&RedisConfig::default()).await;
        let extra = format!("replicaof 127.0.0.1 {}\nrepl-diskless-sync-delay 0\n", master.port());
        let replica = RedisServer::start(&RedisConfig { extra, ..RedisConfig::default() }).await;
        let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("make a directory for a Sentinel: {error}"));
        let port = process::free_port();
        let lines = format!(
            "bind 127.0.0.1\nport {port}\ndir {}\nsentinel monitor {MASTER_NAME} 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds {MASTER_NAME} 500\nsentinel failover-timeout {MASTER_NAME} 3000\n",
            dir.path().display(),
            master.port()
        );
        let file = dir.path().join("sentinel.conf");
        fs::write(&file, lines).unwrap_or_else(|error| panic!("write sentinel.conf: {error}"));
        let mut command = Command::new(process::program("redis-server"));
        command.arg(file).arg("--sentinel");
        let process = Process::spawn("sentinel", command, dir.path());
        let sentinel = RedisSentinel { master, replica, port, _process: process, _dir: dir };
        wait_until(LIMIT, "the Sentinel knows the replica", async || {
            let Ok(mut wire) = RedisWire::tcp(sentinel.port).await else { return false };
            let known = wire.try_command(&["SENTINEL", "REPLICAS", MASTER_NAME]).await;
            let synchronised = sentinel.replica.wire().await.text(&["INFO", "replication"]).await.unwrap_or_default();
            matches!(known, Ok(RedisValue::List(replicas)) if replicas.len() == 1)
                && synchronised.contains("master_link_status:up")
        })
        .await;
        sentinel
    }

    /// `redis://127.0.0.1:<port>` of the Sentinel.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The server that was the master at the start.
    pub fn first_master(&mut self) -> &mut RedisServer {
        &mut self.master
    }

    /// The server that was the replica at the start.
    pub fn first_replica(&mut self) -> &mut RedisServer {
        &mut self.replica
    }

    /// Kills the first master and waits until the replica takes writes in its place.
    pub async fn fail_over(&mut self) {
        self.master.kill();
        let port = self.replica.port().to_string();
        wait_until(LIMIT, "the replica is the master", async || {
            let mut wire = RedisWire::tcp(self.port).await.expect("the Sentinel runs");
            let address = wire.done(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER_NAME]).await;
            let named =
                RedisValue::List(vec![RedisValue::Text(b"127.0.0.1".into()), RedisValue::Text(port.clone().into())]);
            // One that is being made the master may end the connections it has.
            let role = async { try_wire(&self.replica.dir).await?.try_command(&["ROLE"]).await }.await;
            let master = RedisValue::Text(b"master".into());
            address == named && matches!(role, Ok(RedisValue::List(role)) if role.first() == Some(&master))
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_killed_server_comes_back_empty_on_the_same_port() {
        let mut server = RedisServer::start(&RedisConfig::default()).await;
        server.wire().await.done(&["SET", "a", "1"]).await;
        assert_eq!(server.wire().await.keys().await, ["a"]);
        let url = server.url();
        server.kill();
        assert!(RedisWire::tcp(server.port()).await.is_err());
        server.restart().await;
        assert_eq!(server.url(), url);
        assert!(server.wire().await.keys().await.is_empty());
        assert!(RedisWire::tcp(server.port()).await.is_ok());
    }

    #[tokio::test]
    async fn a_paused_server_answers_when_it_is_resumed() {
        let mut server = RedisServer::start(&RedisConfig::default()).await;
        let mut wire = server.wire().await;
        server.pause();
        let silent = tokio::time::timeout(Duration::from_millis(100), wire.command(&["PING"])).await;
        assert!(silent.is_err(), "a paused server answered {silent:?}");
        server.resume();
        assert_eq!(server.wire().await.integer(&["DBSIZE"]).await, 0);
    }

    #[tokio::test]
    async fn the_testkit_gets_into_a_server_that_keeps_strangers_out() {
        let config = RedisConfig { password: Some("secret".to_owned()), ..RedisConfig::default() };
        let server = RedisServer::start(&config).await;
        let mut stranger = RedisWire::tcp(server.port()).await.expect("it listens");
        let refused = stranger.command(&["GET", "a"]).await;
        assert!(matches!(&refused, RedisValue::Error(error) if error.starts_with("NOAUTH")), "{refused:?}");
        assert_eq!(server.wire().await.text(&["GET", "a"]).await, None);
        assert_eq!(server.wire().await.calls().await.get("get"), Some(&1));
    }

    #[tokio::test]
    async fn a_cluster_shares_its_keys_out() {
        let mut cluster = RedisCluster::start().await;
        let mut wire = cluster.nodes()[0].wire().await;
        let answers = [wire.command(&["SET", "a", "1"]).await, wire.command(&["SET", "b", "1"]).await];
        let moved = |answer: &RedisValue| matches!(answer, RedisValue::Error(error) if error.starts_with("MOVED"));
        assert!(moved(&answers[0]) && !moved(&answers[1]), "slots 15495 and 3300: {answers:?}");
    }

    #[tokio::test]
    async fn a_sentinel_makes_the_replica_the_master() {
        let mut sentinel = RedisSentinel::start().await;
        sentinel.first_master().wire().await.done(&["SET", "a", "1"]).await;
        sentinel.fail_over().await;
        sentinel.first_replica().wire().await.done(&["SET", "b", "1"]).await;
    }
}
