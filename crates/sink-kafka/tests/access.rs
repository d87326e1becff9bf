//! Who lets us in, what we may do, and over what: logins, rights and TLS.

mod common;

use std::fs;

use common::{TOPIC, config, connect, message};
use hookgate_core::{
    observe::Chain,
    sink::{
        PublishErrorKind::{Misconfigured, Unavailable},
        PublishReason::{Auth, ConnectionLost, Tls},
        Sink,
    },
};
use hookgate_testkit::{
    kafka::{KafkaConfig, KafkaLogin, KafkaServer, KafkaTls},
    sinks::assert_error,
    tls::Pki,
};

const PASSWORD: &str = "c0rrect-h0rse";

fn login() -> Option<KafkaLogin> {
    Some(KafkaLogin { user: "relay".to_owned(), password: PASSWORD.to_owned() })
}

async fn server_with(config: KafkaConfig) -> KafkaServer {
    let server = KafkaServer::start(&config).await;
    common::topics::create_topic(&server, TOPIC, 1, &[]).await;
    server
}

#[tokio::test]
async fn every_mechanism_lets_the_right_password_in_and_no_other() {
    let server = server_with(KafkaConfig { login: login(), ..KafkaConfig::default() }).await;
    for mechanism in ["plain", "scram-sha-256", "scram-sha-512"] {
        let with = |password: &str| {
            let lines = format!("user = 'relay'\npassword = '{password}'\nsasl = '{mechanism}'");
            config(&server.address(), &lines)
        };
        connect(&with(PASSWORD)).await.publish_well(&message(mechanism)).await;
        let refused = connect(&with("wr0ng-h0rse")).await;
        let error = refused.publish_badly(&message("stranger")).await;
        assert_error(&error, Misconfigured, Auth, &["reach Kafka at 127.0.0.1", "uthentication"]);
        assert_error(&refused.probe_badly().await, Misconfigured, Auth, &[]);
        let printed = format!("{error:?} {} {:?} {:?}", Chain(&error), refused.sink, refused.seen.lines());
        assert!(!printed.contains("h0rse"), "{printed}");
        assert_eq!(refused.seen.count("sink_down"), 1, "{:?}", refused.seen.lines());
        assert_eq!(refused.seen.count("sink_up"), 0);
    }
}

#[tokio::test]
async fn a_password_that_is_mended_in_its_file_is_used_without_a_restart() {
    let server = server_with(KafkaConfig { login: login(), ..KafkaConfig::default() }).await;
    let files = tempfile::tempdir().expect("a temporary directory can be made");
    let path = files.path().join("password");
    fs::write(&path, "wr0ng-h0rse").expect("the file can be written");
    let lines = format!("user = 'relay'\npassword = {{ file = '{}' }}\nsasl = 'scram-sha-512'", path.display());
    let mut slots = Vec::new();
    let mut resolve = |reference: &hookgate_core::secret::SecretRef| {
        let slot = hookgate_testkit::sinks::resolve(reference)?;
        slots.push(std::sync::Arc::clone(&slot));
        Ok(slot)
    };
    let connected = common::try_connect_with(&config(&server.address(), &lines), &mut resolve).await;
    let connected = connected.expect("the config can be used");
    connected.knows(Auth).await;
    let right = hookgate_core::secret::Secret::new(PASSWORD).expect("it is not empty");
    slots[1].replace(right).expect("any text is a password");
    connected.recovers().await;
    connected.publish_well(&message("1")).await;
}

#[tokio::test]
async fn a_server_that_wants_a_login_does_not_let_us_in_without() {
    let server = server_with(KafkaConfig { login: login(), ..KafkaConfig::default() }).await;
    let connected = connect(&config(&server.address(), "")).await;
    let error = connected.publish_badly(&message("1")).await;
    // It cannot be told from a server that is out of order: it just hangs up.
    assert_error(&error, Unavailable, ConnectionLost, &["reach Kafka"]);
}

#[tokio::test]
async fn a_topic_that_we_may_not_write_is_misconfigured() {
    let extra = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                 super.users=User:ANONYMOUS\n";
    let server = server_with(KafkaConfig { login: login(), extra: extra.to_owned(), ..KafkaConfig::default() }).await;
    let login = format!("user = 'relay'\npassword = '{PASSWORD}'\nsasl = 'plain'");
    for more in ["idempotence = true", "idempotence = false"] {
        let connected = connect(&config(&server.address(), &format!("{login}\n{more}"))).await;
        let error = connected.publish_badly(&message("1")).await;
        assert_error(&error, Misconfigured, Auth, &["uthorization failed"]);
    }
}

#[tokio::test]
async fn tls_is_spoken_with_a_server_that_our_ca_vouches_for_and_no_other() {
    let (pki, other) = (Pki::new(), Pki::new());
    let tls = KafkaTls { key_and_cert: pki.path("server.both"), client_ca: None };
    let server = server_with(KafkaConfig { login: login(), tls: Some(tls), ..KafkaConfig::default() }).await;
    let login = format!("user = 'relay'\npassword = '{PASSWORD}'\nsasl = 'scram-sha-256'");
    let with = |tls: &str| config(&server.address(), &format!("{login}\n{tls}"));
    connect(&with(&pki.table(&[("ca", "ca.pem")]))).await.publish_well(&message("1")).await;
    for untrusted in [other.table(&[("ca", "ca.pem")]), "[tls]".to_owned()] {
        let error = connect(&with(&untrusted)).await.publish_badly(&message("2")).await;
        assert_error(&error, Misconfigured, Tls, &["certificate"]);
    }
}

