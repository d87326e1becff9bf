//! Every mode against a server that sends back what it gets, and that keeps count of it.

use super::*;

use crate::process::wait_until;

const LIMIT: Duration = Duration::from_secs(10);

/// Long enough for bytes to cross a loopback many times over, so that their absence means something.
const SILENCE: Duration = Duration::from_millis(100);

/// A server that echoes, and counts the bytes it has read over all connections.
struct Echo {
    port: u16,
    bytes_read: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Echo {
    async fn start() -> Echo {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port can be bound");
        let port = listener.local_addr().expect("a bound port is known").port();
        let bytes_read = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        let count = bytes_read.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(echo(stream, count.clone()));
            }
        });
        Echo { port, bytes_read, _tasks: tasks }
    }

    fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }
}

async fn echo(mut stream: TcpStream, count: Arc<AtomicU64>) {
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        count.fetch_add(read as u64, Ordering::Relaxed);
        if stream.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

async fn echo_and_proxy() -> (Echo, FaultProxy) {
    let echo = Echo::start().await;
    let proxy = FaultProxy::start(format!("127.0.0.1:{}", echo.port)).await;
    (echo, proxy)
}

async fn client(proxy: &FaultProxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.expect("the proxy accepts")
}

/// Sends `text` and reads as many bytes back.
async fn exchange(stream: &mut TcpStream, text: &str) -> io::Result<String> {
    stream.write_all(text.as_bytes()).await?;
    receive(stream, text.len()).await
}

async fn receive(stream: &mut TcpStream, bytes: usize) -> io::Result<String> {
    let mut buffer = vec![0; bytes];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut buffer)).await.expect("an answer or an end within the limit")?;
    Ok(String::from_utf8(buffer).expect("the answer is text"))
}

async fn is_silent(stream: &mut TcpStream) -> bool {
    tokio::time::timeout(SILENCE, stream.read_u8()).await.is_err()
}

/// What ended the connection; bytes that come before are passed over.
async fn end(stream: &mut TcpStream) -> io::ErrorKind {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await.expect("an end within the limit");
    read.map_or_else(|error| error.kind(), |_| io::ErrorKind::UnexpectedEof)
}

#[tokio::test]
async fn passing_is_transparent_and_so_is_a_half_closed_connection() {
    let (_echo, proxy) = echo_and_proxy().await;
    let mut stream = client(&proxy).await;
    let large = "x".repeat(100_000);
    stream.write_all(b"first").await.expect("the proxy reads");
    let (mut read, mut write) = stream.split();
    let mut answer = String::new();
    let (sent, received) = tokio::join!(
        async {
            write.write_all(large.as_bytes()).await?;
            write.shutdown().await
        },
        read.read_to_string(&mut answer),
    );
    sent.and(received).expect("both directions end in order");
    assert!(answer == format!("first{large}"));
    assert_eq!(proxy.connections_seen(), 1);
}

#[tokio::test]
async fn a_delay_is_paid_both_ways_and_once_however_many_chunks_there_are() {
    let (_echo, proxy) = echo_and_proxy().await;
    let mut stream = client(&proxy).await;
    exchange(&mut stream, "warm").await.expect("passing");
    let delay = Duration::from_millis(60);
    proxy.set_mode(ProxyMode::Delay(delay)).await;

    let started = Instant::now();
    let (mut read, mut write) = stream.split();
    let mut answer = vec![0; 20 * 8];
    let send = async {
        for _ in 0..20 {
            write.write_all(b"a chunk.").await?;
            tokio::task::yield_now().await;
        }
        io::Result::Ok(())
    };
    tokio::try_join!(send, read.read_exact(&mut answer)).expect("delayed, not lost");
    let took = started.elapsed();
    assert!(took >= 2 * delay, "both ways took only {took:?}");
    assert!(took < 20 * delay, "the delay was paid again and again: {took:?}");
}

#[tokio::test]
async fn a_black_hole_freezes_live_and_new_connections_and_loses_nothing() {
    let (echo, proxy) = echo_and_proxy().await;
    let mut old = client(&proxy).await;
    exchange(&mut old, "before").await.expect("passing");

    proxy.set_mode(ProxyMode::BlackHole).await;
    let mut new = client(&proxy).await;
    old.write_all(b"held").await.expect("a black hole accepts bytes");
    new.write_all(b"back").await.expect("a black hole accepts bytes");
    assert!(is_silent(&mut old).await && is_silent(&mut new).await);
    assert_eq!(echo.bytes_read(), 6);

    proxy.set_mode(ProxyMode::Pass).await;
    assert_eq!(receive(&mut old, 4).await.expect("passing again"), "held");
    assert_eq!(receive(&mut new, 4).await.expect("passing again"), "back");
}

