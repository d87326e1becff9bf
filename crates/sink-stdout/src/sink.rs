//! The sink: hands lines to the thread that writes, and turns its answers into receipts.

use std::{
    fmt, io,
    io::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use futures_util::future::BoxFuture;
use hookgate_core::{
    answers::{self, Answers},
    event::SinkId,
    limits::Deadline,
    message::Message,
    observe::{Observation, Observer},
    record,
    sink::{Capabilities, Position, PublishError, Receipt, Sink},
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    config::Config,
    error::{ConnectError, Failure},
};

/// Lines that are written and flushed at once.
const LINES_AT_ONCE_MAX: usize = 256;

/// Standard output, one line for each event.
pub struct StdoutSink {
    id: SinkId,
    /// `None` once the sink is closed. The thread ends when it and all its clones are dropped and the queue is empty.
    queue: Mutex<Option<mpsc::Sender<Line>>>,
    /// Its sender is dropped when the thread has ended.
    has_ended: watch::Receiver<()>,
}

/// The line's number, or why there is none.
type Written = Result<u64, Failure>;

/// A line, and where its number is awaited.
struct Line {
    text: Vec<u8>,
    written: oneshot::Sender<Written>,
}

/// A sink over the standard output of this process.
///
/// # Errors
/// When no thread can be started.
pub fn connect(id: SinkId, config: &Config, observer: Arc<dyn Observer>) -> Result<StdoutSink, ConnectError> {
    connect_to(id, config, io::stdout(), observer)
}

/// A sink over anything that can be written to.
///
/// # Errors
/// When no thread can be started.
pub fn connect_to(
    id: SinkId,
    config: &Config,
    output: impl Write + Send + 'static,
    observer: Arc<dyn Observer>,
) -> Result<StdoutSink, ConnectError> {
    let (queue, lines) = mpsc::channel(config.max_in_flight);
    let (ended, has_ended) = watch::channel(());
    let (answers, passing_on) = answers::channel();
    let writer = Writer { id: id.clone(), output, observer, answers, next: 1 };
    let work = move || {
        writer.run(lines);
        drop(ended);
    };
    match thread::Builder::new().name("sink-stdout".to_owned()).spawn(work) {
        Ok(_) => {
            tokio::spawn(passing_on);
            Ok(StdoutSink { id, queue: Mutex::new(Some(queue)), has_ended })
        }
        Err(source) => Err(ConnectError { sink: id, source }),
    }
}

impl StdoutSink {
    async fn write(&self, message: &Message, deadline: Deadline) -> Result<Receipt, Failure> {
        let queue = self.queue().clone().ok_or(Failure::Closed)?;
        let Ok(place) = deadline.bound(queue.reserve()).await else { return Err(Failure::QueueFull) };
        let place = place.map_err(|_| Failure::Closed)?;
        let (written, answer) = oneshot::channel();
        let mut text = Vec::new();
        record::encode(message, &mut text);
        place.send(Line { text, written });
        match deadline.bound(answer).await {
            Ok(Ok(written)) => {
                let position = Position { place: "stdout".into(), offset: written?, duplicate: false };
                Ok(Receipt::acknowledged(message, position))
            }
            Ok(Err(_)) => Err(Failure::Closed),
            Err(_) => Err(Failure::NoAnswer),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Option<mpsc::Sender<Line>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for StdoutSink {
    fn capabilities(&self) -> Capabilities {
        Capabilities { deduplicates: false }
    }

    fn publish<'a>(&'a self, message: &'a Message, deadline: Deadline) -> BoxFuture<'a, Result<Receipt, PublishError>> {
        Box::pin(async move { self.write(message, deadline).await.map_err(|failure| failure.into_error(&self.id)) })
    }

    /// There is nobody to ask: a pipe says that its reader is gone when it is written to.
    fn probe(&self, _: Deadline) -> BoxFuture<'_, Result<(), PublishError>> {
        let closed = self.queue().as_ref().is_none_or(mpsc::Sender::is_closed);
        Box::pin(async move { if closed { Err(Failure::Closed.into_error(&self.id)) } else { Ok(()) } })
    }

    fn close(&self, deadline: Deadline) -> BoxFuture<'_, ()> {
        drop(self.queue().take());
        let mut has_ended = self.has_ended.clone();
        Box::pin(async move {
            // Nothing is ever sent: an error is the end of the thread, and past the deadline nobody waits for it.
            while let Ok(Ok(())) = deadline.bound(has_ended.changed()).await {}
        })
    }
}

impl fmt::Debug for StdoutSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StdoutSink").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What the thread owns.
struct Writer<W> {
    id: SinkId,
    output: W,
    observer: Arc<dyn Observer>,
    answers: Answers<Written>,
    /// The number of the next line, from 1.
    next: u64,
}

impl<W: Write> Writer<W> {
    /// Writes until the sink is closed, or nobody reads any more.
    fn run(mut self, mut lines: mpsc::Receiver<Line>) {
        self.observer.observe(&Observation::SinkUp { sink: &self.id });
        let mut batch = Vec::new();
        while let Some(line) = lines.blocking_recv() {
            batch.push(line);
            // Others are about to have lines too: one write for all of them costs a fraction of one each.
            thread::yield_now();
            while let Ok(line) = lines.try_recv() {
                batch.push(line);
                if batch.len() >= LINES_AT_ONCE_MAX {
                    break;
                }
            }
            let outcome = self.write(&batch).map_err(|error| Failure::Write(Arc::new(error)));
            let numbers = self.next..;
            self.next += batch.len() as u64;
            let answers = batch.drain(..).zip(numbers);
            self.answers.give_all(answers.map(|(line, number)| (line.written, outcome.clone().map(|()| number))));
            if let Err(failure) = outcome {
                // A pipe without a reader never has one again. What is queued hears it from the closed queue.
                self.observer.observe(&Observation::SinkDown { sink: &self.id, cause: &failure });
                return;
            }
        }
    }

    fn write(&mut self, lines: &[Line]) -> io::Result<()> {
        let text: Vec<&[u8]> = lines.iter().map(|line| line.text.as_slice()).collect();
        self.output.write_all(&text.concat())?;
        self.output.flush()
    }
}
