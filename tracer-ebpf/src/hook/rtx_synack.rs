//! A SYN-ACK is sent again.
//!
//! ```c
//! int tcp_rtx_synack(const struct sock *sk, struct request_sock *req);
//! ```
//! Called by the request's timer, and by `tcp_check_req()` for a repeated SYN. 0: it was sent.
//!
//! As a tracepoint: `tcp_retransmit_synack(sk, req)`, after it was sent. The same on all kernels from 4.16.
//!
//! Read from: net/ipv4/tcp_output.c, net/ipv4/tcp_minisocks.c (6.18).

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use tracer_abi::abi::{EventKind, Phase, state};

use super::listener;
use crate::{
    emit::{emit, now, slot_counters},
    kernel::{Request, Sock},
    watch,
};

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
