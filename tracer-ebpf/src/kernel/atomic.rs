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
