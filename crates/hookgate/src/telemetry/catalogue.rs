//! `docs/metrics.md`, made of what a process exposes. The test here fails when it is behind; with `HOOKGATE_WRITE=1` in the
//! environment it writes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::Path,
    time::Duration,
};

use hookgate_core::{
    auth::Credential,
    event::{SinkId, SourceId},
    observe::{ClientState, Observation, Observer},
};

use super::metrics::Metrics;

/// What stands for names of the config, which are no part of the page.
const NAME: &str = "NAME";

#[derive(Default)]
struct Metric {
    kind: String,
    help: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

#[test]
fn the_page_of_metrics_is_what_a_process_exposes() {
    let metrics = Metrics::new(true);
    let sink = SinkId::new(0, NAME);
    metrics.make_room(std::slice::from_ref(&sink));
    let credential = Credential { scheme: "hmac-sha256", secret: NAME.into() };
    metrics.adopt(&[(SourceId::new(0, NAME), vec![credential])], &[NAME.into()]);
    let state = ClientState { queued_messages: 0, queued_bytes: 0, brokers_up: 0, round_trip_p99: Duration::ZERO };
    metrics.observe(&Observation::SinkClient { sink: &sink, state });
    metrics.observe(&Observation::CertificateServed { expires: None });
    let made = page(&read(&metrics.render(0, None)));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    if std::env::var_os("HOOKGATE_WRITE").is_some() {
        std::fs::write(&file, &made).expect("writable");
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(found == made, "docs/metrics.md is behind the code; write it by HOOKGATE_WRITE=1");
}

/// The metrics in a text of the exposition format.
fn read(text: &str) -> BTreeMap<String, Metric> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help.clone_into(&mut metrics.entry(name.to_owned()).or_default().help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kind.clone_into(&mut metrics.entry(name.to_owned()).or_default().kind);
        } else if let Some((series, labels)) = line.split_once('{') {
            let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end));
            let name = of_histogram.filter(|name| metrics.contains_key(*name)).unwrap_or(series);
            let metric = metrics.entry(name.to_owned()).or_default();
            for (label, value) in labels.split('"').collect::<Vec<_>>().chunks_exact(2).map(|pair| (pair[0], pair[1])) {
                let label = label.trim_matches([',', '=']);
                metric.labels.entry(label.to_owned()).or_default().insert(value.to_owned());
            }
        }
    }
    metrics
}

fn page(metrics: &BTreeMap<String, Metric>) -> String {
    let mut made = String::from(
        "# Metrics\n\nMade of the code by its tests. At `/metrics` of the admin port, in Prometheus' text format. Every series is there from the start, so \
         that the first failure is an increase from zero. Labels come from the config and from closed lists, never from senders. What to alert on: \
         [deploy/monitoring](../deploy/monitoring); what to do then: [runbooks](runbooks).\n\n\
         For each source, `hookgate_events_received_total` is the sum of `hookgate_events_total` over all outcomes and of `hookgate_events_in_flight`.\n\n\
         | Metric | Type | Labels | |\n|---|---|---|---|\n",
    );
    for (name, Metric { kind, help, labels }) in metrics {
        assert!(!help.is_empty() && !kind.is_empty(), "{name} is not described");
        let described = labels.iter().filter(|(label, _)| *label != "le").map(|(label, values)| {
            let listed: Vec<&str> = values.iter().map(String::as_str).collect();
            let open = values.contains(NAME) || matches!(label.as_str(), "scheme" | "version");
            if open { format!("`{label}`") } else { format!("`{label}`: {}", listed.join(", ")) }
        });
        let described = described.collect::<Vec<_>>().join("<br>");
        writeln!(made, "| `{name}` | {kind} | {described} | {help} |").expect("memory");
    }
    made
}
