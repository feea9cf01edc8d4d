//! The end of a process that had connected to a traced port.
//!
//! ```c
//! void do_exit(long code);
//! ```
//! It closes what the process has open soon after: what comes before and what comes after is told apart by this moment.
//!
//! As a tracepoint, in every flavour: `sched_process_exit(task)`, once for each thread; `signal->live` is 0 at the last one. Since
//! 6.16 it has a second argument, which says the same.
//!
//! Read from: kernel/exit.c (5.10, 6.18).

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use tracer_abi::abi::{EventKind, NO_LISTENER, Phase, Tuple};

use crate::{
    emit::emit,
    kernel::{current, unpreempted_at_tracepoint},
    maps::PROCESSES,
    watch,
};

/// A thread ends.
#[btf_tracepoint(function = "sched_process_exit")]
fn tp_process_exit(_ctx: BtfTracePointContext) -> i32 {
    unpreempted_at_tracepoint(exited);
    0
}

#[inline(always)]
fn exited() -> Option<()> {
    if watch::phase()? != Phase::Counting {
        return None;
    }
    let task = current();
    let process = PROCESSES.get_ptr(task.pid())?;
    if task.threads_left() != 0 {
        return None;
    }
    emit(EventKind::ProcessExited, &Tuple::default(), |e| {
        e.slot = NO_LISTENER;
        e.detail = task.exit_code();
        e.pid = task.pid();
        // SAFETY: a preallocated element that is never removed while programs are attached; its name is written once.
        e.comm = unsafe { (*process).comm };
    });
    Some(())
}
