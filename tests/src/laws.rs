//! What holds in every report, whatever the traffic was.

use std::collections::BTreeMap;

use crate::netstat::{CHECKED, Netstat};
use crate::report::{ClientEnd, ClientProcess, Counts, Event, Ledger, Report};

/// The causes of the contract.
pub const CAUSES: [&str; 13] = [
    "half-open-queue-full",
    "accept-queue-full",
    "syncookie-ack-dropped",
    "port-exhaustion",
    "syncookie-invalid",
    "handshake-expired",
    "client-reset",
    "listener-closed",
    "no-listener",
    "filtered",
    "no-memory",
    "unanswered",
    "unattributed",
];

/// Causes that only a listener can have, so that the listeners' sum is the total.
const LISTENER_CAUSES: [&str; 6] = [
    "half-open-queue-full",
    "accept-queue-full",
    "syncookie-ack-dropped",
    "handshake-expired",
    "client-reset",
    "listener-closed",
];

/// Collects every violation, so that a failing scenario shows all of them.
#[derive(Debug, Default)]
struct Violations(Vec<String>);

impl Violations {
    fn expect(&mut self, holds: bool, violation: impl FnOnce() -> String) {
        if !holds {
            self.0.push(violation());
        }
    }

    fn equal(&mut self, what: &str, left: u64, right: u64) {
        self.expect(left == right, || format!("{what}: {left} is not {right}"));
    }
}

/// Every law that `report` breaks, in words.
#[must_use]
pub fn laws(report: &Report) -> Vec<String> {
    let mut broken = Violations::default();
    broken.expect(report.schema == "tracer/1", || format!("schema is {}", report.schema));
    frame(report, &mut broken);
    ledger("totals", &report.totals, &mut broken);
    for listener in &report.listeners {
        let name = format!("listener {}:{}", listener.address, listener.port);
        ledger(&name, &listener.ledger, &mut broken);
        for (queue, what) in [(&listener.accept_queue, "accept"), (&listener.half_open_queue, "half-open")] {
            broken.expect(queue.now <= queue.max, || {
                format!("{name}: {what} queue holds {} but at most {}", queue.now, queue.max)
            });
        }
        match &listener.accept_wait_us {
            Some(wait) => broken.expect(wait.p50 <= wait.p90 && wait.p90 <= wait.p99 && wait.p99 <= wait.max, || {
                format!("{name}: accept wait percentiles do not rise: {wait:?}")
            }),
            // Of an accept() that was not seen, the report declares it.
            None if !report.check.exact => {}
            None => broken.equal(&format!("{name}: accepted without a wait"), listener.ledger.accepted, 0),
        }
    }
    sums(report, &mut broken);
    clients(report, &mut broken);
    check(report, &mut broken);
    broken.0
}

/// Every disagreement between a report's summary and its event lines.
#[must_use]
pub fn event_laws(report: &Report, events: &[Event], ends: &[ClientEnd]) -> Vec<String> {
    let mut broken = Violations::default();
    let mut counted: BTreeMap<&str, Counts> = BTreeMap::new();
    for line in events {
        *counted.entry(&line.event).or_default().entry(line.cause.clone()).or_default() += 1;
        broken.expect((0.0..=report.window.seconds).contains(&line.at_seconds), || {
            format!("an event outside the window: {line:?}")
        });
        broken.expect(line.event != "late" || line.delay_ms.is_some(), || {
            format!("a late connection without its delay: {line:?}")
        });
    }
    broken.expect(counted.keys().all(|event| ["lost", "late"].contains(event)), || {
        format!("unknown event lines: {:?}", counted.keys())
    });
    for (event, summary) in [("lost", &report.totals.lost.by_cause), ("late", &report.totals.late.by_cause)] {
        let lines = counted.remove(event).unwrap_or_default();
        let summary = crate::report::occurring(summary);
        // In a flood there are attempts without a line; how many, the summary says.
        let untold = if event == "lost" { report.totals.lost.untold } else { 0 };
        let fits = lines.iter().all(|(cause, n)| summary.get(cause).is_some_and(|all| n <= all));
        let difference = summary.values().sum::<u64>().saturating_sub(lines.values().sum());
        broken.expect(fits && difference == untold, || {
            format!("{event}: the lines say {lines:?}, the summary {summary:?}, {untold} without a line")
        });
    }
    let phantoms = events.iter().filter(|line| line.event == "lost" && line.phantom).count();
    broken.equal("phantom lines", phantoms as u64, report.totals.phantom);
    let mut ended: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for line in ends {
        *ended.entry((&line.event, &line.by)).or_default() += 1;
        broken.expect((line.by == "signal") == line.signal.is_some(), || format!("a signal or none: {line:?}"));
        broken.expect((0.0..=report.window.seconds).contains(&line.at_seconds), || {
            format!("an end outside the window: {line:?}")
        });
    }
    for ((event, by), lines) in ended {
        let totals = if event == "fin" { &report.clients.fins } else { &report.clients.resets };
        let all = totals.as_ref().and_then(|it| it.get(by)).copied().unwrap_or(0);
        broken.expect(lines <= all, || format!("{lines} lines of {event} by {by}, {all} in all"));
    }
    broken.0
}

