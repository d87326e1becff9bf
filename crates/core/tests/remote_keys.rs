//! Keys and certificates that have to be fetched: when, how often, and what becomes of requests meanwhile.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use data_encoding::{BASE64, BASE64URL_NOPAD};
use futures_util::{FutureExt, future::BoxFuture};
use hookgate_core::{
    auth::{AuthFailure, Draft, Fetch, SigningKey, Unverified},
    event::SinkId,
    handoff::{Accepted, AcceptedAs, Answered, Refused},
    limits::Deadline,
    observe::Observer,
    pipeline::Pipeline,
    source::Source,
};
use hookgate_testkit::{
    event::TestEvent,
    fake_sink::FakeSink,
    recorder::Recorder,
    sender::{compile, draft, request},
};
use http::{HeaderMap, HeaderValue};
use ring::{
    rand::SystemRandom,
    signature::{RSA_PKCS1_SHA256, RsaKeyPair},
};
use serde_json::{Value, json};

const RSA_PEM: &str = include_str!("../../testkit/fixtures/keys/rsa.pem");
const TOPIC: &str = "arn:aws:sns:us-east-1:123456789012:events";
const CERTIFICATE: &str = "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-1.pem";

/// Documents by their URLs, and how often each was asked for. What is not there fails.
#[derive(Default)]
struct Web {
    documents: Mutex<BTreeMap<String, String>>,
    asked: Mutex<Vec<String>>,
    pause: Option<Duration>,
}

impl Web {
    fn with(documents: &[(&str, String)]) -> Arc<Self> {
        let documents = documents.iter().map(|(url, document)| ((*url).to_owned(), document.clone())).collect();
        Arc::new(Self { documents: Mutex::new(documents), ..Self::default() })
    }

    fn put(&self, url: &str, document: String) {
        self.documents.lock().expect("no panic").insert(url.to_owned(), document);
    }

    fn take_away(&self) {
        self.documents.lock().expect("no panic").clear();
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

impl Fetch for Web {
    fn get(&self, url: String, _: usize) -> BoxFuture<'static, Result<Bytes, String>> {
        self.asked.lock().expect("no panic").push(url.clone());
        let document = self.documents.lock().expect("no panic").get(&url).cloned();
        let pause = self.pause;
        async move {
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            document.map(Bytes::from).ok_or_else(|| "404 Not Found".to_owned())
        }
        .boxed()
    }
}

fn key_pair() -> RsaKeyPair {
    let base64: String = RSA_PEM.lines().filter(|line| !line.starts_with('-')).collect();
    RsaKeyPair::from_pkcs8(&BASE64.decode(base64.as_bytes()).expect("base64")).expect("a key")
}

fn jwks(kid: &str) -> String {
    let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(key_pair().public());
    let part = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    json!({ "keys": [{ "kty": "RSA", "kid": kid, "n": part(&public.n), "e": part(&public.e) }] }).to_string()
}

fn certificate() -> String {
    let key = rcgen::KeyPair::from_pem(RSA_PEM).expect("a key");
    rcgen::CertificateParams::new(vec!["sns.test".to_owned()]).expect("a name").self_signed(&key).expect("signed").pem()
}

fn source(preset: &str, scheme: &Value) -> Arc<Source> {
    Arc::new(compile(json!({ "path": "/in", "preset": preset, "verify": [scheme] })))
}

const KEYS: &str = "https://issuer.example/keys";

fn issuer() -> Arc<Source> {
    let scheme = json!({
        "scheme": "jwt", "keys": { "url": KEYS }, "issuers": ["https://issuer.example"], "audiences": ["us"],
    });
    source("google-pubsub", &scheme)
}

fn sns() -> Arc<Source> {
    source("aws-sns", &json!({ "scheme": "aws-sns", "topics": [TOPIC] }))
}

fn post(headers: HeaderMap, body: String) -> Unverified {
    request(&Draft { headers, ..draft(body) })
}

/// A request with a token that names the key `kid`, signed by the one key that there is.
fn with_token(kid: &str) -> Unverified {
    let given = json!({
        "scheme": "jwt", "keys": { "inline": jwks(kid) }, "issuers": ["https://issuer.example"], "audiences": ["us"],
    });
    let signing_key = Some(SigningKey::from_pem(RSA_PEM.as_bytes()).expect("a key"));
    let mut draft = Draft { signing_key, ..draft(r#"{"message":{"messageId":"1"}}"#) };
    source("google-pubsub", &given).sign(&mut draft).expect("the key is there");
    request(&draft)
}

/// A message of SNS with these fields beside those that all have, signed.
fn sns_message(r#type: &str, certificate: &str, topic: &str) -> Unverified {
    let url = "https://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription&Token=t";
    let mut body = json!({
        "Type": r#type, "MessageId": "m1", "TopicArn": topic, "Message": "hi", "Timestamp": "2026-11-25T00:00:00.000Z",
        "SignatureVersion": "2", "SigningCertURL": certificate, "SubscribeURL": url, "Token": "t",
    });
    let names: &[&str] = match r#type {
        "Notification" => &["Message", "MessageId", "Timestamp", "TopicArn", "Type"],
        _ => &["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"],
    };
    let line = |name: &&str| format!("{name}\n{}\n", body[*name].as_str().expect("a text"));
    let signed: String = names.iter().map(line).collect();
    body["Signature"] = signature_of(&signed).into();
    let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))]);
    post(headers, body.to_string())
}

