//! `hookgate-bench`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    hookgate_bench::main()
}