#[tokio::test]
async fn a_certificate_that_is_over_is_told_by_its_name() {
    let pki = Pki::new();
    let tls = KafkaTls { key_and_cert: pki.path("expired.both"), client_ca: None };
    let server = server_with(KafkaConfig { tls: Some(tls), ..KafkaConfig::default() }).await;
    let error =
        connect(&config(&server.address(), &pki.table(&[("ca", "ca.pem")]))).await.publish_badly(&message("1")).await;
    assert_error(&error, Misconfigured, Tls, &["certificate"]);
}

#[tokio::test]
async fn a_client_certificate_lets_us_in() {
    let pki = Pki::new();
    let tls = KafkaTls { key_and_cert: pki.path("server.both"), client_ca: Some(pki.path("ca.pem")) };
    let server = server_with(KafkaConfig { tls: Some(tls), ..KafkaConfig::default() }).await;
    let with = |keys: &[(&str, &str)]| config(&server.address(), &pki.table(keys));
    let shown = [("ca", "ca.pem"), ("cert", "client.pem"), ("key", "client.key")];
    connect(&with(&shown)).await.publish_well(&message("1")).await;
    let error = connect(&with(&[("ca", "ca.pem")])).await.publish_badly(&message("2")).await;
    assert!(matches!(error.kind, Misconfigured | Unavailable), "{}", Chain(&error));
}

#[tokio::test]
async fn a_file_that_cannot_be_used_stops_the_start_and_is_named() {
    let pki = Pki::new();
    fs::write(pki.path("no.pem"), "not PEM").expect("files can be written");
    let cases: [(&[(&str, &str)], &str); 4] = [
        (&[("ca", "missing.pem")], "tls.ca"),
        (&[("ca", "no.pem")], "tls.ca"),
        (&[("cert", "no.pem"), ("key", "client.key")], "tls.cert"),
        (&[("cert", "client.pem"), ("key", "server.key")], "tls.key"),
    ];
    for (keys, at_fault) in cases {
        let error = common::try_connect(&config("127.0.0.1:1", &pki.table(keys))).await.err();
        let error = error.unwrap_or_else(|| panic!("{keys:?} can be used"));
        assert_eq!(error.key, at_fault, "{}", Chain(&error));
    }
}

#[tokio::test]
async fn a_secret_that_is_no_text_stops_the_start_and_is_not_shown() {
    let config = config("127.0.0.1:1", "user = 'relay'\npassword = { file = '/dev/null' }\nsasl = 'plain'");
    let error = common::try_connect(&config).await.err().expect("there is no password");
    assert_eq!(error.key, "password");
    let with_zero = |_: &hookgate_core::secret::SecretRef| {
        let secret = hookgate_core::secret::Secret::new("h0rse\0").map_err(|error| error.to_string())?;
        Ok(std::sync::Arc::new(hookgate_core::secret::SecretSlot::new("env PASSWORD", secret)))
    };
    let error = common::try_connect_with(&config, &mut { with_zero }).await.err().expect("it is no text");
    let printed = format!("{error:?} {}", Chain(&error));
    assert!(printed.contains("is not text") && !printed.contains("h0rse"), "{printed}");
}

#[tokio::test]
async fn the_sink_prints_no_secret() {
    let lines = "user = 'relay'\npassword = 'c0rrect-h0rse'\nsasl = 'plain'";
    let connected = connect(&config("127.0.0.1:1", lines)).await;
    let printed = format!("{:?} {:?}", connected.sink, connected.seen.lines());
    assert!(!printed.contains("h0rse") && printed.contains("127.0.0.1:1"), "{printed}");
    connected.sink.close(common::ample()).await;
}

#[tokio::test]
async fn a_token_lets_in_until_it_ends_and_the_next_one_does_again() {
    // The broker's own validator for tests: it believes tokens that nobody has signed, and looks at their times.
    let extra = "listener.name.clients.sasl.enabled.mechanisms=OAUTHBEARER\n\
                 listener.name.clients.oauthbearer.sasl.jaas.config=\
                 org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
                 unsecuredLoginStringClaim_sub=\"broker\";\n";
    let server = server_with(KafkaConfig { login: login(), extra: extra.to_owned(), ..KafkaConfig::default() }).await;
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).expect("after 1970");
    let token = |ends_in: i64| {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let issued = i64::try_from(now.as_secs()).expect("small") - 3600;
        let claims = format!(r#"{{"sub":"relay","iat":{issued},"exp":{}}}"#, issued + 3600 + ends_in);
        format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(claims))
    };
    let lines = |token: &str| format!("sasl = 'oauthbearer'\ntoken = '{token}'");
    connect(&config(&server.address(), &lines(&token(3600)))).await.publish_well(&message("with a token")).await;
    let mut slots = Vec::new();
    let mut resolve = |reference: &hookgate_core::secret::SecretRef| {
        let slot = hookgate_testkit::sinks::resolve(reference)?;
        slots.push(std::sync::Arc::clone(&slot));
        Ok(slot)
    };
    let over = config(&server.address(), &lines(&token(-60)));
    let connected = common::try_connect_with(&over, &mut resolve).await.expect("the config can be used");
    assert!(connected.publish(&message("too late")).await.is_err());
    let next = hookgate_core::secret::Secret::new(token(3600)).expect("it is not empty");
    slots[0].replace(next).expect("any text is a token");
    connected.recovers().await;
    connected.publish_well(&message("1")).await;
}
