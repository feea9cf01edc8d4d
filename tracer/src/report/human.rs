//! The report as a page to read: the verdict first, then each listener, the clients, the proof, and what to change.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::blocks;
use super::format::{Style, count, counted, percent, time_us, wrap};
use super::model::{Check, EndedBy, Listener, Pair, Report};
use crate::ledger::Account;

/// Columns of the page.
pub(super) const WIDTH: usize = 100;

/// Writes the report for people.
///
/// # Errors
/// When `out` cannot be written.
pub fn write(report: &Report, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let mut page = String::new();
    head(report, style, &mut page);
    let (active, idle): (Vec<&Listener>, Vec<&Listener>) =
        report.listeners.iter().partition(|l| l.account != Account::default());
    for listener in active {
        page.push('\n');
        blocks::listener(report, listener, style, &mut page);
    }
    if report.without_listener != Account::default() {
        page.push('\n');
        blocks::without_listener(report, style, &mut page);
    }
    if report.ports.is_some() {
        for listener in idle {
            page.push('\n');
            blocks::idle_listener(report, listener, style, &mut page);
        }
    }
    if report.clients.connects > 0 || !report.clients.failed.is_empty() {
        page.push('\n');
        blocks::clients(report, style, &mut page);
    }
    if !report.marks.is_empty() {
        page.push('\n');
        blocks::marks(report, style, &mut page);
    }
    page.push('\n');
    cross_check(&report.check, style, &mut page);
    if !report.advice.is_empty() {
        page.push('\n');
        advice(report, style, &mut page);
    }
    out.write_all(page.as_bytes())
}

fn head(report: &Report, style: Style, page: &mut String) {
    let totals = &report.totals;
    let lost = totals.lost.total();
    let verdict = match totals.attempts {
        0 => "0 attempts: nobody tried to connect".to_owned(),
        n => format!(
            "{}: {} accepted, {} lost{}, {} pending",
            counted(n, "attempt"),
            count(totals.accepted),
            count(lost),
            if lost > 0 { format!(" ({})", percent(lost, n)) } else { String::new() },
            count(totals.pending)
        ),
    };
    line(page, &style.strong(&verdict));
    if lost > 0 {
        let mut causes: Vec<_> = totals.lost.nonzero().collect();
        causes.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let causes: Vec<String> = causes.iter().map(|(cause, n)| format!("{} ({})", cause.id(), count(*n))).collect();
        let text = wrap(&format!("lost to {}", causes.join(", ")), "", WIDTH);
        page.push_str(&style.bad(text.trim_end()));
        page.push('\n');
    }
    if !report.check.exact {
        line(page, &style.bad("not exact: see the notes of the cross-check"));
    }
    let mut hooks: Vec<&str> = report.host.hooks.values().map(String::as_str).collect();
    hooks.sort_unstable();
    hooks.dedup();
    let ended = match report.window.ended_by {
        EndedBy::Signal => "until interrupted",
        EndedBy::Duration => "(--duration)",
        EndedBy::Command => "until the command ended",
    };
    let length = time_us(u64::try_from(report.window.length.as_micros()).unwrap_or(u64::MAX));
    let context = format!("{length} {ended}; Linux {}; hooks: {}", report.host.kernel, hooks.join(", "));
    line(page, &style.dim(&context));
    if let Some(command) = &report.command {
        let text = wrap(&format!("{}: status {}", command.argv.join(" "), command.status), "", WIDTH);
        page.push_str(&style.dim(text.trim_end()));
        page.push('\n');
    }
    if report.ports.is_some() && report.listeners.is_empty() {
        line(page, "no listener on the traced ports");
    }
}

fn cross_check(check: &Check, style: Style, page: &mut String) {
    line(page, &style.strong("cross-check                     kernel       tracer"));
    let (silent, shown): (Vec<&Pair>, Vec<&Pair>) = check.counters.iter().partition(|p| p.kernel == 0 && p.tracer == 0);
    for pair in shown {
        let verdict = if pair.kernel == pair.tracer { style.good("ok") } else { style.bad("MISMATCH") };
        let (kernel, tracer) = (count(pair.kernel), count(pair.tracer));
        let _ = writeln!(page, "  {:<22}{kernel:>14}{tracer:>13}  {verdict}", pair.counter.name());
    }
    if !silent.is_empty() {
        let name = match (silent.len(), check.counters.len()) {
            (n, all) if n == all => format!("all {n} counters"),
            (1, _) => silent[0].counter.name().to_owned(),
            (n, _) => format!("{n} others"),
        };
        let _ = writeln!(page, "  {name:<22}{:>14}{:>13}  {}", 0, 0, style.good("ok"));
    }
    if check.exact {
        line(page, &format!("  {}: every counter is equal, no event was lost", style.good("exact")));
    } else {
        line(page, &format!("  {}", style.bad("not exact")));
    }
    for note in &check.notes {
        page.push_str(&wrap(note, "    ", WIDTH));
    }
}

fn advice(report: &Report, style: Style, page: &mut String) {
    line(page, &style.strong("what to change"));
    let mut last = None;
    for advice in &report.advice {
        if last != Some(advice.cause) {
            line(page, &format!("  {}", style.strong(advice.cause.id())));
            last = Some(advice.cause);
        }
        page.push_str(&wrap(&advice.text, "    ", WIDTH));
    }
}

fn line(page: &mut String, text: &str) {
    page.push_str(text.trim_end());
    page.push('\n');
}

#[cfg(test)]
mod tests;
