//! The report: hookgate and the yardsticks on each path, in turns, so that a machine's mood falls on all of them alike.
//!
//! The server under test has one core, all else the other. What does not run on the server's core is so not charged to it, but
//! with brokers it is they that are at their end first: read throughput there together with how busy the cores were.

mod plot;
mod table;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::ValueEnum;

use crate::{
    SECRET,
    brokers::{Broker, Brokers},
    cores::Cores,
    event::{BODY_BYTES_MIN, Events, Kind},
    load::{self, Outcome, Pace, Plan},
    probe::Probe,
    stored,
    system::{Addresses, PATH, Programs, Rule, Setup, System},
    usage::{CoreUse, Usage, per_100_000},
    yardstick::Threads,
};

/// Starts brokers, hookgate and the yardsticks, measures them in turns, and writes a report.
#[derive(Debug, clap::Args)]
pub(crate) struct Report {
    /// One short round: whether it works, not how fast it is.
    #[arg(long)]
    quick: bool,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each measurement takes; there are two of each system, path and round.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// The length of each body, in bytes.
    #[arg(long, default_value_t = 1024)]
    body_bytes: usize,
    /// Where JetStream keeps messages.
    #[arg(long, value_enum, default_value_t = Storage::Memory)]
    storage: Storage,
    /// Only paths and systems whose names contain this, as in "path: system".
    #[arg(long)]
    only: Option<String>,
    #[command(flatten)]
    files: Files,
}

/// What is measured, and where the report goes.
#[derive(Debug, clap::Args)]
pub(crate) struct Files {
    /// The hookgate to measure [default: built by cargo, in release].
    #[arg(long)]
    hookgate: Option<PathBuf>,
    /// Where the report goes [default: target/bench].
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Files {
    /// The programs to start; hookgate is built, with what these brokers ask for, unless it was named.
    pub(crate) fn programs(&self, brokers: &[Broker]) -> anyhow::Result<Programs> {
        let own = env::current_exe().context("find this program")?;
        let hookgate = match &self.hookgate {
            Some(path) => path.canonicalize().with_context(|| format!("find {}", path.display()))?,
            None => build(brokers)?,
        };
        Ok(Programs { hookgate, own })
    }

    /// The directory of the report, which is there then.
    pub(crate) fn out(&self) -> anyhow::Result<PathBuf> {
        let out = match &self.out {
            Some(out) => out.clone(),
            None => target()?.join("bench"),
        };
        fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
        Ok(out)
    }
}

/// Writes a report to the file `name` in `out`, and tells it and where it is.
pub(crate) fn publish(out: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let file = out.join(name);
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    println!("{text}");
    eprintln!("{}", file.display());
    Ok(())
}

/// The target directory that this program was built in.
fn target() -> anyhow::Result<PathBuf> {
    let own = env::current_exe().context("find this program")?;
    let profile = own.ancestors().find(|dir| dir.ends_with("release") || dir.ends_with("debug"));
    Ok(profile.and_then(|dir| dir.parent()).context("find the target directory: name --out and --hookgate")?.to_owned())
}

fn build(brokers: &[Broker]) -> anyhow::Result<PathBuf> {
    let target = target()?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--locked", "--package", "hookgate", "--target-dir"]).arg(&target);
    if brokers.contains(&Broker::Kafka) {
        command.args(["--features", "kafka"]);
    }
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo has told this program about itself would have some build scripts run anew each time, `ring`'s first of all.
    for (name, _) in env::vars_os() {
        if ["CARGO_MANIFEST_", "CARGO_PKG_"].iter().any(|ours| name.as_encoded_bytes().starts_with(ours.as_bytes())) {
            command.env_remove(name);
        }
    }
    ensure!(command.status().context("run cargo")?.success(), "hookgate does not build");
    Ok(target.join("release/hookgate"))
}

/// Where JetStream keeps messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Storage {
    /// In memory.
    Memory,
    /// In files.
    File,
}

impl Storage {
    /// What JetStream calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::File => "file",
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    path: &'static str,
    /// What tells it from the other lines of its path, besides the system.
    detail: &'static str,
    system: System,
    kind: Kind,
}

impl Case {
    fn name(&self) -> String {
        format!("{}{}", self.system.name(), self.detail)
    }

    /// The broker whose own time is told beside: the one that each event waits for.
    fn probed(&self) -> Option<Broker> {
        self.system.broker().filter(|_| self.kind == Kind::New)
    }

    fn status(&self) -> u16 {
        match self.kind {
            Kind::New | Kind::Duplicate => 200,
            Kind::Unsigned => 401,
        }
    }
}

