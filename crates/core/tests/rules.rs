//! The rules of routes: what the language says of an event, what is wrong with a rule, and what routes make of it.

use std::sync::Arc;

use hookgate_core::{
    auth::Authenticated,
    envelope,
    event::{Event, SinkId},
    observe::RouteResult,
    route::{Names, RouteConfig, Routed, Router, SinkDeclaration, UnroutedConfig},
    sink::Addressing,
};
use hookgate_testkit::event::{SOURCE, TestEvent};
use proptest::prelude::*;
use serde_json::{Value, json};

const BODY: &str = r#"{
    "n": 3, "big": 9007199254740993, "part": 2.5, "yes": true, "no": null, "text": "ab", "empty": "",
    "job": {"id": "nightly", "tags": ["prod", "eu"]}, "list": [{"x": 1}, {"x": 2}], "a/b": {"~c": 1}, "unicode": "naïve ☕"
}"#;

fn event() -> Arc<Authenticated<Event>> {
    TestEvent::new("7")
        .body(BODY)
        .attribute("status", "error")
        .header("x-github-event", "push")
        .attribute_at("missing", "/not/there")
        .header("content-type", "application/json")
        .event_type("run.finished")
        .event()
}

fn compile(routes: &Value) -> Result<Router, Vec<String>> {
    let routes: Vec<RouteConfig> = serde_json::from_value(routes.clone()).expect("well-formed");
    let sinks = [SinkDeclaration { id: SinkId::new(0, "s"), addressing: Addressing::Subject, allow: Vec::new() }];
    let attributes = ["status", "missing"].map(str::to_owned);
    let names = Names { sinks: &sinks, sources: &[SOURCE.to_owned(), "other".to_owned()], attributes: &attributes };
    Router::compile(&routes, &UnroutedConfig::default(), &names)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

fn router(routes: &Value) -> Router {
    compile(routes).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// What a route with this rule has to do with the event.
fn result_of(rule: &str, event: &Authenticated<Event>) -> Option<RouteResult> {
    let router = router(&json!([{ "name": "r", "when": rule, "to": [{ "sink": "s", "subject": "a" }] }]));
    router.plan(event).routes.first().map(|(_, result)| *result)
}

const HOLDS: Option<RouteResult> = Some(RouteResult::Matched);
const INCOMPLETE: Option<RouteResult> = Some(RouteResult::Incomplete);

#[test]
fn the_language() {
    let event = event();
    for (rule, expected) in [
        // The short form, which needs no interpreter, and the same beside something that does.
        (r#"attr.status == "error""#, HOLDS),
        (r#"'error' == attr.status && type == "run.finished""#, HOLDS),
        (r#"attr.status == "ok""#, None),
        (r#"source == "other""#, None),
        (r#"source == "other" || attr.status == "error""#, HOLDS),
        (r#"!(attr.status == "ok") && body_size > 10"#, HOLDS),
        (r#"attr["status"] in ["ok", "error"]"#, HOLDS),
        (r#"method == "POST" && path.startsWith("/") && content_type == "application/json""#, HOLDS),
        (r#"headers["X-GitHub-Event"] == "push""#, HOLDS),
        (r#"headers["x-other"] == "push""#, INCOMPLETE),
        (r#""x-github-event" in headers && !("x-other" in headers)"#, HOLDS),
        (r#"has(attr.status) && !has(attr.missing)"#, HOLDS),
        // What is missing does not matter where the rest decides.
        (r#"attr.missing == "x""#, INCOMPLETE),
        (r#"attr.missing == "x" && attr.status == "ok""#, None),
        (r#"attr.status == "ok" && attr.missing == "x""#, None),
        (r#"attr.missing == "x" || attr.status == "error""#, HOLDS),
        (r#"attr.missing != "x""#, INCOMPLETE),
        // The body.
        (r#"json.n == 3 && json.n > 2 && json.n + 1 == 4"#, HOLDS),
        (r#"json.n > 2.5 && json.part < 3"#, HOLDS),
        (r#"json.n == "3""#, None),
        (r#"json.big == 9007199254740993"#, HOLDS),
        (r#"json.big == 9007199254740992"#, None),
        (r#"json.yes && json.no == null"#, HOLDS),
        (r#"json.job.id == "nightly" && json["job"]["id"].endsWith("ly")"#, HOLDS),
        (r#"json.list[1].x == 2"#, HOLDS),
        (r#"json.list[2].x == 2"#, INCOMPLETE),
        (r#"json["a/b"]["~c"] == 1"#, HOLDS),
        (r#""prod" in json.job.tags && size(json.job.tags) == 2"#, HOLDS),
        (r#"json.job.tags.exists(tag, tag.startsWith("e"))"#, HOLDS),
        (r#"json.list.all(item, item.x > 0) && json.list.filter(item, item.x > 1).size() == 1"#, HOLDS),
        (r#"json.list.exists(item, item.y == 1)"#, INCOMPLETE),
        (r#"json.unicode == "naïve ☕" && json.unicode.contains("ï")"#, HOLDS),
        (r#"has(json.job.id) && !has(json.job.name)"#, HOLDS),
        (r#"json.nothing.at.all == 1"#, INCOMPLETE),
        (r#"json.text > 3"#, INCOMPLETE),
        (r#"size(json.text) == 2 ? json.empty == "" : false"#, HOLDS),
        ("json.yes", HOLDS),
        ("true", HOLDS),
        ("false", None),
    ] {
        assert_eq!(result_of(rule, &event), expected, "{rule}");
    }
}

#[test]
fn a_body_that_is_not_json_has_no_values() {
    for body in ["", "text", "{\"n\": 3", "{\"n\": 3, \"n\": 4}", "[1]"] {
        let event = TestEvent::new("1").body(body).event();
        assert_eq!(result_of("json.n == 3", &event), INCOMPLETE, "{body:?}");
        assert_eq!(result_of("has(json.n)", &event), None, "{body:?}");
    }
}

#[test]
fn a_list_that_is_too_long_to_look_through_counts_as_missing() {
    let list = |items: usize| format!(r#"{{"list": [{}]}}"#, vec!["1"; items].join(","));
    let rule = "json.list.all(item, item == 1)";
    assert_eq!(result_of(rule, &TestEvent::new("1").body(list(4000)).event()), HOLDS);
    assert_eq!(result_of(rule, &TestEvent::new("1").body(list(10_000)).event()), INCOMPLETE);
}

#[test]
fn a_wrong_rule_is_told_with_the_place_that_is_wrong() {
    let deep = format!("{}true{}", "(".repeat(500), ")".repeat(500));
    let long = format!("source == \"{}\"", "x".repeat(5000));
    for (rule, told) in [
        (r#"atr.status == "x""#, r#"did you mean "attr"?"#),
        (r#"source == "test" && attr.statsu == "x""#, r#"there is no attribute "statsu"; did you mean "status"?"#),
        (r#"attr.status == "a" && attr.nope == "x""#, "column 23: \"attr.nope"),
        ("true &&\n  attr.nope == \"x\"", "line 2, column 3"),
        (r#"source == "oter""#, r#"did you mean "other"?"#),
        (r#"source in ["oter"]"#, r#"did you mean "other"?"#),
        (r#"attr.status.startWith("x")"#, r#"did you mean "startsWith"?"#),
        (r#"attr.status.matches("a+")"#, "there is no function \"matches\""),
        ("body_size == \"x\"", "a int is never equal to a string"),
        ("attr.status > 3", "cannot be said of string and int"),
        ("attr.status", "a rule is true or false, and this is a string"),
        ("body_size + 1", "this is a int"),
        ("attr.status && true", "cannot be said of string and bool"),
        ("source.name == \"x\"", "source has no fields"),
        ("json == \"x\"", "json.NAME"),
        ("attr == \"x\"", "attr.NAME"),
        (r#"attr[source] == "x""#, "attr.NAME"),
        (r#"headers["authorization"] == "x""#, "holds credentials"),
        (r#"headers["a b"] == "x""#, "is not the name of a header"),
        ("json.a.all(x, json.b.all(y, y == x))", "a macro inside another"),
        ("json.a.exists(source, source == 1)", "is the name of something else"),
        ("{\"a\": 1} == json.a", "maps"),
        ("source ==", "line 1, column"),
        ("source = \"x\"", "line 1, column"),
        ("", "line 1, column"),
        (deep.as_str(), ""),
        (long.as_str(), "at most 4096"),
    ] {
        let routes = json!([{ "when": rule, "to": [{ "sink": "s", "subject": "a" }] }]);
        let problems = compile(&routes).err().unwrap_or_else(|| panic!("{rule} is accepted"));
        assert!(problems.len() == 1 && problems[0].starts_with("routes[0].when: "), "{rule}: {problems:?}");
        assert!(problems[0].contains(told), "{rule}: {problems:?}");
    }
}

fn subjects(routes: &Value, event: &Arc<Authenticated<Event>>) -> Vec<String> {
    match router(routes).plan(event).routed {
        Routed::To(plan) => plan.legs().iter().map(|leg| leg.target.to_string()).collect(),
        Routed::Drop(_) => vec!["dropped".to_owned()],
        Routed::Reject => vec!["rejected".to_owned()],
        Routed::Unredactable(error) => panic!("{error}"),
    }
}

fn to(subject: &str) -> Value {
    json!([{ "sink": "s", "subject": subject }])
}

#[test]
fn routes_add_up_unless_one_is_final() {
    let event = event();
    let (yes, no) = (r#"attr.status == "error""#, r#"attr.status == "ok""#);
    for (routes, expected) in [
        (json!([{ "when": yes, "to": to("a") }, { "to": to("b") }]), vec!["a", "b"]),
        (json!([{ "when": yes, "final": true, "to": to("a") }, { "to": to("b") }]), vec!["a"]),
        (json!([{ "when": no, "final": true, "to": to("a") }, { "to": to("b") }]), vec!["b"]),
        (json!([{ "when": yes, "drop": true }, { "to": to("b") }]), vec!["b"]),
        (json!([{ "when": yes, "drop": true, "final": true }, { "to": to("b") }]), vec!["dropped"]),
        (json!([{ "when": yes, "drop": true }]), vec!["dropped"]),
        (json!([{ "when": no, "drop": true }]), vec!["rejected"]),
        (json!([{ "when": "attr.missing == \"x\"", "final": true, "to": to("a") }]), vec!["rejected"]),
        (json!([{ "to": to("a") }, { "to": to("a") }]), vec!["a"]),
    ] {
        assert_eq!(subjects(&routes, &event), expected, "{routes}");
    }
    for (route, told) in [
        (json!({ "drop": true, "to": to("a") }), "drop: is true, and there are destinations"),
        (json!({ "when": "true" }), "to: is empty"),
        (json!({ "sample": 0.0, "to": to("a") }), "sample: is a part of the events"),
        (json!({ "sample": 1.5, "to": to("a") }), "sample: is a part of the events"),
    ] {
        let problems = compile(&json!([route])).expect_err("a contradiction");
        assert!(problems.len() == 1 && problems[0].contains(told), "{route}: {problems:?}");
    }
}

#[test]
fn a_sample_has_its_part_of_the_events_and_decides_alike_each_time() {
    let routes = |part: f64| json!([{ "name": "sampled", "sample": part, "to": to("a") }]);
    let events: Vec<_> = (0..1000).map(|number| TestEvent::new(&number.to_string()).event()).collect();
    let taken = |part: f64| {
        let router = router(&routes(part));
        let is_taken = |event: &&Arc<_>| matches!(router.plan(event).routed, Routed::To(_));
        events.iter().filter(is_taken).map(|event| event.id.to_string()).collect::<Vec<_>>()
    };
    let tenth = taken(0.1);
    assert!((60..140).contains(&tenth.len()), "{}", tenth.len());
    assert_eq!(tenth, taken(0.1));
    assert_eq!(taken(1.0).len(), 1000);
    assert!(tenth.iter().all(|id| taken(0.5).contains(id)), "a larger sample holds the smaller one");
}

/// The bodies that go to each subject, with what is taken out of them.
fn bodies(routes: &Value, event: &Arc<Authenticated<Event>>) -> Vec<(String, String, Option<String>)> {
    let Routed::To(plan) = router(routes).plan(event).routed else { panic!("a route takes it") };
    let of = |message: hookgate_core::message::Message| {
        let sink = message.leg.sink.clone();
        // As it is published, and as it is published after it has been in the spool.
        let again = envelope::decode(&envelope::encode(&message), &sink, &[]).expect("readable");
        assert_eq!(message.body(), again.body());
        let headers = |message: &hookgate_core::message::Message| {
            let mut found = Vec::new();
            message.for_each_header(|name, value| found.push((name.to_owned(), value.to_owned())));
            found
        };
        assert_eq!(headers(&message), headers(&again));
        let redacted = headers(&message).into_iter().find(|(name, _)| name == "hookgate-redacted");
        let body = String::from_utf8(message.body().to_vec()).expect("UTF-8");
        (message.leg.target.to_string(), body, redacted.map(|(_, value)| value))
    };
    plan.messages(event).map(of).collect()
}

#[test]
fn a_route_takes_values_out_of_its_own_copy() {
    let body = r#"{ "job": {"env": {"KEY": "s3cret"}, "to": "https://u:p@h/"}, "n": 1.0 }"#;
    let event = TestEvent::new("1").body(body).event();
    let without =
        |values: &[&str]| values.iter().fold(body.to_owned(), |body, value| body.replace(value, "\"[redacted]\""));
    let (env, to_url) = (r#"{"KEY": "s3cret"}"#, r#""https://u:p@h/""#);
    let redact = |pointers: &[&str], subject: &str| json!({ "redact": pointers, "to": to(subject) });
    let routes = json!([redact(&["/job/env", "/job/to", "/no"], "a"), { "to": to("b") }]);
    assert_eq!(
        bodies(&routes, &event),
        [
            ("a".to_owned(), without(&[env, to_url]), Some("/job/env /job/to".to_owned())),
            ("b".to_owned(), body.to_owned(), None)
        ]
    );
    // One destination of two routes: what one of them takes out is out.
    let routes = json!([{ "to": to("a") }, redact(&["/job/env"], "a"), redact(&["/job/to"], "a")]);
    let expected = ("a".to_owned(), without(&[env, to_url]), Some("/job/env /job/to".to_owned()));
    assert_eq!(bodies(&routes, &event), [expected]);
    let text = TestEvent::new("1").body("no JSON").event();
    assert!(matches!(router(&routes).plan(&text).routed, Routed::Unredactable(_)), "nobody knows what is in it");
    let problems = compile(&json!([redact(&["/a", "b"], "a")])).expect_err("no pointer");
    assert!(problems.len() == 1 && problems[0].starts_with("routes[0].redact[1]: "), "{problems:?}");
}

proptest! {
    #[test]
    fn no_text_makes_the_compiler_panic_or_hang(rule in "[ -~]{0,60}") {
        let _ = compile(&json!([{ "when": rule, "to": to("a") }]));
    }

    #[test]
    fn what_looks_like_a_rule_never_panics_when_it_is_evaluated(
        left in prop::sample::select(vec!["json.n", "json.text", "json.list", "json.job", "json.no", "attr.status", "body_size", "1", "\"x\"", "[1]", "json.big", "json.part"]),
        operator in prop::sample::select(vec!["==", "!=", "<", ">=", "+", "-", "*", "/", "%", "in", "&&", "||"]),
        right in prop::sample::select(vec!["json.n", "json.text", "json.list", "json.job", "json.no", "attr.missing", "0", "-1", "9223372036854775807", "2.0"]),
    ) {
        for rule in [format!("{left} {operator} {right}"), format!("({left} {operator} {right}) == json.n")] {
            if let Ok(router) = compile(&json!([{ "when": rule, "to": to("a") }])) {
                router.plan(&event());
            }
        }
    }

    #[test]
    fn the_short_form_says_what_the_interpreter_says(status in "[a-c]", wanted in "[a-c]", kind in "[a-c]") {
        let event = TestEvent::new("1").attribute("status", &status).event_type(&kind).event();
        let short = format!("attr.status == \"{wanted}\" && type == \"a\"");
        let long = format!("!(!(attr.status == \"{wanted}\") || !(type == \"a\"))");
        prop_assert_eq!(result_of(&short, &event), result_of(&long, &event));
    }
}
