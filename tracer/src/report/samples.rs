//! Reports made by hand for the tests of the printers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tracer_abi::abi::{Cause, Counter};

use super::advice::advise;
use super::model::*;
use crate::ledger::{Account, ByCause, CompletedBy, Packets};

pub(super) const HOST_NETNS: u32 = 4026531840;
const BLUE: u32 = 4026532210;

pub(super) fn by_cause(pairs: &[(Cause, u64)]) -> ByCause {
    let mut causes = ByCause::default();
    for (cause, n) in pairs {
        causes[*cause] = *n;
    }
    causes
}

fn names(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
    pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
}

fn counters(values: &[(Counter, u64, u64)]) -> Vec<Pair> {
    Counter::ALL
        .into_iter()
        .map(|counter| {
            let value = values.iter().find(|v| v.0 == counter).map_or((0, 0), |v| (v.1, v.2));
            Pair { counter, kernel: value.0, tracer: value.1 }
        })
        .collect()
}

pub(super) fn listener() -> Listener {
    Listener {
        port: 8000,
        address: Ipv4Addr::UNSPECIFIED.into(),
        dual_stack: false,
        netns: HOST_NETNS,
        pid: Some(4242),
        comm: Some("server".into()),
        open: true,
        reuseport: false,
        backlog: Backlog { effective: 128, asked: Some(128), somaxconn: 4096, max_syn_backlog: 2048, syncookies: 1 },
        accept_queue: Queue::default(),
        half_open_queue: Queue::default(),
        accept_wait: None,
        account: Account::default(),
    }
}

/// A quiet run of ten seconds on port 8000 with one listener.
pub(super) fn idle() -> Report {
    let host = Namespace { path: None, local_port_range: Some((32768, 60999)) };
    let blue = Namespace { path: Some("/run/netns/blue".into()), ..host.clone() };
    let hooks = ["accept", "ack_dropped", "syn"].map(|hook| (hook.to_owned(), "tracepoint".to_owned()));
    Report {
        host: Host { kernel: "6.18.44".into(), hooks: hooks.into(), netns: HOST_NETNS },
        window: Window {
            start: "2026-11-22T10:00:00Z".parse().expect("a time"),
            end: "2026-11-22T10:00:10Z".parse().expect("a time"),
            length: Duration::from_secs(10),
            ended_by: EndedBy::Duration,
        },
        command: None,
        ports: Some(vec![8000..=8000]),
        totals: Account::default(),
        without_listener: Account::default(),
        listeners: vec![listener()],
        filtered: BTreeMap::new(),
        clients: Clients::default(),
        marks: Vec::new(),
        check: Check::new(counters(&[]), Missed::default()),
        cost: None,
        advice: Vec::new(),
        namespaces: BTreeMap::from([(HOST_NETNS, host), (BLUE, blue)]),
    }
}

/// The first of the field notes: 20 threads with 1,000 connections each, 19,600 of them accepted.
pub(super) fn field_note_1() -> Report {
    let account = Account {
        attempts: 20_000,
        accepted: 19_600,
        pending: 0,
        lost: by_cause(&[(Cause::AcceptQueueFull, 400)]),
        lost_at_syn: 12,
        late: by_cause(&[(Cause::AcceptQueueFull, 153)]),
        completed_by: CompletedBy { ack: 100, data: 50, fin: 3 },
        phantom: 388,
        dead_on_arrival: 12,
        packets: Packets {
            syn: 20_024,
            syn_dropped: by_cause(&[(Cause::AcceptQueueFull, 36)]),
            synack: 19_988,
            synack_retransmitted: 2_705,
            ack_dropped: by_cause(&[(Cause::AcceptQueueFull, 3_246)]),
            ..Packets::default()
        },
        ..Account::default()
    };
    let mut report = idle();
    report.window.length = Duration::from_micros(12_345_678);
    report.window.ended_by = EndedBy::Command;
    let argv = ["./load-test", "--threads", "20", "--connections", "1000"].map(String::from).to_vec();
    report.command = Some(CommandResult { argv, status: 0 });
    report.totals = account;
    report.listeners[0].account = account;
    report.listeners[0].accept_queue = Queue { now: 0, max: 129 };
    report.listeners[0].half_open_queue = Queue { now: 0, max: 117 };
    report.listeners[0].accept_wait = Some(AcceptWait { p50: 12, p90: 40, p99: 900, max: 5_000_000 });
    report.clients = Clients {
        connects: 20_000,
        established: 19_988,
        failed: names(&[("ETIMEDOUT", 12)]),
        fins: Some(ByEnder([0, 0, 0, 19_988, 0])),
        resets: Some(ByEnder::default()),
        ..Clients::default()
    };
    report.clients.by_process.push(ClientProcess {
        pid: 4243,
        comm: "load-test".into(),
        connects: 20_000,
        established: 19_988,
        failed: 12,
        failed_by: names(&[("ETIMEDOUT", 12)]),
        fins: ByEnder([0, 0, 0, 19_988, 0]),
        resets: ByEnder::default(),
    });
    report.check = Check::new(
        counters(&[(Counter::ListenDrops, 3_282, 3_282), (Counter::ListenOverflows, 3_282, 3_282)]),
        Missed::default(),
    );
    report.advice = advise(&report);
    report
}

