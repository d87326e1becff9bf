//! What is known about senders: one row each. Anything written beside `preset = "…"` in the config wins.

use crate::{
    config::ByteLimit,
    identity::{FieldEquals, FieldRef, IdCandidate, TypeRule},
};

/// What a preset fills in.
#[derive(Debug)]
pub struct Preset {
    /// Its name in the config.
    pub name: &'static str,
    /// Candidates for the event id; each list is one candidate. `body-sha256` always follows.
    event_id: &'static [&'static [&'static str]],
    /// Event types with what must be present and what must be equal; the first that holds is taken.
    event_types: &'static [TypeRow],
    /// The type of an event that fits no row.
    pub default_type: &'static str,
    /// Attributes with the places to look at, in order.
    attributes: &'static [(&'static str, &'static [&'static str])],
    /// Longest body that is accepted.
    pub max_body: ByteLimit,
}

#[derive(Debug)]
struct TypeRow {
    name: &'static str,
    present: &'static [&'static str],
    equal: &'static [(&'static str, &'static str)],
}

/// Every preset.
pub const PRESETS: &[Preset] = &[OPENCLAW];

/// OpenClaw's cron webhooks, releases 2026.2.17 to 2026.9.6.
///
/// A run is named by `jobId` and `runAtMs` in every release; `runId` is absent from most of them. One run may cause a
/// finished event, a completion event and an alert, so the id must hold what kind of event it is: `action` and
/// `completionStatus` tell the first two apart, `jobName` and `message` the alerts (a failure and a recovery of one run
/// differ in the message only). Alerts of 2026.3.2 to 2026.7.35 have no `runAtMs`; their body hash is all there is.
///
/// Source: the compiled releases of the npm package `openclaw`, and requests captured from six of them.
const OPENCLAW: Preset = Preset {
    name: "openclaw",
    event_id: &[
        &["/action", "/completionStatus", "/jobId", "/runId"],
        &["/action", "/completionStatus", "/jobId", "/runAtMs"],
        &["/action", "/jobId", "/runId"],
        &["/action", "/jobId", "/runAtMs"],
        &["/jobName", "/message", "/jobId", "/runAtMs"],
    ],
    event_types: &[
        TypeRow {
            name: "openclaw.run.completion",
            present: &["/jobId", "/completionStatus"],
            equal: &[("/action", "finished")],
        },
        TypeRow { name: "openclaw.run.finished", present: &["/jobId"], equal: &[("/action", "finished")] },
        // What `delivery.failureDestination` got until 2026.7.35; since then it gets the alert's form.
        TypeRow { name: "openclaw.run.failed", present: &["/jobId", "/jobName", "/message", "/status"], equal: &[] },
        TypeRow { name: "openclaw.alert", present: &["/jobId", "/jobName", "/message"], equal: &[] },
    ],
    default_type: "openclaw.unknown",
    attributes: &[
        ("job", &["/jobId"]),
        ("name", &["/job/name", "/jobName"]),
        ("status", &["/status"]),
        ("action", &["/action"]),
        ("completion", &["/completionStatus"]),
        ("run_at_ms", &["/runAtMs"]),
    ],
    // A command job that printed 2 MB made a body of 4,001,119 bytes: the output stands in it twice.
    max_body: ByteLimit::mib(16),
};

impl Preset {
    /// The preset called `name`.
    pub fn find(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// Candidates for the event id, in the config's form.
    pub fn event_id(&self) -> Vec<IdCandidate> {
        let fields = self.event_id.iter().map(|candidate| IdCandidate::Fields(fields(candidate)));
        fields.chain([IdCandidate::BodySha256]).collect()
    }

    /// Rules for the event type, in the config's form.
    pub fn event_types(&self) -> Vec<TypeRule> {
        let equals = |(place, value): &(&str, &str)| FieldEquals { field: field(place), value: (*value).to_owned() };
        let rule = |row: &TypeRow| TypeRule {
            name: row.name.to_owned(),
            present: fields(row.present),
            equal: row.equal.iter().map(equals).collect(),
        };
        self.event_types.iter().map(rule).collect()
    }

    /// Attributes and their places, in the config's form.
    pub fn attributes(&self) -> Vec<(String, Vec<FieldRef>)> {
        self.attributes.iter().map(|(name, places)| ((*name).to_owned(), fields(places))).collect()
    }
}

fn fields(places: &[&str]) -> Vec<FieldRef> {
    places.iter().map(|place| field(place)).collect()
}

fn field(place: &str) -> FieldRef {
    FieldRef::parse(place).expect("every preset is built by a test")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_can_be_built() {
        for preset in PRESETS {
            assert!(!preset.event_id().is_empty(), "{}", preset.name);
            assert!(!preset.event_types().is_empty(), "{}", preset.name);
            assert!(!preset.attributes().is_empty(), "{}", preset.name);
        }
    }
}
