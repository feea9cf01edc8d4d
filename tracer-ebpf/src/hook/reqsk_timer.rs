//! A half-open request's timer.
//!
//! ```c
//! static void reqsk_timer_handler(struct timer_list *t);
//! ```
//! Called by the timer softirq. It sends the SYN-ACK again and re-arms the timer, or removes the request: after
//! `tcp_synack_retries`, earlier under pressure, or because the listener has closed.
//!
//! With `tcp_migrate_req`, a request whose listener has closed goes to another member of its SO_REUSEPORT group: the handler makes a
//! copy for it, sends the copy's SYN-ACK and arms the copy's timer, and removes the request. So what says that it has not ended is
//! that the SYN-ACK that was sent in this handler was not its own, but that of its like. A copy that has no SYN-ACK to send, because
//! its client has answered and the listener waits for data (`TCP_DEFER_ACCEPT`), is not recognised.
//!
//! As a function: at its end. The same on all kernels from 5.10 to 7.2.
//!
//! As tracepoints: `timer_expire_entry(timer, baseclk)` and `timer_expire_exit(timer)`. A request that is removed is not armed
//! again. Its memory may be free at the exit, but not reused: it returns to this CPU's list, and request sockets are
//! `SLAB_TYPESAFE_BY_RCU`. What the event says is taken from it all the same only if it is gone, and before anything else runs here.
//!
//! Read from: net/ipv4/inet_connection_sock.c, kernel/time/timer.c (6.18).

use aya_ebpf::{
    macros::{btf_tracepoint, fexit, kprobe, kretprobe},
    programs::{BtfTracePointContext, FExitContext, ProbeContext, RetProbeContext},
};
use tracer_abi::abi::{Cause, EventKind, NO_LISTENER, Phase, Tuple, flag, state};

use super::listener;
use crate::{
    emit::{emit, slot_counters},
    kernel::{Request, config, cpu, read, read_or_zero},
    watch,
};

#[fexit(function = "reqsk_timer_handler")]
fn fx_timer(ctx: FExitContext) -> i32 {
    let timer: u64 = ctx.arg(0);
    handled(Request::of_timer(timer));
    0
}

#[kprobe]
fn kp_timer(ctx: ProbeContext) -> u32 {
    if let (Some(timer), Some(cpu)) = (ctx.arg::<u64>(0), cpu()) {
        cpu.timer_request = Request::of_timer(timer).0;
    }
    0
}

#[kretprobe]
fn kr_timer(_ctx: RetProbeContext) -> u32 {
    if let Some(cpu) = cpu()
        && cpu.timer_request != 0
    {
        let request = Request(cpu.timer_request);
        cpu.timer_request = 0;
        handled(request);
    }
    0
}

/// The handler has run for this request.
#[inline(always)]
fn handled(request: Request) {
    let resent = match cpu() {
        Some(cpu) => core::mem::replace(&mut cpu.resent, 0),
        None => 0,
    };
    if !request.timer_armed() && !is_copy(Request(resent), request) {
        expired(request, false);
    }
}

/// Whether the handler has put this copy in the place of the request. Tuples would not fit on the stack; of one client on one CPU, the
/// sequence number tells.
#[inline(always)]
fn is_copy(copy: Request, of: Request) -> bool {
    let port = |request: Request| read::<u16>(request.0 + config!(offsets.sk_dport) as u64);
    // A copy that another CPU came before is removed again.
    copy.0 != 0 && copy.0 != of.0 && copy.isn() == of.isn() && port(copy) == port(of) && copy.timer_armed()
}

/// Before any timer's callback.
#[btf_tracepoint(function = "timer_expire_entry")]
fn tp_timer_entry(ctx: BtfTracePointContext) -> i32 {
    let timer: u64 = ctx.arg(0);
    let function: u64 = read_or_zero(timer + config!(offsets.timer_function) as u64);
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
        handled(request);
    }
    0
}

/// A request was removed by its timer; or it is found when counting ends (see `snapshot`), its listener closed: `will_be`.
#[inline(always)]
pub(super) fn expired(request: Request, will_be: bool) -> Option<()> {
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
    let (slot, orphaned) = match moved(&tuple, isn, slot) {
        // There it can be completed still.
        Some(_) if will_be => return None,
        Some(other) => (other, false),
        None => (slot, info.closed_ns != 0),
    };
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

/// Where the attempt failed, if that was at another member of the group than the one where its request is: an ACK that is to complete
/// it there and cannot leaves the request where it was. Its cause is that, although its listener has closed.
#[inline(always)]
fn moved(tuple: &Tuple, isn: u32, slot: u32) -> Option<u32> {
    let known = watch::find(tuple)?;
    let elsewhere = known.isn == isn && known.slot != slot && known.slot != NO_LISTENER;
    let failed = state::TROUBLED | state::STAGE_ACK;
    if elsewhere && known.state & failed == failed { Some(known.slot) } else { None }
}
