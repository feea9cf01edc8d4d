//! From a plan to programs that count, and back to facts.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use log::info;
use tracer_abi::abi::ListenerInfo;

use super::cost::Meter;
use super::facts::{
    CommandFacts, CounterFacts, Ending, Facts, ListenerFacts, MarkFacts, NamespaceFacts, PortsFacts, ProcessFacts,
};
use super::limits::bounds;
use super::story::Destination;
use crate::{
    cli::{NetnsSelector, Plan},
    kernel::{Host, Layout},
    ledger::{IDLE_NS, SlotTotals},
    observe::{Namespace, Owner, in_namespace, namespaces, owners, ports, sysctl},
    probe::{Flavour, Probe, Settings, Tallies},
    report::{Cost, comm},
    stream::Ring,
};
use tracer_abi::abi::{Global, NO_LISTENER};

const PROC: &str = "/proc";

/// How often it is looked whether the kernel side's memory fills up.
const ROOM_EVERY_NS: u64 = 10_000_000_000;

/// Programs that count, and what is known of the host they count on.
pub(super) struct Session {
    probe: Probe,
    meter: Meter,
    layout: Layout,
    kernel: String,
    hooks: BTreeMap<String, Flavour>,
    own_netns: u32,
    /// Namespaces at the start; those that come later are added when they are met.
    namespaces: BTreeMap<u32, Namespace>,
    /// Owners of listeners that existed before, by slot.
    owners: BTreeMap<u32, Owner>,
    settings: BTreeMap<u32, NamespaceFacts>,
    doubts: Vec<String>,
    start: Timestamp,
    start_ns: u64,
    ports: Option<Vec<(u16, u16)>>,
    next_room_ns: u64,
    /// Queues of the open listeners, by slot, shortly before counting ended.
    queues: BTreeMap<u32, Queues>,
    /// When counting began to end.
    ending_ns: u64,
}

/// The queues of a listener by the kernel's own count of them.
struct Queues {
    accept: u32,
    half_open: u32,
    /// Connections that had been counted as queued by then.
    queued: u64,
}

/// How long an `accept()` that has taken a connection from its queue may need to return.
const RETURNING: Duration = Duration::from_millis(10);

impl Session {
    /// Loads, attaches, takes stock of what exists, and begins to count.
    pub(super) fn start(plan: &Plan) -> Result<(Session, Ring)> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        super::privilege::check(&status)?;
        let host = Host::from_env();
        let timer = Instant::now();
        let layout = Layout::read(&host)?;
        info!("type information read after {} ms", timer.elapsed().as_millis());
        let chosen = super::selected(&plan.netns)?;
        let only = match plan.netns {
            NetnsSelector::All => None,
            _ => chosen.first().map(|ns| ns.inode),
        };
        let bounds = bounds()?;
        let settings = Settings {
            ports: Box::new(*plan.ports.words()),
            every_port: plan.ports.is_every(),
            netns: only,
            bounds,
            log: log::max_level(),
        };
        let mut probe = Probe::attach(&host, &layout, &settings, super::wanted(plan.hooks))?;
        let ring = Ring::new(probe.ring()?).context("cannot poll the ring buffer")?;
        let hooks = probe.choice().flavours();
        for reason in probe.choice().reasons() {
            info!("hooks {}: not by {}: {}", reason.hooks.join(", "), reason.flavour.id(), reason.text);
        }
        info!("hooks attached after {} ms", timer.elapsed().as_millis());

        // From here every connection under way is remembered as an earlier one; then what exists is taken stock of; then
        // counting begins. In this order nothing falls between.
        probe.remember()?;
        let mut unseen = Vec::new();
        for namespace in &chosen {
            let snapshot = probe.snapshot()?;
            match in_namespace(namespace, move || Ok(snapshot.read(namespace.inode)?)) {
                Ok(()) => {}
                Err(e) if only.is_some() => return Err(e),
                Err(e) => unseen.push((namespace, e)),
            }
        }
        probe.stock_taken()?;
        probe.count()?;
        let doubts = doubts(unseen);
        if log::max_level() >= log::LevelFilter::Debug {
            probe.relay_log()?;
        }
        let start = Timestamp::now();
        let start_ns = monotonic_ns();

