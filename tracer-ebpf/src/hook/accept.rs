//! A connection is handed to a process.
//!
//! ```c
//! struct sock *inet_csk_accept(struct sock *sk, int flags, int *err, bool kern);    // up to 6.9
//! struct sock *inet_csk_accept(struct sock *sk, struct proto_accept_arg *arg);      // after
//! ```
//! Called by `inet_accept()` for `accept()`, `accept4()`, io_uring and in-kernel servers. NULL is most often EAGAIN.
//!
//! It takes the child from the queue before the child has handled its first segment, on another CPU perhaps: `inet_accept()` then
//! waits for that, by locking the child. So the moment that is used is the one after.
//!
//! As functions: the entry of `security_sock_graft(sk, newsock)`, called by `sock_graft()` at the end of `inet_accept()`, and of
//! `mptcp_stream_accept()`: there bottom halves are off, so that no packet comes in between and nobody is preempted. It is told the
//! child only; which of a port's several listeners it came from is kept from the time when it was queued. All of `accept()`,
//! `accept4()`, io_uring and in-kernel servers come here. The end of `inet_accept()` would know the listener too, but a thread that
//! sleeps in it when the program is attached has passed the place where its end is hooked, and a server that waits in `accept()`
//! is the ordinary case: the first connection of each of its threads would not be seen.
//!
//! As a tracepoint: `sys_exit_accept` and `sys_exit_accept4`. The result is a file descriptor of the current task; behind it is
//! the child, and behind the first argument, which the kernel leaves in the saved registers, the listener. io_uring does not come
//! here. What is accepted may be closed already.
//!
//! Since 7.x a process can be preempted in the programs at system calls: they are pairs, and disable preemption where they can
//! (`kernel::unpreempted`); what they count is added atomically, for kernels where they cannot.
//!
//! Read from: net/ipv4/inet_connection_sock.c, net/ipv4/af_inet.c, net/socket.c (6.18).

use aya_ebpf::{
    macros::{fentry, kprobe, tracepoint},
    programs::{FEntryContext, ProbeContext, TracePointContext},
};
use tracer_abi::abi::{EventKind, NO_LISTENER, Phase, Tuple, flag, state, wait_bucket};

use super::listener;
use crate::{
    emit::{emit, now, slot_counters},
    kernel::{
        INET, INET6, Sock, Syscall, atomic, current, first_did, last_must_do, sock_of_fd, tcp,
        unpreempted_at_tracepoint,
    },
    maps::{CHILDREN, EPOCH},
    watch,
};

/// Tells what is noted here from changes of state, which have their states in its place.
const ACCEPT: u8 = 0;

/// `security_sock_graft(sk, newsock)`: the child. Bottom halves are off, so that nothing interrupts this.
#[fentry(function = "security_sock_graft")]
fn fe_graft(ctx: FEntryContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    if let Some(child) = Sock(sk).tcp() {
        taken(child);
    }
    0
}

#[kprobe]
fn kp_graft(ctx: ProbeContext) -> u32 {
    if let Some(child) = ctx.arg::<u64>(0).and_then(|sk| Sock(sk).tcp()) {
        taken(child);
    }
    0
}

#[inline(always)]
fn taken(child: Sock) -> Option<()> {
    let phase = watch::phase()?;
    if !child.is_tcp() {
        return None;
    }
    let net = child.net();
    let port = child.local_port();
    let listed = listener::of_port(net, port)?;
    let slot = if listed.listeners == 1 {
        listed.slot
    } else {
        // SAFETY: the value is copied at once.
        match unsafe { CHILDREN.get(child.0) }.copied() {
            Some(slot) => {
                let _ = CHILDREN.remove(child.0);
                slot
            }
            None => listener::find(listed, net, port, &child.server_tuple(port, 0).server),
        }
    };
    accepted(phase, slot, child)
}

/// Offset of `ret` in the record of a `sys_exit_*` tracepoint.
const RET: usize = 16;

/// The end of `accept()`.
#[tracepoint]
fn tp_accept(ctx: TracePointContext) -> u32 {
    returned(&ctx, true);
    0
}

/// The same, for what the first was not run for: another thread was preempted in it.
#[tracepoint]
fn tp_accept_b(ctx: TracePointContext) -> u32 {
    returned(&ctx, false);
    0
}

