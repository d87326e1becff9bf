//! Whatever stands in the header that a preset reads, and in its timestamp and id: never a panic, never accepted.
#![no_main]

use std::sync::LazyLock;

use hookgate_core::{
    explain::{self, Record},
    preset::PRESETS,
    source::Source,
};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// A source for every preset that verifies by one shared secret, and the headers that such presets read.
static SOURCES: LazyLock<Vec<(Source, Vec<String>)>> = LazyLock::new(|| {
    let source = |name: &String| {
        let secret = match name.as_str() {
            "adyen-body" => "00ff17",
            "basic" => "user:password",
            "standard-webhooks" | "openai" | "svix" | "gitlab-signing" => "whsec_YSBrZXkgb2YgdHdlbnR5LWZvdXIgYnl0",
            "discord" => "33bbd7687adbbf3cb95b5b6ea134f13f5aec903105353dd36b8158429725af5c",
            _ => "a secret that no fuzzer finds",
        };
        let record = json!({ "provider": name, "secrets": [secret], "path": "/", "params": { "url": "https://a.test/" } });
        let record: Record = serde_json::from_value(record).expect("a record");
        let text = serde_json::to_string(&PRESETS[name].verify).expect("plain data");
        let words = text.split(['"', ',', '[', ']']).map(|word| word.strip_prefix("header:").unwrap_or(word));
        let headers = words.filter(|word| word.contains('-') && word.is_ascii() && !word.contains([' ', '{', '='])).map(str::to_owned);
        Some((record.source().ok()?, headers.chain(["authorization".to_owned()]).collect()))
    };
    PRESETS.keys().filter_map(source).collect()
});

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else { return };
    let (source, headers) = &SOURCES[usize::from(*choice) % SOURCES.len()];
    let mut parts = rest.split(|byte| *byte == 0);
    let mut pairs = Vec::new();
    for header in headers {
        let value = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        pairs.push(json!([header, value]));
    }
    let query = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let record = json!({ "path": format!("/?{query}"), "headers": pairs, "now_unix": 1_795_000_000 });
    let record: Record = serde_json::from_value(record).expect("a record");
    let Ok(request) = record.request(record.now(std::time::UNIX_EPOCH)) else { return };
    let verdict = explain::judge(source, None, request);
    assert!(verdict.verdict == "reject" || verdict.handshake, "{verdict:?} {}", Value::Array(pairs_of(&record)));
});

fn pairs_of(record: &Record) -> Vec<Value> {
    record.headers.iter().map(|(name, value)| json!([name, value])).collect()
}
