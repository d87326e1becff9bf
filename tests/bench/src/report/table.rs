//! The figures as Markdown tables, one for each path.

use super::{Case, Figures};

/// A column: its title, the digits after its point, and its figure.
pub(super) type Column = (&'static str, usize, fn(&Figures) -> f64);

const COLUMNS: &[Column] = &[
    ("CPU s per 100,000 at max", 2, |figures| figures.cpu_seconds),
    ("at half", 2, |figures| figures.cpu_seconds_at_half),
    ("max, events/s", 0, |figures| figures.rate),
    ("server's core busy by it, %", 0, |figures| figures.server_busy),
    ("other core busy, %", 0, |figures| figures.others_busy),
    ("p50 at half, ms", 2, |figures| figures.p50_ms),
    ("p99, ms", 2, |figures| figures.p99_ms),
    ("p99.9, ms", 2, |figures| figures.p999_ms),
    ("generator late, p99, ms", 2, |figures| figures.late_p99_ms),
    ("broker's ack, p50, ms", 2, |figures| figures.ack_p50_ms),
    ("broker's ack, p99, ms", 2, |figures| figures.ack_p99_ms),
    ("p99 by the ack's (goal: 1.5 at most)", 2, |figures| figures.p99_ms / figures.ack_p99_ms),
    ("RSS idle, MiB", 1, |figures| figures.idle_mib),
    ("RSS peak, MiB", 1, |figures| figures.peak_mib),
    ("messages per event", 2, |figures| figures.messages),
    ("Redis commands per event", 2, |figures| figures.commands),
    ("start to ready, ms", 0, |figures| figures.ready_ms),
    ("wrong answers", 0, |figures| figures.wrong),
    ("lost", 0, |figures| figures.lost),
];

/// How to read it, below the tables.
const NOTES: &str = "
CPU time is that of the server's process, in user and kernel mode. Latencies are from the moment when an event was due, at half of
the system's own maximum of that round. With a full \"other core\" the maximum is that of the generator and the brokers, not of the
server. The broker's ack is the time that it took for 200 messages a second of the generator's own, published beside those events and to
another place: what p99 there is beyond it is the server's and Redis's. Redis counts the commands inside of a script as well. RSS grows with the ids that are remembered. Start to ready: from the
start of the process to the first event that it accepted. Standard output goes to /dev/null; each event is a line that is written
and flushed, together with those that wait.
";

pub(super) fn render(lines: &[(Case, Vec<Figures>)]) -> String {
    let mut text = String::new();
    let mut path = "";
    for (case, figures) in lines {
        if case.path != path {
            path = case.path;
            let titles: Vec<_> = COLUMNS.iter().map(|(title, ..)| *title).collect();
            text.push_str(&format!("\n## {path}\n\n| System | {} |\n", titles.join(" | ")));
            text.push_str(&format!("|---|{}\n", "---|".repeat(COLUMNS.len())));
        }
        let cells: Vec<_> = COLUMNS.iter().map(|column| cell(column, figures)).collect();
        text.push_str(&format!("| {} | {} |\n", case.name(), cells.join(" | ")));
    }
    text + NOTES
}

fn cell((_, digits, figure): &Column, figures: &[Figures]) -> String {
    let spread = Spread::of(figures.iter().map(figure));
    // What there was nothing to measure of.
    if spread.median.is_nan() {
        return "–".to_owned();
    }
    let [median, least, most] = [spread.median, spread.least, spread.most].map(|value| format!("{value:.digits$}"));
    if least == most { median } else { format!("{median} [{least}–{most}]") }
}

/// Some figures in short.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    /// The one in the middle; of two, their mean.
    pub(super) median: f64,
    /// The smallest.
    pub(super) least: f64,
    /// The largest.
    pub(super) most: f64,
}

impl Spread {
    /// Of none it is all zero.
    pub(super) fn of(figures: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(&least), Some(&most)) = (sorted.first(), sorted.last()) else {
            return Self { median: 0.0, least: 0.0, most: 0.0 };
        };
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Self { median, least, most }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::cases;

    #[test]
    fn the_median_is_the_one_in_the_middle_or_between_two() {
        for (figures, median, least, most) in [
            (vec![3.0, 1.0, 2.0], 2.0, 1.0, 3.0),
            (vec![4.0, 1.0, 2.0, 3.0], 2.5, 1.0, 4.0),
            (vec![7.0], 7.0, 7.0, 7.0),
            (vec![], 0.0, 0.0, 0.0),
        ] {
            assert_eq!(Spread::of(figures.into_iter()), Spread { median, least, most });
        }
    }

    #[test]
    fn each_path_has_a_table_with_a_line_for_each_system() {
        let figures = |rate| Figures { rate, cpu_seconds: 1.5, ..Figures::default() };
        let lines: Vec<_> =
            cases().into_iter().take(4).map(|case| (case, vec![figures(100.0), figures(300.0)])).collect();
        let text = render(&lines);
        assert!(
            text.contains("## 1. New, to a sink that acknowledges at once\n\n| System | CPU s per 100,000 at max |"),
            "{text}"
        );
        assert!(text.contains("\n| hookgate | 1.50 | 0.00 | 200 [100–300] |"), "{text}");
        assert_eq!((text.matches("\n## ").count(), text.matches("\n| System").count()), (2, 2));
    }

    #[test]
    fn what_there_is_nothing_to_measure_of_is_a_dash() {
        let column: Column = ("broker's ack", 1, |figures| figures.ack_p99_ms);
        let figures = |ack_p99_ms| Figures { ack_p99_ms, ..Figures::default() };
        assert_eq!(cell(&column, &[figures(f64::NAN), figures(f64::NAN)]), "–");
        assert_eq!(cell(&column, &[figures(1.0), figures(2.0), figures(3.0)]), "2.0 [1.0–3.0]");
    }
}
