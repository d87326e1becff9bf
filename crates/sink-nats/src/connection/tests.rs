//! What needs no server: the library's events, and the end of a link.

use super::*;

fn says(words: &str) -> Event {
    Event::ServerError(ServerError::Other(words.to_owned()))
}

#[tokio::test]
async fn what_the_server_complained_about_last_is_told_when_the_connection_has_ended() {
    let (_signals, ending, on_event) = events();
    for event in [Event::Connected, says("Slow Consumer"), says("User Authentication Expired"), Event::Disconnected] {
        on_event(event).await;
    }
    on_event(says("Permissions Violation for Publish to \"hooks.a\"")).await;
    drop(on_event);
    assert_eq!(ending.wait().await.as_deref(), Some("User Authentication Expired"));
}

#[tokio::test]
async fn a_complaint_is_told_without_the_librarys_name() {
    let (_signals, ending, on_event) = events();
    on_event(Event::ServerError(ServerError::AuthorizationViolation)).await;
    drop(on_event);
    assert_eq!(ending.wait().await.as_deref(), Some("authorization violation"));
}

#[tokio::test]
async fn a_connection_that_ends_without_a_word_ends() {
    let (_signals, ending, on_event) = events();
    drop(on_event);
    assert_eq!(ending.wait().await, None);
}

#[test]
fn a_denial_names_its_subject_and_another_complaint_is_none() {
    let words = "Permissions Violation for Publish to \"hooks.a\"";
    match denial(words) {
        Some(Signal::PublishDenied { subject, words: said }) => assert_eq!((&*subject, &*said), ("hooks.a", words)),
        other => panic!("{other:?}"),
    }
    let words = "Permissions Violation for Subscription to \"_INBOX.a.*\"";
    assert!(matches!(denial(words), Some(Signal::AnswersDenied { words: said }) if &*said == words));
    for words in ["", "Authorization Violation", "Stale Connection", "Permissions Violation"] {
        assert!(denial(words).is_none(), "{words}");
    }
}

#[test]
fn nothing_comes_after_closed() {
    let down = || Link::Down(Arc::new(Disconnected::not_yet("nats://a")));
    let (link, _sees) = watch::channel(down());
    assert!(replace(&link, down()));
    link.send_replace(Link::Closed);
    assert!(!replace(&link, down()));
    assert!(matches!(*link.borrow(), Link::Closed));
}
