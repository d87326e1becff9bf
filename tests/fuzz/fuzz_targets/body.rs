//! Whatever stands in a body: signatures in it, challenges, ids, types and attributes. Never a panic.
#![no_main]

use std::sync::LazyLock;

use hookgate_core::{
    explain::{self, Record},
    preset::PRESETS,
    source::Source,
};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

/// A source for every preset: as it is, and one that lets anybody in, so that what comes after verification is reached.
static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(|| {
    let record = |name: &str, secret: &str| {
        let record = json!({ "provider": name, "secrets": [secret], "path": "/" });
        serde_json::from_value::<Record>(record).expect("a record").source().ok()
    };
    let verified = ["mailgun", "adyen-item", "aws-sns", "linear"].map(|name| record(name, "00ff"));
    let open = |name: &String| {
        let config = json!({ "path": "/", "preset": name, "verify": [{ "scheme": "insecure-accept-anyone" }] });
        let config = serde_json::from_value(config).expect("a config");
        let limit = hookgate_core::config::ByteLimit::mib(1).into();
        let id = hookgate_core::event::SourceId::new(0, name.as_str());
        Source::compile(id, &config, &limit, &mut |_| Err("no secrets here".to_owned())).ok()
    };
    verified.into_iter().chain(PRESETS.keys().map(open)).flatten().collect()
});

fuzz_target!(|input: &[u8]| {
    let [choice, form, body @ ..] = input else { return };
    let source = &SOURCES[usize::from(*choice) % SOURCES.len()];
    let content_type = if form & 1 == 1 { "application/x-www-form-urlencoded" } else { "application/json" };
    let headers = json!([["content-type", content_type], ["linear-signature", "00"], ["aeg-event-type", "SubscriptionValidation"]]);
    let record = json!({ "path": "/", "headers": headers, "now_unix": 1_795_000_000 });
    let mut record: Record = serde_json::from_value(record).expect("a record");
    record.body_base64 = data_encoding::BASE64.encode(body);
    if let Ok(request) = record.request(record.now(std::time::UNIX_EPOCH)) {
        explain::judge(source, None, request);
    }
});
