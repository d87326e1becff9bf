//! Real faults: a disk that is full, system calls that fail, a process that is killed.
//!
//! The sink runs in a child process, which is this program again, with a script to follow ([`child`]): only so can
//! `strace` stand between it and the kernel, and a small disk be mounted for it alone. Where these tools are missing or
//! forbidden, a test says so and checks nothing.

mod support;

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use hookgate_core::{observe::Chain, sink::Sink};
use hookgate_testkit::process::{Process, wait_until};
use serde_json::json;
use support::{connect, connect_with, message, publish, stored_ids};
use tempfile::TempDir;

const SCRIPT: &str = "HOOKGATE_TEST_SCRIPT";
const DIR: &str = "HOOKGATE_TEST_DIR";
const LIMIT: Duration = Duration::from_secs(60);

/// Not a test of its own: what the child process does. Each line of the script is a command, and each of its answers a
/// line that begins with `> `.
#[tokio::test]
async fn child() {
    let (Ok(script), Ok(dir)) = (std::env::var(SCRIPT), std::env::var(DIR)) else { return };
    let (dir, ballast) = (PathBuf::from(&dir).join("events"), PathBuf::from(&dir).join("ballast"));
    let (sink, seen) = match connect_with(&dir, &json!({})).await {
        Ok(connected) => connected,
        Err(error) => return say(&Chain(&error).to_string()),
    };
    for line in script.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words[..] {
            ["publish", id, bytes] => match publish(&sink, &message(id, bytes.parse().expect("a number"))).await {
                Ok(position) => format!("{id} stored {} {}", position.place, position.offset),
                Err(error) => format!("{id} {:?} {:?}", error.kind, error.reason),
            },
            ["together", count] => {
                let messages: Vec<_> =
                    (0..count.parse().expect("a number")).map(|n| message(&format!("{n}"), 10)).collect();
                let publishes = messages.iter().map(|message| publish(&sink, message));
                let stored = futures_util::future::join_all(publishes).await.iter().filter(|done| done.is_ok()).count();
                format!("together {stored}")
            }
            ["flood"] => {
                for number in 0_u64.. {
                    publish(&sink, &message(&number.to_string(), 1000)).await.expect("the disk is well");
                    say(&format!("{number} stored"));
                }
                unreachable!("it floods until it is killed");
            }
            ["probe"] => match sink.probe(support::ample()).await {
                Ok(()) => "probe well".to_owned(),
                Err(error) => format!("probe {:?} {:?}", error.kind, error.reason),
            },
            ["fill"] => {
                let filled = File::create(&ballast).and_then(|mut file| io::copy(&mut io::repeat(b'x'), &mut file));
                format!("fill {:?}", filled.expect_err("no disk is endless").kind())
            }
            ["free"] => {
                fs::remove_file(&ballast).expect("it is there");
                "free".to_owned()
            }
            ["ids"] => format!("ids {}", stored_ids(&dir).join(",")),
            ["seen"] => seen.lines().join("\n> "),
            _ => panic!("{line} is no command"),
        };
        say(&answer);
    }
    sink.close(support::ample()).await;
}

fn say(answer: &str) {
    writeln!(io::stdout(), "> {answer}").expect("the log can be written to");
}

/// This program as a child that follows `script` in `dir`, started by `wrapper`, which is given its command line.
fn start(dir: &Path, script: &str, wrapper: &[&str]) -> Process {
    let this = std::env::current_exe().expect("this program has a path");
    let mut words = wrapper.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    words.push(this.to_string_lossy().into_owned());
    words.extend(["child", "--exact", "--nocapture"].map(str::to_owned));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env(SCRIPT, script).env(DIR, dir);
    Process::spawn("child", command, dir)
}

/// What the child has answered so far.
fn answers(process: &Process) -> Vec<String> {
    // The test harness puts words of its own before the first.
    let answer = |line: &str| line.split_once("> ").map(|(_, answer)| answer.to_owned());
    process.log().lines().filter_map(answer).collect()
}

