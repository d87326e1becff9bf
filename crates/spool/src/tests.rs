//! The log on a real file system, killed, torn, damaged and made to fail at every step.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::{
    Budget, Happening, Lock, Options, Queue, Record, Recovered, SpoolError, SpoolErrorKind,
    disk::{Disk, RealDisk},
};

const LIMIT: Duration = Duration::from_secs(10);

/// What was told, and how the logs of a test are kept.
#[derive(Clone)]
struct Bench {
    told: Arc<Mutex<Vec<String>>>,
    options: Options,
}

impl Bench {
    fn new() -> Self {
        let options = Options { segment_bytes: 1 << 20, min_free_bytes: 0, budget: Budget::new(1 << 30) };
        Self { told: Arc::default(), options }
    }

    fn with_segments_of(bytes: u64) -> Self {
        let mut bench = Self::new();
        bench.options.segment_bytes = bytes;
        bench
    }

    fn happens(&self) -> Arc<dyn Fn(&Happening<'_>) + Send + Sync> {
        let told = Arc::clone(&self.told);
        Arc::new(move |happening| {
            if let Happening::Corrupt { file, detail } = happening {
                told.lock().expect("no panic").push(format!("{}: {detail}", file.display()));
            }
        })
    }

    fn open(&self, dir: &Path) -> (Queue, Recovered) {
        self.try_open(dir).expect("it opens")
    }

    fn try_open(&self, dir: &Path) -> Result<(Queue, Recovered), SpoolError> {
        Queue::open(dir, self.options.clone(), self.happens())
    }

    fn open_on(&self, disk: impl Disk, dir: &Path) -> Queue {
        Queue::open_on(Box::new(disk), dir, self.options.clone(), self.happens()).expect("it opens").0
    }

    fn told(&self) -> usize {
        self.told.lock().expect("no panic").len()
    }
}

fn dir() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn payload(number: u64) -> Bytes {
    Bytes::from(format!("payload {number} {}", "x".repeat(number as usize % 50)))
}

async fn append(queue: &Queue, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        assert_eq!(queue.append(payload(number)).await.expect("there is room").seq(), number);
    }
}

async fn all(queue: &Queue) -> Vec<Record> {
    queue.list(0, usize::MAX).await.expect("readable")
}

async fn numbers(queue: &Queue) -> Vec<u64> {
    all(queue).await.iter().map(|record| record.place.seq()).collect()
}

async fn next(queue: &Queue) -> Record {
    tokio::time::timeout(LIMIT, queue.next()).await.expect("there is one").expect("readable")
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain until {what}");
}

/// The directory as a crash at this moment leaves it.
fn crashed(dir: &Path) -> TempDir {
    fn copy(from: &Path, to: &Path) -> io::Result<()> {
        for entry in fs::read_dir(from)? {
            let path = entry?.path();
            let to = to.join(path.file_name().expect("it has a name"));
            if path.is_dir() {
                fs::create_dir(&to)?;
                copy(&path, &to)?;
            } else {
                fs::copy(&path, to)?;
            }
        }
        Ok(())
    }
    loop {
        let copied = self::dir();
        match copy(dir, copied.path()) {
            Ok(()) => return copied,
            // Deleted in the midst of it: that is no moment, but two.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
        }
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(dir).expect("readable").map(|entry| entry.expect("readable").path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    found.sort();
    found
}

#[tokio::test]
async fn what_was_appended_is_given_out_in_order_and_again_after_a_restart_until_it_is_done() {
    let (bench, dir) = (Bench::new(), dir());
    let (queue, recovered) = bench.open(dir.path());
    assert!(recovered.fresh);
    append(&queue, 1..=5).await;
    for number in 1..=3 {
        let record = next(&queue).await;
        assert_eq!((record.place.seq(), &record.payload), (number, &payload(number)));
        if number != 2 {
            queue.done(record.place);
        }
    }
    queue.close().await;
    let (queue, recovered) = bench.open(dir.path());
    assert!(recovered.clean && recovered.events == 3, "{recovered:?}");
    for number in [2, 4, 5] {
        assert_eq!(next(&queue).await.place.seq(), number);
    }
    assert!(tokio::time::timeout(Duration::from_millis(50), queue.next()).await.is_err());
    append(&queue, 6..=6).await;
    assert_eq!(next(&queue).await.place.seq(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_share_an_fsync() {
    let (bench, dir) = (Bench::new(), dir());
    let syncs = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&syncs);
    let happens = Arc::new(move |happening: &Happening<'_>| {
        counter.fetch_add(u64::from(matches!(happening, Happening::Committed { .. })), Ordering::Relaxed);
    });
    let (queue, _) = Queue::open(dir.path(), bench.options.clone(), happens).expect("it opens");
    let appends: Vec<_> = (0..512_u64)
        .map(|number| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.append(payload(number)).await.expect("room").seq() })
        })
        .collect();
    let mut given = BTreeSet::new();
    for append in appends {
        given.insert(append.await.expect("no panic"));
    }
    assert_eq!(given, (1..=512).collect());
    assert!(syncs.load(Ordering::Relaxed) < 256, "{syncs:?}");
    assert_eq!(all(&queue).await.len(), 512);
}

