//! A segment that a listener, or one of its requests, dropped.
//!
//! ```c
//! struct sock *tcp_check_req(struct sock *sk, struct sk_buff *skb, struct request_sock *req, bool fastopen,
//!                            bool *lost_race);                         // 6.18 has added a drop reason
//! struct sock *tcp_v4_syn_recv_sock(const struct sock *sk, struct sk_buff *skb, struct request_sock *req,
//!                                   struct dst_entry *dst, struct request_sock *req_unhash, bool *own_req);
//! struct sock *cookie_v4_check(struct sock *sk, struct sk_buff *skb);  // and their IPv6 twins
//! ```
//! `tcp_v4_rcv()` calls `tcp_check_req()` for a segment that belongs to a request; NULL means that the segment is to be dropped:
//! the accept queue was full (`syn_recv_sock` failed), the listener defers (`TCP_DEFER_ACCEPT`), a RST or a SYN in the window removed
//! the request, or the segment was a repeated SYN. `tcp_v4_do_rcv()` calls `cookie_v4_check()` for an ACK that belongs to nothing.
//!
//! As functions: from their entry to their end. NULL from `tcp_check_req()` is a drop (or a race that another CPU won, which is looked
//! up again and raises nothing); with TCP Fast Open it is called for a child, which is no listener. What is neither NULL nor the
//! listener is a child. `cookie_v4_check()` returns the listener for what is no cookie up to 6.8, and then NULL, having freed the
//! packet: its segment is read at the entry.
//!
//! As a tracepoint: `kfree_skb(skb, location, reason, rx_sk)`, where `rx_sk` is the listener in all of these (6.11 and later; before,
//! there is no `rx_sk`). The reason is not judged by: 6.12 leaves it unset here.
//!
//! Read from: net/ipv4/tcp_minisocks.c, net/ipv4/tcp_ipv4.c, net/ipv4/syncookies.c (6.18).

use aya_ebpf::{
    macros::{btf_tracepoint, fentry, fexit, kprobe, kretprobe},
    programs::{BtfTracePointContext, FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use tracer_abi::abi::{
    Cause, Counter, Deltas, EventKind, Global, Phase, flag, state,
    verdict::{self, Ack},
};

use super::{conn_request::drop_syn, listener};
use crate::{
    emit::{count_many, emit, queues, slot_counters},
    kernel::{
        ALL, Segment, Skb, Sock, config, cpu, first_handled, keep, kept, last_must_handle, tcp,
        unpreempted_at_tracepoint,
    },
    maps::{Call, SEGMENT, Twin},
    untold, watch,
};

#[fentry(function = "tcp_check_req")]
fn fe_check_req(ctx: FEntryContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    Sock(sk).net().sync();
    0
}

/// With five arguments: up to 6.12.
#[fexit(function = "tcp_check_req")]
fn fx_check_req5(ctx: FExitContext) -> i32 {
    let (sk, skb, child): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(5));
    checked(Sock(sk), Skb(skb), child);
    0
}

/// With six arguments: 6.18 and 7.x.
#[fexit(function = "tcp_check_req")]
fn fx_check_req6(ctx: FExitContext) -> i32 {
    let (sk, skb, child): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(6));
    checked(Sock(sk), Skb(skb), child);
    0
}

#[kprobe]
fn kp_check_req(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(skb)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1)) {
        keep(Call::CheckReq, sk, skb);
        Sock(sk).net().sync();
    }
    0
}

#[kretprobe]
fn kr_check_req(ctx: RetProbeContext) -> u32 {
    if let Some((sk, skb)) = kept(Call::CheckReq) {
        checked(Sock(sk), Skb(skb), ctx.ret());
    }
    0
}

#[fentry(function = "cookie_v4_check")]
fn fe_cookie_v4(ctx: FEntryContext) -> i32 {
    let (sk, skb): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    returns_cookie(Sock(sk), Skb(skb));
    0
}

#[fexit(function = "cookie_v4_check")]
fn fx_cookie_v4(ctx: FExitContext) -> i32 {
    let (sk, child): (u64, u64) = (ctx.arg(0), ctx.arg(2));
    cookie_checked(Sock(sk), child);
    0
}

#[fentry(function = "cookie_v6_check")]
fn fe_cookie_v6(ctx: FEntryContext) -> i32 {
    let (sk, skb): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    returns_cookie(Sock(sk), Skb(skb));
    0
}

#[fexit(function = "cookie_v6_check")]
fn fx_cookie_v6(ctx: FExitContext) -> i32 {
    let (sk, child): (u64, u64) = (ctx.arg(0), ctx.arg(2));
    cookie_checked(Sock(sk), child);
    0
}

/// Both cookie checks: IPv4 and IPv6 have the same arguments.
#[kprobe]
fn kp_cookie(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(skb)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1)) {
        keep(Call::CheckReq, sk, skb);
        returns_cookie(Sock(sk), Skb(skb));
    }
    0
}

#[kretprobe]
fn kr_cookie(ctx: RetProbeContext) -> u32 {
    if let Some((sk, _)) = kept(Call::CheckReq) {
        cookie_checked(Sock(sk), ctx.ret());
    }
    0
}

