//! The admin port: probes, metrics, and a page that says at one look what is wrong.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::DefaultBodyLimit,
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;

use crate::server::Answers;

/// What the admin port shows; the program implements it.
pub trait Status: Send + Sync + 'static {
    /// Whether the process should be left alive.
    fn live(&self) -> bool;

    /// Whether it can accept events, and in what state its dependencies are.
    fn ready(&self) -> Readiness;

    /// Looks at messages in the spool or moves them, as `hookgate spool` and `hookgate dead` ask in JSON.
    ///
    /// # Errors
    /// Why it cannot, as a sentence.
    fn spool(&self, request: Bytes) -> BoxFuture<'_, Result<Vec<u8>, String>>;

    /// Reads the config again and puts it in place.
    ///
    /// # Errors
    /// What is wrong with it; the one from before stays.
    fn reload(&self) -> BoxFuture<'_, Result<Reloaded, String>>;

    /// All metrics in Prometheus' text format.
    fn metrics(&self) -> String;
}

/// What a reload came to.
#[derive(Debug, Clone, Serialize)]
pub struct Reloaded {
    /// Whether anything was put in place.
    pub changed: bool,
    /// The keys that were changed and need a restart to take effect.
    pub restart_required: Vec<String>,
}

/// The answer of `/readyz`.
#[derive(Debug, Clone, Serialize)]
pub struct Readiness {
    /// Whether events should be sent here.
    pub ready: bool,
    /// Why not, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The version that runs.
    pub version: &'static str,
    /// The config, if the file was changed into one that cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<PartReadiness>,
    /// Each sink with its state.
    pub sinks: Vec<PartReadiness>,
    /// The dedup store that replicas share, if they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dedup: Option<PartReadiness>,
    /// The spool, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spool: Option<SpoolReadiness>,
}

/// The part of the spool in [`Readiness`].
#[derive(Debug, Clone, Serialize)]
pub struct SpoolReadiness {
    /// Whether messages can be kept in it now.
    pub up: bool,
    /// What keeps them out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// The part of a sink, or of the dedup store, in [`Readiness`].
#[derive(Debug, Clone, Serialize)]
pub struct PartReadiness {
    /// Its name.
    pub name: String,
    /// Whether it can be used now.
    pub up: bool,
    /// What keeps it from that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// For how long it has been in this state, in seconds.
    pub for_seconds: u64,
}

/// The service of the admin port: `/livez`, `/readyz` (`?strict=1` also fails while a sink, the dedup store or the spool is down, or the
/// changed config cannot be used),
/// `/metrics`, `POST /spool`, `POST /reload`, and the state of everything at `/`.
pub fn service(status: Arc<dyn Status>) -> impl Answers {
    let (live, ready, metrics) = (Arc::clone(&status), Arc::clone(&status), Arc::clone(&status));
    let (spool, reload, overview) = (Arc::clone(&status), Arc::clone(&status), status);
    let routes = Router::new()
        .route(
            "/livez",
            get(async move || if live.live() { text(StatusCode::OK, "ok\n") } else { unavailable("stalled\n") }),
        )
        .route(
            "/readyz",
            get(async move |request: axum::extract::Request| {
                let readiness = ready.ready();
                let strict = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "strict=1"));
                let good = readiness.ready
                    && (!strict
                        || readiness.sinks.iter().chain(&readiness.dedup).chain(&readiness.config).all(|part| part.up)
                            && readiness.spool.as_ref().is_none_or(|spool| spool.up));
                json(if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &readiness)
            }),
        )
        .route(
            "/metrics",
            get(async move || {
                let mut response = text(StatusCode::OK, metrics.metrics());
                let version = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, version);
                response
            }),
        )
        .route(
            "/spool",
            post(async move |headers: HeaderMap, body: Bytes| {
                // A web page can have a browser post here, but not with this content type.
                if headers.get(header::CONTENT_TYPE).is_none_or(|value| value != "application/json") {
                    return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "post application/json\n");
                }
                match spool.spool(body).await {
                    Ok(answer) => {
                        let mut response = text(StatusCode::OK, answer);
                        let json = HeaderValue::from_static("application/json");
                        response.headers_mut().insert(header::CONTENT_TYPE, json);
                        response
                    }
                    Err(problem) => text(StatusCode::BAD_REQUEST, problem + "\n"),
                }
            })
            .layer(DefaultBodyLimit::max(64 * 1024)),
        )
        .route(
            "/reload",
            post(async move || match reload.reload().await {
                Ok(reloaded) => json(StatusCode::OK, &reloaded),
                Err(problems) => text(StatusCode::UNPROCESSABLE_ENTITY, problems),
            }),
        )
        .route("/", get(async move || json(StatusCode::OK, &overview.ready())));
    TowerToHyperService::new(routes)
}

fn unavailable(body: &'static str) -> Response {
    text(StatusCode::SERVICE_UNAVAILABLE, body)
}

fn text(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let body = serde_json::to_string_pretty(value).expect("plain data serialises") + "\n";
    let mut response = text(status, body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
