//! Amazon SNS: a signature in the body over some of its fields, by a key whose certificate the body names.
//!
//! The certificate's URL is the sender's word, so only the service's own hosts are asked, and the URL is checked letter by
//! letter: no two parsers can read it differently. Everybody with an account there can have a message signed, so the topic
//! must be on the operator's list.
//!
//! Source: Amazon SNS, "Verifying the signatures of Amazon SNS messages" and "Parsing Amazon SNS message formats".

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use data_encoding::BASE64;
use ring::signature::{
    RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256, RsaParameters, UnparsedPublicKey,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    AuthFailure, Request, SchemeProblems,
    remote::{Shelf, Wanted},
};
use crate::{
    config::Problem,
    secret::{ResolveSecret, SecretRef},
};

/// Signed messages of Amazon SNS.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SnsConfig {
    /// ARNs of the topics that may send here, or `["*"]` for every topic of every account, which is anybody.
    #[serde(default)]
    pub topics: Vec<String>,
    /// Whether a subscription of a listed topic is confirmed when SNS asks. Default: `true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<bool>,
    /// Signing certificates (PEM) by their URLs, where hookgate cannot reach the service. Others are fetched and kept.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub certificates: BTreeMap<String, SecretRef>,
}

/// The scheme, ready to verify.
#[derive(Debug)]
pub(super) struct Sns {
    topics: Vec<String>,
    confirm: bool,
    certificates: Shelf<RsaKey>,
    name: Arc<str>,
}

/// An RSA public key in DER form.
struct RsaKey(Vec<u8>);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Body<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    message_id: Cow<'a, str>,
    #[serde(borrow)]
    topic_arn: Cow<'a, str>,
    #[serde(borrow)]
    subject: Option<Cow<'a, str>>,
    #[serde(borrow)]
    message: Cow<'a, str>,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    #[serde(borrow)]
    signature_version: Cow<'a, str>,
    #[serde(borrow)]
    signature: Cow<'a, str>,
    #[serde(rename = "SigningCertURL", borrow)]
    signing_cert_url: Cow<'a, str>,
    #[serde(rename = "SubscribeURL", borrow)]
    subscribe_url: Option<Cow<'a, str>>,
    #[serde(borrow)]
    token: Option<Cow<'a, str>>,
}

/// What an authentic message asks for besides being published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SnsRequest {
    /// To confirm a subscription by a GET of this URL.
    Confirm(String),
    /// To confirm one that the config says not to confirm.
    Ignore,
    /// Nothing: the subscription has ended, and the URL in the message would begin it again.
    Unsubscribed,
}

impl Sns {
    pub(super) fn compile(
        config: &SnsConfig,
        resolve: &mut ResolveSecret<'_>,
        problems: &mut SchemeProblems<'_>,
    ) -> Self {
        if config.topics.is_empty() {
            let advice = "is empty: every account of the service could send events; list the ARNs of your topics";
            problems.push("topics", advice);
        }
        let certificates = Shelf::new(RsaKey::parse);
        for (url, pem) in &config.certificates {
            let put = resolve(pem).and_then(|slot| certificates.put(url, slot.current().expose()));
            if let Err(message) = put {
                problems.add(Problem::new(format!("certificates.{url}"), message));
            }
        }
        Self {
            topics: config.topics.clone(),
            confirm: config.confirm.unwrap_or(true),
            certificates,
            name: "aws-sns certificate".into(),
        }
    }

    /// What is allowed and unwise.
    pub(super) fn warnings(&self) -> Vec<String> {
        let anybody = self.topics.iter().any(|topic| topic == "*");
        let warning = "topics has \"*\": everybody with an account at Amazon can send events here";
        anybody.then(|| warning.to_owned()).into_iter().collect()
    }

    /// What stands for the secret's name.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The certificate, if it has to be fetched before `request` can be judged.
    pub(super) fn wanted(&self, request: &Request) -> Option<Wanted> {
        let body = Body::parse(&request.body).ok()?;
        if !is_certificate_url(&body.signing_cert_url) || !self.expects(&body.topic_arn) {
            return None;
        }
        self.certificates.wanted(&body.signing_cert_url)
    }