struct Bench {
    pipeline: Arc<Pipeline>,
    recorder: Arc<Recorder>,
    sink: Arc<FakeSink>,
}

impl Bench {
    fn new(web: &Arc<Web>) -> Self {
        let (sink, recorder) = (FakeSink::new(SinkId::new(0, "first")), Arc::new(Recorder::default()));
        let observer: Arc<dyn Observer> = Arc::clone(&recorder) as _;
        let routes = json!([{ "to": [{ "sink": "first" }] }]);
        let mut pipeline = TestEvent::new("any").pipeline(std::slice::from_ref(&sink), &routes, &observer);
        pipeline.fetch = Arc::clone(web) as _;
        Self { pipeline: Arc::new(pipeline), recorder, sink }
    }

    async fn send(&self, source: &Arc<Source>, request: Unverified) -> Result<Answered, Refused> {
        self.pipeline.spawn(Arc::clone(source), request).await.expect("no panic")
    }

    async fn outcome(&self, source: &Arc<Source>, request: Unverified) -> Result<Option<AcceptedAs>, Refused> {
        self.send(source, request).await.map(|answered| match answered {
            Answered::Accepted(accepted) => Some(Accepted::as_what(&accepted)),
            Answered::Handshake(reply) => {
                assert_eq!(reply.status(), 200);
                None
            }
        })
    }
}

const UNAVAILABLE: Refused = Refused::Unauthenticated(AuthFailure::KeysUnavailable);

