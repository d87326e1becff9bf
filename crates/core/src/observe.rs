//! What happens inside hookgate, said once in a closed list; how it is counted and logged is the observer's choice.
//!
//! A new occurrence is a new [`Observation`]. Labels come from the config and from the enums here, never from senders.

use std::{
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use crate::{
    auth::{AuthFailure, Proof},
    dedup::StoreError,
    event::{Event, SinkId, SourceId},
    message::Message,
    sink::{Position, PublishError, PublishErrorKind, PublishReason},
    spool::SpoolError,
    trace::Trace,
};

/// Takes what happens. Called on the hot path: it must not block and must not fail.
pub trait Observer: Send + Sync + 'static {
    /// Notes `observation`.
    fn observe(&self, observation: &Observation<'_>);
}

/// An observer for those who want to know nothing, such as a dry run.
#[derive(Debug)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn observe(&self, _: &Observation<'_>) {}
}

/// Something that happened.
pub enum Observation<'a> {
    /// A connection was accepted.
    ConnectionOpened,
    /// A connection is gone.
    ConnectionClosed,
    /// Accepting a connection failed.
    AcceptFailed {
        /// The operating system's reason.
        error: &'a std::io::Error,
    },
    /// A connection from a network of `server.proxy_protocol_from` was closed, since it did not begin as it has to.
    ProxyHeaderRefused {
        /// Whose connection it was: the proxy's.
        peer: IpAddr,
        /// Why.
        reason: ProxyHeaderFailure,
    },
    /// A client and the public port did not come to speak TLS.
    TlsHandshakeFailed {
        /// Why.
        reason: TlsFailure,
        /// What the library says of it, if it was asked.
        error: Option<&'a std::io::Error>,
    },
    /// A certificate is shown to the clients of the public port: the first one, or one that has been renewed.
    CertificateServed {
        /// When it ends; unknown where it is too unusual to be read.
        expires: Option<SystemTime>,
    },
    /// The files of the certificate changed and cannot be used; the one from before is shown on.
    CertificateKept {
        /// Why, for the operator.
        cause: &'a (dyn fmt::Display + Sync),
    },
    /// A request's head has arrived.
    RequestStarted,
    /// A request was answered, or its client is gone (`status` 499, which is never sent).
    RequestFinished {
        /// Whose path it was, if anybody's.
        source: Option<&'a SourceId>,
        /// The status code.
        status: u16,
        /// From head to answer.
        elapsed: Duration,
    },
    /// A request was refused before it became an event.
    RequestRejected {
        /// Whose path it was, if anybody's.
        source: Option<&'a SourceId>,
        /// Why.
        reason: Rejection,
    },
    /// A request was refused since nobody knows who sent it.
    SenderRefused {
        /// Whose path it was.
        source: &'a SourceId,
        /// Why.
        reason: AuthFailure,
    },
    /// A request was authenticated.
    SenderVerified {
        /// Whose path it was.
        source: &'a SourceId,
        /// By what; an operator sees from it when the old secret of a rotation is out of use.
        proof: &'a Proof,
    },
    /// A request by which a provider makes sure of us was answered. It is no event.
    HandshakeAnswered {
        /// Whose path it was.
        source: &'a SourceId,
        /// The status that it was answered with.
        status: u16,
    },
    /// A subscription was to be confirmed at the provider.
    SubscriptionConfirmed {
        /// Whose path it was.
        source: &'a SourceId,
        /// Why it was not, if so.
        error: Option<&'a str>,
    },
    /// A document that verification needs was fetched.
    DocumentFetched {
        /// Where it stands.
        url: &'a str,
        /// Why it is not here, if so.
        error: Option<&'a str>,
    },
    /// An authenticated request is an event.
    EventReceived {
        /// Who sent it.
        source: &'a SourceId,
        /// Length of its body.
        body_bytes: usize,
    },
    /// An authenticated request came to its end. Exactly one for each [`Observation::EventReceived`].
    EventFinished {
        /// Who sent it.
        source: &'a SourceId,
        /// The event, if it was one.
        event: Option<&'a Event>,
        /// The trace that it belongs to.
        trace: &'a Trace,
        /// What became of it.
        outcome: Outcome,
        /// From its last byte to here.
        elapsed: Duration,
        /// What went wrong, if anything did.
        cause: Option<&'a (dyn fmt::Display + Sync)>,
    },
    /// A route had something to do with an event.
    RouteDecided {
        /// The route's name.
        route: &'a str,
        /// What.
        result: RouteResult,
    },
    /// The dedup memory was asked.
    DedupChecked {
        /// What it knew.
        result: DedupResult,
    },
    /// The dedup store that replicas share was asked, or told, something.
    DedupOperated {
        /// What.
        operation: DedupOperation,
        /// For how many events.
        events: usize,
        /// How long it took.
        elapsed: Duration,
        /// Why it came to nothing, if so.
        error: Option<&'a StoreError>,
    },
    /// The dedup store can be used.
    DedupStoreUp,
    /// The dedup store cannot be used.
    DedupStoreDown {
        /// Why, for the operator.
        cause: &'a (dyn fmt::Display + Sync),
    },
    /// The dedup store is set up in a way that an operator should know of.
    DedupStoreNotice {
        /// What, as a sentence.
        message: &'a str,
    },
    /// An event came under an id that was accepted with another body.
    PayloadMismatch {
        /// The event.
        event: &'a Event,
    },
    /// A sink was given a message.
    PublishStarted {
        /// The sink.
        sink: &'a SinkId,
    },
    /// One attempt to publish ended.
    PublishAttempted {
        /// The sink.
        sink: &'a SinkId,
        /// What was to be published.
        message: &'a Message,
        /// Where the broker keeps it, if it does.
        position: Option<&'a Position>,
        /// Which attempt for this message, from 1.
        attempt: u32,
        /// How.
        result: AttemptResult,
        /// How long it took.
        elapsed: Duration,
    },
    /// All attempts for one message are over.
    PublishFinished {
        /// The sink.
        sink: &'a SinkId,
        /// The last error, if none succeeded.
        error: Option<&'a PublishError>,
        /// Whether the sender's answer depends on it.
        required: bool,
    },
    /// A sink can publish.
    SinkUp {
        /// The sink.
        sink: &'a SinkId,
    },
    /// A sink cannot publish.
    SinkDown {
        /// The sink.
        sink: &'a SinkId,
        /// Why, for the operator.
        cause: &'a (dyn fmt::Display + Sync),
    },
    /// How much waits in the client library of a sink, and how its brokers answer; told from time to time.
    SinkClient {
        /// The sink.
        sink: &'a SinkId,
        /// What the library says.
        state: ClientState,
    },
    /// A sink mended something that a crash had left, or met something that an operator should know.
    SinkNotice {
        /// The sink.
        sink: &'a SinkId,
        /// What, as a constant lower-case sentence.
        message: &'static str,
        /// The particulars.
        detail: &'a (dyn fmt::Display + Sync),
    },
    /// A message was to be kept in the spool.
    SpoolAppended {
        /// The sink that it is for.
        sink: &'a SinkId,
        /// Why it is not, if so.
        error: Option<&'a SpoolError>,
        /// How long that took.
        elapsed: Duration,
    },
    /// A message from the spool was tried.
    SpoolReplayed {
        /// The sink.
        sink: &'a SinkId,
        /// Who sent the event.
        source: &'a SourceId,
        /// What became of it.
        result: ReplayResult,
        /// Since the event arrived.
        waited: Duration,
    },
    /// A message is not tried again until an operator says so.
    DeadLettered {
        /// The sink that it is for.
        sink: &'a SinkId,
        /// Who sent the event.
        source: &'a SourceId,
        /// The event.
        event_id: &'a str,
        /// What happened last.
        reason: AttemptResult,
        /// The same, for the operator.
        cause: &'a (dyn fmt::Display + Sync),
    },
    /// Events for a sink go to the spool at once, since it has failed too often in a row; or that is over.
    CircuitChanged {
        /// The sink.
        sink: &'a SinkId,
        /// Whether they do.
        open: bool,
    },
    /// The spool fsynced a batch of records.
    SpoolSynced {
        /// The sink that they are for.
        sink: &'a SinkId,
        /// How long the fsync took.
        elapsed: Duration,
    },
    /// The spool found records that are damaged, and set them aside.
    SpoolCorrupt {
        /// The sink that they are for.
        sink: &'a SinkId,
        /// Which, for the operator.
        detail: &'a str,
    },
    /// The spool found something that an operator should know.
    SpoolNotice {
        /// What, as a constant lower-case sentence.
        message: &'static str,
        /// The particulars.
        detail: &'a (dyn fmt::Display + Sync),
    },
    /// A changed config is in use.
    ConfigReplaced {
        /// The keys whose changes take effect only at the next start.
        restart: &'a [String],
    },
    /// A changed config cannot be used; the one from before stays.
    ConfigKept {
        /// Why, for the operator.
        problems: &'a (dyn fmt::Display + Sync),
    },
    /// A secret's file changed and the new value is in use.
    SecretReplaced {
        /// The operator's name for it.
        name: &'a str,
    },
    /// A secret's file cannot be used any more; the value from before stays in use.
    SecretKept {
        /// The operator's name for it.
        name: &'a str,
        /// Why.
        cause: &'a (dyn fmt::Display + Sync),
    },
}