const TO_STDOUT: &str = "1. New, to a sink that acknowledges at once";
const TO_BROKERS: &str = "2. New, deduplicated in Redis, published to JetStream";
const REPEATS: &str = "3. Repeats of one event";
const REFUSED: &str = "4. Wrong signature";
const ROUTED: &str = "5. New, behind routes that do not match";
const TO_RABBIT: &str = "6. New, deduplicated in Redis, published to RabbitMQ";
const TO_KAFKA: &str = "7. New, deduplicated in Redis, published to Kafka";
const ALONE: &str = "8. New, deduplicated in memory, published to JetStream";

fn cases() -> Vec<Case> {
    let case = |path, system, kind| Case { path, detail: "", system, kind };
    let routes = |count, rule, detail| {
        let system = System::Hookgate(Setup::Routes(count, rule));
        Case { path: ROUTED, detail, system, kind: Kind::New }
    };
    vec![
        case(TO_STDOUT, System::Hookgate(Setup::Stdout), Kind::New),
        case(TO_STDOUT, System::Bare(Threads::Current), Kind::New),
        case(TO_STDOUT, System::Bare(Threads::Two), Kind::New),
        case(TO_BROKERS, System::Hookgate(Setup::Brokers(Broker::JetStream)), Kind::New),
        case(TO_BROKERS, System::Composite(Threads::Current), Kind::New),
        case(TO_BROKERS, System::Composite(Threads::Two), Kind::New),
        case(REPEATS, System::Hookgate(Setup::Brokers(Broker::JetStream)), Kind::Duplicate),
        case(REPEATS, System::Composite(Threads::Current), Kind::Duplicate),
        case(REFUSED, System::Hookgate(Setup::Refusing), Kind::Unsigned),
        case(REFUSED, System::Bare(Threads::Current), Kind::Unsigned),
        routes(1, Rule::Equality, ", 1 route, an equality"),
        routes(100, Rule::Equality, ", 100 routes, equalities"),
        routes(1, Rule::Body, ", 1 route, into the body"),
        routes(100, Rule::Body, ", 100 routes, into the body"),
        case(TO_RABBIT, System::Hookgate(Setup::Brokers(Broker::RabbitMq)), Kind::New),
        case(TO_RABBIT, System::CompositeAmqp(Threads::Current), Kind::New),
        case(TO_RABBIT, System::CompositeAmqp(Threads::Two), Kind::New),
        case(TO_KAFKA, System::Hookgate(Setup::Brokers(Broker::Kafka)), Kind::New),
        case(ALONE, System::Hookgate(Setup::Alone(Broker::JetStream)), Kind::New),
    ]
}

/// What one round of a case has come to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    cpu_seconds: f64,
    cpu_seconds_at_half: f64,
    rate: f64,
    server_busy: f64,
    others_busy: f64,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    late_p99_ms: f64,
    /// Of the broker itself at the same time, as all of its acknowledgements; not a number where there is no broker.
    ack_p50_ms: f64,
    ack_p99_ms: f64,
    idle_mib: f64,
    peak_mib: f64,
    messages: f64,
    commands: f64,
    ready_ms: f64,
    /// Events that were not answered as they should have been.
    wrong: f64,
    /// Accepted events that the broker did not have.
    lost: f64,
}

/// Events of one measurement with brokers: what JetStream may keep in memory bounds them.
const EVENTS_WITH_BROKERS_MAX: u64 = 100_000;

impl Report {
    /// Measures and writes.
    ///
    /// # Errors
    /// When something does not start, an accepted event is lost, or the report cannot be written.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        ensure!(self.body_bytes >= BODY_BYTES_MIN, "a body has {BODY_BYTES_MIN} bytes at least");
        if self.quick {
            (self.rounds, self.duration) = (1, Duration::from_secs(1));
        }
        let (cases, left_out) = possible(self.chosen());
        let wanted: Vec<Broker> = cases.iter().filter_map(|case| case.system.broker()).collect();
        let (programs, out, cores) = (self.files.programs(&wanted)?, self.files.out()?, Cores::choose()?);
        cores.join_others()?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
        runtime.block_on(async {
            let brokers = Brokers::start(self.storage, &wanted).await?;
            let bench = Bench { report: &self, programs, cores, addresses: brokers.addresses(), brokers };
            let mut figures = vec![Vec::new(); cases.len()];
            for round in 1..=self.rounds {
                for (case, figures) in cases.iter().zip(&mut figures) {
                    eprintln!("round {round} of {}: {}: {}", self.rounds, case.path, case.name());
                    figures.push(bench.measure(case).await.with_context(|| format!("{}: {}", case.path, case.name()))?);
                }
            }
            let lines: Vec<_> = cases.into_iter().zip(figures).collect();
            let text = format!("{}{left_out}{}", bench.about().await, table::render(&lines));
            publish(&out, "report.md", &text)?;
            fs::write(out.join("report.svg"), plot::render(&lines)).context("write report.svg")?;
            eprintln!("{}", out.join("report.svg").display());
            let lost: f64 = lines.iter().flat_map(|(_, figures)| figures).map(|figures| figures.lost).sum();
            ensure!(lost == 0.0, "{lost} accepted events are not in the broker");
            Ok(())
        })
    }

    fn chosen(&self) -> Vec<Case> {
        let mut cases = cases();
        let only = self.only.as_deref().unwrap_or_default();
        cases.retain(|case| format!("{}: {}", case.path, case.name()).contains(only));
        cases
    }
}

