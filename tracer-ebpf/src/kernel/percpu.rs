//! Per-CPU memory of the kernel, without its symbols.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_map_lookup_percpu_elem, bpf_probe_read_kernel, bpf_probe_read_kernel_buf};

use super::config;
use super::current;
use crate::maps::{CPU, Call, CpuState, DONE, DONE_LEN, SCRATCH, Twin};

/// This CPU's state.
#[inline(always)]
pub(crate) fn cpu() -> Option<&'static mut CpuState> {
    let state = CPU.get_ptr_mut(0)?;
    // SAFETY: the pointer is to this CPU's value of a map that lives as long as the program. Programs of one CPU can
    // interrupt each other (a softirq in a system call); each field has one writer context, as its documentation says.
    Some(unsafe { &mut *state })
}

/// Keeps the arguments of a function for its end.
#[inline(always)]
pub(crate) fn keep(call: Call, first: u64, second: u64) {
    if let Some(cpu) = cpu() {
        cpu.calls[call as usize] = [first, second];
    }
}

/// The arguments of a function that ends; only once, so that a missed entry does not lend it those of another call.
#[inline(always)]
pub(crate) fn kept(call: Call) -> Option<(u64, u64)> {
    let cpu = cpu()?;
    let [first, second] = cpu.calls[call as usize];
    cpu.calls[call as usize] = [0; 2];
    if first == 0 { None } else { Some((first, second)) }
}

/// The first of several programs has handled this object.
#[inline(always)]
pub(crate) fn first_handled(twin: Twin, object: u64) {
    if let Some(cpu) = cpu() {
        cpu.handled[twin as usize] = object;
    }
}

/// Whether the program in the middle has to handle this object, because the first was not run for it. The last need not, then.
#[inline(always)]
pub(crate) fn next_must_handle(twin: Twin, object: u64) -> bool {
    must_handle(twin, object, object)
}

/// Whether the last of several programs has to handle this object, because none before was run for it.
#[inline(always)]
pub(crate) fn last_must_handle(twin: Twin, object: u64) -> bool {
    // The same address can come again: of that the first has to speak again.
    must_handle(twin, object, 0)
}

#[inline(always)]
fn must_handle(twin: Twin, object: u64, then: u64) -> bool {
    match cpu() {
        Some(cpu) => core::mem::replace(&mut cpu.handled[twin as usize], then) != object,
        None => false,
    }
}

/// The current thread's place in [`DONE`].
#[inline(always)]
fn done(id: u64) -> Option<&'static mut [u64; 2]> {
    let place = DONE.get_ptr_mut(id as u32 & (DONE_LEN - 1))?;
    // SAFETY: a live value of an array map; what two threads write at once is compared as a whole.
    Some(unsafe { &mut *place })
}

/// Who does what: of a mark, that which is not the object. If the last program was missed, the mark stays, and must not be taken for
/// what the same thread does to the object next, of which the first may be missed. Numbers of processes have 22 bits, so that the
/// upper byte of a thread's is free.
#[inline(always)]
fn doer(kind: u8) -> (u64, u64) {
    let id = current().id;
    (id, id | (kind as u64) << 56)
}

/// The first of several programs has done this in process context, where a CPU's own memory can change hands between the two.
#[inline(always)]
pub(crate) fn first_did(object: u64, kind: u8) {
    let (id, doer) = doer(kind);
    if let Some(place) = done(id) {
        *place = [doer, object];
    }
}

/// Whether the program in the middle has to do this, because the first was not run for it. The last need not, then.
#[inline(always)]
pub(crate) fn next_must_do(object: u64, kind: u8) -> bool {
    must_do(object, kind, object)
}

/// Whether the last of several programs has to do this, because none before was run for it.
#[inline(always)]
pub(crate) fn last_must_do(object: u64, kind: u8) -> bool {
    must_do(object, kind, 0)
}

#[inline(always)]
fn must_do(object: u64, kind: u8, then: u64) -> bool {
    let (id, doer) = doer(kind);
    let Some(place) = done(id) else { return false };
    let is_done = place[0] == doer && place[1] == object;
    *place = [doer, then];
    !is_done
}

/// `bpf_array.pptrs[0]` of the map `CPU`: the per-CPU address of its value, before any CPU's offset is added.
#[inline(always)]
fn base() -> Option<u64> {
    let copy = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: as above; this scratch is only written here, by one control program or one state change at a time, and what
    // two would write at once is equal.
    let copy = unsafe { &mut *copy };
    // The verifier lets nobody add to a pointer to a map, so the structure is copied from its start.
    // SAFETY: the source is the map itself, which the helper reads as plain kernel memory.
    unsafe { bpf_probe_read_kernel_buf((&raw const CPU).cast::<u8>(), copy) }.ok()?;
    let at = config!(offsets.array_pptrs) as usize;
    if at > copy.len() - 8 {
        return None;
    }
    // SAFETY: in bounds by the check above; a helper, because the bytes need not be aligned for the verifier.
    unsafe { bpf_probe_read_kernel(copy.as_ptr().add(at).cast::<u64>()) }.ok()
}

/// The pointer as a number. The verifier follows pointers through registers and the stack, but not through a helper.
#[inline(always)]
fn as_number(pointer: *const c_void) -> Option<u64> {
    let held = pointer;
    // SAFETY: reads eight bytes of this very stack frame.
    unsafe { bpf_probe_read_kernel((&raw const held).cast::<u64>()) }.ok()
}

/// What to add to a per-CPU address to get this CPU's copy.
#[inline(always)]
pub(crate) fn percpu_offset() -> Option<u64> {
    let state = cpu()?;
    if state.percpu_offset == 0 {
        let value = as_number((&raw const *state).cast())?;
        state.percpu_offset = value.wrapping_sub(base()?);
    }
    Some(state.percpu_offset)
}

/// What to add to a per-CPU address to get another CPU's copy (`bpf_map_lookup_percpu_elem`, kernel 5.19 and later).
#[inline(always)]
pub(crate) fn percpu_offset_of(cpu: u32) -> Option<u64> {
    let key = 0u32;
    // SAFETY: the map and the key are valid, and the key lives through the call.
    let value = unsafe { bpf_map_lookup_percpu_elem((&raw const CPU).cast_mut().cast(), (&raw const key).cast(), cpu) };
    if value.is_null() {
        return None;
    }
    Some(as_number(value)?.wrapping_sub(base()?))
}
