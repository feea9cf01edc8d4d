//! Everything that a report says, before it is laid out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use tracer_abi::abi::{Cause, Counter, ENDERS, Ender};

use super::Cost;
use crate::ledger::Account;
use crate::observe::{self, Sysctls};

/// What a run found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where.
    pub host: Host,
    /// When.
    pub window: Window,
    /// The command that was run, and how it ended.
    pub command: Option<CommandResult>,
    /// The ports that were asked for; `None` for every listener.
    pub ports: Option<Vec<RangeInclusive<u16>>>,
    /// All attempts: the sum over `listeners` and `without_listener`.
    pub totals: Account,
    /// Attempts that met no listener: refused, filtered before one was found, or failed in `connect()`.
    pub without_listener: Account,
    /// Listeners, in the order in which they are shown.
    pub listeners: Vec<Listener>,
    /// Of the attempts lost as `filtered`, how many by which of the kernel's drop reasons.
    pub filtered: BTreeMap<String, u64>,
    /// The connecting side, as far as it is on this machine.
    pub clients: Clients,
    /// Marks in the timeline.
    pub marks: Vec<Mark>,
    /// The kernel's counters beside the tracer's.
    pub check: Check,
    /// What the tracing itself cost; `None` in recordings of versions that did not measure it.
    pub cost: Option<Cost>,
    /// What to change; see [`super::advice::advise`].
    pub advice: Vec<Advice>,
    /// Facts about the namespaces that `listeners` and `clients` name, by inode number.
    pub namespaces: BTreeMap<u32, Namespace>,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Host {
    /// Release of the kernel, such as `6.12.107`.
    pub kernel: String,
    /// How each hook was attached: `fentry`, `kprobe` or `tracepoint`.
    pub hooks: BTreeMap<String, String>,
    /// Inode number of the tracer's own network namespace.
    pub netns: u32,
}

/// When attempts were counted.
#[derive(Clone, Debug)]
pub struct Window {
    /// From.
    pub start: Timestamp,
    /// To.
    pub end: Timestamp,
    /// Its length by the monotonic clock.
    pub length: Duration,
    /// Why it ended.
    pub ended_by: EndedBy,
}

/// Why counting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// SIGINT or SIGTERM.
    Signal,
    /// `--duration`.
    Duration,
    /// The command had ended.
    Command,
}

/// A command that was run while tracing.
#[derive(Clone, Debug)]
pub struct CommandResult {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Exit status; 128 + N if signal N ended it.
    pub status: i32,
}

/// A listening socket.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Port.
    pub port: u16,
    /// Address that it is bound to.
    pub address: IpAddr,
    /// An IPv6 socket that takes IPv4 as well.
    pub dual_stack: bool,
    /// Inode number of its network namespace.
    pub netns: u32,
    /// The process that holds it or called `listen()`, if it was found.
    pub pid: Option<u32>,
    /// Its name.
    pub comm: Option<String>,
    /// Open at the end of the window.
    pub open: bool,
    /// Member of an SO_REUSEPORT group.
    pub reuseport: bool,
    /// Limits.
    pub backlog: Backlog,
    /// Accept queue length.
    pub accept_queue: Queue,
    /// Half-open queue length.
    pub half_open_queue: Queue,
    /// Time in the accept queue; `None` if nothing was accepted.
    pub accept_wait: Option<AcceptWait>,
    /// Its attempts.
    pub account: Account,
}

/// What limits a listener's queues. The settings count only where [`Report::settings_known`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// The limit in force: the accept queue holds one connection more.
    pub effective: u32,
    /// The second argument of `listen()`, if the call was seen.
    pub asked: Option<u32>,
    /// `net.core.somaxconn` of the namespace, now.
    pub somaxconn: u32,
    /// `net.ipv4.tcp_max_syn_backlog` of the namespace, now.
    pub max_syn_backlog: u32,
    /// `net.ipv4.tcp_syncookies` of the namespace, now.
    pub syncookies: u32,
}

/// The length of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// At the end of the window.
    pub now: u32,
    /// The longest seen.
    pub max: u32,
}

