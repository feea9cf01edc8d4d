//! What crossed the path and what got lost on it, attempt by attempt, from the headers of the segments.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::Direction;
use crate::rawtcp::flag::{ACK, FIN, RST, SYN};

/// How many packets of a kind were put on the path, and what became of them: what has neither arrived nor been lost is under
/// way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Crossing {
    /// Put on the path by the sender's kernel.
    pub sent: u64,
    /// Handed to the receiver's kernel.
    pub arrived: u64,
    /// Lost, for whatever reason.
    pub lost: u64,
}

impl Crossing {
    /// How many are under way.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        self.sent - self.arrived - self.lost
    }
}

/// What the path has seen of one connection attempt: a client's address and port with an initial sequence number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flow {
    /// SYNs, from the client.
    pub syn: Crossing,
    /// SYN-ACKs, from the server.
    pub synack: Crossing,
    /// The SYN-ACKs that the server has sent, by its initial sequence number: one for each request or cookie that it made.
    pub synack_by_isn: BTreeMap<u32, u64>,
    /// Bare ACKs of a SYN-ACK, and of nothing else, from the client.
    pub final_ack: Crossing,
    /// FINs of a client that has sent no data.
    pub fin: Crossing,
    /// RSTs of a client that has sent no data.
    pub reset: Crossing,
    syns_before_synack: u64,
}

impl Flow {
    /// How many SYNs arrived that the server gave no answer to for certain: those before its first SYN-ACK, but the one that
    /// this answers. What becomes of a SYN after a SYN-ACK cannot be told from the path.
    #[must_use]
    pub fn ignored_syns(&self) -> u64 {
        self.syns_before_synack - u64::from(self.synack.sent > 0)
    }

    /// How many SYN-ACKs the server has sent that repeat an earlier one, sequence number and all. Of an ordinary request,
    /// these are retransmissions; a cookie for a SYN that came again within the same minute is equal to the one before, too.
    #[must_use]
    pub fn repeated_synacks(&self) -> u64 {
        self.synack_by_isn.values().map(|sent| sent - 1).sum()
    }

    /// How many packets of this attempt are under way.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        [self.syn, self.synack, self.final_ack, self.fin, self.reset].iter().map(Crossing::under_way).sum()
    }

    /// Whether the server can have learned that the client got a SYN-ACK.
    #[must_use]
    pub fn was_answered(&self) -> bool {
        self.final_ack.arrived + self.fin.arrived > 0
    }
}

/// Packets that did not come out of a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// By chance.
    pub chance: u64,
    /// While the line was cut.
    pub cut: u64,
    /// As too many were under way.
    pub queue: u64,
}

/// What a path has carried and lost.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    /// By client and initial sequence number.
    pub flows: BTreeMap<(SocketAddr, u32), Flow>,
    /// What got lost on the way to the server.
    pub lost_to_server: Losses,
    /// What got lost on the way to the clients.
    pub lost_to_clients: Losses,
}

impl Truth {
    /// The attempts that the server can know of: those of which a SYN arrived.
    pub fn attempts(&self) -> impl Iterator<Item = (&(SocketAddr, u32), &Flow)> {
        self.flows.iter().filter(|(_, flow)| flow.syn.arrived > 0)
    }

    /// A sum over all attempts.
    #[must_use]
    pub fn sum(&self, of: impl Fn(&Flow) -> u64) -> u64 {
        self.flows.values().map(of).sum()
    }

    /// What was lost in one direction.
    #[must_use]
    pub fn lost(&self, direction: Direction) -> Losses {
        match direction {
            Direction::ToServer => self.lost_to_server,
            Direction::ToClients => self.lost_to_clients,
        }
    }

    fn losses(&mut self, direction: Direction) -> &mut Losses {
        match direction {
            Direction::ToServer => &mut self.lost_to_server,
            Direction::ToClients => &mut self.lost_to_clients,
        }
    }

    /// Which count of which attempt this segment belongs to. A new attempt begins with its SYN.
    fn crossing(&mut self, direction: Direction, segment: &Header) -> Option<&mut Crossing> {
        let flags = segment.flags & (SYN | ACK | FIN | RST);
        if direction == Direction::ToClients {
            let flow = self.flows.get_mut(&(segment.destination, segment.acknowledgement.wrapping_sub(1)))?;
            return (flags == SYN | ACK).then_some(&mut flow.synack);
        }
        if flags == SYN {
            return Some(&mut self.flows.entry((segment.source, segment.sequence)).or_default().syn);
        }
        let flow = self.flows.get_mut(&(segment.source, segment.sequence.wrapping_sub(1)))?;
        if flags & RST != 0 {
            return Some(&mut flow.reset);
        }
        if flags & FIN != 0 {
            return Some(&mut flow.fin);
        }
        let isn = segment.acknowledgement.wrapping_sub(1);
        (flow.synack_by_isn.contains_key(&isn)).then_some(&mut flow.final_ack)
    }

    pub(super) fn note_sent(&mut self, direction: Direction, segment: &Header) {
        let Some(crossing) = self.crossing(direction, segment) else { return };
        crossing.sent += 1;
        if direction == Direction::ToClients {
            let key = (segment.destination, segment.acknowledgement.wrapping_sub(1));
            if let Some(flow) = self.flows.get_mut(&key) {
                *flow.synack_by_isn.entry(segment.sequence).or_default() += 1;
            }
        }
    }

    pub(super) fn note_lost(&mut self, direction: Direction, packet: &[u8], reason: fn(&mut Losses) -> &mut u64) {
        *reason(self.losses(direction)) += 1;
        if let Some(crossing) = Header::of(packet).and_then(|segment| self.crossing(direction, &segment)) {
            crossing.lost += 1;
        }
    }

    pub(super) fn note_arrived(&mut self, direction: Direction, segment: &Header) {
        let Some(crossing) = self.crossing(direction, segment) else { return };
        crossing.arrived += 1;
        if direction == Direction::ToServer && segment.flags & SYN != 0 {
            let flow = self.flows.entry((segment.source, segment.sequence)).or_default();
            flow.syns_before_synack += u64::from(flow.synack.sent == 0);
        }
    }
}

/// What the path looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    source: SocketAddr,
    destination: SocketAddr,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
}

impl Header {
    /// The header of a TCP segment in an IPv4 packet; none in any other packet.
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        if packet.first()? >> 4 != 4 || *packet.get(9)? != libc::IPPROTO_TCP as u8 {
            return None;
        }
        let tcp = packet.get(usize::from(packet[0] & 0x0f) * 4..)?;
        let address = |at: usize| -> Option<[u8; 4]> { packet.get(at..at + 4)?.try_into().ok() };
        let port = |at: usize| -> Option<u16> { tcp.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes) };
        let number = |at: usize| -> Option<u32> { tcp.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes) };
        Some(Self {
            source: (address(12)?, port(0)?).into(),
            destination: (address(16)?, port(2)?).into(),
            sequence: number(4)?,
            acknowledgement: number(8)?,
            flags: *tcp.get(13)?,
        })
    }
}