    pub(super) fn verify(&self, request: &Request) -> Result<Arc<str>, AuthFailure> {
        let body = Body::parse(&request.body)?;
        if !is_certificate_url(&body.signing_cert_url) {
            return Err(AuthFailure::CertificateUrlRefused);
        }
        let parameters: &'static RsaParameters = match &*body.signature_version {
            "1" => &RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
            "2" => &RSA_PKCS1_2048_8192_SHA256,
            _ => return Err(AuthFailure::AlgorithmRefused),
        };
        let signature = BASE64.decode(body.signature.as_bytes()).map_err(|_| AuthFailure::Malformed)?;
        if signature.is_empty() {
            return Err(AuthFailure::Missing);
        }
        let text = body.signed().ok_or(AuthFailure::Malformed)?;
        let expected = self.expects(&body.topic_arn);
        let key = match self.certificates.get(&body.signing_cert_url) {
            Some(key) => key,
            // For another's topic no certificate is fetched, so this one is not known to be signed at all.
            None if !expected => return Err(AuthFailure::TopicRefused),
            None => return Err(AuthFailure::KeysUnavailable),
        };
        let verified = UnparsedPublicKey::new(parameters, &key.0).verify(text.as_bytes(), &signature);
        verified.map_err(|_| AuthFailure::SignatureMismatch)?;
        if !expected {
            return Err(AuthFailure::TopicRefused);
        }
        self.certificates.note_use(&body.signing_cert_url);
        Ok(Arc::clone(&self.name))
    }

    fn expects(&self, topic: &str) -> bool {
        self.topics.iter().any(|known| known == "*" || known == topic)
    }

    /// What the authentic message in `body` asks for besides being published.
    pub(super) fn request(&self, body: &[u8]) -> Option<SnsRequest> {
        let body = Body::parse(body).ok()?;
        match (&*body.r#type, &body.subscribe_url) {
            ("SubscriptionConfirmation", Some(url)) if self.confirm && is_service_url(url) => {
                Some(SnsRequest::Confirm(url.clone().into_owned()))
            }
            ("SubscriptionConfirmation", _) => Some(SnsRequest::Ignore),
            ("UnsubscribeConfirmation", _) => Some(SnsRequest::Unsubscribed),
            _ => None,
        }
    }
}

impl<'a> Body<'a> {
    fn parse(body: &'a [u8]) -> Result<Self, AuthFailure> {
        let text = simdutf8::basic::from_utf8(body).map_err(|_| AuthFailure::BodyUnreadable)?;
        serde_json::from_str(text).map_err(|_| AuthFailure::BodyUnreadable)
    }

    /// Names and values of the signed fields, each on a line, in the order of their names.
    ///
    /// Nothing is escaped, and anybody may publish any message to a topic of his own: what he has signed there must not be
    /// readable as other fields. Only the message may have more than one line, so the text can be split in one way, from its
    /// end. Source: Amazon SNS, "Publish", for the subject: no line breaks and no control characters.
    fn signed(&self) -> Option<String> {
        let (subject, subscribe_url, token) = match &*self.r#type {
            "Notification" => (self.subject.as_ref(), None, None),
            "SubscriptionConfirmation" | "UnsubscribeConfirmation" => {
                (None, Some(self.subscribe_url.as_ref()?), Some(self.token.as_ref()?))
            }
            _ => return None,
        };
        let fields = [
            ("Message", Some(&self.message)),
            ("MessageId", Some(&self.message_id)),
            ("Subject", subject),
            ("SubscribeURL", subscribe_url),
            ("Timestamp", Some(&self.timestamp)),
            ("Token", token),
            ("TopicArn", Some(&self.topic_arn)),
            ("Type", Some(&self.r#type)),
        ];
        let is_line = |value: &Cow<'_, str>| !value.contains(char::is_control);
        if !fields.iter().all(|(name, value)| *name == "Message" || value.is_none_or(is_line)) {
            return None;
        }
        let line = |(name, value): (&str, Option<&Cow<'_, str>>)| value.map(|value| format!("{name}\n{value}\n"));
        Some(fields.into_iter().filter_map(line).collect())
    }
}

/// `https://sns.<region>.amazonaws.com/<name>.pem`, in the partition of China with `.cn` after it, and nothing else.
fn is_certificate_url(url: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match service_path(url) {
        Some(path) => path.strip_suffix(".pem").is_some_and(|name| !name.is_empty() && name.bytes().all(plain)),
        None => false,
    }
}

/// `https://sns.<region>.amazonaws.com/?…` with `Action=ConfirmSubscription` in it.
fn is_service_url(url: &str) -> bool {
    let query = service_path(url).and_then(|path| path.strip_prefix('?')).filter(|query| !query.contains(['#', '\\']));
    query.is_some_and(|query| {
        let mut actions = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "Action");
        matches!((actions.next(), actions.next()), (Some((_, action)), None) if action == "ConfirmSubscription")
            && query.bytes().all(|byte| byte.is_ascii_graphic())
    })
}

/// What follows the first slash of a URL on one of the service's own hosts.
fn service_path(url: &str) -> Option<&str> {
    let (region, path) = url.strip_prefix("https://sns.")?.split_once(".amazonaws.com")?;
    let path = path.strip_prefix(".cn").unwrap_or(path).strip_prefix('/')?;
    is_region(region).then_some(path)
}

/// Whether `name` is like `us-gov-west-1`: words of letters and a digit at the end. Other names in its place are other
/// services': `sns.s3.amazonaws.com` and `sns.s3-us-west-2.amazonaws.com` are somebody's bucket.
fn is_region(name: &str) -> bool {
    let mut parts = name.rsplit('-');
    let number = parts.next().is_some_and(|last| matches!(last.as_bytes(), [b'1'..=b'9']));
    let words: Vec<&str> = parts.collect();
    number
        && words.len() >= 2
        && words.iter().all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase()))
}

