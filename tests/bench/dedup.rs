//! What deduplication costs: operations of Redis and CPU time for each event, and what a flood of repeats does to others.
//!
//! Real processes on this machine. CPU time is what they say of themselves; the wall clock of a busy machine says little, so that
//! latencies are of use only beside each other. Prints a report as Markdown.

#![expect(clippy::print_stdout, reason = "the report is what it is for")]

#[path = "../e2e/relay.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod relay;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hookgate_testkit::{
    http::{Connection, request},
    redis::{RedisConfig, RedisServer},
};
use relay::{LIMIT, OPENCLAW, Relay, TO_FILE, TOKEN, finished, shared_in};

/// Senders at once, each with a connection of its own.
const SENDERS: usize = 32;

/// Events of each measurement.
const EVENTS: usize = 40_000;

/// Repeats a second in the flood, and for how long.
const FLOOD_PER_SECOND: u32 = 10_000;
const FLOOD_FOR: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() {
    println!("| What | events | Redis commands each | CPU µs each, hookgate | CPU µs each, Redis |");
    println!("|---|---|---|---|---|");
    let alone = Relay::start(&format!("{OPENCLAW}{TO_FILE}")).await;
    measure("new, no Redis", &alone, None, |number| number).await;
    measure("repeat, known to the process, no Redis", &alone, None, |_| 0).await;
    let redis = RedisServer::start(&RedisConfig::default()).await;
    let tables = format!("{OPENCLAW}{STEADY}{TO_FILE}{}", shared_in(&redis.url()));
    let (one, other) = (Relay::start(&tables).await, Relay::start(&tables).await);
    measure("new", &one, Some(&redis), |number| number).await;
    measure("repeat, known to the process", &one, Some(&redis), |_| 0).await;
    measure("repeat, known to another process only", &other, Some(&redis), |number| number).await;
    let keys = redis.wire().await.integer(&["DBSIZE"]).await;
    let bytes = info(&redis, "memory", "used_memory_dataset:").await / keys as f64;
    println!("\n{keys} keys in Redis, {bytes:.0} bytes each.\n");
    drop((one, other, alone));

    println!("| Another source's events, 200/s | p50 | p99 | Redis commands for the flood |");
    println!("|---|---|---|---|");
    for flood in [false, true] {
        let (one, other) = (Relay::start(&tables).await, Relay::start(&tables).await);
        storm(flood, [Arc::new(one), Arc::new(other)], &redis).await;
    }
}

/// A second source, which the flood is not of.
const STEADY: &str = r#"
    [sources.steady]
    path = "/steady"
    preset = "openclaw"
    verify = [{ scheme = "bearer", secrets = [{ env = "OPENCLAW_TOKEN" }] }]
"#;

fn event(path: &str, number: usize) -> Vec<u8> {
    let authorization = format!("Bearer {TOKEN}");
    let headers = [("authorization", authorization.as_str()), ("content-type", "application/json")];
    request("POST", path, &headers, finished(number).as_bytes())
}

/// A number that Redis tells about itself.
async fn info(redis: &RedisServer, section: &str, name: &str) -> f64 {
    let info = redis.wire().await.text(&["INFO", section]).await.expect("a text");
    let line = info.lines().find_map(|line| line.strip_prefix(name)).expect("INFO has it");
    line.trim().parse().expect("a number")
}

/// Seconds of CPU time that each has used so far.
async fn cpu(relay: &Relay, redis: Option<&RedisServer>) -> (f64, f64) {
    let of_redis = match redis {
        Some(redis) => info(redis, "cpu", "used_cpu_user:").await + info(redis, "cpu", "used_cpu_sys:").await,
        None => 0.0,
    };
    (relay.metric("process_cpu_seconds_total").await, of_redis)
}

async fn commands(redis: &RedisServer) -> u64 {
    let calls = redis.wire().await.calls().await;
    ["set", "evalsha", "eval"].iter().filter_map(|name| calls.get(*name)).sum()
}

/// Posts [`EVENTS`] events, by which `number` of each, and prints what each cost.
async fn measure(what: &str, relay: &Relay, redis: Option<&RedisServer>, number: fn(usize) -> usize) {
    let before = cpu(relay, redis).await;
    let commands_before = match redis {
        Some(redis) => commands(redis).await,
        None => 0,
    };
    let next = Arc::new(AtomicUsize::new(1));
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let (next, address) = (Arc::clone(&next), relay.address());
            tokio::spawn(async move {
                let mut connection = Connection::open(address).await.expect("it listens");
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    if place > EVENTS {
                        return;
                    }
                    let answer =
                        connection.request(&event(relay::PATH, number(place)), LIMIT).await.expect("an answer");
                    assert_eq!(answer.status, 200, "{}", answer.text());
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.expect("no panic");
    }
    let after = cpu(relay, redis).await;
    let each = |after: f64, before: f64| (after - before) * 1e6 / EVENTS as f64;
    let relay_each = each(after.0, before.0);
    let cost = match redis {
        Some(redis) => {
            let commands = (commands(redis).await - commands_before) as f64 / EVENTS as f64;
            format!("{commands:.2} | {relay_each:.0} | {:.1}", each(after.1, before.1))
        }
        None => format!("– | {relay_each:.0} | –"),
    };
    println!("| {what} | {EVENTS} | {cost} |");
}

/// Posts a steady stream of new events to one source while the other is flooded with repeats, or not.
async fn storm(flood: bool, relays: [Arc<Relay>; 2], redis: &RedisServer) {
    static RUN: AtomicUsize = AtomicUsize::new(1_000_000);
    let first = RUN.fetch_add(100_000, Ordering::Relaxed);
    let before = commands(redis).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let end = Instant::now() + FLOOD_FOR;
    let mut floods = Vec::new();
    if flood {
        for sender in 0..SENDERS {
            let (sent, address) = (Arc::clone(&sent), relays[sender % 2].address());
            floods.push(tokio::spawn(async move {
                let mut connection = Connection::open(address).await.expect("it listens");
                let bytes = event(relay::PATH, first);
                let mut tick = tokio::time::interval(Duration::from_secs(1) * SENDERS as u32 / FLOOD_PER_SECOND);
                while Instant::now() < end {
                    tick.tick().await;
                    assert_eq!(connection.request(&bytes, LIMIT).await.expect("an answer").status, 200);
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
    }
    let mut connection = Connection::open(relays[0].address()).await.expect("it listens");
    let mut latencies = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    while Instant::now() < end {
        tick.tick().await;
        let begun = Instant::now();
        let bytes = event("/steady", first + 1 + latencies.len());
        assert_eq!(connection.request(&bytes, LIMIT).await.expect("an answer").status, 200);
        latencies.push(begun.elapsed());
    }
    for flood in floods {
        flood.await.expect("no panic");
    }
    // Each steady event is a claim and a commit.
    let for_flood = commands(redis).await - before - 2 * latencies.len() as u64;
    latencies.sort();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    let what = match flood {
        true => format!("beside {} repeats/s of one id", sent.load(Ordering::Relaxed) as u64 / FLOOD_FOR.as_secs()),
        false => "alone".to_owned(),
    };
    println!("| {what} | {:.1?} | {:.1?} | {for_flood} |", at(0.5), at(0.99));
}
