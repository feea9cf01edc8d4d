//! A segment that a listener, or one of its requests, dropped; and a SYN that never came to a listener.
//!
//! ```c
//! struct sock *tcp_check_req(struct sock *sk, struct sk_buff *skb, struct request_sock *req, bool fastopen,
//!                            bool *lost_race);                         // 7.x adds a drop reason
//! struct sock *tcp_v4_syn_recv_sock(const struct sock *sk, struct sk_buff *skb, struct request_sock *req,
//!                                   struct dst_entry *dst, struct request_sock *req_unhash, bool *own_req);
//! struct sock *cookie_v4_check(struct sock *sk, struct sk_buff *skb);  // and their IPv6 twins
//! ```
//! `tcp_v4_rcv()` calls `tcp_check_req()` for a segment that belongs to a request; NULL means that the segment is to be dropped:
//! the accept queue was full (`syn_recv_sock` failed), the listener defers (`TCP_DEFER_ACCEPT`), a RST or a SYN in the window removed
//! the request, or the segment was a repeated SYN. `tcp_v4_do_rcv()` calls `cookie_v4_check()` for an ACK that belongs to nothing.
//!
//! As a tracepoint: `kfree_skb(skb, location, reason, rx_sk)`, where `rx_sk` is the listener in all of these (6.11 and later; before,
//! there is no `rx_sk`). The reason is not judged by: 6.12 leaves it unset here. A SYN that found no listener, or was dropped before
//! it got to one, has no `rx_sk`; there the reason is the only evidence, and is kept.
//!
//! Read from: net/ipv4/tcp_minisocks.c, net/ipv4/tcp_ipv4.c, net/ipv4/syncookies.c (6.18).

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use tracer_abi::abi::{
    Cause, Counter, Deltas, EventKind, Global, NO_LISTENER, Phase, flag, state,
    verdict::{self, Ack},
};

use super::{conn_request::drop_syn, listener};
use crate::{
    emit::{count_many, emit, queues, slot_counters},
    kernel::{ALL, Segment, Skb, Sock, config, first_handled, second_must_handle, tcp},
    maps::Twin,
    watch,
};

/// Every packet that the kernel dropped.
#[btf_tracepoint(function = "kfree_skb")]
fn tp_kfree_skb(ctx: BtfTracePointContext) -> i32 {
    let skb: u64 = ctx.arg(0);
    dropped(&ctx);
    first_handled(Twin::Drop, skb);
    0
}

/// The same, for what the first was not run for.
#[btf_tracepoint(function = "kfree_skb")]
fn tp_kfree_skb2(ctx: BtfTracePointContext) -> i32 {
    let skb: u64 = ctx.arg(0);
    if second_must_handle(Twin::Drop, skb) {
        dropped(&ctx);
    }
    0
}

#[inline(always)]
fn dropped(ctx: &BtfTracePointContext) {
    let skb: u64 = ctx.arg(0);
    let reason: u64 = ctx.arg(2);
    let sk: u64 = ctx.arg(3);
    if sk == 0 {
        unheard(Skb(skb), reason as u32);
    } else if Sock(sk).state() == tcp::LISTEN {
        refused(Skb(skb), reason as u32, Sock(sk));
    }
}

/// A segment dropped at a listener.
#[inline(always)]
fn refused(skb: Skb, reason: u32, sk: Sock) -> Option<()> {
    let phase = watch::phase()?;
    let net = sk.net();
    let known = net.counters()?;
    let mut deltas = Deltas::default();
    net.take(known, ALL, &mut deltas)?;
    let slot = listener::slot_of(sk.0)?;
    let segment = skb.segment(known.inum)?;
    listener::settle_drops(slot, sk);
    // A final ACK raises ListenDrops by one, everything else that comes here not at all.
    let drops = deltas.of(Counter::ListenDrops) as u64;
    let own = segment.is_ack() as u64;
    if phase == Phase::Counting && drops > own {
        count_many(Global::DropsUnseen, drops - own);
    }
    if segment.is_syn() {
        repeated_syn(phase, &segment, reason, &deltas, slot)
    } else if segment.is_rst() {
        reset(phase, &segment, &deltas, slot)
    } else if segment.is_ack() {
        acknowledged(phase, &segment, &deltas, slot, sk)
    } else {
        None
    }
}

