//! What the tracing itself costs, measured.

use std::fs;

use log::info;
use rustix::time::{ClockId, clock_gettime};

use crate::{
    probe::{Probe, ProgramRuns, Timing},
    report::{Cost, ProgramCost, RingCost},
    stream::{EVENT_BYTES, Ring},
};

/// What is measured from the start on.
pub(super) struct Meter {
    attach_cpu_seconds: f64,
    ring_bytes: u64,
    /// Held for as long as programs are to be timed.
    _timing: Option<Timing>,
}

impl Meter {
    /// To be called when counting begins.
    pub(super) fn new(ring_bytes: u32) -> Meter {
        let timing = (log::max_level() >= log::LevelFilter::Info).then(Timing::begin);
        let timing = timing.and_then(|timing| timing.inspect_err(|e| info!("{e}")).ok());
        Meter { attach_cpu_seconds: cpu_seconds(), ring_bytes: ring_bytes.into(), _timing: timing }
    }

    /// What it has cost so far. `lost`: events that found no room in the ring.
    pub(super) fn read(&self, probe: &Probe, ring: &Ring, lost: u64) -> Cost {
        Cost {
            cpu_seconds: cpu_seconds(),
            attach_cpu_seconds: self.attach_cpu_seconds,
            peak_memory_bytes: peak_memory().unwrap_or(0),
            ring: RingCost {
                bytes: self.ring_bytes,
                most_bytes: (ring.most * EVENT_BYTES).min(self.ring_bytes),
                events: ring.events,
                lost,
            },
            programs: probe.program_runs().map(|programs| programs.into_iter().map(program_cost).collect()),
        }
    }
}

/// Under the names of the report.
fn program_cost(program: ProgramRuns) -> ProgramCost {
    let ProgramRuns { name, runs, nanoseconds, missed } = program;
    ProgramCost { name, runs, nanoseconds, missed }
}

/// CPU time of this process.
fn cpu_seconds() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = peak.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_time_and_memory() {
        assert!(cpu_seconds() > 0.0);
        assert!(peak_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