/// Runs a script to its end and returns its answers.
async fn run(dir: &Path, script: &str, wrapper: &[&str]) -> Vec<String> {
    let mut process = start(dir, script, wrapper);
    let status = process.wait(LIMIT).await;
    assert!(status.success(), "{status}: {}", process.log());
    answers(&process)
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary directory can be made")
}

/// Whether `words` can be run here; if not, a line says so.
fn can_run(words: &[&str]) -> bool {
    let able = Command::new(words[0]).args(&words[1..]).output().is_ok_and(|output| output.status.success());
    if !able {
        eprintln!("skipped: this machine cannot run `{}`", words.join(" "));
    }
    able
}

// A full disk.

/// Runs a script on a disk of 256 KiB, or returns `None` where none can be mounted.
async fn run_on_small_disk(script: &str) -> Option<Vec<String>> {
    let apart = ["unshare", "--user", "--map-root-user", "--mount"];
    let mount = "mount -t tmpfs -o size=256k tmpfs \"$1\"";
    let dir = temporary();
    let here = dir.path().to_string_lossy();
    if !can_run(&[&apart[..], &["sh", "-c", mount, "sh", &here]].concat()) {
        return None;
    }
    let inside = format!("{mount} && shift && exec \"$@\"");
    Some(run(dir.path(), script, &[&apart[..], &["sh", "-c", &inside, "sh", &here]].concat()).await)
}

#[tokio::test]
async fn a_full_disk_is_unavailable_until_there_is_room_and_leaves_no_torn_line() {
    let script = "publish a 100\nprobe\nfill\npublish b 50000\npublish c 50000\nids\nprobe\nfree\nprobe\npublish d 10\nids\nseen";
    let Some(answers) = run_on_small_disk(script).await else { return };
    let (told, seen) = answers.split_at(11);
    let d = told[9].strip_prefix("d stored events-00000001.jsonl ").expect("the file is gone on with");
    assert!(d.parse::<u64>().is_ok_and(|offset| offset > 0), "{d}");
    assert_eq!(told[..3], ["a stored events-00000001.jsonl 0", "probe well", "fill StorageFull"]);
    assert_eq!(told[3..7], ["b Unavailable Full", "c Unavailable Full", "ids a", "probe Unavailable Full"]);
    assert_eq!([&told[7], &told[8], &told[10]], ["free", "probe well", "ids a,d"]);
    let [up, down, up_again] = seen else { panic!("{seen:?}") };
    assert_eq!([up, up_again], ["sink_up sink=events", "sink_up sink=events"]);
    assert!(down.starts_with("sink_down sink=events cause=write to ") && down.contains("free some space"), "{down}");
}

#[tokio::test]
async fn a_disk_that_is_full_at_the_first_event_is_unavailable_until_there_is_room() {
    let script = "fill\npublish a 10\nfree\npublish b 10\nids";
    let Some(answers) = run_on_small_disk(script).await else { return };
    let expected = ["fill StorageFull", "a Unavailable Full", "free", "b stored events-00000001.jsonl 0", "ids b"];
    assert_eq!(answers, expected);
}

// System calls that fail.

/// Runs a script with `strace` and these options; `{file}` and `{dir}` in them become paths. Returns answers and trace.
async fn run_traced(script: &str, options: &[&str]) -> Option<(Vec<String>, String)> {
    run_traced_in(&temporary(), script, options).await
}

/// The same in a directory that holds something already.
async fn run_traced_in(dir: &TempDir, script: &str, options: &[&str]) -> Option<(Vec<String>, String)> {
    if !can_run(&["strace", "-f", "-o", "/dev/null", "true"]) {
        return None;
    }
    let (events, trace) = (dir.path().join("events"), dir.path().join("trace"));
    let (events, file) = (events.to_string_lossy(), events.join("events-00000001.jsonl"));
    let in_place = |option: &&str| option.replace("{file}", &file.to_string_lossy()).replace("{dir}", &events);
    let mut words = ["strace", "-f", "-y", "-s", "120", "-o"].map(str::to_owned).to_vec();
    words.push(trace.to_string_lossy().into_owned());
    words.extend(options.iter().map(in_place));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let answers = run(dir.path(), script, &words).await;
    Some((answers, fs::read_to_string(trace).expect("strace has written it")))
}