/// The end of `accept4()`.
#[tracepoint]
fn tp_accept4(ctx: TracePointContext) -> u32 {
    returned(&ctx, true);
    0
}

/// The same, for what the first was not run for.
#[tracepoint]
fn tp_accept4b(ctx: TracePointContext) -> u32 {
    returned(&ctx, false);
    0
}

#[inline(always)]
fn returned(ctx: &TracePointContext, first: bool) {
    // SAFETY: every record of a sys_exit tracepoint has its result there.
    let ret: i64 = unsafe { ctx.read_at(RET) }.unwrap_or(-1);
    if ret >= 0 {
        unpreempted_at_tracepoint(|| descriptor(ret as u32, first));
    }
}

#[inline(always)]
fn descriptor(fd: u32, first: bool) -> Option<()> {
    let phase = watch::phase()?;
    let child = sock_of_fd(fd)?.tcp()?;
    if first {
        first_did(child.0, ACCEPT);
    } else if !last_must_do(child.0, ACCEPT) {
        return None;
    }
    let family = child.family();
    if family != INET && family != INET6 {
        return None;
    }
    let listener = sock_of_fd(Syscall::current().arg0() as u32)?.tcp()?;
    accepted(phase, listener::slot_of(listener.0)?, child)
}

/// Whether a connection that waits, or waited, for `accept()` began before counting did. Its tuple, if anything is watched.
#[inline(always)]
pub(super) fn is_earlier(child: Sock, tuple: Option<&Tuple>) -> bool {
    let epoch_us = match EPOCH.get(0) {
        Some(epoch) => *epoch / 1000,
        None => 0,
    };
    if let Some(tuple) = tuple
        && let Some(known) = watch::find(tuple)
        && known.state & state::EARLIER != 0
    {
        return true;
    }
    child.established_us() < epoch_us
}

/// A process has got a connection.
#[inline(always)]
fn accepted(phase: Phase, slot: u32, child: Sock) -> Option<()> {
    if phase != Phase::Counting || slot == NO_LISTENER {
        return None;
    }
    let tuple = match watch::any() {
        true => Some(child.server_tuple(child.local_port(), listener::info(slot)?.netns)),
        false => None,
    };
    if is_earlier(child, tuple.as_ref()) {
        if let Some(tuple) = &tuple {
            watch::forget(tuple);
        }
        return Some(());
    }
    let counters = slot_counters(slot)?;
    // SAFETY: a live map value, changed in this function only, by atomic addition: where preemption cannot be disabled, another process
    // may count between the load and the store of this one.
    unsafe { atomic::add(&raw mut counters.accepted, 1) };
    let state = child.state();
    // The client had closed (CLOSE_WAIT) or reset (CLOSE) before anybody accepted.
    let dead = state == tcp::CLOSE || state == tcp::CLOSE_WAIT;
    // SAFETY: as above.
    unsafe { atomic::add(&raw mut counters.dead_on_arrival, dead as u64) };
    let wait = (now() / 1000).saturating_sub(child.established_us());
    // Hidden from the compiler, which would otherwise leave out the bounds check that the verifier insists on.
    let bucket = core::hint::black_box(wait_bucket(wait));
    if let Some(bucket) = counters.wait.get_mut(bucket) {
        // SAFETY: as above.
        unsafe { atomic::add(bucket, 1) };
    }
    // Of two that are counted at once, the longer may be lost.
    if wait > counters.wait_max_us {
        counters.wait_max_us = wait;
    }
    // What was troubled only after this one was established is another attempt from the same port: this one is dead.
    if let Some(tuple) = &tuple
        && let Some(known) = watch::find(tuple)
        && known.first_ns / 1000 <= child.established_us()
    {
        known.state |= state::ACCEPTED;
        let task = current();
        let told = emit(EventKind::Accepted, tuple, |e| {
            e.isn = known.isn;
            e.slot = slot;
            e.detail = if wait > u32::MAX as u64 { u32::MAX } else { wait as u32 };
            e.pid = task.pid();
            e.comm = task.comm();
            e.flags = if dead { flag::DEAD_ON_ARRIVAL } else { 0 };
        });
        if told {
            watch::forget(tuple);
        }
    }
    Some(())
}