/// The cases whose brokers can be had, and a line for each path that is left out because its broker cannot.
fn possible(cases: Vec<Case>) -> (Vec<Case>, String) {
    let missing = |case: &Case| case.system.broker().and_then(Broker::missing);
    let (left_out, possible): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| missing(case).is_some());
    let paths = left_out.chunk_by(|one, other| one.path == other.path);
    let lines = paths.map(|path| {
        let why = missing(&path[0]).expect("that is why it is among these");
        format!("\nLeft out: {:?}, since {why}.\n", path[0].path)
    });
    (possible, lines.collect())
}

/// What is there for all measurements.
struct Bench<'a> {
    report: &'a Report,
    programs: Programs,
    cores: Cores,
    addresses: Addresses,
    brokers: Brokers,
}

/// What the brokers have counted.
#[derive(Debug, Clone, Copy)]
struct Counts {
    messages: u64,
    commands: u64,
}

impl Bench<'_> {
    /// One round of one case, by a process of its own.
    async fn measure(&self, case: &Case) -> anyhow::Result<Figures> {
        self.brokers.forget().await;
        let server = case.system.start(&self.programs, &self.addresses, self.cores)?;
        if let Some(broker) = case.system.broker() {
            self.brokers.empty(broker).await?;
        }
        thread::sleep(Duration::from_millis(300));
        let idle = Usage::of(server.id())?;
        let secret = SECRET.as_bytes();
        let events = Events::new(
            case.kind,
            &server.address.to_string(),
            PATH,
            secret,
            self.report.body_bytes,
            fastrand::u32(..),
        );
        let plan = Plan {
            events_max: case.system.broker().map_or(u64::MAX, |_| EVENTS_WITH_BROKERS_MAX),
            ..Plan::at_full_speed(server.address, self.report.connections, self.report.duration / 4)
        };
        let mut phase = Phase { bench: self, case, events: &events, process: server.id(), lost: 0, wrong: 0 };
        let (warm, _) = phase.run(&plan).await?;
        let plan = Plan { duration: self.report.duration, first: warm.sent, ..plan };
        let (fast, fast_cost) = phase.run(&plan).await?;
        let half = Pace::PerSecond(fast.rate() / 2.0);
        let probe = match case.probed() {
            Some(broker) => {
                let target = self.brokers.probed(broker)?;
                Some((broker, Probe::begin(target, self.report.body_bytes, self.report.duration)))
            }
            None => None,
        };
        let (calm, calm_cost) = phase.run(&Plan { pace: half, first: warm.sent + fast.sent, ..plan }).await?;
        let (mut ack_p50_ms, mut ack_p99_ms) = (f64::NAN, f64::NAN);
        if let Some((broker, probe)) = probe {
            let acks = probe.end()?;
            self.brokers.forget_probes(broker).await?;
            [ack_p50_ms, ack_p99_ms] = [0.5, 0.99].map(|share| acks.value_at_quantile(share) as f64 / 1e6);
        }
        Ok(Figures {
            cpu_seconds: fast_cost.cpu_seconds,
            cpu_seconds_at_half: calm_cost.cpu_seconds,
            rate: fast.rate(),
            server_busy: fast_cost.server_busy,
            others_busy: fast_cost.others_busy,
            p50_ms: calm.latency_ms(0.5),
            p99_ms: calm.latency_ms(0.99),
            p999_ms: calm.latency_ms(0.999),
            late_p99_ms: calm.lateness_ms(0.99),
            ack_p50_ms,
            ack_p99_ms,
            idle_mib: idle.resident_mib,
            peak_mib: Usage::of(server.id())?.peak_mib,
            messages: fast_cost.messages,
            commands: fast_cost.commands,
            ready_ms: server.ready_after.as_secs_f64() * 1e3,
            wrong: phase.wrong as f64,
            lost: phase.lost as f64,
        })
    }

    async fn counts(&self, case: &Case) -> anyhow::Result<Counts> {
        let messages = match case.system.broker() {
            Some(broker) => self.brokers.messages(broker).await?,
            None => 0,
        };
        Ok(Counts { messages, commands: self.brokers.commands().await? })
    }

    /// What was measured on what.
    async fn about(&self) -> String {
        let Report { rounds, duration, connections, body_bytes, .. } = self.report;
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let processors = read("/proc/cpuinfo");
        let processor = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
        let hookgate = Command::new(&self.programs.hookgate).arg("--version").output();
        let hookgate =
            hookgate.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
        format!(
            "# What hookgate costs\n\n\
             Measured on {}: {}, Linux {}; the server under test on core {}, generator and brokers on core {}. {hookgate}; {}. \
             {connections} connections, bodies of {body_bytes} bytes, {rounds} \
             rounds in turns, {duration:?} each at full speed and at half of it. Each figure is the median of the rounds, with the \
             smallest and the largest in brackets where they differ.\n",
            humantime::format_rfc3339_seconds(std::time::SystemTime::now()),
            processor.trim_start_matches(['\t', ' ', ':']),
            read("/proc/sys/kernel/osrelease").trim(),
            self.cores.server,
            self.cores.others,
            self.brokers.about().await,
        )
    }
}

