//! Listeners: their identity, and what is counted for each without an event.

use super::{Address, CAUSES, Tuple};

/// The slot of attempts that met no listener: refused, filtered before one was found, or failed in `connect()`.
pub const NO_LISTENER: u32 = 0;

/// How many listeners can open at the same instant, each on a CPU, and all get a slot.
pub const RIVALS: u32 = 16;

/// Listeners that can share one address and port at a time (SO_REUSEPORT).
pub const MEMBERS: usize = 16;

/// Key of the map of ports that have, or had, a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PortKey {
    /// Address of the `struct net`.
    pub net: u64,
    /// Port, host order.
    pub port: u32,
    /// Zero.
    pub padding: u32,
}

/// What listens on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Port {
    /// The listener, if there is only one.
    pub slot: u32,
    /// Listeners that there are, or have been at the same time.
    pub listeners: u32,
}

/// Key of the map from an address and port to the listeners that share it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct GroupKey {
    /// Address of the `struct net`.
    pub net: u64,
    /// Address that is listened on.
    pub address: Address,
    /// Port, host order.
    pub port: u32,
    /// Zero.
    pub padding: u32,
}

/// The listeners of one address and port: one, or the members of a SO_REUSEPORT group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Group {
    /// Slots of open and of closed listeners.
    pub slots: [u32; MEMBERS],
    /// Entries in use; the first `len` are valid.
    pub len: u32,
    /// An open member, if there is one.
    pub leader: u32,
    /// The member that closed last; 0 if none has.
    pub closed: u32,
    /// Zero.
    pub padding: u32,
}

/// Who a listener is. Written by the kernel side when it is first seen; kept after it has closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ListenerInfo {
    /// Address of the `struct sock`; 0 if the slot is free.
    pub sk: u64,
    /// Address of the `struct net`.
    pub net: u64,
    /// When it opened, `CLOCK_MONOTONIC` nanoseconds; 0 if it existed before.
    pub opened_ns: u64,
    /// When it closed; 0 while it is open.
    pub closed_ns: u64,
    /// Inode number of the socket, to find its owner; 0 if unknown.
    pub inode: u64,
    /// Thread and thread group that closed it, as `bpf_get_current_pid_tgid()` gives them.
    pub closed_by: u64,
    /// Address it is bound to; mapped for IPv4.
    pub address: Address,
    /// `sk_drops` when it was first seen or last read: whose drop a SYN of a group was.
    pub drops: u32,
    /// Network namespace.
    pub netns: u32,
    /// Effective limit of the accept queue (`sk_max_ack_backlog`).
    pub backlog: u32,
    /// What `listen()` was asked for, if it was seen; otherwise `u32::MAX`.
    pub asked: u32,
    /// Length of the accept queue when counting ended.
    pub accept_queue: u32,
    /// Length of the request queue when counting ended.
    pub half_open: u32,
    /// Thread group that called `listen()`, if it was seen.
    pub pid: u32,
    /// Port, host order.
    pub port: u16,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// 1 if an IPv6 listener takes no IPv4.
    pub v6only: u8,
    /// 1 if `SO_REUSEPORT` is set.
    pub reuseport: u8,
    /// Zero.
    pub padding: [u8; 6],
    /// Name of the thread that called `listen()`, if it was seen.
    pub comm: [u8; 16],
}

const _: () = assert!(size_of::<ListenerInfo>() == 120);

/// Buckets of the accept-wait histogram: four per power of two of microseconds, up to about 19 hours.
pub const WAIT_BUCKETS: usize = 144;

/// The bucket of a wait in microseconds: exact below 8, then within 25 %.
#[must_use]
#[inline(always)]
pub const fn wait_bucket(us: u64) -> usize {
    if us < 8 {
        return us as usize;
    }
    let log = 63 - us.leading_zeros() as usize;
    let bucket = (log - 1) * 4 + ((us >> (log - 2)) & 3) as usize;
    if bucket < WAIT_BUCKETS { bucket } else { WAIT_BUCKETS - 1 }
}

