//! Senders of any source: the request that is made, signed by the source itself, and taken up as the relay does.

use std::time::SystemTime;

use bytes::Bytes;
use hookgate_core::{
    auth::{Draft, Peer, Request, Unverified},
    config::{ByteLimit, Problem},
    event::SourceId,
    limits::Admission,
    secret,
    source::{Source, Surroundings},
};
use http::{HeaderMap, Method};
use serde_json::Value;

/// The source that a table like those of `[sources]` describes, with secrets that stand in it.
///
/// # Errors
/// Its problems.
///
/// # Panics
/// When `config` is no such table.
pub fn try_compile(config: Value, surroundings: &Surroundings) -> Result<Source, Vec<Problem>> {
    let config = serde_json::from_value(config).unwrap_or_else(|error| panic!("{error}"));
    Source::compile(SourceId::new(0, "test"), &config, surroundings, &mut secret::literal)
}

/// The same, of a server that takes a MiB, from a table that must be good.
pub fn compile(config: Value) -> Source {
    try_compile(config, &ByteLimit::mib(1).into()).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// A POST of `body` to `/in`, made now, which nobody has signed.
pub fn draft(body: impl Into<Bytes>) -> Draft {
    Draft {
        method: Method::POST,
        path: "/in".to_owned(),
        query: None,
        headers: HeaderMap::new(),
        body: body.into(),
        now: SystemTime::now(),
        id: "one".to_owned(),
        secret: None,
        signing_key: None,
    }
}

/// `draft` as it arrives, at the time that it was made.
pub fn request(draft: &Draft) -> Unverified {
    Unverified::new(Request {
        method: draft.method.clone(),
        path: draft.path.clone(),
        query: draft.query.clone(),
        headers: draft.headers.clone(),
        body: draft.body.clone(),
        received_at: draft.now,
        peer: Peer::default(),
        admitted: Admission::new(1, 0).begin().try_enter().expect("room for one"),
    })
}
