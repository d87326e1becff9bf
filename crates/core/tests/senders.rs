//! Every preset's sender, made by the library itself: what it signs is accepted, and with any bit changed it is not.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use hookgate_core::{
    auth::{AuthFailure, Context, Draft, SigningKey},
    config::ByteLimit,
    preset::{PRESETS, Preset},
    source::{Source, Surroundings},
};
use hookgate_testkit::sender::{self, request};
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair},
};
use serde_json::{Value, json};

/// When every draft here is signed.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000)
}

fn pem(der: &[u8]) -> String {
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", BASE64.encode(der))
}

/// A private key in PEM form with what the config needs to know of its public half.
enum Pair {
    Ed25519(String, String),
    EcdsaP256(String, String),
    Rsa(String, Value),
}

impl Pair {
    fn ed25519() -> Self {
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("random numbers");
        let pair = Ed25519KeyPair::from_pkcs8(der.as_ref()).expect("a fresh key");
        Self::Ed25519(pem(der.as_ref()), HEXLOWER.encode(pair.public_key().as_ref()))
    }

    fn ecdsa_p256() -> Self {
        const SPKI: &str = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).expect("random numbers");
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.as_ref(), &random).expect("a fresh key");
        let public = [&HEXLOWER.decode(SPKI.as_bytes()).expect("hexadecimal"), pair.public_key().as_ref()].concat();
        Self::EcdsaP256(pem(der.as_ref()), BASE64.encode(&public))
    }

    fn rsa() -> Self {
        let pem = include_str!("../../testkit/fixtures/keys/rsa.pem");
        let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let pair = RsaKeyPair::from_pkcs8(&BASE64.decode(base64.as_bytes()).expect("base64")).expect("a key");
        let part = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
        let key = json!({ "kty": "RSA", "kid": "one", "n": part(&public.n), "e": part(&public.e) });
        Self::Rsa(pem.to_owned(), json!({ "keys": [key] }))
    }

    fn signing_key(&self) -> SigningKey {
        let (Self::Ed25519(pem, _) | Self::EcdsaP256(pem, _) | Self::Rsa(pem, _)) = self;
        SigningKey::from_pem(pem.as_bytes()).expect("a key")
    }
}

