//! What is in the directory, and what is made of a directory that is found in some state.

mod support;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};

use hookgate_core::{
    observe::Chain,
    sink::{PublishErrorKind, PublishReason, Sink},
};
use serde_json::json;
use support::{ample, connect, connect_with, event_files, message, publish, stored_ids};
use tempfile::TempDir;

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary directory can be made")
}

/// Every file in `dir` but the lock, with its length.
fn lengths(dir: &Path) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(dir).expect("the directory can be read");
    let entry = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.expect("the directory can be read");
        let length = entry.metadata().expect("it can be looked at").len();
        (entry.file_name().to_string_lossy().into_owned(), length)
    };
    entries.map(entry).filter(|(name, _)| name != "hookgate.lock").collect()
}

#[tokio::test]
async fn a_file_that_would_pass_its_limit_is_followed_by_the_next() {
    let dir = temporary();
    let (sink, _) = connect_with(dir.path(), &json!({ "rotate_at": 1000 })).await.expect("it can be used");
    let mut places = Vec::new();
    for number in 0..6 {
        // Two lines of these fit into a file, three do not; the fourth is longer than any file.
        let body_bytes = if number == 3 { 5000 } else { 200 };
        let position = publish(&sink, &message(&number.to_string(), body_bytes)).await.expect("stored");
        places.push((position.place.to_string(), position.offset > 0));
    }
    let place = |number: u32, behind_another: bool| (format!("events-{number:08}.jsonl"), behind_another);
    assert_eq!(
        places,
        [place(1, false), place(1, true), place(2, false), place(3, false), place(4, false), place(4, true)]
    );
    for (name, length) in lengths(dir.path()) {
        assert!(length <= 1000 || name == "events-00000003.jsonl", "{name} has {length} bytes");
    }
    assert_eq!(stored_ids(dir.path()), ["0", "1", "2", "3", "4", "5"]);
}

#[tokio::test]
async fn many_at_once_are_parted_at_the_same_limit() {
    let dir = temporary();
    let (sink, _) = connect_with(dir.path(), &json!({ "rotate_at": 4096 })).await.expect("it can be used");
    let messages: Vec<_> = (0..200).map(|number| message(&number.to_string(), number)).collect();
    let publishes = messages.iter().map(|message| publish(&sink, message));
    for position in futures_util::future::join_all(publishes).await {
        position.expect("stored");
    }
    let mut lengths = lengths(dir.path());
    lengths.pop_last();
    // A line here has 430 bytes at most.
    assert!(lengths.values().all(|length| (3650..=4096).contains(length)), "{lengths:?}");
    assert_eq!(stored_ids(dir.path()).len(), 200);
}

#[tokio::test]
async fn the_newest_file_is_gone_on_with() {
    let dir = temporary();
    for id in ["first", "second"] {
        let (sink, seen) = connect(dir.path()).await;
        publish(&sink, &message(id, 10)).await.expect("stored");
        sink.close(ample()).await;
        assert_eq!(seen.lines(), ["sink_up sink=events"]);
    }
    assert_eq!(event_files(dir.path()).len(), 1);
    assert_eq!(stored_ids(dir.path()), ["first", "second"]);
}

#[tokio::test]
async fn nothing_but_the_lock_is_made_before_the_first_event() {
    let dir = temporary();
    let (sink, _) = connect(&dir.path().join("a/b")).await;
    assert_eq!(lengths(&dir.path().join("a/b")), BTreeMap::new());
    sink.probe(ample()).await.expect("it could be published");
    assert_eq!(lengths(&dir.path().join("a/b")), BTreeMap::new());
}

#[tokio::test]
async fn others_cannot_read_what_is_made() {
    let dir = temporary();
    let made = dir.path().join("made");
    let (sink, _) = connect(&made).await;
    publish(&sink, &message("1", 10)).await.expect("stored");
    for path in [made.clone(), made.join("events-00000001.jsonl"), made.join("hookgate.lock")] {
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o007, 0, "{} has mode {mode:o}", path.display());
    }
}

/// A directory with two whole lines and `tail` behind them, and the length of the two.
async fn with_tail(dir: &Path, tail: &[u8]) -> u64 {
    let (sink, _) = connect(dir).await;
    for id in ["first", "second"] {
        publish(&sink, &message(id, 10)).await.expect("stored");
    }
    sink.close(ample()).await;
    let [file] = event_files(dir).try_into().expect("there is one file");
    let whole = fs::metadata(&file).expect("it is there").len();
    OpenOptions::new().append(true).open(&file).and_then(|mut file| file.write_all(tail)).expect("it can be written");
    whole
}

#[tokio::test]
async fn a_torn_last_line_is_set_aside_and_reported() {
    // The last is longer than what is looked at in one go; the zeros are what some file systems leave after a power cut.
    for tail in [b"{\"id\":\"lost\",\"so".to_vec(), vec![0; 3], vec![b'x'; 200_000]] {
        let dir = temporary();
        let whole = with_tail(dir.path(), &tail).await;
        let (sink, seen) = connect(dir.path()).await;
        let (file, aside) = ("events-00000001.jsonl", format!("events-00000001.jsonl.torn-{whole}"));
        let here = dir.path().display();
        let bytes = tail.len();
        let notice = format!("{bytes} bytes of {here}/{file} are now in {here}/{aside}");
        let notice = format!("sink_notice sink=events message=a torn last line was set aside detail={notice}");
        assert_eq!(seen.lines(), [notice, "sink_up sink=events".to_owned()]);
        assert_eq!(fs::read(dir.path().join(&aside)).expect("it is there"), tail);
        let position = publish(&sink, &message("third", 10)).await.expect("stored");
        assert_eq!((&*position.place, position.offset), (file, whole));
        assert_eq!(stored_ids(dir.path()), ["first", "second", "third"]);
    }
}

