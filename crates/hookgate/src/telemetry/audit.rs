//! The audit trail: what became of each event, one JSON line for each step, so that "what happened to X" is one lookup.
//!
//! It is written by a thread of its own, a line at a time: a disk that hangs holds up no answer, lines that find no place in
//! the queue are counted, and the end of the process by force costs at most those that were in it. It is no part of the
//! promise to senders: that is the spool's.

use std::{
    fs,
    io::{self, BufRead, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use hookgate_core::{
    auth::Proof,
    event::Event,
    observe::{Observation, Observer},
};
use metrics::Counter;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_appender::{
    non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard},
    rolling::{RollingFileAppender, Rotation},
};

/// Lines that wait to be written, at most. Some 20 MB if the disk stands still.
const LINES_MAX: usize = 50_000;

/// How the names of the files begin and end; between them are the machine's name and the day.
const FILE_PREFIX: &str = "audit";
const FILE_SUFFIX: &str = "jsonl";

/// A day.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The `[audit]` table. A change takes effect at the next start.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditConfig {
    /// The directory for the trail; made when it is not there. No default. Replicas may share one: each writes a file of its own
    /// for each day.
    pub(crate) dir: PathBuf,
    /// How many days are kept, of this process and of all others that wrote there. Default: 30.
    #[serde(default = "keep_days", deserialize_with = "hookgate_core::config::count")]
    pub(crate) keep_days: usize,
}

fn keep_days() -> usize {
    30
}

/// One step, as a line has it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// When, in UTC (RFC 3339).
    pub(crate) at: String,
    /// The machine, or pod.
    instance: String,
    #[serde(flatten)]
    pub(crate) step: Step,
}

/// What happened.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(crate) enum Step {
    /// A broker has a message.
    Stored {
        source: String,
        event_id: String,
        route: String,
        sink: String,
        target: String,
        /// Stream, partition or file.
        place: String,
        /// Sequence number or offset in it.
        offset: u64,
        /// Whether the broker knew it already and stored nothing.
        duplicate: bool,
        attempt: u32,
        /// Whether it came from the spool.
        spooled: bool,
    },
    /// The sender was answered, or is gone.
    Answered {
        source: String,
        event_id: String,
        outcome: String,
        body_bytes: usize,
        /// The first eight bytes of the body's SHA-256.
        body_sha256_8: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        trace: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cause: Option<String>,
    },
    /// A message is not tried again by itself.
    DeadLettered { source: String, event_id: String, sink: String, reason: String, cause: String },
    /// Another config is in use.
    ConfigReplaced,
    /// Another config could not be used.
    ConfigKept { problems: String },
}

/// Writes the trail.
pub(super) struct Audit {
    instance: String,
    lines: NonBlocking,
    lost: ErrorCounter,
    /// Waits for what is in the queue when it is dropped.
    writing: Mutex<Option<WorkerGuard>>,
}

/// Counts what the disk does not take, and removes what is too old.
struct Counted {
    file: RollingFileAppender,
    failures: Counter,
    /// The last line was cut short.
    is_torn: bool,
    dir: PathBuf,
    keep_days: usize,
    /// Of the last look for what is too old.
    pruned_on: String,
}

impl Counted {
    fn prune(&mut self) {
        let now = SystemTime::now();
        let today = day(now);
        if self.pruned_on == today {
            return;
        }
        self.pruned_on = today;
        let kept = u32::try_from(self.keep_days).unwrap_or(u32::MAX);
        let Some(oldest) = now.checked_sub(DAY.saturating_mul(kept.saturating_sub(1))).map(day) else { return };
        // Those of processes that are no more too: pods have other names each time. What cannot be removed is no reason to stop.
        for file in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if day_of(&file.path()).is_some_and(|day| day < oldest) {
                let _gone = fs::remove_file(file.path());
            }
        }
    }
}

/// The day in UTC, like `2026-11-28`; days are in the order of their texts.
fn day(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()[..10].to_owned()
}

/// The day that is in the name of a file of a trail.
fn day_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_prefix(FILE_PREFIX)?.strip_suffix(FILE_SUFFIX)?.strip_suffix('.')?;
    let (_, day) = name.rsplit_once('.')?;
    let is_day = day.len() == 10 && day.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    is_day.then(|| day.to_owned())
}

