//! A socket is told that it has something to read.
//!
//! ```c
//! void sock_def_readable(struct sock *sk);   // and others that a socket may have as sk_data_ready
//! ```
//! As a tracepoint: `sk_data_ready(sk)` (6.3 and later). For a listener it ends `tcp_child_process()`; for the child of the moment,
//! before that, it means that the segment which completed the handshake had data.
//!
//! Read from: net/core/sock.c, net/ipv4/tcp_minisocks.c, net/ipv4/tcp_input.c (6.18).

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use tracer_abi::abi::flag;

use super::child;
use crate::kernel::{Sock, cpu, tcp};

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
