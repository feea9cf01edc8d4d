//! The outcome of counting: one account per listener, and their sum.

use std::ops::{Add, AddAssign, Index, IndexMut};

use tracer_abi::abi::{CAUSES, Cause};

/// A number for each cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByCause(pub [u64; CAUSES]);

impl ByCause {
    /// The sum over all causes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The causes with a number other than 0, in the order of the contract.
    pub fn nonzero(&self) -> impl Iterator<Item = (Cause, u64)> + '_ {
        Cause::ALL.into_iter().map(|c| (c, self[c])).filter(|(_, n)| *n > 0)
    }
}

impl Index<Cause> for ByCause {
    type Output = u64;
    fn index(&self, cause: Cause) -> &u64 {
        &self.0[cause as usize]
    }
}

impl IndexMut<Cause> for ByCause {
    fn index_mut(&mut self, cause: Cause) -> &mut u64 {
        &mut self.0[cause as usize]
    }
}

impl AddAssign for ByCause {
    fn add_assign(&mut self, other: Self) {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a += b;
        }
    }
}

/// What ended the handshake of the late connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompletedBy {
    /// A bare ACK: the answer to a repeated SYN-ACK, or to the SYN-ACK of a repeated SYN.
    pub ack: u64,
    /// A segment with data.
    pub data: u64,
    /// A FIN.
    pub fin: u64,
}

/// Packets, counted apart from attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packets {
    /// SYNs that reached the listener, repeated ones included.
    pub syn: u64,
    /// Of these, the dropped.
    pub syn_dropped: ByCause,
    /// Of the ones dropped because of the half-open queue, those by the reserve of `tcp_max_syn_backlog`.
    pub syn_dropped_reserve: u64,
    /// SYN-ACKs sent for the first time for a request.
    pub synack: u64,
    /// SYN-ACKs with a cookie.
    pub synack_cookie: u64,
    /// SYN-ACKs sent again.
    pub synack_retransmitted: u64,
    /// Segments that would have completed a handshake, dropped.
    pub ack_dropped: ByCause,
    /// Cookies that came back and became a connection.
    pub cookie_ack_accepted: u64,
    /// ACKs that were no valid cookie.
    pub cookie_ack_invalid: u64,
    /// Valid cookies of which no connection came, though nothing was full: an ordinary request of the same client was in the way.
    pub cookie_ack_unused: u64,
}

/// The ledger of one listener, or of all. `attempts = accepted + pending + lost.total()`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Client connection tries.
    pub attempts: u64,
    /// Returned by `accept()`.
    pub accepted: u64,
    /// Of these, the ones whose `accept()` was not seen, only that they left the accept queue of a listener: io_uring
    /// or an in-kernel server, where only system calls are watched.
    pub accepted_unseen: u64,
    /// In the accept queue, or half-open and never dropped, at the end.
    pub pending: u64,
    /// Dropped or failed, and not accepted by the end.
    pub lost: ByCause,
    /// Of the lost on a final ACK, the ones whose client was sent a RST (`tcp_abort_on_overflow`).
    pub lost_with_reset: u64,
    /// Of the lost to `accept-queue-full`, the ones decided on the SYN.
    pub lost_at_syn: u64,
    /// Dropped at least once, accepted in the end.
    pub late: ByCause,
    /// What completed the late ones.
    pub completed_by: CompletedBy,
    /// Of the lost, the ones whose client had answered a SYN-ACK.
    pub phantom: u64,
    /// Accepted after the client had closed or reset.
    pub dead_on_arrival: u64,
    /// Packets.
    pub packets: Packets,
    /// Of the lost, the ones of which the tracer knows that they were lost but not whose they were: they have no
    /// decision. The decisions of a whole run are `lost.total() - unlisted + late.total()`.
    pub unlisted: u64,
    /// Of the unlisted, the ones that were left out because more attempts were in trouble at once than are remembered: a flood.
    pub untold: u64,
    /// By how much the attempts that the events tell of exceeded those that the kernel side counted. They were taken
    /// off `pending` first, then added to `attempts`. Other than 0 at the end, the account is not exact.
    pub inconsistent: u64,
}

impl Account {
    /// Whether attempts = accepted + pending + lost.
    #[must_use]
    pub fn balances(&self) -> bool {
        self.attempts == self.accepted + self.pending + self.lost.total()
    }
}

impl Add for Account {
    type Output = Account;
    fn add(mut self, other: Account) -> Account {
        self.attempts += other.attempts;
        self.accepted += other.accepted;
        self.accepted_unseen += other.accepted_unseen;
        self.pending += other.pending;
        self.lost += other.lost;
        self.lost_with_reset += other.lost_with_reset;
        self.lost_at_syn += other.lost_at_syn;
        self.late += other.late;
        self.completed_by.ack += other.completed_by.ack;
        self.completed_by.data += other.completed_by.data;
        self.completed_by.fin += other.completed_by.fin;
        self.phantom += other.phantom;
        self.dead_on_arrival += other.dead_on_arrival;
        let (p, o) = (&mut self.packets, other.packets);
        p.syn += o.syn;
        p.syn_dropped += o.syn_dropped;
        p.syn_dropped_reserve += o.syn_dropped_reserve;
        p.synack += o.synack;
        p.synack_cookie += o.synack_cookie;
        p.synack_retransmitted += o.synack_retransmitted;
        p.ack_dropped += o.ack_dropped;
        p.cookie_ack_accepted += o.cookie_ack_accepted;
        p.cookie_ack_invalid += o.cookie_ack_invalid;
        p.cookie_ack_unused += o.cookie_ack_unused;
        self.unlisted += other.unlisted;
        self.untold += other.untold;
        self.inconsistent += other.inconsistent;
        self
    }
}
