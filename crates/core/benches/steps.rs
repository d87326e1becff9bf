//! What the steps of one event's way in the domain cost, by the harness in [`hookgate_testkit::steps`], which says how it is called.
//!
//! An event is one of GitHub's form with a body of 1 KiB, verified by its signature, for one destination that acknowledges at once.

use std::{hint::black_box, path::Path, process::ExitCode, sync::Arc};

use futures_util::FutureExt;
use hookgate_core::{
    auth::{Authenticated, Request, Unverified},
    dedup::{Claim, Claimed},
    envelope,
    event::Event,
    handoff::Handoff,
    message::Message,
    route::Routed,
    sink::{Position, Receipt},
    source::Source,
};
use hookgate_testkit::{
    sender,
    steps::{self, measured},
};

/// What the steps are called, in the order of an event's way.
const STEPS: [&str; 9] = ["verify", "extract", "route", "claim", "address", "headers", "settle", "spool-record", "all"];

fn main() -> ExitCode {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/steps.toml");
    let bench = Bench::new();
    steps::run(&STEPS, &file, |step, count| bench.run(step, count))
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    source: Arc<Source>,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        Self { runtime, source: steps::source() }
    }

    /// Takes `count` events through `step`; nanoseconds for all of them.
    fn run(&self, step: &str, count: usize) -> u128 {
        let pipeline = steps::pipeline(&self.runtime);
        let requests = (0..count).map(|number| self.request(number));
        let verified = || (0..count).map(|number| self.verified(number));
        let events = || (0..count).map(|number| self.event(number));
        let routed = |event: &Authenticated<Event>| match pipeline.router.plan(event).routed {
            Routed::To(plan) => plan,
            other => panic!("{other:?}"),
        };
        let messages = || events().map(|event| routed(&event).messages(&event).next().expect("one destination"));
        match step {
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
        }
    }

    fn request(&self, number: usize) -> Unverified {
        sender::request(&steps::draft(&self.source, number))
    }

    fn verified(&self, number: usize) -> Authenticated<Request> {
        self.source.verify(self.request(number)).expect("it is signed")
    }

    fn event(&self, number: usize) -> Arc<Authenticated<Event>> {
        Arc::new(self.source.identify(self.verified(number)).expect("an event"))
    }
}
