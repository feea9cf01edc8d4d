//! What the kernel side remembers: troubled attempts, and local connects that are under way.

use super::ENDERS;

/// Bits of [`Watch::state`].
pub mod state {
    /// The connection began before counting did: it is never counted.
    pub const EARLIER: u16 = 1 << 0;
    /// A packet of it was dropped at least once, or its request was removed.
    pub const TROUBLED: u16 = 1 << 1;
    /// It was last answered with a cookie.
    pub const COOKIE: u16 = 1 << 2;
    /// A request for it is queued now.
    pub const HALF_OPEN: u16 = 1 << 3;
    /// The client has answered a SYN-ACK: it believes that it is connected.
    pub const ANSWERED: u16 = 1 << 4;
    /// It is, or was, in the accept queue.
    pub const QUEUED: u16 = 1 << 5;
    /// It was accepted; the entry is left only because its event found no room in the ring.
    pub const ACCEPTED: u16 = 1 << 6;
    /// Completed by data.
    pub const BY_DATA: u16 = 1 << 7;
    /// Completed by FIN.
    pub const BY_FIN: u16 = 1 << 8;
    /// The cause was decided on the final ACK, not on the SYN.
    pub const STAGE_ACK: u16 = 1 << 9;
    /// The client was sent a RST (`tcp_abort_on_overflow`).
    pub const RESET: u16 = 1 << 10;
}

/// One troubled attempt, or one connection that began before counting did. The key is its [`Tuple`](super::Tuple).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Watch {
    /// When it was first seen, `CLOCK_MONOTONIC` nanoseconds.
    pub first_ns: u64,
    /// When something was last heard of it.
    pub last_ns: u64,
    /// The client's initial sequence number.
    pub isn: u32,
    /// The listener's slot.
    pub slot: u32,
    /// Bits of [`state`].
    pub state: u16,
    /// The last decisive [`Cause`](super::Cause); 255 if none yet.
    pub cause: u8,
    /// Zero.
    pub padding: [u8; 5],
}

const _: () = assert!(size_of::<Watch>() == 32);

/// Local connects of one process to traced ports: the value of a map keyed by thread group id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Process {
    /// Calls that reached SYN_SENT.
    pub connects: u64,
    /// Connections that became established.
    pub established: u64,
    /// Connections that failed.
    pub failed: u64,
    /// FINs that it caused, by [`Ender`](super::Ender).
    pub fins: [u64; ENDERS],
    /// RSTs that it caused, likewise.
    pub resets: [u64; ENDERS],
    /// The process's name.
    pub comm: [u8; 16],
}

const _: () = assert!(size_of::<Process>() == 40 + 16 * ENDERS);
