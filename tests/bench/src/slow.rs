//! Senders that drip: many connections, on each of which a request comes a byte at a time and never ends.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::load::connecting;

/// What drips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Drip {
    /// A header that does not end.
    Headers,
    /// A body of which a megabyte was announced.
    Body,
}

/// Holds connections on which a request comes a byte at a time.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Slow {
    /// Where they lead.
    #[arg(long)]
    address: SocketAddr,
    /// The path of the requests.
    #[arg(long)]
    path: String,
    /// What drips.
    #[arg(long, value_enum)]
    drip: Drip,
    /// How many.
    #[arg(long)]
    connections: usize,
    /// The address that they come from.
    #[arg(long, default_value = "127.0.0.1")]
    source: IpAddr,
    /// For how long.
    #[arg(long, value_parser = humantime::parse_duration)]
    duration: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Connections that were begun, those in the place of others included.
    pub(crate) begun: usize,
    /// Those that the server ended.
    pub(crate) ended: usize,
    /// Those that took a byte the last time.
    pub(crate) held: usize,
}

/// How often each connection gets a byte.
const DRIP_INTERVAL: Duration = Duration::from_secs(1);

/// Connections that are begun in one go, so that the generator's other threads get a turn.
const BEGUN_AT_ONCE: usize = 200;

/// Connections of one process at most: it may not have many more files open, and its address not many more ports.
const CONNECTIONS_OF_ONE_MAX: usize = 5000;

impl Slow {
    /// Drips, and says what came of it in a line that [`Held`] can be read from.
    ///
    /// # Errors
    /// When sockets cannot be made, for want of file descriptors above all.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        raise_file_limit(self.connections + 100)?;
        let Held { begun, ended, held } = drip(self).context("hold slow connections")?;
        println!("{begun} {ended} {held}");
        Ok(())
    }
}

/// Keeps `connections` dripping until `end`, by as many processes as that takes, each with an address of its own.
///
/// # Errors
/// When one of them does not start, or fails.
pub(crate) fn drip_together(
    own: &Path,
    address: SocketAddr,
    path: &str,
    drip: Drip,
    connections: usize,
    end: Instant,
) -> anyhow::Result<Held> {
    let duration = end.saturating_duration_since(Instant::now());
    let start = |(process, connections): (usize, usize)| -> anyhow::Result<Child> {
        let source = Ipv4Addr::new(127, 0, 1, u8::try_from(process + 1).context("number the processes")?);
        let drip = drip.to_possible_value().expect("no variant is hidden");
        let mut command = Command::new(own);
        command.args(["slow", "--path", path, "--drip", drip.get_name(), "--source", &source.to_string()]);
        command.args(["--address", &address.to_string(), "--connections", &connections.to_string()]);
        command.args(["--duration", &format!("{}ms", duration.as_millis())]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.spawn().context("start a slow sender")
    };
    let senders = shares(connections).into_iter().enumerate().map(start).collect::<anyhow::Result<Vec<Child>>>()?;
    let mut all = Held::default();
    for sender in senders {
        let output = sender.wait_with_output().context("wait for a slow sender")?;
        ensure!(output.status.success(), "a slow sender failed: {}", output.status);
        let Held { begun, ended, held } = String::from_utf8_lossy(&output.stdout).trim().parse()?;
        (all.begun, all.ended, all.held) = (all.begun + begun, all.ended + ended, all.held + held);
    }
    Ok(all)
}

/// How many connections each process has.
fn shares(connections: usize) -> Vec<usize> {
    let processes = connections.div_ceil(CONNECTIONS_OF_ONE_MAX);
    (0..processes).map(|process| connections / processes + usize::from(process < connections % processes)).collect()
}

impl FromStr for Held {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let numbers: Vec<usize> = line.split(' ').map_while(|number| number.parse().ok()).collect();
        let [begun, ended, held] = numbers[..] else { anyhow::bail!("{line:?} does not say what was held") };
        Ok(Self { begun, ended, held })
    }
}

