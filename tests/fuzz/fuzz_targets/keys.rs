//! Whatever an operator or an issuer gives for keys: JWK sets, certificates, public keys, shared secrets. Never a panic.
#![no_main]

use hookgate_core::explain::Record;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input).into_owned();
    let compile = |provider: &str, params: Value| {
        let record = json!({ "provider": provider, "path": "/", "secrets": [text], "params": params });
        let _source = serde_json::from_value::<Record>(record).expect("a record").source();
    };
    for provider in ["discord", "sendgrid", "standard-webhooks", "standard-webhooks-v1a", "adyen-body", "basic"] {
        compile(provider, json!({}));
    }
    compile("aws-sns", json!({ "certs": { "https://sns.us-east-1.amazonaws.com/a.pem": text } }));
    compile("google-pubsub", json!({ "audiences": ["us"], "certs_by_kid": { "one": text } }));
    if let Ok(keys) = serde_json::from_slice::<Value>(input) {
        compile("google-pubsub", json!({ "audiences": ["us"], "jwks": keys }));
    }
});
