//! From facts and events to the report's model.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use tracer_abi::abi::{Address, Counter, ENDERS, Global, NO_LISTENER};

use super::{
    facts::{Facts, ListenerFacts, NamespaceFacts, PortsFacts},
    story::{Story, note},
};
use crate::{
    ledger::{Account, Decision, SlotTotals},
    report::{
        AcceptWait, Backlog, ByEnder, Check, ClientProcess, Clients, CommandResult, Host, Listener, Missed, Namespace,
        Pair, Queue, Report, Window, address, advice,
    },
};

/// Counters that the contract shows first, then the two that explain the rest.
const SHOWN: [Counter; 9] = [
    Counter::ListenDrops,
    Counter::ListenOverflows,
    Counter::ReqQFullDrop,
    Counter::ReqQFullDoCookies,
    Counter::SyncookiesSent,
    Counter::SyncookiesRecv,
    Counter::SyncookiesFailed,
    Counter::DeferAcceptDrop,
    Counter::EmbryonicRsts,
];

/// Ends the story: the last decisions are told, and everything is put together.
pub(super) fn assemble(facts: &Facts, story: Story, told: &mut dyn FnMut(&Decision)) -> Report {
    let mut exhausted = story.exhausted();
    for destination in &mut exhausted {
        let here =
            |p: &&PortsFacts| (p.netns, p.server, p.port) == (destination.netns, destination.server, destination.port);
        destination.in_use = facts.ports_in_use.iter().find(here).map(PortsFacts::ports);
    }
    let Story { mut ledger, failed, failed_by, mut filtered, .. } = story;
    // The kernel side's memory is asked only where its events have a gap.
    if facts.globals.get(Global::EventsLost as usize).is_none_or(|lost| *lost > 0) {
        for watched in &facts.watched {
            let (tuple, watch) = watched.entry();
            ledger.reconcile(&tuple, &watch);
        }
    }
    let (unstored, unreadable) = (ledger.unstored(), ledger.unreadable());
    let accounts: BTreeMap<u32, Account> = ledger
        .finish(&facts.slots, facts.end_ns, &mut |decision| {
            note(&mut filtered, &decision);
            told(&decision);
        })
        .into_iter()
        .collect();
    let account = |slot: u32| accounts.get(&slot).copied().unwrap_or_default();
    let totals = accounts.values().fold(Account::default(), |sum, a| sum + *a);
    let slots: BTreeMap<u32, &SlotTotals> = facts.slots.iter().map(|(slot, t)| (*slot, t)).collect();
    let settings: BTreeMap<u32, &NamespaceFacts> = facts.namespaces.iter().map(|n| (n.netns, n)).collect();

    let mut listeners: Vec<Listener> =
        facts.listeners.iter().map(|l| listener(l, slots.get(&l.slot).copied(), &settings, account(l.slot))).collect();
    listeners.sort_by_key(|l| (l.netns, l.port, l.address));

    let global = |which: Global| facts.globals.get(which as usize).copied().unwrap_or(0);
    let mut report = Report {
        host: Host { kernel: facts.kernel.clone(), hooks: facts.hooks.clone(), netns: facts.own_netns },
        window: Window {
            start: facts.start,
            end: facts.end,
            length: Duration::from_nanos(facts.end_ns.saturating_sub(facts.start_ns)),
            ended_by: facts.ended_by.into(),
        },
        command: facts.command.as_ref().map(|c| CommandResult { argv: c.argv.clone(), status: c.status }),
        ports: facts.ports.as_ref().map(|ranges| ranges.iter().map(|(first, last)| *first..=*last).collect()),
        totals,
        without_listener: account(NO_LISTENER),
        listeners,
        filtered: filtered
            .into_iter()
            .map(|(reason, n)| (facts.drop_reasons.get(&reason).cloned().unwrap_or_else(|| format!("{reason}")), n))
            .collect(),
        clients: Clients {
            connects: global(Global::Connects),
            established: global(Global::Established),
            in_progress: global(Global::Connects)
                .saturating_sub(global(Global::Established) + global(Global::ConnectFailed)),
            failed,
            by_process: facts
                .processes
                .iter()
                .map(|p| ClientProcess {
                    pid: p.pid,
                    comm: p.comm.clone(),
                    connects: p.connects,
                    established: p.established,
                    failed: p.failed,
                    failed_by: failed_by.get(&p.pid).cloned().unwrap_or_default(),
                    fins: p.fins.map_or_else(ByEnder::default, ByEnder),
                    resets: p.resets.map_or_else(ByEnder::default, ByEnder),
                })
                .collect(),
            exhausted,
            fins: by_ender(facts, Global::Fins),
            resets: by_ender(facts, Global::Resets),
        },
        marks: facts.marks.iter().map(super::facts::MarkFacts::mark).collect(),
        check: check(facts, global),
        cost: facts.cost.clone(),
        advice: Vec::new(),
        namespaces: facts
            .namespaces
            .iter()
            .map(|n| {
                let namespace = Namespace { path: n.path.clone(), local_port_range: n.local_port_range };
                (n.netns, namespace)
            })
            .collect(),
    };
    if unstored > 0 {
        report.check.doubt(format!("{unstored} troubled attempts found no room in the ledger"));
    }
    if unreadable > 0 {
        report.check.doubt(format!("{unreadable} events were of a kind that this version does not know"));
    }
    if report.totals.inconsistent > 0 {
        report.check.doubt(format!("{} attempts were counted at odds with each other", report.totals.inconsistent));
    }
    let mut doubts = Vec::new();
    for listener in report.listeners.iter().filter(|l| l.account.accepted_unseen > 0) {
        doubts.push(format!(
            "{} of the {} connections that {} accepted left its accept queue without an accept() that was seen \
             (io_uring or an in-kernel server, for instance)",
            listener.account.accepted_unseen,
            listener.account.accepted,
            SocketAddr::new(listener.address, listener.port),
        ));
    }
    for doubt in doubts.iter().chain(&facts.doubts) {
        report.check.doubt(doubt.clone());
    }
    if !report.totals.balances() || report.listeners.iter().any(|l| !l.account.balances()) {
        report.check.doubt("the ledger does not balance: this is an error in tracer; please report it".to_owned());
    }
    report.advice = advice::advise(&report);
    report
}

