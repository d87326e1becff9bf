//! What of one event's way is HTTP's, by the harness in [`hookgate_testkit::steps`], which says how it is called.
//!
//! `connection` is a request that hyper reads from a pipe in memory and answers at once: what HTTP itself costs, without the kernel.
//! `event` is all that comes between: the body read, everything in `hookgate-core` (its step `all`), and the answer made; what it
//! has beyond `all` is reading and responding. `refusal` is the answer to a path that nobody knows, without any of that.

use std::{convert::Infallible, path::Path, process::ExitCode, sync::Arc};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use hookgate_core::{auth::Draft, source::Source};
use hookgate_http::{Ingress, ServerConfig};
use hookgate_testkit::{
    http::request,
    steps::{self, draft, measured, pipeline, source},
};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    runtime::{Builder, Runtime},
};

const STEPS: [&str; 3] = ["connection", "event", "refusal"];

/// More than a request or an answer has.
const PIPE_BYTES: usize = 16 * 1024;

fn main() -> ExitCode {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/steps.toml");
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let source = source();
    steps::run(&STEPS, &file, |step, count| match step {
        "connection" => connection(&runtime, &source, count),
        "event" => ingress(&runtime, &source, count, "/in", 200),
        "refusal" => ingress(&runtime, &source, count, "/elsewhere", 404),
        other => panic!("there is no step {other}"),
    })
}

fn connection(runtime: &Runtime, source: &Source, count: usize) -> u128 {
    let requests = (0..count).map(|number| {
        let draft = draft(source, number);
        let headers: Vec<_> =
            draft.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("a text"))).collect();
        request("POST", "/in", &headers, &draft.body)
    });
    let (mut client, server) = duplex(PIPE_BYTES);
    let service = service_fn(async |request: Request<Incoming>| {
        let body = request.into_body().collect().await.expect("it comes whole").to_bytes();
        assert!(!body.is_empty());
        Ok::<_, Infallible>(Response::new(Body::from("taken")))
    });
    runtime.block_on(async move {
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(server), service));
    });
    let mut answer = [0; PIPE_BYTES];
    measured(requests.collect(), |request: Vec<u8>| {
        runtime.block_on(async {
            client.write_all(&request).await.expect("there is room");
            let mut length = 0;
            while !answer[..length].ends_with(b"taken") {
                length += client.read(&mut answer[length..]).await.expect("an answer");
            }
        });
    })
}

fn ingress(runtime: &Runtime, source: &Arc<Source>, count: usize, path: &str, status: u16) -> u128 {
    // Refusals are told at once, however many there are.
    let config = ServerConfig { prompt_refusals: "1000000000/s".parse().expect("a rate"), ..ServerConfig::default() };
    let ingress = Ingress::new(pipeline(runtime), std::slice::from_ref(source), &config);
    let requests = (0..count).map(|number| {
        let Draft { method, headers, body, .. } = draft(source, number);
        let mut request = Request::new(Full::<Bytes>::new(body));
        (*request.method_mut(), *request.headers_mut()) = (method, headers);
        *request.uri_mut() = path.parse().expect("a path");
        request
    });
    measured(requests.collect(), |request| {
        let answer = runtime.block_on(ingress.answer(request));
        assert_eq!(answer.status(), status);
    })
}