/// The smallest wait, in microseconds, that falls into this bucket.
#[must_use]
pub const fn wait_bucket_floor_us(bucket: usize) -> u64 {
    if bucket < 8 {
        return bucket as u64;
    }
    let log = bucket / 4 + 1;
    (4 + (bucket % 4) as u64) << (log - 2)
}

/// Index into [`SlotCounters::untold`] of the attempts that were answered with a cookie.
pub const UNTOLD_COOKIE: usize = CAUSES;

/// What is counted for one listener on one CPU. Every field but the two maxima and `wait_max_us` is a sum; what is counted at the
/// first member of a SO_REUSEPORT group and moved to the right one later wraps, and only the sum over all CPUs means something.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SlotCounters {
    /// SYN packets that the listener or one of its requests received.
    pub syn: u64,
    /// Of these, repetitions of a SYN whose request was already queued.
    pub syn_duplicate: u64,
    /// Attempts that began here.
    pub attempts: u64,
    /// Requests queued, first SYN or repeated one.
    pub requests: u64,
    /// SYNs answered with a cookie.
    pub cookies: u64,
    /// SYN-ACKs sent again.
    pub synack_retransmitted: u64,
    /// Connections that entered the accept queue.
    pub queued: u64,
    /// Of these, the ones that came from a request, not from a cookie.
    pub children: u64,
    /// Requests that timed out.
    pub expired: u64,
    /// Requests that were reset, by the client or by `tcp_abort_on_overflow`.
    pub reset: u64,
    /// Connections that `accept()` returned.
    pub accepted: u64,
    /// Of these, the ones whose client had already closed or reset.
    pub dead_on_arrival: u64,
    /// Cookies that came back and became a connection.
    pub cookie_acks: u64,
    /// ACKs that were no valid cookie.
    pub cookie_invalid: u64,
    /// Valid cookies of which no connection came, though nothing was full.
    pub cookie_unused: u64,
    /// Bare ACKs that `TCP_DEFER_ACCEPT` ignored.
    pub deferred: u64,
    /// SYNs dropped by the reserve rule; they are in `syn_dropped` too.
    pub reserve: u64,
    /// Connections in the accept queue that the client reset.
    pub children_reset: u64,
    /// Connections in the accept queue that went with their listener.
    pub children_dropped: u64,
    /// SYNs dropped, by [`Cause`](super::Cause).
    pub syn_dropped: [u64; CAUSES],
    /// Handshake-completing segments dropped, by [`Cause`](super::Cause).
    pub ack_dropped: [u64; CAUSES],
    /// Attempts that are counted and not told, by what became of their last SYN: by [`Cause`](super::Cause), and of the ones answered
    /// with a cookie at [`UNTOLD_COOKIE`].
    pub untold: [u64; CAUSES + 1],
    /// Longest accept queue seen.
    pub max_accept_queue: u32,
    /// Longest request queue seen.
    pub max_half_open: u32,
    /// Longest wait in the accept queue, microseconds.
    pub wait_max_us: u64,
    /// Histogram of the waits; see [`wait_bucket`].
    pub wait: [u32; WAIT_BUCKETS],
}

const _: () = assert!(size_of::<SlotCounters>() == (19 + 3 * CAUSES + 1 + 2) * 8 + WAIT_BUCKETS * 4);
const _: () = assert!(size_of::<Tuple>().is_multiple_of(4));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wait_lies_in_its_bucket() {
        let mut us = 0;
        while us < 1 << 35 {
            let b = wait_bucket(us);
            assert!(wait_bucket_floor_us(b) <= us, "{us} in bucket {b}");
            if b + 1 < WAIT_BUCKETS {
                assert!(us < wait_bucket_floor_us(b + 1), "{us} in bucket {b}");
            }
            us += 1 + us / 7;
        }
        assert_eq!(wait_bucket(u64::MAX), WAIT_BUCKETS - 1);
    }

    #[test]
    fn buckets_rise() {
        for b in 1..WAIT_BUCKETS {
            assert!(wait_bucket_floor_us(b) > wait_bucket_floor_us(b - 1), "bucket {b}");
        }
    }
}
