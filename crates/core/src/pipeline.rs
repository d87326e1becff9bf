//! The one place that walks an event's whole way: verify, identify, route, claim, publish, hand off, settle.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use http::Method;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::task::TaskTracker;

use crate::{
    auth::{Authenticated, Fetch, Request, SnsRequest, Unverified, Wanted},
    dedup::{Dedup, OnMismatch},
    envelope::{self, Burial},
    event::{Event, SourceId},
    handoff::{Accepted, AcceptedAs, Answered, Handoff, Miss, Refused},
    handshake::HandshakeReply,
    identity::Malformed,
    intake::NotInflated,
    limits::{Deadline, Turns},
    message::Message,
    observe::{AttemptResult, Chain, Observation, Observer, Outcome},
    publisher::Publisher,
    route::{Ack, Decision, Plan, Routed, Router},
    sink::{PublishError, PublishErrorKind, Receipt},
    source::Source,
    spool::{Shelf, Spool, SpoolError, SpoolReason, Ticket},
    trace::Trace,
};

/// Everything that an event meets on its way.
pub struct Pipeline {
    /// Which events go where.
    pub router: Router,
    /// What was accepted before.
    pub dedup: Dedup,
    /// Each sink of the config with its layers, at the index of its [`crate::event::SinkId`].
    pub publishers: Vec<Option<Arc<Publisher>>>,
    /// Where messages wait that their sinks do not take in time, if they do.
    pub spool: Option<Arc<dyn Spool>>,
    /// Gets the documents that verification needs, and confirms subscriptions.
    pub fetch: Arc<dyn Fetch>,
    /// Who is told what happens.
    pub observer: Arc<dyn Observer>,
    /// How long after its last byte a request is answered at the latest, where its source does not say.
    pub reply_deadline: Duration,
    /// Who of those with long bodies is at work.
    pub turns: Arc<Turns>,
    /// Every task that an event started; empty when all of them are done.
    pub tasks: TaskTracker,
}

impl Pipeline {
    /// Takes a request through the pipeline, on a task of its own that goes on when the caller goes away.
    pub fn spawn(self: &Arc<Self>, source: Arc<Source>, request: Unverified) -> JoinHandle<Result<Answered, Refused>> {
        let pipeline = Arc::clone(self);
        // Boxed: it is some kilobytes, which would be copied from place to place until they are the task's.
        self.tasks.spawn(Box::pin(async move { pipeline.accept(&source, request).await }))
    }

    /// Takes a request through the pipeline to its end.
    ///
    /// # Errors
    /// Why it is not accepted; nothing is remembered of it then.
    ///
    /// # Cancel safety
    /// None: what was published may be published again. Use [`Self::spawn`].
    async fn accept(self: &Arc<Self>, source: &Arc<Source>, request: Unverified) -> Result<Answered, Refused> {
        let started = Instant::now();
        let deadline = Deadline::after(source.reply_deadline().unwrap_or(self.reply_deadline));
        if let Some(reply) = source.answer_unverified(&request) {
            return Ok(self.handshake(source, reply));
        }
        let request = self.verify(source, request, deadline).await?;
        if let Some(reply) = source.answer(&request) {
            return Ok(self.handshake(source, reply));
        }
        if let Some(asked) = source.sns_request(&request) {
            return self.subscription(source, asked, deadline).await;
        }
        if request.method != Method::POST {
            return Err(Refused::NotAnEvent);
        }
        let body_bytes = request.body.len();
        self.observer.observe(&Observation::EventReceived { source: source.id(), body_bytes });
        let mut ending = Ending {
            pipeline: self,
            source: source.id(),
            event: None,
            trace: source.trace(&request),
            started,
            outcome: Outcome::Failed,
            cause: None,
        };
        let (its_source, trace) = (Arc::clone(source), ending.trace.clone());
        let identified = move || Self::event(&its_source, trace, request);
        let event = match self.turns.run(body_bytes, deadline, identified).await {
            Ok(event) => Arc::new(event),
            Err(refused) => return ending.of(Err(refused)).map(Answered::Accepted),
        };
        ending.event = Some(Arc::clone(&event));
        let mut outcome = self.take_on(source, &event, deadline).await;
        if let Ok(Taken::OtherBody) = outcome {
            // Under its new id it is routed anew: a plan is for one id.
            let event = Arc::new(event.map_ref(Event::told_apart));
            ending.event = Some(Arc::clone(&event));
            outcome = self.take_on(source, &event, deadline).await;
        }
        let outcome = outcome.map(|taken| match taken {
            Taken::Accepted(accepted) => accepted,
            Taken::OtherBody => unreachable!("the body is part of the id by now"),
        });
        ending.of(outcome).map(Answered::Accepted)
    }

