//! Reading what was counted.

use std::ops::RangeInclusive;

use aya::{
    Pod,
    maps::{Array, HashMap, PerCpuArray},
};
use tracer_abi::abi::{
    COUNTERS, ControlOp, Global, ListenerInfo, NetCounters, Process, RIVALS, SlotCounters, Tuple, Watch,
};

use super::{Probe, ProbeError, bounds::WATCH_ENTRIES, load::map};

/// The orphan rule keeps aya's marker trait from the shared types; these wrappers carry it.
macro_rules! pod {
    ($($wrapper:ident($inner:ty)),* $(,)?) => {$(
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        struct $wrapper($inner);
        // SAFETY: a `repr(C)` structure of integers and byte arrays, for which any bytes are valid.
        unsafe impl Pod for $wrapper {}
    )*};
}

pod! {
    PodSlot(SlotCounters),
    PodInfo(ListenerInfo),
    PodNet(NetCounters),
    PodWatch(Watch),
    PodTuple(Tuple),
    PodProcess(Process),
}

/// One namespace's counters over the window, summed over CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetTally {
    /// Its inode number.
    pub netns: u32,
    /// What the kernel's own counters rose by.
    pub kernel: [u64; COUNTERS],
    /// What was given to packets.
    pub tracer: [u64; COUNTERS],
}

/// Everything that was counted, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Tallies {
    /// Listeners by slot, from 1; slot 0 is what met no listener.
    pub listeners: Vec<(u32, ListenerInfo)>,
    /// Their counters, one per CPU.
    pub counters: Vec<(u32, Vec<SlotCounters>)>,
    /// Namespaces.
    pub namespaces: Vec<NetTally>,
    /// Global counters, by [`Global`].
    pub globals: [u64; Global::COUNT],
    /// Local clients: thread group and counts.
    pub processes: Vec<(u32, Process)>,
}

impl Tallies {
    /// One global counter.
    #[must_use]
    pub fn global(&self, which: Global) -> u64 {
        self.globals[which as usize]
    }
}

impl Probe {
    /// Reads all counters. While counting goes on, they are of slightly different moments.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn tallies(&mut self) -> Result<Tallies, ProbeError> {
        let mut tallies = Tallies::default();
        let last: Array<_, u32> = map(&mut self.ebpf, "LAST_SLOT")?;
        // A hint: of several listeners that opened at the same instant, the last need not have written it.
        let last = (last.get(&0, 0).map_err(failed("LAST_SLOT"))? + RIVALS).min(self.slots - 1);
        for slot in 1..=last {
            self.read_queues(slot)?;
        }
        let infos: Array<_, PodInfo> = map(&mut self.ebpf, "SLOTS")?;
        for slot in 1..=last {
            let info = infos.get(&slot, 0).map_err(failed("SLOTS"))?.0;
            if info.sk != 0 {
                tallies.listeners.push((slot, info));
            }
        }
        let counters: PerCpuArray<_, PodSlot> = map(&mut self.ebpf, "COUNTERS")?;
        for slot in 0..=last {
            let values = counters.get(&slot, 0).map_err(failed("COUNTERS"))?;
            tallies.counters.push((slot, values.iter().map(|v| v.0).collect()));
        }
        let numbers = self.net_numbers()?;
        let nets: PerCpuArray<_, PodNet> = map(&mut self.ebpf, "NETS")?;
        for number in numbers {
            let values = nets.get(&number, 0).map_err(failed("NETS"))?;
            if values.iter().all(|v| v.0.mode == 0) {
                continue;
            }
            let mut tally = NetTally::default();
            for PodNet(cpu) in values.iter().filter(|v| v.0.mode != 0) {
                tally.netns = cpu.inum;
                for i in 0..COUNTERS {
                    // Until the end is taken, it is 0: what was last seen stands for it.
                    let end = if cpu.end[i] == 0 { cpu.last[i] } else { cpu.end[i] };
                    tally.kernel[i] += end.wrapping_sub(cpu.start[i]);
                    tally.tracer[i] += cpu.seen[i];
                }
            }
            tallies.namespaces.push(tally);
        }
        let globals: PerCpuArray<_, u64> = map(&mut self.ebpf, "GLOBALS")?;
        for i in 0..Global::COUNT {
            tallies.globals[i] = globals.get(&(i as u32), 0).map_err(failed("GLOBALS"))?.iter().sum();
        }
        let processes: HashMap<_, u32, PodProcess> = map(&mut self.ebpf, "PROCESSES")?;
        for entry in processes.iter() {
            let (pid, PodProcess(process)) = entry.map_err(failed("PROCESSES"))?;
            tallies.processes.push((pid, process));
        }
        tallies.processes.sort_by_key(|(pid, p)| (std::cmp::Reverse(p.connects), *pid));
        tallies.namespaces.sort_by_key(|n| n.netns);
        Ok(tallies)
    }

    /// The numbers that namespaces may have: the last that was given is a hint, as with slots.
    pub(super) fn net_numbers(&mut self) -> Result<RangeInclusive<u32>, ProbeError> {
        let list: Array<_, u64> = map(&mut self.ebpf, "NET_LIST")?;
        let last = list.get(&0, 0).map_err(failed("NET_LIST"))? as u32;
        Ok(1..=(last + RIVALS).min(self.namespaces - 1))
    }

    /// Makes room in the kernel side's memory of troubled attempts, if more than a quarter of it is taken: attempts of which
    /// nothing was heard since `before_ns` (`CLOCK_MONOTONIC`) are forgotten. Gives how many were looked at.
    ///
    /// # Errors
    /// If a map cannot be read or the control program cannot be run.
    pub fn forget_silent(&mut self, before_ns: u64) -> Result<usize, ProbeError> {
        let watched: Array<_, u64> = map(&mut self.ebpf, "WATCHED")?;
        if watched.get(&0, 0).map_err(failed("WATCHED"))? < u64::from(WATCH_ENTRIES) / 4 {
            return Ok(0);
        }
        let silent: Vec<Tuple> = self
            .watched()?
            .into_iter()
            .filter(|(_, watch)| watch.last_ns < before_ns)
            .map(|(tuple, _)| tuple)
            .collect();
        for tuple in &silent {
            let mut slot: Array<_, PodTuple> = map(&mut self.ebpf, "FORGET")?;
            slot.set(0, PodTuple(*tuple), 0).map_err(failed("FORGET"))?;
            self.run(self.cpus[0], ControlOp::Forget, before_ns)?;
        }
        Ok(silent.len())
    }

    /// Troubled attempts, and earlier connections, as the kernel side knows them.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn watched(&mut self) -> Result<Vec<(Tuple, Watch)>, ProbeError> {
        let watch: HashMap<_, PodTuple, PodWatch> = map(&mut self.ebpf, "WATCH")?;
        watch.iter().map(|entry| entry.map(|(k, v)| (k.0, v.0)).map_err(failed("WATCH"))).collect()
    }
}

fn failed(map: &'static str) -> impl Fn(aya::maps::MapError) -> ProbeError {
    move |e| ProbeError::Map { map, reason: e.to_string() }
}
