//! The sink: one attempt for each message, on the connection that is up now.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use hookgate_core::{
    config::ByteLimit,
    event::SinkId,
    limits::Deadline,
    message::Message,
    observe::Observer,
    secret::ResolveSecret,
    sink::{Capabilities, ConnectError, Position, PublishError, PublishReason, Receipt, Sink, Target},
};
use lapin::types::ShortString;
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    access::{Access, AccessError},
    config::Config,
    connection::{Dialer, Link, Live},
    error::{Cause, Disconnected},
    outbound::Outbound,
};

/// Longest wait for the first connection. A broker that is there answers in milliseconds; one that is not does not hold up
/// the start.
const FIRST_CONNECTION_MAX: Duration = Duration::from_secs(2);

/// A sink that publishes to the exchanges of one vhost.
pub struct AmqpSink {
    id: SinkId,
    max_message: ByteLimit,
    link: Arc<watch::Sender<Link>>,
    /// Publishes that have begun and not ended. It only wakes `close`.
    in_flight: watch::Sender<usize>,
    /// AMQP says nothing of where a message is, so receipts are counted.
    receipts: AtomicU64,
    /// The exchange of the latest receipt, which a probe looks up. None for the default one, which is always there.
    latest_exchange: Mutex<Option<ShortString>>,
    connecting: JoinHandle<()>,
}

/// Connects the sink `id`, and keeps it connected until it is closed or dropped.
///
/// Waits for the first connection, but not longer than two seconds and not until it succeeds: a broker that is down, or
/// refuses us, is reported by every publish and probe until it takes us. Whether it does is told to `observer`, each change
/// once; that it has blocked the connection (low on memory or disk) is one.
///
/// # Errors
/// When something that the config names cannot be used: a problem that [`Config::check`] finds, a secret that is not
/// there or no URL, a file that holds no certificate.
pub async fn connect(
    id: SinkId,
    config: &Config,
    resolve: &mut ResolveSecret<'_>,
    observer: Arc<dyn Observer>,
) -> Result<AmqpSink, ConnectError> {
    if let Some(problem) = config.check().into_iter().next() {
        return Err(ConnectError::new(&id, problem.key, problem.message));
    }
    let unusable = |error: AccessError| ConnectError::new(&id, error.key(), error);
    let access = Access::resolve(config, resolve).map_err(unusable)?;
    // Secrets and files are tried now, when an operator is looking, and again for each connection.
    access.read().map_err(unusable)?;
    let dialer = Dialer::new(access, id.clone(), config.max_in_flight);
    let (link, mut changes) = watch::channel(Link::Down(Arc::new(Disconnected::not_yet())));
    let link = Arc::new(link);
    let connecting = tokio::spawn(dialer.keep_connected(Arc::clone(&link), observer));
    let sink = AmqpSink {
        id,
        max_message: config.max_message,
        link,
        in_flight: watch::Sender::new(0),
        receipts: AtomicU64::new(0),
        latest_exchange: Mutex::default(),
        connecting,
    };
    // Neither outcome matters here: it stands in `link`.
    let _ = Deadline::after(FIRST_CONNECTION_MAX).bound(changes.changed()).await;
    Ok(sink)
}

impl Sink for AmqpSink {
    fn capabilities(&self) -> Capabilities {
        Capabilities { deduplicates: false }
    }

    fn publish<'a>(&'a self, message: &'a Message, deadline: Deadline) -> BoxFuture<'a, Result<Receipt, PublishError>> {
        Box::pin(async move {
            let published = self.publish_to_exchange(message, deadline).await;
            published.map_err(|cause| cause.into_error(&self.id))
        })
    }

    /// Finds that there is no connection, or that it is blocked, or that the exchange of the latest receipt is gone. Whether
    /// a queue is bound shows in a publish only.
    fn probe(&self, deadline: Deadline) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(async move {
            let exchange = self.latest_exchange().clone();
            let looked = match self.live() {
                Ok(live) => live.look_up(exchange, deadline).await,
                Err(cause) => Err(cause),
            };
            looked.map_err(|cause| cause.into_error(&self.id))
        })
    }

    /// Whether the exchanges are there. Whether a queue is bound shows in a publish only.
    fn review<'a>(
        &'a self,
        targets: &'a [Target],
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Vec<String>, PublishError>> {
        let exchanges: BTreeSet<&str> = targets.iter().filter_map(exchange_of).collect();
        Box::pin(async move {
            let mut found = Vec::new();
            for exchange in exchanges {
                let looked = match self.live() {
                    Ok(live) => live.look_up(Some(ShortString::from(exchange)), deadline).await,
                    Err(cause) => Err(cause),
                };
                match looked.map_err(|cause| cause.into_error(&self.id)) {
                    Ok(()) => {}
                    Err(error) if error.reason == PublishReason::NoDestination => {
                        found.push(format!("there is no exchange {exchange:?} (x stands for values)"));
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(found)
        })
    }

    fn close(&self, deadline: Deadline) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let last = self.link.send_replace(Link::Closed);
            self.connecting.abort();
            // Those that counted themselves before the line above are waited for; the others see that it is closed.
            let mut in_flight = self.in_flight.subscribe();
            let all_ended = deadline.bound(in_flight.wait_for(|count| *count == 0)).await.is_ok();
            if let Link::Up(live) | Link::Blocked(live, _) = last {
                if !all_ended {
                    live.cut();
                }
                live.close(deadline).await;
            }
        })
    }
}

impl AmqpSink {
    async fn publish_to_exchange(&self, message: &Message, deadline: Deadline) -> Result<Receipt, Cause> {
        let _in_flight = InFlight::enter(&self.in_flight);
        let (bytes, ByteLimit(bytes_max)) = (message.body().len() as u64, self.max_message);
        if bytes > bytes_max {
            return Err(Cause::TooLarge { bytes, bytes_max, whose: "`max_message`" });
        }
        let outbound = Outbound::new(message)?;
        let exchange = outbound.exchange.clone();
        self.live()?.publish(outbound, deadline).await?;
        *self.latest_exchange() = Some(exchange).filter(|exchange| !exchange.as_str().is_empty());
        let offset = self.receipts.fetch_add(1, Ordering::Relaxed);
        let place = message.leg.target.to_string().into();
        Ok(Receipt::acknowledged(message, Position { place, offset, duplicate: false }))
    }

    fn live(&self) -> Result<Arc<Live>, Cause> {
        match &*self.link.borrow() {
            Link::Up(live) => Ok(Arc::clone(live)),
            Link::Down(why) | Link::Blocked(_, why) => Err(Cause::Disconnected(Arc::clone(why))),
            Link::Closed => Err(Cause::Closed),
        }
    }

    fn latest_exchange(&self) -> MutexGuard<'_, Option<ShortString>> {
        self.latest_exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AmqpSink {
    fn drop(&mut self) {
        self.connecting.abort();
    }
}

impl fmt::Debug for AmqpSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpSink").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The exchange that `target` names; the default one is always there.
fn exchange_of(target: &Target) -> Option<&str> {
    match target {
        Target::Exchange { exchange, .. } if !exchange.is_empty() => Some(exchange),
        _ => None,
    }
}

/// Counts one publish while it lives.
struct InFlight<'a>(&'a watch::Sender<usize>);

impl<'a> InFlight<'a> {
    fn enter(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
