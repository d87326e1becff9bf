//! How connections are shared out to the runtimes of a server.

use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, sync::Arc, thread, time::Duration};

use axum::{body::Body, response::Response};
use hookgate_core::observe::Observer;
use hookgate_http::{Limits, Server, ServerConfig};
use hookgate_testkit::{
    http::{Connection, request},
    process::wait_until,
    recorder::Recorder,
};
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(10);

/// A runtime on a thread of this name, until `stop`.
fn worker(name: &str, stop: &CancellationToken) -> Handle {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (handle, stop) = (runtime.handle().clone(), stop.clone());
    let work = move || runtime.block_on(stop.cancelled());
    thread::Builder::new().name(name.to_owned()).spawn(work).expect("a thread");
    handle
}

/// Opens a connection, and says which worker answers on it.
async fn open(address: SocketAddr) -> (String, Connection) {
    let mut connection = Connection::open(address).await.expect("a connection");
    let answer = connection.request(&request("GET", "/", &[], b""), LIMIT).await.expect("an answer");
    (answer.text().to_owned(), connection)
}

#[tokio::test]
async fn a_connection_goes_where_there_are_fewest_and_stays_there() {
    let config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), ..ServerConfig::default() };
    let recorder = Arc::new(Recorder::default());
    let observer: Arc<dyn Observer> = Arc::clone(&recorder) as _;
    let stop = CancellationToken::new();
    let _stop_at_the_end = stop.clone().drop_guard();
    let first = thread::current().name().expect("a test has a name").to_owned();
    let workers = vec![Handle::current(), worker("second", &stop), worker("third", &stop)];
    let service = service_fn(async |_: Request<Incoming>| {
        let name = thread::current().name().unwrap_or_default().to_owned();
        Ok::<_, Infallible>(Response::new(Body::from(name)))
    });
    let server = Server::bind(config.listen, Limits::from(&config), observer).expect("a free port");
    let address = server.local_addr().expect("bound");
    let served = tokio::spawn(server.with_workers(workers).serve(service, stop.clone(), CancellationToken::new()));

    let mut connections: BTreeMap<String, Vec<Connection>> = BTreeMap::new();
    for _ in 0..9 {
        let (name, connection) = open(address).await;
        connections.entry(name).or_default().push(connection);
    }
    let shares: Vec<_> = connections.iter().map(|(name, share)| (name.as_str(), share.len())).collect();
    assert_eq!(shares, [(first.as_str(), 3), ("second", 3), ("third", 3)]);
    for (name, share) in &mut connections {
        for connection in share {
            let answer = connection.request(&request("GET", "/", &[], b""), LIMIT).await.expect("an answer");
            assert_eq!(answer.text(), name);
        }
    }
    connections.remove("third");
    wait_until(LIMIT, "they are gone", async || recorder.count("connection_closed") == 3).await;
    for _ in 0..3 {
        let (name, connection) = open(address).await;
        assert_eq!(name, "third");
        connections.entry(name).or_default().push(connection);
    }
    stop.cancel();
    served.await.expect("no panic");
}
