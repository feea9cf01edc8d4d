//! Every change of a TCP state.
//!
//! ```c
//! void inet_sk_state_store(struct sock *sk, int newstate);
//! void inet_sk_set_state(struct sock *sk, int state);
//! ```
//! As a tracepoint: `inet_sock_set_state(sk, oldstate, newstate)`, before the new state is stored. What matters here:
//!
//! | change | meaning | body |
//! |---|---|---|
//! | CLOSE to LISTEN, LISTEN to CLOSE | a listener opened, closed | `listener` |
//! | SYN_RECV to ESTABLISHED, held by nobody | a connection has entered the accept queue | `child` |
//! | ESTABLISHED to CLOSE_WAIT, right after | completed by a FIN | `child` |
//! | ESTABLISHED or CLOSE_WAIT to CLOSE, held by nobody | it was reset, or its listener closed, before `accept()` | `child` |
//! | CLOSE to SYN_SENT, and from there | a local client | `connect` |
//! | ESTABLISHED to FIN_WAIT1, CLOSE_WAIT to LAST_ACK | a FIN is sent | `client_end` |
//! | ESTABLISHED or CLOSE_WAIT to CLOSE, in a process | a RST is sent | `client_end` |
//!
//! LISTEN to SYN_RECV on a clone is a child being created; its ports are not set yet. If it is made for a SYN, it is one of TCP Fast
//! Open, and in the accept queue before it is established. SCTP, DCCP and
//! MPTCP sockets come here too and are told by their protocol. The same on all kernels from 4.16.
//!
//! Before 6.1 one program does, which can interrupt itself. Up to 6.19 two do: nothing but a softirq can come in between, and what only
//! processes do is done by the first. Since 7.0 a program here can be preempted, in a process, and there are six: three for what a
//! softirq can do, three for what only a process does. Each leaves at once what is not its concern, and disables preemption for the rest
//! (`kernel::unpreempted`): a process that is preempted in one keeps it from all others on that CPU.
//!
//! Read from: net/ipv4/af_inet.c, net/ipv4/tcp.c, net/ipv4/tcp_input.c, net/ipv4/inet_connection_sock.c (6.18).

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use super::{child, client_end, connect, fast_open, listener};
use crate::{
    kernel::{
        Sock, config, first_did, first_handled, last_must_do, last_must_handle, next_must_do, next_must_handle, tcp,
        unpreempted_at_tracepoint,
    },
    maps::Twin,
    watch,
};

/// Changes that a softirq makes, or either. Before 7.0, also those that only a process makes.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn tp_set_state(ctx: BtfTracePointContext) -> i32 {
    let (sk, old, new): (u64, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    if concerns_packets(old, new) {
        unpreempted_at_tracepoint(|| match (old, new) {
            (tcp::SYN_RECV, tcp::ESTABLISHED) => {
                established(Sock(sk));
                first_handled(Twin::Child, sk);
            }
            (tcp::ESTABLISHED | tcp::CLOSE_WAIT, tcp::CLOSE) => {
                gone(Sock(sk));
                first_handled(Twin::Gone, sk);
            }
            _ => done(repeatable(Sock(sk), old, new)),
        });
        // The only ones that both can make. To leave here keeps the verifier from following the rest after each way through the above.
        if new != tcp::CLOSE {
            return 0;
        }
    }
    if config!(preempted) == 0 && concerns_processes(old, new) && is_a_process(Sock(sk), old, new) {
        in_a_process(Sock(sk), old, new);
    }
    0
}

/// The same, for what the first was not run for: what a softirq does while it interrupts the first. Of what nobody notes it only does
/// what is done once, however often it is asked for.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn tp_set_state2(ctx: BtfTracePointContext) -> i32 {
    if config!(preempted) == 0 {
        again(&ctx, last_must_handle);
    } else {
        again(&ctx, next_must_handle);
    }
    0
}

/// The same, since 7.0, for what neither was run for: two processes were preempted in them.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn tp_set_state3(ctx: BtfTracePointContext) -> i32 {
    again(&ctx, last_must_handle);
    0
}

#[inline(always)]
fn again(ctx: &BtfTracePointContext, must_handle: impl Fn(Twin, u64) -> bool) {
    let (sk, old, new): (u64, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    if concerns_packets(old, new) {
        unpreempted_at_tracepoint(|| match (old, new) {
            (tcp::SYN_RECV, tcp::ESTABLISHED) if must_handle(Twin::Child, sk) => done(established(Sock(sk))),
            (tcp::ESTABLISHED | tcp::CLOSE_WAIT, tcp::CLOSE) if must_handle(Twin::Gone, sk) => done(gone(Sock(sk))),
            _ => done(repeatable(Sock(sk), old, new)),
        });
    }
}

/// Changes that only a process makes, since 7.0: in programs of their own, so that a process that is preempted in one does not keep
/// those of the softirqs from running. Before, nothing but a softirq can come in between, and two programs do.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn tp_own_state(ctx: BtfTracePointContext) -> i32 {
    let (sk, old, new): (u64, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    if concerns_processes(old, new) {
        unpreempted_at_tracepoint(|| {
            if is_a_process(Sock(sk), old, new) {
                in_a_process(Sock(sk), old, new);
                first_did(sk, kind(old, new));
            }
        });
    }
    0
}

/// The same, for what the first was not run for: another process was preempted in it.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn tp_own_state2(ctx: BtfTracePointContext) -> i32 {
    own_again(&ctx, next_must_do);
    0
}

