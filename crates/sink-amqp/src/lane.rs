//! One channel for one exchange, owned by one task: what it is given is published in order, and each gets its own answer.
//!
//! A channel is the broker's unit of failure: it closes one for a message to an exchange that is not there, or that we may
//! not publish to, and with it goes the answer to everything that is in flight on it. So each exchange has its own.
//!
//! The surprising thing: nobody waits for a message to be written before the next one is begun, since that would cost a
//! round trip through the library's thread for each. What that queues in the library is bounded by [`Reserved::unsent`].

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, poll, stream::FuturesUnordered};
use lapin::{
    Channel, Confirmation, Connection, ExchangeKind,
    message::BasicReturnMessage,
    options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions},
    types::{FieldTable, ShortString},
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::{
    error::{Cause, ChannelEnd, Disconnected},
    ledger::{Answer, Confirmed, Ledger, Returned},
    outbound::Outbound,
};

/// A message that is returned when no queue is there for it. Without it, RabbitMQ acknowledges and forgets it.
const MANDATORY: BasicPublishOptions = BasicPublishOptions { mandatory: true, immediate: false };

/// A message to be published, and whoever waits for its answer.
pub(crate) struct Request {
    pub(crate) outbound: Outbound,
    pub(crate) reserved: Reserved,
    pub(crate) answer: oneshot::Sender<Result<(), Cause>>,
}

/// The room that a message takes.
pub(crate) struct Reserved {
    /// Among the messages of one lane that are not answered. Kept until the answer, even if nobody waits for it.
    pub(crate) place: OwnedSemaphorePermit,
    /// Among the bytes that are queued in the library. Kept until it has written them.
    pub(crate) unsent: OwnedSemaphorePermit,
}

/// The task's half.
pub(crate) struct Lane {
    pub(crate) connection: Arc<Connection>,
    pub(crate) broker: Arc<str>,
    pub(crate) exchange: ShortString,
    pub(crate) requests: mpsc::Receiver<Request>,
    /// Longest body that the broker takes, as far as it has said.
    pub(crate) body_bytes_max: Arc<AtomicU64>,
}

/// A message in flight.
struct Waiting {
    answer: oneshot::Sender<Result<(), Cause>>,
    exchange: ShortString,
    routing_key: ShortString,
    body_bytes: u64,
    _place: OwnedSemaphorePermit,
}

/// The number of a message, and what the library says of it in the end.
type Confirming = BoxFuture<'static, (u64, lapin::Result<Confirmation>)>;

/// What is in flight on one channel.
struct InFlight {
    ledger: Ledger<Waiting>,
    confirming: FuturesUnordered<Confirming>,
}

impl Lane {
    /// Publishes what it is given until nobody can give it anything, or the channel ends.
    pub(crate) async fn run(mut self) {
        let end = match self.open().await {
            Ok(channel) => self.serve(channel).await,
            Err(error) => ChannelEnd::of(&error),
        };
        if let ChannelEnd::TooLarge { bytes_max, .. } = end {
            self.body_bytes_max.fetch_min(bytes_max, Ordering::Relaxed);
        }
        // What came after the end was not sent.
        self.requests.close();
        while let Some(request) = self.requests.recv().await {
            reply(request.answer, Err(end.before_sending()));
        }
    }

