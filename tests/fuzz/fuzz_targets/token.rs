//! Whatever stands after `Bearer` or `JWT`: never a panic, never accepted.
#![no_main]

use std::sync::LazyLock;

use hookgate_core::{
    explain::{self, Record},
    source::Source,
};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

static SOURCES: LazyLock<[Source; 2]> = LazyLock::new(|| {
    let key = json!({ "kty": "OKP", "crv": "Ed25519", "kid": "one", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
    let rsa = json!({ "kty": "RSA", "kid": "two", "n": "x51EioHh5ImLoKhw5EZetDjXIl7hGz_khRGYhTV4r700", "e": "AQAB" });
    let source = |record| serde_json::from_value::<Record>(record).expect("a record").source().expect("a config");
    [
        source(json!({ "provider": "google-pubsub", "path": "/", "params": { "jwks": { "keys": [key, rsa] }, "audiences": ["us"] } })),
        source(json!({ "provider": "atlassian-connect", "path": "/", "secrets": ["a secret that no fuzzer finds"] })),
    ]
});

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    for (source, word) in SOURCES.iter().zip(["Bearer", "JWT"]) {
        let record = json!({ "path": "/?a=1", "headers": [["authorization", format!("{word} {text}")]], "now_unix": 1_795_000_000 });
        let record: Record = serde_json::from_value(record).expect("a record");
        if let Ok(request) = record.request(record.now(std::time::UNIX_EPOCH)) {
            assert_eq!(explain::judge(source, None, request).verdict, "reject");
        }
    }
});
