//! The sink itself: hands messages to the thread that writes, and turns its answers into receipts.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use futures_util::future::BoxFuture;
use hookgate_core::{
    answers,
    event::SinkId,
    limits::Deadline,
    message::Message,
    observe::Observer,
    sink::{Capabilities, PublishError, Receipt, Sink},
};
use tokio::sync::{
    mpsc::{self, OwnedPermit, Sender},
    oneshot, watch,
};

use crate::{
    committer::{Committer, Handed, Order},
    config::Config,
    error::{ConnectError, Failure},
    log::Log,
};

/// Makes the directory if it is not there, takes possession of it, and mends what a crash has left.
///
/// # Errors
/// When the directory cannot be made or written to, or belongs to another process.
///
/// # Cancel safety
/// Dropping the future gives the directory back, soon after.
pub async fn connect(id: SinkId, config: &Config, observer: Arc<dyn Observer>) -> Result<FileSink, ConnectError> {
    let failed = |failure| ConnectError::new(&id, failure);
    let (queue, orders) = mpsc::channel(config.max_in_flight);
    let (ended, has_ended) = watch::channel(());
    let ((answers, passing_on), (opened, opening)) = (answers::channel(), oneshot::channel());
    let (dir, rotate_at, thread_id) = (config.dir.clone(), config.rotate_at.0, id.clone());
    // Everything that touches the disk happens on this thread: a disk that hangs stops nothing else.
    let work = move || match Log::open(&dir, rotate_at) {
        Ok((log, found)) => {
            let mut committer = Committer { id: thread_id, log, observer, answers, up: false, orders, ended };
            committer.begin(found);
            if opened.send(Ok(())).is_ok() {
                committer.run();
            }
        }
        Err(failure) => drop(opened.send(Err(failure))),
    };
    thread::Builder::new()
        .name("sink-file".to_owned())
        .spawn(work)
        .map_err(|source| failed(Failure::Thread { source }))?;
    tokio::spawn(passing_on);
    opening.await.unwrap_or(Err(Failure::Stopped)).map_err(failed)?;
    Ok(FileSink { id, queue: Mutex::new(Some(queue)), has_ended })
}

/// A directory of JSON Lines files that events are appended to.
pub struct FileSink {
    id: SinkId,
    /// `None` once the sink is closed. The thread ends when it and all its clones are dropped and the queue is empty.
    queue: Mutex<Option<Sender<Order>>>,
    /// Its sender is dropped when the thread has ended.
    has_ended: watch::Receiver<()>,
}

impl FileSink {
    async fn append(&self, message: &Message, deadline: Deadline) -> Result<Receipt, Arc<Failure>> {
        let place = self.place_in_queue(deadline).await?;
        let (answer, answered) = oneshot::channel();
        let handed = Handed::new(message.clone());
        place.send(Order::Append(Arc::clone(&handed), answer));
        match deadline.bound(answered).await {
            Ok(Ok(written)) => written.map(|position| Receipt::acknowledged(message, position)),
            // What can be taken back was not written, and will not be.
            Ok(Err(_)) if handed.take().is_some() => Err(Failure::Stopped.into()),
            Err(_) if handed.take().is_some() => Err(Failure::NotWritten.into()),
            Ok(Err(_)) | Err(_) => Err(Failure::NoAnswer.into()),
        }
    }

    async fn probe_thread(&self, deadline: Deadline) -> Result<(), Arc<Failure>> {
        let place = self.place_in_queue(deadline).await?;
        let (answer, answered) = oneshot::channel();
        place.send(Order::Probe(answer));
        match deadline.bound(answered).await {
            Ok(Ok(probed)) => probed.map_err(Arc::new),
            Ok(Err(_)) => Err(Failure::Stopped.into()),
            Err(_) => Err(Failure::NotWritten.into()),
        }
    }

    async fn place_in_queue(&self, deadline: Deadline) -> Result<OwnedPermit<Order>, Failure> {
        let queue = self.queue().clone().ok_or(Failure::Closed)?;
        match deadline.bound(queue.reserve_owned()).await {
            Ok(place) => place.map_err(|_| Failure::Stopped),
            Err(_) => Err(Failure::QueueFull),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Option<Sender<Order>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for FileSink {
    fn capabilities(&self) -> Capabilities {
        Capabilities { deduplicates: false }
    }

    fn publish<'a>(&'a self, message: &'a Message, deadline: Deadline) -> BoxFuture<'a, Result<Receipt, PublishError>> {
        Box::pin(async move { self.append(message, deadline).await.map_err(|failure| failure.as_error(&self.id)) })
    }

    /// Asks the thread that writes, so that a disk that hangs is found too; nothing is written.
    fn probe(&self, deadline: Deadline) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(async move { self.probe_thread(deadline).await.map_err(|failure| failure.as_error(&self.id)) })
    }

    /// Writes what is in the queue and gives the directory back.
    fn close(&self, deadline: Deadline) -> BoxFuture<'_, ()> {
        drop(self.queue().take());
        let mut has_ended = self.has_ended.clone();
        Box::pin(async move {
            // Nothing is ever sent: an error is the end of the thread, and past the deadline nobody waits for it.
            while let Ok(Ok(())) = deadline.bound(has_ended.changed()).await {}
        })
    }
}

impl fmt::Debug for FileSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSink").field("id", &self.id).finish_non_exhaustive()
    }
}