/// Every disagreement between a report and the kernel's counters, whose change
/// over the window was at least `low` and at most `high` (equal when nothing
/// happened while the tracer started and stopped). With `alone`, all traffic of
/// the namespace was to traced ports, and the packet counts have to agree too.
/// `hidden` packets may have been shown to no program.
#[must_use]
pub fn kernel_laws(report: &Report, low: &Netstat, high: &Netstat, alone: bool, hidden: u64) -> Vec<String> {
    let mut broken = Violations::default();
    for name in CHECKED {
        let (low, high) = (low.get(name), high.get(name));
        let claimed = report.check.counters.get(name).map(|pair| pair.kernel);
        broken.expect(claimed.is_some_and(|n| (low..=high).contains(&n)), || {
            format!("{name}: the kernel says {low} to {high}, check.counters {claimed:?}")
        });
    }
    if !alone || low.nonzero(&CHECKED) != high.nonzero(&CHECKED) {
        return broken.0;
    }
    let packets = &report.totals.packets;
    let of = |counts: &Counts, causes: &[&str]| -> u64 {
        causes.iter().map(|cause| counts.get(*cause).copied().unwrap_or(0)).sum()
    };
    let overflows = of(&packets.syn_dropped, &["accept-queue-full"])
        + of(&packets.ack_dropped, &["accept-queue-full", "syncookie-ack-dropped"]);
    // What the tracer says it was not shown has to be exactly what is missing.
    let unseen = report.check.packets_unseen;
    let short = |broken: &mut Violations, what: &str, have: u64, want: u64| {
        broken
            .expect(have <= want && want - have <= unseen, || format!("{what}: {have} is not {want}, {unseen} unseen"));
    };
    short(&mut broken, "packets dropped at a full accept queue", overflows, low.get("ListenOverflows"));
    let drops = overflows
        + of(&packets.syn_dropped, &["half-open-queue-full", "no-memory"])
        + of(&packets.ack_dropped, &["no-memory"]);
    short(&mut broken, "packets dropped by listeners", drops, low.get("ListenDrops"));
    short(&mut broken, "packets.synack_cookie", packets.synack_cookie, low.get("SyncookiesSent"));
    broken.equal(
        "packets dropped, answered with a cookie or unseen",
        drops + packets.synack_cookie + unseen,
        low.get("ListenDrops") + low.get("SyncookiesSent"),
    );
    // One that becomes a connection raises no other counter: only the evidence tells of those that the kernel hid.
    let valid =
        packets.cookie_ack_accepted + packets.cookie_ack_unused + of(&packets.ack_dropped, &["syncookie-ack-dropped"]);
    let came = low.get("SyncookiesRecv");
    broken.expect(valid <= came && came - valid <= unseen + hidden, || {
        format!("valid cookies that came back: {valid} is not {came}, {unseen} unseen, {hidden} hidden")
    });
    // Without a recent cookie the kernel refuses an ACK without counting it. What the kernel hid raises no counter of ours.
    broken.expect(packets.cookie_ack_invalid + hidden >= low.get("SyncookiesFailed"), || {
        format!("fewer invalid cookies than the kernel counted: {packets:?}")
    });
    broken.0
}

