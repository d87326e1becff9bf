//! Puts the parts together as the config says, and collects what cannot be put together.

use std::sync::Arc;

use anyhow::Context;
use hookgate_core::{
    auth::Fetch,
    config::Problem,
    dedup::{Dedup, Memory, OnOutage, Releaser, Shared},
    event::{SinkId, SourceId},
    observe::Observer,
    pipeline::Pipeline,
    publisher::Publisher,
    route::{Ack, Names, Router, SinkDeclaration},
    source::{Source, Surroundings},
    spool::Spool,
};
use hookgate_http::{Fetcher, Tls};
use hookgate_redis as redis;
use tokio_util::task::TaskTracker;

use crate::{
    config::{Config, Problems},
    secrets::Secrets,
};

/// The config as parts that are ready to be connected.
pub(crate) struct Parts {
    pub(crate) sources: Vec<Arc<Source>>,
    pub(crate) router: Router,
    pub(crate) secrets: Secrets,
    /// The certificates of the public port, if it has any.
    pub(crate) tls: Option<Tls>,
    pub(crate) fetcher: Fetcher,
}

/// The names of all sources, in their order.
pub(crate) fn source_ids(config: &Config) -> Vec<SourceId> {
    config.sources.keys().enumerate().map(|(index, name)| SourceId::new(index, name.as_str())).collect()
}

/// The names of all sinks, in their order.
pub(crate) fn sink_ids(config: &Config) -> Vec<SinkId> {
    config.sinks.keys().enumerate().map(|(index, name)| SinkId::new(index, name.as_str())).collect()
}

/// Checks what the config says as a whole, and resolves its secrets. Connects to nothing.
pub(crate) fn prepare(config: &Config) -> Result<Parts, Problems> {
    let mut problems = Vec::new();
    let mut secrets = Secrets::default();
    let mut sources: Vec<Arc<Source>> = Vec::new();
    let mut keep =
        |found: Vec<Problem>, table: &str| problems.extend(found.into_iter().map(|problem| problem.within(table)));
    let tls = config.server.tls.as_ref().map(Tls::load).transpose().map_err(|found| keep(found, "server"));
    let fetcher = Fetcher::new(&config.outbound).map_err(|found| keep(found, "outbound"));
    let auth = config.server.auth().map_err(|found| keep(found, "server"));
    if let Some(redis) = &config.dedup.redis {
        keep(redis.check(), "dedup.redis");
    }
    let surroundings = Surroundings {
        max_body: config.server.max_body,
        on_outage: config.dedup.redis.as_ref().map_or(OnOutage::default(), |redis| redis.on_outage),
        auth: auth.unwrap_or_default(),
    };
    for (id, table) in source_ids(config).into_iter().zip(config.sources.values()) {
        let key = format!("sources.{id}");
        match Source::compile(id, table, &surroundings, &mut |secret| secrets.resolve(secret)) {
            Ok(source) => sources.push(Arc::new(source)),
            Err(found) => problems.extend(found.into_iter().map(|problem| problem.within(&key))),
        }
    }
    for (place, route) in config.routes.iter().enumerate() {
        if route.ack == Ack::Spool && config.spool.is_none() {
            let message = "is \"spool\", but there is no [spool] table; write one with dir = \"…\"";
            problems.push(Problem::new(format!("routes[{place}].ack"), message));
        }
    }
    problems.extend(check_sources(config, &sources));
    for (name, sink) in &config.sinks {
        problems.extend(sink.check().into_iter().map(|problem| problem.within(&format!("sinks.{name}"))));
    }
    let sinks: Vec<SinkDeclaration> = (sink_ids(config).into_iter().zip(config.sinks.values()))
        .map(|(id, sink)| SinkDeclaration { id, addressing: sink.addressing() })
        .collect();
    let source_names: Vec<String> = config.sources.keys().cloned().collect();
    let mut attributes: Vec<String> = sources.iter().flat_map(|source| source.attribute_names()).cloned().collect();
    attributes.sort();
    attributes.dedup();
    let names = Names { sinks: &sinks, sources: &source_names, attributes: &attributes };
    let router = Router::compile(&config.routes, &config.unrouted, &names).map_err(|found| {
        // With a broken source its attributes are unknown, and every rule that uses them would be blamed.
        let sources_are_known = sources.len() == config.sources.len();
        problems
            .extend(found.into_iter().filter(|problem| sources_are_known || !problem.message.contains("attribute")));
    });
    match (router, tls, fetcher) {
        (Ok(router), Ok(tls), Ok(fetcher)) if problems.is_empty() => {
            Ok(Parts { sources, router, secrets, tls, fetcher })
        }
        _ => Err(config.origins.locate(problems)),
    }
}

