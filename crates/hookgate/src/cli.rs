//! The command line. Data goes to stdout, talk to stderr.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use hookgate_core::observe::Chain;

use crate::{
    check,
    config::{self, Config, Problems},
    explain::{self, Explain},
    health,
    run::{self, Failure},
    send::{self, Send},
    shelf, telemetry,
    workers::{Workers, aside, runtime},
};

/// A webhook-to-queue relay: authenticates the sender, drops repeats, routes by config, and publishes the raw event.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// The config file [default: relay.toml]. Every key in it can be overridden by the environment: HOOKGATE_SERVER__LISTEN
    /// is server.listen.
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Write data as JSON.
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take events and publish them until SIGTERM.
    Run,
    /// Validate the config, then connect to every sink and say what is wrong.
    Check,
    /// Say what would become of captured requests, and why: who verified them, their ids, their routes.
    Explain(Explain),
    /// Make a correctly signed test event of a source and post it.
    Send(Send),
    /// Look at what waits to be published, put it anew, or drop it.
    Spool(shelf::Command),
    /// Look at what is not tried again by itself, put it anew, or drop it.
    Dead(shelf::Command),
    /// Look up what became of an event in the audit trail.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Ask the process that runs with this config whether it is alive: the health check of a container.
    Health,
    /// Print the config as it is understood, with defaults filled in and secrets left out.
    Config(PrintConfig),
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Print every step of the events whose ids have this text in them, in the order of time.
    Find {
        /// The id of an event, or a part of it.
        #[arg(value_name = "EVENT_ID")]
        part: String,
        /// Only events of this source.
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
        /// The directory of the trail [default: audit.dir of the config].
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct PrintConfig {
    /// One line for each value, presets filled in, with where it comes from: a file and its line, an environment variable, a
    /// preset, or the default.
    #[arg(long)]
    effective: bool,

    /// The JSON Schema of the config file instead, for editors. No config is read.
    #[arg(long, conflicts_with = "effective")]
    schema: bool,
}

/// The config cannot be used, or a check failed: an operator has to change something.
const EXIT_CONFIG: u8 = 2;

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.command {
        Command::Run => run_until_stopped(&arguments),
        Command::Check => check(&arguments),
        Command::Explain(what) => explain(&arguments, what),
        Command::Send(what) => send(&arguments, what),
        Command::Spool(what) => shelf(&arguments, what, false),
        Command::Dead(what) => shelf(&arguments, what, true),
        Command::Health => health(&arguments),
        Command::Audit(AuditCommand::Find { part, source, dir }) => {
            find_in_audit(&arguments, part, source.as_deref(), dir.as_deref())
        }
        Command::Config(what) => print_config(&arguments, what),
    };
    outcome.unwrap_or_else(|failure| match failure {
        Failure::Config(problems) => {
            // Where nobody reads what is written, the exit code still says it.
            let _written = report(&arguments, &problems);
            ExitCode::from(EXIT_CONFIG)
        }
        Failure::Run(error) => {
            eprintln!("hookgate: {}", Chain(&*error));
            ExitCode::FAILURE
        }
    })
}

fn file(arguments: &Arguments) -> &Path {
    arguments.config.as_deref().unwrap_or(Path::new("relay.toml"))
}

fn load(arguments: &Arguments) -> Result<Config, Problems> {
    config::load(file(arguments), std::env::vars())
}

fn explain(arguments: &Arguments, what: &Explain) -> Result<ExitCode, Failure> {
    let by_config = arguments.config.is_some() || explain::needs_config(what);
    let config = by_config.then(|| load(arguments)).transpose()?;
    explain::explain(what, config.as_ref(), arguments.json)?;
    Ok(ExitCode::SUCCESS)
}

fn send(arguments: &Arguments, what: &Send) -> Result<ExitCode, Failure> {
    send::send(what, &load(arguments)?, arguments.json)
}

fn shelf(arguments: &Arguments, what: &shelf::Command, dead: bool) -> Result<ExitCode, Failure> {
    let config = load(arguments)?;
    runtime()?.block_on(shelf::shelf(what, dead, &config, arguments.json))
}

fn run_until_stopped(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let (config, file) = (load(arguments)?, file(arguments).to_owned());
    let again = file.clone();
    let load = Arc::new(move || config::load(&again, std::env::vars()));
    let runtime = runtime()?;
    let workers = Workers::start(config.server.threads(), runtime.handle().clone());
    let workers = workers.context("start the threads of server.threads")?;
    let aside = aside()?;
    let ended = runtime.block_on(run::run(config, load, file, workers, aside.handle().clone()));
    // What blocks a thread of a runtime still, a name that no server answers for, say, holds up no stop.
    runtime.shutdown_background();
    aside.shutdown_background();
    ended?;
    Ok(ExitCode::SUCCESS)
}

fn check(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let config = load(arguments)?;
    let results = runtime()?.block_on(check::check(&config))?;
    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &results).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        for result in &results {
            writeln!(out, "{result}")?;
        }
    }
    let good = results.iter().all(check::Check::is_ok);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(EXIT_CONFIG) })
}

fn health(arguments: &Arguments) -> Result<ExitCode, Failure> {
    runtime()?.block_on(health::health(&load(arguments)?))?;
    Ok(ExitCode::SUCCESS)
}

fn find_in_audit(
    arguments: &Arguments,
    part: &str,
    source: Option<&str>,
    dir: Option<&Path>,
) -> Result<ExitCode, Failure> {
    let dir = match dir {
        Some(dir) => dir.to_owned(),
        None => match load(arguments)?.audit {
            Some(audit) => audit.dir,
            None => {
                return Err(
                    anyhow::anyhow!("there is no [audit] table in the config; name the directory by --dir").into()
                );
            }
        },
    };
    let found = telemetry::find_in_audit(&dir, part, source).with_context(|| format!("read {}", dir.display()))?;
    let mut out = io::stdout().lock();
    for entry in &found {
        if arguments.json {
            serde_json::to_writer(&mut out, entry).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            writeln!(out, "{entry}")?;
        }
    }
    if found.is_empty() {
        eprintln!("hookgate: no event in {} has {part:?} in its id", dir.display());
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_config(arguments: &Arguments, what: &PrintConfig) -> Result<ExitCode, Failure> {
    let mut out = io::stdout().lock();
    if what.schema {
        serde_json::to_writer_pretty(&mut out, &config::schema()).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = load(arguments)?;
    if what.effective {
        let values = config.effective();
        if arguments.json {
            serde_json::to_writer_pretty(&mut out, &values).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            write!(out, "{values}")?;
        }
    } else if arguments.json {
        serde_json::to_writer_pretty(&mut out, &config).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        let text = toml::to_string_pretty(&config).map_err(anyhow::Error::new)?;
        write!(out, "{text}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn report(arguments: &Arguments, problems: &Problems) -> io::Result<()> {
    if arguments.json {
        let mut out = io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, problems)?;
        writeln!(out)
    } else {
        write!(io::stderr(), "{problems}")
    }
}
