//! What the events tell: the ledger, and the few things that only events have.

use std::{collections::BTreeMap, net::IpAddr};

use tracer_abi::abi::{Cause, Event, EventKind};

use crate::{
    ledger::{Decision, Ledger, Outcome},
    report::{Exhaustion, address, comm},
};

/// Troubled attempts that are kept at a time: as many as the kernel side watches, and half as many again.
const CAPACITY: usize = 200_000;

/// Destinations and processes whose failed connects are told apart.
const FAILURES: usize = 4096;

/// Where a `connect()` goes: network namespace, address, port.
pub(super) type Destination = (u32, IpAddr, u16);

/// Everything that events add to.
pub(super) struct Story {
    pub(super) ledger: Ledger,
    /// Failed local connects by cause id or errno name.
    pub(super) failed: BTreeMap<String, u64>,
    /// The same by process.
    pub(super) failed_by: BTreeMap<u32, BTreeMap<String, u64>>,
    exhausted: BTreeMap<Destination, u64>,
    /// Attempts lost as `filtered`, by drop reason.
    pub(super) filtered: BTreeMap<u32, u64>,
}

impl Story {
    pub(super) fn new() -> Story {
        Story {
            ledger: Ledger::new(CAPACITY),
            failed: BTreeMap::new(),
            failed_by: BTreeMap::new(),
            exhausted: BTreeMap::new(),
            filtered: BTreeMap::new(),
        }
    }

    /// Takes note of an event; `told` gets the decisions it brings.
    pub(super) fn apply(&mut self, event: &Event, told: &mut dyn FnMut(&Decision)) {
        match EventKind::from_u8(event.kind) {
            Some(EventKind::ConnectFailed) => self.connect_failed(event),
            // Of clients, not of attempts: nothing that a ledger keeps.
            Some(EventKind::ClientEnded | EventKind::ProcessExited) => return,
            _ => {}
        }
        let filtered = &mut self.filtered;
        self.ledger.apply(event, &mut |decision| {
            note(filtered, &decision);
            told(&decision);
        });
    }

    /// Lets time pass: what has been silent for too long is decided.
    pub(super) fn tick(&mut self, now_ns: u64, told: &mut dyn FnMut(&Decision)) {
        let filtered = &mut self.filtered;
        self.ledger.tick(now_ns, &mut |decision| {
            note(filtered, &decision);
            told(&decision);
        });
    }

    fn connect_failed(&mut self, event: &Event) {
        let name = if event.cause == Cause::PortExhaustion as u8 {
            Cause::PortExhaustion.id().to_owned()
        } else {
            errno_name(event.detail)
        };
        *self.failed.entry(name.clone()).or_default() += 1;
        if self.failed_by.len() < FAILURES || self.failed_by.contains_key(&event.pid) {
            *self.failed_by.entry(event.pid).or_default().entry(name).or_default() += 1;
        }
        if event.cause == Cause::PortExhaustion as u8 {
            let key = (event.tuple.netns, address(event.tuple.server), event.tuple.port);
            if self.exhausted.len() < FAILURES || self.exhausted.contains_key(&key) {
                *self.exhausted.entry(key).or_default() += 1;
            }
        }
    }

    /// Where local ports ran out.
    pub(super) fn exhausted(&self) -> Vec<Exhaustion> {
        let exhaustion = |((netns, server, port), failed): (&Destination, &u64)| Exhaustion {
            netns: *netns,
            server: *server,
            port: *port,
            failed: *failed,
            in_use: None,
        };
        self.exhausted.iter().map(exhaustion).collect()
    }

    /// The destinations for which local ports ran out.
    pub(super) fn destinations(&self) -> impl Iterator<Item = &Destination> {
        self.exhausted.keys()
    }
}

/// Counts the drop reason of a filtered attempt.
pub(super) fn note(filtered: &mut BTreeMap<u32, u64>, decision: &Decision) {
    if decision.outcome == Outcome::Lost && decision.cause == Cause::Filtered {
        *filtered.entry(decision.reason).or_default() += 1;
    }
}

/// How the end of a process is called in the timeline.
pub(super) fn exit_label(event: &Event) -> String {
    let name = format!("{} (pid {})", comm(&event.comm), event.pid);
    match event.detail & 0x7f {
        0 => format!("{name} exited with status {}", event.detail >> 8 & 0xff),
        signal => format!("{name} was ended by {}", signal_name(signal)),
    }
}

fn signal_name(signal: u32) -> String {
    let name = match signal as i32 {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGUSR2 => "SIGUSR2",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

/// The name of an errno that `connect()` gives; 0 is a socket that its program closed before it was connected.
fn errno_name(errno: u32) -> String {
    let name = match errno as i32 {
        0 => "closed",
        libc::EPERM => "EPERM",
        libc::EINTR => "EINTR",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EADDRINUSE => "EADDRINUSE",
        libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
        libc::ENETDOWN => "ENETDOWN",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::ECONNABORTED => "ECONNABORTED",
        libc::ECONNRESET => "ECONNRESET",
        libc::ENOBUFS => "ENOBUFS",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::EHOSTDOWN => "EHOSTDOWN",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::EPROTO => "EPROTO",
        libc::ENOPROTOOPT => "ENOPROTOOPT",
        other => return format!("errno {other}"),
    };
    name.to_owned()
}