/// What a report declares as unseen has to be proven from elsewhere: at most `hidden` packets were handled where the kernel may run
/// no BPF program (see [`crate::hidden`]). A tracer that misses packets for any other reason breaks this law, whatever it declares.
#[must_use]
pub fn hidden_laws(report: &Report, hidden: u64) -> Vec<String> {
    let mut broken = Violations::default();
    let unseen = report.check.packets_unseen;
    broken.expect(unseen <= hidden, || {
        format!("{unseen} packets declared as unseen, but the kernel hid at most {hidden}")
    });
    broken.0
}

fn frame(report: &Report, broken: &mut Violations) {
    let start = report.window.start.parse::<jiff::Timestamp>();
    let end = report.window.end.parse::<jiff::Timestamp>();
    broken.expect(matches!((&start, &end), (Ok(start), Ok(end)) if start < end), || {
        format!("no window of time: {:?}", report.window)
    });
    if let (Ok(start), Ok(end)) = (start, end) {
        let elapsed = end.duration_since(start).as_secs_f64();
        broken.expect((elapsed - report.window.seconds).abs() < 0.1, || {
            format!("{} seconds in a window of {elapsed}", report.window.seconds)
        });
    }
    let ended_by = report.window.ended_by.as_str();
    broken.expect(["signal", "duration", "command"].contains(&ended_by), || format!("ended by {ended_by}"));
    broken.expect(!report.host.hooks.is_empty(), || "no hooks are named".into());
    for (hook, flavour) in &report.host.hooks {
        broken.expect(["fentry", "kprobe", "tracepoint"].contains(&flavour.as_str()), || {
            format!("hook {hook} has the flavour {flavour}")
        });
    }
    let causes = report.advice.iter().map(|advice| &advice.cause);
    for cause in causes.filter(|cause| !CAUSES.contains(&cause.as_str())) {
        broken.0.push(format!("advice for the unknown cause {cause}"));
    }
}

fn ledger(name: &str, ledger: &Ledger, broken: &mut Violations) {
    let lost = &ledger.lost;
    let late = &ledger.late;
    broken.equal(
        &format!("{name}: attempts = accepted + pending + lost"),
        ledger.attempts,
        ledger.accepted + ledger.pending + lost.total,
    );
    for (what, total, parts) in [
        ("lost by cause", lost.total, &lost.by_cause),
        ("late by cause", late.total, &late.by_cause),
        ("late by what completed it", late.total, &late.completed_by),
    ] {
        broken.equal(&format!("{name}: {what}"), parts.values().sum(), total);
    }
    for (what, part, whole) in [
        ("phantom", ledger.phantom, lost.total),
        ("late", late.total, ledger.accepted),
        ("dead on arrival", ledger.dead_on_arrival, ledger.accepted),
        ("dropped SYNs", ledger.packets.syn_dropped.values().sum(), ledger.packets.syn),
    ] {
        broken.expect(part <= whole, || format!("{name}: {part} {what} of {whole}"));
    }
    broken.expect(lost.by_cause.contains_key("unattributed"), || format!("{name}: unattributed is not printed"));
    let packets = &ledger.packets;
    for (what, keys) in [
        ("lost", lost.by_cause.keys()),
        ("late", late.by_cause.keys()),
        ("syn_dropped", packets.syn_dropped.keys()),
        ("ack_dropped", packets.ack_dropped.keys()),
    ] {
        for cause in keys.filter(|cause| !CAUSES.contains(&cause.as_str())) {
            broken.0.push(format!("{name}: {what} has the unknown cause {cause}"));
        }
    }
    for what in late.completed_by.keys() {
        broken.expect(["ack", "data", "fin"].contains(&what.as_str()), || format!("{name}: completed by {what}"));
    }
}

