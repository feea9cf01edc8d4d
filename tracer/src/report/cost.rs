//! What the tracing itself cost.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::format::{count, counted};

/// The collector's and the kernel side's own consumption. In reports and recordings under these names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// CPU time of the collector, user and system, in seconds.
    pub cpu_seconds: f64,
    /// Of this, until counting began: type information, the verifier, the look at what was there before.
    pub attach_cpu_seconds: f64,
    /// The most memory that the collector had resident, bytes (`VmHWM`); 0 if unknown. The ring's pages count twice, as it is mapped
    /// twice.
    pub peak_memory_bytes: u64,
    /// The ring buffer.
    pub ring: RingCost,
    /// The programs, most time first; `None` if the kernel was not counting. It does with `-v`, or where `kernel.bpf_stats_enabled`
    /// is set, and then takes some 20 ns more for each run.
    pub programs: Option<Vec<ProgramCost>>,
}

/// How much the ring buffer carried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingCost {
    /// Its size.
    pub bytes: u64,
    /// The most that was read from it in one go, bytes: about how full it was.
    pub most_bytes: u64,
    /// Events that were read.
    pub events: u64,
    /// Events that found no room.
    pub lost: u64,
}

/// One program of the kernel side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramCost {
    /// Its name in the object; the kernel shows the first 15 bytes of it.
    pub name: String,
    /// How often it ran.
    pub runs: u64,
    /// How long all of its runs took, nanoseconds.
    pub nanoseconds: u64,
    /// How often it was not run because another run of it was under way on that CPU; 0 before kernel 5.12.
    pub missed: u64,
}

impl Cost {
    /// As `-v` says it.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let Cost { cpu_seconds, attach_cpu_seconds, peak_memory_bytes, ring, programs } = self;
        let full = ring.most_bytes as f64 * 100.0 / ring.bytes.max(1) as f64;
        let mut lines = vec![
            format!(
                "own cost: {:.2} s of CPU to attach, {:.2} s since; {:.1} MiB resident at most",
                attach_cpu_seconds,
                cpu_seconds - attach_cpu_seconds,
                *peak_memory_bytes as f64 / f64::from(1 << 20)
            ),
            format!(
                "ring buffer: {}, {} lost, at most {full:.0} % of {} KiB in use",
                counted(ring.events, "event"),
                count(ring.lost),
                count(ring.bytes >> 10)
            ),
        ];
        for program in programs.iter().flatten().filter(|program| program.runs + program.missed > 0) {
            let mut line = format!(
                "program {:<16} {:>13}, {:>6} ns each",
                program.name,
                counted(program.runs, "run"),
                program.nanoseconds / program.runs.max(1)
            );
            if program.missed > 0 {
                let _ = write!(line, ", not run {}", counted(program.missed, "time"));
            }
            lines.push(line);
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_told_in_lines() {
        let cost = Cost {
            cpu_seconds: 0.5,
            attach_cpu_seconds: 0.3,
            peak_memory_bytes: 45 << 20,
            ring: RingCost { bytes: 8 << 20, most_bytes: 2 << 20, events: 1, lost: 0 },
            programs: Some(vec![
                ProgramCost { name: "tp_consume_skb".into(), runs: 2000, nanoseconds: 300_000, missed: 3 },
                ProgramCost { name: "tp_accept".into(), ..ProgramCost::default() },
            ]),
        };
        assert_eq!(
            cost.lines(),
            [
                "own cost: 0.30 s of CPU to attach, 0.20 s since; 45.0 MiB resident at most",
                "ring buffer: 1 event, 0 lost, at most 25 % of 8,192 KiB in use",
                "program tp_consume_skb      2,000 runs,    150 ns each, not run 3 times",
            ]
        );
    }
}