#[tokio::test]
async fn a_black_hole_accepts_even_without_an_upstream() {
    let proxy = FaultProxy::start(format!("127.0.0.1:{}", free_port())).await;
    proxy.set_mode(ProxyMode::BlackHole).await;
    assert!(is_silent(&mut client(&proxy).await).await);
    proxy.set_mode(ProxyMode::Pass).await;
    assert_eq!(end(&mut client(&proxy).await).await, io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn refusing_cuts_live_connections_and_refuses_new_ones_until_told_otherwise() {
    let (_echo, proxy) = echo_and_proxy().await;
    let mut old = client(&proxy).await;
    exchange(&mut old, "before").await.expect("passing");

    proxy.set_mode(ProxyMode::Refuse).await;
    assert_eq!(end(&mut old).await, io::ErrorKind::ConnectionReset);
    let refusal = TcpStream::connect(proxy.address()).await.expect_err("nothing listens");
    assert_eq!(refusal.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!((proxy.connections_seen(), proxy.connections_live()), (1, 0));

    proxy.set_mode(ProxyMode::Pass).await;
    assert_eq!(exchange(&mut client(&proxy).await, "after").await.expect("passing again"), "after");
}

#[tokio::test]
async fn swallowed_replies_are_lost_for_good_though_the_requests_arrive() {
    let (echo, proxy) = echo_and_proxy().await;
    let mut stream = client(&proxy).await;
    exchange(&mut stream, "before").await.expect("passing");
    proxy.set_mode(ProxyMode::SwallowReplies).await;
    stream.write_all(b"lost").await.expect("requests go through");
    wait_until(LIMIT, "the request has arrived", async || echo.bytes_read() == 10).await;
    assert!(is_silent(&mut stream).await);
    proxy.set_mode(ProxyMode::Pass).await;
    assert_eq!(exchange(&mut stream, "after").await.expect("passing again"), "after");
}

#[tokio::test]
async fn a_cut_resets_every_live_connection_and_no_later_one() {
    let (_echo, proxy) = echo_and_proxy().await;
    let (mut one, mut two) = (client(&proxy).await, client(&proxy).await);
    exchange(&mut one, "one").await.expect("passing");
    exchange(&mut two, "two").await.expect("passing");
    assert_eq!(proxy.connections_live(), 2);

    proxy.cut().await;
    assert_eq!(proxy.connections_live(), 0);
    assert_eq!(end(&mut one).await, io::ErrorKind::ConnectionReset);
    assert_eq!(end(&mut two).await, io::ErrorKind::ConnectionReset);
    assert_eq!(exchange(&mut client(&proxy).await, "three").await.expect("passing still"), "three");
    assert_eq!(proxy.connections_seen(), 3);
}

#[tokio::test]
async fn cutting_after_some_bytes_delivers_exactly_those() {
    let (echo, proxy) = echo_and_proxy().await;
    let mut old = client(&proxy).await;
    exchange(&mut old, "earlier bytes do not count").await.expect("passing");
    let earlier = echo.bytes_read();

    proxy.set_mode(ProxyMode::CutAfter(10)).await;
    let mut new = client(&proxy).await;
    for (stream, arrived) in [(&mut old, 10), (&mut new, 20)] {
        assert_eq!(exchange(stream, "123456").await.expect("within the ten"), "123456");
        stream.write_all(b"789abcdef").await.expect("the proxy reads");
        assert_eq!(end(stream).await, io::ErrorKind::ConnectionReset);
        wait_until(LIMIT, "the ten bytes have arrived", async || echo.bytes_read() >= earlier + arrived).await;
        assert_eq!(echo.bytes_read(), earlier + arrived);
    }
}

#[tokio::test]
async fn a_lossy_network_cuts_every_connection_sooner_or_later() {
    let (echo, proxy) = echo_and_proxy().await;
    proxy.set_mode(ProxyMode::Lossy { seed: 7, mean_bytes: 1000 }).await;
    for _ in 0..20 {
        let mut stream = client(&proxy).await;
        // Twice the mean is the most that any connection carries, echoes included.
        let _ = stream.write_all(&[b'x'; 2001]).await;
        end(&mut stream).await;
    }
    assert_eq!(proxy.connections_seen(), 20);
    assert!((20..20 * 2000).contains(&echo.bytes_read()), "{} bytes arrived", echo.bytes_read());
}

#[test]
fn a_seed_draws_the_same_numbers_again_around_the_mean() {
    let draws = |seed| -> Vec<u64> { (0..1000).map(|number| draw(seed, number, 5000)).collect() };
    assert_eq!(draws(1), draws(1));
    assert_ne!(draws(1), draws(2));
    let mean = draws(1).iter().sum::<u64>() / 1000;
    assert!((4700..5300).contains(&mean), "mean of a thousand: {mean}");
    assert!(draws(1).iter().all(|bytes| (1..=10_000).contains(bytes)));
}

#[tokio::test]
async fn dropping_the_proxy_cuts_its_connections() {
    let (_echo, proxy) = echo_and_proxy().await;
    let mut stream = client(&proxy).await;
    exchange(&mut stream, "before").await.expect("passing");
    drop(proxy);
    assert_eq!(end(&mut stream).await, io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn rewriting_replaces_what_the_client_sends_and_nothing_else() {
    let echo = Echo::start().await;
    let proxy = FaultProxy::start(format!("127.0.0.1:{}", echo.port)).await;
    proxy.set_mode(ProxyMode::Rewrite { from: b"ab", to: b"xy" }).await;
    let mut client = TcpStream::connect(proxy.address()).await.expect("the proxy accepts");
    client.write_all(b"abcab a b").await.expect("it reads");
    let mut echoed = [0; 9];
    client.read_exact(&mut echoed).await.expect("it echoes");
    assert_eq!(&echoed, b"xycxy a b");
}
