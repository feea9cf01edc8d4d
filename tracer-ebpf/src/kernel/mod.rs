//! Typed views of kernel memory: the only place that reads it.
//!
//! A view is an address and nothing else. Offsets come from the running kernel's BTF, through [`CONFIG`]; every read goes
//! through `bpf_probe_read_kernel`, which answers an address that is no longer mapped with an error, not with a fault.

pub(crate) mod atomic;
pub(crate) mod config;
mod net;
mod percpu;
mod preempt;
mod request;
mod skb;
mod sock;
mod task;

pub(crate) use config::config;
pub(crate) use net::{ALL, Net, only};
pub(crate) use percpu::{
    cpu, first_did, first_handled, keep, kept, last_must_do, last_must_handle, next_must_do, next_must_handle,
    percpu_offset, percpu_offset_of,
};
pub(crate) use preempt::{unpreempted, unpreempted_at_tracepoint};
pub(crate) use request::Request;
pub(crate) use skb::{Segment, Skb};
pub(crate) use sock::Sock;
pub(crate) use task::{Syscall, Task, current, sock_of_fd};

use aya_ebpf::{cty::c_void, helpers::generated::bpf_probe_read_kernel};
use core::mem::MaybeUninit;
use tracer_abi::abi::{Address, Kfunc};

/// `IPPROTO_TCP`.
pub(crate) const TCP: u16 = 6;
/// `IPPROTO_MPTCP`.
pub(crate) const MPTCP: u16 = 262;
/// `AF_INET`.
pub(crate) const INET: u16 = 2;
/// `AF_INET6`.
pub(crate) const INET6: u16 = 10;

/// TCP states (`include/net/tcp_states.h`).
pub(crate) mod tcp {
    pub(crate) const ESTABLISHED: i32 = 1;
    pub(crate) const SYN_SENT: i32 = 2;
    pub(crate) const SYN_RECV: i32 = 3;
    pub(crate) const FIN_WAIT1: i32 = 4;
    pub(crate) const CLOSE: i32 = 7;
    pub(crate) const CLOSE_WAIT: i32 = 8;
    pub(crate) const LAST_ACK: i32 = 9;
    pub(crate) const LISTEN: i32 = 10;
    pub(crate) const NEW_SYN_RECV: i32 = 12;
}

/// What can be read: plain bytes, of which any are a value.
///
/// # Safety
/// Every bit pattern must be a valid value of the type.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: integers.
unsafe impl Plain for u8 {}
// SAFETY: integers.
unsafe impl Plain for u16 {}
// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for u64 {}
// SAFETY: two integers.
unsafe impl Plain for Address {}

/// Reads a value at a kernel address.
#[inline(always)]
pub(crate) fn read<T: Plain>(address: u64) -> Option<T> {
    let (failed, value) = copy(address);
    if failed { None } else { Some(value) }
}

/// Reads a value at a kernel address; zeroes if that is not readable. Without a branch: the verifier would follow both ways of each
/// of a row of reads.
#[inline(always)]
pub(crate) fn read_or_zero<T: Plain>(address: u64) -> T {
    copy(address).1
}

/// What is at a kernel address, and whether it could not be read.
#[inline(always)]
fn copy<T: Plain>(address: u64) -> (bool, T) {
    if config!(plain_reads) != 0 {
        return (false, load(address));
    }
    let mut value = MaybeUninit::<T>::uninit();
    let size = size_of::<T>() as u32;
    // SAFETY: the helper writes exactly `size` bytes to a place of that size. It checks the source address itself.
    let result = unsafe { bpf_probe_read_kernel(value.as_mut_ptr().cast::<c_void>(), size, address as *const c_void) };
    // SAFETY: the helper has written all of it: what it found, or zeroes when it failed (`bpf_probe_read_kernel_common()`). Any bytes
    // are a value of T.
    (result != 0, unsafe { value.assume_init() })
}

/// The same by a load of its own, which is zeroes where nothing is mapped: a helper takes twenty times as many instructions.
#[inline(always)]
fn load<T: Plain>(address: u64) -> T {
    // SAFETY: a number in the place of a function's address is how a helper is called on this target; it is called as every function.
    let cast = unsafe {
        core::mem::transmute::<usize, unsafe extern "C" fn(*const c_void, u32) -> *const T>(Kfunc::RdonlyCast as usize)
    };
    let of = config!(read_as);
    // SAFETY: the collector makes of it what gives the address back, as one that may be read from, and sets `plain_reads` only then. The
    // kernel lets such a load fail without a fault. Any bytes are a value of T.
    unsafe { cast(address as *const c_void, of).read_volatile() }
}