fn compile(config: Value) -> Source {
    let auth = Context { public_url: Some("https://hooks.example.test".into()), ..Context::default() };
    let surroundings = Surroundings { auth, ..ByteLimit::mib(1).into() };
    sender::try_compile(config, &surroundings).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// A POST of `body` at the time of all drafts here.
fn draft(body: impl Into<Bytes>) -> Draft {
    Draft { now: now(), ..sender::draft(body) }
}

/// A source with the preset called `name`, and the private key that its sender has.
fn source(name: &str) -> (Source, Option<Pair>) {
    let with = |secrets: Value| json!({ "path": "/in", "preset": name, "secrets": secrets });
    let verify = |verify: Value| json!({ "path": "/in", "preset": name, "verify": verify });
    let whsec = format!("whsec_{}", BASE64.encode(b"a key of twenty-four byt"));
    let (config, pair) = match name {
        "basic" => (with(json!(["user:password"])), None),
        "standard-webhooks" | "openai" | "svix" | "gitlab-signing" => (with(json!([whsec])), None),
        "adyen-body" | "adyen-item" => (with(json!(["00ff17"])), None),
        "discord" | "standard-webhooks-v1a" => {
            let pair = Pair::ed25519();
            let Pair::Ed25519(_, public) = &pair else { unreachable!() };
            (with(json!([public])), Some(pair))
        }
        "sendgrid" => {
            let pair = Pair::ecdsa_p256();
            let Pair::EcdsaP256(_, public) = &pair else { unreachable!() };
            (with(json!([public])), Some(pair))
        }
        "google-pubsub" | "azure-entra" => {
            let pair = Pair::rsa();
            let Pair::Rsa(_, keys) = &pair else { unreachable!() };
            let scheme = json!({
                "scheme": "jwt", "keys": { "inline": keys.to_string() }, "issuers": ["https://issuer.example"],
                "audiences": ["us"], "email": "push@example.test", "client_id": "app",
            });
            (verify(json!([scheme])), Some(pair))
        }
        "aws-sns" => (verify(json!([{ "scheme": "aws-sns", "topics": ["arn:aws:sns:us-east-1:1:t"] }])), None),
        _ => (with(json!(["a shared secret"])), None),
    };
    (compile(config), pair)
}

/// What the preset's sender sends, signed. `None` for the one that only its provider can sign for.
fn signed(name: &str, preset: &Preset) -> Option<(Source, Draft)> {
    let (source, pair) = source(name);
    let fill = |text: &str| {
        let values = [
            ("$ID", "one"),
            ("$NOW_MS", "1795000000000"),
            ("$NOW", "1795000000"),
            ("$RFC3339", "2026-11-18T11:06:40Z"),
        ];
        values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    };
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in &preset.sample_headers {
        headers
            .insert(name.parse::<HeaderName>().expect("a name"), HeaderValue::from_str(&fill(value)).expect("a value"));
    }
    let signing_key = pair.as_ref().map(Pair::signing_key);
    let mut draft = Draft { headers, signing_key, ..draft(fill(preset.sample.as_deref().unwrap_or("{}"))) };
    match source.sign(&mut draft) {
        Ok(()) => Some((source, draft)),
        Err(message) if name == "aws-sns" => {
            assert!(message.contains("aws sns publish"), "{message}");
            None
        }
        Err(message) => panic!("{name}: {message}"),
    }
}

fn failure(source: &Source, draft: &Draft) -> Option<AuthFailure> {
    source.verify(request(draft)).err()
}

fn flip(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    flipped[bit / 8] ^= 1 << (bit % 8);
    flipped
}

/// Whether every byte of the body is signed, so that every bit of it counts.
fn covers_the_body(name: &str) -> bool {
    let tokens = ["openclaw", "bearer", "basic", "header-token", "query-token", "gitlab", "telegram", "okta"];
    let more_tokens = ["microsoft-graph", "azure-event-grid", "cloudevents"];
    // Fields are signed, or only who sends.
    let parts = ["mailgun", "adyen-item", "atlassian-connect", "google-pubsub", "azure-entra", "twilio"];
    !tokens.contains(&name) && !more_tokens.contains(&name) && !parts.contains(&name)
}

#[test]
fn every_preset_accepts_what_its_sender_signs_and_makes_an_event_of_it() {
    for (name, preset) in PRESETS.iter() {
        let Some((source, draft)) = signed(name, preset) else { continue };
        let verified = source.verify(request(&draft)).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert_eq!(source.answer(&verified), None, "{name}: an event is no handshake");
        let event = source.identify(verified).unwrap_or_else(|malformed| panic!("{name}: {malformed}"));
        assert!(event.event_type.len() > 1, "{name}: {}", event.event_type);
    }
}

#[test]
fn no_bit_of_what_is_signed_can_be_changed() {
    for (name, preset) in PRESETS.iter() {
        let Some((source, draft)) = signed(name, preset) else { continue };
        // What the library itself put there: the credential, and the timestamp and id that it signs.
        let unsigned = signed_headers(name, preset);
        for (header, value) in unsigned {
            for bit in 0..value.len() * 8 {
                let Ok(changed) = HeaderValue::from_bytes(&flip(value.as_bytes(), bit)) else { continue };
                let mut headers = draft.headers.clone();
                headers.insert(&header, changed.clone());
                let changed_draft = with(&draft, |draft| draft.headers = headers);
                assert!(
                    failure(&source, &changed_draft).is_some(),
                    "{name}: {header} with bit {bit} changed: {changed:?}"
                );
            }
        }
        if covers_the_body(name) {
            for bit in 0..draft.body.len() * 8 {
                let changed = with(&draft, |draft| draft.body = flip(&draft.body, bit).into());
                assert!(failure(&source, &changed).is_some(), "{name}: the body with bit {bit} changed");
            }
        }
    }
}

/// The headers of a signed draft that were not in the sample. The words `Bearer`, `Basic` and `JWT` are case-blind, so only
/// what follows them is looked at.
fn signed_headers(name: &str, preset: &Preset) -> Vec<(HeaderName, HeaderValue)> {
    let (_, draft) = signed(name, preset).expect("it was signed before");
    let sample = |header: &HeaderName| {
        *header == http::header::CONTENT_TYPE
            || preset.sample_headers.keys().any(|key| key.eq_ignore_ascii_case(header.as_str()))
    };
    let words = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.contains(' '));
    (draft.headers.iter())
        .filter(|(header, value)| !(sample(header) || **header == http::header::AUTHORIZATION && words(value)))
        .map(|(header, value)| (header.clone(), value.clone()))
        .collect()
}

