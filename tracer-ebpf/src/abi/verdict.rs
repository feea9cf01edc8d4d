//! What the kernel did with a packet, read from what it added to its own counters.
//!
//! These functions are the heart of the tracer. They take the deltas of the nine counters over the handling of one packet,
//! and nothing that could have changed a moment before or after, except where the kernel itself keeps no counter (the
//! reserve rule of [`syn`]).

use super::{Cause, Counter, Deltas};

/// What became of a SYN that reached a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syn {
    /// A request was queued and a SYN-ACK sent.
    Queued,
    /// It was answered with a cookie; nothing was stored.
    Cookie,
    /// It was dropped: half-open queue full, accept queue full or no memory.
    Dropped(Cause),
    /// It was dropped by the last-quarter reserve of `tcp_max_syn_backlog`, which holds while syncookies are off.
    Reserve,
}

/// The two sysctls and the queue length that decide the reserve rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserve {
    /// `net.ipv4.tcp_syncookies` of the namespace.
    pub syncookies: u8,
    /// `net.ipv4.tcp_max_syn_backlog` of the namespace.
    pub max_syn_backlog: u32,
    /// Requests in the listener's queue when the SYN had been handled.
    pub queue_len: u32,
    /// How many requests other CPUs can have removed or added since the kernel looked: the number of CPUs.
    pub slack: u32,
}

/// The verdict on a SYN handled by `tcp_conn_request()` (`net/ipv4/tcp_input.c`).
///
/// The order follows the function: the request queue is looked at first (a drop, or the wish for a cookie), then the accept
/// queue, then the request is allocated, then the reserve rule, then the route. A drop raises `ListenDrops` in any case; the
/// accept queue alone raises `ListenOverflows`. `ReqQFullDoCookies` says that a cookie was wanted, not that one was sent.
///
/// The reserve rule has no counter of its own. Besides it, only a failed allocation, a missing route or a security module drop
/// a SYN with `ListenDrops` alone, so it is given when its condition holds for the queue length just after, plus or minus
/// what the other CPUs can have changed.
#[must_use]
#[inline(always)]
pub fn syn(deltas: &Deltas, reserve: Reserve) -> Syn {
    if deltas.of(Counter::ListenDrops) == 0 {
        return if deltas.of(Counter::SyncookiesSent) == 0 { Syn::Queued } else { Syn::Cookie };
    }
    if deltas.of(Counter::ListenOverflows) > 0 {
        return Syn::Dropped(Cause::AcceptQueueFull);
    }
    if deltas.of(Counter::ReqQFullDrop) > 0 {
        return Syn::Dropped(Cause::HalfOpenQueueFull);
    }
    let free = reserve.max_syn_backlog as i64 - reserve.queue_len as i64 - reserve.slack as i64;
    if reserve.syncookies == 0 && free < (reserve.max_syn_backlog >> 2) as i64 {
        return Syn::Reserve;
    }
    Syn::Dropped(Cause::NoMemory)
}

/// What became of a segment with ACK that a listener dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// It would have completed the handshake, and was dropped for this cause. `reset`: the request was removed and the
    /// client was sent a RST (`tcp_abort_on_overflow`).
    Dropped {
        /// Accept queue full, syncookie ACK dropped, or no memory.
        cause: Cause,
        /// Whether the client was sent a RST.
        reset: bool,
    },
    /// No valid cookie; the client is sent a RST.
    InvalidCookie,
    /// A valid cookie of which no connection came, though nothing was full, and no drop is counted. Either an ordinary request of
    /// the same client is in the way (its SYN was answered with a cookie, and when it came again there was room): the new
    /// connection finds that in the table and is given up (`inet_ehash_nolisten()`, `found_dup_sk`). Or there was no memory or no
    /// route.
    UnusedCookie,
    /// Ignored until data arrives (`TCP_DEFER_ACCEPT`): a delay, not a loss.
    Deferred,
    /// The request was removed because of what the segment carried.
    RequestReset,
    /// Nothing of the handshake changed.
    Other,
}

