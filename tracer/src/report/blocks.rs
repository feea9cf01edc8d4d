//! The blocks of the page: a number, what it counts, and a remark, as `perf stat` sets them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tracer_abi::abi::{Cause, Ender, Stage};

use super::causes::meaning;
use super::format::{Style, count, percent, time_us};
use super::human::WIDTH;
use super::model::{ByEnder, Listener, Report};
use crate::ledger::{Account, ByCause};

/// Processes listed; the rest are counted.
const PROCESSES: usize = 10;

/// One row: the number right-aligned, the name, the remark.
fn row(page: &mut String, n: u64, name: &str, remark: &str) {
    let row = format!("{:>12}  {name:<25}{remark}", count(n));
    page.push_str(row.trim_end());
    page.push('\n');
}

/// A row only if there is something to say.
fn row_if(page: &mut String, n: u64, name: &str, remark: &str) {
    if n > 0 {
        row(page, n, name, remark);
    }
}

pub(super) fn listener(report: &Report, listener: &Listener, style: Style, page: &mut String) {
    heading(report, listener, style, page);
    ledger(report, &listener.account, style, page);
    queues(report, listener, style, page);
    packets(&listener.account, page);
}

/// A listener that nobody tried to connect to.
pub(super) fn idle_listener(report: &Report, listener: &Listener, style: Style, page: &mut String) {
    heading(report, listener, style, page);
    row(page, 0, "attempts", "");
    if listener.accept_queue.max > 0 || listener.half_open_queue.max > 0 {
        queues(report, listener, style, page);
    }
}

pub(super) fn without_listener(report: &Report, style: Style, page: &mut String) {
    page.push_str(&style.strong("met no listener"));
    page.push('\n');
    ledger(report, &report.without_listener, style, page);
}

fn heading(report: &Report, listener: &Listener, style: Style, page: &mut String) {
    let mut about = Vec::new();
    match (&listener.comm, listener.pid) {
        (Some(comm), Some(pid)) => about.push(format!("{comm} (pid {pid})")),
        (None, Some(pid)) => about.push(format!("pid {pid}")),
        (Some(comm), None) => about.push(comm.clone()),
        (None, None) => about.push("owner unknown".to_owned()),
    }
    if listener.netns != report.host.netns {
        about.push(format!("network namespace {}", report.netns_label(listener.netns)));
    }
    if listener.reuseport {
        about.push("SO_REUSEPORT".to_owned());
    }
    if !listener.open {
        about.push("closed".to_owned());
    }
    let _ = writeln!(page, "{}  {}", style.strong(&listener.place()), about.join(", "));
}

fn ledger(report: &Report, account: &Account, style: Style, page: &mut String) {
    let lost = account.lost.total();
    row(page, account.attempts, "attempts", "");
    row(page, account.accepted, "accepted", &percent(account.accepted, account.attempts));
    let pending = if account.pending > 0 { "half-open or in the accept queue, never dropped" } else { "" };
    row(page, account.pending, "pending", pending);
    let share = percent(lost, account.attempts);
    row(page, lost, "lost", &if lost > 0 { style.bad(&share) } else { share.as_str().into() });
    for (cause, n) in account.lost.nonzero() {
        let name = format!("  {}", cause.id());
        match cause {
            Cause::AcceptQueueFull => {
                row_if(page, account.lost_at_syn, &name, meaning(cause, Stage::Syn));
                row_if(page, n.saturating_sub(account.lost_at_syn), &name, meaning(cause, Stage::Ack));
            }
            Cause::HalfOpenQueueFull => row(page, n, &name, half_open_meaning(account)),
            _ => row(page, n, &name, meaning(cause, Stage::None)),
        }
        if cause == Cause::Filtered {
            for (reason, n) in &report.filtered {
                row(page, *n, &format!("    {reason}"), "");
            }
        }
    }
    if account.lost[Cause::Unattributed] == 0 {
        row(page, 0, "  unattributed", "");
    }
    row_if(page, account.lost_with_reset, "reset", "of the lost: the client was sent a RST");
    row_if(page, account.phantom, "phantom", "of the lost: the client could believe that it was connected");
    row_if(page, account.untold, "not listed", "of the lost: too many at once to name each; counted by cause");
    late(account, page);
    row_if(page, account.dead_on_arrival, "dead on arrival", "of the accepted: the client had closed or reset before");
}

