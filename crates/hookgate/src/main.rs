//! hookgate, the program: command line, configuration, assembly, supervision and shutdown.

mod assemble;
mod check;
mod cli;
mod config;
mod explain;
mod health;
mod relay;
mod run;
mod secrets;
mod send;
mod shelf;
mod sinks;
mod spool;
mod telemetry;

use std::process::ExitCode;

fn main() -> ExitCode {
    // One TLS provider for every client in the process, chosen before any of them looks for one. It can only fail when
    // there is one already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    cli::main()
}