const THREE: &str = "publish a 10\npublish b 10\npublish c 10\nids";

/// The first line of `trace` behind line `from` that has all `parts`.
fn find(trace: &str, from: usize, parts: &[&str]) -> usize {
    let found = trace.lines().skip(from).position(|line| parts.iter().all(|part| line.contains(part)));
    from + found.unwrap_or_else(|| panic!("no {parts:?} behind line {from} of\n{trace}"))
}

const FILE_CALLS: [&str; 2] = ["-e", "trace=openat,mkdir,mkdirat,pwrite64,write,ftruncate,fsync,fdatasync"];

#[tokio::test]
async fn a_receipt_follows_the_fsync_of_the_file_and_of_every_name_above_it() {
    let Some((_, trace)) = run_traced(THREE, &FILE_CALLS).await else { return };
    let made = find(&trace, 0, &["mkdir", "/events\""]);
    let named = find(&trace, made, &["fsync(", &format!("{}>", parent_in(&trace))]);
    let begun = find(&trace, named, &["openat", "events-00000001.jsonl", "O_CREAT"]);
    let mut from = find(&trace, begun, &["fsync(", "/events>"]);
    for id in ["a", "b", "c"] {
        let written = find(&trace, from, &["pwrite64(", &format!("x-test-id={id}\\\"")]);
        let synced = find(&trace, written, &["fdatasync(", "/events-00000001.jsonl>"]);
        let told = find(&trace, written, &["write(1", &format!("> {id} stored")]);
        assert!(synced < told, "{id} was told before it was synced:\n{trace}");
        from = told;
    }
}

/// The directory in which the events' own is made.
fn parent_in(trace: &str) -> &str {
    let made = trace.lines().nth(find(trace, 0, &["mkdir", "/events\""])).expect("it was just found");
    let path = made.split('"').nth(1).expect("its path is in quotes");
    path.strip_suffix("/events").expect("it is the one that was looked for")
}

#[tokio::test]
async fn what_a_crash_has_left_is_synced_before_anything_follows_it() {
    let dir = temporary();
    let events = dir.path().join("events");
    fs::create_dir(&events).expect("it can be made");
    fs::write(events.join("events-00000001.jsonl"), "{}\ntorn").expect("it can be written");
    let Some((answers, trace)) = run_traced_in(&dir, "publish a 10", &FILE_CALLS).await else { return };
    assert_eq!(answers, ["a stored events-00000001.jsonl 3"]);
    let aside = find(&trace, 0, &["openat", ".torn-3", "O_CREAT"]);
    let kept = find(&trace, aside, &["fsync(", ".torn-3>"]);
    let cut = find(&trace, kept, &["ftruncate(", "events-00000001.jsonl>"]);
    let mended = find(&trace, cut, &["fsync(", "events-00000001.jsonl>"]);
    let named = find(&trace, mended, &["fsync(", "/events>"]);
    find(&trace, named, &["pwrite64(", "x-test-id=a"]);
}

#[tokio::test]
async fn one_fsync_serves_all_that_wait_for_it() {
    let slow = ["-P", "{file}", "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=200000"];
    let Some((answers, trace)) = run_traced("together 1000", &slow).await else { return };
    assert_eq!(answers, ["together 1000"]);
    let syncs = trace.lines().filter(|line| line.contains("fdatasync(")).count();
    assert!(syncs <= 3, "{syncs} fsyncs:\n{trace}");
}

#[tokio::test]
async fn a_failed_fsync_is_unknown_and_its_file_is_never_touched_again() {
    let fail =
        ["-P", "{file}", "-e", "trace=fdatasync,fsync,pwrite64,ftruncate", "-e", "inject=fdatasync:error=EIO:when=2"];
    let Some((answers, trace)) = run_traced(THREE, &fail).await else { return };
    // That b can be read is the page cache's word only, and so nobody has a receipt for it.
    let expected =
        ["a stored events-00000001.jsonl 0", "b Unknown Other", "c stored events-00000002.jsonl 0", "ids a,b,c"];
    assert_eq!(answers, expected);
    let after = trace.split_once("INJECTED").expect("it was injected").1;
    assert!(!after.contains('('), "touched after its fsync had failed:\n{trace}");
}

