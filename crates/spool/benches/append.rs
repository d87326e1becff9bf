//! What an append costs, beside a plain file with a shared fsync. Prints a report as Markdown.

#![expect(clippy::print_stdout, reason = "the report is what it is for")]

use std::{
    fs::File,
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hookgate_spool::{Budget, Options, Queue};
use tokio::sync::{mpsc, oneshot};

/// Length of a record, in bytes.
const RECORD_BYTES: usize = 1024;

/// How long each measurement takes.
const SPAN: Duration = Duration::from_secs(3);

/// Somewhere that records are appended to.
trait Log: Clone + Send + Sync + 'static {
    fn append(&self, record: Bytes) -> impl Future<Output = ()> + Send;
}

impl Log for Queue {
    async fn append(&self, record: Bytes) {
        let _ticket = Queue::append(self, record).await.expect("there is room");
    }
}

/// The floor: one file, one fsync for all that wait.
#[derive(Clone)]
struct Plain(mpsc::Sender<(Bytes, oneshot::Sender<()>)>);

impl Plain {
    fn open(mut file: File) -> Self {
        let (sender, mut receiver) = mpsc::channel::<(Bytes, oneshot::Sender<()>)>(4096);
        std::thread::spawn(move || {
            while let Some(first) = receiver.blocking_recv() {
                let mut batch = vec![first];
                while batch.len() < 2048
                    && let Ok(next) = receiver.try_recv()
                {
                    batch.push(next);
                }
                let bytes: Vec<u8> = batch.iter().flat_map(|(record, _)| record.iter().copied()).collect();
                file.write_all(&bytes).and_then(|()| file.sync_data()).expect("a writable disk");
                for (_, answer) in batch {
                    let _ = answer.send(());
                }
            }
        });
        Self(sender)
    }
}

impl Log for Plain {
    async fn append(&self, record: Bytes) {
        let (answer, answered) = oneshot::channel();
        self.0.send((record, answer)).await.expect("the thread runs");
        answered.await.expect("it answers");
    }
}

#[tokio::main]
async fn main() {
    let dir = tempfile::tempdir_in(".").expect("a writable directory");
    println!("| Writers | What | records/s | p50 | p99 |");
    println!("|---|---|---|---|---|");
    for writers in [1, 64, 512] {
        let file = File::create(dir.path().join(format!("plain-{writers}"))).expect("writable");
        measure("plain file", writers, &Plain::open(file)).await;
        let options = Options { segment_bytes: 32 << 20, min_free_bytes: 0, budget: Budget::new(64 << 30) };
        let path = dir.path().join(format!("log-{writers}"));
        let (queue, _) = Queue::open(&path, options, Arc::new(|_| {})).expect("it opens");
        measure("spool", writers, &queue).await;
        queue.close().await;
    }
}

async fn measure(what: &str, writers: usize, log: &impl Log) {
    let begun = Instant::now();
    let record = Bytes::from(vec![b'x'; RECORD_BYTES]);
    let tasks: Vec<_> = (0..writers)
        .map(|_| {
            let (log, record) = (log.clone(), record.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while begun.elapsed() < SPAN {
                    let begun = Instant::now();
                    log.append(record.clone()).await;
                    latencies.push(begun.elapsed());
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.expect("no panic"));
    }
    latencies.sort();
    let (count, elapsed) = (latencies.len(), begun.elapsed().as_secs_f64());
    let (p50, p99) = (latencies[count / 2], latencies[count * 99 / 100]);
    println!("| {writers} | {what} | {:.0} | {p50:.2?} | {p99:.2?} |", count as f64 / elapsed);
}
