use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::*;
use crate::event::Kind;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const REQUEST_END: &[u8] = b"\"}";

/// A server that answers each request with what `answer` says to its number; none closes the connection.
fn server(answer: impl Fn(usize) -> Option<&'static [u8]> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be bound");
    let address = listener.local_addr().expect("a bound port is known");
    let (answer, requests) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a client comes");
            let (answer, requests) = (Arc::clone(&answer), Arc::clone(&requests));
            thread::spawn(move || {
                let mut received = Vec::new();
                let mut chunk = [0; 4096];
                while let Ok(bytes @ 1..) = stream.read(&mut chunk) {
                    received.extend_from_slice(&chunk[..bytes]);
                    if !received.ends_with(REQUEST_END) {
                        continue;
                    }
                    received.clear();
                    let Some(answer) = answer(requests.fetch_add(1, Ordering::SeqCst)) else { return };
                    if stream.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn plan(address: SocketAddr, pace: Pace) -> Plan {
    Plan {
        address,
        connections: 4,
        reuse: Reuse::KeepAlive,
        pace,
        duration: Duration::from_secs(60),
        events_max: 500,
        first: 0,
        answer_limit: Duration::from_secs(10),
    }
}

fn sent(plan: &Plan) -> Outcome {
    run(plan, &Events::new(Kind::New, "localhost", "/", b"secret", 256, 1)).expect("sockets can be made")
}

#[test]
fn every_accepted_event_is_known_by_its_number() {
    let plan = Plan { first: 100, ..plan(server(|_| Some(ANSWER)), Pace::Max) };
    let outcome = sent(&plan);
    let mut accepted = outcome.accepted.clone();
    accepted.sort_unstable();
    assert_eq!(accepted, (100..600).collect::<Vec<_>>());
    assert_eq!((outcome.sent, outcome.with_status(200), outcome.broken, outcome.unsent), (500, 500, 0, 0));
    assert_eq!(outcome.latency.len(), 500);
}

#[test]
fn events_keep_to_their_rate() {
    let outcome = sent(&plan(server(|_| Some(ANSWER)), Pace::PerSecond(1000.0)));
    // 500 events, the last of them due after 499 ms.
    assert!(outcome.elapsed >= Duration::from_millis(499), "{:?}", outcome.elapsed);
    assert_eq!(outcome.with_status(200), 500);
}

/// Of 2 s at 500 a second 1 s is stood still: half of the events are late, although four only were on the way.
#[test]
fn a_server_that_stands_still_for_a_second_shows_in_the_latencies_of_all_that_were_due() {
    use std::sync::Mutex;
    let still: Arc<Mutex<()>> = Arc::default();
    let gate = Arc::clone(&still);
    let address = server(move |number| {
        // Whoever comes meanwhile waits as well.
        let _held = gate.lock().expect("nobody panics");
        if number == 250 {
            thread::sleep(Duration::from_secs(1));
        }
        Some(ANSWER)
    });
    let duration = Duration::from_secs(2);
    let outcome = sent(&Plan { duration, events_max: 1000, ..plan(address, Pace::PerSecond(500.0)) });
    drop(still);
    assert_eq!(outcome.answers() + outcome.unsent, 1000);
    assert!(outcome.latency_ms(0.99) > 900.0, "p99 is {} ms", outcome.latency_ms(0.99));
    assert!(outcome.latency_ms(0.80) > 500.0, "p80 is {} ms", outcome.latency_ms(0.80));
}

#[test]
fn events_that_found_no_connection_are_charged_too() {
    let address = server(|_| {
        thread::sleep(Duration::from_millis(600));
        Some(ANSWER)
    });
    let duration = Duration::from_millis(500);
    let outcome = sent(&Plan { duration, ..plan(address, Pace::PerSecond(100.0)) });
    assert_eq!((outcome.sent, outcome.unsent), (4, 46));
    assert!(outcome.latency_ms(0.5) > 200.0, "p50 is {} ms", outcome.latency_ms(0.5));
}

#[test]
fn a_connection_that_is_closed_is_counted_and_replaced() {
    let outcome = sent(&plan(server(|number| (number % 10 != 3).then_some(ANSWER)), Pace::Max));
    assert_eq!((outcome.broken, outcome.with_status(200)), (50, 450));
    assert_eq!(outcome.accepted.len(), 450);
}

#[test]
fn a_refusal_is_no_accepted_event() {
    const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let outcome = sent(&plan(server(|_| Some(BUSY)), Pace::Max));
    assert_eq!((outcome.with_status(503), outcome.accepted.len()), (500, 0));
}

#[test]
fn an_answer_that_does_not_come_is_given_up() {
    let address = server(|_| {
        thread::sleep(Duration::from_secs(30));
        None
    });
    let answer_limit = Duration::from_millis(100);
    let outcome = sent(&Plan { answer_limit, events_max: 4, ..plan(address, Pace::Max) });
    assert_eq!((outcome.timed_out, outcome.answers()), (4, 0));
}

#[test]
fn each_event_can_have_a_connection_of_its_own() {
    let outcome = sent(&Plan { reuse: Reuse::Fresh, ..plan(server(|_| Some(ANSWER)), Pace::Max) });
    assert_eq!((outcome.with_status(200), outcome.broken), (500, 0));
}

#[test]
fn nobody_there_is_no_error_but_a_figure() {
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let outcome = sent(&Plan { events_max: 20, ..plan(nobody, Pace::Max) });
    assert_eq!((outcome.broken, outcome.answers()), (20, 0));
}
