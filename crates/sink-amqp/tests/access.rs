//! Who lets us in, and over what: TLS, certificates, and what cannot be used.

mod common;

use std::fs;

use common::{Place, config, connect};
use hookgate_core::{
    observe::Chain,
    sink::{
        PublishErrorKind::{Misconfigured, Unavailable},
        PublishReason::Tls,
    },
};
use hookgate_testkit::{
    rabbit::{RabbitConfig, RabbitServer, RabbitTls},
    sinks::assert_error,
    tls::Pki,
};

async fn server_with(pki: &Pki, certificate: &str, asks_clients: bool) -> (RabbitServer, Place) {
    let (cert, key) = (pki.path(&format!("{certificate}.pem")), pki.path(&format!("{certificate}.key")));
    let tls = Some(RabbitTls { cert, key, ca: pki.path("ca.pem"), asks_clients });
    let server = RabbitServer::start(&RabbitConfig { tls, ..RabbitConfig::default() }).await;
    let place = Place::on(&server, &[]).await;
    (server, place)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_believed_when_a_ca_of_ours_has_signed_it_and_gets_our_certificate() {
    let (pki, other) = (Pki::new(), Pki::new());
    let (server, place) = server_with(&pki, "server", true).await;
    let with = |tls: &str| config(&server.tls_url(), tls);
    let shown = pki.table(&[("ca", "ca.pem"), ("cert", "client.pem"), ("key", "client.key")]);
    connect(&with(&shown)).await.publish_well(&place.message("1")).await;
    for untrusted in [other.table(&[("ca", "ca.pem")]), String::new()] {
        let error = connect(&with(&untrusted)).await.publish_badly(&place.message("2")).await;
        assert_error(&error, Misconfigured, Tls, &["ertificate"]);
    }
    let error = connect(&with(&pki.table(&[("ca", "ca.pem")]))).await.publish_badly(&place.message("3")).await;
    assert!(matches!(error.kind, Misconfigured | Unavailable), "{}", Chain(&error));
    assert_eq!(place.stored_ids(&server).await, ["test:header:x-test-id=1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_over_is_told_by_its_name() {
    let pki = Pki::new();
    let (server, place) = server_with(&pki, "expired", false).await;
    let connected = connect(&config(&server.tls_url(), &pki.table(&[("ca", "ca.pem")]))).await;
    let error = connected.publish_badly(&place.message("1")).await;
    assert_error(&error, Misconfigured, Tls, &["ertificate"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_used_stops_the_start_and_is_named() {
    let pki = Pki::new();
    fs::write(pki.path("no.pem"), "not PEM").expect("writable");
    let cases: [(&[(&str, &str)], &str); 4] = [
        (&[("ca", "missing.pem")], "tls.ca"),
        (&[("ca", "no.pem")], "tls.ca"),
        (&[("cert", "no.pem"), ("key", "client.key")], "tls.cert"),
        (&[("cert", "client.pem"), ("key", "server.key")], "tls.key"),
    ];
    for (keys, at_fault) in cases {
        let error = common::try_connect(&config("amqps://127.0.0.1:1", &pki.table(keys))).await.err();
        let error = error.unwrap_or_else(|| panic!("{keys:?} can be used"));
        assert_eq!(error.key, at_fault, "{}", Chain(&error));
    }
    let plain = common::try_connect(&config("amqp://127.0.0.1:1", &pki.table(&[("ca", "ca.pem")]))).await.err();
    assert_eq!(plain.expect("there is no TLS for it").key, "tls");
}
