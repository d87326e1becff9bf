//! Child processes under test: brokers and the relay itself, with their log, their signals and a sure end.
//!
//! The surprising thing: this is `std::process`, not `tokio::process`, because killing and reaping on drop must work
//! without a runtime and before the temporary directory of the process goes away.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

/// How often a condition is looked at again.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Lines of log shown when a test panics.
const LOG_LINES_SHOWN: usize = 40;

/// Ports given out by [`free_port`]. They lie below Linux' range for outgoing connections (32768 and up by default), so
/// that no client's own port can take the place of a server that is to come back on the same port.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A running program whose output goes to a file. It is killed and reaped on drop.
///
/// When it is dropped by a panic, the end of its log is printed: a failed test then shows what the broker had to say.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log_path: PathBuf,
}

impl Process {
    /// Starts `command` with standard output and error appended to `<dir>/<name>.log`, and with no standard input.
    ///
    /// # Panics
    /// When the program cannot be started or the log cannot be opened.
    pub fn spawn(name: &str, mut command: Command, dir: &Path) -> Process {
        let log_path = dir.join(format!("{name}.log"));
        let open_log = || -> io::Result<(File, File)> {
            let log = File::options().create(true).append(true).open(&log_path)?;
            Ok((log.try_clone()?, log))
        };
        let (out, err) = open_log().unwrap_or_else(|error| panic!("open {}: {error}", log_path.display()));
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("start {name} ({}): {error}", command.get_program().display()));
        Process { name: name.to_owned(), child, log_path }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, or `None` while it runs (a paused process runs).
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap_or_else(|error| panic!("look after {}: {error}", self.name))
    }

    /// Waits until it has ended by itself or from a signal.
    ///
    /// # Panics
    /// When it still runs after `limit`; the log is shown then.
    pub async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} has exited", self.name);
        let mut ended = None;
        wait_until(limit, &what, async || {
            ended = self.exit_status();
            ended.is_some()
        })
        .await;
        ended.expect("the wait is over only when the status is known")
    }

    /// Sends SIGKILL and reaps it. Nothing happens if it has ended already.
    pub fn kill(&mut self) -> ExitStatus {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.unwrap_or_else(|error| panic!("kill {}: {error}", self.name))
    }

    /// Sends SIGTERM, the polite request; follow it with [`wait`](Process::wait).
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGHUP, by which most servers reload their configuration.
    pub fn hang_up(&mut self) {
        self.signal(Signal::HUP);
    }

    /// Sends SIGSTOP and returns once every thread stands still. Connections stay open and nobody answers on them.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
        // Exits count too, else a process that dies meanwhile would be waited for in vain. NOWAIT leaves it to be reaped.
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::Pid(self.pid()), stopped)
            .unwrap_or_else(|error| panic!("wait until {} is paused: {error}", self.name));
    }

    /// Sends SIGCONT: a paused process goes on.
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    /// Everything it has written so far, standard output and error together.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log_path).unwrap_or_else(|error| panic!("read the log of {}: {error}", self.name));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn signal(&mut self, signal: Signal) {
        // A process that was reaped has lost its id, and somebody else may have it by now.
        if let Some(status) = self.exit_status() {
            panic!("{} has already ended ({status}); its log:\n{}", self.name, self.log());
        }
        rustix::process::kill_process(self.pid(), signal)
            .unwrap_or_else(|error| panic!("send {signal:?} to {}: {error}", self.name));
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when the process is gone, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking()
            && let Ok(log) = fs::read(&self.log_path)
        {
            eprintln!("--- end of the log of {}:\n{}", self.name, last_lines(&String::from_utf8_lossy(&log)));
        }
    }
}

/// Finds the program `name`: the path in `HOOKGATE_TEST_<NAME>` if that is set, else the first on `PATH` or in
/// `/usr/sbin`, where Debian keeps brokers and where the `PATH` of an ordinary user does not look.
///
/// # Panics
/// When there is none, with a line that says how to get it. The Debian package must be called as the program is.
pub fn program(name: &str) -> PathBuf {
    let variable = variable_of(name);
    if let Some(path) = env::var_os(&variable) {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "{variable} names {}, which is no file", path.display());
        return path;
    }
    on_path(name).unwrap_or_else(|| panic!("{name} not found: install the {name} package, or set {variable}"))
}

/// Whether [`program`] would find it.
pub fn is_installed(name: &str) -> bool {
    env::var_os(variable_of(name)).is_some() || on_path(name).is_some()
}