impl Write for Counted {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.prune();
        // What the disk does not take is gone and counted, not tried for ever; the next line begins as one.
        let end_of_torn: &[u8] = if self.is_torn { b"\n" } else { b"" };
        let written = self.file.write_all(end_of_torn).and_then(|()| self.file.write_all(line));
        self.is_torn = written.is_err();
        if self.is_torn {
            self.failures.increment(1);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Audit {
    /// Begins a trail in the directory that `config` names. `failures` counts what cannot be written.
    ///
    /// # Errors
    /// When the directory cannot be made or written to.
    pub(super) fn start(config: &AuditConfig, failures: Counter) -> io::Result<Self> {
        fs::create_dir_all(&config.dir)?;
        let instance = instance();
        let file = RollingFileAppender::builder()
            .rotation(Rotation::DAILY)
            .filename_prefix(format!("{FILE_PREFIX}.{instance}"))
            .filename_suffix(FILE_SUFFIX)
            .build(&config.dir)
            .map_err(io::Error::other)?;
        let builder = NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).lossy(true).thread_name("audit");
        let (dir, keep_days) = (config.dir.clone(), config.keep_days);
        // The process before may have been killed in the middle of a line; an empty one is none.
        let counted = Counted { file, failures, is_torn: true, dir, keep_days, pruned_on: String::new() };
        let (lines, writing) = builder.finish(counted);
        Ok(Self { instance, lost: lines.error_counter(), lines, writing: Mutex::new(Some(writing)) })
    }

    /// Waits for the lines in the queue, for a second or so. Blocks; what comes later is not written.
    pub(super) fn close(&self) {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(writing);
    }

    /// Lines that found no place in the queue, so far.
    pub(super) fn lost(&self) -> u64 {
        self.lost.dropped_lines() as u64
    }

    fn write(&self, step: Step) {
        let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let entry = Entry { at, instance: self.instance.clone(), step };
        let mut line = serde_json::to_vec(&entry).expect("text and numbers are JSON");
        line.push(b'\n');
        // It never waits and never fails: what has no place is counted.
        let _taken = self.lines.clone().write(&line);
    }
}

/// What this process is called: the pod's name in Kubernetes.
pub(super) fn instance() -> String {
    let name = std::env::var("HOSTNAME").ok().or_else(|| fs::read_to_string("/proc/sys/kernel/hostname").ok());
    let name = name.unwrap_or_default();
    let plain: String = name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    if plain.is_empty() { "hookgate".to_owned() } else { plain }
}

impl Observer for Audit {
    fn observe(&self, observation: &Observation<'_>) {
        match observation {
            Observation::PublishAttempted { sink, message, position: Some(position), attempt, .. } => {
                let (event, leg) = (&*message.event, &message.leg);
                self.write(Step::Stored {
                    source: event.source.to_string(),
                    event_id: event.id.to_string(),
                    route: leg.route.to_string(),
                    sink: sink.to_string(),
                    target: leg.target.to_string(),
                    place: position.place.to_string(),
                    offset: position.offset,
                    duplicate: position.duplicate,
                    attempt: *attempt,
                    spooled: matches!(event.proof(), Proof::Spooled),
                });
            }
            Observation::EventFinished { source, event: Some(event), outcome, cause, .. } => {
                let Event { id, body, fingerprint, trace, .. } = event;
                self.write(Step::Answered {
                    source: source.to_string(),
                    event_id: id.to_string(),
                    outcome: outcome.label().to_owned(),
                    body_bytes: body.len(),
                    body_sha256_8: format!("{fingerprint:?}"),
                    trace: trace.as_ref().map(|trace| trace.parent.clone()),
                    cause: cause.map(ToString::to_string),
                });
            }
            Observation::DeadLettered { sink, source, event_id, reason, cause } => self.write(Step::DeadLettered {
                source: source.to_string(),
                event_id: (*event_id).to_owned(),
                sink: sink.to_string(),
                reason: reason.label().to_owned(),
                cause: cause.to_string(),
            }),
            Observation::ConfigReplaced { .. } => self.write(Step::ConfigReplaced),
            Observation::ConfigKept { problems } => self.write(Step::ConfigKept { problems: problems.to_string() }),
            _ => {}
        }
    }
}

/// Every entry in `dir` that is about an event whose id has `part` in it, in the order of time.
///
/// # Errors
/// When the directory or a file cannot be read.
pub(crate) fn find(dir: &Path, part: &str, source: Option<&str>) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        if day_of(&path).is_none() {
            continue;
        }
        for line in io::BufReader::new(fs::File::open(&path)?).split(b'\n') {
            let line = line?;
            // The end of a process can cut a line short, in the middle of a letter too.
            let Ok(entry) = serde_json::from_slice::<Entry>(&line) else { continue };
            let about = entry.step.about();
            let is_meant = |(from, id): (&str, &str)| id.contains(part) && source.is_none_or(|source| source == from);
            if about.is_some_and(is_meant) {
                found.push(entry);
            }
        }
    }
    found.sort_by(|one, other| one.at.cmp(&other.at));
    Ok(found)
}

