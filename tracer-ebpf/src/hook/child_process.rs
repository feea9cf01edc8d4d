//! A new child handles the segment that created it.
//!
//! ```c
//! int tcp_child_process(struct sock *parent, struct sock *child, struct sk_buff *skb);   // 6.12: enum skb_drop_reason
//! ```
//! Called by `tcp_v4_rcv()`, `tcp_v6_rcv()` and, for cookies, by `tcp_v4_do_rcv()` and `tcp_v6_do_rcv()`, with the child locked and in
//! the accept queue already. SYN_RECV to ESTABLISHED happens in it (see `sock_state`). The packet may be freed at its end, so what
//! the segment had is taken from the child: what was received and nobody can have read yet, for the child is still locked.
//!
//! As functions: from its entry, where the connection is counted, to its end. It runs in a softirq, or with bottom halves off, so that
//! its programs are always run, which those at changes of state are not (see `maps::Twin`).
//!
//! As a tracepoint: `sk_data_ready(sk)` (6.3 and later), raised for whatever a socket has as `sk_data_ready`. For a listener it ends
//! `tcp_child_process()`; for the child of the moment, before that, it means that the segment had data.
//!
//! Read from: net/ipv4/tcp_minisocks.c, net/ipv4/tcp_input.c, net/core/sock.c (5.10, 6.18).

use aya_ebpf::{
    macros::{btf_tracepoint, fentry, fexit, kprobe, kretprobe},
    programs::{BtfTracePointContext, FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use tracer_abi::abi::flag;

use super::child;
use crate::{
    kernel::{Skb, Sock, cpu, keep, kept, tcp},
    maps::{Call, CpuState},
    watch,
};

#[fentry(function = "tcp_child_process")]
fn fe_child(ctx: FEntryContext) -> i32 {
    let (parent, child, skb): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    begins(parent, Sock(child), Skb(skb));
    0
}

#[fexit(function = "tcp_child_process")]
fn fx_child(ctx: FExitContext) -> i32 {
    let parent: u64 = ctx.arg(0);
    let child: u64 = ctx.arg(1);
    ends(Sock(parent), Sock(child));
    0
}

#[kprobe]
fn kp_child(ctx: ProbeContext) -> u32 {
    if let (Some(parent), Some(child), Some(skb)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<u64>(2)) {
        keep(Call::ChildProcess, parent, child);
        begins(parent, Sock(child), Skb(skb));
    }
    0
}

#[kretprobe]
fn kr_child(_ctx: RetProbeContext) -> u32 {
    if let Some((parent, child)) = kept(Call::ChildProcess) {
        ends(Sock(parent), Sock(child));
    }
    0
}

/// It is in the accept queue, and nobody can accept it before this function ends.
#[inline(always)]
fn begins(parent: u64, sk: Sock, skb: Skb) -> Option<()> {
    let cpu = cpu()?;
    cpu.parent = parent;
    let phase = watch::phase()?;
    // A further subflow of MPTCP belongs to a socket already, and is in no queue.
    if !sk.is_tcp() || sk.is_held() {
        return None;
    }
    child::queued(phase, sk)?;
    if cpu.child == sk.0 && skb.segment(0)?.is_fin() {
        cpu.child_flags |= CpuState::FIN;
    }
    Some(())
}

#[inline(always)]
fn ends(parent: Sock, sk: Sock) -> Option<()> {
    let cpu = cpu()?;
    cpu.parent = 0;
    if cpu.child == 0 {
        return None;
    }
    if cpu.child == sk.0 {
        if cpu.child_flags & CpuState::FIN != 0 && sk.state() == tcp::CLOSE_WAIT {
            child::completed_by(sk, flag::FIN);
        }
        if sk.unread() > 0 {
            child::completed_by(sk, flag::DATA);
        }
    }
    child::announced(parent)
}

/// Every wake-up of a reader.
#[btf_tracepoint(function = "sk_data_ready")]
fn tp_data_ready(ctx: BtfTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    ready(Sock(sk));
    0
}

/// The same, for what the first was not run for (see `maps::Twin`). What the first has done leaves nothing to do.
#[btf_tracepoint(function = "sk_data_ready")]
fn tp_data_ready2(ctx: BtfTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    ready(Sock(sk));
    0
}

#[inline(always)]
fn ready(sk: Sock) -> Option<()> {
    let child = cpu()?.child;
    if child == 0 {
        return None;
    }
    if child == sk.0 { child::completed_by(sk, flag::DATA) } else { listening(sk) }
}

#[inline(always)]
fn listening(sk: Sock) -> Option<()> {
    if sk.state() != tcp::LISTEN {
        return None;
    }
    child::announced(sk)
}
