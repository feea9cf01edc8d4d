//! TCP by hand: segments written to and read from a TUN device.
//!
//! Everything below 10.9.0.0/16 and fd09::/64 lies behind the device, except
//! the server's own address. A segment written there enters the kernel as if it
//! came over a wire, and is handled before the write returns; nobody but this
//! module answers for the addresses behind the device, so no kernel socket
//! disturbs a handshake with a RST.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};

use crate::checksum::{fold, sum};
use crate::namespace::{Family, Namespace};
use crate::{sys, tun, wait};

/// TCP flags.
pub mod flag {
    #![expect(missing_docs, reason = "the names are those of RFC 9293")]
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
}
use flag::{ACK, FIN, PSH, RST, SYN};

/// One TCP segment with its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// Sequence number of the first byte (or of the SYN).
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// [`flag`]s.
    pub flags: u8,
    /// Data.
    pub payload: Vec<u8>,
}

/// The TUN device of a namespace, and what has been read from it.
#[derive(Debug)]
pub struct Wire {
    device: File,
    arrived: RefCell<Vec<Segment>>,
}

/// The server's addresses on the wire.
const SERVER_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);

impl Wire {
    /// Makes the device in `namespace`, which the calling thread is in.
    ///
    /// # Errors
    /// Fails when this kernel has no TUN device.
    pub fn open(_namespace: &Namespace) -> Result<Self> {
        const NAME: &str = "wire0";
        let device = tun::open(NAME, SERVER_V4)?;
        sys::add_ipv6(NAME, SERVER_V6).context("cannot give the TUN device an IPv6 address")?;
        // The kernel lets nobody bind an IPv6 address before it has finished
        // looking for duplicates, which it does on its own time.
        wait::until("the TUN device's IPv6 address", || Ok(UdpSocket::bind((SERVER_V6, 0)).is_ok()))?;
        Ok(Self { device, arrived: RefCell::default() })
    }

    /// The server's address on the wire.
    #[must_use]
    pub fn server(family: Family) -> IpAddr {
        match family {
            Family::V4 => SERVER_V4.into(),
            Family::V6 => SERVER_V6.into(),
        }
    }

    /// Puts one segment on the wire; the kernel has handled it when this returns.
    ///
    /// # Errors
    /// Fails when the device does not take it.
    pub fn send(&self, segment: &Segment) -> Result<()> {
        self.put(&encode(segment)?)
    }

    /// The same with a checksum that is wrong.
    ///
    /// # Errors
    /// Fails when the device does not take it.
    pub fn send_corrupted(&self, segment: &Segment) -> Result<()> {
        let mut packet = encode(segment)?;
        let checksum = packet.len() - tcp_length(segment) + CHECKSUM_AT;
        packet[checksum] ^= 0x55;
        self.put(&packet)
    }

    /// Puts one packet on the wire.
    pub(crate) fn put(&self, packet: &[u8]) -> Result<()> {
        let written = (&self.device).write(packet).context("cannot write to the TUN device")?;
        ensure!(written == packet.len(), "the TUN device took only {written} bytes");
        Ok(())
    }

    /// Reads what the kernel has sent so far; other protocols are passed over.
    fn collect(&self) -> Result<()> {
        let mut buffer = [0; 2048];
        loop {
            match (&self.device).read(&mut buffer) {
                Ok(length) => self.arrived.borrow_mut().extend(decode(&buffer[..length])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot read from the TUN device"),
            }
        }
    }

    /// All segments that the server has sent to `client` so far.
    ///
    /// # Errors
    /// Fails when the device cannot be read.
    pub fn seen_by(&self, client: SocketAddr) -> Result<Vec<Segment>> {
        self.collect()?;
        let arrived = self.arrived.borrow();
        Ok(arrived.iter().filter(|segment| segment.destination == client).cloned().collect())
    }
}

/// One client behind the wire, with the little TCP state that it needs.
#[derive(Debug)]
pub struct Peer<'wire> {
    wire: &'wire Wire,
    /// The client's address.
    pub address: SocketAddr,
    server: SocketAddr,
    /// The client's initial sequence number.
    pub isn: u32,
    next: u32,
    /// The server's initial sequence number, once a SYN-ACK has been read.
    pub server_isn: Option<u32>,
}

