//! An account of a server in operator mode, and `.creds` for it, made as `nsc` makes them.
//!
//! Source: NATS documentation, "JWT Deep Dive"; github.com/nats-io/jwt, version 2 claims.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::{ConnectOptions, jetstream};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hookgate_testkit::nats::NatsServer;
use nkeys::KeyPair;
use serde_json::{Value, json};

pub(crate) struct Account {
    operator: KeyPair,
    keys: KeyPair,
    system: KeyPair,
}

impl Account {
    pub(crate) fn new() -> Self {
        Self { operator: KeyPair::new_operator(), keys: KeyPair::new_account(), system: KeyPair::new_account() }
    }

    /// What a server has to be told, to know the account and its operator.
    pub(crate) fn server_config(&self) -> String {
        let unlimited = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
            "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        });
        let mut system_limits = unlimited.clone();
        for key in ["mem_storage", "disk_storage", "streams", "consumer"] {
            system_limits[key] = json!(0);
        }
        let account = |keys: &KeyPair, limits: Value| {
            signed(&self.operator, keys, None, &json!({ "type": "account", "version": 2, "limits": limits }))
        };
        let operator = signed(&self.operator, &self.operator, None, &json!({ "type": "operator", "version": 2 }));
        format!(
            "operator: {operator}\nresolver: MEMORY\nsystem_account: {system}\n\
             resolver_preload: {{ {system}: {system_jwt}, {account}: {account_jwt} }}\n",
            system = self.system.public_key(),
            system_jwt = account(&self.system, system_limits),
            account = self.keys.public_key(),
            account_jwt = account(&self.keys, unlimited),
        )
    }

    /// The content of a `.creds` file for a new user.
    pub(crate) fn creds(&self, valid_for: Option<Duration>) -> String {
        let user = KeyPair::new_user();
        let claims = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
        let jwt = signed(&self.keys, &user, valid_for, &claims);
        let seed = user.seed().expect("a new pair has its seed");
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }

    pub(crate) async fn add_stream(&self, server: &NatsServer) {
        let options = ConnectOptions::with_credentials(&self.creds(None)).expect("creds as `nsc` writes them");
        let client = options.connect(server.url()).await.expect("the server is up");
        let stream = jetstream::stream::Config {
            name: "HOOKS".to_owned(),
            subjects: vec!["hooks.>".to_owned()],
            ..Default::default()
        };
        jetstream::new(client).create_stream(stream).await.expect("the account may have streams");
    }
}

fn signed(issuer: &KeyPair, subject: &KeyPair, valid_for: Option<Duration>, claims: &Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("tests run after 1970");
    let mut body = json!({
        "jti": "test", "iat": now.as_secs(), "iss": issuer.public_key(), "sub": subject.public_key(), "name": "test",
        "nats": claims,
    });
    if let Some(valid_for) = valid_for {
        body["exp"] = json!((now + valid_for).as_secs());
    }
    let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", encoded(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), encoded(&body));
    let signature = issuer.sign(text.as_bytes()).expect("the pair has its seed");
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}
