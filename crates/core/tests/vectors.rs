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
    // A signature has one form: Discord writes it in lower case, and with upper case allowed a bit of it could be changed.
    let differs_for_a_reason = BTreeMap::from([("discord: upper-case hex signature".to_owned(), 1)]);
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
