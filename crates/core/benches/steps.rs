//! What the steps of one event's way cost, each alone: time, or instructions, which do not depend on the machine's mood.
//!
//! ```text
//! cargo bench -p hookgate-core --bench steps                            nanoseconds, as Markdown
//! cargo bench -p hookgate-core --bench steps --profile gate -- --gate   instructions, held against steps.toml beside this file
//! ```
//!
//! Valgrind counts the instructions. With `HOOKGATE_WRITE=1` in the environment the gate writes its budgets instead. An event is one of GitHub's form with a body
//! of 1 KiB, verified by its signature, for one destination that acknowledges at once.

#![expect(clippy::print_stdout, reason = "the report is what it is for")]

use std::{
    collections::BTreeMap,
    hint::black_box,
    path::Path,
    process::{Command, ExitCode},
    sync::Arc,
    time::Instant,
};

use futures_util::FutureExt;
use hookgate_core::{
    auth::{Authenticated, Request, Unverified},
    dedup::{Claim, Claimed},
    envelope,
    event::{Event, SinkId},
    handoff::Handoff,
    message::Message,
    observe::{Observer, Unobserved},
    route::Routed,
    sink::{Position, Receipt},
    source::Source,
};
use hookgate_testkit::{event::TestEvent, fake_sink::FakeSink, sender};
use serde::{Deserialize, Serialize};
use serde_json::json;

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

/// What the steps are called, in the order of an event's way.
const STEPS: [&str; 9] = ["verify", "extract", "route", "claim", "address", "headers", "settle", "spool-record", "all"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--step", step] => {
            println!("{MACHINE}{}", machine());
            Bench::new().run(step, EVENTS_COUNTED);
            ExitCode::SUCCESS
        }
        ["--gate"] => gate(),
        _ => {
            report();
            ExitCode::SUCCESS
        }
    }
}

fn report() {
    let bench = Bench::new();
    println!("| Step | ns |\n|---|---|");
    for step in STEPS {
        let mut rounds: Vec<u128> = (0..ROUNDS).map(|_| bench.run(step, EVENTS)).collect();
        rounds.sort_unstable();
        println!("| {step} | {} |", rounds[ROUNDS / 2]);
    }
}

/// Counts the instructions of each step in a process of its own.
fn gate() -> ExitCode {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/steps.toml");
    let mut found = Budgets::default();
    for step in STEPS {
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
        let head = "# Instructions for one event, by the gate in steps.rs: HOOKGATE_WRITE=1 writes them.\n";
        std::fs::write(&file, format!("{head}{text}")).expect("writable");
    }
    let text = std::fs::read_to_string(&file).unwrap_or_default();
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

struct Bench {
    runtime: tokio::runtime::Runtime,
    source: Arc<Source>,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let source = json!({ "path": "/in", "preset": "github", "secrets": ["It's a Secret to Everybody"] });
        Self { runtime, source: Arc::new(sender::compile(source)) }
    }

    /// Takes `count` events through `step`; nanoseconds for each.
    fn run(&self, step: &str, count: usize) -> u128 {
        let observer: Arc<dyn Observer> = Arc::new(Unobserved);
        let sink = FakeSink::new(SinkId::new(0, "sink"));
        let routes = json!([{ "when": "source == \"test\" && attr.action == \"opened\"", "to": [{ "sink": "sink" }] }]);
        let test = TestEvent::new("any").attribute("action", "opened");
        let pipeline = Arc::new(test.pipeline(std::slice::from_ref(&sink), &routes, &observer));
        let requests = (0..count).map(|number| self.request(number));
        let verified = || (0..count).map(|number| self.verified(number));
        let events = || (0..count).map(|number| self.event(number));
        let routed = |event: &Authenticated<Event>| match pipeline.router.plan(event).routed {
            Routed::To(plan) => plan,
            other => panic!("{other:?}"),
        };
        let messages = || events().map(|event| routed(&event).messages(&event).next().expect("one destination"));
        let per_event = match step {
            "verify" => measured(requests.collect(), |request| drop(black_box(self.source.verify(request)))),
            "extract" => measured(verified().collect(), |request| drop(black_box(self.source.identify(request)))),
            "route" => measured(events().collect(), |event| drop(black_box(pipeline.router.plan(&event)))),
            "claim" => {
                // Kept, since one that is dropped is released.
                let mut claims = Vec::with_capacity(count);
                measured(events().collect(), |event: Arc<_>| claims.push(pipeline.dedup.memory.claim(&event)))
            }
            "settle" => {
                let ready = messages().map(|message| {
                    let plan = routed(&message.event);
                    let position = Position { place: "place".into(), offset: 0, duplicate: false };
                    let receipt = Receipt::acknowledged(&message, position);
                    let handoff = Handoff::complete(&plan, &[receipt], &[]).expect("the only receipt");
                    match pipeline.dedup.memory.claim(&message.event) {
                        Claim::Fresh(claimed) => (claimed, handoff),
                        _ => panic!("it is new"),
                    }
                });
                measured(ready.collect(), |(claimed, handoff): (Claimed, _)| {
                    black_box(claimed.settle(&handoff).now_or_never().expect("nobody is asked"));
                })
            }
            "address" => measured(events().map(|event| (routed(&event), event)).collect(), |(plan, event)| {
                for message in plan.messages(&event) {
                    black_box(message.broker_id());
                }
            }),
            "headers" => measured(messages().collect(), |message: Message| {
                message.for_each_header(|name, value| {
                    black_box((name, value));
                });
            }),
            "spool-record" => {
                measured(messages().collect(), |message: Message| drop(black_box(envelope::encode(&message))))
            }
            "all" => {
                let requests: Vec<Unverified> = requests.collect();
                measured(requests, |request| {
                    let source = Arc::clone(&self.source);
                    let answered = self.runtime.block_on(async { pipeline.spawn(source, request).await });
                    assert!(answered.is_ok_and(|answered| answered.is_ok()));
                })
            }
            other => panic!("there is no step {other}"),
        };
        per_event / count as u128
    }

    fn request(&self, number: usize) -> Unverified {
        let filler = "some words of a comment, as people write them. ".repeat(18);
        let body = format!(
            r#"{{"action":"opened","number":{number},"repository":{{"full_name":"octo/hello"}},"sender":{{"login":"octocat"}},"comment":"{filler}"}}"#
        );
        let mut draft = sender::draft(body);
        draft.headers.insert("x-github-event", http::HeaderValue::from_static("issues"));
        let id = format!("72d3162e-cc78-11e3-81ab-{number:012}");
        draft.headers.insert("x-github-delivery", id.parse().expect("a header"));
        self.source.sign(&mut draft).expect("it has a secret");
        sender::request(&draft)
    }

    fn verified(&self, number: usize) -> Authenticated<Request> {
        self.source.verify(self.request(number)).expect("it is signed")
    }

    fn event(&self, number: usize) -> Arc<Authenticated<Event>> {
        Arc::new(self.source.identify(self.verified(number)).expect("an event"))
    }
}

/// Nanoseconds that `step` takes for all `items`. Valgrind counts what is in here.
#[inline(never)]
fn measured<T>(items: Vec<T>, mut step: impl FnMut(T)) -> u128 {
    let begun = Instant::now();
    for item in items {
        step(item);
    }
    begun.elapsed().as_nanos()
}
