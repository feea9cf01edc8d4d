//! Typed views of kernel memory: the only place that reads it.
//!
//! A view is an address and nothing else. Offsets come from the running kernel's BTF, through [`CONFIG`]; every read goes
//! through `bpf_probe_read_kernel`, which answers an address that is no longer mapped with an error, not with a fault.

pub(crate) mod atomic;
pub(crate) mod config;
mod net;
mod percpu;
mod request;
mod skb;
mod sock;
mod task;

pub(crate) use config::config;
pub(crate) use net::{ALL, Net, only};
pub(crate) use percpu::{
    cpu, first_did, first_handled, keep, kept, percpu_offset, percpu_offset_of, second_must_do, second_must_handle,
};
pub(crate) use request::Request;
pub(crate) use skb::{Segment, Skb};
pub(crate) use sock::Sock;
pub(crate) use task::{Syscall, current, sock_of, sock_of_fd};

use aya_ebpf::helpers::bpf_probe_read_kernel;

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
    pub(crate) const CLOSE: i32 = 7;
    pub(crate) const CLOSE_WAIT: i32 = 8;
    pub(crate) const LISTEN: i32 = 10;
    pub(crate) const NEW_SYN_RECV: i32 = 12;
}

/// Reads a value of plain bytes at a kernel address.
#[inline(always)]
pub(crate) fn read<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the source address itself and copies only if all of it is readable; T is plain old data
    // (integers and byte arrays) at every call, so any bytes are a valid value.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}
