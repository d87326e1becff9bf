//! What the server lets us do once we are in, and for how long.

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Connected, config, connect, jwt::Account, message, message_to, try_connect_with};
use hookgate_core::{
    secret::{Secret, SecretOrigin, SecretRef, SecretSlot},
    sink::{PublishErrorKind::Misconfigured, PublishReason::Auth, Sink},
};
use hookgate_sink_nats::Config;
use hookgate_testkit::{
    nats::{NatsAccess, NatsConfig, NatsServer},
    nats_wire::NatsWire,
    sinks::assert_error,
};
use serde_json::{Value, json};

/// A server with the users `admin`, who may do everything, and `relay`, who may do this.
async fn server_that_lets_relay(permissions: &Value) -> (NatsServer, NatsWire) {
    let users = json!([
        { "user": "admin", "password": "admin" },
        { "user": "relay", "password": "relay", "permissions": permissions },
    ]);
    let extra = format!("authorization: {}", json!({ "users": users }));
    let server = NatsServer::start(NatsConfig { extra, ..NatsConfig::default() }).await;
    let mut admin = NatsWire::connect(&server.url().replace("nats://", "nats://admin:admin@")).await;
    admin.create_stream(&json!({ "name": "HOOKS", "subjects": ["hooks.>"] })).await;
    (server, admin)
}

const RELAY: &str = "user = 'relay'\npassword = 'relay'";

#[tokio::test]
async fn a_subject_that_we_may_not_publish_to_is_misconfigured_at_once_and_others_are_not() {
    let allowed = json!({ "publish": ["hooks.allowed", "$JS.API.STREAM.INFO.HOOKS"], "subscribe": ["_INBOX.>"] });
    let (server, mut admin) = server_that_lets_relay(&allowed).await;
    let connected = connect(&config(&server.url(), RELAY)).await;
    connected.sink.probe(common::ample()).await.expect("the stream may be looked up");
    let started = Instant::now();
    for number in 0..100 {
        let error = connected.publish_badly(&message(&number.to_string())).await;
        assert_error(&error, Misconfigured, Auth, &["Permissions Violation for Publish to \"hooks.a\""]);
        connected.publish_well(&message_to(&format!("{number}-allowed"), "hooks.allowed")).await;
    }
    assert!(started.elapsed() < Duration::from_secs(8), "they waited for their deadline");
    assert_eq!(admin.read_stream("HOOKS").await.len(), 100);
}

#[tokio::test]
async fn a_stream_that_we_may_not_look_up_is_told_by_the_probe() {
    let (server, _admin) = server_that_lets_relay(&json!({ "publish": ["hooks.>"] })).await;
    let connected = connect(&config(&server.url(), RELAY)).await;
    let words = ["Permissions Violation for Publish to \"$JS.API.STREAM.INFO.HOOKS\""];
    assert_error(&connected.probe_badly().await, Misconfigured, Auth, &words);
    connected.publish_well(&message("1")).await;
}

#[tokio::test]
async fn an_account_that_may_not_hear_answers_stores_nothing() {
    let (server, mut admin) = server_that_lets_relay(&json!({ "publish": [">"], "subscribe": ["hooks.>"] })).await;
    let connected = connect(&config(&server.url(), RELAY)).await;
    let error = connected.publish_badly(&message("1")).await;
    assert_error(&error, Misconfigured, Auth, &["Permissions Violation for Subscription to \"_INBOX."]);
    assert_eq!(admin.read_stream("HOOKS").await, []);
    assert_eq!(connected.seen.count("sink_up"), 0);
}

/// A sink whose secret `{ env = "ROTATED" }` the test can replace in the slot.
async fn connect_with_rotated(config: &Config, first: &str) -> (Connected, Arc<SecretSlot>) {
    let slot = Arc::new(SecretSlot::new("rotated", secret(first)));
    let mut resolve = |reference: &SecretRef| match reference.origin {
        SecretOrigin::Env(_) => Ok(Arc::clone(&slot)),
        SecretOrigin::File(_) | SecretOrigin::Literal(_) => hookgate_testkit::sinks::resolve(reference),
    };
    let connected = try_connect_with(config, &mut resolve).await.expect("the config can be used");
    (connected, slot)
}

fn secret(text: &str) -> Secret {
    Secret::new(text).expect("not empty")
}

#[tokio::test]
async fn a_rotated_secret_is_used_from_the_next_connection_on() {
    let with = |password: &str| {
        let access = NatsAccess::Password { user: "relay".to_owned(), password: password.to_owned() };
        NatsConfig { access, ..NatsConfig::default() }
    };
    let mut server = NatsServer::start(with("old")).await;
    common::add_stream(&server).await;
    let config = config(&server.url(), "user = 'relay'\npassword = { env = 'ROTATED' }");
    let (connected, slot) = connect_with_rotated(&config, "old").await;
    connected.publish_well(&message("1")).await;

    server.reconfigure(with("new")).await;
    connected.is_refused().await;
    assert_error(&connected.publish_badly(&message("2")).await, Misconfigured, Auth, &["uthorization"]);
    slot.replace(secret("new")).expect("any text will do");
    connected.recovers().await;
    connected.publish_well(&message("2")).await;
}

#[tokio::test]
async fn creds_let_us_publish_until_they_expire_and_new_ones_do_again() {
    let account = Account::new();
    let server = NatsServer::start(NatsConfig { extra: account.server_config(), ..NatsConfig::default() }).await;
    account.add_stream(&server).await;
    let config = config(&server.url(), "creds = { env = 'ROTATED' }");
    let (connected, slot) = connect_with_rotated(&config, &account.creds(Some(Duration::from_secs(3)))).await;
    connected.publish_well(&message("1")).await;

    connected.is_refused().await;
    assert_error(&connected.publish_badly(&message("2")).await, Misconfigured, Auth, &["uth"]);
    slot.replace(secret(&account.creds(None))).expect("any text will do");
    connected.recovers().await;
    connected.publish_well(&message("2")).await;
}
