//! Where a message goes: streams that are gone, full, closed or not the one that was meant.

mod common;

use std::time::{Duration, Instant};

use common::{SUBJECT, config, connect, message, message_to};
use futures_util::StreamExt;
use hookgate_core::{
    limits::Deadline,
    sink::{
        PublishErrorKind::{Misconfigured, Rejected, Unavailable, Unknown},
        PublishReason::{Full, NoDestination, Other, TooLarge},
        Sink, Target,
    },
};
use hookgate_testkit::{
    event::TestEvent,
    nats::{NatsConfig, NatsServer},
    sinks::assert_error,
};
use serde_json::{Value, json};

/// A server with one stream as described, and a sink for the stream `HOOKS`.
async fn server_with(stream: &Value) -> (NatsServer, common::Connected) {
    let server = NatsServer::start(NatsConfig::default()).await;
    server.wire().await.create_stream(stream).await;
    let connected = connect(&config(&server.url(), "")).await;
    (server, connected)
}

#[tokio::test]
async fn a_stream_deleted_while_running_is_no_destination_until_it_is_there_again() {
    let server = common::server_with_stream().await;
    let connected = connect(&config(&server.url(), "")).await;
    connected.publish_well(&message("before")).await;
    server.wire().await.delete_stream("HOOKS").await;
    let error = connected.publish_badly(&message("lost")).await;
    assert_error(
        &error,
        Misconfigured,
        NoDestination,
        &["no JetStream stream listens on subject \"hooks.a\"", "HOOKS"],
    );
    common::add_stream(&server).await;
    assert!(!connected.publish_well(&message("lost")).await.duplicate);
}

#[tokio::test]
async fn a_stream_that_is_back_within_half_a_second_is_not_missed() {
    let server = NatsServer::start(NatsConfig::default()).await;
    let connected = connect(&config(&server.url(), "")).await;
    let message = message("patient");
    let (published, ()) = tokio::join!(connected.publish(&message), common::add_stream(&server));
    assert_eq!(published.expect("the second or third try finds it").offset, 1);
}

#[tokio::test]
async fn a_subject_that_another_stream_listens_on_is_no_destination_and_stores_nothing() {
    let (server, connected) = server_with(&json!({ "name": "OTHER", "subjects": ["hooks.>"] })).await;
    let error = connected.publish_badly(&message("astray")).await;
    assert_error(&error, Misconfigured, NoDestination, &["expected stream does not match", "10060"]);
    assert_eq!(server.wire().await.read_stream("OTHER").await, []);
}

#[tokio::test]
async fn a_full_stream_is_unavailable_until_there_is_room() {
    // Room for one message, counted in messages and in bytes.
    for limit in [json!({ "max_msgs": 1 }), json!({ "max_bytes": 1000 })] {
        let mut stream = json!({ "name": "HOOKS", "subjects": ["hooks.>"], "discard": "new" });
        stream.as_object_mut().expect("an object").extend(limit.as_object().expect("an object").clone());
        let (server, connected) = server_with(&stream).await;
        connected.publish_well(&sized("first")).await;
        let error = connected.publish_badly(&sized("second")).await;
        assert_error(&error, Unavailable, Full, &["stream \"HOOKS\" answered", "maximum", "exceeded"]);
        server.wire().await.purge("HOOKS").await;
        connected.publish_well(&sized("second")).await;
    }
}

/// A message that takes more than half and less than the whole of 1000 bytes, headers included.
fn sized(id: &str) -> hookgate_core::message::Message {
    let event = TestEvent::new(id).body(vec![b'x'; 300]);
    event.to(&common::id(), &Target::Subject(SUBJECT.to_owned()))
}

#[tokio::test]
async fn a_message_larger_than_the_stream_takes_is_rejected() {
    let (_server, connected) =
        server_with(&json!({ "name": "HOOKS", "subjects": ["hooks.>"], "max_msg_size": 2000 })).await;
    let large = TestEvent::new("large").body(vec![b'x'; 2001]);
    let large = large.to(&common::id(), &Target::Subject(SUBJECT.to_owned()));
    let error = connected.publish_badly(&large).await;
    assert_error(&error, Rejected, TooLarge, &["message size exceeds maximum allowed"]);
    connected.publish_well(&message("small")).await;
}

#[tokio::test]
async fn a_message_larger_than_the_server_takes_is_rejected_without_losing_the_connection() {
    let server = common::server_with_stream().await;
    let connected = connect(&config(&server.url(), "")).await;
    let large = TestEvent::new("large").body(vec![b'x'; 1024 * 1024]);
    let large = large.to(&common::id(), &Target::Subject(SUBJECT.to_owned()));
    let error = connected.publish_badly(&large).await;
    assert_error(&error, Rejected, TooLarge, &["limit of 1048576"]);
    connected.publish_well(&message("small")).await;
    assert_eq!(connected.seen.lines(), ["sink_up sink=js"]);
}

