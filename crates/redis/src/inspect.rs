//! A look at Redis for the operator: whether it can be used, and what about it shortens the window.

use hookgate_core::{observe::Chain, secret::ResolveSecret};
use redis::{
    InfoDict, Value,
    cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo},
};

use crate::{
    config::Config,
    link::{self, Connection},
    store,
};

/// Connects, tries a claim, and changes nothing that lasts; says what is unwise about how Redis is set up.
///
/// # Errors
/// What would keep hookgate from using it.
pub async fn inspect(config: &Config, resolve: &mut ResolveSecret<'_>) -> Result<Vec<String>, String> {
    let access = store::prepare(config, resolve).map_err(|error| Chain(&error).to_string())?;
    let mut connection = link::dial(&access, &config.prefix).await.map_err(|trouble| trouble.to_string())?;
    Ok(warnings(&mut connection).await)
}

/// What is unwise about how Redis is set up. Nothing, where we are not allowed to know.
pub(crate) async fn warnings(connection: &mut Connection) -> Vec<String> {
    let mut warnings = Vec::new();
    for info in memory_of_all(connection).await {
        let policy: String = info.get("maxmemory_policy").unwrap_or_default();
        let limit: u64 = info.get("maxmemory").unwrap_or_default();
        // Without a limit nothing is evicted. All our keys have an end, so that the volatile policies mean them too.
        if limit > 0 && policy != "noeviction" && !policy.is_empty() {
            let warning = format!(
                "maxmemory-policy is {policy}: when its {limit} bytes are full, Redis forgets events before the window is \
                 over, and their repeats are published again; set it to noeviction and watch used_memory"
            );
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
    }
    warnings
}

/// `INFO memory` of the server, or of every master of the cluster.
async fn memory_of_all(connection: &mut Connection) -> Vec<InfoDict> {
    let mut command = redis::cmd("INFO");
    command.arg("memory");
    match connection {
        Connection::One(_) => command.query_async(connection).await.into_iter().collect(),
        Connection::Cluster(cluster) => {
            let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None::<ResponsePolicy>));
            match cluster.route_command(command, all).await {
                Ok(Value::Map(answers)) => {
                    answers.into_iter().filter_map(|(_, answer)| redis::from_redis_value(answer).ok()).collect()
                }
                _ => Vec::new(),
            }
        }
    }
}