/// A SYN dropped at a listener: it belonged to a request, or a filter took it.
#[inline(always)]
fn repeated_syn(phase: Phase, segment: &Segment, reason: u32, deltas: &Deltas, slot: u32) -> Option<()> {
    let counters = slot_counters(slot)?;
    if phase == Phase::Counting {
        counters.syn += 1;
    }
    if deltas.of(Counter::EmbryonicRsts) != 0 {
        return reset(phase, segment, deltas, slot);
    }
    // A repeated SYN leaves tcp_check_req() without a reason of its own; a filter, a policy or a signature does not.
    if reason > config!(reasons.not_specified) && reason != config!(reasons.no_socket) && is_filter(reason) {
        if phase == Phase::Counting {
            counters.syn_dropped[Cause::Filtered as usize] += 1;
        }
        return drop_syn(segment, slot, Cause::Filtered, |e| e.detail = reason);
    }
    if phase == Phase::Counting {
        counters.syn_duplicate += 1;
    }
    Some(())
}

/// Whether a drop reason is one of a filter, not one of TCP's own rules for a segment of a request.
#[inline(always)]
fn is_filter(reason: u32) -> bool {
    let mut i = 0;
    while i < config!(reasons.tcp_rules).len() {
        if reason == config!(reasons.tcp_rules[i]) {
            return false;
        }
        i += 1;
    }
    true
}

/// A RST, or a SYN in the window, that came to a request or a listener.
#[inline(always)]
fn reset(phase: Phase, segment: &Segment, deltas: &Deltas, slot: u32) -> Option<()> {
    let removed = deltas.of(Counter::EmbryonicRsts) != 0;
    let mut isn = segment.seq.wrapping_sub(1);
    let known = watch::find(&segment.tuple);
    if let Some(ref known) = known
        && known.state & state::EARLIER != 0
    {
        watch::forget(&segment.tuple);
        return Some(());
    }
    if phase == Phase::Earlier {
        return Some(());
    }
    if !removed {
        // A RST for a connection that is none of ours, or one outside the window of its request, which stays; what waits for
        // accept() is reset elsewhere.
        const ELSEWHERE: u16 = state::HALF_OPEN | state::QUEUED | state::ACCEPTED;
        match known {
            Some(known) if known.state & ELSEWHERE == 0 => {}
            _ => return Some(()),
        }
    }
    if removed {
        slot_counters(slot)?.reset += 1;
    }
    // A repeated SYN after this would be the same attempt, so it is remembered.
    let noted = watch::note(&segment.tuple, isn, false, slot);
    let mut cookie = 0;
    if let Some(watch) = noted.watch {
        isn = watch.isn;
        if watch.state & state::COOKIE != 0 {
            cookie = flag::COOKIE;
        }
        watch.state = watch.state & !state::HALF_OPEN | state::TROUBLED | state::STAGE_ACK;
        watch.cause = Cause::ClientReset as u8;
    }
    emit(if removed { EventKind::RequestReset } else { EventKind::ClientReset }, &segment.tuple, |e| {
        e.isn = isn;
        e.slot = slot;
        e.cause = Cause::ClientReset as u8;
        e.flags = cookie;
        e.deltas = *deltas;
    });
    Some(())
}