    async fn open(&self) -> lapin::Result<Channel> {
        let channel = self.connection.create_channel().await?;
        if !self.exchange.as_str().is_empty() {
            look_up_exchange(&channel, self.exchange.clone()).await?;
        }
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    async fn serve(&mut self, channel: Channel) -> ChannelEnd {
        let mut in_flight = InFlight { ledger: Ledger::new(), confirming: FuturesUnordered::new() };
        let mut is_wanted = true;
        let end = loop {
            let ended = tokio::select! {
                // Answers first, since only they make room.
                biased;
                Some(first) = in_flight.confirming.next(), if !in_flight.confirming.is_empty() => in_flight.settle(first),
                request = self.requests.recv(), if is_wanted => match request {
                    Some(request) => {
                        self.begin(request, &channel, &mut in_flight).await;
                        None
                    }
                    None => {
                        is_wanted = false;
                        None
                    }
                },
                else => break ChannelEnd::Other { words: "it is not needed any more".into() },
            };
            if let Some(end) = ended {
                break end;
            }
        };
        in_flight.abandon(&end);
        end
    }

    async fn begin(&self, request: Request, channel: &Channel, in_flight: &mut InFlight) {
        let Request { outbound, reserved: Reserved { place, unsent }, answer } = request;
        if self.connection.status().blocked() {
            let blocked = Disconnected::blocked(&self.broker, "it has just begun to");
            return reply(answer, Err(Cause::Disconnected(Arc::new(blocked))));
        }
        // Nobody waits for it any more, and it was not sent.
        if answer.is_closed() {
            return;
        }
        let waiting = Waiting {
            answer,
            exchange: outbound.exchange.clone(),
            routing_key: outbound.routing_key.clone(),
            body_bytes: outbound.body.len() as u64,
            _place: place,
        };
        let number = in_flight.ledger.publish(outbound.message_id.clone(), waiting);
        let mut confirming = publish(channel.clone(), number, outbound, unsent).boxed();
        // The first poll numbers the message on the channel: so it happens here, in the order of the ledger.
        match poll!(&mut confirming) {
            std::task::Poll::Ready((number, result)) => {
                in_flight.confirming.push(async move { (number, result) }.boxed())
            }
            std::task::Poll::Pending => in_flight.confirming.push(confirming),
        }
    }
}

/// Fails, and the channel with it, if there is no such exchange. Needs no permission, and changes nothing.
pub(crate) async fn look_up_exchange(channel: &Channel, exchange: ShortString) -> lapin::Result<()> {
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    // The kind is not looked at.
    channel.exchange_declare(exchange, ExchangeKind::Direct, passive, FieldTable::default()).await
}

async fn publish(
    channel: Channel,
    number: u64,
    outbound: Outbound,
    unsent: OwnedSemaphorePermit,
) -> (u64, lapin::Result<Confirmation>) {
    let written = {
        let Outbound { exchange, routing_key, properties, body, .. } = outbound;
        channel.basic_publish(exchange, routing_key, MANDATORY, &body, properties).await
    };
    drop(unsent);
    match written {
        Ok(confirm) => (number, confirm.await),
        Err(error) => (number, Err(error)),
    }
}

impl InFlight {
    /// Enters `first` and all other answers that are there, and then tells those whose answer is certain.
    fn settle(&mut self, first: (u64, lapin::Result<Confirmation>)) -> Option<ChannelEnd> {
        let mut end = self.enter(first);
        while let Some(Some(next)) = self.confirming.next().now_or_never() {
            end = end.or(self.enter(next));
        }
        for (waiting, answer) in self.ledger.settle() {
            waiting.tell(answer);
        }
        end
    }

    fn enter(&mut self, (number, result): (u64, lapin::Result<Confirmation>)) -> Option<ChannelEnd> {
        let (confirmed, returned) = match result {
            Ok(Confirmation::Ack(returned)) => (Confirmed::Ack, returned),
            Ok(Confirmation::Nack(returned)) => (Confirmed::Nack, returned),
            Ok(Confirmation::NotRequested) => return Some(ChannelEnd::Other { words: "it confirms nothing".into() }),
            Err(error) => return Some(ChannelEnd::of(&error)),
        };
        self.ledger.confirm(number, confirmed, returned.as_ref().map(read_return));
        None
    }

    /// Tells all that are left, now that nothing more will come.
    fn abandon(&mut self, end: &ChannelEnd) {
        let left = self.ledger.abandon();
        let is_alone = left.len() == 1;
        for unanswered in left {
            let Waiting { answer, body_bytes, .. } = unanswered.waiting;
            reply(answer, Err(end.after_sending(body_bytes, is_alone && unanswered.is_untouched)));
        }
    }
}

impl Waiting {
    fn tell(self, answer: Answer) {
        let (exchange, routing_key) = (self.exchange.to_string(), self.routing_key.to_string());
        reply(
            self.answer,
            match answer {
                Answer::Stored => Ok(()),
                Answer::Refused => Err(Cause::Nacked { exchange, routing_key }),
                Answer::Returned(words) => Err(Cause::Unroutable { exchange, routing_key, words }),
            },
        );
    }
}

/// The body has come back too; nobody needs it.
fn read_return(message: &BasicReturnMessage) -> Returned {
    let message_id = message.properties.message_id().as_ref().map(ToString::to_string);
    Returned { message_id: message_id.unwrap_or_default(), words: message.reply_text.as_str().into() }
}

fn reply(answer: oneshot::Sender<Result<(), Cause>>, told: Result<(), Cause>) {
    // Whoever asked may have given up.
    let _ = answer.send(told);
}
