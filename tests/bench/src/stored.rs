//! Whether what was answered 2xx is in the stream.

use anyhow::{Context, ensure};
use async_nats::jetstream::{self, consumer::push::OrderedConfig};
use futures_util::StreamExt;

use crate::event::Events;

/// What a comparison comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    /// Numbers of events that were answered 2xx and are not there, in order.
    pub(crate) lost: Vec<u64>,
    /// Messages beyond the first of each event.
    pub(crate) repeated: usize,
    /// Messages of events that were not answered 2xx: allowed, since any other answer says nothing about presence.
    pub(crate) unpromised: usize,
}

/// Compares the numbers of the events that were accepted with those of the messages that are there.
pub(crate) fn compare(accepted: &[u64], stored: &[u64]) -> Check {
    let sorted = |numbers: &[u64]| {
        let mut numbers = numbers.to_vec();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    };
    let (promised, there) = (sorted(accepted), sorted(stored));
    let missing_in = |all: &[u64], number: &u64| all.binary_search(number).is_err();
    Check {
        lost: promised.iter().copied().filter(|number| missing_in(&there, number)).collect(),
        repeated: stored.len() - there.len(),
        unpromised: there.iter().filter(|number| missing_in(&promised, number)).count(),
    }
}

/// The number of the event that each message of `stream` is of, by its header `Nats-Msg-Id` or `ce-id`.
///
/// # Errors
/// When the stream cannot be read, or holds a message of something else.
pub(crate) async fn read(nats: &str, stream: &str, events: &Events) -> anyhow::Result<Vec<u64>> {
    let client = async_nats::connect(nats).await.with_context(|| format!("connect to {nats}"))?;
    let stream =
        jetstream::new(client.clone()).get_stream(stream).await.with_context(|| format!("find stream {stream}"))?;
    let count = stream.cached_info().state.messages;
    if count == 0 {
        return Ok(Vec::new());
    }
    let config = OrderedConfig { deliver_subject: client.new_inbox(), headers_only: true, ..OrderedConfig::default() };
    let mut messages = stream.create_consumer(config).await.context("make a consumer")?.messages().await?;
    let mut numbers = Vec::new();
    loop {
        let message = messages.next().await.context("read the stream to its end")?.context("read a message")?;
        let headers = message.headers.as_ref().context("find the headers of a message")?;
        let names = ["Nats-Msg-Id", "ce-id"];
        let number = names.iter().find_map(|name| events.number_of(headers.get(*name)?.as_str()));
        numbers.push(number.with_context(|| format!("find the id of an event in {headers:?}"))?);
        let pending = message.info().ok().context("read the place of a message")?.pending;
        if pending == 0 {
            ensure!(numbers.len() as u64 >= count, "{count} messages, and {} of them were read", numbers.len());
            return Ok(numbers);
        }
    }
}

#[cfg(test)]
mod tests {
    use hookgate_testkit::nats::{NatsConfig, NatsServer};
    use serde_json::json;

    use super::*;
    use crate::event::{Events, Kind};

    #[test]
    fn an_accepted_event_that_is_not_there_is_lost() {
        assert_eq!(compare(&[3, 1, 2], &[1, 3]), Check { lost: vec![2], repeated: 0, unpromised: 0 });
        assert_eq!(compare(&[3, 1, 2], &[]).lost, [1, 2, 3]);
    }

    #[test]
    fn all_that_is_promised_is_there_and_what_is_there_besides_is_told() {
        assert_eq!(compare(&[], &[]), Check { lost: vec![], repeated: 0, unpromised: 0 });
        assert_eq!(compare(&[1, 2], &[2, 1, 1, 7]), Check { lost: vec![], repeated: 1, unpromised: 1 });
        // The same event, answered twice: the second time as a duplicate.
        assert_eq!(compare(&[1, 1], &[1]), Check { lost: vec![], repeated: 0, unpromised: 0 });
    }

    #[tokio::test]
    async fn ids_are_read_from_a_stream_and_a_missing_one_is_found() {
        let server = NatsServer::start(NatsConfig::default()).await;
        let mut wire = server.wire().await;
        wire.create_stream(&json!({ "name": "HOOKS", "subjects": ["hooks.>"], "storage": "memory" })).await;
        let events = Events::new(Kind::New, "localhost", "/", b"secret", 256, 7);
        assert_eq!(read(&server.url(), "HOOKS", &events).await.expect("readable"), [] as [u64; 0]);
        for id in ["00000007-0000-4000-8000-000000000001", "github:00000007-0000-4000-8000-00000000000b"] {
            wire.publish("hooks.a", &[("Nats-Msg-Id", id)], b"{}").await;
        }
        let stored = read(&server.url(), "HOOKS", &events).await.expect("readable");
        assert_eq!(stored, [1, 11]);
        assert_eq!(compare(&[1, 2, 11], &stored).lost, [2]);

        wire.publish("hooks.a", &[("Nats-Msg-Id", "strange")], b"{}").await;
        read(&server.url(), "HOOKS", &events).await.expect_err("a message of something else");
    }
}
