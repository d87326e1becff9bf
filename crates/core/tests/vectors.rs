//! Every preset against signed requests with verdicts, made with the providers' published libraries where there are any.

use std::{collections::BTreeMap, time::SystemTime};

use hookgate_core::explain::{self, Record, Verdict};
use serde_json::Value;

/// What `hookgate explain` says of one case.
fn verdict(case: &Value) -> Verdict {
    let record: Record = serde_json::from_value(case.clone()).expect("a record");
    let source = match record.source() {
        Ok(source) => source,
        Err(problem) => return Verdict::refused("config_refused", 0, problem),
    };
    match record.request(record.now(SystemTime::UNIX_EPOCH)) {
        Ok(request) => explain::judge(&source, None, request),
        Err(problem) => Verdict::refused("malformed_request", 400, problem),
    }
}

fn cases() -> Vec<Value> {
    let vectors = include_str!("../../testkit/fixtures/vectors/signed.jsonl");
    vectors.lines().map(|line| serde_json::from_str(line).expect("one case a line")).collect()
}

#[test]
fn every_case_gets_its_expected_verdict() {
    let (mut wrong_must, mut wrong_may): (Vec<String>, BTreeMap<String, usize>) = Default::default();
    let cases = cases();
    assert_eq!(cases.len(), 2593, "the vectors are all there");
    for case in &cases {
        let verdict = verdict(case);
        if verdict.verdict == case["expect"] {
            continue;
        }
        if case["level"] == "must" {
            wrong_must.push(format!("{}: {} {:?}", case["id"], case["why"], verdict));
        } else {
            let name =
                format!("{}: {}", case["provider"].as_str().expect("text"), case["variant"].as_str().expect("text"));
            *wrong_may.entry(name).or_default() += 1;
        }
    }
    assert_eq!(wrong_must, Vec::<String>::new());
    // A signature has one form: Discord writes it in lower case, and with upper case allowed a bit of it could be changed. A plus
    // in the URL is a plus: base64 tokens hold it, and senders post to the URL as it was pasted.
    let differs_for_a_reason = ["discord: upper-case hex signature", "query-token: plus as blank"];
    let differs_for_a_reason = differs_for_a_reason.map(|name| (name.to_owned(), 1)).into();
    assert_eq!(wrong_may, differs_for_a_reason);
}

#[test]
fn a_record_of_no_possible_time_is_judged_by_the_callers_clock() {
    for time in ["1e300", "-1", "179666626660644098"] {
        let record: Record = serde_json::from_str(&format!(r#"{{"path":"/","now_unix":{time}}}"#)).expect("a record");
        let now = record.now(SystemTime::UNIX_EPOCH);
        assert!(now == SystemTime::UNIX_EPOCH || now > SystemTime::now(), "{time}: {now:?}");
    }
}

#[test]
fn the_operator_is_told_the_exact_reason() {
    let expected = [
        ("github", "signature header: missing", "credential_missing"),
        ("github", "prefix wrong", "credential_malformed"),
        ("github", "wrong secret", "signature_mismatch"),
        ("github", "signature header twice, good then bad", "credential_repeated"),
        ("github", "no secret configured", "config_refused"),
        ("slack", "timestamp 1 s past the tolerance", "timestamp_stale"),
        ("slack", "timestamp one day ahead", "timestamp_ahead"),
        ("slack", "timestamp not a number", "timestamp_malformed"),
        ("linear", "JSON body without a place for the timestamp", "timestamp_missing"),
        ("bearer", "wrong token", "credential_mismatch"),
        ("twilio", "JSON hash changed with the body", "signature_mismatch"),
        ("twilio", "settings header says SHA-256, signed with SHA-1", "signature_mismatch"),
        ("adyen-item", "signature missing", "credential_missing"),
        ("adyen-item", "body not JSON", "body_unreadable"),
        ("mailgun", "ahead", "timestamp_ahead"),
        ("aws-sns", "topic not on the list", "topic_refused"),
        ("aws-sns", "certificate URL: look-alike suffix", "certificate_url_refused"),
        ("aws-sns", "SignatureVersion 3", "algorithm_refused"),
        ("google-pubsub", "alg none", "algorithm_refused"),
        ("google-pubsub", "HS256 keyed with the public key", "algorithm_refused"),
        ("google-pubsub", "alg RS512", "algorithm_refused"),
        ("google-pubsub", "critical header not known", "algorithm_refused"),
        ("google-pubsub", "unknown kid", "key_unknown"),
        ("google-pubsub", "wrong audience", "audience_refused"),
        ("google-pubsub", "wrong issuer", "issuer_refused"),
        ("google-pubsub", "another service account", "claim_refused"),
        ("google-pubsub", "issued in the future", "token_not_yet_valid"),
        ("azure-entra", "expired one second ago", "token_expired"),
        ("azure-entra", "claims changed", "signature_mismatch"),
        ("atlassian-connect", "path changed", "content_mismatch"),
        ("atlassian-connect", "alg none", "algorithm_refused"),
        ("discord", "small-order key and all-zero S", "config_refused"),
    ];
    let cases = cases();
    for (provider, variant, reason) in expected {
        let mut found =
            cases.iter().filter(|case| case["provider"] == provider && case["variant"] == variant).peekable();
        assert!(found.peek().is_some(), "{provider}: {variant}");
        for case in found {
            assert_eq!(verdict(case).reason, Some(reason), "{}", case["id"]);
        }
    }
}
