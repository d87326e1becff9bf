//! Answers: the one place where outcomes become status codes. A 2xx is made from an [`Accepted`] or a [`HandshakeReply`],
//! and from nothing else.
//!
//! Refusals are problem documents (RFC 9457) with a stable `code`. Never 3xx (OpenClaw follows a redirect as a GET without
//! body and calls it delivered), never 406 or 410 (some senders drop the event or the whole subscription).

use axum::{body::Body, response::Response};
use hookgate_core::{
    auth::AuthFailure,
    handoff::{Accepted, AcceptedAs, Miss, Refused},
    handshake::HandshakeReply,
    observe::Rejection,
    source::ReplyConfig,
};
use http::{HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use serde_json::json;

/// One kind of refusal, as the sender sees it.
pub(crate) struct Problem {
    status: StatusCode,
    /// Stable; documented in `docs/errors/README.md`.
    code: &'static str,
    title: &'static str,
}

macro_rules! problems {
    ($($name:ident = $status:ident, $code:literal, $title:literal;)+) => {
        $(pub(crate) const $name: Problem = Problem { status: StatusCode::$status, code: $code, title: $title };)+

        #[cfg(test)]
        const ALL: &[&Problem] = &[$(&$name,)+];
    };
}

problems! {
    NOT_FOUND = NOT_FOUND, "unknown-source", "no source has this path";
    GONE = SERVICE_UNAVAILABLE, "source-removed", "the source with this path was removed a moment ago";
    METHOD_NOT_ALLOWED = METHOD_NOT_ALLOWED, "method-not-allowed", "events are sent by POST";
    BODY_TIMEOUT = REQUEST_TIMEOUT, "body-timeout", "the body did not arrive in time";
    TRUNCATED = BAD_REQUEST, "truncated-body", "the body ended before its announced length or is framed wrongly";
    TOO_LARGE = PAYLOAD_TOO_LARGE, "body-too-large", "the body is longer than this source accepts";
    OVERLOADED = SERVICE_UNAVAILABLE, "overloaded", "too much is in flight";
    MEDIA_TYPE = UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "this source takes no bodies of this type or encoding";
    RATE_LIMITED = TOO_MANY_REQUESTS, "rate-limited", "this source sends more events than it may";
    UNAUTHORIZED = UNAUTHORIZED, "unauthorized", "the request could not be authenticated";
    KEYS_UNAVAILABLE = SERVICE_UNAVAILABLE, "keys-unavailable", "the keys to verify this request could not be fetched";
    NOT_CONFIRMED = SERVICE_UNAVAILABLE, "not-confirmed", "the subscription could not be confirmed now";
    MALFORMED = BAD_REQUEST, "malformed-event", "the request is no event of this source";
    UNROUTED = UNPROCESSABLE_ENTITY, "unrouted", "no route takes this event";
    IN_PROGRESS = SERVICE_UNAVAILABLE, "in-progress", "the same event is being published";
    DEDUP_UNAVAILABLE = SERVICE_UNAVAILABLE, "dedup-unavailable", "whether the event was sent before cannot be told now";
    UNAVAILABLE = SERVICE_UNAVAILABLE, "destination-unavailable", "a destination cannot take the event now";
    UNKNOWN = GATEWAY_TIMEOUT, "destination-timeout", "a destination did not answer in time; send the event again";
    REJECTED = UNPROCESSABLE_ENTITY, "destination-rejected", "a destination will never take this event";
    INTERNAL = INTERNAL_SERVER_ERROR, "internal-error", "a defect of hookgate stopped the request; send the event again";
}

/// The answer to an event that is safe, or known to be, in the form that its sender wants.
pub(crate) fn accepted(accepted: &Accepted, reply: Option<&ReplyConfig>) -> Response {
    let usual = if accepted.as_what() == AcceptedAs::Spooled { StatusCode::ACCEPTED } else { StatusCode::OK };
    let status = reply.map_or(usual, |reply| status(reply.status));
    if status == StatusCode::NO_CONTENT {
        return empty(status);
    }
    if let Some(ReplyConfig { body: Some(body), content_type, .. }) = reply {
        let mut response = Response::new(Body::from(body.clone()));
        *response.status_mut() = status;
        let content_type = content_type.as_deref().unwrap_or("text/plain");
        let content_type = HeaderValue::from_str(content_type).expect("the config's check lets no other through");
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        return response;
    }
    let outcome = match accepted.as_what() {
        AcceptedAs::Delivered => "delivered",
        AcceptedAs::Spooled => "spooled",
        AcceptedAs::Duplicate => "duplicate",
        AcceptedAs::Dropped => "dropped",
    };
    /// The document that every accepted event is answered with.
    #[derive(Serialize)]
    struct Answer<'a> {
        event_id: &'a str,
        outcome: &'a str,
    }
    document(status, "application/json", &Answer { event_id: accepted.event().as_str(), outcome })
}

