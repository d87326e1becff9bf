//! A hookgate whose broker is down and whose spool is on a disk that something happens to, as the program under test and the
//! mutants go through it.

use std::{collections::BTreeSet, fmt, path::Path};

use hookgate_testkit::{
    nats::{NatsConfig, NatsServer},
    process::wait_until,
    volume::Volume,
};

use crate::relay::{LIMIT, OPENCLAW, Relay, create_stream, finished, finished_id, to_nats};

/// What senders were told 202 for, and what the stream has in the end.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) accepted: Vec<usize>,
    pub(crate) refused: usize,
    stored: BTreeSet<String>,
}

impl Outcome {
    pub(crate) fn lost(&self) -> Vec<usize> {
        self.accepted.iter().copied().filter(|number| !self.stored.contains(&finished_id(*number))).collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} accepted, {} refused, {} lost", self.accepted.len(), self.refused, self.lost().len())
    }
}

pub(crate) struct Spooling {
    pub(crate) relay: Relay,
    server: NatsServer,
    environment: Vec<(String, String)>,
    accepted: Vec<usize>,
    refused: usize,
}

impl Spooling {
    /// A running program whose broker is down and whose spool is on `disk`.
    pub(crate) async fn start(disk: &Volume, program: &Path, environment: &[(&str, &str)]) -> Self {
        let mut server = NatsServer::start(NatsConfig::default()).await;
        create_stream(&server).await;
        server.kill();
        let tables = format!(
            "{OPENCLAW}[spool]\ndir = {:?}\nmin_free = \"1 MiB\"\n{}",
            disk.path().join("spool"),
            to_nats(&server.url())
        );
        let deadline = [("HOOKGATE_SERVER__REPLY_DEADLINE", "1s")];
        let environment = environment.iter().chain(&deadline);
        let environment: Vec<_> = environment.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let relay = Relay::start_of(program, &tables, &environment).await;
        Self { relay, server, environment, accepted: Vec::new(), refused: 0 }
    }

    /// Posts `events` more, one after the other.
    pub(crate) async fn post(&mut self, events: usize) {
        for _ in 0..events {
            let number = self.accepted.len() + self.refused;
            let answer = self.relay.post(finished(number)).await;
            match answer.status {
                202 => self.accepted.push(number),
                503 if answer.header("retry-after").is_some() => self.refused += 1,
                status => panic!("event {number} is answered with {status}"),
            }
        }
    }

    /// Starts the program again, brings the broker back and waits until nothing waits any more.
    pub(crate) async fn recover(mut self) -> Outcome {
        self.relay.start_again_in(&self.environment).await;
        self.deliver().await
    }

    /// Brings the broker back and waits until nothing waits any more.
    pub(crate) async fn deliver(mut self) -> Outcome {
        self.server.restart().await;
        wait_until(LIMIT, "the spool is empty", async || {
            self.relay.metric("hookgate_spool_events{sink=\"js\"}").await == 0.0
        })
        .await;
        let stored = self.server.wire().await.read_stream("HOOKS").await;
        let stored = stored.iter().map(|message| message.header("ce-id").expect("an id").to_owned());
        Outcome { accepted: self.accepted, refused: self.refused, stored: stored.collect() }
    }
}

/// The power fails in the midst of it, and comes back.
pub(crate) async fn lose_power(mut disk: Volume, program: &Path, environment: &[(&str, &str)]) -> Outcome {
    let mut spooling = Spooling::start(&disk, program, environment).await;
    spooling.post(50).await;
    disk.cut_power();
    spooling.relay.kill();
    disk.power_on();
    spooling.recover().await
}

/// The disk refuses to write for a while, which the kernel tells once only. Then the power fails.
pub(crate) async fn refuse_writes(mut disk: Volume, program: &Path, environment: &[(&str, &str)]) -> Outcome {
    let mut spooling = Spooling::start(&disk, program, environment).await;
    spooling.post(20).await;
    disk.refuse_writes(true);
    spooling.post(3).await;
    disk.refuse_writes(false);
    spooling.post(20).await;
    disk.cut_power();
    spooling.relay.kill();
    disk.power_on();
    spooling.recover().await
}