fn sums(report: &Report, broken: &mut Violations) {
    let totals = &report.totals;
    let sum = |field: &dyn Fn(&Ledger) -> u64| -> u64 {
        report.listeners.iter().map(|listener| field(&listener.ledger)).sum()
    };
    broken.equal("sum of accepted", sum(&|it| it.accepted), totals.accepted);
    broken.equal("sum of pending", sum(&|it| it.pending), totals.pending);
    broken.equal("sum of late", sum(&|it| it.late.total), totals.late.total);
    broken.equal("sum of dead on arrival", sum(&|it| it.dead_on_arrival), totals.dead_on_arrival);
    let attempts = sum(&|it| it.attempts);
    broken.expect(attempts <= totals.attempts, || {
        format!("{attempts} attempts at the listeners, {} in all", totals.attempts)
    });
    for cause in LISTENER_CAUSES {
        broken.equal(&format!("sum of {cause}"), sum(&|it| it.lost_by(cause)), totals.lost_by(cause));
    }
}

fn clients(report: &Report, broken: &mut Violations) {
    let clients = &report.clients;
    let failed: u64 = clients.failed.values().sum();
    broken.equal(
        "client connects = established + in progress + failed",
        clients.connects,
        clients.established + clients.in_progress + failed,
    );
    for (what, total, parts) in [
        ("connects", clients.connects, clients.by_process.iter().map(|it| it.connects).sum::<u64>()),
        ("established", clients.established, clients.by_process.iter().map(|it| it.established).sum()),
        ("failed", failed, clients.by_process.iter().map(|it| it.failed).sum()),
    ] {
        broken.expect(parts <= total, || format!("{parts} client {what} by process, {total} in all"));
    }
    type OfProcess = fn(&ClientProcess) -> &Counts;
    let ends: [(_, _, OfProcess); 2] =
        [("fins", &clients.fins, |it| &it.fins), ("resets", &clients.resets, |it| &it.resets)];
    for (name, totals, of_process) in ends {
        let Some(totals) = totals else { continue };
        for what in ["close", "shutdown", "exit", "signal", "other"] {
            let Some(total) = totals.get(what) else {
                broken.expect(false, || format!("clients.{name} lacks {what}"));
                continue;
            };
            let parts: u64 = clients.by_process.iter().filter_map(|it| of_process(it).get(what)).sum();
            broken.expect(parts <= *total, || format!("{parts} {name} by {what} by process, {total} in all"));
        }
    }
}

