//! What the steps of one event's way cost, each alone: time, or instructions, which do not depend on the machine's mood.
//!
//! A benchmark of steps is a program without a harness whose `main` is [`run`]. It is called like this:
//!
//! ```text
//! cargo bench -p hookgate-core --bench steps                            nanoseconds, as Markdown
//! cargo bench -p hookgate-core --bench steps --profile gate -- --gate   instructions, held against steps.toml beside it
//! ```
//!
//! Valgrind counts the instructions. With `HOOKGATE_WRITE=1` in the environment the gate writes its budgets instead.

#![expect(clippy::print_stdout, reason = "the report is what it is for")]

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, ExitCode},
    sync::Arc,
    time::Instant,
};

use hookgate_core::{
    auth::Draft,
    event::SinkId,
    observe::{Observer, Unobserved},
    pipeline::Pipeline,
    source::Source,
};
use http::HeaderValue;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::{event::TestEvent, fake_sink::FakeSink, sender};

/// So many events are taken through a step at once.
const EVENTS: usize = 2_000;

/// The same under valgrind, which takes fifty times as long; more would come to the same for each.
const EVENTS_COUNTED: usize = 100;

/// Medians are of this many rounds.
const ROUNDS: usize = 15;

/// A step may take this much more than its budget.
const TOLERANCE: f64 = 0.10;

/// How a process says what machine it believes to be on.
const MACHINE: &str = "machine: ";

/// Does what the arguments say with `steps`, in the order of an event's way, whose budgets are in `file`. `step` takes so many events
/// through the one that is named, and returns the nanoseconds for all of them, by [`measured`].
pub fn run(steps: &[&str], file: &Path, step: impl Fn(&str, usize) -> u128) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--step", name] => {
            println!("{MACHINE}{}", machine());
            step(name, EVENTS_COUNTED);
            ExitCode::SUCCESS
        }
        ["--gate"] => gate(steps, file),
        _ => {
            println!("| Step | ns |\n|---|---|");
            for name in steps {
                let mut rounds: Vec<u128> = (0..ROUNDS).map(|_| step(name, EVENTS) / EVENTS as u128).collect();
                rounds.sort_unstable();
                println!("| {name} | {} |", rounds[ROUNDS / 2]);
            }
            ExitCode::SUCCESS
        }
    }
}

/// Counts the instructions of each step in a process of its own.
fn gate(steps: &[&str], file: &Path) -> ExitCode {
    let mut found = Budgets::default();
    for &step in steps {
        match count(step) {
            Ok((machine, instructions)) => {
                found.machine = machine;
                found.instructions.insert(step.to_owned(), instructions);
            }
            Err(why) => {
                println!("the cost of {step} cannot be counted: {why}");
                return ExitCode::FAILURE;
            }
        }
    }
    if std::env::var_os("HOOKGATE_WRITE").is_some() {
        let text = toml::to_string(&found).expect("names and numbers");
        let head = "# Instructions for one event, by the gate of steps.rs: HOOKGATE_WRITE=1 writes them.\n";
        std::fs::write(file, format!("{head}{text}")).expect("writable");
    }
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let budgets: Budgets = toml::from_str(&text).expect("names and numbers");
    if budgets.machine != found.machine {
        println!(
            "SKIPPED: the budgets are for {}, and this is {}: other instructions do the same",
            budgets.machine, found.machine
        );
        return ExitCode::SUCCESS;
    }
    let mut within = true;
    for (step, instructions) in &found.instructions {
        let budget = budgets.instructions.get(step).copied().unwrap_or(0);
        let ratio = *instructions as f64 / budget.max(1) as f64;
        let holds = ratio <= 1.0 + TOLERANCE;
        within &= holds;
        let verdict = match ratio {
            _ if !holds => "OUT OF BUDGET",
            ratio if ratio < 1.0 - TOLERANCE => "ok, and cheaper than it was: lower the budget",
            _ => "ok",
        };
        println!("{step:<14} {instructions:>8} instructions, budget {budget:>8}  {verdict}");
    }
    if within {
        return ExitCode::SUCCESS;
    }
    println!("If that is meant: HOOKGATE_WRITE=1, and say in the commit message what it buys.");
    ExitCode::FAILURE
}

/// What `steps.toml` says.
#[derive(Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
struct Budgets {
    /// Where they were counted: a processor with instructions for a hash takes fewer of them.
    machine: String,
    instructions: BTreeMap<String, u64>,
}

/// What decides which code is run, as far as it is known; valgrind shows less than there is.
fn machine() -> String {
    let mut machine = std::env::consts::ARCH.to_owned();
    #[cfg(target_arch = "x86_64")]
    for (name, there) in [
        ("sha", std::is_x86_feature_detected!("sha")),
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
    ] {
        if there {
            machine.push('+');
            machine.push_str(name);
        }
    }
    machine
}

/// The machine, and the instructions of `step` for each event.
fn count(step: &str) -> Result<(String, u64), String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--toggle-collect=*measured*", "--callgrind-out-file=/dev/null"]);
    command.arg(own).args(["--step", step]);
    let output = command.output().map_err(|error| format!("valgrind cannot be run: {error}"))?;
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(format!("it failed: {}", told.lines().find(|line| line.contains("panicked")).unwrap_or_default()));
    }
    let machine = said.lines().find_map(|line| line.strip_prefix(MACHINE)).ok_or("it did not start")?;
    let collected = told.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse::<u64>().ok());
    match collected {
        Some(collected) if collected > 0 => Ok((machine.to_owned(), collected / EVENTS_COUNTED as u64)),
        _ => Err(told.lines().last().unwrap_or("no word of valgrind").to_owned()),
    }
}

/// Nanoseconds that `step` takes for all `items`. Valgrind counts what is in here, and finds it by its name.
#[inline(never)]
pub fn measured<T>(items: Vec<T>, mut step: impl FnMut(T)) -> u128 {
    let begun = Instant::now();
    for item in items {
        step(item);
    }
    begun.elapsed().as_nanos()
}

/// What takes its events to one destination, which acknowledges at once; long bodies are for `runtime`.
pub fn pipeline(runtime: &Runtime) -> Arc<Pipeline> {
    let _there = runtime.enter();
    let observer: Arc<dyn Observer> = Arc::new(Unobserved);
    let sink = FakeSink::new(SinkId::new(0, "sink"));
    let routes = json!([{ "when": "source == \"test\" && attr.action == \"opened\"", "to": [{ "sink": "sink" }] }]);
    let test = TestEvent::new("any").attribute("action", "opened");
    Arc::new(test.pipeline(&[sink], &routes, &observer))
}

/// GitHub as a source, at `/in`.
pub fn source() -> Arc<Source> {
    let source = json!({ "path": "/in", "preset": "github", "secrets": ["It's a Secret to Everybody"] });
    Arc::new(sender::compile(source))
}

/// Event number so and so of `source`: GitHub's form, 1 KiB, signed.
pub fn draft(source: &Source, number: usize) -> Draft {
    let filler = "some words of a comment, as people write them. ".repeat(18);
    let body = format!(
        r#"{{"action":"opened","number":{number},"repository":{{"full_name":"octo/hello"}},"sender":{{"login":"octocat"}},"comment":"{filler}"}}"#
    );
    let mut draft = sender::draft(body);
    draft.headers.insert("x-github-event", HeaderValue::from_static("issues"));
    let id = format!("72d3162e-cc78-11e3-81ab-{number:012}");
    draft.headers.insert("x-github-delivery", id.parse().expect("a header"));
    source.sign(&mut draft).expect("it has a secret");
    draft
}
