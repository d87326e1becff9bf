//! Floods: what a quiet source beside one notices of it, and what becomes of hookgate's memory.
//!
//! The quiet source sends at a fixed rate, once on connections that it has, once on a new one for each event: a server that is out of
//! connections serves the first and not the second.
//!
//! The surprising thing: slow senders are processes of their own, several of them. No single one may have as many files open.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use rustix::process::nice;

use crate::{
    SECRET,
    cores::Cores,
    event::{Events, Kind},
    load::{self, Outcome, Pace, Plan, Reuse},
    report::{Files, publish},
    slow::{self, Drip, Held, raise_file_limit},
    system::{Addresses, PATH, Programs, QUIET_PATH, Server, Setup, System},
    usage::Usage,
};

/// Floods hookgate, and looks at what a quiet source beside the flood notices of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Flood {
    /// How long each flood takes.
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Short floods, and few connections: whether it works.
    #[arg(long)]
    quick: bool,
    /// Connections of slow senders, 100,000 at most.
    #[arg(long, default_value_t = 20_000)]
    slow_connections: usize,
    /// Connections of fast senders.
    #[arg(long, default_value_t = 256)]
    connections: usize,
    /// Connections of senders of large bodies, twice as many where some are to be refused.
    #[arg(long, default_value_t = 127)]
    large_connections: usize,
    /// Only the floods that have this in their names.
    #[arg(long, default_value = "")]
    only: String,
    /// Events a second of the quiet source.
    #[arg(long, default_value_t = 200)]
    quiet_rate: u32,
    #[command(flatten)]
    files: Files,
}

/// More than these would be more processes than a machine has to spare.
const SLOW_CONNECTIONS_MAX: usize = 100_000;

/// Of the quiet source, for each of its two ways: enough for its rate while an answer takes a quarter of a second.
const QUIET_CONNECTIONS: usize = 64;

/// How much of a flood is over before the quiet source begins.
const HEAD_START: Duration = Duration::from_secs(2);

const BODY_BYTES: usize = 1024;

/// hookgate's own default for `server.max_body`. 128 of them are its default for `server.max_in_flight_bytes`.
const LARGE_BODY_BYTES: usize = 2 * 1024 * 1024;

/// How nice the senders of a flood are to the quiet source's.
const LEAST_PRIORITY: i32 = 19;

/// What the quiet source is beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    Alone,
    /// As fast as answers come.
    Fast(Kind),
    /// So many a second.
    Paced(Kind, u32),
    Slow(Drip),
    /// Large bodies, on so many times `large_connections`.
    Large(usize),
}

const SCENARIOS: &[(&str, Setup, Scenario)] = &[
    ("alone", Setup::Stdout, Scenario::Alone),
    ("wrong signatures, as fast as answers come", Setup::Stdout, Scenario::Fast(Kind::Unsigned)),
    ("new events of another source, likewise", Setup::Stdout, Scenario::Fast(Kind::New)),
    ("the same, where that source has `max_rate = \"1000/s\"`", Setup::Rated, Scenario::Fast(Kind::New)),
    ("repeats of one event of another source, likewise", Setup::Stdout, Scenario::Fast(Kind::Duplicate)),
    ("the same, 10,000 a second", Setup::Stdout, Scenario::Paced(Kind::Duplicate, 10_000)),
    ("slow headers", Setup::Stdout, Scenario::Slow(Drip::Headers)),
    ("slow bodies", Setup::Stdout, Scenario::Slow(Drip::Body)),
    ("bodies of 2 MiB, as many as fit in `max_in_flight_bytes`", Setup::Stdout, Scenario::Large(1)),
    ("bodies of 2 MiB, twice as many", Setup::Stdout, Scenario::Large(2)),
];

/// What a flood was.
enum Flooded {
    Not,
    Fast(Box<Outcome>),
    Slow(Held),
}

