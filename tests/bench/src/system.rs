//! The servers under test: how each is started, and when it is ready.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use hookgate_testkit::process::free_port;
use tempfile::TempDir;

use crate::{
    SECRET, SECRET_VARIABLE,
    answer::{self, Found},
    brokers::Broker,
    cores::Cores,
    event::{BODY_BYTES_MIN, Events, Kind},
    yardstick::Threads,
};

/// Where each of them takes events.
pub(crate) const PATH: &str = "/github";

/// The path of hookgate's second source.
pub(crate) const QUIET_PATH: &str = "/quiet";

/// The stream that events go to, and its subjects.
pub(crate) const STREAM: &str = "BENCH";
pub(crate) const SUBJECTS: &str = "hooks.>";

/// The queue that they go to instead.
pub(crate) const QUEUE: &str = "hooks";

/// The topic that they go to instead.
pub(crate) const TOPIC: &str = "hooks";

const START_LIMIT: Duration = Duration::from_secs(20);
const PROBE_INTERVAL: Duration = Duration::from_millis(1);

/// A program, as it is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    /// Ours.
    Hookgate(Setup),
    /// The least there can be.
    Bare(Threads),
    /// Redis and JetStream by hand.
    Composite(Threads),
    /// Redis and RabbitMQ by hand.
    CompositeAmqp(Threads),
}

/// What hookgate's config says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setup {
    /// Everything to standard output.
    Stdout,
    /// The same, however many are refused.
    Refusing,
    /// The same, but no more than a thousand events a second of the source that is not quiet.
    Rated,
    /// The same, with room for so many remembered ids.
    Remembering(u64),
    /// The same behind so many routes that do not match.
    Routes(usize, Rule),
    /// Everything to this broker, with deduplication shared in Redis.
    Brokers(Broker),
    /// Everything to this broker, deduplicated by the process alone.
    Alone(Broker),
}

/// The rule of a route that does not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// An attribute is equal to a text.
    Equality,
    /// It looks into the body.
    Body,
}

/// Where the brokers are; nothing for those that do not run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses {
    /// The URL of Redis.
    pub(crate) redis: String,
    /// The URL of NATS.
    pub(crate) nats: String,
    /// The URL of RabbitMQ, with user and password.
    pub(crate) amqp: String,
    /// Host and port of Kafka.
    pub(crate) kafka: String,
}

/// The programs that are started.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// hookgate.
    pub(crate) hookgate: PathBuf,
    /// This one, for the yardsticks.
    pub(crate) own: PathBuf,
}

impl System {
    /// What it is called in a report.
    pub(crate) fn name(self) -> String {
        let threads = |threads: Threads| match threads {
            Threads::Current => "one thread",
            Threads::Two => "two workers",
        };
        match self {
            Self::Hookgate(_) => "hookgate".to_owned(),
            Self::Bare(of) => format!("bare axum, {}", threads(of)),
            Self::Composite(of) | Self::CompositeAmqp(of) => format!("composite, {}", threads(of)),
        }
    }

    /// Whether it is what the others are compared with.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Hookgate(_))
    }

    /// The broker that it publishes to.
    pub(crate) fn broker(self) -> Option<Broker> {
        match self {
            Self::Hookgate(Setup::Brokers(broker) | Setup::Alone(broker)) => Some(broker),
            Self::Composite(_) => Some(Broker::JetStream),
            Self::CompositeAmqp(_) => Some(Broker::RabbitMq),
            Self::Hookgate(_) | Self::Bare(_) => None,
        }
    }

    /// Starts it on the server's core and waits until it has accepted an event.
    ///
    /// # Errors
    /// When it does not start, or does not accept one within 20 s; with the end of its log.
    pub(crate) fn start(self, programs: &Programs, addresses: &Addresses, cores: Cores) -> anyhow::Result<Server> {
        let dir = tempfile::tempdir().context("make a directory for a server")?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = match self {
            Self::Hookgate(setup) => {
                let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
                let config = config(setup, address, admin, addresses);
                fs::write(dir.path().join("relay.toml"), config).context("write relay.toml")?;
                let mut command = Command::new(&programs.hookgate);
                command.arg("run");
                command
            }
            Self::Bare(threads) => yardstick(&programs.own, "bare", threads, address),
            Self::Composite(threads) => {
                let mut command = yardstick(&programs.own, "composite", threads, address);
                command.args(["--redis", &addresses.redis, "--nats", &addresses.nats]);
                command
            }
            Self::CompositeAmqp(threads) => {
                let mut command = yardstick(&programs.own, "composite-amqp", threads, address);
                command.args(["--redis", &addresses.redis, "--amqp", &addresses.amqp, "--queue", QUEUE]);
                command
            }
        };
        let log = dir.path().join("log");
        let errors = File::create(&log).context("make a log")?;
        command.current_dir(dir.path()).env(SECRET_VARIABLE, SECRET);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let begun = Instant::now();
        let child = cores.start_server(|| command.spawn().with_context(|| format!("start {}", self.name())))?;
        let mut server = Server { child, address, ready_after: Duration::ZERO, log, _dir: dir };
        server.wait_until_ready(begun).with_context(|| format!("start {}", self.name()))?;
        Ok(server)
    }
}

