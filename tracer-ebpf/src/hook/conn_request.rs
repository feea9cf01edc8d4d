//! A SYN that a listener has handled.
//!
//! ```c
//! int tcp_conn_request(struct request_sock_ops *rsk_ops, const struct tcp_request_sock_ops *af_ops,
//!                      struct sock *sk, struct sk_buff *skb);
//! ```
//! Called by `tcp_v4_conn_request()` and `tcp_v6_conn_request()`, and these by `tcp_rcv_state_process()` for a SYN in LISTEN.
//! Its return value says nothing: 0 for a request that was queued, for a cookie and for every drop. What it did stands in the
//! counters (see [`tracer_abi::abi::verdict::syn`]).
//!
//! As a function: from its entry to its end, with bottom halves off. The same on all kernels from 5.10 to 7.2.
//!
//! As a tracepoint: `consume_skb(skb, location)`. `tcp_rcv_state_process()` consumes the SYN right after `conn_request()`, in the
//! same softirq, whatever became of it, and consumes nothing else itself. Kernels up to 6.1 have no `location`. A SYN for a request
//! that is queued already does not come here; it is answered and dropped in `tcp_check_req()` (see `listen_drop`).
//!
//! Read from: net/ipv4/tcp_input.c (6.18).

use aya_ebpf::{
    macros::{btf_tracepoint, fentry, fexit, kprobe, kretprobe},
    programs::{BtfTracePointContext, FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use tracer_abi::abi::{
    Cause, Counter, Deltas, EventKind, Global, NO_LISTENER, NetCounters, Phase, SlotCounters, UNTOLD_COOKIE, flag,
    state,
    verdict::{self, Syn},
};

use super::{fast_open, listener};
use crate::{
    emit::{count_many, emit, is_half_full, now, queues, slot_counters},
    kernel::{ALL, Net, Segment, Skb, Sock, config, first_handled, keep, kept, last_must_handle, only},
    maps::{Call, Twin},
    untold, watch,
};

#[fentry(function = "tcp_conn_request")]
fn fe_conn_req(ctx: FEntryContext) -> i32 {
    let sk: u64 = ctx.arg(2);
    Sock(sk).net().sync();
    0
}

#[fexit(function = "tcp_conn_request")]
fn fx_conn_req(ctx: FExitContext) -> i32 {
    let sk: u64 = ctx.arg(2);
    let skb: u64 = ctx.arg(3);
    judged(Sock(sk), Skb(skb));
    0
}

#[kprobe]
fn kp_conn_req(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(skb)) = (ctx.arg::<u64>(2), ctx.arg::<u64>(3)) {
        keep(Call::ConnRequest, sk, skb);
        Sock(sk).net().sync();
    }
    0
}

#[kretprobe]
fn kr_conn_req(_ctx: RetProbeContext) -> u32 {
    if let Some((sk, skb)) = kept(Call::ConnRequest) {
        judged(Sock(sk), Skb(skb));
    }
    0
}

/// The end of the function: the listener is known.
#[inline(always)]
fn judged(sk: Sock, skb: Skb) -> Option<()> {
    let phase = watch::phase()?;
    let net = sk.net();
    let known = net.counters()?;
    let deltas = taken(net, known)?;
    let slot = listener::slot_of(sk.0)?;
    if phase == Phase::Counting && is_healthy(&deltas) && !fast_open::is_due() && !watch::any() && !untold::any() {
        // Nothing would be looked up, so that nobody need know whose it is.
        let counters = slot_counters(slot)?;
        received(counters, sk.half_open());
        began(counters);
        return Some(());
    }
    let segment = skb.segment(known.inum)?;
    verdict(phase, net, &segment, &deltas, slot)
}

/// Whether the SYN was queued.
#[inline(always)]
fn is_healthy(deltas: &Deltas) -> bool {
    deltas.of(Counter::ListenDrops) | deltas.of(Counter::SyncookiesSent) == 0
}

/// Counts a SYN that found so many half-open requests.
#[inline(always)]
fn received(counters: &mut SlotCounters, half_open: u32) {
    counters.syn += 1;
    if half_open > counters.max_half_open {
        counters.max_half_open = half_open;
    }
}

/// Counts a new attempt whose request was queued.
#[inline(always)]
fn began(counters: &mut SlotCounters) {
    counters.attempts += 1;
    counters.requests += 1;
}

/// What this SYN raised.
#[inline(always)]
fn taken(net: Net, known: &mut NetCounters) -> Option<Deltas> {
    let mut deltas = Deltas::default();
    // Two reads tell a healthy SYN; the rest is read only if one of them moved. Only these two can move without a third.
    net.take(known, only(Counter::ListenDrops) | only(Counter::SyncookiesSent), &mut deltas)?;
    if !is_healthy(&deltas) {
        net.take(known, ALL, &mut deltas)?;
    }
    Some(deltas)
}

/// The end of every SYN that a listener handled.
#[btf_tracepoint(function = "consume_skb")]
fn tp_consume_skb(ctx: BtfTracePointContext) -> i32 {
    if let Some(skb) = syn(&ctx) {
        handled(skb);
        first_handled(Twin::Syn, skb.0);
    }
    0
}

/// The same, for what the first was not run for.
#[btf_tracepoint(function = "consume_skb")]
fn tp_consume_skb2(ctx: BtfTracePointContext) -> i32 {
    if let Some(skb) = syn(&ctx)
        && last_must_handle(Twin::Syn, skb.0)
    {
        handled(skb);
    }
    0
}

/// The packet, if it is one that tcp_rcv_state_process() has done with.
#[inline(always)]
fn syn(ctx: &BtfTracePointContext) -> Option<Skb> {
    let location: u64 = ctx.arg(1);
    if location >= config!(rcv_state_process) && location < config!(rcv_state_process_end) {
        let skb: u64 = ctx.arg(0);
        Some(Skb(skb))
    } else {
        None
    }
}

#[inline(always)]
fn handled(skb: Skb) -> Option<()> {
    let phase = watch::phase()?;
    let net = skb.net_by_route();
    let known = net.counters()?;
    let deltas = taken(net, known)?;
    // A SYN is dropped once, or answered with one cookie, or neither.
    let raised = deltas.of(Counter::ListenDrops) as u64 + deltas.of(Counter::SyncookiesSent) as u64;
    if phase == Phase::Counting && raised > 1 {
        count_many(Global::DropsUnseen, raised - 1);
    }
    let segment = skb.segment(known.inum)?;
    let listed = listener::of_port(net, segment.tuple.port)?;
    let (port, server) = (segment.tuple.port, &segment.tuple.server);
    let slot = if deltas.of(Counter::ListenDrops) == 0 {
        listener::find(listed, net, port, server)
    } else {
        listener::member(listed, net, port, server)
    };
    verdict(phase, net, &segment, &deltas, slot)
}

/// What became of a SYN, once its listener and its deltas are known.
#[inline(always)]
pub(super) fn verdict(phase: Phase, net: Net, segment: &Segment, deltas: &Deltas, slot: u32) -> Option<()> {
    let listener = listener::sock(slot);
    let queue_len = match listener {
        Some(listener) => listener.half_open(),
        None => 0,
    };
    let verdict = verdict::syn(deltas, net.reserve(queue_len));
    let counters = slot_counters(slot)?;
    if phase == Phase::Counting {
        received(counters, queue_len);
    }
    match verdict {
        Syn::Queued => queued(phase, segment, slot, listener),
        Syn::Cookie => {
            if untold::takes(&segment.tuple, segment.seq, slot, UNTOLD_COOKIE) {
                counters.cookies += 1;
                return Some(());
            }
            let noted = watch::note(&segment.tuple, segment.seq, true, slot);
            if phase == Phase::Counting {
                counters.cookies += 1;
            }
            if let Some(watch) = noted.watch {
                watch.state = watch.state & !state::HALF_OPEN | state::COOKIE;
            }
            if noted.earlier {
                return Some(());
            }
            counters.attempts += noted.new as u64;
            emit(EventKind::CookieSent, &segment.tuple, |e| {
                e.isn = segment.seq;
                e.slot = slot;
                e.flags = flag::COOKIE | if noted.new { flag::NEW_ATTEMPT } else { 0 };
                e.deltas = *deltas;
                queues(e, listener);
            });
            Some(())
        }
        Syn::Dropped(cause) => dropped(phase, segment, deltas, slot, listener, cause, false),
        Syn::Reserve => {
            if phase == Phase::Counting {
                counters.reserve += 1;
            }
            dropped(phase, segment, deltas, slot, listener, Cause::HalfOpenQueueFull, true)
        }
    }
}

#[inline(always)]
fn queued(phase: Phase, segment: &Segment, slot: u32, listener: Option<Sock>) -> Option<()> {
    let counters = slot_counters(slot)?;
    if phase == Phase::Earlier {
        watch::note(&segment.tuple, segment.seq, true, slot);
        return Some(());
    }
    if let Some(child) = fast_open::newborn(&segment.tuple) {
        fast_open::opened(segment, slot, child);
    }
    let known = match watch::find(&segment.tuple) {
        None => untold::promote(&segment.tuple, Some(segment.seq), slot),
        known => known,
    };
    if let Some(known) = known {
        if known.isn == segment.seq {
            if known.state & state::EARLIER != 0 {
                return Some(());
            }
            known.state = known.state & !state::COOKIE | state::HALF_OPEN;
            known.last_ns = now();
            counters.requests += 1;
            emit(EventKind::SynQueued, &segment.tuple, |e| {
                e.isn = segment.seq;
                e.slot = slot;
                queues(e, listener);
            });
            return Some(());
        }
        // The client has given the old attempt up and uses its port again: this one is healthy so far.
        watch::forget(&segment.tuple);
    }
    began(counters);
    Some(())
}

#[inline(always)]
fn dropped(
    phase: Phase,
    segment: &Segment,
    deltas: &Deltas,
    slot: u32,
    listener: Option<Sock>,
    cause: Cause,
    reserve: bool,
) -> Option<()> {
    if phase == Phase::Counting {
        slot_counters(slot)?.syn_dropped[cause as usize] += 1;
    }
    drop_syn(segment, slot, cause, |e| {
        e.deltas = *deltas;
        if reserve {
            e.flags |= flag::RESERVE;
        }
        queues(e, listener);
    })
}

/// Notes an attempt whose SYN was dropped, for whatever cause, and tells of it.
#[inline(always)]
pub(super) fn drop_syn(
    segment: &Segment,
    slot: u32,
    cause: Cause,
    fill: impl FnOnce(&mut tracer_abi::abi::Event),
) -> Option<()> {
    // A refused client does not send its SYN again.
    let refused = cause as u8 == Cause::NoListener as u8;
    if refused && is_half_full() {
        let counters = slot_counters(slot)?;
        counters.attempts += 1;
        counters.untold[Cause::NoListener as usize] += 1;
        return Some(());
    }
    if !refused && untold::takes(&segment.tuple, segment.seq, slot, cause as usize) {
        return Some(());
    }
    let noted = watch::note(&segment.tuple, segment.seq, true, slot);
    if let Some(watch) = noted.watch {
        if slot != NO_LISTENER {
            watch.slot = slot;
        }
        // A filter takes a repeated SYN before it comes to the request, which stays.
        let gone = if cause as u8 == Cause::Filtered as u8 { 0 } else { state::HALF_OPEN };
        watch.state = watch.state & !(gone | state::STAGE_ACK) | state::TROUBLED;
        watch.cause = cause as u8;
    }
    if noted.earlier {
        return Some(());
    }
    slot_counters(slot)?.attempts += noted.new as u64;
    emit(EventKind::SynDropped, &segment.tuple, |e| {
        e.isn = segment.seq;
        e.slot = slot;
        e.cause = cause as u8;
        e.flags = if noted.new { flag::NEW_ATTEMPT } else { 0 };
        fill(e);
    });
    Some(())
}