fn check_sources(config: &Config, sources: &[Arc<Source>]) -> Vec<Problem> {
    let mut problems = Vec::new();
    if config.sources.is_empty() {
        problems.push(Problem::new("sources", "is empty: nobody could send anything; write a [sources.NAME] table"));
    }
    if config.sinks.is_empty() {
        problems.push(Problem::new("sinks", "is empty: events would have nowhere to go; write a [sinks.NAME] table"));
    }
    for (place, (name, table)) in config.sources.iter().enumerate() {
        if let Some((earlier, _)) = config.sources.iter().take(place).find(|(_, earlier)| earlier.path == table.path) {
            let message = format!("{:?} is the path of sources.{earlier} already", table.path);
            problems.push(Problem::new(format!("sources.{name}.path"), message));
        }
    }
    for (name, _) in config.sources.iter().filter(|(_, table)| table.dedup.on_outage.is_some()) {
        if config.dedup.redis.is_none() {
            let message = "is about dedup.redis, which is not there: each process is on its own";
            problems.push(Problem::new(format!("sources.{name}.dedup.on_outage"), message));
        }
    }
    let budget = config.server.max_in_flight_bytes;
    if let Some(largest) =
        sources.iter().max_by_key(|source| source.max_body()).filter(|source| source.max_body() > budget)
    {
        let message =
            format!("{budget} cannot hold one body of sources.{}, which may have {}", largest.id(), largest.max_body());
        problems.push(Problem::new("server.max_in_flight_bytes", message));
    }
    problems
}

/// Connects the sinks and the dedup store, and puts them behind the router. The releaser, if there is one, has to run.
pub(crate) async fn connect(
    config: &Config,
    router: Router,
    secrets: &mut Secrets,
    spool: Option<Arc<dyn Spool>>,
    fetch: Arc<dyn Fetch>,
    observer: &Arc<dyn Observer>,
) -> anyhow::Result<(Pipeline, Option<Releaser>)> {
    let mut publishers = Vec::new();
    for (id, table) in sink_ids(config).into_iter().zip(config.sinks.values()) {
        let mut resolve = |secret: &_| secrets.resolve(secret);
        let sink = table.connect(id.clone(), &mut resolve, Arc::clone(observer)).await;
        let sink = sink.with_context(|| format!("set up sinks.{id}"))?;
        publishers.push(Arc::new(Publisher::new(id, sink, table.max_in_flight(), Arc::clone(observer))));
    }
    let (window, memory_entries) = (config.dedup.window, config.dedup.memory_entries);
    let (shared, releaser) = match &config.dedup.redis {
        Some(table) => {
            let store = redis::connect(table, &mut |secret| secrets.resolve(secret), Arc::clone(observer)).await?;
            let (shared, releaser) = Shared::new(Arc::new(store), window, Arc::clone(observer));
            (Some(shared), Some(releaser))
        }
        None => (None, None),
    };
    let memory = Arc::new(Memory::new(window, memory_entries));
    let pipeline = Pipeline {
        router,
        dedup: Dedup { memory, shared, observer: Arc::clone(observer) },
        publishers,
        spool,
        fetch,
        observer: Arc::clone(observer),
        reply_deadline: config.server.reply_deadline,
        tasks: TaskTracker::new(),
    };
    Ok((pipeline, releaser))
}
