//! The commands: one for each operation of the port, and for each event of a commit.
//!
//! A claim is `SET key value NX GET PX lease`: it is made, or the answer says what stands in its way. `NX` with `GET` came with
//! Redis 7.0. Comparing and changing in one step takes a script; Redis keeps it, and the library sends it anew to a server that
//! has forgotten it.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hookgate_core::{
    dedup::{ClaimStore, Held, Holder, Owner, StoreError, StoreReason},
    event::{EventKey, Fingerprint},
    limits::Deadline,
    observe::Observer,
    secret::ResolveSecret,
};
use redis::{Cmd, FromRedisValue, Pipeline, Script};
use tokio::task::JoinHandle;

use crate::{
    access::Access,
    config::Config,
    entry,
    error::{ConnectError, Cure, Trouble},
    link::{self, Connection, Link, Request},
};

/// Longest wait for the first connection. A Redis that is there answers in milliseconds; one that is not does not hold up the
/// start.
const FIRST_CONNECTION_MAX: Duration = Duration::from_millis(500);

/// Room for a command, so that it is not made again for each of its arguments.
const COMMAND_ARGUMENTS: usize = 7;
const COMMAND_BYTES: usize = 128;

/// Deletes a claim that begins as ours does.
static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local held = redis.call('GET', KEYS[1])
        if held and string.sub(held, 1, #ARGV[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
        return 0",
    )
});

/// Puts our claim in place of one that is still the one that we have seen. Where it is ours already, an answer was lost.
static TAKE_OVER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local held = redis.call('GET', KEYS[1])
        if held == ARGV[1] or held == ARGV[2] then
            redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
            return 1
        end
        return 0",
    )
});

/// Claims in Redis.
pub struct RedisStore {
    link: Arc<Link>,
    prefix: Arc<str>,
    place: String,
    connecting: JoinHandle<()>,
}

/// Connects, and keeps connected until the store is dropped.
///
/// Waits for the first connection, but not longer than half a second and not until it succeeds: while Redis is down every
/// operation fails at once. Whether it is, is told to `observer`, each change once.
///
/// # Errors
/// When something that the config names cannot be used: a problem that [`Config::check`] finds, a secret that is not there, a
/// URL that is none.
pub async fn connect(
    config: &Config,
    resolve: &mut ResolveSecret<'_>,
    observer: Arc<dyn Observer>,
) -> Result<RedisStore, ConnectError> {
    let access = prepare(config, resolve)?;
    let (link, prefix) = (Link::new(config.timeout), Arc::from(config.prefix.as_str()));
    let (place, mut changes) = (access.place(), link.changes());
    let connecting = tokio::spawn(link::keep_up(Arc::clone(&link), access, Arc::clone(&prefix), observer));
    // Neither outcome matters here: it stands in the link.
    let _ = Deadline::after(FIRST_CONNECTION_MAX).bound(changes.changed()).await;
    Ok(RedisStore { link, prefix, place, connecting })
}

pub(crate) fn prepare(config: &Config, resolve: &mut ResolveSecret<'_>) -> Result<Access, ConnectError> {
    if let Some(problem) = config.check().into_iter().next() {
        return Err(ConnectError::new(problem.key, problem.message));
    }
    Access::resolve(config, resolve).map_err(|error| ConnectError::new(error.key(), error))
}

impl ClaimStore for RedisStore {
    fn claim(&self, key: EventKey, owner: Owner, lease: Duration) -> BoxFuture<'_, Result<Held, StoreError>> {
        Box::pin(async move {
            let found: Option<Vec<u8>> = self.send(claim(&self.name(key), owner, lease)).await?;
            Ok(found.map_or(Held::ByUs, |value| entry::read(&value, owner)))
        })
    }

    fn take_over<'a>(
        &'a self,
        key: EventKey,
        from: &'a Holder,
        owner: Owner,
        lease: Duration,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        let arguments = vec![from.0.to_string(), entry::claim(owner, lease), entry::millis(lease).to_string()];
        Box::pin(self.send(Request::Script(&TAKE_OVER, self.name(key), arguments)))
    }

    fn commit<'a>(
        &'a self,
        accepted: &'a [(EventKey, Fingerprint)],
        window: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let mut commands = Pipeline::with_capacity(accepted.len());
        for (key, body) in accepted {
            let mut command = Cmd::with_capacity(COMMAND_ARGUMENTS, COMMAND_BYTES);
            command.arg("SET").arg(self.name(*key)).arg(entry::accepted(*body)).arg("PX").arg(entry::millis(window));
            commands.add_command(command);
        }
        Box::pin(self.send(Request::Commands(commands)))
    }

    fn release(&self, key: EventKey, owner: Owner) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.send(Request::Script(&RELEASE, self.name(key), vec![entry::claim_of(owner)])))
    }
}

impl RedisStore {
    async fn send<T: FromRedisValue + Send>(&self, request: Request) -> Result<T, StoreError> {
        self.link.send(&request).await.map_err(|trouble| StoreError::new(trouble.reason).because(trouble))
    }

    fn name(&self, key: EventKey) -> String {
        entry::name(&self.prefix, key)
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        self.connecting.abort();
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("place", &self.place).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Makes a claim on a key of its own and releases it, as for an event.
pub(crate) async fn trial(connection: &mut Connection, prefix: &str, owner: Owner) -> Result<(), Trouble> {
    const LEASE: Duration = Duration::from_secs(1);
    let key = format!("{prefix}trial:{owner}");
    let _: Option<Vec<u8>> = claim(&key, owner, LEASE).send_by(connection).await?;
    let deleted: u64 = Request::Script(&RELEASE, key, vec![entry::claim_of(owner)]).send_by(connection).await?;
    match deleted {
        1 => Ok(()),
        _ => Err(Trouble::new(StoreReason::Other, "a claim was gone before it was released", Cure::Wait)),
    }
}

fn claim(key: &str, owner: Owner, lease: Duration) -> Request {
    let mut command = Cmd::with_capacity(COMMAND_ARGUMENTS, COMMAND_BYTES);
    let value = entry::claim(owner, lease);
    command.arg("SET").arg(key).arg(value).arg("NX").arg("GET").arg("PX").arg(entry::millis(lease));
    Request::Command(command)
}
