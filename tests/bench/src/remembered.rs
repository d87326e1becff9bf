//! What an event costs when a thousand ids are remembered, and when five million are: it should be the same.
//!
//! One process for all: it is filled by the generator at full speed, and stops at each mark to be measured.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::{
    SECRET,
    cores::Cores,
    event::{Events, Kind},
    load::{self, Outcome, Plan},
    report::{Files, publish},
    system::{Addresses, PATH, Server, Setup, System},
    usage::{Usage, per_100_000},
};

/// Has hookgate remember more and more ids, and looks at what events cost and at its memory.
#[derive(Debug, clap::Args)]
pub(crate) struct Remembered {
    /// Few ids: whether it works.
    #[arg(long)]
    quick: bool,
    /// How many ids are remembered when it is measured, in order.
    #[arg(long, value_delimiter = ',', default_value = "1000,100000,1000000,5000000")]
    marks: Vec<u64>,
    /// Events of each measurement: so many repeats, and then so many new ones.
    #[arg(long, default_value_t = 50_000)]
    events: u64,
    /// Connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[command(flatten)]
    files: Files,
}

/// One part in so many is left free: ids are spread over parts of the memory, of which some get more than others.
const ROOM: u64 = 10;

const BODY_BYTES: usize = 1024;

/// Longest that it takes to send the events of one step.
const STEP_LIMIT: Duration = Duration::from_secs(600);

/// What it came to at a mark.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Mark {
    remembered: u64,
    /// For 100,000 events.
    new_cpu_seconds: f64,
    new_rate: f64,
    /// For 100,000 events.
    repeats_cpu_seconds: f64,
    repeats_rate: f64,
    /// Before the events that were measured.
    resident_mib: f64,
}

impl Remembered {
    /// Measures and writes.
    ///
    /// # Errors
    /// When hookgate does not start, an event is not answered 200, or the report cannot be written.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        if self.quick {
            (self.marks, self.events) = (vec![1000, 20_000], 5000);
        }
        ensure!(self.events > 0 && self.connections > 0, "no event, no figure");
        ensure!(self.marks.first().is_some_and(|first| *first > 0), "a mark is above zero");
        ensure!(self.marks.is_sorted_by(|one, other| one < other), "marks are in order");
        let (programs, out, cores) = (self.files.programs(&[])?, self.files.out()?, Cores::choose()?);
        cores.join_others()?;
        let all = self.marks.last().copied().unwrap_or_default() + self.events;
        let server =
            System::Hookgate(Setup::Remembering(all + all / ROOM)).start(&programs, &Addresses::default(), cores)?;
        let text = format!("{}{}", self.about(cores), table(&self.measure(&server)?));
        publish(&out, "remembered.md", &text)
    }

    fn about(&self, cores: Cores) -> String {
        let Self { events, connections, .. } = self;
        format!(
            "# What remembered ids cost\n\n\
             hookgate on core {}, to standard output; the generator on core {}: {connections} connections, bodies of {BODY_BYTES} bytes, as fast as \
             answers come. One process; at each mark {events} repeats, spread over all that it remembers, and then {events} new events.\n\n",
            cores.server, cores.others,
        )
    }

    fn measure(&self, server: &Server) -> anyhow::Result<Vec<Mark>> {
        let host = server.address.to_string();
        let events = Events::new(Kind::New, &host, PATH, SECRET.as_bytes(), BODY_BYTES, fastrand::u32(..));
        let (mut sent, mut marks) = (0, Vec::new());
        for mark in &self.marks {
            // The new events of the mark before may have gone beyond this one.
            if let Some(missing) = mark.checked_sub(sent).filter(|missing| *missing > 0) {
                eprintln!("until {mark} ids are remembered");
                self.send(server, &events, sent, missing)?;
                sent += missing;
            }
            eprintln!("at {sent} ids");
            let resident_mib = Usage::of(server.id())?.resident_mib;
            let (repeats, repeats_cpu_seconds) = self.send(server, &events.among(sent), 0, self.events)?;
            let (new, new_cpu_seconds) = self.send(server, &events, sent, self.events)?;
            marks.push(Mark {
                remembered: sent,
                new_cpu_seconds,
                new_rate: new.rate(),
                repeats_cpu_seconds,
                repeats_rate: repeats.rate(),
                resident_mib,
            });
            sent += self.events;
        }
        Ok(marks)
    }

    /// Sends `count` events from number `first` on, and tells what 100,000 of them cost in CPU seconds.
    fn send(&self, server: &Server, events: &Events, first: u64, count: u64) -> anyhow::Result<(Outcome, f64)> {
        let plan =
            Plan { events_max: count, first, ..Plan::at_full_speed(server.address, self.connections, STEP_LIMIT) };
        let before = Usage::of(server.id())?;
        let outcome = load::run(&plan, events).context("send events")?;
        let after = Usage::of(server.id())?;
        let accepted = outcome.with_status(200);
        ensure!(accepted == count, "{accepted} of {count} events were answered 200: {:?}", outcome.statuses);
        Ok((outcome, per_100_000(after.cpu_seconds - before.cpu_seconds, count)))
    }
}

fn table(marks: &[Mark]) -> String {
    let mut text = "| Remembered | CPU s per 100,000 new | new, events/s | CPU s per 100,000 repeats | repeats, events/s | RSS, MiB | bytes per id since \
                    the first mark |\n|---|---|---|---|---|---|---|\n"
        .to_owned();
    for mark in marks {
        let (first, ids) = (marks[0], mark.remembered - marks[0].remembered);
        let each = match ids {
            0 => "–".to_owned(),
            ids => format!("{:.0}", (mark.resident_mib - first.resident_mib) * 1024.0 * 1024.0 / ids as f64),
        };
        let Mark { remembered, new_cpu_seconds, new_rate, repeats_cpu_seconds, repeats_rate, resident_mib } = mark;
        text.push_str(&format!(
            "| {remembered} | {new_cpu_seconds:.2} | {new_rate:.0} | {repeats_cpu_seconds:.2} | {repeats_rate:.0} | {resident_mib:.1} | {each} |\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_for_each_id_beyond_those_of_the_first_mark() {
        let mark = |remembered, resident_mib| Mark {
            remembered,
            new_cpu_seconds: 2.0,
            new_rate: 40_000.0,
            repeats_cpu_seconds: 1.5,
            repeats_rate: 50_000.0,
            resident_mib,
        };
        let text = table(&[mark(1000, 20.0), mark(1000 + 1024 * 1024, 120.0)]);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| 1000 | 2.00 | 40000 | 1.50 | 50000 | 20.0 | – |",
                "| 1049576 | 2.00 | 40000 | 1.50 | 50000 | 120.0 | 100 |",
            ]
        );
    }
}
