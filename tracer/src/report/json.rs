//! The report as JSON, as the contract fixes it. These types only serialise; nothing else uses them.
//!
//! Objects keyed by cause hold the causes that are not 0, and `unattributed` always.

mod clients;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;

use serde::{Serialize, Serializer};
use tracer_abi::abi::Cause;

use super::Cost;
use super::model::{self, EndedBy, Report};
use crate::ledger::{Account, ByCause};
use clients::Clients;

pub(super) const SCHEMA: &str = "tracer/1";

/// Writes the report as one JSON object on one line.
///
/// # Errors
/// When `out` cannot be written.
pub fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    // One write, so that a reader never sees half a line.
    let mut text = serde_json::to_vec(&Wire::new(report))?;
    text.push(b'\n');
    out.write_all(&text)
}

#[derive(Serialize)]
struct Wire<'a> {
    schema: &'static str,
    host: Host<'a>,
    window: Window,
    command: Option<Command<'a>>,
    totals: Ledger,
    listeners: Vec<Listener<'a>>,
    without_listener: Ledger,
    filtered: &'a BTreeMap<String, u64>,
    clients: Clients<'a>,
    marks: Vec<Mark<'a>>,
    check: Check<'a>,
    cost: Option<&'a Cost>,
    advice: Vec<Advice<'a>>,
}

#[derive(Serialize)]
struct Host<'a> {
    kernel: &'a str,
    hooks: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Window {
    start: String,
    end: String,
    seconds: f64,
    ended_by: &'static str,
}

#[derive(Serialize)]
struct Command<'a> {
    argv: &'a [String],
    status: i32,
}

#[derive(Serialize)]
struct Listener<'a> {
    port: u16,
    address: IpAddr,
    netns: u32,
    pid: Option<u32>,
    comm: Option<&'a str>,
    state: &'static str,
    reuseport: bool,
    backlog: Backlog,
    accept_queue: Queue,
    half_open_queue: Queue,
    accept_wait_us: Option<AcceptWait>,
    ledger: Ledger,
}

#[derive(Serialize)]
struct Backlog {
    effective: u32,
    asked: Option<u32>,
    /// Null, as the next two, if the namespace had gone before its settings could be read.
    somaxconn: Option<u32>,
    max_syn_backlog: Option<u32>,
    syncookies: Option<u32>,
}

#[derive(Serialize)]
struct Queue {
    now: u32,
    max: u32,
}

#[derive(Serialize)]
struct AcceptWait {
    p50: u64,
    p90: u64,
    p99: u64,
    max: u64,
}

#[derive(Serialize)]
struct Mark<'a> {
    at_seconds: f64,
    label: &'a str,
    accepted: u64,
    lost: u64,
}

#[derive(Serialize)]
struct Check<'a> {
    exact: bool,
    events_lost: u64,
    unwatched: u64,
    packets_unseen: u64,
    counters: BTreeMap<&'static str, Pair>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct Pair {
    kernel: u64,
    tracer: u64,
}

#[derive(Serialize)]
struct Advice<'a> {
    cause: &'static str,
    text: &'a str,
}

#[derive(Serialize)]
struct Ledger {
    attempts: u64,
    accepted: u64,
    pending: u64,
    lost: Lost,
    late: Late,
    phantom: u64,
    dead_on_arrival: u64,
    packets: Packets,
}

#[derive(Serialize)]
struct Lost {
    total: u64,
    by_cause: Causes,
    at_syn: u64,
    reset: u64,
    untold: u64,
}

#[derive(Serialize)]
struct Late {
    total: u64,
    by_cause: Causes,
    completed_by: CompletedBy,
}

#[derive(Serialize)]
struct CompletedBy {
    ack: u64,
    data: u64,
    fin: u64,
}

#[derive(Serialize)]
struct Packets {
    syn: u64,
    syn_dropped: Causes,
    syn_dropped_reserve: u64,
    synack: u64,
    synack_cookie: u64,
    synack_retransmitted: u64,
    ack_dropped: Causes,
    cookie_ack_accepted: u64,
    cookie_ack_invalid: u64,
    cookie_ack_unused: u64,
}

struct Causes(ByCause);

impl Serialize for Causes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shown = |cause: &Cause| self.0[*cause] > 0 || *cause == Cause::Unattributed;
        serializer.collect_map(Cause::ALL.into_iter().filter(shown).map(|cause| (cause.id(), self.0[cause])))
    }
}

/// Seconds to the microsecond: more digits would be noise.
pub(super) fn seconds(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e6
}

