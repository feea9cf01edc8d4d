//! A typed view of the tracer's JSON, field by field as the contract names
//! them. A field that is missing or of another type fails the parse; fields
//! that the contract does not know are passed over, since it may grow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::traffic::canonical;

/// Counts by cause id, by counter name or by errno name.
pub type Counts = BTreeMap<String, u64>;

/// The summary object.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Report {
    pub schema: String,
    pub host: Host,
    pub window: Window,
    pub command: Option<CommandRun>,
    pub totals: Ledger,
    pub listeners: Vec<ListenerReport>,
    pub clients: Clients,
    pub marks: Vec<Mark>,
    pub check: Check,
    pub advice: Vec<Advice>,
}

/// `host`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Host {
    pub kernel: String,
    pub hooks: BTreeMap<String, String>,
}

/// `window`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Window {
    pub start: String,
    pub end: String,
    pub seconds: f64,
    pub ended_by: String,
}

/// `command`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct CommandRun {
    pub argv: Vec<String>,
    pub status: i32,
}

/// One of `listeners`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct ListenerReport {
    pub port: u16,
    pub address: IpAddr,
    pub netns: u64,
    pub pid: Option<u32>,
    pub comm: Option<String>,
    pub backlog: Backlog,
    pub accept_queue: Queue,
    pub half_open_queue: Queue,
    pub accept_wait_us: Option<Percentiles>,
    pub ledger: Ledger,
}

/// `backlog`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Backlog {
    pub effective: u64,
    pub somaxconn: u64,
    pub max_syn_backlog: u64,
    pub syncookies: u64,
}

/// `accept_queue`, `half_open_queue`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Queue {
    pub now: u64,
    pub max: u64,
}

/// `accept_wait_us`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Percentiles {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub max: u64,
}

/// `LEDGER`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Ledger {
    pub attempts: u64,
    pub accepted: u64,
    pub pending: u64,
    pub lost: Lost,
    pub late: Late,
    pub phantom: u64,
    pub dead_on_arrival: u64,
    pub packets: Packets,
}

/// `lost`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Lost {
    pub total: u64,
    pub by_cause: Counts,
    pub untold: u64,
}

/// `late`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Late {
    pub total: u64,
    pub by_cause: Counts,
    pub completed_by: Counts,
}

/// `packets`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Packets {
    pub syn: u64,
    pub syn_dropped: Counts,
    /// The part of them that `tcp_max_syn_backlog`'s reserve rule dropped.
    #[serde(default)]
    pub syn_dropped_reserve: u64,
    pub synack: u64,
    pub synack_cookie: u64,
    pub synack_retransmitted: u64,
    pub ack_dropped: Counts,
    pub cookie_ack_accepted: u64,
    pub cookie_ack_invalid: u64,
    pub cookie_ack_unused: u64,
}

/// `clients`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Clients {
    pub connects: u64,
    pub established: u64,
    pub in_progress: u64,
    pub failed: Counts,
    pub by_process: Vec<ClientProcess>,
    /// `None` when the tracer did not watch who closes connections.
    pub fins: Option<Counts>,
    pub resets: Option<Counts>,
    pub port_exhaustion: Vec<PortExhaustion>,
}

/// One of `clients.port_exhaustion`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the report's")]
pub struct PortExhaustion {
    pub server: IpAddr,
    pub port: u16,
    pub failed: u64,
    pub in_use: Option<PortsInUse>,
}

/// `in_use`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the report's")]
pub struct PortsInUse {
    pub by_state: Counts,
    pub by_process: Vec<PortHolder>,
    pub reserved_ports: u16,
}

/// One of `by_process`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the report's")]
pub struct PortHolder {
    pub pid: u32,
    pub ports: u64,
}

/// One of `by_process`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct ClientProcess {
    pub pid: u32,
    pub comm: String,
    pub connects: u64,
    pub established: u64,
    pub failed: u64,
    pub fins: Counts,
    pub resets: Counts,
}

/// One of `marks`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Mark {
    pub at_seconds: f64,
    pub label: String,
    pub accepted: u64,
    pub lost: u64,
}

/// `check`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Check {
    pub exact: bool,
    pub events_lost: u64,
    pub counters: BTreeMap<String, Pair>,
    #[serde(default)]
    pub packets_unseen: u64,
    #[serde(default)]
    pub notes: Vec<String>,
}

/// One of `check.counters`
#[derive(Debug, Clone, Copy, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Pair {
    pub kernel: u64,
    pub tracer: u64,
}

/// One of `advice`
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Advice {
    pub cause: String,
    pub text: String,
}

/// A line of `--format events`.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Event {
    pub event: String,
    pub at_seconds: f64,
    pub cause: String,
    pub stage: Option<String>,
    pub client: Option<IpAddr>,
    pub client_port: Option<u16>,
    pub server: Option<IpAddr>,
    pub port: u16,
    pub netns: u64,
    pub phantom: bool,
    /// Whether the tracer's kernel answered with a RST (`tcp_abort_on_overflow`).
    #[serde(default)]
    pub reset: bool,
    pub syn_retransmits: Option<u64>,
    pub synack_retransmits: Option<u64>,
    pub delay_ms: Option<f64>,
}

