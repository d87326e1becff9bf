//! The arrows between crates point down only, and what each must not know it cannot reach.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// What each crate may depend on among ours. A new arrow needs a decision in `docs/adr`.
const ALLOWED: &[(&str, &[&str])] = &[
    ("hookgate-bench", &["hookgate-testkit"]),
    ("hookgate-core", &[]),
    ("hookgate-http", &["hookgate-core"]),
    ("hookgate-redis", &["hookgate-core"]),
    ("hookgate-sink-amqp", &["hookgate-core"]),
    ("hookgate-sink-file", &["hookgate-core"]),
    ("hookgate-sink-kafka", &["hookgate-core"]),
    ("hookgate-sink-nats", &["hookgate-core"]),
    ("hookgate-sink-stdout", &["hookgate-core"]),
    ("hookgate-spool", &[]),
    ("hookgate-testkit", &["hookgate-core"]),
    (
        "hookgate",
        &[
            "hookgate-core",
            "hookgate-http",
            "hookgate-redis",
            "hookgate-sink-amqp",
            "hookgate-sink-file",
            "hookgate-sink-kafka",
            "hookgate-sink-nats",
            "hookgate-sink-stdout",
            "hookgate-spool",
        ],
    ),
];

/// What is measured beside hookgate is made of the same libraries, by hand, and is not shipped.
const YARDSTICKS: &str = "hookgate-bench";

/// Libraries that one crate of ours alone may use.
const ONLY_IN: &[(&str, &str)] = &[
    ("axum", "hookgate-http"),
    ("hyper", "hookgate-http"),
    ("proxy-header", "hookgate-http"),
    ("async-nats", "hookgate-sink-nats"),
    ("lapin", "hookgate-sink-amqp"),
    ("rdkafka", "hookgate-sink-kafka"),
    ("redis", "hookgate-redis"),
    ("figment", "hookgate"),
    ("anyhow", "hookgate"),
    ("tracing", "hookgate"),
    ("metrics", "hookgate"),
    ("opentelemetry", "hookgate"),
    ("opentelemetry_sdk", "hookgate"),
    ("opentelemetry-otlp", "hookgate"),
];

/// Tokio features by which the domain could do I/O.
const IO_FEATURES: &[&str] = &["net", "fs", "process", "signal", "io-std", "full"];

#[test]
fn a_plain_cargo_run_starts_hookgate() {
    // Seen from the root, as whoever types it does: in a member the member is meant.
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(root).no_deps().exec().expect("cargo metadata");
    let targets = metadata.workspace_default_packages().into_iter().flat_map(|package| &package.targets);
    let programs: Vec<&str> = targets.filter(|target| target.is_bin()).map(|target| target.name.as_str()).collect();
    assert_eq!(programs, ["hookgate"], "the README's first command names none");
}

/// Each crate of ours with its normal dependencies and the features that it asks of each.
fn dependencies() -> BTreeMap<String, BTreeMap<String, Vec<String>>> {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo metadata runs");
    let normal = |package: &cargo_metadata::Package| {
        let normal = package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
        normal.map(|dependency| (dependency.name.clone(), dependency.features.clone())).collect()
    };
    metadata.packages.iter().map(|package| (package.name.to_string(), normal(package))).collect()
}

#[test]
fn arrows_point_down_only() {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    for (name, dependencies) in dependencies() {
        let allowed = allowed.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not in the table of arrows"));
        let ours: BTreeSet<&str> =
            dependencies.keys().map(String::as_str).filter(|name| name.starts_with("hookgate")).collect();
        let unexpected: Vec<_> = ours.iter().filter(|dependency| !allowed.contains(dependency)).collect();
        assert!(unexpected.is_empty(), "{name} must not depend on {unexpected:?}");
    }
}

#[test]
fn each_library_is_known_where_it_belongs_only() {
    for (name, dependencies) in dependencies().into_iter().filter(|(name, _)| name != YARDSTICKS) {
        for (library, home) in ONLY_IN.iter().filter(|(_, home)| *home != name) {
            assert!(!dependencies.contains_key(*library), "{name} must not know {library}; only {home} does");
        }
    }
}

#[test]
fn the_domain_asks_tokio_for_no_io() {
    let features = &dependencies()["hookgate-core"]["tokio"];
    let io: Vec<_> = features.iter().filter(|feature| IO_FEATURES.contains(&feature.as_str())).collect();
    assert!(io.is_empty(), "{io:?}");
}