impl<'wire> Peer<'wire> {
    /// Client number `number` (below 60,000) of `server`, not yet connecting.
    #[must_use]
    pub fn new(wire: &'wire Wire, server: SocketAddr, number: u16) -> Self {
        let [high, low] = (number + 256).to_be_bytes();
        let ip = match server {
            SocketAddr::V4(_) => Ipv4Addr::new(10, 9, high, low).into(),
            SocketAddr::V6(_) => Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 1, u16::from_be_bytes([high, low])).into(),
        };
        let isn = u32::from(number).wrapping_mul(0x9e37_79b9) | 1;
        let address = SocketAddr::new(ip, 1024 + number);
        Self { wire, address, server, isn, next: isn.wrapping_add(1), server_isn: None }
    }

    /// `count` clients of `server`, numbered from `first`.
    #[must_use]
    pub fn several(wire: &'wire Wire, server: SocketAddr, first: u16, count: u16) -> Vec<Peer<'wire>> {
        (first..first + count).map(|number| Peer::new(wire, server, number)).collect()
    }

    /// The SYN of this client.
    #[must_use]
    pub fn syn_segment(&self) -> Segment {
        Segment { sequence: self.isn, acknowledgement: 0, ..self.segment(SYN, &[]) }
    }

    /// Sends the SYN, the first time or again.
    ///
    /// # Errors
    /// Fails when the device does.
    pub fn syn(&self) -> Result<()> {
        self.wire.send(&self.syn_segment())
    }

    /// Takes the server's initial sequence number from the newest SYN-ACK, if
    /// one has come; whether one has.
    ///
    /// # Errors
    /// Fails when the device does.
    pub fn take_synack(&mut self) -> Result<bool> {
        let expected = self.isn.wrapping_add(1);
        let newest = self
            .wire
            .seen_by(self.address)?
            .into_iter()
            .rfind(|segment| segment.flags & (SYN | ACK) == SYN | ACK && segment.acknowledgement == expected);
        self.server_isn = newest.map(|segment| segment.sequence).or(self.server_isn);
        Ok(self.server_isn.is_some())
    }

    /// How many SYN-ACKs have come.
    ///
    /// # Errors
    /// Fails when the device does.
    pub fn synacks(&self) -> Result<usize> {
        let seen = self.wire.seen_by(self.address)?;
        Ok(seen.iter().filter(|segment| segment.flags & (SYN | ACK) == SYN | ACK).count())
    }

    /// Whether the server has reset this client.
    ///
    /// # Errors
    /// Fails when the device does.
    pub fn was_reset(&self) -> Result<bool> {
        Ok(self.wire.seen_by(self.address)?.iter().any(|segment| segment.flags & RST != 0))
    }

    /// Sends the bare ACK that completes the handshake.
    ///
    /// # Errors
    /// Fails when the device does.
    pub fn ack(&self) -> Result<()> {
        self.wire.send(&self.segment(ACK, &[]))
    }

    /// Sends an ACK that acknowledges nothing that any server has sent.
    ///
    /// # Errors
    /// Fails when the device does.
    pub fn bogus_ack(&self) -> Result<()> {
        self.wire.send(&Segment { acknowledgement: 0x1234_5678, ..self.segment(ACK, &[]) })
    }

    /// Sends data.
    ///
    /// # Errors
    /// Fails when the device does.
    pub fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.wire.send(&self.segment(PSH | ACK, bytes))?;
        self.next = self.next.wrapping_add(u32::try_from(bytes.len())?);
        Ok(())
    }

    /// Sends a FIN.
    ///
    /// # Errors
    /// Fails when the device does.
    pub fn fin(&mut self) -> Result<()> {
        self.wire.send(&self.segment(FIN | ACK, &[]))?;
        self.next = self.next.wrapping_add(1);
        Ok(())
    }

    /// Sends a RST.
    ///
    /// # Errors
    /// Fails when the device does.
    pub fn reset(&self) -> Result<()> {
        self.wire.send(&self.segment(RST | ACK, &[]))
    }

    fn segment(&self, flags: u8, payload: &[u8]) -> Segment {
        Segment {
            source: self.address,
            destination: self.server,
            sequence: self.next,
            acknowledgement: self.server_isn.map_or(0, |isn| isn.wrapping_add(1)),
            flags,
            payload: payload.to_vec(),
        }
    }
}