impl RsaKey {
    fn parse(pem: &[u8]) -> Result<Self, String> {
        const BAD: &str = "is no certificate in PEM form";
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem).map_err(|_| BAD)?;
        let certificate = pem.parse_x509().map_err(|_| BAD)?;
        Ok(Self(certificate.public_key().subject_public_key.data.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_services_own_hosts_have_certificates() {
        for good in [
            "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0a.pem",
            "https://sns.cn-north-1.amazonaws.com.cn/SimpleNotificationService-0a.pem",
        ] {
            assert!(is_certificate_url(good), "{good}");
        }
        for bad in [
            "http://sns.us-east-1.amazonaws.com/a.pem",
            "https://sns.us-east-1.amazonaws.com@evil.test/a.pem",
            "https://sns.us-east-1.amazonaws.com.evil.test/a.pem",
            "https://sns.us-east-1.amazonaws.com:8443/a.pem",
            "https://snsxus-east-1.amazonaws.com/a.pem",
            "https://sns..amazonaws.com/a.pem",
            "https://sns.s3.amazonaws.com/a.pem",
            "https://sns.s3-us-west-2.amazonaws.com/a.pem",
            "https://sns.s3-website-us-east-1.amazonaws.com/a.pem",
            "https://sns.US-EAST-1.amazonaws.com/a.pem",
            "https://sns.us-east.amazonaws.com/a.pem",
            "https://sns.us--1.amazonaws.com/a.pem",
            "https://sns.east-1.amazonaws.com/a.pem",
            "https://sns.a.b.amazonaws.com/a.pem",
            "https://sns.evil.test/x.amazonaws.com/a.pem",
            "https://evil.test#sns.us-east-1.amazonaws.com/a.pem",
            "https://sns.us-east-1.amazonaws.com/a.pem?x",
            "https://sns.us-east-1.amazonaws.com/a.txt",
            "https://sns.us-east-1.amazonaws.com/.pem",
            "https://sns.us-east-1.amazonaws.com/../a.pem",
            "https://sns.us-east-1.amazonaws.com\\a.pem",
        ] {
            assert!(!is_certificate_url(bad), "{bad}");
        }
    }

    #[test]
    fn only_a_confirmation_at_the_service_is_followed() {
        assert!(is_service_url("https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn=a&Token=b"));
        for bad in [
            "https://sns.eu-west-1.amazonaws.com/?Action=Publish&Action=ConfirmSubscription",
            "https://sns.eu-west-1.amazonaws.com/?Action=DeleteTopic",
            "https://evil.test/?Action=ConfirmSubscription",
            "https://sns.eu-west-1.amazonaws.com/x?Action=ConfirmSubscription",
            "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription\r\nx: y",
            "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription#x",
        ] {
            assert!(!is_service_url(bad), "{bad}");
        }
    }
}
