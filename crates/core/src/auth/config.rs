//! The `verify` list of a source.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{
    Context, KeyForm, Scheme, SchemeProblems,
    adyen::{Adyen, AdyenConfig},
    atlassian::{Atlassian, AtlassianConfig},
    jwt::{Jwt, JwtConfig},
    mailgun::{Mailgun, MailgunConfig},
    peer::{Address, AddressConfig, Certificate, CertificateConfig},
    signature::{AlgorithmName, SignatureConfig, resolve_all},
    sns::{Sns, SnsConfig},
    token::{Place, check_pair},
    twilio::{Twilio, TwilioConfig},
};
use crate::secret::{ResolveSecret, SecretRef};

/// The word that lets anybody in.
pub(super) const ACCEPT_ANYONE: &str = "insecure-accept-anyone";

/// One entry of a source's `verify` list: a scheme, or several that must all hold.
#[derive(Debug, Clone)]
pub enum VerifyConfig {
    /// This scheme suffices.
    One(Box<SchemeConfig>),
    /// All of these must hold.
    All(Vec<SchemeConfig>),
}

impl VerifyConfig {
    /// Its schemes.
    pub(crate) fn schemes_mut(&mut self) -> &mut [SchemeConfig] {
        match self {
            Self::One(scheme) => std::slice::from_mut(&mut **scheme),
            Self::All(schemes) => schemes,
        }
    }
}

/// A way to verify a sender, with its secrets.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(tag = "scheme", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SchemeConfig {
    /// `Authorization: Bearer <token>` (RFC 6750, section 2.1).
    Bearer {
        /// The tokens that are live; any one may match.
        #[serde(default)]
        secrets: Vec<SecretRef>,
    },
    /// `Authorization: Basic <base64 of user:password>` (RFC 7617).
    Basic {
        /// The pairs `user:password` that are live; any one may match as a whole.
        #[serde(default)]
        secrets: Vec<SecretRef>,
    },
    /// A token as the whole value of a header.
    Header {
        /// The header, like `X-Gitlab-Token`. Default: the preset's.
        #[serde(skip_serializing_if = "Option::is_none")]
        header: Option<String>,
        /// The tokens that are live; any one may match.
        #[serde(default)]
        secrets: Vec<SecretRef>,
    },
    /// A token in the URL's query. It ends in the logs of every proxy on the way: prefer `bearer` where the sender can.
    Query {
        /// Name of the query parameter, like `token`. Default: the preset's.
        #[serde(skip_serializing_if = "Option::is_none")]
        param: Option<String>,
        /// The tokens that are live; any one may match.
        #[serde(default)]
        secrets: Vec<SecretRef>,
    },
    /// An HMAC over the request, with a shared secret.
    Hmac(SignatureConfig),
    /// An Ed25519 signature over the request, by the sender's key.
    Ed25519(SignatureConfig),
    /// An ECDSA signature (P-256, SHA-256) over the request, by the sender's key.
    EcdsaP256(SignatureConfig),
    /// Twilio's signature over URL and form.
    Twilio(TwilioConfig),
    /// Mailgun's signature in the body.
    Mailgun(MailgunConfig),
    /// Adyen's signatures in the items of the body.
    AdyenItem(AdyenConfig),
    /// Amazon SNS's signature in the body.
    AwsSns(SnsConfig),
    /// A signed JWT as a bearer token, by OpenID Connect.
    Jwt(JwtConfig),
    /// Atlassian Connect's JWT with a query string hash.
    Atlassian(AtlassianConfig),
    /// An allow-list of addresses.
    Ip(AddressConfig),
    /// The identity in a TLS client certificate.
    ClientCert(CertificateConfig),
    /// Nothing: whoever finds the path can put events into the queue. `check` and the log say so.
    InsecureAcceptAnyone {},
}

impl SchemeConfig {
    /// Takes from `preset` what is left out here, if it is the same scheme.
    pub(crate) fn fill_from(&mut self, preset: &Self) {
        match (self, preset) {
            (Self::Header { header, .. }, Self::Header { header: preset, .. }) if header.is_none() => {
                header.clone_from(preset);
            }
            (Self::Query { param, .. }, Self::Query { param: preset, .. }) if param.is_none() => {
                param.clone_from(preset);
            }
            (Self::Hmac(own), Self::Hmac(preset))
            | (Self::Ed25519(own), Self::Ed25519(preset))
            | (Self::EcdsaP256(own), Self::EcdsaP256(preset)) => own.fill_from(preset),
            (Self::Jwt(own), Self::Jwt(preset)) => own.fill_from(preset),
            _ => {}
        }
    }