#[tokio::test]
async fn a_failed_write_is_taken_back_and_the_file_is_gone_on_with() {
    let fail = ["-P", "{file}", "-e", "trace=pwrite64", "-e", "inject=pwrite64:error=EIO:when=2"];
    let Some((answers, _)) = run_traced(THREE, &fail).await else { return };
    let [a, b, c, ids] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!([a, b, ids], ["a stored events-00000001.jsonl 0", "b Unavailable Other", "ids a,c"]);
    assert!(c.starts_with("c stored events-00000001.jsonl "), "{c}");
}

#[tokio::test]
async fn a_failed_write_that_cannot_be_taken_back_is_unknown_and_its_file_is_abandoned() {
    let calls = "trace=pwrite64,ftruncate";
    let (write, truncate) = ("inject=pwrite64:error=EIO:when=2", "inject=ftruncate:error=EIO");
    let fail = ["-P", "{file}", "-e", calls, "-e", write, "-e", truncate];
    let Some((answers, _)) = run_traced(THREE, &fail).await else { return };
    let expected =
        ["a stored events-00000001.jsonl 0", "b Unknown Other", "c stored events-00000002.jsonl 0", "ids a,c"];
    assert_eq!(answers, expected);
}

#[tokio::test]
async fn a_file_whose_name_cannot_be_synced_takes_no_event() {
    let fail = ["-P", "{dir}", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1"];
    let Some((answers, _)) = run_traced(THREE, &fail).await else { return };
    let [a, b, c, ids] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!([a, b, ids], ["a Unavailable Other", "b stored events-00000001.jsonl 0", "ids b,c"]);
    assert!(c.starts_with("c stored events-00000001.jsonl "), "{c}");
}

// A directory that cannot be written to.

#[tokio::test]
async fn a_read_only_file_system_is_a_clear_error() {
    let apart = ["unshare", "--user", "--map-root-user", "--mount"];
    let mount = "mount -t tmpfs -o ro tmpfs \"$1\"";
    let (dir, disk) = (temporary(), temporary());
    let here = disk.path().to_string_lossy();
    if !can_run(&[&apart[..], &["sh", "-c", mount, "sh", &here]].concat()) {
        return;
    }
    let inside = format!("{mount} && export {DIR}=\"$1\" && shift && exec \"$@\"");
    let answers = run(dir.path(), "", &[&apart[..], &["sh", "-c", &inside, "sh", &here]].concat()).await;
    let clear = format!(
        "set up the file sink events: use the directory {here}/events; mount it writable, or set another `dir`: \
         Read-only file system (os error 30)"
    );
    assert_eq!(answers, [clear]);
}

// A process that is killed.

#[tokio::test]
async fn every_receipt_of_a_killed_process_is_stored() {
    let dir = temporary();
    let mut process = start(dir.path(), "flood", &["env"]);
    wait_until(LIMIT, "the child has a hundred receipts", async || answers(&process).len() > 100).await;
    process.kill();
    let receipts = answers(&process);
    let events = dir.path().join("events");
    // The next start mends what the kill has torn.
    let (sink, _) = connect(&events).await;
    let after = publish(&sink, &message("after", 10)).await.expect("stored");
    assert!(after.offset > 0);
    let stored = stored_ids(&events);
    let whole = receipts.iter().filter_map(|receipt| receipt.strip_suffix(" stored"));
    let lost: Vec<_> = whole.filter(|id| !stored.iter().any(|stored| stored == id)).collect();
    assert_eq!(lost, [] as [&str; 0]);
}

#[tokio::test]
async fn two_processes_cannot_share_a_directory() {
    let dir = temporary();
    let (sink, _) = connect(&dir.path().join("events")).await;
    let answers = run(dir.path(), "ids", &["env"]).await;
    assert!(answers[0].contains("hookgate.lock: another process, or another sink, writes there"), "{answers:?}");
    sink.close(support::ample()).await;
    let answers = run(dir.path(), "ids", &["env"]).await;
    assert_eq!(answers[1..], ["ids "]);
}
