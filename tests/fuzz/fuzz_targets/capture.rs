//! Whatever bytes are given for a captured request. Never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = hookgate_http::capture::parse(bytes) {
        let _request = record.request(std::time::SystemTime::UNIX_EPOCH);
    }
});
