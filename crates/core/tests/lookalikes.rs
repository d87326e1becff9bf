//! Requests that look like a sender's in one way and are not in another: what was signed read in another way, another secret
//! of the same name, a token as the provider really sends it.

use std::time::SystemTime;

use bytes::Bytes;
use hookgate_core::{
    auth::{AuthFailure, Draft, Unverified},
    config::ByteLimit,
    source::Source,
};
use hookgate_testkit::sender::{compile, draft, request, try_compile};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

fn post(headers: HeaderMap, body: impl Into<Bytes>) -> Unverified {
    request(&Draft { headers, ..draft(body) })
}

/// A request that is all in its method and query.
fn asking(method: Method, query: &str) -> Unverified {
    request(&Draft { method, query: Some(query.to_owned()), ..draft("") })
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let header = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().expect("a name"), HeaderValue::from_str(value).expect("a value"))
    };
    pairs.iter().map(header).collect()
}

fn signed(source: &Source, body: &str) -> Result<Draft, String> {
    let mut draft = draft(body.to_owned());
    source.sign(&mut draft).map(|()| draft)
}

/// What is wrong with a table that is not good.
fn problems(config: Value) -> Vec<String> {
    let problems = try_compile(config, &ByteLimit::mib(1).into()).map(|_| ()).expect_err("it is not good");
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_value_of_adyens_items_cannot_be_shifted_into_its_neighbour() {
    let source =
        compile(json!({ "path": "/in", "preset": "adyen-item", "secrets": ["44782DEF547AAA06C910C43932B1EB0C"] }));
    let item = |reference: &str, value: Value, currency: &str, code: &str| {
        json!({
            "pspReference": "X", "merchantAccountCode": "M", "merchantReference": reference,
            "amount": { "value": value, "currency": currency }, "eventCode": code, "success": "true",
        })
    };
    let body = |item: Value| json!({ "notificationItems": [{ "NotificationRequestItem": item }] }).to_string();
    let draft = signed(&source, &body(item("order:5", 100.into(), "EUR", "AUTHORISATION"))).expect("signed");
    let genuine = post(HeaderMap::new(), draft.body.clone());
    assert!(source.verify(genuine).is_ok(), "the merchant's own reference may hold a colon");
    let sent: Value = serde_json::from_slice(&draft.body).expect("JSON");
    let mut altered = item("order", 5.into(), "100", "EUR:AUTHORISATION");
    altered["additionalData"] =
        sent.pointer("/notificationItems/0/NotificationRequestItem/additionalData").expect("signed").clone();
    let refused = source.verify(post(HeaderMap::new(), body(altered))).map(|_| ());
    assert_eq!(refused, Err(AuthFailure::Malformed));
}

#[test]
fn a_challenge_is_answered_with_the_very_secret_that_signed_it() {
    const CHALLENGE: &str = r#"{"event":"endpoint.url_validation","payload":{"plainToken":"abcdefg"}}"#;
    let zoom = |secrets: Value| compile(json!({ "path": "/in", "preset": "zoom", "secrets": secrets }));
    let newer = zoom(json!(["the-new-secret-of-zoom"]));
    let answer = |source: &Source| {
        let draft = signed(&newer, CHALLENGE).expect("signed");
        let request = source.verify(post(draft.headers, draft.body)).expect("its secret is live");
        source.answer(&request).expect("a challenge").body().to_owned()
    };
    // Both are called "literal".
    assert_eq!(answer(&zoom(json!(["the-old-secret-of-zoom", "the-new-secret-of-zoom"]))), answer(&newer));
}

#[test]
fn a_token_is_never_used_to_answer_strangers() {
    let twitter = |verify: Value| compile(json!({ "path": "/in", "preset": "x-twitter", "verify": verify }));
    let hmac = json!({ "scheme": "hmac", "secrets": ["x-consumer-secret"] });
    let answer = |source: &Source| {
        let request = asking(Method::GET, "crc_token=abcdefgh");
        source.answer_unverified(&request).expect("a challenge").body().to_owned()
    };
    let alone = answer(&twitter(json!([hmac])));
    let beside = twitter(json!([{ "scheme": "bearer", "secrets": ["bearer-token-value"] }, hmac]));
    assert_eq!(answer(&beside), alone);
}

#[test]
fn a_token_in_the_url_is_percent_decoded_and_a_plus_is_a_plus() {
    let source = compile(json!({
        "path": "/in", "verify": [{ "scheme": "query", "param": "to ken", "secrets": ["ab+cd/ef=="] }],
    }));
    let outcome = |query: &str| source.verify(asking(Method::POST, query)).map(|_| ());
    assert_eq!(outcome("a=1&to%20ken=ab+cd/ef=="), Ok(()));
    assert_eq!(outcome("to%20ken=ab%2Bcd%2Fef%3D%3D"), Ok(()));
    assert_eq!(outcome("to%20ken=ab%20cd/ef=="), Err(AuthFailure::Mismatch));
    assert_eq!(outcome("to%20ken=ab%252Bcd/ef=="), Err(AuthFailure::Mismatch), "it is decoded once");
    assert_eq!(outcome("to%20ken=ab+cd/ef==&to%20ken="), Err(AuthFailure::Repeated));
    assert_eq!(outcome("to%20ken="), Err(AuthFailure::Missing));
    let draft = signed(&source, "").expect("signed");
    assert_eq!(outcome(&draft.query.expect("a token")), Ok(()));
}

#[test]
fn a_media_type_may_have_parameters() {
    let source = compile(json!({ "path": "/in", "preset": "woocommerce", "secrets": ["a-long-enough-secret"] }));
    let answer =
        |media_type: &str| source.answer_unverified(&post(headers(&[("content-type", media_type)]), "webhook_id=1"));
    for form in ["application/x-www-form-urlencoded", "application/x-www-form-urlencoded; charset=UTF-8"] {
        assert_eq!(answer(form).map(|reply| reply.status()), Some(200), "{form}");
    }
    assert!(answer("application/json").is_none());
}

#[test]
fn what_only_says_that_something_changed_is_not_taken_for_a_repeat() {
    for preset in ["dropbox", "microsoft-graph"] {
        let source = compile(json!({ "path": "/in", "preset": preset, "secrets": ["a-long-enough-secret"] }));
        let event_id = || {
            let draft = signed(&source, r#"{"list_folder":{"accounts":["a"]}}"#).expect("signed");
            source.identify(source.verify(request(&draft)).expect("signed")).expect("an event").id.clone()
        };
        assert_ne!(event_id(), event_id(), "{preset}");
    }
}

#[test]
fn deliveries_of_one_second_are_two_events() {
    let source = compile(json!({ "path": "/in", "preset": "woocommerce", "secrets": ["a-long-enough-secret"] }));
    let event_id = |body: &str| {
        let mut draft = signed(&source, body).expect("signed");
        draft.headers.extend(headers(&[("x-wc-webhook-delivery-id", "shared")]));
        source.identify(source.verify(post(draft.headers, draft.body)).expect("signed")).expect("an event").id.clone()
    };
    assert_ne!(event_id(r#"{"id":1}"#), event_id(r#"{"id":2}"#));
}

#[test]
fn a_header_that_is_the_token_does_not_travel_on() {
    let problems = problems(json!({
        "path": "/in", "preset": "gitlab", "secrets": ["a-long-enough-secret"], "forward_headers": ["X-Gitlab-Token"],
    }));
    assert!(problems.iter().any(|problem| problem.contains("never travel on")), "{problems:?}");
}

#[test]
fn what_does_not_fit_a_header_is_told_and_not_sent() {
    let source =
        compile(json!({ "path": "/in", "verify": [{ "scheme": "bearer", "secrets": ["two\nlines-of-a-secret"] }] }));
    let problem = signed(&source, "{}").map(|_| ()).expect_err("it cannot be a header");
    assert!(problem.contains("authorization") && !problem.contains("lines-of-a-secret"), "{problem}");
}

#[test]
fn a_flood_of_signatures_is_not_checked_one_by_one() {
    let source = compile(json!({
        "path": "/in", "preset": "standard-webhooks-v1a", "secrets": ["whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="],
    }));
    let one = format!("v1a,{}", data_encoding::BASE64.encode(&[1; 64]));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs().to_string();
    let outcome = |count| {
        let signatures = vec![one.as_str(); count].join(" ");
        let headers = headers(&[("webhook-id", "1"), ("webhook-timestamp", &now), ("webhook-signature", &signatures)]);
        source.verify(post(headers, "{}")).map(|_| ())
    };
    assert_eq!(outcome(4), Err(AuthFailure::SignatureMismatch));
    assert_eq!(outcome(5), Err(AuthFailure::Malformed));
}

#[test]
fn a_key_of_another_curve_is_told() {
    // The curve secp256k1, whose points are as long as those of P-256.
    let key = "MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAEeb5mfvncu6xVoGKVzocLBwKb/NstzijZWfKBWxb4F5hIOtp3JqPEZV2k+/wOEQio/Re0SKaFVBmcR9CP+xDUuA==";
    let problems = problems(json!({ "path": "/in", "preset": "sendgrid", "secrets": [key] }));
    assert!(problems.iter().any(|problem| problem.contains("P-256")), "{problems:?}");
}
