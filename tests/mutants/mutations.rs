//! What is broken in which file, and the program that has it all.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The variable that says which mutation is on. Not one of hookgate's own, which are keys of its config.
pub(crate) const MUTANT: &str = "MUTANT";

struct Mutation {
    name: &'static str,
    file: &'static str,
    original: &'static str,
    /// Instead of it; `{on}` is whether the mutation is on.
    mutated: &'static str,
}

const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "mark-first",
        file: "crates/core/src/dedup/shared.rs",
        original: "                    Ok(Held::ByUs) => {\n",
        mutated: "                    Ok(Held::ByUs) => {
                        if {on} {
                            remote.held = false;
                            let _ = self.stores.here().commit(&[(key, Fingerprint::from_bytes([0; 8]))], self.window).await;
                        }
",
    },
    Mutation {
        name: "success-in-flight",
        file: "crates/core/src/dedup/shared.rs",
        original: "                    Ok(Held::ByOther { holder, lease }) => (holder, lease),\n",
        mutated: "                    Ok(Held::ByOther { .. }) if {on} => {
                        remote.held = false;
                        return SharedClaim::Accepted(Fingerprint::from_bytes([0; 8]));
                    }
                    Ok(Held::ByOther { holder, lease }) => (holder, lease),
",
    },
    Mutation {
        name: "early-ack",
        file: "crates/core/src/pipeline.rs",
        original: "        let publisher = self.publisher(message);
        if message.leg.ack == Ack::Spool",
        mutated: "        let publisher = self.publisher(message);
        if {on} {
            let (publisher, later) = (Arc::clone(publisher), message.clone());
            tokio::spawn(async move { publisher.publish(&later, deadline).await.ok() });
            let position = crate::sink::Position { place: \"nowhere\".into(), offset: 0, duplicate: false };
            return Ok(Safe::Receipt(Receipt::acknowledged(message, position)));
        }
        if message.leg.ack == Ack::Spool",
    },
    Mutation {
        name: "not-mandatory",
        file: "crates/sink-amqp/src/lane.rs",
        original: "channel.basic_publish(exchange, routing_key, MANDATORY, &body, properties)",
        mutated: "channel.basic_publish(exchange, routing_key, BasicPublishOptions { mandatory: !{on}, ..MANDATORY }, &body, properties)",
    },
    Mutation {
        name: "ack-before-fsync",
        file: "crates/spool/src/committer.rs",
        original: "        if let Err(source) = disk.sync(&active.file) {
            self.abandon();",
        mutated: "        if let Err(source) = if {on} { Ok(()) } else { disk.sync(&active.file) } {
            self.abandon();",
    },
    Mutation {
        name: "repeated-fsync",
        file: "crates/spool/src/committer.rs",
        original: "        let begun = Instant::now();
        if let Err(source) =",
        mutated: "        let begun = Instant::now();
        if {on} {
            // As if a later one said anything about what the first one could not write. Until the disk works again, it fails as
            // well: only then does it say what is not so.
            while disk.sync(&active.file).is_err() {
                thread::sleep(Duration::from_millis(10));
            }
        }
        if let Err(source) =",
    },
];

/// The sources that a build needs.
const SOURCES: &[&str] = &["Cargo.toml", "Cargo.lock", "crates", "docs", "relay.toml", "tests"];

/// The program with all mutations, built when it is asked for first.
pub(crate) fn mutants() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let dir = workspace.join("target/mutants");
    let copy = dir.join("workspace");
    fs::create_dir_all(&copy).expect("a writable directory");
    for source in SOURCES {
        copy_mutated(&workspace, &copy, Path::new(source));
    }
    // Its own target directory: cargo would take this workspace's crates for that one's.
    let target = dir.join("target");
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--locked", "--quiet", "-p", "hookgate", "--target-dir"]).arg(&target).current_dir(&copy);
    let built = command.status().expect("cargo can be run");
    assert!(built.success(), "the mutants in {} do not compile: a mutation no longer fits", copy.display());
    target.join("debug/hookgate")
}

/// Copies what has changed, so that little is built anew.
fn copy_mutated(from: &Path, to: &Path, path: &Path) {
    let (source, copy) = (from.join(path), to.join(path));
    if source.is_dir() {
        fs::create_dir_all(&copy).expect("a writable directory");
        let entries = fs::read_dir(&source).expect("it is a directory").map(|entry| entry.expect("readable"));
        return entries.for_each(|entry| copy_mutated(from, to, &path.join(entry.file_name())));
    }
    let mut bytes = fs::read(&source).expect("readable");
    for mutation in MUTATIONS.iter().filter(|mutation| Path::new(mutation.file) == path) {
        let Mutation { name, original, mutated, .. } = mutation;
        let text = String::from_utf8(bytes).expect("source code is text");
        assert_eq!(text.matches(original).count(), 1, "the mutation {name} does not fit {}", path.display());
        let on = format!("std::env::var(\"{MUTANT}\").is_ok_and(|mutant| mutant == \"{name}\")");
        bytes = text.replace(original, &mutated.replace("{on}", &on)).into_bytes();
    }
    if fs::read(&copy).ok().as_ref() != Some(&bytes) {
        fs::write(&copy, bytes).expect("a writable directory");
    }
}