fn variable_of(name: &str) -> String {
    format!("HOOKGATE_TEST_{}", name.to_uppercase().replace('-', "_"))
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path: OsString = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

/// A loopback port that nothing listens on. No second call in this process returns the same one.
///
/// # Panics
/// When every port of the range is taken.
pub fn free_port() -> u16 {
    // A random start keeps test programs that run side by side apart.
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..)));
    let span = PORTS.end - PORTS.start;
    (0..span)
        .map(|_| PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % span)
        .find(|port| match TcpListener::bind(("127.0.0.1", *port)) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::AddrInUse => false,
            Err(error) => panic!("bind 127.0.0.1:{port}: {error}"),
        })
        .expect("some port between 20000 and 32000 is free")
}

/// Waits until `condition` holds, looking every 10 ms. Not for tests with a paused clock: the limit is tokio's time.
///
/// `what` completes the sentence "waited until ...".
///
/// # Panics
/// When `limit` passes first, or while `condition` is still making up its mind.
pub async fn wait_until(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let polling = async {
        while !condition().await {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    if tokio::time::timeout(limit, polling).await.is_err() {
        panic!("waited until {what}, in vain for {limit:?}");
    }
}

fn last_lines(log: &str) -> String {
    let mut lines = VecDeque::new();
    for line in log.lines() {
        if lines.len() == LOG_LINES_SHOWN {
            lines.pop_front();
        }
        lines.push_back(line);
    }
    Vec::from(lines).join("\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> (Process, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        (Process::spawn("shell", command, dir.path()), dir)
    }

    /// The state letter in `/proc/<pid>/stat`, which follows the program's name in brackets.
    fn state(id: u32) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }

    #[tokio::test]
    async fn the_log_holds_standard_output_and_error() {
        let (mut process, _dir) = shell("echo told; echo complained >&2; exit 3");
        assert_eq!(process.wait(LIMIT).await.code(), Some(3));
        assert_eq!(process.log(), "told\ncomplained\n");
    }

    #[tokio::test]
    async fn a_terminated_process_may_clean_up() {
        let (mut process, _dir) = shell("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done");
        wait_until(LIMIT, "the trap is set", async || process.log() == "ready\n").await;
        process.terminate();
        assert!(process.wait(LIMIT).await.success());
        assert_eq!(process.log(), "ready\nbye\n");
    }

    #[test]
    fn what_is_nowhere_is_not_installed() {
        assert!(is_installed("sh"));
        assert!(!is_installed("hookgate-no-such-program"));
    }

    #[test]
    fn a_killed_process_is_gone_on_return() {
        let (mut process, _dir) = shell("exec sleep 600");
        assert_eq!(process.kill().signal(), Some(9));
        assert_eq!(state(process.id()), None);
    }

    #[test]
    fn a_paused_process_stands_still_until_it_is_resumed_or_killed() {
        let (mut process, _dir) = shell("exec sleep 600");
        process.pause();
        assert_eq!(state(process.id()), Some('T'));
        assert_eq!(process.exit_status(), None);
        process.resume();
        process.pause();
        assert_eq!(process.kill().signal(), Some(9));
    }

    #[test]
    fn a_dropped_process_is_killed_and_reaped() {
        let (process, _dir) = shell("exec sleep 600");
        let id = process.id();
        drop(process);
        assert_eq!(state(id), None);
    }

    #[test]
    fn free_ports_differ() {
        let ports = [free_port(), free_port(), free_port()];
        assert!(ports[0] != ports[1] && ports[1] != ports[2] && ports[0] != ports[2]);
        assert!(ports.iter().all(|port| PORTS.contains(port)));
    }

    #[tokio::test]
    async fn waiting_in_vain_names_what_was_waited_for() {
        let waiting = tokio::spawn(wait_until(Duration::from_millis(30), "pigs fly", async || false));
        let panic = waiting.await.expect_err("pigs do not fly").into_panic();
        let message = panic.downcast_ref::<String>().expect("the panic has a message");
        assert_eq!(message, "waited until pigs fly, in vain for 30ms");
    }

    #[test]
    fn only_the_last_lines_of_a_long_log_are_shown() {
        let log: String = (1..=100).map(|line| format!("{line}\n")).collect();
        let shown = last_lines(&log);
        assert!(shown.starts_with("61\n") && shown.ends_with("\n100"), "shown: {shown}");
    }
}
