//! A connection is handed to a process.
//!
//! ```c
//! struct sock *inet_csk_accept(struct sock *sk, int flags, int *err, bool kern);    // up to 6.9
//! struct sock *inet_csk_accept(struct sock *sk, struct proto_accept_arg *arg);      // after
//! ```
//! Called by `inet_accept()` for `accept()`, `accept4()`, io_uring and in-kernel servers. NULL is most often EAGAIN.
//!
//! As a tracepoint: `sys_exit_accept` and `sys_exit_accept4`. The result is a file descriptor of the current task; behind it is
//! the child, and behind the first argument, which the kernel leaves in the saved registers, the listener. io_uring does not come
//! here. What is accepted may be closed already.
//!
//! Read from: net/ipv4/inet_connection_sock.c, net/ipv4/af_inet.c, net/socket.c (6.18).

use aya_ebpf::{macros::tracepoint, programs::TracePointContext};
use tracer_abi::abi::{EventKind, Phase, Tuple, flag, state, wait_bucket};

use super::listener;
use crate::{
    emit::{emit, now, slot_counters},
    kernel::{INET, INET6, Sock, Syscall, current, sock_of_fd, tcp},
    maps::EPOCH,
    watch,
};

/// Offset of `ret` in the record of a `sys_exit_*` tracepoint.
const RET: usize = 16;

/// The end of `accept()`.
#[tracepoint]
fn tp_accept(ctx: TracePointContext) -> u32 {
    returned(&ctx);
    0
}

/// The end of `accept4()`.
#[tracepoint]
fn tp_accept4(ctx: TracePointContext) -> u32 {
    returned(&ctx);
    0
}

#[inline(always)]
fn returned(ctx: &TracePointContext) -> Option<()> {
    // SAFETY: every record of a sys_exit tracepoint has its result there.
    let ret: i64 = unsafe { ctx.read_at(RET) }.ok()?;
    if ret < 0 {
        return None;
    }
    let phase = watch::phase()?;
    let child = sock_of_fd(ret as u32)?;
    let family = child.family();
    if family != INET && family != INET6 {
        return None;
    }
    let listener = sock_of_fd(Syscall::current().arg0() as u32)?;
    accepted(phase, listener, child)
}

/// Whether a connection that waits, or waited, for `accept()` began before counting did; forgets it if so.
#[inline(always)]
pub(super) fn is_earlier(child: Sock, tuple: &Tuple) -> bool {
    let epoch_us = match EPOCH.get(0) {
        Some(epoch) => *epoch / 1000,
        None => 0,
    };
    if let Some(known) = watch::find(tuple)
        && known.state & state::EARLIER != 0
    {
        watch::forget(tuple);
        return true;
    }
    child.established_us() < epoch_us
}

/// A process has got a connection.
#[inline(always)]
pub(super) fn accepted(phase: Phase, listener: Sock, child: Sock) -> Option<()> {
    let slot = listener::slot_of(listener.0)?;
    let netns = listener::info(slot)?.netns;
    let tuple = child.server_tuple(child.local_port(), netns);
    if phase != Phase::Counting {
        return None;
    }
    if is_earlier(child, &tuple) {
        return Some(());
    }
    let counters = slot_counters(slot)?;
    counters.accepted += 1;
    let state = child.state();
    // The client had closed (CLOSE_WAIT) or reset (CLOSE) before anybody accepted.
    let dead = state == tcp::CLOSE || state == tcp::CLOSE_WAIT;
    counters.dead_on_arrival += dead as u64;
    let wait = (now() / 1000).saturating_sub(child.established_us());
    // Hidden from the compiler, which would otherwise leave out the bounds check that the verifier insists on.
    let bucket = core::hint::black_box(wait_bucket(wait));
    if let Some(bucket) = counters.wait.get_mut(bucket) {
        *bucket += 1;
    }
    if wait > counters.wait_max_us {
        counters.wait_max_us = wait;
    }
    // What was troubled only after this one was established is another attempt from the same port: this one is dead.
    if let Some(known) = watch::find(&tuple)
        && known.first_ns / 1000 <= child.established_us()
    {
        known.state |= state::ACCEPTED;
        let task = current();
        let told = emit(EventKind::Accepted, &tuple, |e| {
            e.isn = known.isn;
            e.slot = slot;
            e.detail = if wait > u32::MAX as u64 { u32::MAX } else { wait as u32 };
            e.pid = task.pid();
            e.comm = task.comm();
            e.flags = if dead { flag::DEAD_ON_ARRIVAL } else { 0 };
        });
        if told {
            watch::forget(&tuple);
        }
    }
    Some(())
}
