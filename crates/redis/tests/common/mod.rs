//! What the tests of the store arrange with.

use std::{sync::Arc, time::Duration};

use hookgate_core::{
    dedup::{ClaimStore, Held, Owner, StoreError},
    event::{EventKey, Fingerprint},
    observe::Observer,
    secret::literal,
};
use hookgate_redis::{Config, RedisStore, connect};
use hookgate_testkit::{event::TestEvent, process::wait_until, recorder::Recorder};

/// How long anything may take that is not the subject of a test.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) const LEASE: Duration = Duration::from_secs(60);
pub(crate) const WINDOW: Duration = Duration::from_secs(3600);

/// The table that `toml` is.
pub(crate) fn config(toml: &str) -> Config {
    let config: Config = toml::from_str(toml).expect("well-formed");
    assert_eq!(config.check(), [], "{toml}");
    config
}

/// A store with what it has told.
pub(crate) struct Bench {
    pub(crate) store: RedisStore,
    pub(crate) told: Arc<Recorder>,
}

impl Bench {
    /// Connects as `toml` says.
    pub(crate) async fn start(toml: &str) -> Self {
        // The library asks for the process's TLS provider. Another test may have set it.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let told = Arc::new(Recorder::default());
        let observer: Arc<dyn Observer> = Arc::clone(&told) as _;
        let store = connect(&config(toml), &mut |reference| literal(reference), observer).await.expect("usable");
        Self { store, told }
    }

    /// Waits until claims can be made.
    pub(crate) async fn wait_until_up(&self) {
        let (key, owner) = (key("until it is up"), Owner::random());
        let up = async || self.store.claim(key, owner, LEASE).await.is_ok();
        let told = self.told.lines();
        wait_until(LIMIT, &format!("the store is up; so far: {told:?}"), up).await;
    }

    pub(crate) async fn claim(&self, id: &str, owner: Owner) -> Result<Held, StoreError> {
        self.store.claim(key(id), owner, LEASE).await
    }
}

pub(crate) fn key(id: &str) -> EventKey {
    TestEvent::new(id).event().key
}

pub(crate) fn body() -> Fingerprint {
    Fingerprint::of(b"a body")
}
