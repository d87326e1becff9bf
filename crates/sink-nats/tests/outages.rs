//! Brokers and networks that come and go under a connected sink.

mod common;

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use common::{Connected, LIMIT, SUBJECT, config, connect, message};
use hookgate_core::{
    limits::Deadline,
    message::Message,
    sink::{
        PublishError,
        PublishErrorKind::{Unavailable, Unknown},
        PublishReason::{ConnectionLost, Timeout},
        Receipt, Sink,
    },
};
use hookgate_testkit::{
    nats::NatsServer,
    nats_wire::StoredMessage,
    process::{free_port, wait_until},
    proxy::{FaultProxy, ProxyMode},
    sinks::assert_error,
};
use tokio::task::JoinHandle;

/// Much longer than anything may take: a wait for it shows.
const LONG: Duration = Duration::from_secs(60);

/// What "at once" means on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);

async fn behind_a_proxy() -> (NatsServer, FaultProxy, Connected) {
    let server = common::server_with_stream().await;
    let proxy = FaultProxy::start(format!("127.0.0.1:{}", server.port())).await;
    let connected = connect(&config(&format!("nats://{}", proxy.address()), "")).await;
    (server, proxy, connected)
}

fn begin(connected: &Connected, message: Message, deadline: Deadline) -> JoinHandle<Result<Receipt, PublishError>> {
    let sink = Arc::clone(&connected.sink);
    tokio::spawn(async move { sink.publish(&message, deadline).await })
}

async fn stored(server: &NatsServer) -> Vec<StoredMessage> {
    server.wire().await.read_stream("HOOKS").await
}

fn messages(count: usize) -> Vec<Message> {
    (0..count).map(|number| message(&number.to_string())).collect()
}

#[tokio::test]
async fn a_sink_starts_while_the_broker_is_down_and_publishes_when_it_is_there() {
    let mut server = common::server_with_stream().await;
    server.kill();
    let started = Instant::now();
    let connected = connect(&config(&server.url(), "")).await;
    assert!(started.elapsed() < AT_ONCE);
    let words = [&*server.url(), "Connection refused"];
    assert_error(&connected.publish_badly(&message("early")).await, Unavailable, ConnectionLost, &words);
    assert_error(&connected.probe_badly().await, Unavailable, ConnectionLost, &words);

    server.restart().await;
    connected.recovers().await;
    connected.publish_well(&message("early")).await;
    let expected = [
        format!("sink_down sink=js cause=connect to {}: Connection refused (os error 111)", server.url()),
        "sink_up sink=js".to_owned(),
    ];
    assert_eq!(connected.seen.lines(), expected);
}

#[tokio::test]
async fn a_broker_that_accepts_and_stays_silent_does_not_hold_up_the_start() {
    let server = common::server_with_stream().await;
    let proxy = FaultProxy::start(format!("127.0.0.1:{}", server.port())).await;
    proxy.set_mode(ProxyMode::BlackHole).await;
    let started = Instant::now();
    let connected = connect(&config(&format!("nats://{}", proxy.address()), "")).await;
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert_error(&connected.publish_badly(&message("1")).await, Unavailable, ConnectionLost, &["no answer yet"]);
    proxy.set_mode(ProxyMode::Pass).await;
    connected.recovers().await;
}

#[tokio::test]
async fn an_outage_is_told_once_however_many_attempts_fail() {
    let (server, proxy, connected) = behind_a_proxy().await;
    proxy.set_mode(ProxyMode::CutAfter(0)).await;
    proxy.cut().await;
    wait_until(LIMIT, "three attempts have failed", async || proxy.connections_seen() > 3).await;
    proxy.set_mode(ProxyMode::Pass).await;
    connected.recovers().await;
    assert_eq!((connected.seen.count("sink_down"), connected.seen.count("sink_up")), (1, 2));
    drop(server);
}

#[tokio::test]
async fn servers_beside_a_dead_one_are_used() {
    let mut first = common::server_with_stream().await;
    let second = common::server_with_stream().await;
    let mut config = config(&first.url(), "");
    config.servers.extend([second.url(), format!("nats://127.0.0.1:{}", free_port())]);
    first.kill();
    let connected = connect(&config).await;
    connected.publish_well(&message("1")).await;
    assert_eq!(stored(&second).await.len(), 1);
}

