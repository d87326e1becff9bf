//! Who runs on which core.
//!
//! Affinity is inherited: a thread that is on a core starts its threads and processes there. So nobody has to be moved.

use anyhow::Context;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// One core for the server under test, another for all else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cores {
    /// The server's.
    pub(crate) server: usize,
    /// That of the generator and the brokers.
    pub(crate) others: usize,
}

impl Cores {
    /// The first two that this process may use; the same one twice where there is no second.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(crate) fn choose() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(None).context("ask which cores there are")?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let server = cores.next().context("find a core")?;
        Ok(Self { server, others: cores.next().unwrap_or(server) })
    }

    /// Does `start` on the server's core; what it starts stays there. The thread itself is on the others' core then.
    ///
    /// # Errors
    /// When a core cannot be had, and those of `start`.
    pub(crate) fn start_server<T>(self, start: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        go_to(self.server)?;
        let started = start();
        self.join_others()?;
        started
    }

    /// Puts this thread, and what it starts from now on, on the others' core.
    ///
    /// # Errors
    /// When that core cannot be had.
    pub(crate) fn join_others(self) -> anyhow::Result<()> {
        go_to(self.others)
    }
}

fn go_to(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("run on core {core}"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_started_for_the_server_stays_on_its_core() {
        let cores = Cores::choose().expect("there is a core");
        let list = |start: &dyn Fn() -> std::io::Result<std::process::Output>| {
            let output = start().expect("grep runs").stdout;
            String::from_utf8_lossy(&output).rsplit('\t').next().map(|list| list.trim().to_owned())
        };
        let ask = || Command::new("grep").args(["Cpus_allowed_list", "/proc/self/status"]).output();
        let server = cores.start_server(|| Ok(list(&ask))).expect("its core can be had");
        assert_eq!((server, list(&ask)), (Some(cores.server.to_string()), Some(cores.others.to_string())));
    }
}
