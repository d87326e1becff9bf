//! Bearer and query tokens against signed requests with verdicts, made with the providers' published libraries.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use hookgate_core::{
    auth::{Request, Unverified},
    config::ByteLimit,
    event::SourceId,
    limits::Admission,
    secret::{Secret, SecretOrigin, SecretRef, SecretSlot},
    source::Source,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

/// Whether hookgate accepts the case. A config that it refuses to start with counts as a rejection.
fn accepts(case: &Value) -> bool {
    let scheme = match case["scheme"].as_str() {
        Some("query-token") => {
            json!({ "scheme": "query", "param": case["params"]["param"], "secrets": case["secrets"] })
        }
        _ => json!({ "scheme": "bearer", "secrets": case["secrets"] }),
    };
    let config = serde_json::from_value(json!({ "path": "/in", "verify": [scheme] })).expect("a valid config");
    let mut resolve = |secret: &SecretRef| {
        let SecretOrigin::Literal(text) = &secret.origin else { panic!("vectors have literal secrets") };
        let secret = Secret::new(text.as_bytes()).map_err(|empty| empty.to_string())?;
        Ok(Arc::new(SecretSlot::new("vector", secret)))
    };
    let Ok(source) = Source::compile(SourceId::new(0, "vector"), &config, ByteLimit::mib(1), &mut resolve) else {
        return false;
    };
    let mut headers = HeaderMap::new();
    for pair in case["headers"].as_array().expect("a list of headers") {
        let (name, value) = (pair[0].as_str().expect("a name"), pair[1].as_str().expect("a value"));
        let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) else {
            return false;
        };
        headers.append(name.parse::<HeaderName>().expect("a header name"), value);
    }
    let target = case["path"].as_str().expect("a path");
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let request = Request {
        method: Method::POST,
        path: path.to_owned(),
        query: query.map(str::to_owned),
        headers,
        body: Bytes::new(),
        received_at: SystemTime::UNIX_EPOCH,
        admitted: Admission::new(1, 0).begin().try_enter().expect("room for one"),
    };
    source.verify(Unverified::new(request)).is_ok()
}

#[test]
fn every_token_case_gets_its_expected_verdict() {
    let vectors = include_str!("../../testkit/fixtures/vectors/token.jsonl");
    let cases: Vec<Value> = vectors.lines().map(|line| serde_json::from_str(line).expect("one case a line")).collect();
    assert!(cases.len() >= 54, "the vectors are all there: {}", cases.len());
    let differs = |case: &&Value| accepts(case) != (case["expect"] == "accept");
    let wrong: Vec<String> =
        cases.iter().filter(differs).map(|case| format!("{}: {}", case["id"], case["why"])).collect();
    assert_eq!(wrong, Vec::<String>::new());
}
