//! Documents that verification needs and that stand at https URLs: key sets and certificates.
//!
//! Verification itself does no I/O: what it lacks is [`Wanted`], fetched through the port [`Fetch`], and then the request is
//! judged. How often an unknown document is asked for is bounded, since strangers can name one.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::time::Instant;

/// Gets documents over https. The program's side of [`Wanted`]; redirects are not followed.
pub trait Fetch: Send + Sync + 'static {
    /// The body of a 200 answer to `GET url`.
    ///
    /// # Errors
    /// A sentence for the operator: no connection, another status, more than `bytes_max`, no answer in time.
    fn get(&self, url: String, bytes_max: usize) -> BoxFuture<'static, Result<Bytes, String>>;
}

/// For those who must not reach out, such as a dry run.
#[derive(Debug)]
pub struct Offline;

impl Fetch for Offline {
    fn get(&self, _: String, _: usize) -> BoxFuture<'static, Result<Bytes, String>> {
        std::future::ready(Err("nothing is fetched here".to_owned())).boxed()
    }
}

/// Longest document that is taken. Key sets and certificates have a few thousand bytes.
const DOCUMENT_BYTES_MAX: usize = 256 * 1024;

/// Pause before the same document is asked for again, whatever the answer was.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// Most documents that one source keeps, for the schemes in which the sender names them.
const DOCUMENTS_MAX: usize = 32;

/// Documents that nobody has named before are asked for at this pace,
const NEW_DOCUMENT_AFTER: Duration = Duration::from_millis(500);

/// and so many at once, after a time without any: a stranger's request just before the provider's must not keep it out.
const NEW_DOCUMENTS_AT_ONCE: u32 = 20;

type Outcome = Result<(), String>;

/// One document at one URL.
pub(super) struct Remote<T> {
    url: Arc<str>,
    parse: fn(&[u8]) -> Result<T, String>,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: Option<Arc<T>>,
    tried_at: Option<Instant>,
    /// Whether the last try ended without a document.
    failed: bool,
    fetching: Option<Shared<BoxFuture<'static, Outcome>>>,
}

impl<T> fmt::Debug for Remote<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("url", &self.url).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Remote<T> {
    pub(super) fn new(url: &str, parse: fn(&[u8]) -> Result<T, String>) -> Self {
        Self {
            url: url.into(),
            parse,
            state: Mutex::new(State { value: None, tried_at: None, failed: false, fetching: None }),
        }
    }

    /// What was fetched last.
    pub(super) fn current(&self) -> Option<Arc<T>> {
        self.lock().value.clone()
    }

    /// Whether the last try to fetch it failed, so that what is there may be out of date.
    pub(super) fn has_failed(&self) -> bool {
        self.lock().failed
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_be_fetched(&self) -> bool {
        let state = self.lock();
        state.fetching.is_some() || state.tried_at.is_none_or(|tried_at| tried_at.elapsed() >= RETRY_AFTER)
    }
}

/// What several requests wait for together.
trait Document: Send + Sync {
    fn url(&self) -> &Arc<str>;

    /// The fetch that is under way, or a new one, and whether it is new.
    fn fetch(self: Arc<Self>, fetch: &dyn Fetch) -> (Shared<BoxFuture<'static, Outcome>>, bool);
}

impl<T: Send + Sync + 'static> Document for Remote<T> {
    fn url(&self) -> &Arc<str> {
        &self.url
    }

    fn fetch(self: Arc<Self>, fetch: &dyn Fetch) -> (Shared<BoxFuture<'static, Outcome>>, bool) {
        let mut state = self.lock();
        if let Some(fetching) = &state.fetching {
            return (fetching.clone(), false);
        }
        // It does not own what owns it, or one that everybody gave up waiting for would live for ever.
        let (this, answer) = (Arc::downgrade(&self), fetch.get(self.url.to_string(), DOCUMENT_BYTES_MAX));
        let fetching = async move {
            let answered = answer.await;
            let this = this.upgrade().ok_or("nobody waits for it any more")?;
            let parsed = answered.and_then(|document| (this.parse)(&document));
            let mut state = this.lock();
            state.fetching = None;
            state.failed = parsed.is_err();
            // What was good stays in use when the issuer is out of reach.
            parsed.map(|value| state.value = Some(Arc::new(value)))
        };
        let fetching = fetching.boxed().shared();
        state.tried_at = Some(Instant::now());
        state.fetching = Some(fetching.clone());
        (fetching, true)
    }
}

/// A document that has to be fetched before a request can be judged.
pub struct Wanted(Arc<dyn Document>);

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wanted({})", self.0.url())
    }
}