fn listener(
    facts: &ListenerFacts,
    totals: Option<&SlotTotals>,
    settings: &BTreeMap<u32, &NamespaceFacts>,
    account: Account,
) -> Listener {
    let namespace = settings.get(&facts.netns);
    let wildcard_v6 = facts.family != libc::AF_INET as u16 && facts.address == [0; 16];
    let wait = totals.and_then(|t| {
        Some(AcceptWait {
            p50: t.percentile(50.0)?,
            p90: t.percentile(90.0)?,
            p99: t.percentile(99.0)?,
            max: t.wait_max_us,
        })
    });
    Listener {
        port: facts.port,
        address: address(Address::new(facts.address)),
        dual_stack: wildcard_v6 && !facts.v6only,
        netns: facts.netns,
        pid: facts.pid,
        comm: facts.comm.clone(),
        open: facts.open,
        reuseport: facts.reuseport,
        backlog: Backlog {
            effective: facts.backlog,
            asked: facts.asked,
            somaxconn: namespace.map_or(0, |n| n.somaxconn),
            max_syn_backlog: namespace.map_or(0, |n| n.max_syn_backlog),
            syncookies: namespace.map_or(0, |n| n.syncookies),
        },
        accept_queue: Queue {
            now: if facts.open { facts.accept_queue } else { 0 },
            max: totals.map_or(0, |t| t.max_accept_queue).max(facts.accept_queue),
        },
        half_open_queue: Queue {
            now: if facts.open { facts.half_open } else { 0 },
            max: totals.map_or(0, |t| t.max_half_open).max(facts.half_open),
        },
        accept_wait: wait,
        account,
    }
}

/// The kernel's counters beside what was given to packets, over all traced namespaces.
/// The counters of enders that begin with this one; `None` where the recording is of a version that had none.
fn by_ender(facts: &Facts, first: Global) -> Option<ByEnder> {
    let counters = facts.globals.get(first as usize..first as usize + ENDERS)?;
    counters.try_into().ok().map(ByEnder)
}

fn check(facts: &Facts, global: impl Fn(Global) -> u64) -> Check {
    let sum = |pick: &dyn Fn(&super::facts::CounterFacts) -> u64| facts.counters.iter().map(pick).sum();
    let pairs = SHOWN
        .into_iter()
        .map(|counter| Pair {
            counter,
            kernel: sum(&|n| n.kernel[counter as usize]),
            tracer: sum(&|n| n.tracer[counter as usize]),
        })
        .collect();
    Check::new(
        pairs,
        Missed {
            events: global(Global::EventsLost),
            unwatched: global(Global::Unwatched),
            listeners: global(Global::ListenersUnseen),
            namespaces: global(Global::NetsUnseen),
            connects: global(Global::ConnectsUnseen),
            packets: global(Global::DropsUnseen),
        },
    )
}
