//! Spans for OpenTelemetry: the config of it. What exports them is in builds with the feature `otlp` only.

#[cfg(feature = "otlp")]
pub(super) mod export;

use std::collections::BTreeMap;

use hookgate_core::{
    config::{self, Problem},
    secret::{ResolveSecret, SecretRef},
    trace::Spans,
};
use http::{HeaderName, HeaderValue, Uri};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `[traces]` table, in builds with `--features otlp`. A change takes effect at the next start.
#[derive(Debug, Clone, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TracesConfig {
    /// Where the collector takes OTLP over HTTP, like `"http://collector:4318"`; `/v1/traces` is put behind it. No default. With https
    /// the proxy and the authorities of `[outbound]` count.
    pub(crate) endpoint: String,
    /// Headers for the collector, like `{ authorization = { env = "OTLP_AUTHORIZATION" } }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) headers: BTreeMap<String, SecretRef>,
    /// Which part of the traces is exported that nobody decided on before, from 0 to 1. An authenticated sender that sends a
    /// `traceparent` has decided for its own. What went wrong is exported in any case. Default: 0.01, enough to see where time
    /// goes.
    #[serde(default = "sample", deserialize_with = "config::part")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(crate) sample: f64,
}

fn sample() -> f64 {
    0.01
}

impl TracesConfig {
    /// That events have spans.
    pub(crate) fn spans(&self) -> Spans {
        Spans::Own { sample: self.sample }
    }

    /// What is wrong with it; keys are relative to the table.
    pub(crate) fn check(&self, resolve: &mut ResolveSecret<'_>) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Err(message) = self.url() {
            problems.push(Problem::new("endpoint", message));
        }
        for (name, reference) in &self.headers {
            let mut refuse = |message| problems.push(Problem::new(format!("headers.{name}"), message));
            if name.parse::<HeaderName>().is_err() {
                refuse("is not a header name".to_owned());
            }
            match resolve(reference) {
                Ok(slot) if HeaderValue::from_bytes(slot.current().expose()).is_err() => {
                    refuse("has a value that cannot stand in a header".to_owned());
                }
                Ok(_) => {}
                Err(message) => refuse(message),
            }
        }
        problems
    }

    /// Where spans are posted to.
    fn url(&self) -> Result<Uri, String> {
        let endpoint = &self.endpoint;
        let base: Option<Uri> = endpoint.parse().ok();
        let of_http = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.query().is_none();
        // Errors of the exporter have the address in them.
        if endpoint.contains('@') {
            return Err("has credentials in it; they belong into headers".to_owned());
        }
        match base.filter(of_http) {
            Some(_) => {
                format!("{}/v1/traces", endpoint.trim_end_matches('/')).parse().map_err(|_| "is no URL".to_owned())
            }
            // Not told: there may be a key in its query.
            None => Err("is not an address like \"http://collector:4318\", without a query".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::Secrets;

    fn url(endpoint: &str) -> Result<String, String> {
        let config = TracesConfig { endpoint: endpoint.to_owned(), headers: BTreeMap::new(), sample: 0.0 };
        config.url().map(|url| url.to_string())
    }

    #[test]
    fn the_endpoint_is_the_address_that_every_exporter_is_given() {
        let collector = Ok("http://collector:4318/v1/traces".to_owned());
        assert_eq!((url("http://collector:4318"), url("http://collector:4318/")), (collector.clone(), collector));
        assert_eq!(url("https://otlp.example/otel"), Ok("https://otlp.example/otel/v1/traces".to_owned()));
        for wrong in [
            "collector:4318",
            "collector",
            "grpc://collector:4317",
            "http://collector/?key=1",
            "http://u:p@collector",
            "",
        ] {
            assert!(url(wrong).is_err_and(|told| !told.contains("key=1") && !told.contains("u:p")), "{wrong}");
        }
    }

    #[test]
    fn a_header_that_cannot_be_sent_is_told_before_the_start() {
        let headers = [("a b", "v"), ("newline", "a\nb"), ("good", "v"), ("missing", "?")];
        let headers = headers.map(|(name, value)| (name.to_owned(), SecretRef::literal(value)));
        let config = TracesConfig { endpoint: "collector".to_owned(), headers: headers.into(), sample: 0.0 };
        let secrets = Secrets::default();
        let problems = config.check(&mut |reference| match secrets.resolve(reference)? {
            slot if slot.current().expose() == b"?" => Err("is not there".to_owned()),
            slot => Ok(slot),
        });
        let keys: Vec<String> = problems.into_iter().map(|problem| problem.key).collect();
        assert_eq!(keys, ["endpoint", "headers.a b", "headers.missing", "headers.newline"]);
    }
}