/// The verdict on a segment with ACK, without RST, that came to a listener or a request and was dropped there
/// (`tcp_check_req()` in `net/ipv4/tcp_minisocks.c`, `tcp_v4_syn_recv_sock()`, `cookie_v4_check()`).
#[must_use]
#[inline(always)]
pub fn ack(deltas: &Deltas) -> Ack {
    let cookie = deltas.of(Counter::SyncookiesRecv) > 0;
    let reset = deltas.of(Counter::EmbryonicRsts) > 0;
    if deltas.of(Counter::ListenOverflows) > 0 {
        let cause = if cookie { Cause::SyncookieAckDropped } else { Cause::AcceptQueueFull };
        return Ack::Dropped { cause, reset };
    }
    if deltas.of(Counter::ListenDrops) > 0 {
        return Ack::Dropped { cause: Cause::NoMemory, reset };
    }
    if deltas.of(Counter::SyncookiesFailed) > 0 {
        return Ack::InvalidCookie;
    }
    if deltas.of(Counter::DeferAcceptDrop) > 0 {
        return Ack::Deferred;
    }
    if reset {
        return Ack::RequestReset;
    }
    if cookie {
        return Ack::UnusedCookie;
    }
    Ack::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deltas(raised: &[Counter]) -> Deltas {
        let mut d = Deltas::default();
        for c in raised {
            d.0[*c as usize] += 1;
        }
        d
    }

    const OFF: Reserve = Reserve { syncookies: 0, max_syn_backlog: 16, queue_len: 3, slack: 0 };

    #[test]
    fn a_syn_without_any_counter_was_queued() {
        assert_eq!(syn(&deltas(&[]), OFF), Syn::Queued);
    }

    #[test]
    fn the_wish_for_a_cookie_is_not_a_cookie() {
        use Counter::*;
        assert_eq!(syn(&deltas(&[ReqQFullDoCookies, SyncookiesSent]), OFF), Syn::Cookie);
        assert_eq!(
            syn(&deltas(&[ReqQFullDoCookies, ListenOverflows, ListenDrops]), OFF),
            Syn::Dropped(Cause::AcceptQueueFull)
        );
    }

    #[test]
    fn each_queue_has_its_own_drop() {
        use Counter::*;
        assert_eq!(syn(&deltas(&[ListenOverflows, ListenDrops]), OFF), Syn::Dropped(Cause::AcceptQueueFull));
        assert_eq!(syn(&deltas(&[ReqQFullDrop, ListenDrops]), OFF), Syn::Dropped(Cause::HalfOpenQueueFull));
    }

    #[test]
    fn the_reserve_rule_begins_at_the_last_quarter() {
        let d = deltas(&[Counter::ListenDrops]);
        // 16 - 12 = 4 is not below 16 / 4; 16 - 13 = 3 is.
        assert_eq!(syn(&d, Reserve { queue_len: 12, ..OFF }), Syn::Dropped(Cause::NoMemory));
        assert_eq!(syn(&d, Reserve { queue_len: 13, ..OFF }), Syn::Reserve);
        assert_eq!(syn(&d, Reserve { queue_len: 12, slack: 2, ..OFF }), Syn::Reserve);
        assert_eq!(syn(&d, Reserve { queue_len: 13, syncookies: 1, ..OFF }), Syn::Dropped(Cause::NoMemory));
        assert_eq!(syn(&d, Reserve { queue_len: u32::MAX, ..OFF }), Syn::Reserve);
    }

    #[test]
    fn an_overflow_of_a_cookie_is_told_apart_from_that_of_a_request() {
        use Counter::*;
        let dropped = |cause, reset| Ack::Dropped { cause, reset };
        assert_eq!(ack(&deltas(&[ListenOverflows, ListenDrops])), dropped(Cause::AcceptQueueFull, false));
        assert_eq!(
            ack(&deltas(&[SyncookiesRecv, ListenOverflows, ListenDrops])),
            dropped(Cause::SyncookieAckDropped, false)
        );
        assert_eq!(ack(&deltas(&[ListenOverflows, ListenDrops, EmbryonicRsts])), dropped(Cause::AcceptQueueFull, true));
    }

    #[test]
    fn what_is_no_loss_is_no_loss() {
        use Counter::*;
        assert_eq!(ack(&deltas(&[DeferAcceptDrop])), Ack::Deferred);
        assert_eq!(ack(&deltas(&[SyncookiesFailed])), Ack::InvalidCookie);
        assert_eq!(ack(&deltas(&[EmbryonicRsts])), Ack::RequestReset);
        assert_eq!(ack(&deltas(&[])), Ack::Other);
    }

    #[test]
    fn a_child_that_could_not_be_made_is_no_memory() {
        use Counter::*;
        let no_memory = Ack::Dropped { cause: Cause::NoMemory, reset: false };
        assert_eq!(ack(&deltas(&[ListenDrops])), no_memory);
        assert_eq!(ack(&deltas(&[SyncookiesRecv, ListenDrops])), no_memory);
    }

    #[test]
    fn a_valid_cookie_that_raises_nothing_else_made_no_connection() {
        assert_eq!(ack(&deltas(&[Counter::SyncookiesRecv])), Ack::UnusedCookie);
    }
}
