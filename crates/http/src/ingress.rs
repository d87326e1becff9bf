//! The public port's routes: a path is a source, a POST is a request, everything else is refused.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Router,
    extract::Request,
    response::Response,
    routing::{MethodRouter, any},
};
use hookgate_core::{
    auth::{self, Unverified},
    event::SourceId,
    handoff::Answered,
    limits::Admission,
    observe::{Observation, Observer, Rejection},
    pipeline::Pipeline,
    source::Source,
};
use http::{Method, StatusCode};

use crate::{
    ServerConfig,
    body::{self, BodyLimits},
    respond,
};

/// What the handlers of all sources share.
pub struct Ingress {
    pipeline: Arc<Pipeline>,
    admission: Arc<Admission>,
    body_timeout: Duration,
}

impl Ingress {
    /// An ingress in front of `pipeline`.
    pub fn new(pipeline: Arc<Pipeline>, config: &ServerConfig) -> Arc<Self> {
        let admission = Admission::new(config.max_in_flight as u64, config.max_in_flight_bytes.0);
        Arc::new(Self { pipeline, admission, body_timeout: config.body_timeout })
    }

    /// The routes of `sources`. Paths are exact, and none ever redirects.
    pub fn router(self: &Arc<Self>, sources: &[Arc<Source>]) -> Router {
        let mut router = Router::new();
        for source in sources {
            router = router.route(source.path(), self.handler(source));
        }
        let ingress = Arc::clone(self);
        router.fallback(move || {
            let ingress = Arc::clone(&ingress);
            async move { ingress.observed(None, async { Err(Rejection::UnknownPath) }).await }
        })
    }

    fn handler(self: &Arc<Self>, source: &Arc<Source>) -> MethodRouter<(), Infallible> {
        let (ingress, source) = (Arc::clone(self), Arc::clone(source));
        any(move |request: Request| {
            let (ingress, source) = (Arc::clone(&ingress), Arc::clone(&source));
            async move {
                let mut response = ingress.observed(Some(source.id()), ingress.receive(&source, request)).await;
                if response.status() == StatusCode::METHOD_NOT_ALLOWED {
                    respond::allow(&mut response, &source.handshake_methods());
                }
                response
            }
        })
    }

    /// Reads one request and takes it through the pipeline. The connection's [`auth::Peer`] is among its extensions.
    ///
    /// # Cancel safety
    /// When the client goes away, reading stops; once the body is complete the pipeline runs to its end regardless.
    async fn receive(&self, source: &Arc<Source>, request: Request) -> Result<Response, Rejection> {
        if request.method() != Method::POST && !source.handshake_methods().contains(request.method()) {
            return Err(Rejection::Method);
        }
        let (mut head, body) = request.into_parts();
        let limits = BodyLimits { max: source.max_body(), timeout: self.body_timeout, admission: &self.admission };
        let body = body::read(&head.headers, body, &limits).await?;
        let admitted = body.reservation.try_enter().ok_or(Rejection::InFlightLimit)?;
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
        Ok(match self.pipeline.spawn(Arc::clone(source), request).await {
            Ok(Ok(Answered::Accepted(accepted))) => respond::accepted(&accepted, source.reply()),
            Ok(Ok(Answered::Handshake(reply))) => respond::handshake(&reply),
            Ok(Err(refused)) => respond::refused(&refused),
            // A panic. The claim was released as the task unwound.
            Err(_) => respond::failed(),
        })
    }

    /// Runs `receive` and tells the observer about the request, also when the client goes away in the middle.
    async fn observed(
        &self,
        source: Option<&SourceId>,
        receive: impl Future<Output = Result<Response, Rejection>>,
    ) -> Response {
        let observer = &*self.pipeline.observer;
        observer.observe(&Observation::RequestStarted);
        let mut ending = Ending { observer, source, started: Instant::now(), status: CLIENT_GONE };
        let response = receive.await.unwrap_or_else(|reason| {
            observer.observe(&Observation::RequestRejected { source, reason });
            respond::rejected(reason)
        });
        ending.status = response.status().as_u16();
        response
    }
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