#[tokio::test]
async fn what_is_in_flight_when_the_connection_breaks_is_unknown_at_once() {
    let (server, proxy, connected) = behind_a_proxy().await;
    proxy.set_mode(ProxyMode::SwallowReplies).await;
    let unsure = begin(&connected, message("unsure"), Deadline::after(LONG));
    wait_until(LIMIT, "the message is stored", async || stored(&server).await.len() == 1).await;
    proxy.set_mode(ProxyMode::Pass).await;
    let cut = Instant::now();
    proxy.cut().await;
    let error = unsure.await.expect("no panic").expect_err("the acknowledgement was swallowed");
    assert!(cut.elapsed() < AT_ONCE, "it took {:?}", cut.elapsed());
    assert_error(&error, Unknown, ConnectionLost, &["broke before the acknowledgement"]);
    connected.recovers().await;
    assert!(connected.publish_well(&message("unsure")).await.duplicate);
}

#[tokio::test]
async fn while_there_is_no_connection_a_publish_fails_at_once_and_is_not_sent_later() {
    let (server, proxy, connected) = behind_a_proxy().await;
    proxy.set_mode(ProxyMode::Refuse).await;
    connected.tells_down(1).await;
    let started = Instant::now();
    for message in messages(100) {
        let error = connected.sink.publish(&message, Deadline::after(LONG)).await.expect_err("nothing is connected");
        assert_error(&error, Unavailable, ConnectionLost, &[]);
    }
    assert!(started.elapsed() < AT_ONCE);
    proxy.set_mode(ProxyMode::Pass).await;
    connected.recovers().await;
    connected.publish_well(&message("after")).await;
    assert_eq!(stored(&server).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_amid_two_thousand_in_flight_every_receipt_is_in_the_stream() {
    /// Those of which the answers arrive: of the others none does, however fast the broker is.
    const ANSWERED: usize = 400;
    let (mut server, proxy, connected) = behind_a_proxy().await;
    let messages = messages(2000);
    let begin = |message: &Message| begin(&connected, message.clone(), Deadline::after(LONG));
    let mut publishes: Vec<_> = messages[..ANSWERED].iter().map(begin).collect();
    wait_until(LIMIT, "those that are answered", async || publishes.iter().all(JoinHandle::is_finished)).await;
    proxy.set_mode(ProxyMode::SwallowReplies).await;
    publishes.extend(messages[ANSWERED..].iter().map(begin));
    let mut wire = server.wire().await;
    let amid = async || wire.stream_info("HOOKS").await["state"]["messages"].as_u64() > Some(ANSWERED as u64);
    wait_until(LIMIT, "some whose answer does not arrive are stored", amid).await;
    server.kill();
    let killed = Instant::now();
    let mut with_receipt = HashMap::new();
    let (mut unsure, mut refused) = (Vec::new(), Vec::new());
    for (message, publish) in messages.iter().zip(publishes) {
        match publish.await.expect("no panic") {
            Ok(receipt) => drop(with_receipt.insert(message.broker_id(), receipt.position().offset)),
            Err(error) if error.kind == Unknown => unsure.push(message),
            Err(error) => {
                assert_error(&error, Unavailable, ConnectionLost, &[]);
                refused.push(message);
            }
        }
    }
    assert!(killed.elapsed() < AT_ONCE, "those in flight waited {:?}", killed.elapsed());
    assert_eq!(with_receipt.len(), ANSWERED, "nobody was told of more");
    assert!(!unsure.is_empty(), "some were on their way");

    proxy.set_mode(ProxyMode::Pass).await;
    server.restart().await;
    connected.recovers().await;
    let kept: HashMap<_, _> = stored(&server)
        .await
        .into_iter()
        .map(|stored| (stored.header("Nats-Msg-Id").expect("ours have one").to_owned(), stored.sequence))
        .collect();
    for (id, offset) in &with_receipt {
        assert_eq!(kept.get(id), Some(offset), "{id} has a receipt");
    }
    for message in &refused {
        assert!(!kept.contains_key(&message.broker_id()), "{} was said not to be stored", message.event.id);
    }
    for message in unsure.iter().chain(&refused) {
        let found = connected.publish_well(message).await;
        assert_eq!(found.duplicate, kept.contains_key(&message.broker_id()));
    }
    assert_eq!(stored(&server).await.len(), messages.len(), "each is there once");
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_that_time_out_do_not_poison_later_ones() {
    let mut server = common::server_with_stream().await;
    let connected = connect(&config(&server.url(), "")).await;
    server.pause();
    // More than the library's queue and buffers take, so that some are sent and some are not.
    let stalled: Vec<_> = messages(3000)
        .into_iter()
        .map(|message| begin(&connected, message, Deadline::after(Duration::from_millis(500))))
        .collect();
    for publish in stalled {
        let error = publish.await.expect("no panic").expect_err("a frozen broker acknowledges nothing");
        assert!(matches!((error.kind, error.reason), (Unknown | Unavailable, Timeout)), "{error:?}");
    }
    server.resume();
    for message in messages(3000) {
        connected.publish_well(&message).await;
    }
    assert_eq!(stored(&server).await.len(), 3000);
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_that_are_dropped_leave_nothing_behind_that_holds_up_others() {
    let mut server = common::server_with_stream().await;
    let connected = connect(&config(&server.url(), "")).await;
    server.pause();
    for message in messages(3000) {
        let mut publish: Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(connected.sink.publish(&message, Deadline::after(LONG)));
        let polled = poll_fn(|context| Poll::Ready(publish.as_mut().poll(context).is_pending()));
        assert!(tokio::task::unconstrained(polled).await);
    }
    server.resume();
    let after: Vec<_> =
        messages(3000).into_iter().map(|message| begin(&connected, message, Deadline::after(LIMIT))).collect();
    for publish in after {
        publish.await.expect("no panic").expect("nothing is in the way").position();
    }
    let closing = Instant::now();
    connected.sink.close(Deadline::after(LONG)).await;
    assert!(closing.elapsed() < AT_ONCE, "nothing is in flight that closing would wait for");
}

#[tokio::test]
async fn closing_gives_up_at_its_deadline_and_so_do_those_in_flight() {
    let mut server = common::server_with_stream().await;
    let connected = connect(&config(&server.url(), "")).await;
    server.pause();
    let stalled = begin(&connected, message("stalled"), Deadline::after(LONG));
    tokio::task::yield_now().await;
    let closing = Instant::now();
    connected.sink.close(Deadline::after(Duration::from_millis(300))).await;
    let error = stalled.await.expect("no panic").expect_err("nothing was acknowledged");
    assert!(closing.elapsed() < AT_ONCE, "it took {:?}", closing.elapsed());
    assert_error(&error, Unknown, ConnectionLost, &[]);
    assert_error(&connected.publish_badly(&message("late")).await, Unavailable, ConnectionLost, &["closed"]);
    assert_error(&connected.probe_badly().await, Unavailable, ConnectionLost, &["closed"]);
}

#[tokio::test]
async fn closing_while_the_broker_is_down_ends_at_once() {
    let mut server = common::server_with_stream().await;
    let connected = connect(&config(&server.url(), "")).await;
    server.kill();
    connected.tells_down(1).await;
    let closing = Instant::now();
    connected.sink.close(Deadline::after(LONG)).await;
    assert!(closing.elapsed() < AT_ONCE);
    server.restart().await;
    assert_error(&connected.publish_badly(&message("late")).await, Unavailable, ConnectionLost, &["closed"]);
}

#[tokio::test]
async fn a_sink_that_is_closed_or_dropped_lets_go_of_its_connection() {
    let (server, proxy, connected) = behind_a_proxy().await;
    let other = connect(&config(&format!("nats://{}", proxy.address()), "")).await;
    assert_eq!(proxy.connections_live(), 2);
    connected.sink.close(Deadline::after(LIMIT)).await;
    wait_until(LIMIT, "the closed sink has let go", async || proxy.connections_live() == 1).await;
    drop(other);
    wait_until(LIMIT, "the dropped sink has let go", async || proxy.connections_live() == 0).await;
    assert_eq!(proxy.connections_seen(), 2, "none has come back");
    drop(server);
}

#[tokio::test]
async fn an_event_is_published_under_its_id_to_the_expected_stream() {
    let server = common::server_with_stream().await;
    let connected = connect(&config(&server.url(), "")).await;
    let message = message("7");
    connected.publish_well(&message).await;
    let stored = &stored(&server).await[0];
    assert_eq!(stored.subject, SUBJECT);
    assert_eq!(stored.header("Nats-Msg-Id"), Some(&*message.broker_id()));
    assert_eq!(stored.header("Nats-Expected-Stream"), Some("HOOKS"));
}