fn with(draft: &Draft, change: impl FnOnce(&mut Draft)) -> Draft {
    let mut changed = Draft {
        method: draft.method.clone(),
        path: draft.path.clone(),
        query: draft.query.clone(),
        headers: draft.headers.clone(),
        body: draft.body.clone(),
        now: draft.now,
        id: draft.id.clone(),
        secret: None,
        signing_key: None,
    };
    change(&mut changed);
    changed
}

#[test]
fn a_request_grows_old_where_its_time_is_signed() {
    for (name, preset) in PRESETS.iter() {
        let Some((source, draft)) = signed(name, preset) else { continue };
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        let late = failure(&source, &with(&draft, |draft| draft.now += year));
        let early = failure(&source, &with(&draft, |draft| draft.now -= year));
        let timed = format!("{:?}", preset.verify).contains("timestamp: Some") || name == "mailgun";
        let token = ["google-pubsub", "azure-entra", "atlassian-connect"].contains(&name.as_str());
        match (timed, token) {
            (true, _) => assert_eq!(late, Some(AuthFailure::TimestampStale), "{name}"),
            (_, true) => assert_eq!(
                (late, early),
                (Some(AuthFailure::TokenExpired), Some(AuthFailure::TokenNotYetValid)),
                "{name}"
            ),
            (false, false) => assert_eq!((late, early), (None, None), "{name}"),
        }
    }
}

#[test]
fn an_unsigned_body_is_refused_wherever_signatures_are_asked_for() {
    for name in PRESETS.keys() {
        let (source, _) = source(name);
        assert!(failure(&source, &draft("{}")).is_some(), "{name}");
    }
}

#[test]
fn twilio_signs_every_field_and_the_hash_of_every_other_body() {
    let (source, _) = source("twilio");
    let draft = |content_type, body: &'static [u8]| Draft {
        query: Some("a=1".to_owned()),
        headers: HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type))]),
        ..draft(body)
    };
    for (content_type, body) in
        [("application/x-www-form-urlencoded", &b"B=2&A=1"[..]), ("application/json", b"{\"a\":1}")]
    {
        let mut draft = draft(content_type, body);
        source.sign(&mut draft).expect("a shared secret");
        assert_eq!(failure(&source, &draft), None, "{content_type}");
        for bit in 0..body.len() * 8 {
            let changed = with(&draft, |draft| draft.body = flip(body, bit).into());
            assert!(failure(&source, &changed).is_some(), "{content_type}: bit {bit}");
        }
    }
    // A body of another type without its hash in the URL is covered by nothing.
    let mut form = draft("application/x-www-form-urlencoded", b"");
    source.sign(&mut form).expect("a shared secret");
    let smuggled = with(&form, |draft| {
        draft.headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        draft.body = Bytes::from_static(b"{\"evil\":1}");
    });
    assert_eq!(failure(&source, &smuggled), Some(AuthFailure::ContentMismatch));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever stands in the headers that a preset reads and in the body: an answer, and no panic.
    #[test]
    fn no_request_is_too_strange(
        values in proptest::collection::vec("[ -~\\x{80}-\\x{ff}]{0,80}|[a-z0-9]{1,4}=[0-9a-f]{0,64}(,[a-z0-9]{1,3}=[0-9a-f]{0,64}){0,4}|[0-9]{0,20}", 12),
        body in prop_oneof![proptest::collection::vec(any::<u8>(), 0..200), "\\PC{0,200}".prop_map(String::into_bytes),
            r#"\{"(signature|notificationItems|Type|type|Message|webhookTimestamp)":(\{\}|\[\]|\[\{\}\]|1|"x"|null)\}"#.prop_map(String::into_bytes)],
        query in proptest::option::of("[ -~]{0,60}"),
    ) {
        for (name, preset) in PRESETS.iter() {
            let source = SOURCES.with(|sources| Arc::clone(&sources[name.as_str()]));
            let mut headers = HeaderMap::new();
            let names = HEADERS.with(|headers| headers.clone());
            for (header, value) in names.iter().zip(values.iter().cycle()) {
                if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                    headers.append(header, value);
                }
            }
            let draft = Draft { query: query.clone(), headers, ..draft(body.clone()) };
            let _answer = (source.answer_unverified(&request(&draft)), source.verifier().wanted(&request(&draft)));
            let token_scheme = preset.verify.iter().all(|scheme| format!("{scheme:?}").contains("Query"));
            prop_assert!(failure(&source, &draft).is_some() || token_scheme, "{name} accepted a random request");
        }
    }
}

