//! Reads secrets from the environment and from files, and files again when their content changes.
//!
//! Files are polled, not watched: Kubernetes swaps a directory above a mounted secret, which a watch on the file misses.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use hookgate_core::{
    observe::{Observation, Observer},
    secret::{Secret, SecretOrigin, SecretRef, SecretSlot},
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// How often files are looked at. An operator who rotates a secret waits this long at most.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The secrets that were resolved, and the files to look at again for as long as somebody uses what they hold.
#[derive(Clone, Default)]
pub(crate) struct Secrets {
    files: Arc<Mutex<Vec<SecretFile>>>,
}

type SecretFile = (PathBuf, Weak<SecretSlot>);

impl Secrets {
    /// The live secret that `reference` names.
    pub(crate) fn resolve(&self, reference: &SecretRef) -> Result<Arc<SecretSlot>, String> {
        let (secret, file) = match &reference.origin {
            SecretOrigin::Literal(text) => (Secret::new(text.as_bytes()).map_err(|empty| empty.to_string())?, None),
            SecretOrigin::Env(variable) => (from_environment(variable)?, None),
            SecretOrigin::File(path) => (from_file(path)?, Some(path.clone())),
        };
        let slot = Arc::new(SecretSlot::new(reference.display_name(), secret).until(reference.not_after));
        lock(&self.files).extend(file.map(|path| (path, Arc::downgrade(&slot))));
        Ok(slot)
    }

    fn in_use(&self) -> Vec<(PathBuf, Arc<SecretSlot>)> {
        let mut files = lock(&self.files);
        files.retain(|(_, slot)| slot.strong_count() > 0);
        files.iter().filter_map(|(path, slot)| Some((path.clone(), slot.upgrade()?))).collect()
    }

    /// Looks at the files from time to time until `stop`, and puts new values in place. A file that cannot be used any
    /// more changes nothing and is reported once.
    pub(crate) async fn keep_fresh(self, observer: Arc<dyn Observer>, stop: CancellationToken) {
        let mut troubles: BTreeMap<PathBuf, String> = BTreeMap::new();
        while stop.run_until_cancelled(tokio::time::sleep(POLL_INTERVAL)).await.is_some() {
            let files = self.in_use();
            let paths: Vec<PathBuf> = files.iter().map(|(path, _)| path.clone()).collect();
            // A mounted secret may hang like any disk: never on a thread that serves requests.
            let read = tokio::task::spawn_blocking(move || paths.iter().map(from_file).collect::<Vec<_>>());
            let Ok(contents) = read.await else { continue };
            for ((path, slot), content) in files.iter().zip(contents) {
                let unchanged = |secret: &Secret| secret.expose() == slot.current().expose();
                let replaced = content.and_then(|secret| match unchanged(&secret) {
                    true => Ok(false),
                    false => slot
                        .replace(secret)
                        .map(|()| true)
                        .map_err(|message| format!("the file {} {message}", path.display())),
                });
                match replaced {
                    Ok(replaced) => {
                        troubles.remove(path);
                        if replaced {
                            observer.observe(&Observation::SecretReplaced { name: slot.name() });
                        }
                    }
                    Err(trouble) => {
                        if troubles.insert(path.clone(), trouble.clone()).as_ref() != Some(&trouble) {
                            observer.observe(&Observation::SecretKept { name: slot.name(), cause: &trouble });
                        }
                    }
                }
            }
        }
    }
}

fn lock(files: &Mutex<Vec<SecretFile>>) -> MutexGuard<'_, Vec<SecretFile>> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

fn from_environment(variable: &str) -> Result<Secret, String> {
    match std::env::var(variable) {
        Ok(text) => Secret::new(text).map_err(|_| format!("the environment variable {variable} is empty")),
        Err(std::env::VarError::NotPresent) => {
            Err(format!("the environment variable {variable} is not set; set it, or use {{ file = \"…\" }}"))
        }
        Err(std::env::VarError::NotUnicode(_)) => Err(format!("the environment variable {variable} is not UTF-8")),
    }
}

/// Editors and `echo` end a file with a newline that nobody means as part of the secret.
fn from_file(path: &PathBuf) -> Result<Secret, String> {
    let mut content = match std::fs::read(path) {
        Ok(content) => Zeroizing::new(content),
        Err(error) => return Err(format!("the file {} cannot be read: {error}", path.display())),
    };
    if content.last() == Some(&b'\n') {
        content.pop();
    }
    if content.last() == Some(&b'\r') {
        content.pop();
    }
    Secret::new(std::mem::take(&mut *content)).map_err(|_| format!("the file {} is empty", path.display()))
}
