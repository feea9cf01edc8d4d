//! The kernel's own counters that decide verdicts, and the tracer's global ones.

/// Number of kernel counters that are followed.
pub const COUNTERS: usize = 9;

/// A counter of `/proc/net/netstat` (`TcpExt`) whose change on this CPU is the verdict on the packet at hand.
///
/// Each is raised with bottom halves off, on the CPU that handles the packet (`NET_INC_STATS` in `net/ipv4/tcp_input.c`,
/// `tcp_minisocks.c`, `tcp_ipv4.c`, `syncookies.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Counter {
    /// A SYN or final ACK dropped at a listener.
    ListenDrops = 0,
    /// The accept queue was full.
    ListenOverflows = 1,
    /// The request queue was full and cookies were not allowed.
    ReqQFullDrop = 2,
    /// The request queue was full and a cookie was wanted; raised before the accept queue is looked at.
    ReqQFullDoCookies = 3,
    /// A SYN answered with a cookie.
    SyncookiesSent = 4,
    /// A valid cookie came back.
    SyncookiesRecv = 5,
    /// An ACK without request that is no valid cookie.
    SyncookiesFailed = 6,
    /// A bare final ACK ignored, because the listener waits for data (`TCP_DEFER_ACCEPT`).
    DeferAcceptDrop = 7,
    /// A half-open request removed by a RST, by a SYN in its window, or by `tcp_abort_on_overflow`.
    EmbryonicRsts = 8,
}

impl Counter {
    /// All of them, by number.
    pub const ALL: [Counter; COUNTERS] = [
        Counter::ListenDrops,
        Counter::ListenOverflows,
        Counter::ReqQFullDrop,
        Counter::ReqQFullDoCookies,
        Counter::SyncookiesSent,
        Counter::SyncookiesRecv,
        Counter::SyncookiesFailed,
        Counter::DeferAcceptDrop,
        Counter::EmbryonicRsts,
    ];

    /// The column in `/proc/net/netstat`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Counter::ListenDrops => "ListenDrops",
            Counter::ListenOverflows => "ListenOverflows",
            Counter::ReqQFullDrop => "TCPReqQFullDrop",
            Counter::ReqQFullDoCookies => "TCPReqQFullDoCookies",
            Counter::SyncookiesSent => "SyncookiesSent",
            Counter::SyncookiesRecv => "SyncookiesRecv",
            Counter::SyncookiesFailed => "SyncookiesFailed",
            Counter::DeferAcceptDrop => "TCPDeferAcceptDrop",
            Counter::EmbryonicRsts => "EmbryonicRsts",
        }
    }

    /// The enumerator of `LINUX_MIB_*` in the kernel's BTF.
    #[must_use]
    pub const fn enumerator(self) -> &'static str {
        match self {
            Counter::ListenDrops => "LINUX_MIB_LISTENDROPS",
            Counter::ListenOverflows => "LINUX_MIB_LISTENOVERFLOWS",
            Counter::ReqQFullDrop => "LINUX_MIB_TCPREQQFULLDROP",
            Counter::ReqQFullDoCookies => "LINUX_MIB_TCPREQQFULLDOCOOKIES",
            Counter::SyncookiesSent => "LINUX_MIB_SYNCOOKIESSENT",
            Counter::SyncookiesRecv => "LINUX_MIB_SYNCOOKIESRECV",
            Counter::SyncookiesFailed => "LINUX_MIB_SYNCOOKIESFAILED",
            Counter::DeferAcceptDrop => "LINUX_MIB_TCPDEFERACCEPTDROP",
            Counter::EmbryonicRsts => "LINUX_MIB_EMBRYONICRSTS",
        }
    }
}

/// What the handling of one packet added to the kernel's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Deltas(pub [u8; COUNTERS]);

impl Deltas {
    /// How much this counter rose. A packet raises a counter by one; of a rise beyond 255, which can only be made of packets that
    /// were not seen, this is not 0, and nothing more.
    #[must_use]
    #[inline(always)]
    pub const fn of(&self, counter: Counter) -> u8 {
        self.0[counter as usize]
    }
}

/// One network namespace on one CPU: the value of a per-CPU map keyed by the address of its `struct net`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct NetCounters {
    /// The kernel's counters when they were last read on this CPU.
    pub last: [u64; COUNTERS],
    /// The kernel's counters when counting began on this CPU.
    pub start: [u64; COUNTERS],
    /// The kernel's counters when counting ended on this CPU.
    pub end: [u64; COUNTERS],
    /// The sum of the deltas that were given to packets while counting.
    pub seen: [u64; COUNTERS],
    /// The inode number of the namespace.
    pub inum: u32,
    /// [`NetCounters::FOLLOWED`] or [`NetCounters::COUNTED`]; 0 while `last` is not valid on this CPU.
    pub mode: u32,
}

impl NetCounters {
    /// `last` is valid.
    pub const FOLLOWED: u32 = 1;
    /// `start` is valid too, and `seen` is added to.
    pub const COUNTED: u32 = 3;

    /// All ones if `last` is valid, else 0: to be used without a branch.
    #[must_use]
    #[inline(always)]
    pub const fn followed(&self) -> u64 {
        0u64.wrapping_sub(self.mode as u64 & 1)
    }

    /// All ones if `seen` is added to, else 0.
    #[must_use]
    #[inline(always)]
    pub const fn counted(&self) -> u64 {
        0u64.wrapping_sub(self.mode as u64 >> 1 & 1)
    }
}

const _: () = assert!(size_of::<NetCounters>() == 4 * 8 * COUNTERS + 8);

/// The tracer's own global counters: indices of a per-CPU array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Global {
    /// Events that found no room in the ring.
    EventsLost = 0,
    /// Troubled attempts that found no room in the watch map.
    Unwatched = 1,
    /// Listeners that found no free slot.
    ListenersUnseen = 2,
    /// Namespaces that found no room.
    NetsUnseen = 3,
    /// Local `connect()` calls to traced ports that reached SYN_SENT.
    Connects = 4,
    /// Of these, the ones that became established.
    Established = 5,
    /// Of these, the ones that failed.
    ConnectFailed = 6,
    /// Of the failed, the ones without a free local port.
    PortExhausted = 7,
    /// Local connects that found no room in the map of running connects.
    ConnectsUnseen = 8,
    /// Drops and cookies that the kernel counted and whose packets were not shown to a program: its counters had risen by more than
    /// the packet at hand can raise them.
    DropsUnseen = 9,
    /// FINs of local clients, the first of [`ENDERS`](super::ENDERS) counters, by [`Ender`](super::Ender).
    Fins = 10,
    /// RSTs of local clients that a process caused, likewise.
    Resets = 15,
}

impl Global {
    /// Number of global counters.
    pub const COUNT: usize = 10 + 2 * super::ENDERS;
}
