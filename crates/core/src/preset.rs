//! What is known about senders: one table each in `presets.toml`, in the form of a source's own. Anything written beside
//! `preset = "…"` in the config wins.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Deserialize;

use crate::{
    auth::{SchemeConfig, VerifyConfig},
    config::ByteLimit,
    handshake::ChallengeConfig,
    identity::{IdCandidate, TypeRule},
    secret::SecretRef,
    source::{BodyKind, Places, ReplyConfig},
};

/// What a preset fills in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// Where the provider describes it.
    pub facts: String,
    /// The schemes of the provider, without secrets and without what is the operator's own.
    pub verify: Vec<VerifyConfig>,
    /// Candidates for the event id.
    #[serde(default = "body_hash")]
    pub event_id: Vec<IdCandidate>,
    /// Rules for the event type.
    #[serde(default)]
    pub event_type: Vec<TypeRule>,
    /// Attributes with the places to look at, in order.
    #[serde(default)]
    pub attributes: BTreeMap<String, Places>,
    /// The attribute whose events belong together.
    pub partition_by: Option<String>,
    /// What its bodies are.
    #[serde(default)]
    pub body: BodyKind,
    /// Longest body that it sends, where that is more than the server's default.
    pub max_body: Option<ByteLimit>,
    /// Requests by which it makes sure of its receiver.
    #[serde(default)]
    pub challenges: Vec<ChallengeConfig>,
    /// The answer that it wants to an event.
    pub reply: Option<ReplyConfig>,
    /// The body of a test event; `$ID`, `$NOW`, `$NOW_MS` and `$RFC3339` are filled in.
    pub sample: Option<String>,
    /// The headers of a test event beside those of the signature.
    #[serde(default)]
    pub sample_headers: BTreeMap<String, String>,
}

fn body_hash() -> Vec<IdCandidate> {
    vec![IdCandidate::BodySha256]
}

/// Every preset by its name.
pub static PRESETS: LazyLock<BTreeMap<String, Preset>> =
    LazyLock::new(|| toml::from_str(include_str!("presets.toml")).expect("every preset is read by a test"));

impl Preset {
    /// The preset called `name`.
    pub fn find(name: &str) -> Option<&'static Self> {
        PRESETS.get(name)
    }

    /// Its schemes, each with `secrets`; `None` when one of them has no place for secrets, or needs more than them.
    pub fn verify_with(&self, secrets: &[SecretRef]) -> Option<Vec<VerifyConfig>> {
        let mut verify = self.verify.clone();
        for scheme in verify.iter_mut().flat_map(VerifyConfig::schemes_mut) {
            *scheme.secrets_mut()? = secrets.to_vec();
        }
        Some(verify)
    }

    /// Fills into `verify` what is left out there and known here.
    pub fn fill(&self, verify: &mut [VerifyConfig]) {
        let mut known = self.verify.clone();
        let known: Vec<&SchemeConfig> =
            known.iter_mut().flat_map(VerifyConfig::schemes_mut).map(|scheme| &*scheme).collect();
        for scheme in verify.iter_mut().flat_map(VerifyConfig::schemes_mut) {
            if let Some(preset) = known.iter().find(|preset| preset.is_like(scheme)) {
                scheme.fill_from(preset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_can_be_read_and_says_where_its_facts_are() {
        assert!(PRESETS.len() > 45, "{}", PRESETS.len());
        for (name, preset) in PRESETS.iter() {
            assert!(preset.facts.starts_with("https://"), "{name}");
            assert!(!preset.verify.is_empty(), "{name}");
            let always = matches!(preset.event_id.last(), Some(IdCandidate::BodySha256 | IdCandidate::Unique));
            assert!(always, "{name}: an event always has an id");
        }
    }

    #[test]
    fn a_batch_is_not_called_by_its_first_item() {
        let places = |preset: &Preset| format!("{:?}", preset.event_id);
        for (name, preset) in PRESETS.iter() {
            assert!(!places(preset).contains("/0/"), "{name}: {}", places(preset));
        }
    }
}
