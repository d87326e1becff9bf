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
mod workers;

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// An event takes and gives back some hundred pieces of memory; glibc's allocator took a fifth of all its time, and musl's
/// takes far more. Figures: docs/performance.md.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    // One TLS provider for every client in the process, chosen before any of them looks for one. It can only fail when
    // there is one already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    cli::main()
}