/// What a client library says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientState {
    /// Messages that it holds, sent or not.
    pub queued_messages: u64,
    /// Their bytes.
    pub queued_bytes: u64,
    /// Brokers that it has a connection to.
    pub brokers_up: u64,
    /// The time that 99 of 100 requests were answered in, of the broker that is slowest.
    pub round_trip_p99: Duration,
}

/// Declares an enum of metric labels with the list of all, so that every series exists before its first event.
macro_rules! labels {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident => $label:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $type {
            /// Every one, in the order of the declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The metric label.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }

            /// Its place in [`Self::ALL`].
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}
pub(crate) use labels;

labels! {
    /// Why a connection that has to begin with a PROXY header was closed.
    ProxyHeaderFailure {
        /// It began with something else.
        Missing => "missing",
        /// It began with one that breaks the rules.
        Malformed => "malformed",
        /// The header was longer than is read.
        TooLarge => "too_large",
        /// The header did not arrive in time.
        Timeout => "timeout",
        /// The connection ended before its header did. Load balancers that look whether the port is open do that.
        Closed => "closed",
    }
}

labels! {
    /// Why a TLS handshake failed.
    TlsFailure {
        /// It was not over in time.
        Timeout => "timeout",
        /// The connection ended before it was over. Load balancers that look whether the port is open do that.
        Closed => "closed",
        /// What came was not TLS, or was against its rules.
        Malformed => "malformed",
        /// The two have no version, cipher or protocol in common.
        Incompatible => "incompatible",
        /// The client's certificate was refused.
        ClientCertificate => "client_certificate",
        /// The client gave up and said so; most often it does not trust the certificate.
        RefusedByClient => "refused_by_client",
        /// Something else.
        Other => "other",
    }
}

labels! {
    /// Why a request was refused before it became an event; who sent it is [`AuthFailure`]'s.
    Rejection {
        /// No source has this path.
        UnknownPath => "unknown_source",
        /// The source with this path was taken out of the config a moment ago.
        Gone => "gone",
        /// Neither a POST nor a handshake.
        Method => "method",
        /// The body is longer than the source takes.
        TooLarge => "too_large",
        /// The source takes no bodies of this type or encoding.
        MediaType => "media_type",
        /// The body did not arrive in time.
        ReadTimeout => "read_timeout",
        /// The connection broke, or the body was framed wrongly, before its end.
        Truncated => "truncated",
        /// Too many requests in flight.
        InFlightLimit => "inflight_limit",
        /// Too many requests of this source in flight.
        SourceInFlightLimit => "source_inflight_limit",
        /// Too many body bytes in flight.
        Memory => "memory",
    }
}

labels! {
    /// What a route had to do with an event.
    RouteResult {
        /// Its rule held: the event goes to its destinations.
        Matched => "matched",
        /// Its rule held, and it says to drop such events.
        Dropped => "dropped",
        /// Its rule held, and the event is not in its sample.
        NotSampled => "not_sampled",
        /// Its rule looked at something that the event does not have.
        Incomplete => "incomplete",
    }
}

labels! {
    /// What became of an authenticated request.
    Outcome {
        /// Every required destination has it.
        Delivered => "delivered",
        /// What a required destination did not take is in the spool.
        Spooled => "spooled",
        /// It was accepted before.
        Duplicate => "duplicate",
        /// No route takes it, and the config says to drop it.
        Dropped => "dropped",
        /// No route takes it, and the config says to refuse it.
        Unrouted => "unrouted",
        /// It is no event.
        Malformed => "malformed",
        /// Its source sends more than the config says.
        RateLimited => "rate_limited",
        /// There is no room for it, once it is decompressed.
        Overloaded => "overloaded",
        /// Its twin did not finish in time.
        InProgress => "in_progress",
        /// The shared dedup store does not answer, and the config says to refuse it then.
        DedupUnavailable => "dedup_unavailable",
        /// A destination will never take it.
        Rejected => "rejected",
        /// A destination cannot take it now.
        Unavailable => "unavailable",
        /// A destination did not answer.
        Unknown => "unknown",
        /// A bug stopped it.
        Failed => "failed",
    }
}

labels! {
    /// What the dedup memory knew.
    DedupResult {
        /// Nothing.
        New => "new",
        /// It was accepted before.
        Duplicate => "duplicate",
        /// Its twin is in flight.
        InProgress => "in_progress",
        /// Its twin was in flight and failed; this one takes over.
        Takeover => "takeover",
        /// The shared store did not answer, so it was published without it.
        Bypassed => "bypassed",
        /// The shared store did not answer, so it was refused.
        Error => "error",
    }
}

labels! {
    /// What the shared dedup store is asked or told.
    DedupOperation {
        /// To give us an event, if nobody has it.
        Claim => "claim",
        /// That an event was accepted.
        Commit => "commit",
        /// That an event was not.
        Release => "release",
    }
}

labels! {
    /// What became of an attempt to publish from the spool.
    ReplayResult {
        /// The broker has it.
        Acked => "acked",
        /// It will be tried again.
        Retry => "retry",
        /// It is a dead letter.
        DeadLetter => "dead_letter",
    }
}

labels! {
    /// How one attempt to publish ended.
    AttemptResult {
        /// The broker has stored it.
        Acked => "acked",
        /// The broker had stored it before.
        AckedDuplicate => "acked_duplicate",
        /// See [`PublishReason::Timeout`].
        Timeout => "timeout",
        /// See [`PublishReason::ConnectionLost`].
        ConnectionLost => "connection_lost",
        /// See [`PublishReason::NoDestination`].
        NoDestination => "no_destination",
        /// See [`PublishReason::Full`].
        Full => "full",
        /// See [`PublishReason::TooLarge`].
        TooLarge => "too_large",
        /// See [`PublishReason::Auth`].
        Auth => "auth",
        /// See [`PublishReason::Tls`].
        Tls => "tls",
        /// See [`PublishReason::Throttled`].
        Throttled => "throttled",
        /// See [`PublishReason::Other`].
        Other => "other",
    }
}

impl From<PublishReason> for AttemptResult {
    fn from(reason: PublishReason) -> Self {
        match reason {
            PublishReason::Timeout => Self::Timeout,
            PublishReason::ConnectionLost => Self::ConnectionLost,
            PublishReason::NoDestination => Self::NoDestination,
            PublishReason::Full => Self::Full,
            PublishReason::TooLarge => Self::TooLarge,
            PublishReason::Auth => Self::Auth,
            PublishReason::Tls => Self::Tls,
            PublishReason::Throttled => Self::Throttled,
            PublishReason::Other => Self::Other,
        }
    }
}

impl PublishErrorKind {
    /// Whether another attempt within the deadline can help.
    pub(crate) fn is_transient(self) -> bool {
        match self {
            Self::Unavailable | Self::Throttled => true,
            // Retrying an unknown outcome is right only where the broker drops the repeat; the publisher asks it.
            Self::Rejected | Self::Unknown | Self::Misconfigured => false,
        }
    }
}

/// A chain of causes on one line, each after a colon: what an operator reads in a log.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn std::error::Error + Sync));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
