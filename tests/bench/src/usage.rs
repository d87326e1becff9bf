//! What a process has used, as the kernel tells.

use std::fs;

use anyhow::Context;

/// What a process has used so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Usage {
    /// CPU time of all its threads, in user and kernel mode, in seconds. In steps of 10 ms.
    pub(crate) cpu_seconds: f64,
    /// Memory that is resident now, in MiB.
    pub(crate) resident_mib: f64,
    /// The most that was, in MiB.
    pub(crate) peak_mib: f64,
}

/// What `events` that took `cpu_seconds` take for 100,000 of them.
pub(crate) fn per_100_000(cpu_seconds: f64, events: u64) -> f64 {
    cpu_seconds * 100_000.0 / events as f64
}

impl Usage {
    /// Looks at a process.
    ///
    /// # Errors
    /// When there is none of that id.
    pub(crate) fn of(process: u32) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{process}/{name}");
            fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        parse(&read("stat")?, &read("status")?).with_context(|| format!("understand /proc/{process}"))
    }
}

/// Source: proc(5). `utime` and `stime` are fields 14 and 15; the name before them may hold blanks and brackets.
fn parse(stat: &str, status: &str) -> Option<Usage> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let mib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? as f64 / 1024.0)
    };
    Some(Usage {
        cpu_seconds: (ticks(14)? + ticks(15)?) as f64 / rustix::param::clock_ticks_per_second() as f64,
        resident_mib: mib("VmRSS:")?,
        peak_mib: mib("VmHWM:")?,
    })
}

/// What a core has done since the machine started, in ticks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CoreUse {
    all: u64,
    idle: u64,
}

impl CoreUse {
    /// Looks at a core.
    ///
    /// # Errors
    /// When there is none of that number.
    pub(crate) fn of(core: usize) -> anyhow::Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        Self::parse(&stat, core).with_context(|| format!("find core {core} in /proc/stat"))
    }

    /// Source: proc(5). The fields are user, nice, system, idle, iowait and further ones; the last two are parts of the first two.
    fn parse(stat: &str, core: usize) -> Option<Self> {
        let fields = stat.lines().find_map(|line| line.strip_prefix(&format!("cpu{core} ")))?;
        let ticks: Vec<u64> = fields.split(' ').map_while(|ticks| ticks.parse().ok()).collect();
        Some(Self { all: ticks.iter().take(8).sum(), idle: ticks.get(3)? + ticks.get(4)? })
    }

    /// How busy it was since `before`, in percent.
    pub(crate) fn busy_since(self, before: Self) -> f64 {
        let all = (self.all - before.all).max(1) as f64;
        (all - (self.idle - before.idle) as f64) * 100.0 / all
    }
}

#[cfg(test)]
mod tests {
    use std::{hint::black_box, time::Instant};

    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 100 1000 200";
        let usage = parse(stat, "Name:\ta\nVmHWM:\t    4096 kB\nVmRSS:\t    2048 kB\n").expect("understood");
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(usage, Usage { cpu_seconds: 300.0 / ticks, resident_mib: 2.0, peak_mib: 4.0 });
    }

    #[test]
    fn a_core_is_busy_when_it_neither_idles_nor_waits() {
        let use_of = |stat: &str| CoreUse::parse(stat, 1).expect("it is there");
        let before = use_of("cpu  9 9 9 9 9 9 9 9 9 9\ncpu1 100 0 100 500 100 0 0 0 0 0\ncpu10 1 1 1 1 1 1 1 1 1 1\n");
        let after = use_of("cpu1 150 10 115 515 110 0 0 0 50 10\n");
        assert!((after.busy_since(before) - 75.0).abs() < 1e-9, "{}", after.busy_since(before));
    }

    #[test]
    fn work_shows_in_the_cpu_time_of_this_process() {
        let before = Usage::of(std::process::id()).expect("this process runs");
        let begun = Instant::now();
        while begun.elapsed().as_millis() < 200 {
            black_box(begun);
        }
        let after = Usage::of(std::process::id()).expect("this process runs");
        assert!(after.cpu_seconds > before.cpu_seconds, "{before:?}, {after:?}");
        assert!(after.peak_mib >= after.resident_mib);
    }
}