    /// Makes the event that `request` is, if its source may send one more.
    fn event(source: &Source, trace: Trace, request: Authenticated<Request>) -> Result<Authenticated<Event>, Refused> {
        source.charge().map_err(Refused::RateLimited)?;
        let request = source.inflate(request).map_err(|error| match error {
            NotInflated::Malformed(malformed) => Refused::Malformed(malformed),
            NotInflated::NoRoom => Refused::Overloaded,
        })?;
        source.identify_in(trace, request).map_err(Refused::Malformed)
    }

    /// Routes an event and delivers it.
    async fn take_on(
        self: &Arc<Self>,
        source: &Source,
        event: &Arc<Authenticated<Event>>,
        deadline: Deadline,
    ) -> Result<Taken, Refused> {
        let (pipeline, planned) = (Arc::clone(self), Arc::clone(event));
        let plan = move || pipeline.router.plan(&planned);
        let Decision { routed, routes } = self.turns.run(event.body.len(), deadline, plan).await;
        for (route, result) in &routes {
            self.observer.observe(&Observation::RouteDecided { route, result: *result });
        }
        match routed {
            Routed::To(plan) => self.deliver(source, event, &plan, deadline).await,
            Routed::Drop(dropped) => Ok(Taken::Accepted(dropped.accept(event))),
            Routed::Reject => Err(Refused::Unrouted),
            Routed::Unredactable(error) => Err(Refused::Malformed(Malformed::NotRedactable(error))),
        }
    }

    /// Proves who sent `request`, with what has to be fetched for that.
    async fn verify(
        &self,
        source: &Arc<Source>,
        request: Unverified,
        deadline: Deadline,
    ) -> Result<Authenticated<Request>, Refused> {
        let (body_bytes, its_source) = (request.peek().body.len(), Arc::clone(source));
        let attempt = move || its_source.verifier().attempt(request);
        let attempted = self.turns.run(body_bytes, deadline, attempt).await;
        let verified = match attempted {
            Err(refusal) => match source.verifier().wanted(&refusal.unverified) {
                documents if documents.is_empty() => Err(refusal.failure),
                documents => {
                    for wanted in documents {
                        self.fetch(wanted, deadline).await;
                    }
                    source.verify(refusal.unverified)
                }
            },
            Ok(request) => Ok(request),
        };
        match verified {
            Ok(request) => {
                self.observer.observe(&Observation::SenderVerified { source: source.id(), proof: request.proof() });
                Ok(request)
            }
            Err(reason) => {
                self.observer.observe(&Observation::SenderRefused { source: source.id(), reason });
                Err(Refused::Unauthenticated(reason))
            }
        }
    }

    /// Fetches a document that verification needs. Without it the request is refused for that reason.
    pub async fn fetch(&self, wanted: Wanted, deadline: Deadline) {
        let url = wanted.url().to_owned();
        let fetched = deadline.bound(wanted.fetch(&*self.fetch)).await;
        let Some(fetched) = fetched.unwrap_or_else(|_| Some(Err("no answer in time".to_owned()))) else { return };
        self.observer.observe(&Observation::DocumentFetched { url: &url, error: fetched.err().as_deref() });
    }

    fn handshake(&self, source: &Source, reply: HandshakeReply) -> Answered {
        self.observer.observe(&Observation::HandshakeAnswered { source: source.id(), status: reply.status() });
        Answered::Handshake(reply)
    }

    /// Does what an authentic message about a subscription asks for. It is never published.
    async fn subscription(&self, source: &Source, asked: SnsRequest, deadline: Deadline) -> Result<Answered, Refused> {
        /// The answer of the service is a short document.
        const ANSWER_BYTES_MAX: usize = 64 * 1024;
        let SnsRequest::Confirm(url) = asked else {
            return Ok(self.handshake(source, HandshakeReply::empty(200)));
        };
        let confirmed = deadline.bound(self.fetch.get(url, ANSWER_BYTES_MAX)).await;
        let error = confirmed.unwrap_or_else(|_| Err("no answer in time".to_owned())).err();
        self.observer.observe(&Observation::SubscriptionConfirmed { source: source.id(), error: error.as_deref() });
        match error {
            None => Ok(self.handshake(source, HandshakeReply::empty(200))),
            Some(_) => Err(Refused::NotConfirmed),
        }
    }

