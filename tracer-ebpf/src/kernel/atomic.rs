//! Atomic addition to map values. `core::sync::atomic` offers none for this target, whose older processors had no other.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

/// What the processor can add to atomically.
pub(crate) trait Integer: Copy {}
impl Integer for u32 {}
impl Integer for u64 {}

/// Adds to a counter that several CPUs change, or that one CPU changes in processes that interrupt one another.
///
/// # Safety
///
/// `counter` points to a live, aligned map value that is otherwise only read.
#[inline(always)]
pub(crate) unsafe fn add<T: Integer>(counter: *mut T, by: T) {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<T, T, { AtomicOrdering::Relaxed }>(counter, by) };
}