/// The queue itself, or the reserve that is kept in it: the attempts do not say, their packets do.
fn half_open_meaning(account: &Account) -> &'static str {
    let dropped = account.packets.syn_dropped[Cause::HalfOpenQueueFull];
    match account.packets.syn_dropped_reserve {
        0 => meaning(Cause::HalfOpenQueueFull, Stage::Syn),
        reserve if reserve == dropped => "SYN dropped: the reserve of tcp_max_syn_backlog was reached",
        _ => "SYN dropped: queue full, or reserve of tcp_max_syn_backlog",
    }
}

fn late(account: &Account, page: &mut String) {
    let causes: Vec<(Cause, u64)> = account.late.nonzero().collect();
    let remark = "of the accepted: dropped before";
    if let [(cause, n)] = causes[..] {
        row(page, n, "late", &format!("{remark} ({})", cause.id()));
    } else {
        row_if(page, account.late.total(), "late", remark);
        for (cause, n) in causes {
            row(page, n, &format!("  {}", cause.id()), "");
        }
    }
    let by = account.completed_by;
    row_if(page, by.ack, "  completed by ACK", "a bare ACK, in answer to a repeated SYN-ACK");
    row_if(page, by.data, "  completed by data", "the first data carried the ACK");
    row_if(page, by.fin, "  completed by FIN", "the client's close carried the ACK");
}

fn queues(report: &Report, listener: &Listener, style: Style, page: &mut String) {
    let backlog = &listener.backlog;
    let packets = &listener.account.packets;
    let known = report.settings_known(listener.netns);
    let full = |yes: bool, what: &str| if yes { format!(": {}", style.bad(what)) } else { String::new() };

    let queue = listener.accept_queue;
    let refused = packets.syn_dropped[Cause::AcceptQueueFull]
        + packets.ack_dropped[Cause::AcceptQueueFull]
        + packets.ack_dropped[Cause::SyncookieAckDropped];
    let mut line = format!(
        "  accept queue     now {}, peak {} of {}+1{}",
        count(queue.now.into()),
        count(queue.max.into()),
        count(backlog.effective.into()),
        full(refused > 0 || queue.max > backlog.effective, "full"),
    );
    if let Some(asked) = backlog.asked {
        let _ = write!(line, "; listen() asked for {}", count(asked.into()));
    }
    if known {
        let _ = write!(line, "; somaxconn {}", count(backlog.somaxconn.into()));
    }
    let _ = writeln!(page, "{line}");

    let queue = listener.half_open_queue;
    let reserve = packets.syn_dropped_reserve;
    let cookies = packets.synack_cookie > 0 && known && backlog.syncookies == 1;
    let mut line = format!(
        "  half-open queue  now {}, peak {}, limit {}{}",
        count(queue.now.into()),
        count(queue.max.into()),
        count(backlog.effective.into()),
        full(packets.syn_dropped[Cause::HalfOpenQueueFull] > reserve || cookies, "full"),
    );
    if known {
        let max_syn_backlog = count(backlog.max_syn_backlog.into());
        let _ = write!(line, "; syncookies {}, tcp_max_syn_backlog {max_syn_backlog}", backlog.syncookies);
        line.push_str(&full(reserve > 0, "reserve reached"));
    }
    let _ = writeln!(page, "{line}");
    if let Some(wait) = listener.accept_wait {
        let _ = writeln!(
            page,
            "  accept wait      p50 {}, p90 {}, p99 {}, max {}",
            time_us(wait.p50),
            time_us(wait.p90),
            time_us(wait.p99),
            time_us(wait.max)
        );
    }
}

fn packets(account: &Account, page: &mut String) {
    let p = &account.packets;
    let dropped =
        |by: &ByCause| if by.total() > 0 { format!(" ({} dropped)", count(by.total())) } else { String::new() };
    let mut parts = vec![format!("SYN {}{}", count(p.syn), dropped(&p.syn_dropped))];
    parts.push(format!("SYN-ACK {}", count(p.synack)));
    for (n, what) in [
        (p.synack_retransmitted, "repeated"),
        (p.synack_cookie, "with a cookie"),
        (p.ack_dropped.total(), "final ACKs dropped"),
        (p.cookie_ack_accepted, "cookies accepted"),
        (p.cookie_ack_invalid, "invalid cookies"),
        (p.cookie_ack_unused, "valid cookies beside a request"),
    ] {
        if n > 0 {
            parts.push(format!("{} {what}", count(n)));
        }
    }
    let text = super::format::wrap(&parts.join(", "), "                   ", WIDTH);
    let _ = writeln!(page, "  packets          {}", text.trim());
}