fn yardstick(own: &Path, name: &str, threads: Threads, address: SocketAddr) -> Command {
    let mut command = Command::new(own);
    let threads = threads.to_possible_value().expect("no variant is hidden");
    command.args(["yardstick", name, "--threads", threads.get_name(), "--listen", &address.to_string()]);
    command
}

/// Two sources, so that one can be flooded while the other is watched. No spool: nothing is to be written to a disk.
fn config(setup: Setup, address: SocketAddr, admin: SocketAddr, addresses: &Addresses) -> String {
    let refusals = if setup == Setup::Refusing { "prompt_refusals = \"1000000/s\"\n" } else { "" };
    let mut config = format!("[server]\nlisten = \"{address}\"\n{refusals}[admin]\nlisten = \"{admin}\"\n");
    for (name, path) in [("github", PATH), ("quiet", QUIET_PATH)] {
        let secrets = format!("secrets = [{{ env = \"{SECRET_VARIABLE}\" }}]");
        config.push_str(&format!("[sources.{name}]\npath = \"{path}\"\npreset = \"github\"\n{secrets}\n"));
        if setup == Setup::Rated && path != QUIET_PATH {
            config.push_str("max_rate = \"1000/s\"\n");
        }
    }
    let to_stdout = "[sinks.out]\ntype = \"stdout\"\n[[routes]]\nto = [{ sink = \"out\" }]\n";
    match setup {
        Setup::Stdout | Setup::Refusing | Setup::Rated => config.push_str(to_stdout),
        Setup::Remembering(ids) => config.push_str(&format!("[dedup]\nmemory_entries = {ids}\n{to_stdout}")),
        Setup::Routes(count, rule) => {
            for place in 0..count {
                let when = match rule {
                    Rule::Equality => format!("attr.action == \"closed-{place}\""),
                    Rule::Body => format!("json.issue.number > {}", 1000 + place),
                };
                config.push_str(&format!("[[routes]]\nwhen = '{when}'\nto = [{{ sink = \"out\" }}]\n"));
            }
            config.push_str(to_stdout);
        }
        Setup::Brokers(broker) | Setup::Alone(broker) => {
            let Addresses { redis, nats, amqp, kafka } = addresses;
            let (sink, place) = match broker {
                Broker::JetStream => (
                    format!("type = \"nats\"\nservers = [\"{nats}\"]\nstream = \"{STREAM}\""),
                    "subject = \"hooks.{source}.{attr.action}\"".to_owned(),
                ),
                Broker::RabbitMq => {
                    (format!("type = \"amqp\"\nurl = \"{amqp}\""), format!("routing_key = \"{QUEUE}\""))
                }
                Broker::Kafka => (format!("type = \"kafka\"\nbrokers = [\"{kafka}\"]"), format!("topic = \"{TOPIC}\"")),
            };
            if setup == Setup::Brokers(broker) {
                config.push_str(&format!("[dedup.redis]\nurl = \"{redis}\"\n"));
            }
            config.push_str(&format!("[sinks.out]\n{sink}\n[[routes]]\nto = [{{ sink = \"out\", {place} }}]\n"));
        }
    }
    config
}

/// A server that runs. It is killed on drop.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// From its start to the first event that it accepted.
    pub(crate) ready_after: Duration,
    log: PathBuf,
    _dir: TempDir,
}

impl Server {
    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_ready(&mut self, begun: Instant) -> anyhow::Result<()> {
        // Of a run of its own: the first event that is measured is new.
        let events = Events::new(
            Kind::New,
            &self.address.to_string(),
            PATH,
            SECRET.as_bytes(),
            BODY_BYTES_MIN,
            fastrand::u32(..),
        );
        let mut request = Vec::new();
        for number in 0.. {
            events.write(number, &mut request);
            if ask(self.address, &request).is_ok_and(|status| status == 200) {
                break;
            }
            if let Some(status) = self.child.try_wait().context("look after it")? {
                bail!("it has ended ({status}); its log:\n{}", self.log());
            }
            ensure!(begun.elapsed() < START_LIMIT, "it accepts no event; its log:\n{}", self.log());
            thread::sleep(PROBE_INTERVAL);
        }
        self.ready_after = begun.elapsed();
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| format!("(no log: {error})"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it is gone, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The status that a request gets on a connection of its own.
fn ask(address: SocketAddr, request: &[u8]) -> anyhow::Result<u16> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(request)?;
    let (mut received, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let bytes = stream.read(&mut chunk)?;
        received.extend_from_slice(&chunk[..bytes]);
        match answer::find(&received) {
            Found::Answer(answer) => return Ok(answer.status),
            Found::Part if bytes > 0 => {}
            Found::Part | Found::UntilClosed(_) | Found::NoHttp => bail!("no answer"),
        }
    }
}