/// Sends the SYN of each peer.
///
/// # Errors
/// Fails when the device does.
pub fn syn_all(peers: &[Peer<'_>]) -> Result<()> {
    peers.iter().try_for_each(Peer::syn)
}

/// Waits until each peer has a SYN-ACK.
///
/// # Errors
/// Fails when one gets none.
pub fn await_synacks(peers: &mut [Peer<'_>]) -> Result<()> {
    for peer in peers {
        let what = format!("a SYN-ACK for {}", peer.address);
        wait::until(&what, || peer.take_synack())?;
    }
    Ok(())
}

/// The addresses of peers.
#[must_use]
pub fn addresses(peers: &[Peer<'_>]) -> BTreeSet<SocketAddr> {
    peers.iter().map(|peer| peer.address).collect()
}

/// Where a TCP header keeps its checksum.
const CHECKSUM_AT: usize = 16;
/// A maximum segment size of 1,400, for segments with SYN.
const MSS_OPTION: [u8; 4] = [2, 4, 0x05, 0x78];

fn tcp_length(segment: &Segment) -> usize {
    let options = if segment.flags & SYN != 0 { MSS_OPTION.len() } else { 0 };
    20 + options + segment.payload.len()
}

/// The IP packet of a segment, with its checksums.
pub(crate) fn encode(segment: &Segment) -> Result<Vec<u8>> {
    let length = tcp_length(segment);
    let header_words = (length - segment.payload.len()) / 4;
    let mut tcp = Vec::with_capacity(length);
    tcp.extend(segment.source.port().to_be_bytes());
    tcp.extend(segment.destination.port().to_be_bytes());
    tcp.extend(segment.sequence.to_be_bytes());
    tcp.extend(segment.acknowledgement.to_be_bytes());
    tcp.extend([u8::try_from(header_words << 4)?, segment.flags]);
    tcp.extend(64_240_u16.to_be_bytes());
    tcp.extend([0; 4]);
    if segment.flags & SYN != 0 {
        tcp.extend(MSS_OPTION);
    }
    tcp.extend(&segment.payload);

    let mut packet = Vec::with_capacity(40 + length);
    let protocol = libc::IPPROTO_TCP as u8;
    match (segment.source.ip(), segment.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0]);
            packet.extend(u16::try_from(20 + length)?.to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let checksum = fold(sum(&packet));
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(u16::try_from(length)?.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        (source, destination) => anyhow::bail!("{source} cannot send to {destination}"),
    }
    let addresses = if segment.source.is_ipv4() { &packet[12..] } else { &packet[8..] };
    let tail = u32::from(protocol) + u32::try_from(length)?;
    let checksum = fold(sum(addresses) + sum(&tail.to_be_bytes()) + sum(&tcp));
    tcp[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(tcp);
    Ok(packet)
}

fn decode(packet: &[u8]) -> Option<Segment> {
    let protocol = libc::IPPROTO_TCP as u8;
    let (source, destination, tcp): (IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&protocol) => {
            let header = usize::from(packet[0] & 0x0f) * 4;
            let address = |at: usize| -> Option<[u8; 4]> { packet.get(at..at + 4)?.try_into().ok() };
            (address(12)?.into(), address(16)?.into(), packet.get(header..)?)
        }
        6 if packet.get(6) == Some(&protocol) => {
            let address = |at: usize| -> Option<[u8; 16]> { packet.get(at..at + 16)?.try_into().ok() };
            (address(8)?.into(), address(24)?.into(), packet.get(40..)?)
        }
        _ => return None,
    };
    let short = |at: usize| -> Option<u16> { tcp.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes) };
    let long = |at: usize| -> Option<u32> { tcp.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes) };
    Some(Segment {
        source: SocketAddr::new(source, short(0)?),
        destination: SocketAddr::new(destination, short(2)?),
        sequence: long(4)?,
        acknowledgement: long(8)?,
        flags: *tcp.get(13)?,
        payload: tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Listen;

    #[test]
    fn a_handshake_by_hand_ends_in_the_accept_queue() -> Result<()> {
        for family in [Family::V4, Family::V6] {
            let namespace = Namespace::enter()?;
            let wire = Wire::open(&namespace)?;
            let listener = Listen::new(5).on(Wire::server(family)).open()?;
            let mut peers = Peer::several(&wire, listener.address(), 0, 1);
            syn_all(&peers)?;
            await_synacks(&mut peers)?;
            assert_eq!(listener.waiting()?, 0);
            peers[0].ack()?;
            assert_eq!(listener.waiting()?, 1);
            let accepted = listener.accept()?.context("nothing to accept")?;
            assert_eq!(accepted.peer, peers[0].address);
        }
        Ok(())
    }

    #[test]
    fn a_segment_survives_being_encoded_and_decoded() -> Result<()> {
        for (source, destination) in [("10.9.1.2:7", "10.9.0.1:80"), ("[fd09::1:2]:7", "[fd09::1]:80")] {
            let segment = Segment {
                source: source.parse()?,
                destination: destination.parse()?,
                sequence: 0xfedc_ba98,
                acknowledgement: 1,
                flags: PSH | ACK,
                payload: b"odd".to_vec(),
            };
            assert_eq!(decode(&encode(&segment)?), Some(segment));
        }
        Ok(())
    }
}