    async fn deliver(
        &self,
        source: &Source,
        event: &Arc<Authenticated<Event>>,
        plan: &Plan,
        deadline: Deadline,
    ) -> Result<Taken, Refused> {
        let policy = source.dedup();
        let claimed = match self.dedup.claim(event, policy, deadline).await? {
            Ok(claimed) => claimed,
            Err(duplicate) => {
                if !duplicate.has_same_body() {
                    self.observer.observe(&Observation::PayloadMismatch { event });
                    if policy.on_mismatch == OnMismatch::NewEvent {
                        return Ok(Taken::OtherBody);
                    }
                }
                return Ok(Taken::Accepted(duplicate.accept()));
            }
        };
        let handoff = self.hand_off(event, plan, deadline).await?;
        Ok(Taken::Accepted(claimed.settle(&handoff).await))
    }

    /// Publishes to every destination at once and adds up what came back.
    async fn hand_off(
        &self,
        event: &Arc<Authenticated<Event>>,
        plan: &Plan,
        deadline: Deadline,
    ) -> Result<Handoff, Refused> {
        let (required, best_effort): (Vec<Message>, Vec<Message>) =
            plan.messages(event).partition(|message| message.leg.required);
        for message in best_effort {
            // The reply does not wait for what it does not promise.
            let publisher = Arc::clone(self.publisher(&message));
            self.tasks.spawn(async move { publisher.publish(&message, deadline).await.ok() });
        }
        let safe = match required.as_slice() {
            // Most events go to one place.
            [message] => vec![self.make_safe(message, deadline).await],
            _ => join_all(required.iter().map(|message| self.make_safe(message, deadline))).await,
        };
        let mut miss = None;
        let (mut receipts, mut tickets) = (Vec::with_capacity(safe.len()), Vec::new());
        for outcome in safe {
            match outcome {
                Ok(Safe::Receipt(receipt)) => receipts.push(receipt),
                Ok(Safe::Ticket(ticket)) => tickets.push(ticket),
                Err(error) => miss = miss.max(Some(error)),
            }
        }
        // A missing receipt without an error cannot be, and would be no reason to answer 2xx.
        Handoff::complete(plan, &receipts, &tickets).ok_or(Refused::NotHandedOff(miss.unwrap_or(Miss::Unknown)))
    }

    async fn make_safe(&self, message: &Message, deadline: Deadline) -> Result<Safe, Miss> {
        match &self.spool {
            None => self.publish(message, deadline).await,
            Some(spool) => self.publish_or_spool(&**spool, message, deadline).await,
        }
    }

    async fn publish(&self, message: &Message, deadline: Deadline) -> Result<Safe, Miss> {
        let published = self.publisher(message).publish(message, deadline).await;
        published.map(Safe::Receipt).map_err(|error| Miss::from(error.kind))
    }

    /// Publishes `message`; what the broker does not take in time goes to the spool, and what it will never take to the dead
    /// letters. Where neither has room, the sender is told what the broker said.
    async fn publish_or_spool(&self, spool: &dyn Spool, message: &Message, deadline: Deadline) -> Result<Safe, Miss> {
        let publisher = self.publisher(message);
        if message.leg.ack == Ack::Spool || publisher.circuit_is_open() {
            // Without the spool there is still the broker.
            return match self.append(spool, message, Shelf::Backlog, envelope::encode(message), deadline).await {
                Ok(ticket) => Ok(Safe::Ticket(ticket)),
                Err(_) => self.publish(message, deadline).await,
            };
        }
        let error = match publisher.publish(message, deadline.with_reserve()).await {
            Ok(receipt) => return Ok(Safe::Receipt(receipt)),
            Err(error) => error,
        };
        let kept = match error.kind {
            PublishErrorKind::Rejected => self.bury(spool, message, &error, deadline).await,
            _ => self.append(spool, message, Shelf::Backlog, envelope::encode(message), deadline).await,
        };
        kept.map(Safe::Ticket).map_err(|_| Miss::from(error.kind))
    }