    /// Whether it is the same scheme as `other`.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// Its list of secrets, if it has one.
    pub(crate) fn secrets_mut(&mut self) -> Option<&mut Vec<SecretRef>> {
        match self {
            Self::Bearer { secrets } | Self::Basic { secrets } => Some(secrets),
            Self::Header { secrets, .. } | Self::Query { secrets, .. } => Some(secrets),
            Self::Hmac(config) | Self::Ed25519(config) | Self::EcdsaP256(config) => Some(&mut config.secrets),
            Self::Twilio(config) => Some(&mut config.secrets),
            Self::Mailgun(config) => Some(&mut config.secrets),
            Self::AdyenItem(config) => Some(&mut config.secrets),
            Self::Atlassian(config) => Some(&mut config.secrets),
            Self::AwsSns(_) | Self::Jwt(_) | Self::Ip(_) | Self::ClientCert(_) | Self::InsecureAcceptAnyone {} => None,
        }
    }

    /// Prepares the scheme and resolves its secrets.
    pub(super) fn compile(
        &self,
        context: &Context,
        resolve: &mut ResolveSecret<'_>,
        problems: &mut SchemeProblems<'_>,
    ) -> Option<Scheme> {
        let found_before = problems.len();
        let any_text = KeyForm::Utf8.check();
        let scheme = match self {
            Self::Bearer { secrets } => Scheme::Token {
                name: "bearer",
                place: Place::Bearer,
                secrets: resolve_all(secrets, any_text, resolve, problems),
            },
            Self::Basic { secrets } => Scheme::Token {
                name: "basic",
                place: Place::Basic,
                secrets: resolve_all(secrets, check_pair, resolve, problems),
            },
            Self::Header { header, secrets } => {
                let secrets = resolve_all(secrets, any_text, resolve, problems);
                let Some(header) = header.as_deref().filter(|name| !name.is_empty()) else {
                    problems.push("header", "is missing; name the header, like \"X-Api-Key\"");
                    return None;
                };
                Scheme::Token { name: "header", place: Place::Header(problems.header("header", header)?), secrets }
            }
            Self::Query { param, secrets } => {
                let secrets = resolve_all(secrets, any_text, resolve, problems);
                let Some(param) = param.clone().filter(|name| !name.is_empty()) else {
                    problems.push("param", "is missing; name the query parameter, like \"token\"");
                    return None;
                };
                Scheme::Token { name: "query", place: Place::Query(param), secrets }
            }
            Self::Hmac(config) => signature("hmac", AlgorithmName::Hmac, config, context, resolve, problems)?,
            Self::Ed25519(config) => signature("ed25519", AlgorithmName::Ed25519, config, context, resolve, problems)?,
            Self::EcdsaP256(config) => {
                signature("ecdsa-p256", AlgorithmName::EcdsaP256, config, context, resolve, problems)?
            }
            Self::Twilio(config) => Scheme::Twilio(Twilio::compile(config, context, resolve, problems)),
            Self::Mailgun(config) => Scheme::Mailgun(Mailgun::compile(config, resolve, problems)),
            Self::AdyenItem(config) => Scheme::Adyen(Adyen::compile(config, resolve, problems)),
            Self::AwsSns(config) => Scheme::Sns(Sns::compile(config, resolve, problems)),
            Self::Jwt(config) => Scheme::Jwt(Box::new(Jwt::compile(config, resolve, problems)?)),
            Self::Atlassian(config) => Scheme::Atlassian(Atlassian::compile(config, resolve, problems)),
            Self::Ip(config) => Scheme::Address(Address::compile(config, &context.trusted_proxies, problems)),
            Self::ClientCert(config) => Scheme::Certificate(Certificate::compile(config, problems)),
            Self::InsecureAcceptAnyone {} => Scheme::AcceptAnyone,
        };
        (problems.len() == found_before).then_some(scheme)
    }
}

fn signature(
    name: &'static str,
    algorithm: AlgorithmName,
    config: &SignatureConfig,
    context: &Context,
    resolve: &mut ResolveSecret<'_>,
    problems: &mut SchemeProblems<'_>,
) -> Option<Scheme> {
    let signature = config.compile(algorithm, context, resolve, problems)?;
    Some(Scheme::Signature(name, Box::new(signature)))
}

impl<'de> Deserialize<'de> for VerifyConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrAll;
        impl<'de> de::Visitor<'de> for OneOrAll {
            type Value = VerifyConfig;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(
                    "a scheme like { scheme = \"bearer\", secrets = […] }, or a list of schemes that must all hold",
                )
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<VerifyConfig, A::Error> {
                Box::deserialize(de::value::MapAccessDeserializer::new(map)).map(VerifyConfig::One)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<VerifyConfig, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(VerifyConfig::All)
            }
        }
        deserializer.deserialize_any(OneOrAll)
    }
}

impl JsonSchema for VerifyConfig {
    fn schema_name() -> Cow<'static, str> {
        "Verify".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let scheme = generator.subschema_for::<SchemeConfig>();
        json_schema!({
            "description": "A scheme, or a list of schemes that must all hold.",
            "anyOf": [scheme, { "type": "array", "items": scheme, "minItems": 1 }],
        })
    }
}

impl Serialize for VerifyConfig {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::One(scheme) => scheme.serialize(serializer),
            Self::All(schemes) => schemes.serialize(serializer),
        }
    }
}
