//! A SYN that never came to a listener: nobody listens, or something dropped it on its way.
//!
//! ```c
//! int tcp_v4_rcv(struct sk_buff *skb);    // and tcp_v6_rcv
//! ```
//! It looks for a socket; without one it answers with a RST and drops the segment. Before, netfilter may have dropped it
//! (`nf_hook_slow()`); after, the listener's own filter or policy.
//!
//! As a tracepoint, in every flavour: `kfree_skb`. Its arguments grew:
//!
//! | kernel | arguments | what tells |
//! |---|---|---|
//! | 5.10 | `(skb, location)` | the function that dropped it, and whether a listener is open |
//! | 6.1 | `(skb, location, reason)` | the reason |
//! | 6.11 and later | `(skb, location, reason, rx_sk)` | the reason; with the listener where its own filter dropped it |
//!
//! Read from: net/ipv4/tcp_ipv4.c, net/netfilter/core.c, net/core/skbuff.c (5.10, 6.1, 6.18).

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use tracer_abi::abi::{Address, Cause, NO_LISTENER, Phase, Port};

use super::{conn_request::drop_syn, listen_drop::is_filter, listener};
use crate::{
    emit::slot_counters,
    kernel::{Net, Segment, Skb, Sock, config, cpu, first_handled, last_must_handle, tcp, unpreempted_at_tracepoint},
    maps::Twin,
    watch,
};

/// Every packet that the kernel dropped.
#[btf_tracepoint(function = "kfree_skb")]
fn tp_unheard(ctx: BtfTracePointContext) -> i32 {
    let skb: u64 = ctx.arg(0);
    unpreempted_at_tracepoint(|| {
        dropped(&ctx);
        first_handled(Twin::Unheard, skb);
    });
    0
}

/// The same, for what the first was not run for.
#[btf_tracepoint(function = "kfree_skb")]
fn tp_unheard_b(ctx: BtfTracePointContext) -> i32 {
    let skb: u64 = ctx.arg(0);
    unpreempted_at_tracepoint(|| {
        if last_must_handle(Twin::Unheard, skb) {
            dropped(&ctx);
        }
    });
    0
}

/// With three arguments.
#[btf_tracepoint(function = "kfree_skb")]
fn tp_unheard3(ctx: BtfTracePointContext) -> i32 {
    let (skb, reason): (u64, u64) = (ctx.arg(0), ctx.arg(2));
    unheard(Skb(skb), reason as u32);
    0
}

/// With two arguments.
#[btf_tracepoint(function = "kfree_skb")]
fn tp_unheard2(ctx: BtfTracePointContext) -> i32 {
    let (skb, location): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    without_reason(Skb(skb), location);
    0
}

#[inline(always)]
fn dropped(ctx: &BtfTracePointContext) {
    let skb: u64 = ctx.arg(0);
    let reason: u64 = ctx.arg(2);
    let sk: u64 = ctx.arg(3);
    // With a tracepoint for segments of requests, what a listener's filter dropped is seen there.
    if sk == 0 || config!(ack_by_function) != 0 && Sock(sk).state() == tcp::LISTEN {
        unheard(Skb(skb), reason as u32);
    }
}

/// By the function that dropped it.
#[inline(always)]
fn without_reason(skb: Skb, location: u64) -> Option<()> {
    let within = |from: u64, to: u64| location >= from && location < to;
    if within(config!(netfilter[0]), config!(netfilter[1])) {
        return lost(skb, false);
    }
    if !within(config!(rcv[0]), config!(rcv[1])) && !within(config!(rcv[2]), config!(rcv[3])) {
        return None;
    }
    // What a request refused is dropped in the same function, right after.
    if cpu()?.refused == skb.0 {
        return None;
    }
    lost(skb, true)
}

/// What became of a SYN whose drop has no reason: with a listener, a filter took it; `received` if TCP had it already.
#[inline(always)]
fn lost(skb: Skb, received: bool) -> Option<()> {
    let (phase, net, segment) = syn(skb)?;
    let listed = listener::of_port(net, segment.tuple.port);
    let slot = match listed {
        Some(listed) => listener::find(listed, net, segment.tuple.port, &segment.tuple.server),
        None => NO_LISTENER,
    };
    if slot != NO_LISTENER && hears(slot, &segment.tuple.server) {
        return filtered(phase, &segment, slot, u32::MAX);
    }
    if received { refused(phase, &segment, listed, u32::MAX) } else { None }
}

/// Whether a listener is open and takes segments to this address: where a port has one listener, nobody has looked yet.
#[inline(always)]
fn hears(slot: u32, server: &Address) -> bool {
    match listener::info(slot) {
        Some(info) if info.closed_ns == 0 => {
            let own = &info.address;
            own == server || *own == Address::ANY || *own == Address::ANY_V4
        }
        _ => false,
    }
}

/// By the reason.
#[inline(always)]
fn unheard(skb: Skb, reason: u32) -> Option<()> {
    if reason <= config!(reasons.not_specified) {
        return None;
    }
    let (phase, net, segment) = syn(skb)?;
    let listed = listener::of_port(net, segment.tuple.port);
    if reason != config!(reasons.no_socket) {
        if !is_filter(reason) {
            return None;
        }
        // Only where it was on its way to a listener: a host that forwards, or a client's own side, is not the place.
        let slot = listener::find(listed?, net, segment.tuple.port, &segment.tuple.server);
        if slot == NO_LISTENER {
            return None;
        }
        return filtered(phase, &segment, slot, reason);
    }
    refused(phase, &segment, listed, reason)
}

/// A SYN to a traced port.
#[inline(always)]
fn syn(skb: Skb) -> Option<(Phase, Net, Segment)> {
    let phase = watch::phase()?;
    let net = skb.net();
    if net.0 == 0 {
        return None;
    }
    let segment = skb.segment(net.inum())?;
    if !segment.is_syn() || !listener::is_traced(segment.tuple.port) {
        return None;
    }
    let wanted = config!(netns);
    if wanted != 0 && wanted != segment.tuple.netns {
        return None;
    }
    Some((phase, net, segment))
}

#[inline(always)]
fn filtered(phase: Phase, segment: &Segment, slot: u32, reason: u32) -> Option<()> {
    if phase == Phase::Counting {
        let counters = slot_counters(slot)?;
        counters.syn += 1;
        counters.syn_dropped[Cause::Filtered as usize] += 1;
    }
    drop_syn(segment, slot, Cause::Filtered, |e| e.detail = reason)
}

/// Nobody listens.
#[inline(always)]
fn refused(phase: Phase, segment: &Segment, listed: Option<Port>, reason: u32) -> Option<()> {
    // Without ports given, every port with a listener is traced: one that never had one is nobody's business.
    if listed.is_none() && config!(every_port) != 0 {
        return None;
    }
    if phase == Phase::Earlier {
        return Some(());
    }
    let counters = slot_counters(NO_LISTENER)?;
    counters.syn += 1;
    counters.syn_dropped[Cause::NoListener as usize] += 1;
    drop_syn(segment, NO_LISTENER, Cause::NoListener, |e| e.detail = reason)?;
    // The client has its RST and does not repeat the SYN: nothing to remember.
    watch::forget(&segment.tuple);
    Some(())
}
