//! Atomic addition to map values. `core::sync::atomic` offers none for this target, whose older processors had no other.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

/// Adds to a counter that several CPUs change.
///
/// # Safety
///
/// `counter` points to a live, aligned map value that is otherwise only read.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, by: u64) {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, by) };
}

/// The same, and returns what it was (kernel 5.12 and later).
///
/// Ordered, because LLVM 22 makes the instruction without a result of a relaxed addition, and then takes the addend for it.
///
/// # Safety
///
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn fetch_add(counter: *mut u64, by: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(counter, by) }
}