#[tokio::test]
async fn after_a_crash_everything_with_a_ticket_is_there() {
    let (bench, dir) = (Bench::with_segments_of(200), dir());
    let (queue, _) = bench.open(dir.path());
    append(&queue, 1..=20).await;
    let record = next(&queue).await;
    queue.begun(record.place).await;
    let copy = crashed(dir.path());
    let (after, recovered) = bench.open(copy.path());
    assert!(!recovered.clean && recovered.torn_bytes == 0 && recovered.corrupt == 0, "{recovered:?}");
    let records = all(&after).await;
    assert_eq!(records.iter().map(|record| record.place.seq()).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    assert_eq!((records[0].crashes, records[1].crashes), (1, 0), "the attempt that the crash cut short is known");
    append(&after, 21..=21).await;
}

#[tokio::test]
async fn a_write_cut_short_at_any_byte_costs_nothing_else_and_is_kept() {
    let (bench, dir) = (Bench::new(), dir());
    let (queue, _) = bench.open(dir.path());
    append(&queue, 1..=2).await;
    let whole = fs::metadata(&segments(dir.path())[0]).expect("it is there").len();
    append(&queue, 3..=3).await;
    let longer = fs::metadata(&segments(dir.path())[0]).expect("it is there").len();
    for len in whole + 1..longer {
        let copy = crashed(dir.path());
        let segment = File::options().write(true).open(&segments(copy.path())[0]).expect("writable");
        segment.set_len(len).expect("writable");
        let (after, recovered) = bench.open(copy.path());
        assert_eq!((recovered.torn_bytes, recovered.corrupt), (len - whole, 0), "cut at {len}");
        assert_eq!(numbers(&after).await, [1, 2]);
        assert_eq!(after.state().quarantined, 1);
        assert_eq!(after.append(payload(3)).await.expect("room").seq(), 3);
    }
}

#[tokio::test]
async fn a_flipped_bit_costs_its_record_only_and_is_told() {
    let (bench, dir) = (Bench::new(), dir());
    let (queue, _) = bench.open(dir.path());
    append(&queue, 1..=3).await;
    queue.close().await;
    let len = fs::metadata(&segments(dir.path())[0]).expect("it is there").len();
    for at in (64..len).step_by(3) {
        let bench = Bench::new();
        let copy = crashed(dir.path());
        let segment = File::options().read(true).write(true).open(&segments(copy.path())[0]).expect("writable");
        let mut byte = [0];
        segment.read_exact_at(&mut byte, at).expect("it is there");
        segment.write_all_at(&[byte[0] ^ 0x10], at).expect("writable");
        let (after, recovered) = bench.open(copy.path());
        let left = all(&after).await;
        assert!(left.iter().all(|record| record.payload == payload(record.place.seq())), "flipped at {at}");
        // Padding protects nothing, and what damages it damages nothing.
        if left.len() < 3 {
            assert_eq!((left.len(), recovered.corrupt, bench.told()), (2, 1, 1), "flipped at {at}");
            assert_eq!(after.state().quarantined, 1);
        }
        assert_eq!(after.append(payload(4)).await.expect("room").seq(), 4);
    }
}

#[tokio::test]
async fn a_damaged_header_and_a_missing_file_are_told_and_the_rest_is_kept() {
    let dir = dir();
    let bench = Bench::with_segments_of(64);
    let (queue, _) = bench.open(dir.path());
    append(&queue, 1..=4).await;
    let files = segments(dir.path());
    assert_eq!(files.len(), 4);
    let missing = crashed(dir.path());
    fs::remove_file(missing.path().join(files[1].file_name().expect("a name"))).expect("it is there");
    let (after, recovered) = bench.open(missing.path());
    assert_eq!((recovered.corrupt, numbers(&after).await), (1, vec![1, 3, 4]));
    let damaged = crashed(dir.path());
    let segment = File::options().write(true).open(damaged.path().join(files[2].file_name().expect("a name")));
    segment.expect("writable").write_all_at(b"?", 20).expect("writable");
    let (after, recovered) = bench.open(damaged.path());
    assert_eq!((recovered.corrupt, numbers(&after).await), (1, vec![1, 2, 4]));
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let (bench, dir) = (Bench::new(), dir());
    let (queue, _) = bench.open(dir.path());
    append(&queue, 1..=1).await;
    queue.close().await;
    let path = segments(dir.path()).remove(0);
    File::options().write(true).open(&path).expect("writable").write_all_at(&[9], 8).expect("writable");
    let before = fs::read(&path).expect("readable");
    let refused = bench.try_open(dir.path()).expect_err("it is newer");
    assert_eq!(refused.kind, SpoolErrorKind::NewerFormat, "{refused}");
    assert!(refused.to_string().contains("version 9"), "{refused}");
    assert_eq!(fs::read(&path).expect("readable"), before);
    assert!(dir.path().join("clean").exists(), "nothing was changed");
}

#[tokio::test]
async fn a_spent_budget_is_told_and_has_room_again_once_records_are_done() {
    let dir = dir();
    let mut bench = Bench::with_segments_of(64);
    bench.options.budget = Budget::new(600);
    let (queue, _) = bench.open(dir.path());
    let mut stored = 0;
    let refused = loop {
        match queue.append(payload(stored)).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind, SpoolErrorKind::Full, "{refused}");
    assert!(stored > 1 && bench.options.budget.used() <= 600);
    assert_eq!(numbers(&queue).await.len() as u64, stored, "the old ones are kept");
    for _ in 0..stored {
        let record = next(&queue).await;
        queue.done(record.place);
    }
    let budget = Arc::clone(&bench.options.budget);
    eventually("there is room", || budget.used() < 300).await;
    assert!(queue.append(payload(1)).await.is_ok());
}

#[tokio::test]
async fn a_disk_with_too_little_left_is_full() {
    let dir = dir();
    let mut bench = Bench::new();
    bench.options.min_free_bytes = 1 << 60;
    let (queue, _) = bench.open(dir.path());
    let refused = queue.append(payload(1)).await.expect_err("no disk has that");
    assert_eq!(refused.kind, SpoolErrorKind::Full);
    assert!(refused.to_string().contains("min_free"), "{refused}");
    assert!(!queue.state().writable || queue.state().cause.is_none());
}

#[tokio::test]
async fn a_directory_belongs_to_one() {
    let dir = dir();
    let lock = Lock::take(dir.path()).expect("nobody has it");
    assert_eq!(Lock::take(dir.path()).expect_err("it is taken").kind, SpoolErrorKind::Locked);
    drop(lock);
    Lock::take(dir.path()).expect("it is free again");
}

#[tokio::test]
async fn space_is_freed_segment_by_segment_in_any_order_and_no_number_comes_twice() {
    let dir = dir();
    let bench = Bench::with_segments_of(64);
    let (queue, _) = bench.open(dir.path());
    append(&queue, 1..=6).await;
    let records = all(&queue).await;
    for place in [3, 1, 4].map(|place: usize| records[place].place) {
        queue.done_for_good(place).await;
    }
    eventually("they are gone", || segments(dir.path()).len() == 3).await;
    let copy = crashed(dir.path());
    let (after, recovered) = bench.open(copy.path());
    assert_eq!((recovered.corrupt, numbers(&after).await), (0, vec![1, 3, 6]));
    for record in all(&queue).await {
        queue.done_for_good(record.place).await;
    }
    queue.close().await;
    eventually("all are gone", || segments(dir.path()).is_empty()).await;
    let (queue, recovered) = bench.open(dir.path());
    assert!(recovered.clean && recovered.events == 0);
    assert_eq!(queue.append(payload(7)).await.expect("room").seq(), 7);
}

#[tokio::test]
async fn attempts_are_counted_across_restarts() {
    let (bench, dir) = (Bench::new(), dir());
    let (queue, _) = bench.open(dir.path());
    append(&queue, 1..=1).await;
    let record = next(&queue).await;
    for _ in 0..3 {
        queue.begun(record.place).await;
        queue.failed(record.place);
    }
    queue.begun(record.place).await;
    let copy = crashed(dir.path());
    let (after, _) = bench.open(copy.path());
    let record = next(&after).await;
    assert_eq!((record.failures, record.crashes), (3, 1));
    assert_eq!(after.read(record.place).await.expect("readable").expect("not done").payload, payload(1));
    after.done_for_good(record.place).await;
    assert!(after.read(record.place).await.expect("readable").is_none());
}

/// Fails the `fails_at`th operation, counted from 0, and once it has failed an fsync notices whether that file is used again.
struct Failing {
    operations: Arc<AtomicU64>,
    fails_at: u64,
    error: i32,
    forsaken: Mutex<BTreeSet<i32>>,
    used_again: Arc<AtomicU64>,
}

impl Failing {
    fn fails_now(&self) -> io::Result<()> {
        match self.operations.fetch_add(1, Ordering::SeqCst) == self.fails_at {
            true => Err(io::Error::from_raw_os_error(self.error)),
            false => Ok(()),
        }
    }

    fn use_file(&self, file: &File) {
        if self.forsaken.lock().expect("no panic").contains(&file.as_raw_fd()) {
            self.used_again.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Disk for Failing {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.fails_now()?;
        let file = RealDisk.create(path)?;
        // The number of a descriptor that was closed may come again.
        self.forsaken.lock().expect("no panic").remove(&file.as_raw_fd());
        Ok(file)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.use_file(file);
        if let Err(error) = self.fails_now() {
            // As far as it came.
            RealDisk.write_at(file, &bytes[..bytes.len() / 2], offset)?;
            return Err(error);
        }
        RealDisk.write_at(file, bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.use_file(file);
        self.fails_now().inspect_err(|_| {
            self.forsaken.lock().expect("no panic").insert(file.as_raw_fd());
        })?;
        RealDisk.sync(file)
    }

    fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
        self.use_file(file);
        self.fails_now()?;
        RealDisk.truncate(file, len)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.fails_now()?;
        RealDisk.sync_dir(path)
    }
}

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[tokio::test]
async fn whichever_operation_fails_nothing_with_a_ticket_is_lost_and_no_file_is_used_after_its_fsync_failed() {
    for error in [EIO, ENOSPC] {
        for fails_at in 0.. {
            let (bench, dir) = (Bench::with_segments_of(200), dir());
            let (operations, used_again) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
            let forsaken = Mutex::default();
            let disk = Failing {
                operations: Arc::clone(&operations),
                fails_at,
                error,
                forsaken,
                used_again: Arc::clone(&used_again),
            };
            let queue = bench.open_on(disk, dir.path());
            let mut stored = Vec::new();
            for number in 0..12 {
                if queue.append(payload(number)).await.is_ok() {
                    stored.push(payload(number));
                }
            }
            assert!(stored.len() >= 11, "one operation that fails costs one event at most: {fails_at}");
            let live: Vec<_> = all(&queue).await.into_iter().map(|record| record.payload).collect();
            assert_eq!(live, stored, "operation {fails_at}, error {error}");
            assert_eq!(used_again.load(Ordering::SeqCst), 0, "operation {fails_at}");
            let copy = crashed(dir.path());
            let (after, recovered) = bench.open(copy.path());
            let found: Vec<_> = all(&after).await.into_iter().map(|record| record.payload).collect();
            assert!(stored.iter().all(|stored| found.contains(stored)), "operation {fails_at}: {recovered:?}");
            assert_eq!(recovered.corrupt, 0, "operation {fails_at}, error {error}: {:?}", bench.told);
            if fails_at > operations.load(Ordering::SeqCst) {
                break;
            }
        }
    }
}

/// The first version, as it was written once and for all.
#[tokio::test]
async fn the_first_version_is_read() {
    let bench = Bench::new();
    let copy = crashed(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1"));
    let (queue, recovered) = bench.open(copy.path());
    assert_eq!((recovered.events, recovered.corrupt, recovered.torn_bytes), (2, 0, 0));
    let records = all(&queue).await;
    let seen: Vec<_> =
        records.iter().map(|record| (record.place.seq(), &record.payload[..], record.failures)).collect();
    assert_eq!(seen, [(41, &b"first"[..], 0), (43, &b"third, \0 and all"[..], 1)]);
    let at = records[0].at.duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    assert_eq!(at, Duration::from_millis(1_795_600_000_123));
}

#[test]
fn the_first_version_is_written_as_ever() {
    use crate::format::{Header, Note, encode_entry, encode_record};
    let (first, epoch, made_ms) = (41, 0x0123_4567_89ab_cdef, 1_795_600_000_000);
    let mut segment = Header { first, epoch, made_ms }.encode().to_vec();
    for (number, payload) in (41..).zip([&b"first"[..], b"second", b"third, \0 and all"]) {
        encode_record(&mut segment, epoch, number, 1_795_600_000_123, &Bytes::from(payload));
    }
    let notes = [(42, Note::Begun), (42, Note::Done), (43, Note::Begun), (43, Note::Failed)];
    let journal: Vec<u8> = notes.iter().flat_map(|(number, note)| encode_entry(epoch, *number, *note)).collect();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1");
    for (name, bytes) in [("sp-00000000000000000041.seg", segment), ("sp-00000000000000000041.ack", journal)] {
        let path = fixture.join(name);
        assert_eq!(fs::read(&path).unwrap_or_default(), bytes, "{}", path.display());
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(u16),
    TakeAndFinish,
    TakeAndFail,
    Reopen,
    /// And this much of what was being written is there.
    Crash(Vec<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..400_u16).prop_map(Step::Append),
        3 => Just(Step::TakeAndFinish),
        1 => Just(Step::TakeAndFail),
        1 => Just(Step::Reopen),
        1 => prop::collection::vec(any::<u8>(), 0..100).prop_map(Step::Crash),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_log_is_a_list_of_what_is_not_done_whatever_happens(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let bench = Bench::with_segments_of(500);
            let mut dir = dir();
            let mut queue = bench.open(dir.path()).0;
            let mut model: Vec<(u64, Bytes)> = Vec::new();
            // Given out and not done: it comes again after a restart only.
            let mut taken: BTreeSet<u64> = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Append(length) => {
                        let payload = Bytes::from(vec![b'x'; length.into()]);
                        let ticket = queue.append(payload.clone()).await.expect("room");
                        model.push((ticket.seq(), payload));
                    }
                    Step::TakeAndFinish | Step::TakeAndFail => {
                        let Some((number, payload)) = model.iter().find(|(number, _)| !taken.contains(number)).cloned()
                        else { continue };
                        let record = next(&queue).await;
                        assert_eq!((record.place.seq(), &record.payload), (number, &payload));
                        taken.insert(number);
                        queue.begun(record.place).await;
                        if matches!(step, Step::TakeAndFinish) {
                            queue.done_for_good(record.place).await;
                            model.retain(|(other, _)| *other != number);
                        } else {
                            queue.failed(record.place);
                        }
                    }
                    Step::Reopen => {
                        queue.close().await;
                        queue = bench.open(dir.path()).0;
                        taken.clear();
                    }
                    Step::Crash(tail) => {
                        let copy = crashed(dir.path());
                        if let Some(last) = segments(copy.path()).last() {
                            let file = File::options().append(true).open(last).expect("writable");
                            io::Write::write_all(&mut &file, &tail).expect("writable");
                        }
                        dir = copy;
                        queue = bench.open(dir.path()).0;
                        taken.clear();
                    }
                }
                let held: Vec<_> = all(&queue).await.into_iter().map(|record| (record.place.seq(), record.payload)).collect();
                assert_eq!(held, model);
                assert_eq!(queue.state().events, model.len() as u64);
            }
            assert_eq!(bench.told(), 0, "{:?}", bench.told);
        });
    }
}

/// Knows what of each file would outlast a power cut: what was fsynced, under names of which the directory was fsynced.
#[derive(Clone, Default)]
struct Lasting {
    /// Length by inode.
    lengths: Arc<Mutex<BTreeMap<u64, u64>>>,
    names: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Disk for Lasting {
    fn sync(&self, file: &File) -> io::Result<()> {
        RealDisk.sync(file)?;
        let metadata = file.metadata()?;
        self.lengths.lock().expect("no panic").insert(metadata.ino(), metadata.len());
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_dir(path)?;
        *self.names.lock().expect("no panic") = segments(path).into_iter().collect();
        Ok(())
    }
}

impl Lasting {
    /// The segments as a power cut at this moment leaves them; the journals are gone, which costs repeats only.
    fn cut(&self) -> TempDir {
        let copied = dir();
        for path in self.names.lock().expect("no panic").iter().filter(|path| path.exists()) {
            let inode = fs::metadata(path).expect("it is there").ino();
            let length = self.lengths.lock().expect("no panic").get(&inode).copied().unwrap_or(0);
            let bytes = fs::read(path).expect("readable");
            let to = copied.path().join(path.file_name().expect("a name"));
            fs::write(to, &bytes[..bytes.len().min(length as usize)]).expect("writable");
        }
        copied
    }
}

#[tokio::test]
async fn a_power_cut_after_any_ticket_takes_nothing_that_has_one() {
    let (bench, dir, lasting) = (Bench::with_segments_of(300), dir(), Lasting::default());
    let queue = bench.open_on(lasting.clone(), dir.path());
    for number in 1..=30 {
        append(&queue, number..=number).await;
        let after_cut = lasting.cut();
        let (after, recovered) = bench.open(after_cut.path());
        assert_eq!(numbers(&after).await, (1..=number).collect::<Vec<_>>(), "{recovered:?}");
        assert_eq!(recovered.corrupt, 0);
    }
}
