//! Loading programs, several at a time.
//!
//! Most of a start is the verifier's, and the kernel verifies for privileged callers on as many CPUs as ask for it (`bpf_prog_load()`,
//! kernel/bpf/syscall.c; `bpf_check()` takes its lock for others only).

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    thread,
};

use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramError},
};

use super::Point;

/// More than this gain nothing: one program takes most of the time.
const AT_ONCE: usize = 4;

/// What became of programs that were loaded before they are needed, by name; each is taken out when it is.
pub(super) type Loaded = BTreeMap<String, Result<(), ProgramError>>;

/// What a program is loaded for.
#[derive(Clone, Copy)]
pub(super) enum Job {
    /// A place in the kernel.
    Hook(Point),
    /// The walk over the TCP sockets.
    Walk,
    /// To be run by the collector.
    Control,
}

/// The program that the verifier has the most work with, four times that of the next: it is loaded first, so that at the end no other CPU
/// waits for it.
const LONGEST: &str = "tp_set_state";

/// Loads these programs of the object, by name, on several CPUs at once. What it does not have is not in the answer.
pub(super) fn load_all(ebpf: &mut Ebpf, jobs: &BTreeMap<&str, Job>, btf: &Btf) -> Loaded {
    let wanted = ebpf.programs_mut().filter_map(|(name, program)| Some((name, program, *jobs.get(name)?)));
    let mut wanted: Vec<_> = wanted.collect();
    wanted.sort_by_key(|(name, ..)| *name != LONGEST);
    let queue = Mutex::new(wanted.into_iter());
    let loaded = Mutex::new(Loaded::new());
    let work = || {
        loop {
            // A thread that panicked has left both in order.
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((name, program, job)) = next else { break };
            let result = load(program, job, btf);
            loaded.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), result);
        }
    };
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 1..cpus.min(AT_ONCE).min(jobs.len()) {
            scope.spawn(work);
        }
        work();
    });
    loaded.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Loads one.
fn load(program: &mut Program, job: Job, btf: &Btf) -> Result<(), ProgramError> {
    match (program, job) {
        (Program::BtfTracePoint(p), Job::Hook(Point::Btf(at, _))) => p.load(at, btf),
        (Program::TracePoint(p), Job::Hook(Point::Classic(..))) => p.load(),
        (Program::FEntry(p), Job::Hook(Point::Fentry(function, _))) => p.load(function, btf),
        (Program::FExit(p), Job::Hook(Point::Fexit(function, _))) => p.load(function, btf),
        (Program::KProbe(p), Job::Hook(Point::Kprobe(..) | Point::Kretprobe(_))) => p.load(),
        (Program::Iter(p), Job::Walk) => p.load("tcp", btf),
        (Program::RawTracePoint(p), Job::Control) => p.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