/// Keeps connections dripping; one that the server ends is replaced.
fn drip(plan: &Slow) -> io::Result<Held> {
    let Slow { address, path, connections, source, duration, .. } = plan;
    let (host, end) = (address.to_string(), Instant::now() + *duration);
    let start = match plan.drip {
        Drip::Headers => format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nX-Slow: "),
        Drip::Body => format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000\r\nContent-Type: application/json\r\n\
             X-Hub-Signature-256: sha256={}\r\n\r\n{{",
            "0".repeat(64)
        ),
    };
    let mut senders: Vec<Sender> = Vec::new();
    let mut count = Held::default();
    while Instant::now() < end {
        let next = Instant::now() + DRIP_INTERVAL;
        let before = senders.len();
        senders.retain_mut(|sender| sender.drip(start.as_bytes()));
        count.ended += before - senders.len();
        count.held = senders.iter().filter(|sender| sender.sent > 0).count();
        while senders.len() < *connections && Instant::now() < end.min(next) {
            for _ in 0..BEGUN_AT_ONCE.min(*connections - senders.len()) {
                senders.push(Sender { stream: connecting(Some(*source), *address)?, sent: 0 });
                count.begun += 1;
            }
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(next.min(end).saturating_duration_since(Instant::now()));
    }
    Ok(count)
}

/// Lets this process, and what it starts, have so many files open.
///
/// # Errors
/// When the system does not allow as many.
pub(crate) fn raise_file_limit(files: usize) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let files = files as u64;
    if limit.current.is_none_or(|current| current >= files) {
        return Ok(());
    }
    ensure!(
        limit.maximum.is_none_or(|most| most >= files),
        "{files} open files are needed, {:?} are allowed",
        limit.maximum
    );
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum.or(Some(files)), ..limit })
        .context("raise the limit of open files")
}

struct Sender {
    stream: TcpStream,
    sent: usize,
}

impl Sender {
    /// Sends the start of a request, or one byte more; false if the server has ended the connection, or answered.
    fn drip(&mut self, start: &[u8]) -> bool {
        let bytes = start.get(self.sent..).filter(|rest| !rest.is_empty()).unwrap_or(b"1");
        let blocked = |error: io::Error| error.kind() == ErrorKind::WouldBlock;
        let is_open = match self.stream.write(bytes) {
            Ok(bytes) => {
                self.sent += bytes;
                true
            }
            Err(error) => blocked(error),
        };
        // Nothing is to come: an answer is an end as well.
        is_open && self.stream.read(&mut [0]).is_err_and(blocked)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_connection_that_is_ended_is_counted_and_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("a bound port is known");
        // The first three are ended, the others are kept.
        thread::spawn(move || {
            let ended: Vec<_> = (0..3).map(|_| listener.accept().expect("a client comes")).collect();
            drop(ended);
            let _kept: Vec<_> = listener.incoming().collect();
        });
        let plan = Slow {
            address,
            path: "/".to_owned(),
            drip: Drip::Headers,
            connections: 5,
            source: IpAddr::from([127, 0, 1, 1]),
            duration: Duration::from_millis(2500),
        };
        let held = drip(&plan).expect("sockets can be made");
        assert_eq!(held, Held { begun: 8, ended: 3, held: 5 });
    }

    #[test]
    fn no_process_has_too_many_connections_and_together_they_have_all() {
        for (connections, expected) in
            [(1, vec![1]), (5000, vec![5000]), (5001, vec![2501, 2500]), (20_000, vec![5000; 4])]
        {
            assert_eq!(shares(connections), expected);
        }
    }

    #[test]
    fn what_a_process_says_of_its_connections_is_understood() {
        assert_eq!("8 3 5".parse::<Held>().expect("it is"), Held { begun: 8, ended: 3, held: 5 });
        assert!("".parse::<Held>().is_err() && "8 3".parse::<Held>().is_err());
    }
}