/// The measurements of one process.
struct Phase<'a> {
    bench: &'a Bench<'a>,
    case: &'a Case,
    events: &'a Events,
    process: u32,
    lost: usize,
    wrong: u64,
}

/// What a measurement has cost.
struct Cost {
    /// For 100,000 events.
    cpu_seconds: f64,
    /// In percent.
    server_busy: f64,
    /// In percent.
    others_busy: f64,
    /// For each event.
    messages: f64,
    /// For each event.
    commands: f64,
}

impl Phase<'_> {
    /// Sends events, and compares what was accepted with what is there.
    async fn run(&mut self, plan: &Plan) -> anyhow::Result<(Outcome, Cost)> {
        let Bench { brokers, cores, .. } = self.bench;
        let before =
            (self.bench.counts(self.case).await?, CoreUse::of(cores.others)?, Usage::of(self.process)?, Instant::now());
        let outcome = load::run(plan, self.events).context("send events")?;
        let (elapsed, usage, others) = (before.3.elapsed(), Usage::of(self.process)?, CoreUse::of(cores.others)?);
        let counts = self.bench.counts(self.case).await?;
        let answers = outcome.answers();
        ensure!(answers > 0, "no event was answered: {} connections broke", outcome.broken);
        self.wrong += outcome.sent - outcome.with_status(self.case.status());
        if let (Some(broker), Kind::New) = (self.case.system.broker(), self.case.kind) {
            let there = brokers.read(broker, self.events).await?;
            self.lost += stored::compare(&outcome.accepted, &there).lost.len();
            brokers.empty(broker).await?;
        }
        let cpu_seconds = usage.cpu_seconds - before.2.cpu_seconds;
        // Asking takes two commands of its own.
        let commands = (counts.commands - before.0.commands).saturating_sub(2);
        let cost = Cost {
            cpu_seconds: per_100_000(cpu_seconds, answers),
            server_busy: cpu_seconds * 100.0 / elapsed.as_secs_f64(),
            others_busy: others.busy_since(before.1),
            messages: (counts.messages - before.0.messages) as f64 / answers as f64,
            commands: commands as f64 / answers as f64,
        };
        Ok((outcome, cost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_whose_broker_cannot_be_had_is_left_out_in_one_line_and_the_others_stay() {
        let all = cases();
        let with = |broker| all.iter().filter(|case| case.system.broker() == Some(broker)).count();
        let expected = [Broker::JetStream, Broker::RabbitMq, Broker::Kafka].map(|broker| match broker.missing() {
            Some(_) => (with(broker), 1),
            None => (0, 0),
        });
        let (cases, lines) = possible(all.clone());
        assert_eq!(all.len() - cases.len(), expected.iter().map(|(cases, _)| cases).sum::<usize>());
        assert_eq!(lines.matches("\nLeft out: ").count(), expected.iter().map(|(_, lines)| lines).sum::<usize>());
    }
}
