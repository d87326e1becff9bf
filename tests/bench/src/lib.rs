//! What hookgate costs: a load generator, servers to compare it with, and the reports that are made with both.
//!
//! A tool beside the product: it knows hookgate as a program and as an HTTP server, and nothing of how it works inside.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod answer;
mod brokers;
mod cli;
mod cores;
mod event;
mod flood;
mod load;
mod probe;
mod remembered;
mod report;
mod slow;
mod stored;
mod system;
mod usage;
mod yardstick;

pub use self::cli::{main, main_of_bench};

/// The secret of the sources under test.
const SECRET: &str = "a secret for benchmarks";

/// The delivery mode of messages that RabbitMQ writes to the disk.
/// Source: AMQP 0-9-1 specification, section 1.8.3.1, `delivery-mode`.
const PERSISTENT: u8 = 2;

/// The environment variable that servers read it from.
const SECRET_VARIABLE: &str = "BENCH_SECRET";
