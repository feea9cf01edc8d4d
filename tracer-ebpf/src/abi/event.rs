//! Facts about troubled attempts, as the kernel side writes them into the ring.

use super::{Deltas, Tuple};

/// Length of a task's name, with its terminating zero (`TASK_COMM_LEN`).
pub const TASK_COMM_LEN: usize = 16;

/// What happened. Past tense: each is a fact about one packet, one timer, or one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EventKind {
    /// A SYN was dropped; `cause`. (`flag::RESERVE`: by the reserve of `tcp_max_syn_backlog`.) For
    /// [`Cause::Filtered`](super::Cause::Filtered), `detail` is the kernel's drop reason, and for
    /// [`Cause::NoListener`](super::Cause::NoListener) nobody listened.
    SynDropped = 1,
    /// A SYN was answered with a cookie.
    CookieSent = 2,
    /// A resent SYN of an attempt that is already watched was queued as a request.
    SynQueued = 3,
    /// The segment that would have completed the handshake was dropped; `cause`. `detail` is 1 if it returned a cookie and an
    /// ordinary request of the same client was in its way, which stays.
    AckDropped = 4,
    /// An ACK came back from an attempt that was answered with a cookie, and is no valid one.
    CookieInvalid = 5,
    /// A SYN-ACK was sent again; `detail` is how often so far.
    SynAckRetransmitted = 6,
    /// A request timed out and was removed; `detail` is how often its SYN-ACK had timed out.
    RequestExpired = 7,
    /// A request was removed by a RST or a SYN in its window.
    RequestReset = 8,
    /// A watched attempt entered the accept queue. `detail` is the number of SYN-ACK retransmissions.
    ChildQueued = 9,
    /// What completed a watched attempt was more than a bare ACK (`flag::DATA`, `flag::FIN`).
    CompletedBy = 10,
    /// A watched attempt was accepted by `pid`. `detail` is the time in the accept queue in microseconds.
    Accepted = 11,
    /// A connection that nobody had accepted was closed: by its listener's end (`flag::LISTENER_CLOSED`), or by the
    /// client's RST while it waited.
    ChildClosed = 12,
    /// A listener opened; its slot holds the details.
    ListenerOpened = 13,
    /// A listener closed.
    ListenerClosed = 14,
    /// A local `connect()` failed; `detail` is the errno, `pid` and `comm` the caller.
    ConnectFailed = 15,
    /// A RST came from the client of a watched attempt that has no request (a cookie connection).
    ClientReset = 16,
    /// A process ended a local client's connection of a watched attempt; `cause` is the [`Ender`](super::Ender), `detail` its exit
    /// code if it was ending, `flag::RESET` for a RST instead of a FIN; `pid` and `comm`.
    ClientEnded = 17,
    /// A process that had connected to a traced port has ended; `detail` is its exit code as `wait()` gives it; `pid` and `comm`.
    ProcessExited = 18,
}

impl EventKind {
    /// The kind with this number, or `None` for one that this version does not know.
    #[must_use]
    pub const fn from_u8(n: u8) -> Option<EventKind> {
        use EventKind::*;
        const ALL: [EventKind; 18] = [
            SynDropped,
            CookieSent,
            SynQueued,
            AckDropped,
            CookieInvalid,
            SynAckRetransmitted,
            RequestExpired,
            RequestReset,
            ChildQueued,
            CompletedBy,
            Accepted,
            ChildClosed,
            ListenerOpened,
            ListenerClosed,
            ConnectFailed,
            ClientReset,
            ClientEnded,
            ProcessExited,
        ];
        if n >= 1 && n as usize <= ALL.len() { Some(ALL[n as usize - 1]) } else { None }
    }
}

/// Bits of [`Event::flags`].
pub mod flag {
    /// The kernel side counted a new attempt with this event.
    pub const NEW_ATTEMPT: u8 = 1 << 0;
    /// The attempt is one of a cookie.
    pub const COOKIE: u8 = 1 << 1;
    /// The client was sent a RST (`tcp_abort_on_overflow`).
    pub const RESET: u8 = 1 << 2;
    /// The SYN was dropped by the reserve of `tcp_max_syn_backlog`.
    pub const RESERVE: u8 = 1 << 3;
    /// Completed by data.
    pub const DATA: u8 = 1 << 4;
    /// Completed by FIN.
    pub const FIN: u8 = 1 << 5;
    /// The listener had closed.
    pub const LISTENER_CLOSED: u8 = 1 << 6;
    /// Accepted after the client had closed or reset.
    pub const DEAD_ON_ARRIVAL: u8 = 1 << 7;
}

/// One record of the ring: 112 bytes, native byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Event {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Whose. The client's port is 0 where the kernel had none to give (port exhaustion).
    pub tuple: Tuple,
    /// The client's initial sequence number; 0 where the event does not know it.
    pub isn: u32,
    /// The listener's slot, or [`NO_LISTENER`](super::NO_LISTENER).
    pub slot: u32,
    /// What `kind` says.
    pub detail: u32,
    /// Length of the accept queue at the time. To report, never to judge by.
    pub accept_queue: u32,
    /// Limit of the accept queue at the time.
    pub accept_limit: u32,
    /// Length of the request queue at the time.
    pub half_open: u32,
    /// Thread group id of the process, where one is concerned.
    pub pid: u32,
    /// [`EventKind`].
    pub kind: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    /// [`Cause`](super::Cause), where `kind` says so.
    pub cause: u8,
    /// What the packet added to the kernel's counters.
    pub deltas: Deltas,
    /// The process's name, zero-padded.
    pub comm: [u8; TASK_COMM_LEN],
    /// Zero.
    pub padding: [u8; 8],
}

const _: () = assert!(size_of::<Event>() == 112);