/// The answer to a handshake.
pub(crate) fn handshake(reply: &HandshakeReply) -> Response {
    let mut response = Response::new(Body::from(reply.body().to_owned()));
    *response.status_mut() = status(reply.status());
    for (name, value) in reply.headers() {
        // What came in by a header can go out by one.
        let value = HeaderValue::from_str(value).unwrap_or_else(|_| HeaderValue::from_static(""));
        response.headers_mut().insert(name, value);
    }
    response
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).expect("the config's check lets no other through")
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// The answer to an event that is not accepted.
pub(crate) fn refused(refused: &Refused) -> Response {
    match refused {
        // Our trouble, not the sender's: it may come back.
        Refused::Unauthenticated(AuthFailure::KeysUnavailable) => problem(&KEYS_UNAVAILABLE, None),
        Refused::Unauthenticated(_) => {
            // The same for every cause: a sender that cannot prove itself learns nothing. RFC 9110, 15.5.2 asks for the
            // header.
            let mut response = problem(&UNAUTHORIZED, None);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
        Refused::NotAnEvent => rejected(Rejection::Method),
        Refused::NotConfirmed => problem(&NOT_CONFIRMED, None),
        Refused::Malformed(malformed) => problem(&MALFORMED, Some(&malformed.to_string())),
        Refused::RateLimited(wait) => {
            let mut response = problem(&RATE_LIMITED, None);
            // To come back a little later than told is no harm; a little earlier is in vain.
            let seconds = wait.as_secs() + 1;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            response
        }
        Refused::Overloaded => problem(&OVERLOADED, None),
        Refused::Unrouted => problem(&UNROUTED, None),
        Refused::InProgress => problem(&IN_PROGRESS, None),
        Refused::DedupUnavailable => problem(&DEDUP_UNAVAILABLE, None),
        Refused::NotHandedOff(Miss::Unavailable) => problem(&UNAVAILABLE, None),
        Refused::NotHandedOff(Miss::Unknown) => problem(&UNKNOWN, None),
        Refused::NotHandedOff(Miss::Rejected) => problem(&REJECTED, None),
    }
}

/// The answer to a request that did not become an event.
pub(crate) fn rejected(rejection: Rejection) -> Response {
    let mut response = problem(
        match rejection {
            Rejection::UnknownPath => &NOT_FOUND,
            Rejection::Gone => &GONE,
            Rejection::Method => &METHOD_NOT_ALLOWED,
            Rejection::TooLarge => &TOO_LARGE,
            Rejection::ReadTimeout => &BODY_TIMEOUT,
            Rejection::Truncated => &TRUNCATED,
            Rejection::MediaType => &MEDIA_TYPE,
            Rejection::InFlightLimit | Rejection::SourceInFlightLimit | Rejection::Memory => &OVERLOADED,
        },
        None,
    );
    match rejection {
        Rejection::Method => allow(&mut response, &[]),
        // What is left of the body is not read, so the connection cannot be used again.
        Rejection::TooLarge
        | Rejection::MediaType
        | Rejection::ReadTimeout
        | Rejection::Truncated
        | Rejection::Memory => {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}

/// Says that a POST is allowed, and `others`.
pub(crate) fn allow(response: &mut Response, others: &[Method]) {
    let methods: Vec<&str> = others.iter().map(Method::as_str).chain(["POST"]).collect();
    let value = HeaderValue::from_str(&methods.join(", ")).expect("methods are tokens");
    response.headers_mut().insert(header::ALLOW, value);
}

/// The answer when a bug stopped the request.
pub(crate) fn failed() -> Response {
    problem(&INTERNAL, None)
}

fn problem(problem: &Problem, detail: Option<&str>) -> Response {
    let mut body = json!({
        "type": format!("urn:hookgate:problem:{}", problem.code),
        "title": problem.title,
        "status": problem.status.as_u16(),
        "code": problem.code,
    });
    if let Some(detail) = detail {
        body["detail"] = detail.into();
    }
    let mut response = document(problem.status, "application/problem+json", &body);
    if matches!(problem.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT) {
        // Spread over some seconds, so that senders who failed together do not return together.
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(fastrand::u16(1..=10)));
    }
    response
}

fn document(status: StatusCode, content_type: &'static str, body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("text and numbers are JSON");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn parts(response: Response) -> (StatusCode, http::HeaderMap, Vec<u8>) {
        let (head, body) = response.into_parts();
        (head.status, head.headers, body.collect().await.expect("in memory").to_bytes().to_vec())
    }

    #[tokio::test]
    async fn every_cause_of_a_401_reads_the_same() {
        let first = parts(refused(&Refused::Unauthenticated(AuthFailure::Missing))).await;
        assert_eq!(first.0, StatusCode::UNAUTHORIZED);
        for failure in AuthFailure::ALL.iter().filter(|failure| **failure != AuthFailure::KeysUnavailable) {
            assert_eq!(parts(refused(&Refused::Unauthenticated(*failure))).await, first, "{failure:?}");
        }
    }

    #[tokio::test]
    async fn no_rejection_is_a_success_or_a_redirect() {
        for rejection in Rejection::ALL {
            let (status, headers, _) = parts(rejected(*rejection)).await;
            assert!(status.is_client_error() || status.is_server_error(), "{rejection:?}");
            assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
        }
    }

    #[test]
    fn every_503_and_504_says_when_to_come_back() {
        for shown in ALL {
            let response = problem(shown, None);
            let transient = matches!(response.status().as_u16(), 503 | 504);
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), transient, "{}", shown.code);
        }
    }

    #[test]
    fn every_code_is_documented() {
        let page = include_str!("../../../docs/errors/README.md");
        for shown in ALL {
            let row = format!("| `{}` | {} |", shown.code, shown.status.as_u16());
            assert!(page.contains(&row), "docs/errors/README.md has no row {row}");
        }
    }
}
