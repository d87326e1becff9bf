//! What the sink makes of a real broker that refuses, returns, blocks, forgets and ends.

mod common;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use common::{AT_ONCE, Connected, LIMIT, LONG, Place, ample, config, connect, message_to, target};
use futures_util::future::join_all;
use hookgate_core::{
    limits::Deadline,
    sink::{
        PublishErrorKind::{Misconfigured, Rejected, Throttled, Unavailable, Unknown},
        PublishReason::{Auth, ConnectionLost, Full, NoDestination, Timeout, TooLarge},
        Sink, Target,
    },
};
use hookgate_testkit::{
    process::wait_until,
    proxy::{FaultProxy, ProxyMode},
    rabbit::{Borrowed, PASSWORD, QueueArgument, USER},
    sinks::assert_error,
};

async fn start() -> (Borrowed, Place, Connected) {
    let (server, place) = common::server_with_place().await;
    let connected = connect(&config(&server.url(), "")).await;
    (server, place, connected)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_thousand_at_once_each_gets_its_own_answer() {
    let (server, place, connected) = start().await;
    let unroutable = |number: usize| number.is_multiple_of(7);
    let publishes = (0..2000).map(|number| {
        let to = if unroutable(number) { place.unroutable() } else { place.target() };
        connected.begin(message_to(&number.to_string(), &to), Deadline::after(LONG))
    });
    let mut expected = BTreeSet::new();
    for (number, published) in join_all(publishes).await.into_iter().enumerate() {
        match (unroutable(number), published.expect("no panic")) {
            (false, Ok(_)) => {
                expected.insert(format!("test:header:x-test-id={number}"));
            }
            (true, Err(error)) => assert_error(&error, Misconfigured, NoDestination, &["routes", "to no queue"]),
            (routed, outcome) => panic!("{number}: unroutable = {routed}, and {outcome:?}"),
        }
    }
    let stored: BTreeSet<String> = place.stored_ids(&server).await.into_iter().collect();
    assert_eq!(stored, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_missing_concerns_nobody_else_and_is_used_as_soon_as_it_is_there() {
    let (server, place, connected) = start().await;
    let missing = format!("missing-{}", place.name);
    let astray = message_to("astray", &target(&missing, "hooks.a"));
    let neighbours = (0..100).map(|number| connected.begin(place.message(&number.to_string()), ample()));
    let neighbours: Vec<_> = neighbours.collect();
    assert_error(&connected.publish_badly(&astray).await, Misconfigured, NoDestination, &[&missing]);
    for neighbour in neighbours {
        let _receipt = neighbour.await.expect("no panic").expect("it goes elsewhere");
    }
    let mut wire = server.wire().await;
    wire.declare_exchange(&missing, "topic").await;
    wire.bind(&place.name, &missing, "hooks.#").await;
    connected.publish_well(&astray).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_deleted_while_running_is_missed_and_used_again() {
    let (server, place, connected) = start().await;
    connected.publish_well(&place.message("before")).await;
    place.remove(&server).await;
    wait_until(LIMIT, "it is missed", async || {
        connected.publish(&place.message("without")).await.is_err_and(|error| error.reason == NoDestination)
    })
    .await;
    place.make(&server, &[]).await;
    connected.publish_well(&place.message("after")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_takes_again_when_there_is_room() {
    let (server, other) = common::server_with_place().await;
    let arguments = [("x-max-length", QueueArgument::Number(1)), ("x-overflow", QueueArgument::Text("reject-publish"))];
    let place = Place::on(&server, &arguments).await;
    let connected = connect(&config(&server.url(), "")).await;
    connected.publish_well(&place.message("first")).await;
    assert_error(&connected.publish_badly(&place.message("second")).await, Unavailable, Full, &["full"]);
    connected.publish_well(&other.message("elsewhere")).await;
    server.wire().await.purge(&place.name).await;
    connected.publish_well(&place.message("second")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_connection_refuses_at_once_and_queues_nothing() {
    let (server, place, connected) = start().await;
    connected.publish_well(&place.message("before")).await;
    server.set_memory_alarm(true).await;
    // The broker says so when it is sent the next message, which it keeps.
    let first = connected.sink.publish(&place.message("kept"), Deadline::after(Duration::from_secs(2))).await;
    assert!(first.is_err());
    connected.tells_down(1).await;
    let begun = Instant::now();
    for number in 0..100 {
        let error = connected.publish_badly(&place.message(&format!("refused-{number}"))).await;
        assert_eq!(error.kind, Throttled, "{error:?}");
    }
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    server.set_memory_alarm(false).await;
    connected.recovers().await;
    connected.publish_well(&place.message("after")).await;
    let stored = place.stored_ids(&server).await;
    assert!(!stored.iter().any(|id| id.contains("refused-")), "what was refused is not sent later: {stored:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_in_mid_load_every_receipt_is_in_the_queue() {
    let (mut server, place, connected) = start().await;
    let publishes: Vec<_> =
        place.messages(3000).into_iter().map(|message| connected.begin(message, Deadline::after(LONG))).collect();
    wait_until(LIMIT, "some are through", async || {
        publishes.iter().filter(|publish| publish.is_finished()).count() > 200
    })
    .await;
    server.kill();
    let mut acknowledged = Vec::new();
    for (number, publish) in publishes.into_iter().enumerate() {
        match publish.await.expect("no panic") {
            Ok(_) => acknowledged.push(format!("test:header:x-test-id={number}")),
            Err(error) => assert!(matches!(error.kind, Unknown | Unavailable), "{error:?}"),
        }
    }
    place.restart(&mut server).await;
    connected.recovers().await;
    let stored: BTreeSet<String> = place.stored_ids(&server).await.into_iter().collect();
    for id in &acknowledged {
        assert!(stored.contains(id), "{id} is lost");
    }
    assert!(acknowledged.len() > 200);
    connected.publish_well(&place.message("after")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_when_the_connection_breaks_is_unknown_at_once() {
    let (server, place) = common::server_with_place().await;
    let proxy = FaultProxy::start(format!("127.0.0.1:{}", server.port())).await;
    let connected = connect(&config(&format!("amqp://{}", proxy.address()), "")).await;
    connected.publish_well(&place.message("before")).await;
    proxy.set_mode(ProxyMode::SwallowReplies).await;
    let unanswered = connected.begin(place.message("unanswered"), Deadline::after(LONG));
    wait_until(LIMIT, "it is stored", async || place.stored(&server).await.len() == 2).await;
    let begun = Instant::now();
    proxy.cut().await;
    let error = unanswered.await.expect("no panic").expect_err("nobody knows");
    assert_error(&error, Unknown, ConnectionLost, &[]);
    assert!(begun.elapsed() < AT_ONCE * 3, "{:?}", begun.elapsed());
    proxy.set_mode(ProxyMode::Pass).await;
    connected.recovers().await;
    connected.publish_well(&place.message("after")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_broker_leaves_publishes_to_their_deadline_and_is_used_again() {
    let (mut server, place, connected) = start().await;
    connected.publish_well(&place.message("before")).await;
    server.pause();
    let late = connected.sink.publish(&place.message("late"), Deadline::after(Duration::from_millis(500))).await;
    assert_error(&late.expect_err("nobody answers"), Unknown, Timeout, &["before the deadline"]);
    server.resume();
    connected.recovers().await;
    connected.publish_well(&place.message("after")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_changed_is_told_by_its_name_and_the_new_one_is_used() {
    let (server, place) = common::server_with_place().await;
    let proxy = FaultProxy::start(format!("127.0.0.1:{}", server.port())).await;
    let connected = connect(&config(&format!("amqp://{}", proxy.address()), "")).await;
    server.change_password(USER, "another").await;
    proxy.cut().await;
    connected.is_refused().await;
    assert_error(&connected.publish_badly(&place.message("refused")).await, Misconfigured, Auth, &[]);
    server.change_password(USER, PASSWORD).await;
    connected.recovers().await;
    connected.publish_well(&place.message("after")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_we_may_not_write_to_is_misconfigured() {
    let (server, place) = common::server_with_place().await;
    server.let_write(USER, "^allowed$").await;
    let connected = connect(&config(&server.url(), "")).await;
    let error = connected.publish_badly(&place.message("refused")).await;
    assert_error(&error, Misconfigured, Auth, &[]);
    server.let_write(USER, ".*").await;
    connected.publish_well(&place.message("after")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_large_is_rejected_before_it_is_sent() {
    let (server, place) = common::server_with_place().await;
    let connected = connect(&config(&server.url(), "max_message = '1 KiB'")).await;
    let large =
        hookgate_testkit::event::TestEvent::new("large").body(vec![b'x'; 1025]).to(&common::id(), &place.target());
    assert_error(&connected.publish_badly(&large).await, Rejected, TooLarge, &["1025", "1024"]);
    connected.publish_well(&place.message("small")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_says_which_exchange_is_missing() {
    let (_server, place, connected) = start().await;
    let found = connected.sink.review(&[place.target(), target("", "a-queue")], ample()).await.expect("it answers");
    assert_eq!(found, [] as [&str; 0]);
    let missing: Target = target("missing", "a");
    let found = connected.sink.review(&[missing, place.target()], ample()).await.expect("it answers");
    assert!(found.len() == 1 && found[0].contains("\"missing\""), "{found:?}");
}