/// How long connections waited for `accept()`, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptWait {
    /// Half of them no longer than this.
    pub p50: u64,
    /// Nine of ten.
    pub p90: u64,
    /// Ninety-nine of a hundred.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

/// Local `connect()` calls to traced ports.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    /// Calls.
    pub connects: u64,
    /// Connections that became established.
    pub established: u64,
    /// Under way at the end.
    pub in_progress: u64,
    /// Failures, by cause id (`port-exhaustion`) or errno name (`ETIMEDOUT`).
    pub failed: BTreeMap<String, u64>,
    /// The calls of each process.
    pub by_process: Vec<ClientProcess>,
    /// Where local ports ran out.
    pub exhausted: Vec<Exhaustion>,
    /// FINs that processes caused; `None` in recordings of versions that did not follow them.
    pub fins: Option<ByEnder>,
    /// RSTs that processes caused, likewise.
    pub resets: Option<ByEnder>,
}

/// FINs or RSTs of local clients, by who caused them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByEnder(
    /// By [`Ender`].
    pub [u64; ENDERS],
);

impl ByEnder {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// With their enders.
    pub fn iter(&self) -> impl Iterator<Item = (Ender, u64)> + '_ {
        Ender::ALL.into_iter().zip(self.0)
    }
}

/// The `connect()` calls of one process.
#[derive(Clone, Debug)]
pub struct ClientProcess {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Calls.
    pub connects: u64,
    /// Connections that became established.
    pub established: u64,
    /// Failures.
    pub failed: u64,
    /// Failures by cause id or errno name, as far as the details were seen.
    pub failed_by: BTreeMap<String, u64>,
    /// FINs that it caused, on connections of its own or inherited ones.
    pub fins: ByEnder,
    /// RSTs, likewise.
    pub resets: ByEnder,
}

/// Connects to one destination that found no free local port.
#[derive(Clone, Debug)]
pub struct Exhaustion {
    /// Network namespace of the client.
    pub netns: u32,
    /// Destination address.
    pub server: IpAddr,
    /// Destination port.
    pub port: u16,
    /// How many.
    pub failed: u64,
    /// What held the ports soon after the first of them; `None` if it could not be looked at.
    pub in_use: Option<PortsInUse>,
}

/// The local ports towards one destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortsInUse {
    /// How many are in use, by state as `ss` names it.
    pub by_state: BTreeMap<String, u64>,
    /// Process, its name, and how many it holds, the greatest number first.
    pub by_process: Vec<(u32, String, u64)>,
    /// Ports of the range that are reserved (`net.ipv4.ip_local_reserved_ports`).
    pub reserved: u16,
    /// `net.ipv4.tcp_tw_reuse`.
    pub tw_reuse: u32,
}

impl PortsInUse {
    /// All that are in use.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_state.values().sum()
    }
}

/// A mark in the timeline.
#[derive(Clone, Debug)]
pub struct Mark {
    /// When, from the start of the window.
    pub at: Duration,
    /// Its name.
    pub label: String,
    /// Whether the user asked for it; else it is the end of a client process.
    pub asked: bool,
    /// Accepted so far.
    pub accepted: u64,
    /// Lost so far.
    pub lost: u64,
}

/// A network namespace.
#[derive(Clone, Debug, Default)]
pub struct Namespace {
    /// The path where it is bound, if it is; the last part is its name.
    pub path: Option<PathBuf>,
    /// `net.ipv4.ip_local_port_range`, first and last; `None` if the namespace has gone.
    pub local_port_range: Option<(u16, u16)>,
}

/// One of the kernel's counters over the window, in the traced namespaces, and what the tracer attributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Which.
    pub counter: Counter,
    /// The kernel's.
    pub kernel: u64,
    /// The tracer's.
    pub tracer: u64,
}

/// What the kernel side had to leave out, as it counted itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// Events that found no room in the ring.
    pub events: u64,
    /// Troubled attempts that found no room in the watch map.
    pub unwatched: u64,
    /// Listeners that found no slot.
    pub listeners: u64,
    /// Network namespaces that found no room.
    pub namespaces: u64,
    /// Local connects that found no room.
    pub connects: u64,
    /// Drops and cookies that the kernel counted and no program was shown.
    pub packets: u64,
}

