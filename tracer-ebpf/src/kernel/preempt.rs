//! Keeping other processes off this CPU.

use core::{ffi::c_ulong, mem::MaybeUninit};

use tracer_abi::abi::Kfunc;

use super::config;

/// Runs the body of a program that can run in a process with preemption enabled, without another process on this CPU meanwhile,
/// where the kernel has the means (see [`Twin`](crate::maps::Twin)). Softirqs interrupt it all the same.
///
/// It encloses the whole program, so that of the time in which the kernel has noted that the program runs, a process can be preempted in
/// a few instructions only. To enable preemption is to be preempted, if a tick of the clock has asked for it meanwhile: at once,
/// and within the program still. So it is enabled while interrupts are disabled, when nobody can be preempted; to enable these looks
/// for pending interrupts, and not for who wants the CPU. What looks for that next comes after the program.
#[inline(always)]
pub(crate) fn unpreempted<T>(body: impl FnOnce() -> T) {
    call::<{ Kfunc::PreemptDisable as u32 }>();
    body();
    let mut flags = MaybeUninit::<c_ulong>::uninit();
    let flags = flags.as_mut_ptr();
    call_with::<{ Kfunc::LocalIrqSave as u32 }>(flags);
    call::<{ Kfunc::PreemptEnable as u32 }>();
    call_with::<{ Kfunc::LocalIrqRestore as u32 }>(flags);
}

/// The same for a program at a tracepoint, which can be preempted only since 7.0: before, nothing need be done.
#[inline(always)]
pub(crate) fn unpreempted_at_tracepoint<T>(body: impl FnOnce() -> T) {
    if config!(preempted) != 0 {
        unpreempted(body);
    } else {
        body();
    }
}

/// What the collector replaces by the call of a kernel function, or by nothing.
#[inline(always)]
fn call<const MARK: u32>() {
    // SAFETY: a number in the place of a function's address is how a helper is called on this target; it is called as every function.
    let function = unsafe { core::mem::transmute::<usize, unsafe extern "C" fn()>(MARK as usize) };
    // SAFETY: the collector loads no object that still has the mark (`tracer/src/probe/kfunc.rs`). Neither function takes arguments, and
    // the verifier refuses a program that does not call both in turn on every path.
    unsafe { function() };
}

/// The same with a place for the processor's flags.
#[inline(always)]
fn call_with<const MARK: u32>(flags: *mut c_ulong) {
    // SAFETY: as above.
    let function = unsafe { core::mem::transmute::<usize, unsafe extern "C" fn(*mut c_ulong)>(MARK as usize) };
    // SAFETY: as above; the place is on this stack, and only these functions use it.
    unsafe { function(flags) };
}
