//! The public port: a path is a source, a POST is a request, everything else is refused.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use axum::response::Response;
use hookgate_core::{
    auth::{self, Unverified},
    event::SourceId,
    handoff::Answered,
    limits::Admission,
    observe::{Observation, Observer, Rejection},
    pipeline::Pipeline,
    source::Source,
};
use http::{Method, Request, StatusCode};
use hyper::{body::Incoming, service::service_fn};
use tokio::time::Instant;

use crate::{
    ServerConfig,
    body::{self, BodyLimits, Content},
    places::Served,
    respond,
    server::Answers,
    tarpit::Tarpit,
};

/// What takes the requests of the public port. What it takes them to can be replaced while it does.
pub struct Ingress {
    current: ArcSwap<Generation>,
    admission: Arc<Admission>,
    body_timeout: Duration,
    tarpit: Tarpit,
}

/// The sources and the pipeline of one config. A request belongs to the one that was current when it came, to its end.
struct Generation {
    pipeline: Arc<Pipeline>,
    sources: HashMap<String, Arc<Source>>,
    /// The paths of sources that were taken away, and when.
    gone: HashMap<String, Instant>,
}

/// For how long the path of a source that was taken away is answered with 503 instead of 404. A sender gives up at a 404, and
/// replicas do not change their configs at the same moment.
const GONE_FOR: Duration = Duration::from_secs(60);

impl Generation {
    /// The source with this path, which is exact.
    fn find(&self, path: &str) -> Result<&Arc<Source>, Rejection> {
        let is_gone = || self.gone.get(path).is_some_and(|since| since.elapsed() < GONE_FOR);
        self.sources.get(path).ok_or_else(|| if is_gone() { Rejection::Gone } else { Rejection::UnknownPath })
    }
}

impl Ingress {
    /// An ingress that takes what `sources` send to `pipeline`.
    pub fn new(pipeline: Arc<Pipeline>, sources: &[Arc<Source>], config: &ServerConfig) -> Arc<Self> {
        let admission = Admission::new(config.max_in_flight as u64, config.max_in_flight_bytes.0);
        let current = Generation { pipeline, sources: by_path(sources), gone: HashMap::new() };
        let tarpit = Tarpit::new(config.prompt_refusals);
        Arc::new(Self { current: ArcSwap::from_pointee(current), admission, body_timeout: config.body_timeout, tarpit })
    }

    /// Takes what `sources` send to `pipeline` from now on. Requests that have come already go on as they were.
    pub fn replace(&self, pipeline: Arc<Pipeline>, sources: &[Arc<Source>]) {
        let (before, sources, now) = (self.current.load_full(), by_path(sources), Instant::now());
        let mut gone = before.gone.clone();
        gone.extend(before.sources.keys().map(|path| (path.clone(), now)));
        gone.retain(|path, since| !sources.contains_key(path) && since.elapsed() < GONE_FOR);
        self.current.store(Arc::new(Generation { pipeline, sources, gone }));
    }

    /// The service of the public port. It never redirects.
    ///
    /// Paths are the config's and change with it, so that there is nothing for a router to know.
    pub fn service(self: &Arc<Self>) -> impl Answers {
        let ingress = Arc::clone(self);
        service_fn(move |request: Request<Incoming>| {
            let ingress = Arc::clone(&ingress);
            async move { Ok(ingress.answer(request).await) }
        })
    }

    /// Answers one request; the connection's [`auth::Peer`] is among its extensions.
    ///
    /// # Cancel safety
    /// When the client goes away, reading stops; once the body is complete the pipeline runs to its end regardless.
    pub async fn answer(&self, request: Request<impl Content>) -> Response {
        let response = self.answer_at_once(request).await;
        if response.status().is_client_error() {
            self.tarpit.hold().await;
        }
        response
    }

    async fn answer_at_once(&self, request: Request<impl Content>) -> Response {
        let current = self.current.load_full();
        let source = match current.find(request.uri().path()) {
            Ok(source) => source,
            Err(rejection) => return observed(&current, None, async { Err(rejection) }).await,
        };
        let received = self.receive(&current.pipeline, source, request);
        let mut response = observed(&current, Some(source.id()), received).await;
        if response.status() == StatusCode::METHOD_NOT_ALLOWED {
            respond::allow(&mut response, &source.handshake_methods());
        }
        response
    }

    /// Reads one request and takes it through the pipeline.
    async fn receive(
        &self,
        pipeline: &Arc<Pipeline>,
        source: &Arc<Source>,
        request: Request<impl Content>,
    ) -> Result<Response, Rejection> {
        if request.method() != Method::POST && !source.handshake_methods().contains(request.method()) {
            return Err(Rejection::Method);
        }
        let (mut head, body) = request.into_parts();
        if head.method == Method::POST
            && let Err(rejection) = source.takes(&head.headers)
        {
            body::discard(&head.headers, body);
            return Err(rejection);
        }
        let limits = BodyLimits { max: source.max_body(), timeout: self.body_timeout, admission: &self.admission };
        let body = body::read(&head.headers, body, &limits).await?;
        if let Some(served) = head.extensions.remove::<Served>() {
            served.begin();
        }
        let share = source.share().map(|share| share.begin().try_enter().ok_or(Rejection::SourceInFlightLimit));
        let admitted = body.reservation.try_enter_beside(share.transpose()?).ok_or(Rejection::InFlightLimit)?;
        let request = Unverified::new(auth::Request {
            method: head.method,
            path: head.uri.path().to_owned(),
            query: head.uri.query().map(str::to_owned),
            headers: head.headers,
            body: body.bytes,
            received_at: SystemTime::now(),
            peer: head.extensions.remove().unwrap_or_default(),
            admitted,
        });
        Ok(match pipeline.spawn(Arc::clone(source), request).await {
            Ok(Ok(Answered::Accepted(accepted))) => respond::accepted(&accepted, source.reply()),
            Ok(Ok(Answered::Handshake(reply))) => respond::handshake(&reply),
            Ok(Err(refused)) => respond::refused(&refused),
            // A panic. The claim was released as the task unwound.
            Err(_) => respond::failed(),
        })
    }
}

fn by_path(sources: &[Arc<Source>]) -> HashMap<String, Arc<Source>> {
    sources.iter().map(|source| (source.path().to_owned(), Arc::clone(source))).collect()
}

/// Runs `receive` and tells the observer about the request, also when the client goes away in the middle.
async fn observed(
    generation: &Generation,
    source: Option<&SourceId>,
    receive: impl Future<Output = Result<Response, Rejection>>,
) -> Response {
    let observer = &*generation.pipeline.observer;
    observer.observe(&Observation::RequestStarted);
    let mut ending = Ending { observer, source, started: Instant::now(), status: CLIENT_GONE };
    let response = receive.await.unwrap_or_else(|reason| {
        observer.observe(&Observation::RequestRejected { source, reason });
        respond::rejected(reason)
    });
    ending.status = response.status().as_u16();
    response
}

/// What stands for a status when there was nobody left to answer; nginx's convention.
const CLIENT_GONE: u16 = 499;

struct Ending<'a> {
    observer: &'a dyn Observer,
    source: Option<&'a SourceId>,
    started: Instant,
    status: u16,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let (source, status, elapsed) = (self.source, self.status, self.started.elapsed());
        self.observer.observe(&Observation::RequestFinished { source, status, elapsed });
    }
}