#[tokio::test]
async fn a_limit_that_the_server_lowered_meanwhile_is_learnt_with_the_next_connection() {
    let mut server = common::server_with_stream().await;
    let connected = connect(&config(&server.url(), "")).await;
    server.reconfigure(NatsConfig { max_payload: 4096, ..NatsConfig::default() }).await;
    let large = TestEvent::new("large").body(vec![b'x'; 8000]);
    let large = large.to(&common::id(), &Target::Subject(SUBJECT.to_owned()));
    let error = connected.publish_badly(&large).await;
    assert_eq!(error.kind, Unknown, "the server ends the connection without an answer");
    connected.recovers().await;
    let error = connected.publish_badly(&large).await;
    assert_error(&error, Rejected, TooLarge, &["limit of 4096"]);
}

#[tokio::test]
async fn a_probe_says_how_to_make_a_stream_that_is_missing() {
    let server = NatsServer::start(NatsConfig::default()).await;
    let connected = connect(&config(&server.url(), "")).await;
    let error = connected.probe_badly().await;
    let words = ["stream \"HOOKS\" does not exist", &server.url(), "nats stream add HOOKS"];
    assert_error(&error, Misconfigured, NoDestination, &words);
}

#[tokio::test]
async fn a_probe_finds_a_stream_that_can_never_acknowledge() {
    let (server, connected) = server_with(&json!({ "name": "HOOKS", "subjects": ["hooks.>"], "no_ack": true })).await;
    assert_error(&connected.probe_badly().await, Misconfigured, NoDestination, &["never acknowledges"]);

    server.wire().await.delete_stream("HOOKS").await;
    common::add_stream(&server).await;
    connected.sink.probe(common::ample()).await.expect("the stream is as it should be");
    let mut sealed = server.wire().await.stream_info("HOOKS").await["config"].clone();
    sealed["sealed"] = json!(true);
    let updated = server.wire().await.try_api("STREAM.UPDATE.HOOKS", &sealed).await;
    assert_eq!(updated["config"]["sealed"], true, "{updated}");
    assert_error(&connected.probe_badly().await, Misconfigured, NoDestination, &["is sealed"]);
    let error = connected.publish_badly(&message("late")).await;
    assert_error(&error, Misconfigured, NoDestination, &["sealed stream"]);
}

/// Answers everything on `elsewhere.>` with `answer`, as a service would that shares a subject with us by mistake.
async fn somebody_answers(server: &NatsServer, answer: &'static str) -> tokio::task::JoinHandle<()> {
    let client = async_nats::connect(server.url()).await.expect("the server is up");
    let mut asked = client.subscribe("elsewhere.>").await.expect("the connection is up");
    client.flush().await.expect("the connection is up");
    tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            let reply = message.reply.expect("a publish to JetStream wants an answer");
            client.publish(reply, answer.into()).await.expect("the connection is up");
        }
    })
}

#[tokio::test]
async fn an_answer_of_somebody_else_earns_no_receipt() {
    let answers = [
        ("+OK", Unknown, Other),
        ("", Unknown, Other),
        (r#"{"stream":"OTHER","seq":1}"#, Misconfigured, NoDestination),
        (r#"{"stream":"HOOKS","seq":0,"duplicate":true}"#, Unknown, Other),
    ];
    for (answer, kind, reason) in answers {
        let server = common::server_with_stream().await;
        let connected = connect(&config(&server.url(), "")).await;
        let somebody = somebody_answers(&server, answer).await;
        let error = connected.publish_badly(&message_to("1", "elsewhere.a")).await;
        assert_error(&error, kind, reason, &[]);
        somebody.abort();
    }
}

#[tokio::test]
async fn nobody_waits_for_a_leader_beyond_the_deadline() {
    let server = NatsServer::start(NatsConfig::default()).await;
    let connected = connect(&config(&server.url(), "")).await;
    let started = Instant::now();
    let deadline = Deadline::after(Duration::from_millis(200));
    let error = connected.sink.publish(&message("1"), deadline).await.expect_err("there is no stream");
    assert_error(&error, Misconfigured, NoDestination, &[]);
    assert!(started.elapsed() < Duration::from_millis(400));
}

#[tokio::test]
async fn a_review_says_what_is_unwise_about_the_stream() {
    let stream = json!({ "name": "HOOKS", "subjects": ["hooks.>"], "storage": "memory" });
    let (_server, connected) = server_with(&stream).await;
    let targets = [SUBJECT, "elsewhere.x"].map(|subject| Target::Subject(subject.to_owned()));
    let found = connected.sink.review(&targets, common::ample()).await.expect("the server answers");
    for said in ["does not listen on elsewhere.x", "is in memory", "one replica", "no limit"] {
        assert!(found.iter().any(|sentence| sentence.contains(said)), "{said}: {found:?}");
    }
    assert_eq!(found.len(), 4, "{found:?}");
}

#[tokio::test]
async fn a_stream_of_another_domain_is_found_by_its_name() {
    let server = NatsServer::start(NatsConfig { domain: Some("hub".to_owned()), ..NatsConfig::default() }).await;
    common::add_stream(&server).await;
    let connected = connect(&config(&server.url(), "domain = 'hub'")).await;
    connected.sink.probe(common::ample()).await.expect("it is there");
    connected.publish_well(&message("1")).await;
    let astray = connect(&config(&server.url(), "domain = 'leaf'")).await;
    assert!(astray.sink.probe(Deadline::after(Duration::from_secs(2))).await.is_err());
}
