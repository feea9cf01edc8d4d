//! How often the kernel ran the programs, how long that took, and how often it did not run them.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::{
    programs::Program,
    sys::{Stats, enable_stats},
};

use super::{HOOKS, Point, Probe, ProbeError};

/// While this is there, the kernel times programs, also those of others: each run takes a little longer.
#[derive(Debug)]
pub struct Timing {
    _open: OwnedFd,
}

impl Timing {
    /// Has the kernel begin.
    ///
    /// # Errors
    /// If it does not: before 5.8, or without privilege.
    pub fn begin() -> Result<Timing, ProbeError> {
        let open = enable_stats(Stats::RunTime).map_err(|e| ProbeError::Timing(e.to_string()))?;
        Ok(Timing { _open: open })
    }
}

/// The runs of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramRuns {
    /// Its name in the object.
    pub name: String,
    /// How often it ran while the kernel was timing programs.
    pub runs: u64,
    /// How long these runs took, nanoseconds.
    pub nanoseconds: u64,
    /// How often it was not run, because another run of it was under way on that CPU; 0 before kernel 5.12.
    pub missed: u64,
}

impl Probe {
    /// The runs of each program, those that took longest first; `None` if the kernel was not timing any.
    #[must_use]
    pub fn program_runs(&self) -> Option<Vec<ProgramRuns>> {
        let mut programs: Vec<ProgramRuns> = self
            .ebpf
            .programs()
            .filter_map(|(name, program)| {
                let info = fdinfo(program)?;
                Some(ProgramRuns {
                    name: name.to_owned(),
                    runs: field(&info, "run_cnt")?,
                    nanoseconds: field(&info, "run_time_ns")?,
                    missed: field(&info, "recursion_misses").unwrap_or(0),
                })
            })
            .collect();
        programs.sort_by(|a, b| (b.nanoseconds, &a.name).cmp(&(a.nanoseconds, &b.name)));
        programs.iter().any(|program| program.runs > 0).then_some(programs)
    }

    /// How often a program of a place without a pair was not run, because another one was running on that CPU: events that
    /// nobody saw (`recursion_misses`, kernel 5.12 and later).
    #[must_use]
    pub fn unseen(&self) -> u64 {
        let ways = HOOKS.iter().filter_map(|hook| self.choice.way(hook).ok());
        let single = ways.flat_map(|way| {
            way.programs.iter().enumerate().filter(move |(at, (_, point))| {
                let is_there = |programs: &[(&str, Point)]| programs.iter().any(|(_, other)| other == point);
                let is_first = !is_there(&way.programs[..*at]);
                // Where one of a pair is not run when the other is not, it is as if there was one.
                let alone = matches!(point, Point::Classic(..)) && !self.calls_apart;
                is_first && (alone || !is_there(&way.programs[at + 1..]))
            })
        });
        single.filter_map(|(_, (name, _))| field(&fdinfo(self.ebpf.program(name)?)?, "recursion_misses")).sum()
    }
}

/// What the kernel says of a program, line by line. By the collector's own descriptor: aya has no other way to some of it.
fn fdinfo(program: &Program) -> Option<String> {
    let fd = program.fd().ok()?.as_fd().as_raw_fd();
    std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()
}

/// One number of these lines.
fn field(info: &str, key: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_by_its_whole_name() {
        let info = "prog_id:\t7\nrun_time_ns:\t300000\nrun_cnt:\t2000\nrecursion_misses:\t3\n";
        assert_eq!(field(info, "run_cnt"), Some(2000));
        assert_eq!(field(info, "recursion_misses"), Some(3));
        assert_eq!(field(info, "run"), None);
        assert_eq!(field("prog_id:\t7\n", "run_cnt"), None);
    }
}
