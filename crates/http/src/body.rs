//! Reads a request's body to its last byte, within a size, a time and the byte budget of the whole server.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use hookgate_core::{
    config::ByteLimit,
    limits::{Admission, Reservation},
    observe::Rejection,
};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::{task::yield_now, time::timeout_at};

/// Slowest body that is waited for once `body_timeout` is used up, in bytes per second.
const BYTES_PER_SECOND_MIN: u64 = 64 * 1024;

/// How many times as much room as has been sent is made on the word of a Content-Length: one who announces much and sends little takes
/// little memory.
const ANNOUNCED_TIMES: u64 = 16;

/// Bytes of one body that are read before others have their turn. What a sender has ready can be megabytes.
const UNBROKEN_MAX: usize = 64 * 1024;

/// A body that has not been read.
pub trait Content: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static {}

impl<B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static> Content for B {}

/// A body that was read whole, and its share of the byte budget.
pub(crate) struct ReadBody {
    pub(crate) bytes: Bytes,
    pub(crate) reservation: Reservation,
}

/// What bounds the reading of one body.
pub(crate) struct BodyLimits<'a> {
    pub(crate) max: ByteLimit,
    pub(crate) timeout: Duration,
    pub(crate) admission: &'a Arc<Admission>,
}

/// Reads `body`. Its announced length is checked before anything is read.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: impl Content,
    limits: &BodyLimits<'_>,
) -> Result<ReadBody, Rejection> {
    let announced = content_length(headers);
    if announced.is_some_and(|length| length > limits.max.0) {
        discard(headers, body);
        return Err(Rejection::TooLarge);
    }
    let started = Instant::now();
    let mut reservation = limits.admission.begin();
    let mut bytes = BytesMut::new();
    let mut unbroken = 0;
    loop {
        let seconds_earned = Duration::from_secs(bytes.len() as u64 / BYTES_PER_SECOND_MIN);
        let frame = match timeout_at((started + limits.timeout + seconds_earned).into(), body.frame()).await {
            Err(_) => return Err(Rejection::ReadTimeout),
            Ok(Some(Err(_))) => return Err(Rejection::Truncated),
            Ok(None) => {
                return Ok(ReadBody { bytes: bytes.freeze(), reservation });
            }
            Ok(Some(Ok(frame))) => frame,
        };
        // Trailers are nobody's business: no scheme signs them.
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() as u64 + data.len() as u64 > limits.max.0 {
            discard(headers, body);
            return Err(Rejection::TooLarge);
        }
        if !reservation.try_grow(data.len() as u64) {
            return Err(Rejection::Memory);
        }
        if bytes.capacity() < bytes.len() + data.len() {
            let sent = (bytes.len() + data.len()) as u64;
            let room = announced.unwrap_or(0).min(ANNOUNCED_TIMES * sent).saturating_sub(bytes.len() as u64);
            bytes.reserve(usize::try_from(room).unwrap_or(0).max(data.len()));
        }
        bytes.extend_from_slice(&data);
        unbroken += data.len();
        if unbroken >= UNBROKEN_MAX {
            unbroken = 0;
            yield_now().await;
        }
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads on for a moment without keeping anything, so that the sender gets to see the answer.
///
/// To close a socket with unread bytes resets it, and a sender that is still writing then loses the answer with it. A
/// sender that asked first (`Expect: 100-continue`) has sent nothing yet and must not be told to go on.
pub(crate) fn discard(headers: &HeaderMap, mut body: impl Content) {
    const AT_MOST: Duration = Duration::from_secs(2);
    if headers.contains_key(header::EXPECT) {
        return;
    }
    tokio::spawn(tokio::time::timeout(AT_MOST, async move { while let Some(Ok(_)) = body.frame().await {} }));
}
