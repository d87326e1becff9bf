//! A running hookgate: its directory, its config, its ports.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    time::Duration,
};

use hookgate_testkit::{
    http::{Response, request, send_raw},
    nats::NatsServer,
    process::{Process, free_port, wait_until},
    redis::RedisWire,
};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take that is not the subject of a test.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// The token of the source in every config here.
pub(crate) const TOKEN: &str = "e2e-token";

/// Where the source in every config here takes events.
pub(crate) const PATH: &str = "/openclaw/webhook";

/// A source for OpenClaw.
pub(crate) const OPENCLAW: &str = r#"
    [sources.openclaw]
    path = "/openclaw/webhook"
    preset = "openclaw"
    verify = [{ scheme = "bearer", secrets = [{ env = "OPENCLAW_TOKEN" }] }]
"#;

/// A file sink in the relay's directory, and a route that sends everything there.
pub(crate) const TO_FILE: &str = r#"
    [sinks.events]
    type = "file"
    dir = "events"
    [[routes]]
    to = [{ sink = "events" }]
"#;

/// A JetStream sink, and a route that sends everything there.
pub(crate) fn to_nats(server: &str) -> String {
    format!(
        r#"
        [sinks.js]
        type = "nats"
        servers = ["{server}"]
        stream = "HOOKS"
        [[routes]]
        to = [{{ sink = "js", subject = "openclaw.{{attr.job}}" }}]
        "#
    )
}

/// Deduplication that is shared in this Redis.
pub(crate) fn shared_in(redis: &str) -> String {
    format!("[dedup.redis]\nurl = \"{redis}\"\n")
}

/// How many events Redis knows as accepted.
pub(crate) async fn committed(wire: &mut RedisWire) -> usize {
    let mut committed = 0;
    for key in wire.keys().await {
        let value = wire.text(&["GET", &key]).await.unwrap_or_default();
        committed += usize::from(value.starts_with("1C"));
    }
    committed
}

/// Makes the stream that [`to_nats`] publishes to.
pub(crate) async fn create_stream(server: &NatsServer) {
    let config = serde_json::json!({ "name": "HOOKS", "subjects": ["openclaw.>"], "storage": "file" });
    server.wire().await.create_stream(&config).await;
}

/// A hookgate process. Killed when dropped.
pub(crate) struct Relay {
    process: Process,
    program: PathBuf,
    address: SocketAddr,
    admin: SocketAddr,
    dir: TempDir,
}

impl Relay {
    /// Starts hookgate with these tables and waits until it serves, ready or not.
    pub(crate) async fn start(tables: &str) -> Self {
        Self::start_with(tables, &[]).await
    }

    /// The same, with these environment variables.
    pub(crate) async fn start_with(tables: &str, environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::start_in(dir, tables, environment).await
    }

    /// The same, in a directory that something was prepared in.
    pub(crate) async fn start_in(dir: TempDir, tables: &str, environment: &[(&str, &str)]) -> Self {
        Self::launch(dir, Path::new(env!("CARGO_BIN_EXE_hookgate")), tables, environment).await
    }