/// A segment with ACK dropped at a listener: what would have completed a handshake, or a stray.
#[inline(always)]
fn acknowledged(phase: Phase, segment: &Segment, deltas: &Deltas, slot: u32, sk: Sock) -> Option<()> {
    let counters = slot_counters(slot)?;
    let mut isn = segment.seq.wrapping_sub(1);
    match verdict::ack(deltas) {
        Ack::Dropped { cause, reset } => {
            if phase == Phase::Counting {
                counters.ack_dropped[cause as usize] += 1;
            }
            let cookie = deltas.of(Counter::SyncookiesRecv) != 0;
            let noted = watch::note(&segment.tuple, isn, false, slot);
            let mut earlier = noted.earlier;
            if let Some(watch) = noted.watch {
                if noted.new && cookie {
                    // Every cookie sent while counting is watched, so this one was sent before.
                    watch.state |= state::EARLIER;
                    earlier = true;
                }
                isn = watch.isn;
                watch.slot = slot;
                let half_open = if cookie || reset { 0 } else { state::HALF_OPEN };
                watch.state = watch.state & !state::HALF_OPEN
                    | half_open
                    | state::TROUBLED
                    | state::ANSWERED
                    | state::STAGE_ACK
                    | if reset { state::RESET } else { 0 };
                watch.cause = cause as u8;
            }
            if earlier {
                return Some(());
            }
            if reset {
                counters.reset += 1;
            }
            emit(EventKind::AckDropped, &segment.tuple, |e| {
                e.isn = isn;
                e.slot = slot;
                e.cause = cause as u8;
                e.flags = if cookie { flag::COOKIE } else { 0 } | if reset { flag::RESET } else { 0 };
                e.deltas = *deltas;
                queues(e, Some(sk));
            });
        }
        Ack::InvalidCookie => {
            if phase == Phase::Earlier {
                return Some(());
            }
            counters.cookie_invalid += 1;
            return invalid_cookie(segment, deltas, slot, sk);
        }
        // With cookies switched off since, or no overflow lately, the kernel does not even look, and counts nothing.
        Ack::Other => return invalid_cookie(segment, deltas, slot, sk),
        Ack::Deferred => {
            if phase == Phase::Counting {
                counters.deferred += 1;
            }
        }
        Ack::RequestReset => return reset(phase, segment, deltas, slot),
    }
    Some(())
}

/// An ACK that is no valid cookie: the client believes that it is connected, and is sent a RST.
///
/// Only an attempt that was answered with a cookie, and has not returned it before, is lost by this. Any other segment that comes
/// to a listener is a stray: of a connection that was accepted and has ended at the server, most often.
#[inline(always)]
fn invalid_cookie(segment: &Segment, deltas: &Deltas, slot: u32, sk: Sock) -> Option<()> {
    let known = watch::find(&segment.tuple)?;
    const AWAITED: u16 = state::COOKIE | state::QUEUED | state::ANSWERED | state::EARLIER;
    if known.state & AWAITED != state::COOKIE {
        return None;
    }
    known.state |= state::TROUBLED | state::STAGE_ACK;
    known.cause = Cause::SyncookieInvalid as u8;
    emit(EventKind::CookieInvalid, &segment.tuple, |e| {
        e.isn = known.isn;
        e.slot = slot;
        e.cause = Cause::SyncookieInvalid as u8;
        e.flags = flag::RESET;
        e.deltas = *deltas;
        queues(e, Some(sk));
    });
    Some(())
}

/// A SYN that was dropped without a socket: nobody listens, or something dropped it on its way.
#[inline(always)]
fn unheard(skb: Skb, reason: u32) -> Option<()> {
    if reason <= config!(reasons.not_specified) {
        return None;
    }
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
    let listed = listener::of_port(net, segment.tuple.port);
    if reason != config!(reasons.no_socket) {
        // Only where it was on its way to a listener: a host that forwards, or a client's own side, is not the place.
        let slot = listener::find(listed?, net, segment.tuple.port, &segment.tuple.server);
        if slot == NO_LISTENER {
            return None;
        }
        if phase == Phase::Counting {
            let counters = slot_counters(slot)?;
            counters.syn += 1;
            counters.syn_dropped[Cause::Filtered as usize] += 1;
        }
        return drop_syn(&segment, slot, Cause::Filtered, |e| e.detail = reason);
    }
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
    drop_syn(&segment, NO_LISTENER, Cause::NoListener, |e| e.detail = reason)?;
    // The client has its RST and does not repeat the SYN: nothing to remember.
    watch::forget(&segment.tuple);
    Some(())
}