impl Step {
    /// The source and the id of the event.
    fn about(&self) -> Option<(&str, &str)> {
        match self {
            Self::Stored { source, event_id, .. }
            | Self::Answered { source, event_id, .. }
            | Self::DeadLettered { source, event_id, .. } => Some((source, event_id)),
            Self::ConfigReplaced | Self::ConfigKept { .. } => None,
        }
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { at, instance, step } = self;
        write!(f, "{at}  {instance}  ")?;
        match step {
            Step::Stored { source, event_id, route, sink, target, place, offset, duplicate, attempt, spooled } => {
                let how = match (duplicate, spooled) {
                    (true, _) => ", which it had already",
                    (false, true) => ", from the spool",
                    (false, false) => "",
                };
                write!(
                    f,
                    "stored    {source} {event_id}: {sink} has it at {place}:{offset}{how} ({target}, route {route}, attempt {attempt})"
                )
            }
            Step::Answered { source, event_id, outcome, body_bytes, cause, .. } => {
                write!(f, "answered  {source} {event_id}: {outcome}, {body_bytes} bytes")?;
                cause.iter().try_for_each(|cause| write!(f, " ({cause})"))
            }
            Step::DeadLettered { source, event_id, sink, reason, cause } => {
                write!(f, "dead      {source} {event_id}: {sink} will not take it: {reason} ({cause})")
            }
            Step::ConfigReplaced => f.write_str("config    another one is in use"),
            Step::ConfigKept { problems } => write!(f, "config    another one could not be used: {problems}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use metrics::Counter;

    use super::*;

    #[test]
    fn what_is_too_old_goes_whoever_wrote_it_and_a_torn_line_hides_no_other() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (now, name) = (SystemTime::now(), |instance: &str, at| format!("audit.{instance}.{}.jsonl", day(at)));
        let answered = r#"{"at":"2026-11-28T00:00:00.000Z","instance":"a","step":"answered","source":"s","event_id":"old","outcome":"delivered","body_bytes":1,"body_sha256_8":""}"#;
        let torn = [answered.as_bytes(), b"\n{\"at\":\"2026\xc3"].concat();
        for (instance, age) in [("gone", 5), ("gone-1", 2), ("here", 1)] {
            fs::write(dir.path().join(name(instance, now - DAY * age)), &torn).expect("writable");
        }
        fs::write(dir.path().join("audit.notes.jsonl"), "not ours").expect("writable");
        let config = AuditConfig { dir: dir.path().to_owned(), keep_days: 3 };
        let audit = Audit::start(&config, Counter::noop()).expect("writable");
        fs::write(dir.path().join(name(&audit.instance, now)), b"{\"at\":\"2026\xc3").expect("writable");
        audit.write(Step::ConfigReplaced);
        let problems = "x".to_owned();
        audit.write(Step::ConfigKept { problems });
        audit.close();
        let left: Vec<_> =
            fs::read_dir(dir.path()).expect("it is there").flatten().map(|file| file.file_name()).collect();
        assert_eq!(left.len(), 4, "{left:?}");
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("audit.gone.")), "{left:?}");
        assert_eq!(find(dir.path(), "old", None).expect("readable").len(), 2, "beside torn lines");
        let today = fs::read(dir.path().join(name(&audit.instance, now))).expect("it is there");
        assert_eq!(
            today.split(|byte| *byte == b'\n').filter(|line| serde_json::from_slice::<Entry>(line).is_ok()).count(),
            2,
            "all of them"
        );
    }
}