/// Everything at once: two namespaces, a group, a closed listener, a half-open queue with its reserve, clients without
/// ports, a firewall, marks, and a ledger that is not exact.
pub(super) fn trouble() -> Report {
    let mut report = idle();
    report.ports = None;
    report.window.ended_by = EndedBy::Signal;

    let flooded = Account {
        attempts: 30,
        pending: 13,
        lost: by_cause(&[(Cause::HalfOpenQueueFull, 17)]),
        packets: Packets {
            syn: 30,
            syn_dropped: by_cause(&[(Cause::HalfOpenQueueFull, 17)]),
            syn_dropped_reserve: 17,
            synack: 13,
            synack_retransmitted: 13,
            ..Packets::default()
        },
        ..Account::default()
    };
    let mut flooded_listener = listener();
    flooded_listener.backlog =
        Backlog { effective: 128, asked: None, somaxconn: 4096, max_syn_backlog: 16, syncookies: 0 };
    flooded_listener.half_open_queue = Queue { now: 13, max: 13 };
    flooded_listener.account = flooded;

    let cookies = Account {
        attempts: 40,
        accepted: 30,
        lost: by_cause(&[(Cause::SyncookieAckDropped, 9), (Cause::Unattributed, 1)]),
        phantom: 9,
        packets: Packets {
            syn: 40,
            synack: 6,
            synack_cookie: 34,
            ack_dropped: by_cause(&[(Cause::SyncookieAckDropped, 11)]),
            cookie_ack_accepted: 24,
            cookie_ack_invalid: 2,
            ..Packets::default()
        },
        ..Account::default()
    };
    let mut cookie_listener = listener();
    cookie_listener.address = Ipv6Addr::UNSPECIFIED.into();
    cookie_listener.dual_stack = true;
    cookie_listener.netns = BLUE;
    cookie_listener.pid = Some(77);
    cookie_listener.comm = Some("slow".into());
    cookie_listener.reuseport = true;
    cookie_listener.backlog =
        Backlog { effective: 5, asked: Some(4096), somaxconn: 5, max_syn_backlog: 2048, syncookies: 1 };
    cookie_listener.accept_queue = Queue { now: 6, max: 6 };
    cookie_listener.half_open_queue = Queue { now: 0, max: 6 };
    cookie_listener.accept_wait = Some(AcceptWait { p50: 150_000, p90: 220_000, p99: 250_000, max: 260_000 });
    cookie_listener.account = cookies;

    let closed = Account {
        attempts: 4,
        lost: by_cause(&[(Cause::ListenerClosed, 4)]),
        phantom: 4,
        packets: Packets { syn: 4, synack: 4, ..Packets::default() },
        ..Account::default()
    };
    let mut closed_listener = listener();
    closed_listener.port = 9000;
    closed_listener.address = Ipv6Addr::LOCALHOST.into();
    closed_listener.pid = None;
    closed_listener.comm = None;
    closed_listener.open = false;
    closed_listener.accept_queue = Queue { now: 0, max: 4 };
    closed_listener.account = closed;

    report.without_listener = Account {
        attempts: 14,
        lost: by_cause(&[(Cause::PortExhaustion, 5), (Cause::NoListener, 2), (Cause::Filtered, 7)]),
        packets: Packets {
            syn: 9,
            syn_dropped: by_cause(&[(Cause::NoListener, 2), (Cause::Filtered, 7)]),
            ..Packets::default()
        },
        ..Account::default()
    };
    report.filtered = names(&[("NETFILTER_DROP", 6), ("TCP_CSUM", 1)]);
    report.totals = flooded + cookies + closed + report.without_listener;
    report.listeners = vec![flooded_listener, cookie_listener, closed_listener, listener()];
    report.clients = Clients {
        connects: 31,
        established: 17,
        in_progress: 1,
        failed: names(&[("ECONNREFUSED", 2), ("ETIMEDOUT", 6), ("port-exhaustion", 5)]),
        by_process: vec![
            ClientProcess {
                pid: 501,
                comm: "good".into(),
                connects: 12,
                established: 12,
                failed: 0,
                failed_by: BTreeMap::new(),
                fins: ByEnder([2, 0, 10, 0, 0]),
                resets: ByEnder::default(),
            },
            ClientProcess {
                pid: 502,
                comm: "greedy".into(),
                connects: 19,
                established: 5,
                failed: 13,
                failed_by: names(&[("ECONNREFUSED", 2), ("ETIMEDOUT", 6), ("port-exhaustion", 5)]),
                fins: ByEnder::default(),
                resets: ByEnder([5, 0, 0, 0, 0]),
            },
        ],
        exhausted: vec![Exhaustion {
            netns: BLUE,
            server: IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1)),
            port: 8000,
            failed: 5,
            in_use: Some(PortsInUse {
                by_state: names(&[("ESTAB", 28_000), ("TIME-WAIT", 230)]),
                by_process: vec![(502, "greedy".into(), 27_000), (501, "good".into(), 1_000)],
                reserved: 2,
                tw_reuse: 2,
            }),
        }],
        fins: Some(ByEnder([2, 0, 10, 0, 0])),
        resets: Some(ByEnder([5, 0, 0, 0, 0])),
    };
    report.marks = vec![
        Mark { at: Duration::from_millis(3_200), label: "client stopped".into(), asked: false, accepted: 20, lost: 11 },
        Mark { at: Duration::from_micros(7_654_321), label: "mark 2".into(), asked: true, accepted: 30, lost: 44 },
    ];
    report.check = Check::new(
        counters(&[
            (Counter::ListenDrops, 29, 28),
            (Counter::ListenOverflows, 11, 11),
            (Counter::ReqQFullDoCookies, 34, 34),
            (Counter::SyncookiesSent, 34, 34),
            (Counter::SyncookiesRecv, 35, 35),
            (Counter::SyncookiesFailed, 2, 2),
        ]),
        Missed { events: 1_024, ..Missed::default() },
    );
    report.advice = advise(&report);
    report
}