/// Whether the ledger can be relied upon.
#[derive(Clone, Debug)]
pub struct Check {
    /// Every pair is equal and nothing was missed.
    pub exact: bool,
    /// What was missed.
    pub missed: Missed,
    /// The counters, in the order in which they are shown.
    pub counters: Vec<Pair>,
    /// Why the ledger is not exact, or what else a reader of it must know; one sentence each.
    pub notes: Vec<String>,
}

impl Check {
    /// Judges: exact if every pair is equal and nothing was missed, and otherwise a note for each thing that is wrong.
    #[must_use]
    pub fn new(counters: Vec<Pair>, missed: Missed) -> Check {
        let mut notes = Vec::new();
        let mut note = |n: u64, one: &str, many: &str, effect: &str| match n {
            0 => {}
            1 => notes.push(format!("1 {one}: {effect}")),
            n => notes.push(format!("{} {many}: {effect}", super::format::count(n))),
        };
        note(
            missed.events,
            "event found no room in the ring buffer",
            "events found no room in the ring buffer",
            "counts hold, details of some attempts are missing and their cause may be unattributed",
        );
        note(
            missed.unwatched,
            "troubled attempt found no room to be remembered",
            "troubled attempts found no room to be remembered",
            "a SYN that they repeat counts as another attempt",
        );
        note(missed.listeners, "listener found no room", "listeners found no room", "their attempts are not counted");
        note(
            missed.namespaces,
            "network namespace found no room",
            "network namespaces found no room",
            "attempts there are not counted",
        );
        note(
            missed.connects,
            "local connect() found no room to be followed",
            "local connect() calls found no room to be followed",
            "the numbers of the clients are too low",
        );
        note(
            missed.packets,
            "packet was dropped or answered with a cookie without being shown to a program",
            "packets were dropped or answered with a cookie without being shown to a program",
            "their attempts are known only by other packets",
        );
        for pair in &counters {
            if pair.kernel != pair.tracer {
                let (kernel, tracer) = (super::format::count(pair.kernel), super::format::count(pair.tracer));
                notes.push(format!("{}: the kernel counted {kernel}, the tracer {tracer}", pair.counter.name()));
            }
        }
        Check { exact: notes.is_empty(), missed, counters, notes }
    }

    /// Adds a reason why the ledger is not exact.
    pub fn doubt(&mut self, reason: String) {
        self.exact = false;
        self.notes.push(reason);
    }
}

/// What to change because of a cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// The cause.
    pub cause: Cause,
    /// Sentences; commands stand on lines of their own that begin with four blanks.
    pub text: String,
}

impl Namespace {
    /// From what was observed; `sysctls` is `None` if the namespace could not be entered.
    #[must_use]
    pub fn new(namespace: &observe::Namespace, sysctls: Option<Sysctls>) -> Namespace {
        Namespace {
            path: namespace.name.is_some().then(|| namespace.path.clone()),
            local_port_range: sysctls.map(|s| s.local_port_range),
        }
    }
}

impl Report {
    /// Whether the settings of this namespace were read; if not, those in [`Backlog`] mean nothing.
    #[must_use]
    pub fn settings_known(&self, netns: u32) -> bool {
        self.namespaces.get(&netns).is_some_and(|ns| ns.local_port_range.is_some())
    }

    /// The namespace's name, or its number if it has none.
    #[must_use]
    pub fn netns_label(&self, netns: u32) -> String {
        match self.namespaces.get(&netns).and_then(|ns| ns.path.as_deref()?.file_name()) {
            Some(name) => format!("{} ({netns})", name.display()),
            None => netns.to_string(),
        }
    }
}

impl Listener {
    /// Address and port as `ss` prints them: `*:80` takes IPv4 and IPv6.
    #[must_use]
    pub fn place(&self) -> String {
        super::format::place(self.address, self.port, self.dual_stack)
    }
}
