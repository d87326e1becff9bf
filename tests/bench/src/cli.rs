//! The command line.

use std::{
    env,
    ffi::OsString,
    net::{SocketAddr, ToSocketAddrs},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use http::Uri;

use crate::{
    SECRET, SECRET_VARIABLE,
    event::{BODY_BYTES_MIN, Events, Kind},
    flood::Flood,
    load::{self, Outcome, Pace, Plan, Reuse},
    remembered::Remembered,
    report::Report,
    slow::Slow,
    stored,
    yardstick::Yardstick,
};

/// What hookgate costs beside a bare server and a straightforward composite.
#[derive(Debug, Parser)]
#[command(version, about)]
enum Command {
    /// Send events to any server that takes GitHub's webhooks, and say how it answered.
    Load(Load),
    /// Run a server to compare with.
    Yardstick(Yardstick),
    /// Start brokers, hookgate and the yardsticks, measure them in turns, and write a report.
    Report(Report),
    /// Flood hookgate, and look at what a quiet source beside the flood notices of it.
    Flood(Flood),
    /// Have hookgate remember more and more ids, and look at what events cost then.
    Remembered(Remembered),
    /// Hold connections on which a request comes a byte at a time, as the floods do.
    Slow(Slow),
}

#[derive(Debug, clap::Args)]
struct Load {
    /// Where events go, as http://host:port/path.
    #[arg(long)]
    url: Uri,
    /// Events a second, or "max": as fast as answers come.
    #[arg(long, default_value = "max", value_parser = pace)]
    rate: Pace,
    /// Connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Open a connection for each event.
    #[arg(long)]
    fresh: bool,
    /// For how long.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// How many events at most.
    #[arg(long, default_value_t = u64::MAX)]
    events: u64,
    /// The length of each body, in bytes.
    #[arg(long, default_value_t = 1024)]
    body_bytes: usize,
    /// What events they are.
    #[arg(long, value_enum, default_value_t = Kind::New)]
    kind: Kind,
    /// The environment variable that holds the secret. Where it is not set, the secret is the one of the reports.
    #[arg(long, default_value = SECRET_VARIABLE)]
    secret_env: String,
    /// The URL of NATS: afterwards all events that were answered 2xx are looked for in the stream, which must have been empty.
    #[arg(long, requires = "stream")]
    nats: Option<String>,
    /// The stream they are looked for in.
    #[arg(long, requires = "nats")]
    stream: Option<String>,
}

/// Runs the program.
pub fn main() -> ExitCode {
    run(env::args_os().collect())
}

/// Runs the program by `cargo bench`, where it is the report unless something else is named.
pub fn main_of_bench() -> ExitCode {
    // Cargo says that it is a benchmark.
    let mut arguments: Vec<OsString> = env::args_os().filter(|argument| argument != "--bench").collect();
    let commands = ["load", "yardstick", "report", "flood", "remembered", "slow", "help", "--help", "-h", "--version"];
    if !arguments.get(1).is_some_and(|first| commands.iter().any(|command| first == command)) {
        arguments.insert(1, "report".into());
    }
    run(arguments)
}

fn run(arguments: Vec<OsString>) -> ExitCode {
    // One TLS provider for the clients in the process; it can only fail when there is one already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let done = match Command::parse_from(arguments) {
        Command::Load(load) => load.run(),
        Command::Yardstick(yardstick) => yardstick.run(),
        Command::Report(report) => report.run(),
        Command::Flood(flood) => flood.run(),
        Command::Remembered(remembered) => remembered.run(),
        Command::Slow(slow) => slow.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hookgate-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn pace(text: &str) -> Result<Pace, String> {
    match text.parse::<f64>() {
        _ if text == "max" => Ok(Pace::Max),
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(Pace::PerSecond(rate)),
        _ => Err(format!("{text:?} is neither \"max\" nor a number of events a second")),
    }
}

impl Load {
    fn run(self) -> anyhow::Result<()> {
        ensure!(self.body_bytes >= BODY_BYTES_MIN, "a body has {BODY_BYTES_MIN} bytes at least");
        ensure!(self.connections > 0, "no connection, no event");
        let (address, host) = address(&self.url)?;
        let secret = env::var(&self.secret_env).unwrap_or_else(|_| SECRET.to_owned());
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let events = Events::new(self.kind, &host, path, secret.as_bytes(), self.body_bytes, fastrand::u32(..));
        let plan = Plan {
            address,
            connections: self.connections,
            reuse: if self.fresh { Reuse::Fresh } else { Reuse::KeepAlive },
            pace: self.rate,
            duration: self.duration,
            events_max: self.events,
            first: 0,
            answer_limit: Duration::from_secs(10),
        };
        let outcome = load::run(&plan, &events).context("send events")?;
        print(&outcome);
        if let (Some(nats), Some(stream)) = (&self.nats, &self.stream) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let there = runtime.block_on(stored::read(nats, stream, &events))?;
            let check = stored::compare(&outcome.accepted, &there);
            println!("in the stream: {} messages, {} lost", there.len(), check.lost.len());
            println!("  {} repeated, {} of events that were not accepted", check.repeated, check.unpromised);
            ensure!(check.lost.is_empty(), "{} accepted events are not in the stream", check.lost.len());
        }
        Ok(())
    }
}

/// The address of a URL, and its host as it is to stand in requests.
fn address(url: &Uri) -> anyhow::Result<(SocketAddr, String)> {
    if url.scheme_str() != Some("http") {
        bail!("{url} does not begin with http://; for TLS, put something in between that speaks it");
    }
    let host = url.host().with_context(|| format!("find the host of {url}"))?;
    let port = url.port_u16().unwrap_or(80);
    let found =
        (host.trim_matches(['[', ']']), port).to_socket_addrs().with_context(|| format!("look up {host}"))?.next();
    Ok((found.with_context(|| format!("find an address of {host}"))?, format!("{host}:{port}")))
}

fn print(outcome: &Outcome) {
    let Outcome { sent, broken, timed_out, unsent, .. } = outcome;
    println!("{sent} events in {:.1?}: {:.0} answers/s", outcome.elapsed, outcome.rate());
    for (status, count) in &outcome.statuses {
        println!("  {status}: {count}");
    }
    println!("  broken: {broken}, timed out: {timed_out}, due and not sent: {unsent}");
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| outcome.latency_ms(share));
    println!("latency: p50 {p50:.2} ms, p99 {p99:.2} ms, p99.9 {p999:.2} ms, max {:.2} ms", outcome.latency_ms(1.0));
    println!("generator late by: p99 {:.2} ms", outcome.lateness_ms(0.99));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_above_zero_or_max() {
        assert_eq!(pace("max"), Ok(Pace::Max));
        assert_eq!(pace("2.5"), Ok(Pace::PerSecond(2.5)));
        for wrong in ["0", "-1", "inf", "NaN", "fast"] {
            assert!(pace(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_url_names_an_address_and_a_host() {
        let found = |url: &str| address(&url.parse().expect("a URL")).map_err(|error| error.to_string());
        assert_eq!(
            found("http://127.0.0.1:81/a"),
            Ok((SocketAddr::from(([127, 0, 0, 1], 81)), "127.0.0.1:81".to_owned()))
        );
        assert_eq!(found("http://[::1]/").expect("an address").0.port(), 80);
        assert!(found("https://127.0.0.1/").is_err());
    }
}
