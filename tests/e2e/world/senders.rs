//! Senders that repeat as senders do, and remember what they were told.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use hookgate_testkit::http::send_raw;
use tokio::time::sleep;

use super::history::{History, Told};
use crate::relay::post;

pub(crate) const SENDERS: usize = 12;

/// A sender gives up on an answer after this time: longer than the deadline, shorter than the longest pause of a process.
const PATIENCE: Duration = Duration::from_secs(3);

/// When a sender tries again, in milliseconds.
const PROFILES: [&[u64]; 3] = [
    // GitHub, OpenClaw.
    &[],
    &[100, 300, 300],
    &[200, 400, 800, 1600, 3200],
];

pub(crate) fn body(number: usize) -> String {
    let filler = "x".repeat(number * 7919 % 900);
    format!(
        r#"{{"jobId":"job-{}","action":"finished","runAtMs":{number},"status":"ok","summary":"{filler}"}}"#,
        number % 7
    )
}

pub(crate) struct Senders {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) history: Mutex<History>,
    pub(crate) over: AtomicBool,
}

impl Senders {
    /// One attempt, at the `at`th relay or, as behind a balancer, at the next that takes a connection.
    async fn attempt(&self, number: usize, at: usize) -> Told {
        for relay in at..at + self.addresses.len() {
            let address = self.addresses[relay % self.addresses.len()];
            let told = match send_raw(address, &post(body(number)), PATIENCE).await {
                Ok(answer) => Told::Status { code: answer.status, retry_after: answer.header("retry-after").is_some() },
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Told::Refused,
                Err(_) => Told::Nothing,
            };
            self.history.lock().expect("no panic").entry(number).or_default().push(told);
            if told != Told::Refused {
                return told;
            }
        }
        Told::Refused
    }

    /// Sends events one after the other until it is over.
    pub(crate) async fn send(&self, sender: usize, mut rng: Rng) {
        let pauses = PROFILES[sender % PROFILES.len()];
        let relays = self.addresses.len();
        for number in (0..).map(|event| event * SENDERS + sender) {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            let at = rng.usize(..relays);
            let mut told = match rng.u8(..20) {
                // A sender that does not know what it has sent.
                0 => {
                    let (one, other) = tokio::join!(self.attempt(number, at), self.attempt(number, at + 1));
                    if one.is_success() { one } else { other }
                }
                _ => self.attempt(number, at).await,
            };
            for pause in pauses {
                if told.is_success() {
                    break;
                }
                sleep(Duration::from_millis(*pause)).await;
                told = self.attempt(number, rng.usize(..relays)).await;
            }
            if told.is_success() && rng.u8(..10) == 0 {
                self.attempt(number, rng.usize(..relays)).await;
            }
            sleep(Duration::from_millis(rng.u64(5..25))).await;
        }
    }
}
