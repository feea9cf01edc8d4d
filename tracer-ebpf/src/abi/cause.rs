//! Why a connection attempt is lost: the permanent ids.

/// Number of causes, for arrays indexed by `Cause as usize`.
pub const CAUSES: usize = 13;

/// Why a connection attempt was lost, or was delayed.
///
/// The ids ([`Cause::id`]) are the same in JSON, metrics, documentation and test names; they are added to, never renamed.
/// `docs/causes.md` has one section for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Cause {
    /// The SYN was dropped: the request queue was at the listener's limit, or in the reserve of `tcp_max_syn_backlog`.
    HalfOpenQueueFull = 0,
    /// The SYN or the final ACK was dropped because the accept queue was full.
    AcceptQueueFull = 1,
    /// A valid syncookie came back and was dropped because the accept queue was full.
    SyncookieAckDropped = 2,
    /// A local `connect()` found no free local port.
    PortExhaustion = 3,
    /// An ACK came back that is no valid cookie.
    SyncookieInvalid = 4,
    /// The SYN-ACK was never acknowledged and the request timed out.
    HandshakeExpired = 5,
    /// The client reset the half-open connection.
    ClientReset = 6,
    /// The listener closed while the connection was half-open or waited in the accept queue.
    ListenerClosed = 7,
    /// Nobody listens on that port.
    NoListener = 8,
    /// The packet was dropped on its way to the listener, for the reason that the kernel gave.
    Filtered = 9,
    /// The kernel could not allocate or route the request.
    NoMemory = 10,
    /// A local client timed out and none of its SYNs was seen by a listener here.
    Unanswered = 11,
    /// None of the others could be shown.
    Unattributed = 12,
}

impl Cause {
    /// Every cause, in the order of the contract.
    pub const ALL: [Cause; CAUSES] = [
        Cause::HalfOpenQueueFull,
        Cause::AcceptQueueFull,
        Cause::SyncookieAckDropped,
        Cause::PortExhaustion,
        Cause::SyncookieInvalid,
        Cause::HandshakeExpired,
        Cause::ClientReset,
        Cause::ListenerClosed,
        Cause::NoListener,
        Cause::Filtered,
        Cause::NoMemory,
        Cause::Unanswered,
        Cause::Unattributed,
    ];

    /// The permanent id, as printed in every report.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Cause::HalfOpenQueueFull => "half-open-queue-full",
            Cause::AcceptQueueFull => "accept-queue-full",
            Cause::SyncookieAckDropped => "syncookie-ack-dropped",
            Cause::PortExhaustion => "port-exhaustion",
            Cause::SyncookieInvalid => "syncookie-invalid",
            Cause::HandshakeExpired => "handshake-expired",
            Cause::ClientReset => "client-reset",
            Cause::ListenerClosed => "listener-closed",
            Cause::NoListener => "no-listener",
            Cause::Filtered => "filtered",
            Cause::NoMemory => "no-memory",
            Cause::Unanswered => "unanswered",
            Cause::Unattributed => "unattributed",
        }
    }

    /// The cause with this number, or `None` for a number that no version of this interface has used.
    #[must_use]
    pub const fn from_u8(n: u8) -> Option<Cause> {
        if (n as usize) < CAUSES { Some(Self::ALL[n as usize]) } else { None }
    }
}

/// Where in the handshake a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Stage {
    /// No packet of the handshake is concerned (port exhaustion, listener closed).
    None = 0,
    /// The SYN.
    Syn = 1,
    /// The ACK that ends the handshake, with or without data.
    Ack = 2,
}

impl Stage {
    /// The name in reports: `syn`, `ack`, or nothing.
    #[must_use]
    pub const fn id(self) -> Option<&'static str> {
        match self {
            Stage::None => None,
            Stage::Syn => Some("syn"),
            Stage::Ack => Some("ack"),
        }
    }
}
