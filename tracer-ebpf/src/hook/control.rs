//! When to count: run by the collector on each CPU in turn, from process context, so that no packet is half handled there.
//!
//! A raw tracepoint program that is never attached, only run (`BPF_PROG_TEST_RUN`).

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use aya_log_ebpf::debug;
use tracer_abi::abi::{ControlOp, Phase, state};

use super::listener;
use crate::{
    kernel::{Net, Sock, cpu},
    maps::FORGET,
    watch,
};

/// Does what [`ControlOp`] says.
#[raw_tracepoint]
fn control(ctx: RawTracePointContext) -> i32 {
    let op: u64 = ctx.arg(0);
    let argument: u64 = ctx.arg(1);
    if op == ControlOp::Remember as u64 {
        set(Phase::Earlier);
        debug!(&ctx, "connections under way are remembered from now on");
    } else if op == ControlOp::BeginNet as u64 {
        Net(argument).begin();
    } else if op == ControlOp::Count as u64 {
        set(Phase::Counting);
        debug!(&ctx, "packets are counted from now on");
    } else if op == ControlOp::EndNet as u64 {
        Net(argument).end();
    } else if op == ControlOp::End as u64 {
        set(Phase::Ended);
        debug!(&ctx, "packets are no longer counted");
    } else if op == ControlOp::Queues as u64 {
        queues(argument as u32);
    } else if op == ControlOp::Forget as u64 {
        forget(argument);
    }
    0
}

#[inline(always)]
fn set(phase: Phase) {
    if let Some(cpu) = cpu() {
        cpu.phase = phase as u32;
    }
}

/// Reads the queues of an open listener into its slot.
#[inline(always)]
fn queues(slot: u32) -> Option<()> {
    let info = listener::info(slot)?;
    if info.sk != 0 && info.closed_ns == 0 {
        let sk = Sock(info.sk);
        info.accept_queue = sk.accept_queue();
        info.half_open = sk.half_open();
        info.backlog = sk.accept_limit();
    }
    Some(())
}

/// Makes room: an attempt that has been silent for longer than any client repeats its SYN is over.
#[inline(always)]
fn forget(before_ns: u64) -> Option<()> {
    let tuple = FORGET.get(0)?;
    let known = watch::find(tuple)?;
    // One that waits for accept() may wait for as long as it likes.
    if known.last_ns < before_ns && known.state & (state::QUEUED | state::ACCEPTED) != state::QUEUED {
        watch::forget(tuple);
    }
    Some(())
}