#[tokio::test(start_paused = true)]
async fn a_key_set_is_fetched_once_and_then_kept() {
    let web = Web::with(&[(KEYS, jwks("one"))]);
    let (bench, source) = (Bench::new(&web), issuer());
    assert_eq!(bench.outcome(&source, with_token("one")).await, Ok(Some(AcceptedAs::Delivered)));
    assert_eq!(bench.outcome(&source, with_token("one")).await, Ok(Some(AcceptedAs::Duplicate)));
    assert_eq!(web.asked(), [KEYS]);
    assert_eq!(bench.recorder.count("sender_verified source=test by=jwt:jwks"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_found_and_an_invented_one_asks_at_most_once_in_a_while() {
    let web = Web::with(&[(KEYS, jwks("one"))]);
    let (bench, source) = (Bench::new(&web), issuer());
    assert_eq!(bench.outcome(&source, with_token("one")).await, Ok(Some(AcceptedAs::Delivered)));
    web.put(KEYS, jwks("two"));
    tokio::time::advance(Duration::from_secs(31)).await;
    assert_eq!(
        bench.outcome(&source, with_token("two")).await,
        Ok(Some(AcceptedAs::Duplicate)),
        "the issuer has a new key"
    );
    for _ in 0..100 {
        let refused = bench.outcome(&source, with_token("invented")).await;
        assert_eq!(refused, Err(Refused::Unauthenticated(AuthFailure::KeyUnknown)));
    }
    assert_eq!(web.asked().len(), 2, "strangers do not make us ask");
    tokio::time::advance(Duration::from_secs(31)).await;
    let _refused = bench.outcome(&source, with_token("invented")).await;
    assert_eq!(web.asked().len(), 3, "but after a while it may be a new one");
}

#[tokio::test(start_paused = true)]
async fn without_keys_nobody_is_blamed_and_with_the_old_ones_nothing_stops() {
    let web = Web::with(&[]);
    let (bench, source) = (Bench::new(&web), issuer());
    assert_eq!(bench.outcome(&source, with_token("one")).await, Err(UNAVAILABLE));
    assert_eq!(bench.recorder.count("document_fetched url=https://issuer.example/keys error=404 Not Found"), 1);
    web.put(KEYS, jwks("one"));
    tokio::time::advance(Duration::from_secs(31)).await;
    assert_eq!(bench.outcome(&source, with_token("one")).await, Ok(Some(AcceptedAs::Delivered)));
    web.take_away();
    for document in source.verifier().documents() {
        bench.pipeline.fetch(document, Deadline::after(Duration::from_secs(1))).await;
    }
    assert_eq!(web.asked().len(), 3, "the hourly look fails");
    assert_eq!(bench.outcome(&source, with_token("one")).await, Ok(Some(AcceptedAs::Duplicate)), "and the keys stay");
}

#[tokio::test(start_paused = true)]
async fn those_who_need_a_document_at_the_same_time_share_one_fetch() {
    let web = Web { pause: Some(Duration::from_millis(300)), ..Web::default() };
    web.put(KEYS, jwks("one"));
    let web = Arc::new(web);
    let (bench, source) = (Bench::new(&web), issuer());
    let all = (0..50).map(|_| bench.outcome(&source, with_token("one")));
    let outcomes = futures_util::future::join_all(all).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(web.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_server_that_does_not_answer_costs_no_more_than_the_deadline() {
    let web = Web { pause: Some(Duration::from_secs(3600)), ..Web::default() };
    let web = Arc::new(web);
    let (bench, source) = (Bench::new(&web), issuer());
    let begun = tokio::time::Instant::now();
    assert_eq!(bench.outcome(&source, with_token("one")).await, Err(UNAVAILABLE));
    assert!(begun.elapsed() <= Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_message_of_a_listed_topic_is_an_event() {
    let web = Web::with(&[(CERTIFICATE, certificate())]);
    let (bench, source) = (Bench::new(&web), sns());
    let message = || sns_message("Notification", CERTIFICATE, TOPIC);
    assert_eq!(bench.outcome(&source, message()).await, Ok(Some(AcceptedAs::Delivered)));
    assert_eq!(bench.outcome(&source, message()).await, Ok(Some(AcceptedAs::Duplicate)));
    assert_eq!(web.asked(), [CERTIFICATE]);
}

#[tokio::test(start_paused = true)]
async fn only_a_listed_topic_at_the_services_own_host_makes_us_reach_out() {
    let web = Web::with(&[(CERTIFICATE, certificate())]);
    let (bench, source) = (Bench::new(&web), sns());
    let strangers = [
        (sns_message("Notification", CERTIFICATE, "arn:aws:sns:us-east-1:666:theirs"), AuthFailure::TopicRefused),
        (sns_message("Notification", "https://evil.test/a.pem", TOPIC), AuthFailure::CertificateUrlRefused),
        (
            sns_message("SubscriptionConfirmation", "http://sns.us-east-1.amazonaws.com/a.pem", TOPIC),
            AuthFailure::CertificateUrlRefused,
        ),
    ];
    for (request, reason) in strangers {
        assert_eq!(bench.outcome(&source, request).await, Err(Refused::Unauthenticated(reason)));
    }
    assert_eq!(web.asked(), Vec::<String>::new());
    for number in 0..100 {
        let invented = format!("https://sns.us-east-1.amazonaws.com/{number}.pem");
        assert_eq!(bench.outcome(&source, sns_message("Notification", &invented, TOPIC)).await, Err(UNAVAILABLE));
    }
    assert_eq!(web.asked().len(), 20, "a few inventions are asked for at once, and no more until time has passed");
    for number in 0..100 {
        tokio::time::advance(Duration::from_secs(1)).await;
        let invented = format!("https://sns.us-east-1.amazonaws.com/again-{number}.pem");
        assert_eq!(bench.outcome(&source, sns_message("Notification", &invented, TOPIC)).await, Err(UNAVAILABLE));
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    let message = sns_message("Notification", CERTIFICATE, TOPIC);
    assert_eq!(
        bench.outcome(&source, message).await,
        Ok(Some(AcceptedAs::Delivered)),
        "and do not crowd out the real one"
    );
}

#[tokio::test(start_paused = true)]
async fn a_subscription_is_confirmed_only_when_its_message_is_authentic() {
    let confirm = "https://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription&Token=t";
    let web = Web::with(&[(CERTIFICATE, certificate()), (confirm, "<ok/>".to_owned())]);
    let (bench, source) = (Bench::new(&web), sns());
    assert_eq!(
        bench.outcome(&source, sns_message("SubscriptionConfirmation", CERTIFICATE, TOPIC)).await,
        Ok(None),
        "a handshake, not an event"
    );
    assert_eq!(web.asked(), [CERTIFICATE, confirm]);
    let forged = post(HeaderMap::new(), r#"{"Type":"SubscriptionConfirmation"}"#.to_owned());
    assert!(bench.outcome(&source, forged).await.is_err());
    let off = source_without_confirmation();
    assert_eq!(bench.outcome(&off, sns_message("SubscriptionConfirmation", CERTIFICATE, TOPIC)).await, Ok(None));
    assert_eq!(bench.outcome(&source, sns_message("UnsubscribeConfirmation", CERTIFICATE, TOPIC)).await, Ok(None));
    assert_eq!(web.asked().iter().filter(|url| *url == confirm).count(), 1);
    web.take_away();
    let failed = bench.outcome(&source, sns_message("SubscriptionConfirmation", CERTIFICATE, TOPIC)).await;
    assert_eq!(failed, Err(Refused::NotConfirmed), "the service asks again");
    assert_eq!(bench.sink.stored().len(), 0, "none of them reaches a queue");
}

fn source_without_confirmation() -> Arc<Source> {
    source("aws-sns", &json!({ "scheme": "aws-sns", "topics": [TOPIC], "confirm": false }))
}

fn signature_of(text: &str) -> String {
    let pair = key_pair();
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).expect("random numbers");
    BASE64.encode(&signature)
}

fn sns_body(id: &str, r#type: &str, subject: Option<&str>, signature: &str) -> Unverified {
    let mut body = json!({
        "Type": r#type, "MessageId": id, "TopicArn": TOPIC, "Message": "hi", "Timestamp": "2026", "SignatureVersion": "2",
        "SigningCertURL": CERTIFICATE, "Signature": signature,
    });
    if let Some(subject) = subject {
        body["Subject"] = subject.into();
    }
    post(HeaderMap::new(), body.to_string())
}

#[tokio::test(start_paused = true)]
async fn what_is_signed_for_a_strangers_topic_cannot_be_read_as_ours() {
    let web = Web::with(&[(CERTIFICATE, certificate())]);
    let (bench, source) = (Bench::new(&web), sns());
    // The service signs any message that its author publishes to a topic of his own.
    let rest = "Notification\nMessageId\nreal\nTimestamp\n2026-11-25\nTopicArn\narn:aws:sns:us-east-1:666:theirs\nType\n\
                Notification";
    let text = format!("Message\nhi\nMessageId\nany\nTimestamp\n2026\nTopicArn\n{TOPIC}\nType\n{rest}\n");
    let refused = Err(Refused::Unauthenticated(AuthFailure::Malformed));
    assert_eq!(bench.outcome(&source, sns_body("any", rest, None, &signature_of(&text))).await, refused);
    let other = format!("Message\nhi\nMessageId\nany\nTimestamp\n2026\nTopicArn\n{TOPIC}\nType\nOther\n");
    assert_eq!(bench.outcome(&source, sns_body("any", "Other", None, &signature_of(&other))).await, refused);
    assert!(bench.sink.stored().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_message_with_a_subject_has_one_id() {
    let web = Web::with(&[(CERTIFICATE, certificate())]);
    let (bench, source) = (Bench::new(&web), sns());
    let text =
        format!("Message\nhi\nMessageId\nm1\nSubject\ns\nTimestamp\n2026\nTopicArn\n{TOPIC}\nType\nNotification\n");
    let signature = signature_of(&text);
    let genuine = bench.outcome(&source, sns_body("m1", "Notification", Some("s"), &signature)).await;
    assert_eq!(genuine, Ok(Some(AcceptedAs::Delivered)));
    let shifted = bench.outcome(&source, sns_body("m1\nSubject\ns", "Notification", None, &signature)).await;
    assert_eq!(shifted, Err(Refused::Unauthenticated(AuthFailure::Malformed)));
}

#[tokio::test(start_paused = true)]
async fn a_bucket_with_the_services_name_is_not_asked() {
    for url in ["https://sns.s3.amazonaws.com/x.pem", "https://sns.s3-us-west-2.amazonaws.com/x.pem"] {
        let web = Web::with(&[(url, certificate())]);
        let outcome = Bench::new(&web).outcome(&sns(), sns_message("Notification", url, TOPIC)).await;
        assert_eq!(outcome, Err(Refused::Unauthenticated(AuthFailure::CertificateUrlRefused)));
        assert!(web.asked().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn an_invention_just_before_the_real_one_does_not_keep_it_out_and_none_drives_it_away() {
    let web = Web::with(&[(CERTIFICATE, certificate())]);
    let (bench, source) = (Bench::new(&web), sns());
    let invented = |name: &str| format!("https://sns.us-east-1.amazonaws.com/{name}.pem");
    let _refused = bench.outcome(&source, sns_message("Notification", &invented("a"), TOPIC)).await;
    let genuine = || sns_message("Notification", CERTIFICATE, TOPIC);
    assert_eq!(bench.outcome(&source, genuine()).await, Ok(Some(AcceptedAs::Delivered)));
    // More real certificates than are kept, none of which has verified anything for our topic.
    for n in 0..40 {
        let url = invented(&format!("real-{n}"));
        web.put(&url, certificate());
        tokio::time::advance(Duration::from_secs(1)).await;
        source.verifier().wanted(&sns_message("Notification", &url, TOPIC)).into_iter().for_each(drop);
    }
    web.take_away();
    assert_eq!(
        bench.outcome(&source, genuine()).await,
        Ok(Some(AcceptedAs::Duplicate)),
        "its certificate is still there"
    );
}

fn with_authorization(value: &str) -> Unverified {
    let value = HeaderValue::from_str(value).expect("a header");
    post(HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]), "{}".to_owned())
}

fn bearer_or_jwt() -> Arc<Source> {
    Arc::new(compile(json!({ "path": "/in", "verify": [
        { "scheme": "bearer", "secrets": ["a-long-enough-token"] },
        { "scheme": "jwt", "keys": { "url": KEYS }, "issuers": ["https://issuer.example"], "audiences": ["us"] },
    ] })))
}

#[tokio::test(start_paused = true)]
async fn another_alternative_does_not_hide_that_keys_are_missing() {
    let web = Web::with(&[]);
    assert_eq!(Bench::new(&web).outcome(&bearer_or_jwt(), with_token("one")).await, Err(UNAVAILABLE));
}

#[tokio::test(start_paused = true)]
async fn who_needs_no_keys_does_not_wait_for_them() {
    let web = Arc::new(Web { pause: Some(Duration::from_secs(1)), ..Web::default() });
    let (bench, source, begun) = (Bench::new(&web), bearer_or_jwt(), tokio::time::Instant::now());
    let verified = bench.outcome(&source, with_authorization("Bearer a-long-enough-token")).await;
    assert_eq!(verified, Ok(Some(AcceptedAs::Delivered)));
    assert!(bench.outcome(&source, with_authorization("nonsense")).await.is_err());
    assert_eq!((begun.elapsed(), web.asked().len()), (Duration::ZERO, 0));
}

#[tokio::test(start_paused = true)]
async fn an_empty_key_set_does_not_take_the_place_of_a_good_one() {
    let web = Web::with(&[(KEYS, jwks("one"))]);
    let (bench, source) = (Bench::new(&web), issuer());
    assert_eq!(bench.outcome(&source, with_token("one")).await, Ok(Some(AcceptedAs::Delivered)));
    for document in ["{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct"}]}"#] {
        web.put(KEYS, document.to_owned());
        for wanted in source.verifier().documents() {
            bench.pipeline.fetch(wanted, Deadline::after(Duration::from_secs(1))).await;
        }
        assert_eq!(bench.outcome(&source, with_token("one")).await, Ok(Some(AcceptedAs::Duplicate)), "{document}");
        // Whether there is another key nobody can say meanwhile.
        assert_eq!(bench.outcome(&source, with_token("two")).await, Err(UNAVAILABLE), "{document}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_many_wait_for_is_reported_once() {
    let web = Arc::new(Web { pause: Some(Duration::from_millis(300)), ..Web::default() });
    web.put(KEYS, jwks("one"));
    let (bench, source) = (Bench::new(&web), issuer());
    futures_util::future::join_all((0..50).map(|_| bench.outcome(&source, with_token("one")))).await;
    assert_eq!(web.asked().len(), 1);
    assert_eq!(bench.recorder.count("document_fetched url=https://issuer.example/keys error=-"), 1);
}

/// Never answers.
struct Silent(Arc<()>);

impl Fetch for Silent {
    fn get(&self, _: String, _: usize) -> BoxFuture<'static, Result<Bytes, String>> {
        let alive = Arc::clone(&self.0);
        async move {
            let answer = std::future::pending().await;
            drop(alive);
            answer
        }
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn fetches_that_everybody_gave_up_do_not_pile_up() {
    let alive = Arc::new(());
    let mut bench = Bench::new(&Web::with(&[]));
    Arc::get_mut(&mut bench.pipeline).expect("nobody else has it").fetch = Arc::new(Silent(Arc::clone(&alive)));
    let source = Arc::new(compile(json!({ "path": "/in", "verify": [{ "scheme": "aws-sns", "topics": [TOPIC] }] })));
    for n in 0..100 {
        tokio::time::advance(Duration::from_secs(1)).await;
        let url = format!("https://sns.us-east-1.amazonaws.com/{n}.pem");
        let _refused = bench.outcome(&source, sns_message("Notification", &url, TOPIC)).await;
    }
    assert!(Arc::strong_count(&alive) - 2 <= 32, "{}", Arc::strong_count(&alive));
    drop(source);
    assert_eq!(Arc::strong_count(&alive) - 2, 0);
}

#[tokio::test(start_paused = true)]
async fn only_the_services_own_signature_makes_us_confirm() {
    let url = "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn=theirs&Token=t";
    let web = Web::with(&[(url, "ok".to_owned())]);
    let source = Arc::new(compile(json!({ "path": "/in", "verify": [
        { "scheme": "aws-sns", "topics": [TOPIC] }, { "scheme": "insecure-accept-anyone" },
    ] })));
    let body = json!({
        "Type": "SubscriptionConfirmation", "MessageId": "1", "TopicArn": "theirs", "Message": "", "Timestamp": "",
        "SignatureVersion": "", "Signature": "", "SigningCertURL": "", "SubscribeURL": url, "Token": "t",
    });
    let request = post(HeaderMap::new(), body.to_string());
    assert_eq!(
        Bench::new(&web).outcome(&source, request).await,
        Ok(Some(AcceptedAs::Delivered)),
        "an event like any other"
    );
    assert!(web.asked().is_empty());
}