thread_local! {
    /// Compiled once: proptest asks for them again and again.
    static SOURCES: BTreeMap<&'static str, Arc<Source>> =
        PRESETS.keys().map(|name| (name.as_str(), Arc::new(source(name).0))).collect();

    /// Every header that any preset reads.
    static HEADERS: Vec<HeaderName> = {
        let mut names: Vec<HeaderName> = PRESETS
            .iter()
            .filter_map(|(name, preset)| signed(name, preset))
            .flat_map(|(_, draft)| draft.headers.keys().cloned().collect::<Vec<_>>())
            .collect();
        names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        names
    };
}

#[test]
fn an_entry_with_its_own_header_takes_nothing_from_the_preset() {
    let hmac = |text: &str| {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"a shared secret");
        HEXLOWER.encode(ring::hmac::sign(&key, text.as_bytes()).as_ref())
    };
    let own = json!({ "scheme": "hmac", "header": "X-Old", "hash": "sha1", "secrets": ["a shared secret"] });
    let source = compile(json!({ "path": "/in", "preset": "stripe", "verify": [own] }));
    let headers =
        HeaderMap::from_iter([("x-old".parse().expect("a name"), HeaderValue::try_from(hmac("{}")).expect("a value"))]);
    assert_eq!(failure(&source, &Draft { headers, ..draft("{}") }), None);
}

#[test]
fn both_pings_of_discord_are_answered_and_its_events_are_not() {
    let (source, pair) = source("discord");
    let answer = |body: &str| {
        let signing_key = pair.as_ref().map(Pair::signing_key);
        let mut draft = Draft { signing_key, ..draft(body.to_owned()) };
        source.sign(&mut draft).expect("the key is there");
        let verified = source.verify(request(&draft)).expect("it is signed");
        source.answer(&verified).map(|reply| (reply.status(), reply.body().to_owned()))
    };
    let pong = Some((200, r#"{"type":1}"#.to_owned()));
    assert_eq!(answer(r#"{"application_id":"1","id":"2","token":"t","type":1,"version":1,"user":{"id":"3"}}"#), pong);
    assert_eq!(answer(r#"{"type":1,"application_id":"1"}"#), pong);
    assert_eq!(answer(r#"{"version":1,"application_id":"1","type":0}"#), Some((204, String::new())));
    assert_eq!(answer(r#"{"version":1,"application_id":"1","type":1,"event":{"type":"ENTITLEMENT_CREATE"}}"#), None);
    assert_eq!(answer(r#"{"id":"2","token":"t","type":2,"version":1,"data":{"name":"a command"}}"#), None);
}