impl<'a> Wire<'a> {
    fn new(report: &'a Report) -> Wire<'a> {
        Wire {
            schema: SCHEMA,
            host: Host { kernel: &report.host.kernel, hooks: &report.host.hooks },
            window: Window {
                start: format!("{:.6}", report.window.start),
                end: format!("{:.6}", report.window.end),
                seconds: seconds(report.window.length),
                ended_by: match report.window.ended_by {
                    EndedBy::Signal => "signal",
                    EndedBy::Duration => "duration",
                    EndedBy::Command => "command",
                },
            },
            command: report.command.as_ref().map(|c| Command { argv: &c.argv, status: c.status }),
            totals: Ledger::new(&report.totals),
            listeners: report.listeners.iter().map(|l| Listener::new(l, report.settings_known(l.netns))).collect(),
            without_listener: Ledger::new(&report.without_listener),
            filtered: &report.filtered,
            clients: Clients::new(report),
            marks: report.marks.iter().map(Mark::new).collect(),
            check: Check {
                exact: report.check.exact,
                events_lost: report.check.missed.events,
                unwatched: report.check.missed.unwatched,
                packets_unseen: report.check.missed.packets,
                counters: report
                    .check
                    .counters
                    .iter()
                    .map(|p| (p.counter.name(), Pair { kernel: p.kernel, tracer: p.tracer }))
                    .collect(),
                notes: &report.check.notes,
            },
            cost: report.cost.as_ref(),
            advice: report.advice.iter().map(|a| Advice { cause: a.cause.id(), text: &a.text }).collect(),
        }
    }
}

impl<'a> Listener<'a> {
    fn new(listener: &'a model::Listener, settings_known: bool) -> Listener<'a> {
        let model::Backlog { effective, asked, somaxconn, max_syn_backlog, syncookies } = listener.backlog;
        let setting = |value: u32| settings_known.then_some(value);
        let queue = |queue: model::Queue| Queue { now: queue.now, max: queue.max };
        Listener {
            port: listener.port,
            address: listener.address,
            netns: listener.netns,
            pid: listener.pid,
            comm: listener.comm.as_deref(),
            state: if listener.open { "open" } else { "closed" },
            reuseport: listener.reuseport,
            backlog: Backlog {
                effective,
                asked,
                somaxconn: setting(somaxconn),
                max_syn_backlog: setting(max_syn_backlog),
                syncookies: setting(syncookies),
            },
            accept_queue: queue(listener.accept_queue),
            half_open_queue: queue(listener.half_open_queue),
            accept_wait_us: listener.accept_wait.map(|w| AcceptWait { p50: w.p50, p90: w.p90, p99: w.p99, max: w.max }),
            ledger: Ledger::new(&listener.account),
        }
    }
}

impl<'a> Mark<'a> {
    fn new(mark: &'a model::Mark) -> Mark<'a> {
        Mark { at_seconds: seconds(mark.at), label: &mark.label, accepted: mark.accepted, lost: mark.lost }
    }
}

impl Ledger {
    fn new(account: &Account) -> Ledger {
        let packets = &account.packets;
        Ledger {
            attempts: account.attempts,
            accepted: account.accepted,
            pending: account.pending,
            lost: Lost {
                total: account.lost.total(),
                by_cause: Causes(account.lost),
                untold: account.untold,
                at_syn: account.lost_at_syn,
                reset: account.lost_with_reset,
            },
            late: Late {
                total: account.late.total(),
                by_cause: Causes(account.late),
                completed_by: CompletedBy {
                    ack: account.completed_by.ack,
                    data: account.completed_by.data,
                    fin: account.completed_by.fin,
                },
            },
            phantom: account.phantom,
            dead_on_arrival: account.dead_on_arrival,
            packets: Packets {
                syn: packets.syn,
                syn_dropped: Causes(packets.syn_dropped),
                syn_dropped_reserve: packets.syn_dropped_reserve,
                synack: packets.synack,
                synack_cookie: packets.synack_cookie,
                synack_retransmitted: packets.synack_retransmitted,
                ack_dropped: Causes(packets.ack_dropped),
                cookie_ack_accepted: packets.cookie_ack_accepted,
                cookie_ack_invalid: packets.cookie_ack_invalid,
                cookie_ack_unused: packets.cookie_ack_unused,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::samples;
    use super::*;

    fn json(report: &Report) -> Value {
        let mut text = Vec::new();
        write(report, &mut text).expect("memory");
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
        serde_json::from_slice(&text).expect("JSON")
    }

    const LEDGER: &str = "attempts accepted pending lost.total lost.by_cause late.total late.by_cause \
        late.completed_by.ack late.completed_by.data late.completed_by.fin phantom dead_on_arrival packets.syn \
        packets.syn_dropped packets.synack packets.synack_cookie packets.synack_retransmitted packets.ack_dropped \
        packets.cookie_ack_accepted packets.cookie_ack_invalid";

    fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
        path.split('.').try_fold(value, |value, key| match key.parse::<usize>() {
            Ok(index) => value.get(index),
            Err(_) => value.get(key),
        })
    }

    /// The keys that the contract fixes are there, with its nesting.
    #[test]
    fn every_key_of_the_contract_is_in_its_place() {
        let json = json(&samples::trouble());
        let paths = "schema host.kernel host.hooks.syn window.start window.end window.seconds window.ended_by command \
            listeners.0.port listeners.0.address listeners.0.netns listeners.0.pid listeners.0.comm \
            listeners.0.backlog.effective listeners.0.backlog.somaxconn listeners.0.backlog.max_syn_backlog \
            listeners.0.backlog.syncookies listeners.0.accept_queue.now listeners.0.accept_queue.max \
            listeners.0.half_open_queue.now listeners.0.half_open_queue.max listeners.1.accept_wait_us.p50 \
            listeners.1.accept_wait_us.p90 listeners.1.accept_wait_us.p99 listeners.1.accept_wait_us.max \
            clients.connects clients.established clients.in_progress clients.failed.port-exhaustion \
            clients.by_process.0.pid clients.by_process.0.comm clients.by_process.0.connects \
            clients.by_process.0.established clients.by_process.0.failed clients.fins.close clients.fins.shutdown \
            clients.fins.exit clients.fins.signal clients.fins.other marks.0.at_seconds marks.0.label \
            marks.0.accepted marks.0.lost check.exact check.events_lost check.counters.ListenDrops.kernel \
            check.counters.ListenDrops.tracer check.counters.ListenOverflows check.counters.TCPReqQFullDrop \
            check.counters.TCPReqQFullDoCookies check.counters.SyncookiesSent check.counters.SyncookiesRecv \
            check.counters.SyncookiesFailed advice.0.cause advice.0.text";
        let ledgers = ["totals", "listeners.0.ledger", "without_listener"]
            .into_iter()
            .flat_map(|ledger| LEDGER.split_whitespace().map(move |key| format!("{ledger}.{key}")));
        for path in paths.split_whitespace().map(String::from).chain(ledgers) {
            assert!(at(&json, &path).is_some(), "{path}");
        }
    }

    #[test]
    fn what_is_not_known_is_null() {
        let json = json(&samples::trouble());
        assert_eq!(at(&json, "command"), Some(&Value::Null));
        assert_eq!(at(&json, "listeners.0.backlog.asked"), Some(&Value::Null));
        assert_eq!(at(&json, "listeners.0.accept_wait_us"), Some(&Value::Null));
        assert_eq!(at(&json, "listeners.2.pid"), Some(&Value::Null));
    }

    #[test]
    fn settings_of_a_namespace_that_has_gone_are_null() {
        let mut report = samples::field_note_1();
        report.namespaces.clear();
        let json = json(&report);
        assert_eq!(at(&json, "listeners.0.backlog.somaxconn"), Some(&Value::Null));
        assert_eq!(at(&json, "listeners.0.backlog.effective"), Some(&128.into()));
    }

    #[test]
    fn causes_are_listed_if_they_happened_and_unattributed_always() {
        let json = json(&samples::field_note_1());
        let by_cause = at(&json, "totals.lost.by_cause").expect("a key of the contract");
        assert_eq!(by_cause, &serde_json::json!({ "accept-queue-full": 400, "unattributed": 0 }));
        assert_eq!(at(&json, "totals.lost.at_syn"), Some(&12.into()));
    }

    #[test]
    fn values_are_written_as_the_contract_shows_them() {
        let json = json(&samples::field_note_1());
        for (path, value) in [
            ("schema", Value::from("tracer/1")),
            ("window.start", "2026-11-22T10:00:00.000000Z".into()),
            ("window.seconds", 12.345678.into()),
            ("window.ended_by", "command".into()),
            ("command.argv.2", "20".into()),
            ("command.status", 0.into()),
            ("listeners.0.address", "0.0.0.0".into()),
            ("listeners.0.state", "open".into()),
            ("check.exact", true.into()),
            ("check.counters.ListenDrops", serde_json::json!({ "kernel": 3282, "tracer": 3282 })),
        ] {
            assert_eq!(at(&json, path), Some(&value), "{path}");
        }
    }

    #[test]
    fn the_printed_ledgers_balance_and_add_up() {
        let json = json(&samples::trouble());
        let number = |path: &str| at(&json, path).and_then(Value::as_u64).expect("a number");
        let mut sum = number("without_listener.attempts");
        for i in 0..4 {
            sum += number(&format!("listeners.{i}.ledger.attempts"));
        }
        assert_eq!(sum, number("totals.attempts"));
        assert_eq!(
            number("totals.attempts"),
            number("totals.accepted") + number("totals.pending") + number("totals.lost.total")
        );
    }
}
