use super::*;

const GOOD: &str = r#"
    [server]
    reply_deadline = "2s"
    [sources.openclaw]
    path = "/openclaw/webhook"
    preset = "openclaw"
    verify = [{ scheme = "bearer", secrets = [{ env = "OPENCLAW_TOKEN" }] }]
    [sinks.events]
    type = "file"
    dir = "data/events"
    [[routes]]
    when = 'source == "openclaw"'
    to = [{ sink = "events" }]
"#;

fn load_text(text: &str, environment: &[(&str, &str)]) -> Result<Config, Problems> {
    let file = tempfile::NamedTempFile::with_suffix(".toml").expect("a temporary file");
    std::fs::write(file.path(), text).expect("a writable file");
    load(file.path(), environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn problems(text: &str, environment: &[(&str, &str)]) -> Vec<(String, String)> {
    let problems = load_text(text, environment).expect_err("a config with problems");
    problems.0.into_iter().map(|located| (located.key, located.message)).collect()
}

#[test]
fn all_problems_are_told_at_once_with_where_they_were_set() {
    let text = r#"
        [server]
        listne = "0.0.0.0:1"
        reply_deadline = 2500
        max_body = "2 Mebibytes"
        [sourcse.a]
        path = "/a"
        [sources.b]
        pth = "/b"
        verify = [{ scheme = "beaerr", secrets = [] }]
        [sinks.x]
        type = "flie"
        [[routes]]
        to = [{ sink = "x", requried = true }]
    "#;
    let found = load_text(text, &[("HOOKGATE_DEDUP__MEMORY_ENTRIES", "none")]).expect_err("many problems").to_string();
    for part in [
        r#"server.listne: there is no key "listne"; did you mean "listen"?"#,
        r#"server.reply_deadline: "2500" is not a duration"#,
        r#"server.max_body: "2 Mebibytes" is not a size"#,
        r#"sourcse: there is no table "sourcse"; did you mean "sources"?"#,
        r#"sources.b.pth: there is no key "pth"; did you mean "path"?"#,
        "sources.b.path: is missing",
        r#"there is no value "beaerr"; did you mean "bearer"?"#,
        r#"sinks.x.type: there is no sink type "flie"; did you mean "file"?"#,
        r#"routes[0].to[0].requried: there is no key "requried"; did you mean "required"?"#,
        "dedup.memory_entries: \"none\" is not a whole number",
        "environment variable HOOKGATE_DEDUP__MEMORY_ENTRIES: dedup.memory_entries",
        ".toml:3:9: server.listne",
        "     3 |         listne = …\n       |         ^^^^^^^^^^",
    ] {
        assert!(found.contains(part), "{part} is missing in:\n{found}");
    }
    assert!(found.contains("10 problems"), "each once:\n{found}");
}

#[test]
fn the_environment_overrides_the_file_down_into_lists() {
    let environment = [
        ("HOOKGATE_SERVER__LISTEN", "127.0.0.1:1234"),
        ("HOOKGATE_DEDUP__MEMORY_ENTRIES", "17"),
        ("HOOKGATE_SOURCES__OPENCLAW__VERIFY__0__SECRETS__0", "12345"),
        ("HOOKGATE_ROUTES__0__TO__0__REQUIRED", "true"),
        ("HOOKGATE_SOURCES__OTHER", "{ path = \"/other\", verify = [] }"),
    ];
    let config = load_text(GOOD, &environment).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.server.listen.port(), 1234);
    assert_eq!(config.server.reply_deadline.as_secs(), 2, "from the file still");
    assert_eq!(config.dedup.memory_entries, 17);
    assert_eq!(config.sources["other"].path, "/other");
    let shown = format!("{:?}", config.sources["openclaw"].verify);
    assert!(shown.contains("[redacted]"), "the whole entry is replaced by a literal: {shown}");
}

#[test]
fn a_secret_of_digits_is_a_secret() {
    for secret in ["12345", "true", "\"1e5\"", "0x10"] {
        let text = GOOD.replace("{ env = \"OPENCLAW_TOKEN\" }", secret);
        let config = load_text(&text, &[]).unwrap_or_else(|problems| panic!("{secret}: {problems}"));
        assert!(!format!("{config:?}").contains("12345"), "and is not printed");
    }
}

#[test]
fn what_kubernetes_injects_for_a_service_of_our_name_is_not_ours() {
    let environment =
        [("HOOKGATE_PORT", "tcp://10.0.0.1:80"), ("HOOKGATE_SERVICE_HOST", "10.0.0.1"), ("HOOKGATE_PORT_80_TCP", "x")];
    assert!(load_text(GOOD, &environment).is_ok());
    let found = problems(GOOD, &[("HOOKGATE_SERVRE__LISTEN", "127.0.0.1:1")]);
    assert_eq!(found[0].0, "servre", "but a misspelt override is told");
}

#[test]
fn a_missing_file_says_how_to_name_one() {
    let problems = load(Path::new("no/such/relay.toml"), std::iter::empty()).expect_err("no file").to_string();
    assert!(problems.contains("no/such/relay.toml") && problems.contains("--config"), "{problems}");
}

#[test]
fn the_shipped_config_is_good() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../relay.toml");
    load(&shipped, std::iter::empty()).unwrap_or_else(|problems| panic!("{problems}"));
}

#[test]
fn no_mistake_makes_an_error_show_a_secret() {
    let secrets = "secrets = [{ env = \"OPENCLAW_TOKEN\" }]";
    for mistake in ["secrets = \"hunter2\"", "secrets = [[\"hunter2\"]]", "secrets = [\"hunter2]", "secrets = hunter2"]
    {
        let found = load_text(&GOOD.replace(secrets, mistake), &[]).expect_err(mistake).to_string();
        assert!(!found.contains("hunter2"), "{found}");
        assert!(found.contains(".toml:7:"), "and says where: {found}");
    }
}

#[test]
fn the_table_of_traces_is_for_builds_that_can_export_them() {
    let text = format!("{GOOD}[traces]\nendpoint = \"http://collector:4318\"\n");
    let set = [("HOOKGATE_TRACES__SAMPLE", "0.5")];
    match cfg!(feature = "otlp") {
        true => {
            let traces = load_text(&text, &set).ok().and_then(|config| config.traces).expect("a table of traces");
            assert_eq!((&*traces.endpoint, traces.sample), ("http://collector:4318", 0.5));
        }
        false => {
            let advice = "is not in this build of hookgate; build it with --features otlp".to_owned();
            assert_eq!(problems(&text, &set), [("traces".to_owned(), advice)]);
        }
    }
}