impl Wanted {
    /// `remote`, unless it was asked for a moment ago.
    pub(super) fn document<T: Send + Sync + 'static>(remote: &Arc<Remote<T>>) -> Option<Self> {
        remote.may_be_fetched().then(|| Self(Arc::clone(remote) as _))
    }

    /// `remote`, however lately it was asked for.
    pub(super) fn refresh<T: Send + Sync + 'static>(remote: &Arc<Remote<T>>) -> Self {
        Self(Arc::clone(remote) as _)
    }

    /// Where it stands.
    pub fn url(&self) -> &str {
        self.0.url()
    }

    /// Fetches it. Those who want it at the same time share one fetch; `None` tells all but the one who began it that it has
    /// ended, so that it is reported once.
    ///
    /// # Errors
    /// Why not, for the operator.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the fetch to the others that wait for it, or to the next one who does.
    pub async fn fetch(self, fetch: &dyn Fetch) -> Option<Result<(), String>> {
        let (fetching, is_new) = Arc::clone(&self.0).fetch(fetch);
        let outcome = fetching.await;
        is_new.then_some(outcome)
    }
}

/// Documents whose URLs senders name. Those that the config gives stay, and so do those that verified a message lately; a
/// stranger's inventions are the first to go.
pub(super) struct Shelf<T> {
    parse: fn(&[u8]) -> Result<T, String>,
    documents: Mutex<Documents<T>>,
}

struct Documents<T> {
    by_url: BTreeMap<String, Shelved<T>>,
    /// When the pace allows the next new one, were there none at once.
    next_new: Option<Instant>,
}

struct Shelved<T> {
    remote: Arc<Remote<T>>,
    use_of: Use,
}

/// How useful a document has been. The least is the first to go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// It was only named.
    Named(Instant),
    /// It verified a message at this time.
    Verified(Instant),
    /// The config gives it.
    Configured,
}

impl<T> fmt::Debug for Shelf<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf").finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Shelf<T> {
    pub(super) fn new(parse: fn(&[u8]) -> Result<T, String>) -> Self {
        Self { parse, documents: Mutex::new(Documents { by_url: BTreeMap::new(), next_new: None }) }
    }

    /// The document at `url`, if it was fetched.
    pub(super) fn get(&self, url: &str) -> Option<Arc<T>> {
        self.lock().by_url.get(url)?.remote.current()
    }

    /// Notes that the document at `url` verified a message.
    pub(super) fn note_use(&self, url: &str) {
        if let Some(shelved) = self.lock().by_url.get_mut(url) {
            shelved.use_of = shelved.use_of.max(Use::Verified(Instant::now()));
        }
    }

    /// The document at `url`, if it has to be fetched and may be now.
    pub(super) fn wanted(&self, url: &str) -> Option<Wanted> {
        let mut documents = self.lock();
        if let Some(Shelved { remote, .. }) = documents.by_url.get(url) {
            return if remote.current().is_some() { None } else { Wanted::document(remote) };
        }
        let now = Instant::now();
        let next_new = documents.next_new.unwrap_or(now).max(now) + NEW_DOCUMENT_AFTER;
        if next_new > now + NEW_DOCUMENT_AFTER * NEW_DOCUMENTS_AT_ONCE {
            return None;
        }
        let others = documents.by_url.values().filter(|shelved| shelved.use_of != Use::Configured).count();
        if others >= DOCUMENTS_MAX {
            let victim = documents.by_url.iter().min_by_key(|(_, shelved)| shelved.use_of).map(|(url, _)| url.clone());
            documents.by_url.remove(&victim?);
        }
        documents.next_new = Some(next_new);
        let remote = Arc::new(Remote::new(url, self.parse));
        documents.by_url.insert(url.to_owned(), Shelved { remote: Arc::clone(&remote), use_of: Use::Named(now) });
        Some(Wanted(remote))
    }

    /// Puts a document in place that came by another way.
    pub(super) fn put(&self, url: &str, document: &[u8]) -> Result<(), String> {
        let value = (self.parse)(document)?;
        let remote = Remote::new(url, self.parse);
        remote.lock().value = Some(Arc::new(value));
        self.lock().by_url.insert(url.to_owned(), Shelved { remote: Arc::new(remote), use_of: Use::Configured });
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Documents<T>> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
