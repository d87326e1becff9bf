//! Puts the parts together as the config says, and collects what cannot be put together.

use std::sync::Arc;

use anyhow::Context;
use hookgate_core::{
    config::Problem,
    dedup::{ClaimStore, Dedup, Memory, OnOutage, Settler, Shared},
    event::{SinkId, SourceId},
    observe::Observer,
    publisher::Publisher,
    route::{Ack, Names, Router, SinkDeclaration},
    source::{Source, Surroundings},
    trace::Spans,
    worker::Each,
};
use hookgate_http::{Fetcher, ProxyProtocol, Tls};
use hookgate_redis as redis;

use crate::{
    config::{Config, DedupConfig, Problems},
    secrets::Secrets,
    sinks::SinkConfig,
    telemetry::TracesConfig,
    workers::Workers,
};

/// The config as parts that are ready to be connected.
pub(crate) struct Parts {
    pub(crate) sources: Vec<Arc<Source>>,
    pub(crate) router: Router,
    /// The certificates of the public port, if it has any.
    pub(crate) tls: Option<Tls>,
    pub(crate) proxy_protocol: ProxyProtocol,
    pub(crate) fetcher: Fetcher,
}

/// The names of all sources and sinks with their places. A name keeps its place for the life of the process, also when a
/// later config does not have it, so that what is counted and kept by place goes on.
#[derive(Clone, Default)]
pub(crate) struct Ids {
    sources: Vec<SourceId>,
    sinks: Vec<SinkId>,
}

impl Ids {
    /// Those of `config` alone.
    pub(crate) fn of(config: &Config) -> Self {
        let mut ids = Self::default();
        ids.extend(config);
        ids
    }

    /// Gives a place to every name of `config` that has none.
    pub(crate) fn extend(&mut self, config: &Config) {
        for name in config.sources.keys() {
            if !self.sources.iter().any(|known| known.name() == name) {
                self.sources.push(SourceId::new(self.sources.len(), name.as_str()));
            }
        }
        for name in config.sinks.keys() {
            if !self.sinks.iter().any(|known| known.name() == name) {
                self.sinks.push(SinkId::new(self.sinks.len(), name.as_str()));
            }
        }
    }

    /// Every source by its place.
    pub(crate) fn sources(&self) -> &[SourceId] {
        &self.sources
    }

    /// Every sink by its place.
    pub(crate) fn sinks(&self) -> &[SinkId] {
        &self.sinks
    }

    fn source(&self, name: &str) -> SourceId {
        self.sources.iter().find(|known| known.name() == name).expect("every name has a place").clone()
    }

    /// The sink called `name`, which is one of the config's.
    pub(crate) fn sink(&self, name: &str) -> SinkId {
        self.sinks.iter().find(|known| known.name() == name).expect("every name has a place").clone()
    }
}

/// The names of all sinks, in their order.
pub(crate) fn sink_ids(config: &Config) -> Vec<SinkId> {
    Ids::of(config).sinks
}

/// Checks what the config says as a whole, and resolves the secrets of its sources. Connects to nothing.
pub(crate) fn prepare(config: &Config, ids: &Ids, secrets: &Secrets) -> Result<Parts, Problems> {
    let mut problems = Vec::new();
    let mut sources: Vec<Arc<Source>> = Vec::new();
    let mut keep =
        |found: Vec<Problem>, table: &str| problems.extend(found.into_iter().map(|problem| problem.within(table)));
    let tls = config.server.tls.as_ref().map(Tls::load).transpose().map_err(|found| keep(found, "server"));
    let proxy_protocol = config.server.proxy_protocol().map_err(|found| keep(found, "server"));
    let fetcher = Fetcher::new(&config.outbound).map_err(|found| keep(found, "outbound"));
    let auth = config.server.auth().map_err(|found| keep(found, "server"));
    if let Some(redis) = &config.dedup.redis {
        keep(redis.check(), "dedup.redis");
    }
    let surroundings = Surroundings {
        max_body: config.server.max_body,
        on_outage: config.dedup.redis.as_ref().map_or(OnOutage::default(), |redis| redis.on_outage),
        auth: auth.unwrap_or_default(),
        spans: config.traces.as_ref().map_or(Spans::None, TracesConfig::spans),
    };
    if let Some(traces) = &config.traces {
        keep(traces.check(&mut |secret| secrets.resolve(secret)), "traces");
    }
    for (name, table) in &config.sources {
        let key = format!("sources.{name}");
        match Source::compile(ids.source(name), table, &surroundings, &mut |secret| secrets.resolve(secret)) {
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
    let declared = config.sinks.iter().map(|(name, sink)| SinkDeclaration {
        id: ids.sink(name),
        addressing: sink.addressing(),
        allow: sink.allow().to_vec(),
    });
    let sinks: Vec<SinkDeclaration> = declared.collect();
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
    match (router, tls, proxy_protocol, fetcher) {
        (Ok(router), Ok(tls), Ok(proxy_protocol), Ok(fetcher)) if problems.is_empty() => {
            Ok(Parts { sources, router, tls, proxy_protocol, fetcher })
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

/// Sets up the sink `id`, with its layers.
pub(crate) async fn connect_sink(
    id: &SinkId,
    table: &SinkConfig,
    secrets: &Secrets,
    workers: &Workers,
    observer: &Arc<dyn Observer>,
) -> anyhow::Result<Arc<Publisher>> {
    let connect = |observer| async {
        let sink = table.connect(id.clone(), &mut |secret| secrets.resolve(secret), observer).await;
        sink.with_context(|| format!("set up sinks.{id}"))
    };
    let sink = if workers.handles().len() == 1 || table.is_one_for_all_workers() {
        connect(Arc::clone(observer)).await?
    } else {
        let each = workers.set_up(observer, connect).await?;
        Arc::new(Each::new(each))
    };
    Ok(Arc::new(Publisher::new(id.clone(), sink, table.max_in_flight(), Arc::clone(observer))))
}

/// Sets up what remembers accepted events. The settlers, if there are any, have to run, each on its worker.
pub(crate) async fn connect_dedup(
    config: &DedupConfig,
    secrets: &Secrets,
    workers: &Workers,
    observer: &Arc<dyn Observer>,
) -> anyhow::Result<(Dedup, Vec<Settler>)> {
    let (shared, settlers) = match &config.redis {
        Some(table) => {
            let connect = |observer| async {
                let store = redis::connect(table, &mut |secret| secrets.resolve(secret), observer).await?;
                anyhow::Ok(Arc::new(store) as Arc<dyn ClaimStore>)
            };
            let stores = workers.set_up(observer, connect).await?;
            let (shared, settlers) = Shared::new(stores, config.window, Arc::clone(observer));
            (Some(shared), settlers)
        }
        None => (None, Vec::new()),
    };
    let memory = Arc::new(Memory::new(config.window, config.memory_entries));
    Ok((Dedup { memory, shared, observer: Arc::clone(observer) }, settlers))
}