#[tokio::test]
async fn a_line_torn_twice_in_one_place_is_kept_twice() {
    let dir = temporary();
    let whole = with_tail(dir.path(), b"one").await;
    connect(dir.path()).await.0.close(ample()).await;
    let file = dir.path().join("events-00000001.jsonl");
    OpenOptions::new().append(true).open(file).and_then(|mut file| file.write_all(b"two")).expect("it can be written");
    connect(dir.path()).await.0.close(ample()).await;
    let aside = |suffix: &str| dir.path().join(format!("events-00000001.jsonl.torn-{whole}{suffix}"));
    assert_eq!(fs::read(aside("")).expect("it is there"), b"one");
    assert_eq!(fs::read(aside("-2")).expect("it is there"), b"two");
}

#[tokio::test]
async fn a_file_of_nothing_but_a_torn_line_becomes_empty() {
    let dir = temporary();
    fs::write(dir.path().join("events-00000007.jsonl"), "{").expect("it can be written");
    let (sink, _) = connect(dir.path()).await;
    let position = publish(&sink, &message("1", 10)).await.expect("stored");
    assert_eq!((&*position.place, position.offset), ("events-00000007.jsonl", 0));
}

#[tokio::test]
async fn a_newest_file_that_cannot_be_used_is_left_alone_and_reported() {
    let dir = temporary();
    fs::create_dir(dir.path().join("events-00000004.jsonl")).expect("it can be made");
    let (sink, seen) = connect(dir.path()).await;
    assert_eq!(seen.count("sink_notice sink=events message=the newest file cannot be used, a new one is begun"), 1);
    let position = publish(&sink, &message("1", 10)).await.expect("stored");
    assert_eq!(&*position.place, "events-00000005.jsonl");
}

#[tokio::test]
async fn two_sinks_cannot_share_a_directory() {
    let dir = temporary();
    let (first, _) = connect(dir.path()).await;
    let error = connect_with(dir.path(), &json!({})).await.expect_err("it is taken");
    let expected = format!(
        "set up the file sink events: lock {}/hookgate.lock: another process, or another sink, writes there; \
         give each a directory of its own",
        dir.path().display()
    );
    assert_eq!(Chain(&error).to_string(), expected);
    first.close(ample()).await;
    connect(dir.path()).await;
}

#[tokio::test]
async fn a_sink_that_is_dropped_gives_its_directory_back() {
    let dir = temporary();
    drop(connect(dir.path()).await);
    let limit = Duration::from_secs(10);
    hookgate_testkit::process::wait_until(limit, "the directory is free", async || {
        connect_with(dir.path(), &json!({})).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_one_is_a_clear_error() {
    let dir = temporary();
    File::create(dir.path().join("file")).expect("it can be made");
    for inside in ["file", "file/inside"] {
        let path = dir.path().join(inside);
        let error = connect_with(&path, &json!({})).await.expect_err("it is no directory");
        let text = Chain(&error).to_string();
        assert!(text.contains("there is something else, set another `dir`"), "{text}");
    }
}

#[tokio::test]
async fn a_file_that_was_deleted_under_the_sink_earns_no_receipt() {
    let dir = temporary();
    let (sink, _) = connect(dir.path()).await;
    publish(&sink, &message("gone", 10)).await.expect("stored");
    fs::remove_file(dir.path().join("events-00000001.jsonl")).expect("it is there");
    let position = publish(&sink, &message("kept", 10)).await.expect("stored in another file");
    assert_eq!((&*position.place, position.offset), ("events-00000002.jsonl", 0));
    assert_eq!(stored_ids(dir.path()), ["kept"]);
}

#[tokio::test]
async fn a_directory_that_was_replaced_is_locked_anew() {
    let dir = temporary();
    let events = dir.path().join("events");
    let (sink, seen) = connect(&events).await;
    publish(&sink, &message("gone", 10)).await.expect("stored");
    fs::remove_dir_all(&events).expect("it is there");
    let error = publish(&sink, &message("lost", 10)).await.expect_err("there is no directory");
    let missing = (PublishErrorKind::Misconfigured, PublishReason::NoDestination);
    assert_eq!((error.kind, error.reason), missing, "{}", Chain(&error));
    fs::create_dir(&events).expect("it can be made");
    let position = publish(&sink, &message("kept", 10)).await.expect("stored");
    assert_eq!(&*position.place, "events-00000002.jsonl", "a name is used once");
    assert_eq!((seen.count("sink_down"), seen.count("sink_up")), (1, 2));
    connect_with(&events, &json!({})).await.expect_err("it is taken");
}

#[tokio::test]
async fn a_closed_sink_says_so() {
    let dir = temporary();
    let (sink, _) = connect(dir.path()).await;
    sink.close(ample()).await;
    let error = publish(&sink, &message("late", 10)).await.expect_err("it is closed");
    let expected = "publish to events failed: the broker is unavailable: publish after the sink was closed";
    assert_eq!(Chain(&error).to_string(), expected);
    assert!(sink.probe(ample()).await.is_err());
}
