//! Several workers: each with connections of its own, and to those who look at it one process with one sink.

use futures_util::future::join_all;
use hookgate_testkit::{
    http::Connection,
    nats::{NatsConfig, NatsServer},
    process::wait_until,
    proxy::FaultProxy,
    redis::{RedisConfig, RedisServer},
};

use crate::relay::{LIMIT, OPENCLAW, Relay, committed, create_stream, finished, post, shared_in, to_nats};

const THREADS: [(&str, &str); 1] = [("HOOKGATE_SERVER__THREADS", "3")];

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_stored_once_whichever_worker_gets_it_and_its_repeats() {
    let redis = RedisServer::start(&RedisConfig::default()).await;
    let nats = NatsServer::start(NatsConfig::default()).await;
    create_stream(&nats).await;
    let to_redis = FaultProxy::start(redis.address()).await;
    let to_broker = FaultProxy::start(format!("127.0.0.1:{}", nats.port())).await;
    let shared = shared_in(&format!("redis://{}", to_redis.address()));
    let broker = to_nats(&format!("nats://{}", to_broker.address()));
    let mut relay = Relay::start_with(&format!("{OPENCLAW}{shared}{broker}"), &THREADS).await;
    relay.wait_until_ready().await;
    assert!(relay.dedup_is_up().await);
    assert_eq!((to_redis.connections_live(), to_broker.connections_live()), (3, 3));

    let senders = join_all((0..12).map(|_| Connection::open(relay.address()))).await;
    let sending = senders.into_iter().map(|sender| {
        tokio::spawn(async move {
            let mut sender = sender.expect("a connection");
            let mut delivered = 0;
            for number in 0..50 {
                let answer = sender.request(&post(finished(number)), LIMIT).await.expect("an answer");
                assert_eq!(answer.status, 200, "{}", answer.text());
                delivered += usize::from(answer.json()["outcome"] == "delivered");
            }
            delivered
        })
    });
    let delivered = join_all(sending.collect::<Vec<_>>()).await.into_iter().map(|sender| sender.expect("no panic"));
    assert_eq!(delivered.sum::<usize>(), 50);
    relay.terminate();
    assert!(relay.wait().await.success(), "{}", relay.log());
    assert_eq!(nats.wire().await.read_stream("HOOKS").await.len(), 50);
    assert_eq!(committed(&mut redis.wire().await).await, 50, "Redis was told of all of them before the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_told_once_and_ends_with_the_last_connection() {
    let mut redis = RedisServer::start(&RedisConfig::default()).await;
    let mut nats = NatsServer::start(NatsConfig::default()).await;
    create_stream(&nats).await;
    let tables = format!("{OPENCLAW}{}{}", shared_in(&redis.url()), to_nats(&nats.url()));
    let relay = Relay::start_with(&tables, &THREADS).await;
    relay.wait_until_ready().await;
    let told = |what: &str| relay.log().matches(what).count();
    let parts_are_up = async || {
        let (status, ready) = relay.ready().await;
        (status, ready["sinks"][0]["up"] == true, ready["dedup"]["up"] == true)
    };
    assert_eq!(parts_are_up().await, (200, true, true));
    assert_eq!((told("sink is up"), told("dedup store is up")), (1, 1));
    redis.kill();
    nats.kill();
    wait_until(LIMIT, "they are missed", async || parts_are_up().await == (200, false, false)).await;
    redis.restart().await;
    nats.restart().await;
    wait_until(LIMIT, "they are back", async || parts_are_up().await == (200, true, true)).await;
    // One reason follows another: the connection is lost, and the next is refused. Told by each of three it would be six.
    let downs = (told("sink is down"), told("dedup store is down"));
    assert!((1..=4).contains(&downs.0) && (1..=4).contains(&downs.1), "{}", relay.log());
    assert_eq!((told("sink is up"), told("dedup store is up")), (2, 2));
    assert_eq!(relay.post(finished(1)).await.json()["outcome"], "delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_the_broker_has_no_room_for_publishes_over_anothers_connection() {
    let extra = "max_connections: 2".to_owned();
    let nats = NatsServer::start(NatsConfig { extra, ..NatsConfig::default() }).await;
    create_stream(&nats).await;
    let tables = format!("{OPENCLAW}{}", to_nats(&nats.url()));
    let relay = Relay::start_with(&tables, &THREADS).await;
    let connected = async || relay.log().contains("maximum connections exceeded");
    wait_until(LIMIT, "one is shut out", connected).await;
    // Kept, so that each worker has some.
    let mut senders = Vec::new();
    for number in 0..12 {
        let mut sender = Connection::open(relay.address()).await.expect("a connection");
        let answer = sender.request(&post(finished(number)), LIMIT).await.expect("an answer");
        assert_eq!(answer.json()["outcome"], "delivered", "{}", answer.text());
        senders.push(sender);
    }
    drop((senders, relay));
    wait_until(LIMIT, "all are stored", async || nats.wire().await.read_stream("HOOKS").await.len() == 12).await;
}
