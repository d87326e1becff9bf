//! SIGTERM under load: no accepted event is lost, nobody is told 503, and the exit is clean.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hookgate_testkit::{http::send_raw, nats::NatsServer, process::wait_until};

use crate::relay::{LIMIT, OPENCLAW, Relay, create_stream, finished, finished_id, post, to_nats};

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_under_load_loses_nothing_and_answers_no_503() {
    let server = NatsServer::start(Default::default()).await;
    create_stream(&server).await;
    let mut relay = Relay::start(&format!("{OPENCLAW}{}", to_nats(&server.url()))).await;
    relay.wait_until_ready().await;
    let (next, address) = (Arc::new(AtomicUsize::new(0)), relay.address());
    // Each sender goes on until its connection is refused, which is what OpenClaw retries.
    let senders: Vec<_> = (0..16)
        .map(|_| {
            let next = Arc::clone(&next);
            tokio::spawn(async move {
                let mut accepted = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    match send_raw(address, &post(finished(number)), LIMIT).await {
                        Ok(response) => {
                            assert_eq!(response.status, 200, "{}", response.text());
                            accepted.push(number);
                        }
                        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return (accepted, None),
                        Err(error) => return (accepted, Some(error)),
                    }
                }
            })
        })
        .collect();
    wait_until(LIMIT, "the load is on", async || next.load(Ordering::Relaxed) > 200).await;
    relay.terminate();
    wait_until(LIMIT, "it says that it is not ready", async || relay.log().contains("draining")).await;
    let before = next.load(Ordering::Relaxed);
    wait_until(LIMIT, "it serves on meanwhile", async || next.load(Ordering::Relaxed) > before + 10).await;
    let mut accepted = BTreeSet::new();
    let mut cut = Vec::new();
    for sender in senders {
        let (numbers, error) = sender.await.expect("no panic");
        accepted.extend(numbers);
        cut.extend(error);
    }
    let status = relay.wait().await;
    assert!(status.success(), "{status}:\n{}", relay.log());
    assert!(relay.log().contains("hookgate has stopped"), "{}", relay.log());
    // A connection that the kernel had taken and nobody had accepted is reset when the port closes: a handful at most.
    assert!(cut.len() <= 16, "{cut:?}");
    let messages = server.wire().await.read_stream("HOOKS").await;
    let stored: BTreeSet<String> =
        messages.iter().map(|message| message.header("ce-id").expect("an id").to_owned()).collect();
    let lost: Vec<_> = accepted.iter().filter(|number| !stored.contains(&finished_id(**number))).collect();
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
    assert!(accepted.len() > 100, "{}", accepted.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_during_an_outage_is_still_in_time() {
    let mut server = NatsServer::start(Default::default()).await;
    create_stream(&server).await;
    let mut relay = Relay::start(&format!("{OPENCLAW}{}", to_nats(&server.url()))).await;
    relay.wait_until_ready().await;
    server.pause();
    let hanging = tokio::spawn({
        let (address, request) = (relay.address(), post(finished(1)));
        async move { send_raw(address, &request, LIMIT).await }
    });
    let in_flight = r#"hookgate_publish_in_flight{sink="js"}"#;
    wait_until(LIMIT, "a publish is in flight", async || relay.metrics().await[in_flight] == 1.0).await;
    relay.terminate();
    let answer = hanging.await.expect("no panic").expect("an answer");
    assert!(matches!(answer.status, 503 | 504), "{}", answer.text());
    assert!(relay.wait().await.success());
}
