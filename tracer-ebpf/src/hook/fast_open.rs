//! TCP Fast Open: a child that is in the accept queue from its SYN on.
//!
//! ```c
//! struct sock *tcp_try_fastopen(struct sock *sk, struct sk_buff *skb, struct request_sock *req, struct tcp_fastopen_cookie *foc,
//!                               const struct dst_entry *dst);
//! ```
//! Called by `tcp_conn_request()`. With a valid cookie it makes the child (LISTEN to SYN_RECV, see `sock_state`), which is queued at
//! once and can be accepted before its last ACK comes. Every other child is made with that ACK, in `tcp_check_req()` or a cookie
//! check, and is established in the same softirq. So a child that is in SYN_RECV when a SYN has been handled, and has the tuple of
//! the SYN, is one of these; no hook of its own is needed. The same on all kernels from 5.10 to 7.2.
//!
//! Read from: net/ipv4/tcp_fastopen.c, net/ipv4/tcp_input.c (6.18).

use tracer_abi::abi::{EventKind, Tuple, state};

use super::{child, listener};
use crate::{
    emit::{emit, queues, slot_counters},
    kernel::{Segment, Sock, atomic, cpu, tcp},
    maps::{FAST_OPEN, FAST_OPENED},
    watch,
};

/// A child was made from a listener.
#[inline(always)]
pub(super) fn made(sk: Sock) -> Option<()> {
    cpu()?.newborn = sk.0;
    Some(())
}

/// Whether the SYN at hand may have made a child.
#[inline(always)]
pub(super) fn is_due() -> bool {
    match cpu() {
        Some(cpu) if cpu.newborn != 0 => {
            let is_new = Sock(cpu.newborn).state() == tcp::SYN_RECV;
            if !is_new {
                cpu.newborn = 0;
            }
            is_new
        }
        _ => false,
    }
}

/// The child that the SYN at hand has made.
#[inline(always)]
pub(super) fn newborn(tuple: &Tuple) -> Option<Sock> {
    let cpu = cpu()?;
    if cpu.newborn == 0 {
        return None;
    }
    let child = Sock(cpu.newborn);
    cpu.newborn = 0;
    // It may be one that was dropped again.
    let is_it = child.state() == tcp::SYN_RECV && child.server_tuple(child.local_port(), tuple.netns) == *tuple;
    if is_it { Some(child) } else { None }
}

/// A connection is in the accept queue since its SYN. The attempt and its request are counted by the caller.
#[inline(always)]
pub(super) fn opened(segment: &Segment, slot: u32, sk: Sock) -> Option<()> {
    let counters = slot_counters(slot)?;
    counters.children += 1;
    child::waits(counters, slot, sk);
    if let Some(known) = watch::find(&segment.tuple)
        && known.isn == segment.seq
    {
        known.state = known.state & !state::HALF_OPEN | state::QUEUED;
        emit(EventKind::ChildQueued, &segment.tuple, |e| {
            e.slot = slot;
            e.isn = segment.seq;
            queues(e, listener::sock(slot));
        });
    }
    FAST_OPEN.insert(sk.0, slot, 0).ok()?;
    let opened = FAST_OPENED.get_ptr_mut(0)?;
    // SAFETY: a live value of an array map, only ever changed by atomic addition.
    unsafe { atomic::add(opened, 1) };
    Some(())
}

/// Whether this child was opened fast, and is counted; it is forgotten then.
#[inline(always)]
pub(super) fn was_opened(sk: Sock) -> bool {
    match FAST_OPENED.get(0) {
        Some(opened) if *opened != 0 => FAST_OPEN.remove(sk.0).is_ok(),
        _ => false,
    }
}