/// The same, for what neither was run for.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn tp_own_state3(ctx: BtfTracePointContext) -> i32 {
    own_again(&ctx, last_must_do);
    0
}

#[inline(always)]
fn own_again(ctx: &BtfTracePointContext, must_do: impl Fn(u64, u8) -> bool) {
    let (sk, old, new): (u64, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    if concerns_processes(old, new) {
        unpreempted_at_tracepoint(|| {
            if is_a_process(Sock(sk), old, new) && must_do(sk, kind(old, new)) {
                in_a_process(Sock(sk), old, new);
            }
        });
    }
}

/// Whether a softirq can make this change. Of the others a program is rid in less time than it takes to disable preemption.
#[inline(always)]
fn concerns_packets(old: i32, new: i32) -> bool {
    use tcp::*;
    matches!(
        (old, new),
        (LISTEN, SYN_RECV)
            | (SYN_RECV | SYN_SENT, ESTABLISHED | CLOSE)
            | (ESTABLISHED, CLOSE_WAIT | CLOSE)
            | (CLOSE_WAIT, CLOSE)
    )
}

/// Whether a process can make this change, and it matters.
#[inline(always)]
fn concerns_processes(old: i32, new: i32) -> bool {
    use tcp::*;
    matches!(
        (old, new),
        (CLOSE, SYN_SENT | LISTEN)
            | (LISTEN, CLOSE)
            | (ESTABLISHED, FIN_WAIT1 | CLOSE)
            | (CLOSE_WAIT, LAST_ACK | CLOSE)
    )
}

/// What a body could not do is nobody's concern: it had nothing to do with a connection of ours.
#[inline(always)]
fn done(_: Option<()>) {}

#[inline(always)]
fn established(sk: Sock) -> Option<()> {
    let phase = watch::phase()?;
    if !child::is_seen_by_function() && sk.is_tcp() && !fast_open::was_opened(sk) && !sk.is_held() {
        child::queued(phase, sk);
    }
    Some(())
}

#[inline(always)]
fn gone(sk: Sock) -> Option<()> {
    let phase = watch::phase()?;
    if sk.is_tcp() && !sk.is_held() {
        child::closed(phase, sk);
    }
    Some(())
}

/// Changes that a softirq can make. Each body finds nothing left to do when it is run a second time.
#[inline(always)]
fn repeatable(sk: Sock, old: i32, new: i32) -> Option<()> {
    use tcp::*;
    match (old, new) {
        (LISTEN, SYN_RECV) => fast_open::made(sk),
        // Reset, timed out or closed with its listener before its last ACK, and not accepted before.
        (SYN_RECV, CLOSE) if fast_open::was_opened(sk) => gone(sk),
        (ESTABLISHED, CLOSE_WAIT) => child::fin(sk),
        (SYN_SENT, ESTABLISHED) if sk.is_tcp() => connect::established(sk),
        (SYN_SENT, CLOSE) if sk.is_tcp() => connect::closed(sk),
        _ => None,
    }
}

/// Whether a process makes this change that it can make. What a softirq does must not come to the memory by thread.
#[inline(always)]
fn is_a_process(sk: Sock, old: i32, new: i32) -> bool {
    new != tcp::CLOSE || old == tcp::LISTEN || client_end::is_reset(sk)
}

/// Tells the changes of one socket apart: each has its own kind, and none that of an `accept()`.
#[inline(always)]
fn kind(old: i32, new: i32) -> u8 {
    (old as u8) << 4 | new as u8
}

#[inline(always)]
fn in_a_process(sk: Sock, old: i32, new: i32) -> Option<()> {
    use tcp::*;
    match (old, new) {
        (CLOSE, SYN_SENT) if sk.is_tcp() => connect::started(sk),
        (CLOSE, LISTEN) if sk.is_tcp() => listener::open(sk, true).map(drop),
        (LISTEN, CLOSE) if sk.is_tcp() => listener::close(sk),
        (ESTABLISHED, FIN_WAIT1) | (CLOSE_WAIT, LAST_ACK) if sk.is_tcp() => client_end::ended(sk, false),
        (ESTABLISHED | CLOSE_WAIT, CLOSE) if sk.is_tcp() => client_end::ended(sk, true),
        _ => None,
    }
}
