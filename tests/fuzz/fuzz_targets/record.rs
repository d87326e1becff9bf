//! A line of JSON as a record, with everything that it configures: presets, secrets, parameters, and then its request.
#![no_main]

use hookgate_core::explain::{self, Record};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    let Ok(record) = serde_json::from_slice::<Record>(line) else { return };
    let Ok(source) = record.source() else { return };
    let now = record.now(std::time::SystemTime::UNIX_EPOCH);
    if let Ok(request) = record.request(now) {
        explain::judge(&source, None, request);
    }
});
