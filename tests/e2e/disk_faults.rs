//! What happens when the disk under the spool fails: nothing that was accepted is lost, and what cannot be kept is refused.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use hookgate_testkit::{http::send_raw, process::wait_until, volume::Volume};

use crate::{
    relay::{LIMIT, OPENCLAW, TO_FILE, finished, hookgate, post},
    spooling::{Spooling, lose_power, refuse_writes},
};

const DISK_BYTES: u64 = 64 << 20;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hookgate"))
}

/// What `made` is, or the reason why this test has to do without.
fn or_skip(made: Result<Volume, String>) -> Option<Volume> {
    made.inspect_err(|why| eprintln!("SKIPPED: no such disk here: {why}")).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_outlasts_a_power_cut() {
    let Some(disk) = or_skip(Volume::with_power_switch(DISK_BYTES)) else { return };
    let outcome = lose_power(disk, program(), &[]).await;
    assert_eq!((outcome.lost(), outcome.accepted.len()), (vec![], 50));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_refuses_to_write_is_told_to_senders_and_loses_nothing() {
    let Some(disk) = or_skip(Volume::on_failing_disk(DISK_BYTES).await) else { return };
    let outcome = refuse_writes(disk, program(), &[]).await;
    assert_eq!((outcome.lost(), outcome.accepted.len(), outcome.refused), (vec![], 40, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_holds_up_neither_answers_nor_anything_else() {
    let Some(mut disk) = or_skip(Volume::on_failing_disk(DISK_BYTES).await) else { return };
    let mut spooling = Spooling::start(&disk, program(), &[]).await;
    spooling.post(5).await;
    disk.hang(true);
    let begun = Instant::now();
    let answer = send_raw(spooling.relay.address(), &post(finished(1000)), LIMIT).await;
    // Whatever is asserted: nothing that hangs can be unmounted.
    let (elapsed, ready) = (begun.elapsed(), spooling.relay.ready().await);
    disk.hang(false);
    assert_eq!(answer.expect("an answer").status, 503);
    assert!(elapsed < Duration::from_secs(3), "{elapsed:?}");
    assert_eq!(ready.1["sinks"][0]["up"], false, "the admin port answers");
    wait_until(LIMIT, "it takes events again", async || spooling.relay.post(finished(1001)).await.status == 202).await;
    spooling.post(5).await;
    let outcome = spooling.deliver().await;
    assert_eq!(outcome.lost(), [] as [usize; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_to_senders_and_used_again_once_there_is_room() {
    let Some(disk) = or_skip(Volume::with_power_switch(DISK_BYTES)) else { return };
    let mut spooling = Spooling::start(&disk, program(), &[]).await;
    spooling.post(5).await;
    disk.fill(0);
    spooling.post(3).await;
    disk.empty();
    wait_until(LIMIT, "it has noticed", async || spooling.relay.ready().await.0 == 200).await;
    spooling.post(5).await;
    let outcome = spooling.deliver().await;
    assert_eq!((outcome.lost(), outcome.accepted.len(), outcome.refused), (vec![], 10, 3));
}

#[test]
fn a_directory_that_cannot_be_written_is_told_at_the_start_and_by_check() {
    let Some(disk) = or_skip(Volume::with_power_switch(DISK_BYTES)) else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let spool = disk.path().join("spool");
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n{OPENCLAW}{TO_FILE}[spool]\ndir = {spool:?}\n"
    );
    std::fs::write(dir.path().join("relay.toml"), config).expect("a writable directory");
    disk.set_read_only(true);
    for command in ["run", "check"] {
        let ended = hookgate(dir.path()).arg(command).output().expect("hookgate can be started");
        let told = [ended.stdout, ended.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(!ended.status.success(), "{command}: {told}");
        assert!(told.contains(&spool.display().to_string()) && told.contains("Read-only"), "{command}: {told}");
    }
}
