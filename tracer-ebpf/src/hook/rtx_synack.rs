//! A SYN-ACK is sent again.
//!
//! ```c
//! int tcp_rtx_synack(const struct sock *sk, struct request_sock *req);
//! ```
//! Called by the request's timer, and by `tcp_check_req()` for a repeated SYN. 0: it was sent.
//!
//! As a function: at its end. The same on all kernels from 5.10 to 7.2.
//!
//! As a tracepoint: `tcp_retransmit_synack(sk, req)`, after it was sent. The same on all kernels from 4.16.
//!
//! Read from: net/ipv4/tcp_output.c, net/ipv4/tcp_minisocks.c (6.18).

use aya_ebpf::{
    macros::{btf_tracepoint, fexit, kprobe, kretprobe},
    programs::{BtfTracePointContext, FExitContext, ProbeContext, RetProbeContext},
};
use tracer_abi::abi::{EventKind, Phase, state};

use super::listener;
use crate::{
    emit::{emit, now, slot_counters},
    kernel::{Request, Sock, cpu, keep, kept},
    maps::Call,
    watch,
};

#[fexit(function = "tcp_rtx_synack")]
fn fx_rtx_synack(ctx: FExitContext) -> i32 {
    let (sk, request, error): (u64, u64, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    if error == 0 {
        resent(Sock(sk), Request(request));
    }
    0
}

#[kprobe]
fn kp_rtx_synack(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(request)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1)) {
        keep(Call::RtxSynack, sk, request);
    }
    0
}

#[kretprobe]
fn kr_rtx_synack(ctx: RetProbeContext) -> u32 {
    let error: i32 = ctx.ret();
    if let Some((sk, request)) = kept(Call::RtxSynack)
        && error == 0
    {
        resent(Sock(sk), Request(request));
    }
    0
}

/// Every repeated SYN-ACK.
#[btf_tracepoint(function = "tcp_retransmit_synack")]
fn tp_rtx_synack(ctx: BtfTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    let request: u64 = ctx.arg(1);
    resent(Sock(sk), Request(request));
    0
}

#[inline(always)]
fn resent(listener: Sock, request: Request) -> Option<()> {
    if watch::phase()? != Phase::Counting {
        return None;
    }
    cpu()?.resent = request.0;
    let slot = listener::slot_of(listener.0)?;
    let tuple = request.tuple(listener::info(slot)?.netns);
    slot_counters(slot)?.synack_retransmitted += 1;
    if let Some(known) = watch::find(&tuple) {
        known.last_ns = now();
        if known.state & state::EARLIER != 0 {
            return Some(());
        }
    }
    emit(EventKind::SynAckRetransmitted, &tuple, |e| {
        e.isn = request.isn();
        e.slot = slot;
        e.detail = request.retransmits();
    });
    Some(())
}
