//! The threads that events are worked on by, each with a runtime of its own, and what each of them has for itself.
//!
//! An event stays with the worker that its connection belongs to. So a connection to a broker or to Redis that is shared by
//! workers would have one wake another for every event, which costs a quarter of all that the event does; each has its own.

use std::{cell::Cell, sync::Arc};

use futures_util::future::{BoxFuture, join_all};

use crate::{
    limits::Deadline,
    message::Message,
    sink::{Capabilities, PublishError, PublishErrorKind, PublishReason, Receipt, Sink, Target},
};

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// Makes the current thread worker `number`. Every other thread counts as the first one, which has number 0.
pub fn be(number: usize) {
    NUMBER.set(number);
}

/// One for each worker. Clones share them.
#[derive(Debug)]
pub struct Each<T>(Arc<[T]>);

impl<T> Each<T> {
    /// Of workers 0, 1 and so on.
    ///
    /// # Panics
    /// When there is none.
    pub fn new(each: Vec<T>) -> Self {
        assert!(!each.is_empty(), "there is always a worker");
        Self(each.into())
    }

    /// That of the worker that the current thread is; without one of its own it has the first.
    pub fn here(&self) -> &T {
        self.0.get(NUMBER.get()).unwrap_or(&self.0[0])
    }
}

impl<T> Clone for Each<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Whether it is for want of a connection that a sink has sent nothing. What a broker that takes no more says is no such thing: over
/// another connection it would keep the message and say nothing.
fn has_no_connection(error: &PublishError) -> bool {
    use PublishReason::{Auth, ConnectionLost, Tls};
    error.kind != PublishErrorKind::Unknown && matches!(error.reason, ConnectionLost | Auth | Tls)
}

/// Each worker publishes over its own connection, or while that one is lost over another's; what is said about the broker is asked
/// over its own.
impl Sink for Each<Arc<dyn Sink>> {
    fn capabilities(&self) -> Capabilities {
        self.here().capabilities()
    }

    fn publish<'a>(&'a self, message: &'a Message, deadline: Deadline) -> BoxFuture<'a, Result<Receipt, PublishError>> {
        Box::pin(async move {
            let own = self.here();
            let mut outcome = own.publish(message, deadline).await;
            for other in self.0.iter().filter(|other| !Arc::ptr_eq(other, own)) {
                match &outcome {
                    Err(error) if has_no_connection(error) => outcome = other.publish(message, deadline).await,
                    _ => break,
                }
            }
            outcome
        })
    }

    fn probe(&self, deadline: Deadline) -> BoxFuture<'_, Result<(), PublishError>> {
        self.here().probe(deadline)
    }

    fn review<'a>(
        &'a self,
        targets: &'a [Target],
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Vec<String>, PublishError>> {
        self.here().review(targets, deadline)
    }

    fn close(&self, deadline: Deadline) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            join_all(self.0.iter().map(|sink| sink.close(deadline))).await;
        })
    }
}
