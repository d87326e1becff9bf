//! The conformance suite on real directories.

mod support;

use std::{fs, sync::Arc};

use hookgate_core::{
    event::SinkId,
    observe::Observer,
    sink::{Sink, Target},
};
use hookgate_sink_file::Config;
use hookgate_testkit::{
    conformance::{BadCredentials, Broker, Inapplicable, Stored},
    conformance_suite,
    proxy::FaultProxy,
};
use tempfile::TempDir;

/// A directory, as the broker that it stands in for.
struct FileBroker {
    dir: TempDir,
}

impl FileBroker {
    fn start() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory can be made") }
    }
}

const ONE_PLACE: Inapplicable = Inapplicable("there is one place, and everything goes there");
const NO_SERVER: Inapplicable = Inapplicable("there is no server; `faults.rs` has what disks do instead");
const NO_CREDENTIALS: Inapplicable = Inapplicable("nothing is asked for credentials");

impl Broker for FileBroker {
    fn target(&self) -> Target {
        Target::Whole
    }

    async fn sink(&mut self, id: SinkId, observer: Arc<dyn Observer>) -> Arc<dyn Sink> {
        // Small files, so that every case meets a change of files.
        let table = serde_json::json!({ "dir": self.dir.path(), "rotate_at": "64 KiB" });
        let config: Config = serde_json::from_value(table).expect("well-formed");
        Arc::new(hookgate_sink_file::connect(id, &config, observer).await.expect("the directory can be used"))
    }

    async fn stored(&mut self) -> Vec<Stored> {
        support::stored(self.dir.path())
    }

    fn unroutable(&self) -> Result<Target, Inapplicable> {
        Err(ONE_PLACE)
    }

    async fn silent(&mut self) -> Result<Target, Inapplicable> {
        Err(ONE_PLACE)
    }

    async fn remove_destination(&mut self) -> Result<(), Inapplicable> {
        fs::remove_dir_all(self.dir.path()).expect("it is there");
        Ok(())
    }

    async fn restore_destination(&mut self) {
        fs::create_dir(self.dir.path()).expect("it is not there");
    }

    fn body_bytes_too_large(&self) -> Result<usize, Inapplicable> {
        Err(Inapplicable("a line may be as long as any event"))
    }

    async fn bad_credentials(&mut self, _: SinkId, _: Arc<dyn Observer>) -> Result<BadCredentials, Inapplicable> {
        Err(NO_CREDENTIALS)
    }

    async fn kill(&mut self) -> Result<(), Inapplicable> {
        Err(NO_SERVER)
    }

    async fn restart(&mut self) {
        unreachable!("it is never killed");
    }

    async fn pause(&mut self) -> Result<(), Inapplicable> {
        Err(NO_SERVER)
    }

    async fn resume(&mut self) {
        unreachable!("it is never paused");
    }

    fn proxy(&self) -> Result<Arc<FaultProxy>, Inapplicable> {
        Err(NO_SERVER)
    }

    fn secrets(&self) -> Result<Vec<String>, Inapplicable> {
        Err(NO_CREDENTIALS)
    }

    fn printed(&self) -> Vec<String> {
        unreachable!("there is nothing secret to print");
    }
}

conformance_suite!(
    FileBroker::start(),
    inapplicable = [
        unroutable_is_refused,
        too_large_is_rejected_not_retried,
        bad_credentials_are_misconfigured,
        a_broker_that_is_down_is_unavailable_before_the_deadline,
        no_receipt_when_the_connection_dies_before_the_ack,
        a_deadline_without_an_answer_is_unknown,
        a_stalled_publish_does_not_delay_others,
        publishes_again_after_a_broker_restart,
        a_thousand_in_parallel_through_a_lossy_proxy_lose_nothing,
        no_output_contains_a_secret,
    ]
);