        let own_netns = namespaces::current(Path::new(PROC))?.inode;
        let meter = Meter::new(bounds.ring_bytes);
        let mut session = Session {
            probe,
            meter,
            layout,
            kernel: host.release()?,
            hooks,
            own_netns,
            namespaces: chosen.into_iter().map(|ns| (ns.inode, ns)).collect(),
            owners: BTreeMap::new(),
            settings: BTreeMap::new(),
            doubts,
            start,
            start_ns,
            ports: (!plan.ports.is_every())
                .then(|| plan.ports.ranges().iter().map(|r| (*r.start(), *r.end())).collect()),
            next_room_ns: start_ns + ROOM_EVERY_NS,
            queues: BTreeMap::new(),
            ending_ns: u64::MAX,
        };
        // Settings and owners are looked up now as well as at the end: a namespace or a process may not live that long.
        let tallies = session.probe.tallies()?;
        session.look_around(&tallies);
        Ok((session, ring))
    }

    /// Attach flavours in use, for the ready line.
    pub(super) fn flavours(&self) -> BTreeSet<&'static str> {
        self.hooks.values().map(|f| f.id()).collect()
    }

    /// When counting began, `CLOCK_MONOTONIC` nanoseconds.
    pub(super) fn start_ns(&self) -> u64 {
        self.start_ns
    }

    /// Name of a drop reason of this kernel.
    pub(super) fn drop_reason(&self, reason: u32) -> Option<String> {
        self.layout.drop_reasons.name(reason).map(str::to_owned)
    }

    /// What was counted so far.
    pub(super) fn slots(&mut self) -> Result<Vec<(u32, SlotTotals)>> {
        let tallies = self.probe.tallies()?;
        Ok(totals(&tallies))
    }

    /// Ends counting. Events that are in the ring by now are all that there will be.
    pub(super) fn end(&mut self) -> Result<()> {
        self.measure_queues()?;
        self.find_orphans()?;
        self.ending_ns = monotonic_ns();
        self.probe.end()?;
        if log::max_level() >= log::LevelFilter::Debug {
            self.probe.relay_log()?;
        }
        Ok(())
    }

    /// Has the kernel side forget attempts that are over, now and then.
    pub(super) fn make_room(&mut self, now_ns: u64) -> Result<()> {
        if now_ns < self.next_room_ns {
            return Ok(());
        }
        self.next_room_ns = now_ns + ROOM_EVERY_NS;
        self.probe.forget_silent(now_ns.saturating_sub(IDLE_NS))?;
        Ok(())
    }

    /// How long the queues are, before counting ends: what comes later is counted, and what goes later only makes them shorter than
    /// is believed.
    fn measure_queues(&mut self) -> Result<()> {
        let before: BTreeMap<u32, SlotTotals> = self.slots()?.into_iter().collect();
        let tallies = self.probe.tallies()?;
        let mut returning = false;
        for (slot, info) in tallies.listeners.iter().filter(|(_, info)| info.closed_ns == 0) {
            let (queued, accepted) = before.get(slot).map_or((0, 0), |totals| (totals.queued, totals.accepted));
            returning |= queued.wrapping_sub(accepted).cast_signed() > i64::from(info.accept_queue);
            self.queues.insert(*slot, Queues { accept: info.accept_queue, half_open: info.half_open, queued });
        }
        if returning {
            std::thread::sleep(RETURNING);
        }
        Ok(())
    }

    /// The counters at the end, with what the queues can hold.
    fn final_slots(&self, tallies: &Tallies) -> Vec<(u32, SlotTotals)> {
        let closed: BTreeMap<u32, &ListenerInfo> = tallies
            .listeners
            .iter()
            .filter(|(_, info)| info.closed_ns != 0)
            .map(|(slot, info)| (*slot, info))
            .collect();
        let mut slots = totals(tallies);
        for (slot, totals) in &mut slots {
            if let Some(info) = closed.get(slot) {
                if info.closed_ns >= self.ending_ns {
                    // What it closed was not counted any more.
                    continue;
                }
                totals.waiting = Some(u64::from(info.accept_queue));
                totals.half_open = Some(u64::from(info.half_open));
            } else if let Some(queues) = self.queues.get(slot) {
                let since = totals.queued.wrapping_sub(queues.queued);
                totals.waiting = Some(u64::from(queues.accept).saturating_add_signed(since.cast_signed()));
                totals.half_open = Some(u64::from(queues.half_open));
            }
        }
        slots
    }

    /// Half-open requests of listeners that have closed are there until their timers run: whose they were is told now.
    fn find_orphans(&mut self) -> Result<()> {
        let tallies = self.probe.tallies()?;
        let with_orphans = |(_, info): &&(u32, ListenerInfo)| info.closed_ns != 0 && info.half_open > 0;
        let wanted: BTreeSet<u32> = tallies.listeners.iter().filter(with_orphans).map(|(_, info)| info.netns).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        self.look_around(&tallies);
        for netns in wanted {
            // A namespace that has gone took its requests with it.
            let Some(namespace) = self.namespaces.get(&netns) else { continue };
            let snapshot = self.probe.snapshot()?;
            if let Err(e) = in_namespace(namespace, move || Ok(snapshot.read(netns)?)) {
                info!("half-open requests of closed listeners were not found: {e:#}");
            }
        }
        Ok(())
    }

    /// What holds the local ports towards this destination now; `None` where that cannot be seen any more.
    pub(super) fn ports_in_use(&mut self, destination: &Destination) -> Option<PortsFacts> {
        let proc = Path::new(PROC);
        let (netns, server, port) = *destination;
        self.know_namespaces(&[netns].into());
        let namespace = self.namespaces.get(&netns)?;
        let look = || Ok((ports::in_use(proc, server, port)?, sysctl::read(&proc.join("sys"))?));
        let (in_use, sysctls) = match in_namespace(namespace, look) {
            Ok(found) => found,
            Err(e) => {
                info!("what holds the local ports towards {server} was not found: {e:#}");
                return None;
            }
        };
        Some(PortsFacts {
            netns,
            server,
            port,
            by_state: in_use.by_state.into_iter().map(|(state, n)| (state.to_owned(), n)).collect(),
            by_process: in_use.by_process.into_iter().map(|(owner, n)| (owner.pid, owner.comm, n)).collect(),
            reserved_ports: sysctls.reserved_ports,
            tw_reuse: sysctls.tw_reuse,
        })
    }

    /// What the tracing itself has cost so far.
    pub(super) fn cost(&self, ring: &Ring, facts: &Facts) -> Cost {
        let lost = facts.globals.get(Global::EventsLost as usize).copied().unwrap_or(0);
        self.meter.read(&self.probe, ring, lost)
    }

    /// What is known at the end, without the events.
    pub(super) fn facts(
        &mut self,
        ended_by: Ending,
        command: Option<CommandFacts>,
        marks: Vec<MarkFacts>,
        ports_in_use: Vec<PortsFacts>,
        reasons: impl Iterator<Item = u32>,
        unreadable: u64,
    ) -> Result<Facts> {
        let end = Timestamp::now();
        let end_ns = monotonic_ns();
        let tallies = self.probe.tallies()?;
        self.look_around(&tallies);
        // The kernel side's own memory is needed only where events are missing.
        let complete = tallies.global(Global::EventsLost) == 0;
        let watched = if complete { Vec::new() } else { self.probe.watched()? };
        let mut doubts = std::mem::take(&mut self.doubts);
        let unseen = self.probe.unseen();
        if unseen > 0 {
            doubts
                .push(format!("{unseen} events were not seen, because another BPF program ran on that CPU just then"));
        }
        if unreadable > 0 {
            doubts.push(format!("{unreadable} records of the ring buffer could not be read"));
        }
        Ok(Facts {
            kernel: self.kernel.clone(),
            hooks: self.hooks.iter().map(|(name, f)| (name.clone(), f.id().to_owned())).collect(),
            own_netns: self.own_netns,
            start: self.start,
            end,
            start_ns: self.start_ns,
            end_ns,
            ended_by,
            command,
            ports: self.ports.clone(),
            slots: self.final_slots(&tallies),
            listeners: tallies.listeners.iter().map(|(slot, info)| self.listener(*slot, info)).collect(),
            namespaces: self.settings.values().cloned().collect(),
            counters: tallies
                .namespaces
                .iter()
                .map(|n| CounterFacts { netns: n.netns, kernel: n.kernel, tracer: n.tracer })
                .collect(),
            globals: tallies.globals.to_vec(),
            processes: tallies
                .processes
                .iter()
                .map(|(pid, p)| ProcessFacts {
                    pid: *pid,
                    comm: comm(&p.comm),
                    connects: p.connects,
                    established: p.established,
                    failed: p.failed,
                    fins: Some(p.fins),
                    resets: Some(p.resets),
                })
                .collect(),
            marks,
            ports_in_use,
            drop_reasons: reasons.filter_map(|r| Some((r, self.drop_reason(r)?))).collect(),
            watched: watched.iter().map(Into::into).collect(),
            doubts,
            cost: None,
        })
    }

    fn listener(&self, slot: u32, info: &ListenerInfo) -> ListenerFacts {
        // Who called listen() is known for certain where it was seen; before that, who holds the socket.
        let seen = (info.pid != 0).then(|| Owner { pid: info.pid, comm: comm(&info.comm) });
        let owner = seen.or_else(|| self.owners.get(&slot).cloned());
        ListenerFacts {
            slot,
            port: info.port,
            address: info.address.octets(),
            family: info.family,
            v6only: info.v6only != 0,
            reuseport: info.reuseport != 0,
            netns: info.netns,
            pid: owner.as_ref().map(|o| o.pid),
            comm: owner.map(|o| o.comm),
            open: info.closed_ns == 0,
            backlog: info.backlog,
            asked: (info.asked != u32::MAX).then_some(info.asked),
            accept_queue: info.accept_queue,
            half_open: info.half_open,
        }
    }

    /// Looks for namespaces that are not known yet.
    fn know_namespaces(&mut self, wanted: &BTreeSet<u32>) {
        if wanted.iter().any(|ns| !self.namespaces.contains_key(ns))
            && let Ok(all) = namespaces::all(Path::new(PROC))
        {
            for namespace in all {
                self.namespaces.entry(namespace.inode).or_insert(namespace);
            }
        }
    }

    /// Looks up owners and settings that are not known yet.
    fn look_around(&mut self, tallies: &Tallies) {
        let proc = Path::new(PROC);
        let unowned = |(slot, info): &&(u32, ListenerInfo)| {
            info.pid == 0 && info.inode != 0 && info.closed_ns == 0 && !self.owners.contains_key(slot)
        };
        let inodes: BTreeSet<u64> = tallies.listeners.iter().filter(unowned).map(|(_, info)| info.inode).collect();
        if !inodes.is_empty() {
            let found = owners::find(proc, &inodes);
            for (slot, info) in &tallies.listeners {
                if let Some(owner) = found.get(&info.inode) {
                    self.owners.entry(*slot).or_insert_with(|| owner.clone());
                }
            }
        }
        let wanted: BTreeSet<u32> = tallies
            .listeners
            .iter()
            .map(|(_, info)| info.netns)
            .chain(tallies.namespaces.iter().map(|n| n.netns))
            .collect();
        self.know_namespaces(&wanted);
        for netns in wanted {
            let Some(namespace) = self.namespaces.get(&netns) else { continue };
            let Ok(s) = in_namespace(namespace, || sysctl::read(&proc.join("sys"))) else { continue };
            self.settings.insert(
                netns,
                NamespaceFacts {
                    netns,
                    path: namespace.name.is_some().then(|| namespace.path.clone()),
                    somaxconn: s.somaxconn,
                    max_syn_backlog: s.max_syn_backlog,
                    syncookies: s.syncookies,
                    local_port_range: Some(s.local_port_range),
                },
            );
        }
    }
}

