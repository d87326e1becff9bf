//! What routing an event costs: CPU time of one decision, by the number of routes and what their rules look at.
//!
//! One thread, warm, the median of several rounds. Prints a report as Markdown.

#![expect(clippy::print_stdout, reason = "the report is what it is for")]

use std::{hint::black_box, time::Instant};

use hookgate_core::{
    event::SinkId,
    route::{Names, RouteConfig, Router, SinkDeclaration, UnroutedConfig},
    sink::Addressing,
};
use hookgate_testkit::event::{SOURCE, TestEvent};
use serde_json::{Value, json};

const ROUNDS: usize = 9;
const DECISIONS: u32 = 20_000;

fn routes(count: usize, rule: impl Fn(usize) -> Option<String>) -> Router {
    let route = |place: usize| json!({ "when": rule(place), "to": [{ "sink": "s", "subject": "a" }] });
    let mut all: Vec<Value> = (0..count).map(route).collect();
    // One that holds, after all the others.
    all.push(json!({ "to": [{ "sink": "s", "subject": "b" }] }));
    let routes: Vec<RouteConfig> = serde_json::from_value(all.into()).expect("well-formed");
    let sinks = [SinkDeclaration { id: SinkId::new(0, "s"), addressing: Addressing::Subject, allow: Vec::new() }];
    let sources = [SOURCE.to_owned(), "other".to_owned()];
    let names = Names { sinks: &sinks, sources: &sources, attributes: &["status".to_owned()] };
    Router::compile(&routes, &UnroutedConfig::default(), &names).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn main() {
    let filler = "x".repeat(900);
    let body = format!(r#"{{"a": {{"b": 1}}, "status": "ok", "summary": "{filler}"}}"#);
    let event = TestEvent::new("1").body(body).attribute("status", "ok").event();
    println!("| Routes that do not match | one decision, ns |");
    println!("|---|---|");
    let report = |what: &str, router: &Router| {
        let mut rounds: Vec<u128> = (0..ROUNDS)
            .map(|_| {
                let begun = Instant::now();
                for _ in 0..DECISIONS {
                    black_box(router.plan(black_box(&event)));
                }
                begun.elapsed().as_nanos() / u128::from(DECISIONS)
            })
            .collect();
        rounds.sort_unstable();
        println!("| {what} | {} |", rounds[ROUNDS / 2]);
    };
    report("none", &routes(0, |_| None));
    for count in [10, 100] {
        let number = |place: usize| format!("\"{place}\"");
        report(
            &format!("{count} of another source"),
            &routes(count, |_| Some("source == \"other\" && json.a.b > 1".to_owned())),
        );
        report(
            &format!("{count} equalities"),
            &routes(count, |place| Some(format!("attr.status == {}", number(place)))),
        );
        report(
            &format!("{count} interpreted"),
            &routes(count, |place| Some(format!("attr.status in [{}]", number(place)))),
        );
        report(
            &format!("{count} that look into the body (1 KiB)"),
            &routes(count, |place| Some(format!("json.a.b == {place} + 2"))),
        );
    }
}