fn check(report: &Report, broken: &mut Violations) {
    let check = &report.check;
    for name in CHECKED {
        broken.expect(check.counters.contains_key(name), || format!("check lacks {name}"));
    }
    let equal = check.counters.values().all(|pair| pair.kernel == pair.tracer);
    let nothing_missed = check.events_lost == 0 && check.packets_unseen == 0 && check.notes.is_empty();
    broken.expect(check.exact == (equal && nothing_missed), || format!("exact is {} with {:?}", check.exact, check));
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Result;

    fn lawful() -> serde_json::Value {
        let ledger = serde_json::json!({
            "attempts": 10, "accepted": 3, "pending": 1,
            "lost": { "total": 6, "by_cause": { "accept-queue-full": 6, "unattributed": 0 }, "untold": 0 },
            "late": { "total": 1, "by_cause": { "accept-queue-full": 1 },
                      "completed_by": { "ack": 1, "data": 0, "fin": 0 } },
            "phantom": 2, "dead_on_arrival": 1,
            "packets": { "syn": 12, "syn_dropped": { "accept-queue-full": 6 }, "synack": 4,
                "synack_cookie": 0, "synack_retransmitted": 0, "ack_dropped": {},
                "cookie_ack_accepted": 0, "cookie_ack_invalid": 0, "cookie_ack_unused": 0 } });
        let counters: serde_json::Map<_, _> =
            CHECKED.iter().map(|name| ((*name).to_owned(), serde_json::json!({ "kernel": 6, "tracer": 6 }))).collect();
        serde_json::json!({
            "schema": "tracer/1",
            "host": { "kernel": "6.1", "hooks": { "accept": "tracepoint" } },
            "window": { "start": "2026-01-01T00:00:00Z", "end": "2026-01-01T00:00:02Z",
                        "seconds": 2.0, "ended_by": "signal" },
            "command": null,
            "totals": ledger,
            "listeners": [ { "port": 80, "address": "::", "netns": 1, "pid": 2, "comm": "server",
                "backlog": { "effective": 3, "somaxconn": 4096, "max_syn_backlog": 128, "syncookies": 1 },
                "accept_queue": { "now": 1, "max": 4 }, "half_open_queue": { "now": 0, "max": 0 },
                "accept_wait_us": { "p50": 1, "p90": 2, "p99": 3, "max": 4 }, "ledger": ledger } ],
            "clients": { "connects": 4, "established": 3, "in_progress": 0, "failed": { "ETIMEDOUT": 1 },
                "by_process": [ { "pid": 1, "comm": "c", "connects": 4, "established": 3, "failed": 1,
                    "fins": { "close": 2, "exit": 1 }, "resets": {} } ],
                "fins": { "close": 2, "shutdown": 0, "exit": 1, "signal": 0, "other": 0 },
                "resets": { "close": 0, "shutdown": 0, "exit": 0, "signal": 0, "other": 0 }, "port_exhaustion": [] },
            "marks": [], "check": { "exact": true, "events_lost": 0, "counters": counters },
            "advice": [] })
    }

    #[test]
    fn a_lawful_report_breaks_nothing_and_each_broken_field_is_found() -> Result<()> {
        assert_eq!(laws(&serde_json::from_value(lawful())?), Vec::<String>::new());
        for (field, value) in [
            ("/schema", serde_json::json!("tracer/2")),
            ("/window/end", serde_json::json!("2026-01-01T00:00:09Z")),
            ("/window/ended_by", serde_json::json!("boredom")),
            ("/host/hooks/accept", serde_json::json!("uprobe")),
            ("/totals/attempts", serde_json::json!(11)),
            ("/totals/lost/total", serde_json::json!(7)),
            ("/totals/lost/by_cause", serde_json::json!({ "accept-queue-full": 6 })),
            ("/totals/lost/by_cause", serde_json::json!({ "unattributed": 0, "bad-luck": 6 })),
            ("/totals/late/completed_by", serde_json::json!({ "ack": 2 })),
            ("/totals/phantom", serde_json::json!(7)),
            ("/listeners/0/ledger/pending", serde_json::json!(0)),
            ("/listeners/0/accept_queue/now", serde_json::json!(5)),
            ("/listeners/0/accept_wait_us/p90", serde_json::json!(0)),
            ("/listeners/0/accept_wait_us", serde_json::Value::Null),
            ("/clients/connects", serde_json::json!(5)),
            ("/clients/fins", serde_json::json!({})),
            ("/clients/fins/close", 1.into()),
            ("/clients/by_process/0/resets", serde_json::json!({ "exit": 1 })),
            ("/check/events_lost", serde_json::json!(1)),
            ("/check/counters/ListenDrops/tracer", serde_json::json!(5)),
            ("/check/exact", serde_json::json!(false)),
        ] {
            let mut report = lawful();
            *report.pointer_mut(field).expect("the lawful report has every field") = value;
            let broken = laws(&serde_json::from_value(report)?);
            assert!(!broken.is_empty(), "a wrong {field} is not noticed");
        }
        Ok(())
    }

    #[test]
    fn what_is_declared_as_unseen_needs_evidence() -> Result<()> {
        let mut report: Report = serde_json::from_value(lawful())?;
        report.check.packets_unseen = 2;
        assert_eq!(hidden_laws(&report, 2), Vec::<String>::new());
        assert_eq!(hidden_laws(&report, 1).len(), 1);
        Ok(())
    }
}