/// What was missed in namespaces that could not be looked at. One that has ended since it was listed had nothing to miss.
fn doubts(unseen: Vec<(&Namespace, anyhow::Error)>) -> Vec<String> {
    if unseen.is_empty() {
        return Vec::new();
    }
    let now = namespaces::all(Path::new(PROC)).unwrap_or_default();
    let is_there = |ns: &Namespace| now.iter().any(|other| other.inode == ns.inode);
    unseen
        .into_iter()
        .filter(|(namespace, _)| is_there(namespace))
        .map(|(namespace, e)| format!("listeners of {namespace} that existed before were not seen: {e:#}"))
        .collect()
}

/// Sums over CPUs.
fn totals(tallies: &Tallies) -> Vec<(u32, SlotTotals)> {
    let closed: BTreeMap<u32, bool> =
        tallies.listeners.iter().map(|(slot, info)| (*slot, info.closed_ns != 0)).collect();
    let groups = groups(&tallies.listeners);
    let sum = |(slot, cpus): &(u32, Vec<tracer_abi::abi::SlotCounters>)| {
        let mut total = SlotTotals::default();
        cpus.iter().for_each(|cpu| total.add_cpu(cpu));
        total.closed = closed.get(slot).copied().unwrap_or(false);
        total.group = groups.get(slot).copied().unwrap_or(0);
        if *slot == NO_LISTENER {
            total.port_exhausted = tallies.global(Global::PortExhausted);
        }
        (*slot, total)
    };
    tallies.counters.iter().filter(|(slot, _)| *slot == NO_LISTENER || closed.contains_key(slot)).map(sum).collect()
}

/// The group of each SO_REUSEPORT listener: the lowest slot of those that share its namespace, port and address.
fn groups(listeners: &[(u32, ListenerInfo)]) -> BTreeMap<u32, u32> {
    let mut lowest = BTreeMap::new();
    let members = listeners.iter().filter(|(_, info)| info.reuseport != 0);
    members.map(|(slot, info)| (*slot, *lowest.entry((info.netns, info.port, info.address)).or_insert(*slot))).collect()
}

/// Nanoseconds of the events' clock.
pub(super) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