impl Flood {
    /// Floods, and writes the report.
    ///
    /// # Errors
    /// When something does not start, or the report cannot be written.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        if self.quick {
            (self.duration, self.slow_connections) = (Duration::from_secs(5), self.slow_connections.min(1000));
        }
        let most = SLOW_CONNECTIONS_MAX;
        ensure!(self.slow_connections <= most, "{most} slow connections at most");
        ensure!(self.duration > HEAD_START, "a flood takes longer than {HEAD_START:?}");
        raise_file_limit(self.connections.max(2 * self.large_connections) + 1000)?;
        let (programs, out, cores) = (self.files.programs(&[])?, self.files.out()?, Cores::choose()?);
        cores.join_others()?;
        let mut text = self.about(cores);
        for (name, setup, scenario) in SCENARIOS.iter().filter(|(name, ..)| name.contains(&self.only)) {
            eprintln!("{name}");
            let server = System::Hookgate(*setup).start(&programs, &Addresses::default(), cores)?;
            text.push_str(&self.measure(name, *scenario, &server, &programs)?);
        }
        publish(&out, "flood.md", &text)
    }

    fn about(&self, cores: Cores) -> String {
        let Self { duration, connections, slow_connections, large_connections, quiet_rate, .. } = self;
        format!(
            "# A quiet source beside a flood\n\n\
             hookgate on core {}, to standard output; senders on core {}. The quiet source sends {quiet_rate} events a second, each 1 KiB, on \
             {QUIET_CONNECTIONS} connections that it keeps, and a tenth as many on a new connection each. Floods take {duration:?}: fast ones \
             have {connections} connections, slow ones {slow_connections}, with a byte a second on each, those with bodies of 2 MiB {large_connections} or twice as many. An \
             event that is refused has an answer of its own: 503 where there is no room, 429 where a rate is exceeded; one that is broken or timed \
             out has none. RSS peak beside {connections} connections at full speed is to be 64 MiB at most.\n\n\
             | Beside | p50, ms | p99, ms | p99.9, ms | generator late, p99, ms | not 200 | new connections: p50, ms | p99, ms | not 200 | RSS idle, MiB | RSS peak, MiB | \
             CPU s | The flood |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
            cores.server, cores.others,
        )
    }

    fn measure(&self, name: &str, scenario: Scenario, server: &Server, programs: &Programs) -> anyhow::Result<String> {
        let before = Usage::of(server.id())?;
        let end = Instant::now() + self.duration;
        let (kept, fresh, flooded) = thread::scope(|scope| {
            let flood = scope.spawn(|| {
                // They share a core: the quiet source's answers are to be read when they come, not when the flood lets it.
                let _lowered = nice(LEAST_PRIORITY);
                self.flood(scenario, server, programs, end)
            });
            thread::sleep(HEAD_START);
            let kept = scope.spawn(|| self.quiet(server, Reuse::KeepAlive, end));
            let fresh = scope.spawn(|| self.quiet(server, Reuse::Fresh, end));
            let panicked = |_| anyhow!("a sender has panicked");
            anyhow::Ok((
                kept.join().map_err(panicked)??,
                fresh.join().map_err(panicked)??,
                flood.join().map_err(panicked)??,
            ))
        })?;
        let after = Usage::of(server.id())?;
        let latency = |outcome: &Outcome, share: f64| format!("{:.2}", outcome.latency_ms(share));
        let failed = |outcome: &Outcome| outcome.sent + outcome.unsent - outcome.with_status(200);
        Ok(format!(
            "| {name} | {} | {} | {} | {:.2} | {} | {} | {} | {} | {:.1} | {:.1} | {:.1} | {} |\n",
            latency(&kept, 0.5),
            latency(&kept, 0.99),
            latency(&kept, 0.999),
            kept.lateness_ms(0.99),
            failed(&kept),
            latency(&fresh, 0.5),
            latency(&fresh, 0.99),
            failed(&fresh),
            before.resident_mib,
            after.peak_mib,
            after.cpu_seconds - before.cpu_seconds,
            flooded.tell(),
        ))
    }

    fn quiet(&self, server: &Server, reuse: Reuse, end: Instant) -> anyhow::Result<Outcome> {
        let rate = match reuse {
            Reuse::KeepAlive => f64::from(self.quiet_rate),
            Reuse::Fresh => f64::from(self.quiet_rate) / 10.0,
        };
        let plan = Plan { reuse, pace: Pace::PerSecond(rate), ..plan(server, QUIET_CONNECTIONS, end) };
        load::run(&plan, &events(server, QUIET_PATH, Kind::New, BODY_BYTES)).context("send events of the quiet source")
    }

    fn flood(&self, scenario: Scenario, server: &Server, programs: &Programs, end: Instant) -> anyhow::Result<Flooded> {
        let (connections, pace, kind, body_bytes) = match scenario {
            Scenario::Alone => return Ok(Flooded::Not),
            Scenario::Slow(drip) => {
                let held = slow::drip_together(&programs.own, server.address, PATH, drip, self.slow_connections, end);
                return Ok(Flooded::Slow(held.context("flood")?));
            }
            Scenario::Fast(kind) => (self.connections, Pace::Max, kind, BODY_BYTES),
            Scenario::Paced(kind, rate) => (self.connections, Pace::PerSecond(rate.into()), kind, BODY_BYTES),
            Scenario::Large(times) => (times * self.large_connections, Pace::Max, Kind::New, LARGE_BODY_BYTES),
        };
        let plan = Plan { pace, ..plan(server, connections, end) };
        let outcome = load::run(&plan, &events(server, PATH, kind, body_bytes)).context("flood")?;
        Ok(Flooded::Fast(Box::new(outcome)))
    }
}

fn plan(server: &Server, connections: usize, end: Instant) -> Plan {
    Plan::at_full_speed(server.address, connections, end.saturating_duration_since(Instant::now()))
}

fn events(server: &Server, path: &str, kind: Kind, body_bytes: usize) -> Events {
    Events::new(kind, &server.address.to_string(), path, SECRET.as_bytes(), body_bytes, fastrand::u32(..))
}

impl Flooded {
    fn tell(&self) -> String {
        match self {
            Self::Not => "none".to_owned(),
            Self::Fast(outcome) => {
                let statuses: Vec<_> =
                    outcome.statuses.iter().map(|(status, count)| format!("{status}: {count}")).collect();
                format!(
                    "{:.0}/s ({}; broken: {}, timed out: {})",
                    outcome.rate(),
                    statuses.join(", "),
                    outcome.broken,
                    outcome.timed_out
                )
            }
            Self::Slow(Held { begun, ended, held }) => {
                format!("{begun} begun, {ended} ended by hookgate, {held} held at the end")
            }
        }
    }
}
