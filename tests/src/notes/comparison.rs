//! What the programs counted beside what the tracer says, as a table and a verdict.

use std::fmt::Write as _;

use anyhow::{Result, bail};

use super::counts::Connected;
use crate::report::{ClientProcess, Counts, Report};
use crate::session::Finished;

/// How a process of clients has ended all its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The process.
    pub pid: u32,
    /// By what, as `clients.fins` names it.
    pub by: &'static str,
    /// How many sent a FIN.
    pub fins: u64,
    /// How many sent a RST, as there was something unread.
    pub resets: u64,
}

impl End {
    /// The end of the connections that were looked at just before, and of those that the process has closed itself.
    #[must_use]
    pub fn of(pid: u32, by: &'static str, seen: &Connected) -> Self {
        let fins = seen.open.saturating_sub(seen.unread) + seen.closed_clean;
        Self { pid, by, fins, resets: seen.unread + seen.closed_unread }
    }
}

/// Counts of the workload beside those of the tracer.
#[derive(Debug)]
pub struct Comparison {
    title: String,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    low: u64,
    high: u64,
    tracer: u64,
}

impl Row {
    fn holds(&self) -> bool {
        (self.low..=self.high).contains(&self.tracer)
    }
}

impl Comparison {
    /// An empty one.
    #[must_use]
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), rows: Vec::new() }
    }

    /// A count that both know.
    pub fn equal(&mut self, name: &str, workload: u64, tracer: u64) {
        self.between(name, workload, workload, tracer);
    }

    /// A count of which the workload knows only bounds.
    pub fn between(&mut self, name: &str, low: u64, high: u64, tracer: u64) {
        self.rows.push(Row { name: name.to_owned(), low, high, tracer });
    }

    /// What `connect()` returned in each of these processes, and in all of them together.
    pub fn clients(&mut self, report: &Report, processes: &[(u32, Connected)]) {
        let clients = &report.clients;
        let mut sum = Connected::default();
        for (pid, seen) in processes {
            let found = clients.by_process.iter().find(|it| it.pid == *pid);
            let (connects, established, failed) =
                found.map_or((0, 0, 0), |it| (it.connects, it.established, it.failed));
            self.equal(&format!("connects of process {pid}"), seen.connects, connects);
            self.equal(&format!("established of process {pid}"), seen.connected, established);
            self.equal(&format!("failed of process {pid}"), seen.all_failed(), failed);
            sum.add(seen.clone());
        }
        self.equal("connects", sum.connects, clients.connects);
        self.equal("established", sum.connected, clients.established);
        self.equal("in progress", 0, clients.in_progress);
        let failed = |name: &str| clients.failed.get(name).copied().unwrap_or(0);
        self.equal("failed: port-exhaustion", sum.failed_by("EADDRNOTAVAIL"), failed("port-exhaustion"));
        self.equal("failed: ETIMEDOUT", sum.failed_by("ETIMEDOUT"), failed("ETIMEDOUT"));
        self.equal("failed", sum.all_failed(), clients.failed.values().sum());
    }

    /// The FINs and RSTs of local clients by who caused them, in each process and in all of them together.
    pub fn ends(&mut self, report: &Report, expected: &[End]) {
        type Side<'a> = (&'a str, Option<&'a Counts>, fn(&End) -> u64, fn(&ClientProcess) -> &Counts);
        let clients = &report.clients;
        let sides: [Side<'_>; 2] = [
            ("FINs", clients.fins.as_ref(), |it| it.fins, |it| &it.fins),
            ("RSTs", clients.resets.as_ref(), |it| it.resets, |it| &it.resets),
        ];
        let count = |counts: Option<&Counts>, by: &str| counts.and_then(|it| it.get(by)).copied().unwrap_or(0);
        for (what, totals, workload, tracer) in sides {
            for end in expected {
                let process = clients.by_process.iter().find(|it| it.pid == end.pid);
                let name = format!("{what} by {} of process {}", end.by, end.pid);
                self.equal(&name, workload(end), count(process.map(tracer), end.by));
            }
            for by in ["close", "shutdown", "exit", "signal", "other"] {
                let sum = expected.iter().filter(|it| it.by == by).map(workload).sum();
                self.equal(&format!("{what} by {by}"), sum, count(totals, by));
            }
        }
    }

    /// The table, one line for each count.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = format!("{:<58}{:>16}{:>12}\n", self.title, "workload", "tracer");
        for row in &self.rows {
            let workload = if row.low == row.high { row.low.to_string() } else { format!("{}..{}", row.low, row.high) };
            let verdict = if row.holds() { "ok" } else { "DIFFERS" };
            // Writing to a string cannot fail.
            let _ = writeln!(table, "  {:<56}{workload:>16}{:>12}  {verdict}", row.name, row.tracer);
        }
        table
    }

    /// Prints the table to stderr, and fails if any count differs.
    ///
    /// # Errors
    /// Shows the table and what the kernel may have hidden.
    pub fn verdict(&self, finished: &Finished) -> Result<()> {
        let table = self.table();
        eprint!("{table}");
        if self.rows.iter().all(Row::holds) {
            return Ok(());
        }
        bail!("the tracer's counts differ\n{table}{}\n{:#?}", finished.evidence, finished.report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_out_of_its_bounds_differs_and_is_marked_as_such() {
        let mut comparison = Comparison::new("one run");
        comparison.equal("accepted", 3, 3);
        comparison.between("late", 2, 5, 5);
        assert!(!comparison.table().contains("DIFFERS"), "{}", comparison.table());
        comparison.between("late", 2, 5, 6);
        comparison.equal("lost", 0, 1);
        let table = comparison.table();
        let differing: Vec<_> = table.lines().filter(|line| line.ends_with("DIFFERS")).collect();
        assert_eq!(differing.len(), 2, "{table}");
        assert!(differing[0].contains("2..5") && differing[1].contains("lost"), "{table}");
    }
}