    async fn bury(
        &self,
        spool: &dyn Spool,
        message: &Message,
        error: &PublishError,
        deadline: Deadline,
    ) -> Result<Ticket, SpoolError> {
        let reason = AttemptResult::from(error.reason);
        let cause = Chain(error).to_string();
        let burial = Burial { reason: reason.label().to_owned(), error: cause, failures: 1, crashes: 0 };
        let record = envelope::bury(&burial, &envelope::encode(message));
        let ticket = self.append(spool, message, Shelf::Dead, record, deadline).await?;
        let (sink, source, event_id) = (&message.leg.sink, &message.event.source, message.event.id.as_str());
        let cause = &burial.error;
        self.observer.observe(&Observation::DeadLettered { sink, source, event_id, reason, cause });
        Ok(ticket)
    }

    async fn append(
        &self,
        spool: &dyn Spool,
        message: &Message,
        shelf: Shelf,
        record: Bytes,
        deadline: Deadline,
    ) -> Result<Ticket, SpoolError> {
        let (begun, sink) = (Instant::now(), &message.leg.sink);
        let appended = deadline.bound(spool.append(sink, shelf, record)).await;
        let appended = appended.unwrap_or_else(|_| {
            Err(SpoolError { reason: SpoolReason::Timeout, detail: "no fsync before the reply deadline".to_owned() })
        });
        let error = appended.as_ref().err();
        self.observer.observe(&Observation::SpoolAppended { sink, error, elapsed: begun.elapsed() });
        appended.map(|number| Ticket::fsynced(message, number))
    }

    fn publisher(&self, message: &Message) -> &Arc<Publisher> {
        self.publishers[message.leg.sink.index()].as_ref().expect("a plan names sinks of its own config")
    }
}

/// That one destination's message will not be lost.
enum Safe {
    Receipt(Receipt),
    Ticket(Ticket),
}

/// What became of an event that was not refused.
enum Taken {
    Accepted(Accepted),
    /// Its id was accepted with another body, and its source says that this makes it an event of its own.
    OtherBody,
}

impl From<PublishErrorKind> for Miss {
    fn from(kind: PublishErrorKind) -> Self {
        match kind {
            // What an operator can mend is not the event's fault: the sender may come back.
            PublishErrorKind::Unavailable | PublishErrorKind::Throttled | PublishErrorKind::Misconfigured => {
                Self::Unavailable
            }
            PublishErrorKind::Rejected => Self::Rejected,
            PublishErrorKind::Unknown => Self::Unknown,
        }
    }
}

/// Tells the observer how an event ended, also when a panic ends it.
struct Ending<'a> {
    pipeline: &'a Pipeline,
    source: &'a SourceId,
    event: Option<Arc<Authenticated<Event>>>,
    trace: Trace,
    started: Instant,
    outcome: Outcome,
    cause: Option<Refused>,
}

impl Ending<'_> {
    fn of(mut self, result: Result<Accepted, Refused>) -> Result<Accepted, Refused> {
        self.outcome = match &result {
            Ok(accepted) => match accepted.as_what() {
                AcceptedAs::Delivered => Outcome::Delivered,
                AcceptedAs::Spooled => Outcome::Spooled,
                AcceptedAs::Duplicate => Outcome::Duplicate,
                AcceptedAs::Dropped => Outcome::Dropped,
            },
            Err(Refused::Unauthenticated(_) | Refused::NotAnEvent | Refused::NotConfirmed) => {
                unreachable!("an event is authenticated and posted")
            }
            Err(Refused::Malformed(_)) => Outcome::Malformed,
            Err(Refused::RateLimited(_)) => Outcome::RateLimited,
            Err(Refused::Overloaded) => Outcome::Overloaded,
            Err(Refused::Unrouted) => Outcome::Unrouted,
            Err(Refused::InProgress) => Outcome::InProgress,
            Err(Refused::DedupUnavailable) => Outcome::DedupUnavailable,
            Err(Refused::NotHandedOff(Miss::Rejected)) => Outcome::Rejected,
            Err(Refused::NotHandedOff(Miss::Unavailable)) => Outcome::Unavailable,
            Err(Refused::NotHandedOff(Miss::Unknown)) => Outcome::Unknown,
        };
        self.cause = result.as_ref().err().cloned();
        result
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.pipeline.observer.observe(&Observation::EventFinished {
            source: self.source,
            event: self.event.as_deref().map(|event| &**event),
            trace: &self.trace,
            outcome: self.outcome,
            elapsed: self.started.elapsed(),
            cause: self.cause.as_ref().map(|refused| refused as _),
        });
    }
}
