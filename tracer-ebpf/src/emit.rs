//! Sending: reserve, fill, submit, or count the loss.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::bpf_ktime_get_ns,
};
use tracer_abi::abi::{Ender, Event, EventKind, Global, SlotCounters, Tuple};

use crate::{
    kernel::{Sock, atomic, config},
    maps::{COUNTERS, GLOBALS, RING},
};

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// Adds one to a global counter.
#[inline(always)]
pub(crate) fn count(what: Global) {
    if let Some(counter) = GLOBALS.get_ptr_mut(what as u32) {
        // SAFETY: this CPU's value of a live map, only ever changed by atomic addition: a softirq, and where preemption cannot be
        // disabled another process, may count the same between the load and the store of this one.
        unsafe { atomic::add(counter, 1) };
    }
}

/// Adds one to the global counter of this ender; `first` is that of the first.
#[inline(always)]
pub(crate) fn count_by(first: Global, ender: Ender) {
    if let Some(counter) = GLOBALS.get_ptr_mut(first as u32 + ender as u32) {
        // SAFETY: as above.
        unsafe { atomic::add(counter, 1) };
    }
}

/// Adds to a global counter.
#[inline(always)]
pub(crate) fn count_many(what: Global, by: u64) {
    if let Some(counter) = GLOBALS.get_ptr_mut(what as u32) {
        // SAFETY: as above.
        unsafe { atomic::add(counter, by) };
    }
}

/// This CPU's counters of a slot.
#[inline(always)]
pub(crate) fn slot_counters(slot: u32) -> Option<&'static mut SlotCounters> {
    let counters = COUNTERS.get_ptr_mut(slot)?;
    // SAFETY: this CPU's value of a live map; system calls and softirqs write different fields, and where preemption cannot be
    // disabled, what system calls count is added atomically.
    Some(unsafe { &mut *counters })
}

/// Writes an event; `fill` adds what its kind has besides. Says whether there was room.
#[inline(always)]
pub(crate) fn emit(kind: EventKind, tuple: &Tuple, fill: impl FnOnce(&mut Event)) -> bool {
    let Some(mut entry) = RING.reserve::<Event>(0) else {
        count(Global::EventsLost);
        return false;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the reserved record is ours until it is submitted, is as large as the structure, and all-zero bytes are a
    // valid event; it is written as a whole before it is referred to.
    let event = unsafe {
        core::ptr::write_bytes(event, 0, 1);
        &mut *event
    };
    event.time_ns = now();
    event.tuple = *tuple;
    event.kind = kind as u8;
    fill(event);
    // One wake-up for many events: the reader also looks on its own several times a second. The end of a process is a mark, whose
    // counts are those of when it is read.
    let wake = kind == EventKind::ProcessExited || RING.query(BPF_RB_AVAIL_DATA as u64) >= config!(wake_bytes) as u64;
    entry.submit(if wake { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP } as u64);
    true
}

/// Whether the reader is so far behind that what need not be told had better not be.
#[inline(always)]
pub(crate) fn is_half_full() -> bool {
    RING.query(BPF_RB_AVAIL_DATA as u64) >= config!(wake_bytes) as u64 * 4
}

/// Notes a listener's queues on an event, to report them.
#[inline(always)]
pub(crate) fn queues(event: &mut Event, listener: Option<Sock>) {
    if let Some(listener) = listener {
        event.accept_queue = listener.accept_queue();
        event.accept_limit = listener.accept_limit();
        event.half_open = listener.half_open();
    }
}