    /// The same, of the program at `program`.
    pub(crate) async fn start_of(program: &Path, tables: &str, environment: &[(String, String)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::launch(dir, program, tables, &borrowed(environment)).await
    }

    async fn launch(dir: TempDir, program: &Path, tables: &str, environment: &[(&str, &str)]) -> Self {
        let port = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (address, admin) = (port(), port());
        std::fs::write(dir.path().join("relay.toml"), config(address, admin, tables)).expect("a writable directory");
        let mut command = command_of(program, dir.path());
        command.arg("run").envs(environment.iter().copied()).env("HOOKGATE_LOG__FORMAT", "json");
        let process = Process::spawn("hookgate", command, dir.path());
        let mut relay = Self { process, program: program.to_owned(), address, admin, dir };
        let up = async || {
            assert_eq!(relay.process.exit_status(), None, "hookgate has ended:\n{}", relay.process.log());
            relay.log().contains("hookgate is up")
        };
        wait_until(LIMIT, "hookgate is up", up).await;
        relay
    }

    /// Starts it again in its directory, after it has ended.
    pub(crate) async fn start_again(&mut self, environment: &[(&str, &str)]) {
        let starts = |log: &str| log.matches("hookgate is up").count();
        let before = starts(&self.log());
        let mut command = command_of(&self.program, self.dir());
        command.arg("run").envs(environment.iter().copied()).env("HOOKGATE_LOG__FORMAT", "json");
        self.process = Process::spawn("hookgate", command, self.dir.path());
        let up = async || {
            assert_eq!(self.process.exit_status(), None, "hookgate has ended:\n{}", self.process.log());
            starts(&self.process.log()) > before
        };
        wait_until(LIMIT, "hookgate is up again", up).await;
    }

    /// The same, with an environment that somebody keeps.
    pub(crate) async fn start_again_in(&mut self, environment: &[(String, String)]) {
        self.start_again(&borrowed(environment)).await;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Sends exactly these bytes.
    pub(crate) async fn send(&self, bytes: &[u8]) -> Response {
        send_raw(self.address, bytes, LIMIT).await.expect("an answer")
    }

    /// Posts `body` with the right token.
    pub(crate) async fn post(&self, body: impl AsRef<[u8]>) -> Response {
        self.send(&post(body)).await
    }

    async fn admin(&self, path: &str) -> Response {
        send_raw(self.admin, &request("GET", path, &[], b""), LIMIT).await.expect("an answer of the admin port")
    }

    /// Writes other tables into its config, which keeps its ports.
    pub(crate) fn rewrite(&self, tables: &str) {
        // A file in the place of another, as editors and package managers do it: nobody ever sees half of it.
        let new = self.dir().join("relay.toml.new");
        std::fs::write(&new, self.config(tables)).expect("a writable directory");
        std::fs::rename(new, self.dir().join("relay.toml")).expect("a writable directory");
    }

    /// A config with its ports and these tables.
    pub(crate) fn config(&self, tables: &str) -> String {
        config(self.address, self.admin, tables)
    }

    /// Has it reload its config.
    pub(crate) async fn reload(&self) -> Response {
        send_raw(self.admin, &request("POST", "/reload", &[], b""), LIMIT).await.expect("an answer of the admin port")
    }

    /// Sends it SIGHUP.
    pub(crate) fn hang_up(&mut self) {
        self.process.hang_up();
    }

    /// The status and body of `/readyz`.
    pub(crate) async fn ready(&self) -> (u16, Value) {
        let response = self.admin("/readyz").await;
        (response.status, response.json())
    }

    /// Waits until `/readyz` says 200.
    pub(crate) async fn wait_until_ready(&self) {
        wait_until(LIMIT, "hookgate is ready", async || self.ready().await.0 == 200).await;
    }

    /// Every sample of `/metrics` by its series.
    pub(crate) async fn metrics(&self) -> BTreeMap<String, f64> {
        let response = self.admin("/metrics").await;
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        response.text().lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
    }

    /// The text of `/metrics`.
    pub(crate) async fn metrics_text(&self) -> String {
        self.admin("/metrics").await.text().to_owned()
    }

    /// Every line that the file sink in `events` holds, file by file.
    pub(crate) fn stored(&self) -> Vec<Value> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(self.dir().join("events"))
            .expect("the sink has its directory")
            .map(|entry| entry.expect("readable").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
            .collect();
        files.sort();
        let lines = files.iter().flat_map(|file| {
            let text = std::fs::read_to_string(file).expect("readable");
            text.lines().map(|line| serde_json::from_str(line).expect("one JSON object a line")).collect::<Vec<Value>>()
        });
        lines.collect()
    }

    /// The value of one series of `/metrics`.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        *self.metrics().await.get(series).unwrap_or_else(|| panic!("there is no series {series}"))
    }

    /// Whether the dedup store is up, as `/readyz` says.
    pub(crate) async fn dedup_is_up(&self) -> bool {
        self.ready().await.1["dedup"]["up"] == true
    }

    /// Kills it (SIGKILL).
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Freezes it (SIGSTOP).
    pub(crate) fn pause(&mut self) {
        self.process.pause();
    }

    /// Lets it go on.
    pub(crate) fn resume(&mut self) {
        self.process.resume();
    }

    pub(crate) fn terminate(&mut self) {
        self.process.terminate();
    }

    pub(crate) async fn wait(&mut self) -> ExitStatus {
        self.process.wait(LIMIT).await
    }
}

fn config(address: SocketAddr, admin: SocketAddr, tables: &str) -> String {
    format!("[admin]\nlisten = \"{admin}\"\n[server]\nlisten = \"{address}\"\ndrain_delay = \"200ms\"\n{tables}")
}

/// A request with the right token.
pub(crate) fn post(body: impl AsRef<[u8]>) -> Vec<u8> {
    let authorization = format!("Bearer {TOKEN}");
    let headers = [("authorization", authorization.as_str()), ("content-type", "application/json")];
    request("POST", PATH, &headers, body.as_ref())
}

/// A finished event of run `number`.
pub(crate) fn finished(number: usize) -> String {
    format!(r#"{{"jobId":"job-{}","action":"finished","runAtMs":{number},"status":"ok","summary":"s"}}"#, number % 7)
}

/// The id that the preset gives to [`finished`].
pub(crate) fn finished_id(number: usize) -> String {
    format!("action=finished&jobId=job-{}&runAtMs={number}", number % 7)
}

/// The program, to be run in `dir`, with the token that the configs here name and no other setting of ours.
pub(crate) fn hookgate(dir: &Path) -> Command {
    command_of(Path::new(env!("CARGO_BIN_EXE_hookgate")), dir)
}

fn command_of(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    let ours = std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("HOOKGATE_"));
    for name in ours {
        command.env_remove(name);
    }
    command.current_dir(dir).env("OPENCLAW_TOKEN", TOKEN);
    command
}

/// Runs the program to its end.
pub(crate) fn run_to_end(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    hookgate(dir).args(arguments).envs(environment.iter().copied()).output().expect("hookgate can be started")
}

fn borrowed(environment: &[(String, String)]) -> Vec<(&str, &str)> {
    environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}