pub(super) fn clients(report: &Report, style: Style, page: &mut String) {
    let clients = &report.clients;
    page.push_str(&style.strong("clients on this machine"));
    page.push('\n');
    row(page, clients.connects, "connects", "");
    row(page, clients.established, "established", "");
    row_if(page, clients.in_progress, "in progress", "");
    row(page, clients.failed.values().sum(), "failed", "");
    for (name, n) in &clients.failed {
        row(page, *n, &format!("  {name}"), "");
    }
    for (by, name) in [(clients.fins, "FINs sent"), (clients.resets, "RSTs sent")] {
        let by = by.unwrap_or_default();
        row_if(page, by.total(), name, &by_ender(by));
    }
    if clients.by_process.is_empty() {
        return;
    }
    let mut processes: Vec<_> = clients.by_process.iter().collect();
    processes.sort_by_key(|p| (std::cmp::Reverse((p.failed, p.connects)), p.pid));
    page.push_str("         pid  process           connects  established   failed\n");
    for p in processes.iter().take(PROCESSES) {
        let (connects, established, failed) = (count(p.connects), count(p.established), count(p.failed));
        let row = format!(
            "{:>12}  {:<16}{connects:>10}{established:>13}{failed:>9}  {}",
            p.pid,
            p.comm,
            by_name(&p.failed_by)
        );
        page.push_str(row.trim_end());
        page.push('\n');
        for (by, name) in [(p.fins, "FIN"), (p.resets, "RST")] {
            if by.total() > 0 {
                let several = if by.total() > 1 { "s" } else { "" };
                let _ = writeln!(page, "{:>14}{} {name}{several}, {}", "", count(by.total()), by_ender(by));
            }
        }
    }
    if let Some(rest) = processes.get(PROCESSES..).filter(|rest| !rest.is_empty()) {
        let _ = writeln!(page, "{:>12}  more processes", count(rest.len() as u64));
    }
}

/// Who caused FINs or RSTs; numbers only where there are several.
fn by_ender(by: ByEnder) -> String {
    let parts: Vec<_> = by.iter().filter(|(_, n)| *n > 0).collect();
    if let [(ender, _)] = parts[..] {
        let meaning = match ender {
            Ender::Close => "by close()",
            Ender::Shutdown => "by shutdown()",
            Ender::Exit => "at the end of the process",
            Ender::Signal => "because a signal ended the process",
            Ender::Other => "neither by close() or shutdown() nor at an end",
        };
        return meaning.to_owned();
    }
    let short = |ender| match ender {
        Ender::Close => "close()",
        Ender::Shutdown => "shutdown()",
        Ender::Exit => "exit",
        Ender::Signal => "signal",
        Ender::Other => "other",
    };
    parts.iter().map(|(ender, n)| format!("{} {}", short(*ender), count(*n))).collect::<Vec<_>>().join(", ")
}

/// Failures by name, the most frequent first, as many as there is room for.
fn by_name(failed: &BTreeMap<String, u64>) -> String {
    const ROOM: usize = 36;
    let mut failed: Vec<(&String, &u64)> = failed.iter().collect();
    failed.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    let mut text = String::new();
    for (name, n) in failed {
        let part = format!("{}{name} {}", if text.is_empty() { "" } else { ", " }, count(*n));
        if text.len() + part.len() + 5 > ROOM {
            text.push_str(", ...");
            break;
        }
        text.push_str(&part);
    }
    text
}

/// Ends of client processes that are shown before those that are left out, and after: a load of many short processes has one each.
const ENDS_SHOWN: usize = 6;

pub(super) fn marks(report: &Report, style: Style, page: &mut String) {
    page.push_str(&style.strong("marks               accepted         lost"));
    page.push('\n');
    let ends = report.marks.iter().filter(|mark| !mark.asked).count();
    let left_out = if ends > 2 * ENDS_SHOWN + 1 { ENDS_SHOWN..ends - ENDS_SHOWN } else { 0..0 };
    let mut end = 0;
    for mark in &report.marks {
        if !mark.asked {
            end += 1;
            if left_out.contains(&(end - 1)) {
                if end - 1 == left_out.start {
                    let _ = writeln!(page, "{:43}{} more processes ended", "", count(left_out.len() as u64));
                }
                continue;
            }
        }
        let (accepted, lost) = (count(mark.accepted), count(mark.lost));
        let at = format!("{:.3} s", mark.at.as_secs_f64());
        let _ = writeln!(page, "{at:>12}{accepted:>16}{lost:>13}  {}", mark.label);
    }
}
