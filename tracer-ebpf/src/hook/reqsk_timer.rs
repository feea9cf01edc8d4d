//! A half-open request's timer.
//!
//! ```c
//! static void reqsk_timer_handler(struct timer_list *t);
//! ```
//! Called by the timer softirq. It sends the SYN-ACK again and re-arms the timer, or removes the request: after
//! `tcp_synack_retries`, earlier under pressure, or because the listener has closed.
//!
//! As tracepoints: `timer_expire_entry(timer, baseclk)` and `timer_expire_exit(timer)`. A request that is removed is not armed
//! again. Its memory may be free at the exit, but not reused: it returns to this CPU's list, and request sockets are
//! `SLAB_TYPESAFE_BY_RCU`. What the event says is taken from it all the same only if it is gone, and before anything else runs here.
//!
//! Read from: net/ipv4/inet_connection_sock.c, kernel/time/timer.c (6.18).

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use tracer_abi::abi::{Cause, EventKind, Phase, flag, state};

use super::listener;
use crate::{
    emit::{emit, slot_counters},
    kernel::{Request, config, cpu, read},
    watch,
};

/// Before any timer's callback.
#[btf_tracepoint(function = "timer_expire_entry")]
fn tp_timer_entry(ctx: BtfTracePointContext) -> i32 {
    let timer: u64 = ctx.arg(0);
    let function: u64 = read(timer + config!(offsets.timer_function) as u64).unwrap_or(0);
    if function == config!(reqsk_timer_handler)
        && let Some(cpu) = cpu()
    {
        cpu.timer_request = Request::of_timer(timer).0;
    }
    0
}

/// After any timer's callback.
#[btf_tracepoint(function = "timer_expire_exit")]
fn tp_timer_exit(ctx: BtfTracePointContext) -> i32 {
    let timer: u64 = ctx.arg(0);
    if let Some(cpu) = cpu()
        && cpu.timer_request != 0
        && cpu.timer_request == Request::of_timer(timer).0
    {
        let request = Request(cpu.timer_request);
        cpu.timer_request = 0;
        if !request.timer_armed() {
            expired(request);
        }
    }
    0
}

/// A request was removed by its timer; or it is found orphaned when counting ends (see `snapshot`), and will be.
#[inline(always)]
pub(super) fn expired(request: Request) -> Option<()> {
    let phase = watch::phase()?;
    let slot = listener::slot_of(request.listener())?;
    let info = listener::info(slot)?;
    let tuple = request.tuple(info.netns);
    let isn = request.isn();
    if phase == Phase::Earlier {
        return None;
    }
    if let Some(known) = watch::find(&tuple)
        && known.isn == isn
        && known.state & state::EARLIER != 0
    {
        watch::forget(&tuple);
        return Some(());
    }
    let orphaned = info.closed_ns != 0;
    // A SYN repeated after this is still the same attempt, so it is remembered.
    let noted = watch::note(&tuple, isn, false, slot);
    if let Some(watch) = noted.watch {
        if orphaned && watch.cause == Cause::ListenerClosed as u8 {
            // Found before its timer ran.
            return Some(());
        }
        watch.state = watch.state & !state::HALF_OPEN | state::TROUBLED;
        if orphaned {
            watch.cause = Cause::ListenerClosed as u8;
        } else if watch.state & state::ANSWERED == 0 {
            watch.cause = Cause::HandshakeExpired as u8;
        }
    }
    slot_counters(slot)?.expired += 1;
    emit(EventKind::RequestExpired, &tuple, |e| {
        e.isn = isn;
        e.slot = slot;
        e.cause = Cause::HandshakeExpired as u8;
        e.detail = request.retransmits();
        e.flags = if orphaned { flag::LISTENER_CLOSED } else { 0 };
    });
    Some(())
}
