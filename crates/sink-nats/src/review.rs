//! What is unwise about a stream, for the operator.

use std::time::Duration;

use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, StorageType};
use hookgate_core::sink::Target;

/// A duplicate window shorter than this is likely to end before a sender has given up: JetStream's default.
const DUPLICATE_WINDOW_MIN: Duration = Duration::from_secs(120);

/// What is wrong or unwise about `stream` as the place for `targets`.
pub(crate) fn stream(stream: &StreamConfig, targets: &[Target]) -> Vec<String> {
    let name = &stream.name;
    let mut found = Vec::new();
    for target in targets {
        let Target::Subject(subject) = target else { continue };
        // A stream that gets its messages from others only listens on nothing.
        if !stream.subjects.iter().any(|filter| covers(filter, subject)) {
            let listens = stream.subjects.join(", ");
            found.push(format!(
                "the stream {name} does not listen on {subject} (x stands for values); it does on {listens}"
            ));
        }
    }
    let mut warn = |unwise: bool, words: &str| {
        if unwise {
            found.push(format!("the stream {name} {words}"));
        }
    };
    warn(
        stream.storage == StorageType::Memory,
        "is in memory: a restart of the server loses what it has acknowledged; storage = file",
    );
    warn(stream.num_replicas < 2, "has one replica: the loss of its disk loses what it has acknowledged; replicas = 3");
    warn(
        stream.duplicate_window < DUPLICATE_WINDOW_MIN,
        "has a duplicate window of less than two minutes: repeats that come later are stored again",
    );
    let unbounded = stream.max_age.is_zero() && stream.max_bytes <= 0 && stream.max_messages <= 0;
    warn(unbounded, "has no limit of age, bytes or messages: it grows until the disk is full, and then takes nothing");
    let bounded = stream.max_bytes > 0 || stream.max_messages > 0;
    warn(
        bounded && stream.discard == DiscardPolicy::Old,
        "makes room by discarding the oldest events, read or not; with discard = new it refuses, and senders are told",
    );
    found
}

/// Whether a stream that listens on `filter` takes a message to `subject`.
///
/// Source: NATS documentation, "Subject-Based Messaging", wildcards.
fn covers(filter: &str, subject: &str) -> bool {
    let (mut filter, mut subject) = (filter.split('.'), subject.split('.'));
    loop {
        match (filter.next(), subject.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(_)) => {}
            (Some(expected), Some(found)) if expected == found => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_cover_what_nats_says_they_do() {
        for (filter, subject, covered) in [
            ("a.b", "a.b", true),
            ("a.b", "a", false),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("*.b", "a.b", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
        ] {
            assert_eq!(covers(filter, subject), covered, "{filter} {subject}");
        }
    }

    #[test]
    fn a_good_stream_gives_no_cause_for_complaint_and_each_flaw_one() {
        let good = StreamConfig {
            name: "HOOKS".to_owned(),
            subjects: vec!["hooks.>".to_owned()],
            num_replicas: 3,
            duplicate_window: Duration::from_secs(7200),
            max_age: Duration::from_secs(3600),
            max_bytes: 1 << 30,
            discard: DiscardPolicy::New,
            ..StreamConfig::default()
        };
        let here = [Target::Subject("hooks.x.failed".to_owned())];
        assert_eq!(stream(&good, &here), [] as [&str; 0]);
        let elsewhere = [Target::Subject("other.x".to_owned())];
        assert!(stream(&good, &elsewhere)[0].contains("does not listen on other.x"));
        for (flawed, said) in [
            (StreamConfig { storage: StorageType::Memory, ..good.clone() }, "in memory"),
            (StreamConfig { num_replicas: 1, ..good.clone() }, "one replica"),
            (StreamConfig { duplicate_window: Duration::from_secs(1), ..good.clone() }, "duplicate window"),
            (StreamConfig { max_age: Duration::ZERO, max_bytes: -1, ..good.clone() }, "no limit"),
            (StreamConfig { discard: DiscardPolicy::Old, ..good.clone() }, "discarding the oldest"),
        ] {
            let found = stream(&flawed, &here);
            assert!(found.len() == 1 && found[0].contains(said), "{said}: {found:?}");
        }
    }
}