/// The end of `tcp_check_req()`.
#[inline(always)]
fn checked(sk: Sock, skb: Skb, child: u64) -> Option<()> {
    if child != 0 || sk.state() != tcp::LISTEN {
        return None;
    }
    cpu()?.refused = skb.0;
    let segment = skb.segment(sk.net().inum())?;
    refused(&segment, config!(reasons.not_specified), sk)
}

/// A segment that belongs to nothing comes to a listener.
#[inline(always)]
fn returns_cookie(sk: Sock, skb: Skb) -> Option<()> {
    let net = sk.net();
    net.sync()?;
    let segment = skb.segment(net.inum())?;
    // SAFETY: this CPU's value of a live map, used from here to the end of the same function.
    unsafe { *SEGMENT.get_ptr_mut(0)? = segment };
    Some(())
}

/// The end of a cookie check. `SyncookiesRecv` of a child is taken when it is established.
#[inline(always)]
fn cookie_checked(sk: Sock, child: u64) -> Option<()> {
    if child != 0 && child != sk.0 || sk.state() != tcp::LISTEN {
        return None;
    }
    // SAFETY: as above.
    let segment = unsafe { *SEGMENT.get_ptr(0)? };
    refused(&segment, config!(reasons.not_specified), sk)
}

/// Every packet that the kernel dropped.
#[btf_tracepoint(function = "kfree_skb")]
fn tp_kfree_skb(ctx: BtfTracePointContext) -> i32 {
    let skb: u64 = ctx.arg(0);
    unpreempted_at_tracepoint(|| {
        dropped(&ctx);
        first_handled(Twin::Drop, skb);
    });
    0
}

/// The same, for what the first was not run for.
#[btf_tracepoint(function = "kfree_skb")]
fn tp_kfree_skb2(ctx: BtfTracePointContext) -> i32 {
    let skb: u64 = ctx.arg(0);
    unpreempted_at_tracepoint(|| {
        if last_must_handle(Twin::Drop, skb) {
            dropped(&ctx);
        }
    });
    0
}

#[inline(always)]
fn dropped(ctx: &BtfTracePointContext) -> Option<()> {
    let skb: u64 = ctx.arg(0);
    let reason: u64 = ctx.arg(2);
    let sk: u64 = ctx.arg(3);
    if sk == 0 || Sock(sk).state() != tcp::LISTEN {
        return None;
    }
    watch::phase()?;
    let segment = Skb(skb).segment(Sock(sk).net().inum())?;
    refused(&segment, reason as u32, Sock(sk))
}

/// A segment dropped at a listener.
#[inline(always)]
fn refused(segment: &Segment, reason: u32, sk: Sock) -> Option<()> {
    let phase = watch::phase()?;
    let net = sk.net();
    let known = net.counters()?;
    let mut deltas = Deltas::default();
    net.take(known, ALL, &mut deltas)?;
    let slot = listener::slot_of(sk.0)?;
    listener::settle_drops(slot, sk);
    // A final ACK raises ListenDrops by one, everything else that comes here not at all.
    let drops = deltas.of(Counter::ListenDrops) as u64;
    let own = segment.is_ack() as u64;
    if phase == Phase::Counting && drops > own {
        count_many(Global::DropsUnseen, drops - own);
    }
    if segment.is_syn() {
        repeated_syn(phase, segment, reason, &deltas, slot)
    } else if segment.is_rst() {
        reset(phase, segment, &deltas, slot)
    } else if segment.is_ack() {
        acknowledged(phase, segment, &deltas, slot, sk)
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
pub(super) fn is_filter(reason: u32) -> bool {
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
    let known = match watch::find(&segment.tuple) {
        None => untold::promote(&segment.tuple, None, slot),
        known => known,
    };
    if let Some(ref known) = known
        && known.state & state::EARLIER != 0
    {
        // One outside the window leaves the request where it is.
        if removed {
            watch::forget(&segment.tuple);
        }
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
    if watch::find(&segment.tuple).is_none() {
        untold::promote(&segment.tuple, None, slot);
    }
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
        Ack::UnusedCookie => {
            if phase == Phase::Counting {
                counters.cookie_unused += 1;
            }
            return unused_cookie(segment, deltas, slot, sk);
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

/// A valid cookie of which no connection came, though nothing was full.
#[inline(always)]
fn unused_cookie(segment: &Segment, deltas: &Deltas, slot: u32, sk: Sock) -> Option<()> {
    // Every cookie sent while counting is watched: another was sent before.
    let known = watch::find(&segment.tuple)?;
    if known.state & (state::EARLIER | state::QUEUED) != 0 {
        return Some(());
    }
    let shadowed = known.state & state::HALF_OPEN != 0;
    let cause = if shadowed { Cause::SyncookieAckDropped } else { Cause::NoMemory };
    known.state |= state::TROUBLED | state::ANSWERED | state::STAGE_ACK;
    known.cause = cause as u8;
    emit(EventKind::AckDropped, &segment.tuple, |e| {
        e.isn = known.isn;
        e.slot = slot;
        e.cause = cause as u8;
        e.flags = flag::COOKIE;
        e.detail = shadowed as u32;
        e.deltas = *deltas;
        queues(e, Some(sk));
    });
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
