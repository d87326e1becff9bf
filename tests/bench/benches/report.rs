//! `cargo bench -p hookgate-bench`: the report.

use std::process::ExitCode;

fn main() -> ExitCode {
    hookgate_bench::main_of_bench()
}
