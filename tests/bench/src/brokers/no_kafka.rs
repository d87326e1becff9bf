//! What stands in the place of Kafka in a build without it.

use crate::{event::Events, probe::Target};

/// There is none.
#[derive(Debug)]
pub(super) enum Kafka {}

pub(super) fn missing() -> Option<&'static str> {
    Some("this program was built without `--features kafka`")
}

impl Kafka {
    pub(super) async fn start() -> anyhow::Result<Self> {
        anyhow::bail!("this program was built without `--features kafka`")
    }

    pub(super) fn address(&self) -> String {
        match *self {}
    }

    pub(super) async fn messages(&self) -> anyhow::Result<u64> {
        match *self {}
    }

    pub(super) async fn empty(&self) -> anyhow::Result<()> {
        match *self {}
    }

    pub(super) async fn read(&self, _events: &Events) -> anyhow::Result<Vec<u64>> {
        match *self {}
    }

    pub(super) fn probed(&self) -> Target {
        match *self {}
    }

    pub(super) fn about(&self) -> String {
        match *self {}
    }
}