impl Event {
    /// The client's address and port, where the line names both.
    #[must_use]
    pub fn client_address(&self) -> Option<SocketAddr> {
        Some(canonical(SocketAddr::new(self.client?, self.client_port?)))
    }
}

/// A line of `--format events` that tells who ended a client.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are the report's")]
pub struct ClientEnd {
    /// `fin` or `reset`.
    pub event: String,
    pub at_seconds: f64,
    pub by: String,
    pub signal: Option<u32>,
    pub client: IpAddr,
    pub client_port: u16,
    pub pid: u32,
    pub comm: String,
}

impl ClientEnd {
    /// The client's address and port.
    #[must_use]
    pub fn client_address(&self) -> SocketAddr {
        canonical(SocketAddr::new(self.client, self.client_port))
    }
}

/// What `--format events` wrote.
#[derive(Debug, Clone)]
pub struct Lines {
    /// The lines of lost and late connections.
    pub events: Vec<Event>,
    /// The lines of clients that a process ended.
    pub ends: Vec<ClientEnd>,
    /// The summary.
    pub report: Report,
}

/// What a ledger says about connections, without the packet counts and the
/// causes that did not occur: the part that a scenario states in full.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Outcomes {
    pub attempts: u64,
    pub accepted: u64,
    pub pending: u64,
    pub lost: Counts,
    pub late: Counts,
    pub completed_by: Counts,
    pub phantom: u64,
    pub dead_on_arrival: u64,
}

impl Ledger {
    /// The part of this ledger that scenarios compare.
    #[must_use]
    pub fn outcomes(&self) -> Outcomes {
        Outcomes {
            attempts: self.attempts,
            accepted: self.accepted,
            pending: self.pending,
            lost: occurring(&self.lost.by_cause),
            late: occurring(&self.late.by_cause),
            completed_by: occurring(&self.late.completed_by),
            phantom: self.phantom,
            dead_on_arrival: self.dead_on_arrival,
        }
    }

    /// How many attempts were lost by `cause`.
    #[must_use]
    pub fn lost_by(&self, cause: &str) -> u64 {
        self.lost.by_cause.get(cause).copied().unwrap_or(0)
    }
}

/// `counts` without the zeroes.
#[must_use]
pub fn occurring(counts: &Counts) -> Counts {
    counts.iter().filter(|(_, count)| **count > 0).map(|(id, n)| (id.clone(), *n)).collect()
}

/// Counts written down by a scenario.
#[must_use]
pub fn counts<const N: usize>(entries: [(&str, u64); N]) -> Counts {
    entries.into_iter().filter(|(_, n)| *n > 0).map(|(id, n)| (id.to_owned(), n)).collect()
}

impl Report {
    /// Parses the output of `--format json`: exactly one object.
    ///
    /// # Errors
    /// Fails when the text is no such report.
    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).with_context(|| format!("not a report: {text:?}"))
    }

    /// The only listener on `port` in namespace `netns`.
    ///
    /// # Errors
    /// Fails when there is none or more than one.
    pub fn listener(&self, netns: u64, port: u16) -> Result<&ListenerReport> {
        let found = self.listeners_on(netns, port);
        ensure!(found.len() == 1, "{} listeners on port {port}, expected one", found.len());
        Ok(found[0])
    }

    /// The listeners on `port` in namespace `netns`.
    #[must_use]
    pub fn listeners_on(&self, netns: u64, port: u16) -> Vec<&ListenerReport> {
        self.listeners.iter().filter(|it| (it.netns, it.port) == (netns, port)).collect()
    }
}

/// Parses the output of `--format events`: the lines, then the summary.
///
/// # Errors
/// Fails when a line is not JSON of the contract's form.
pub fn parse_events(text: &str) -> Result<Lines> {
    ensure!(text.ends_with('\n'), "the last line is not complete: {text:?}");
    let mut lines: Vec<_> = text.lines().collect();
    let summary = lines.pop().context("no output at all")?;
    let report = Report::parse(summary)?;
    let mut told = Lines { events: Vec::new(), ends: Vec::new(), report };
    for line in lines {
        let odd = || format!("no event line: {line}");
        let value: serde_json::Value = serde_json::from_str(line).with_context(odd)?;
        match value["event"].as_str() {
            Some("fin" | "reset") => told.ends.push(serde_json::from_value(value).with_context(odd)?),
            _ => told.events.push(serde_json::from_value(value).with_context(odd)?),
        }
    }
    Ok(told)
}

/// The clients of the `event` lines ("lost" or "late"), of one cause or of all.
#[must_use]
pub fn clients_of(events: &[Event], event: &str, cause: Option<&str>) -> BTreeSet<SocketAddr> {
    events
        .iter()
        .filter(|line| line.event == event && cause.is_none_or(|cause| line.cause == cause))
        .filter_map(Event::client_address)
        .collect()
}
