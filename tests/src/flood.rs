//! SYNs of clients that do not exist, as many as one thread can make.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::{Result, ensure};

use crate::checksum::{fold, sum};
use crate::rawtcp::flag::SYN;
use crate::rawtcp::{Segment, Wire, encode};

/// How many addresses the SYNs come from: those behind the wire, without the server's own and the first few.
const ADDRESSES: u32 = 60_000;
/// The first port of each address.
const FIRST_PORT: u16 = 1024;
/// Where the source address, its port and the sequence number are in an IPv4 packet, and the checksums over them.
const SOURCE_AT: usize = 12;
const PORT_AT: usize = 20;
const SEQUENCE_AT: usize = 24;
const IP_CHECKSUM_AT: usize = 10;
const TCP_CHECKSUM_AT: usize = 36;

/// A sender of SYNs, each from another client.
#[derive(Debug)]
pub struct Flood<'wire> {
    wire: &'wire Wire,
    /// The SYN of a client with address 0.0.0.0, port 0 and sequence number 0, without checksums.
    packet: Vec<u8>,
    /// What its other fields add to the checksums.
    ip_sum: u32,
    tcp_sum: u32,
}

impl<'wire> Flood<'wire> {
    /// One that sends to `server`, the IPv4 address of [`Wire::server`].
    ///
    /// # Errors
    /// Fails for an address of another family.
    pub fn new(wire: &'wire Wire, server: SocketAddr) -> Result<Self> {
        ensure!(server.is_ipv4(), "a flood of {server} is not possible: it is made for IPv4");
        let mut packet = encode(&Segment {
            source: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
            destination: server,
            sequence: 0,
            acknowledgement: 0,
            flags: SYN,
            payload: Vec::new(),
        })?;
        packet[IP_CHECKSUM_AT..][..2].fill(0);
        packet[TCP_CHECKSUM_AT..][..2].fill(0);
        let ip_sum = sum(&packet[..20]);
        let tcp_length = packet.len() as u32 - 20;
        // The pseudo header: addresses, protocol and length.
        let tcp_sum = sum(&packet[SOURCE_AT..20]) + libc::IPPROTO_TCP as u32 + tcp_length + sum(&packet[20..]);
        Ok(Self { wire, packet, ip_sum, tcp_sum })
    }

    /// The address of client `number`. No two below 3,800,000,000 have the same.
    #[must_use]
    pub fn client(number: u32) -> SocketAddrV4 {
        let [high, low] = ((number % ADDRESSES) as u16 + 1024).to_be_bytes();
        SocketAddrV4::new(Ipv4Addr::new(10, 9, high, low), FIRST_PORT + (number / ADDRESSES) as u16)
    }

    /// Sends the SYN of client `number`: the same one each time.
    ///
    /// # Errors
    /// Fails when the device does not take it.
    pub fn send(&mut self, number: u32) -> Result<()> {
        let client = Self::client(number);
        let source = client.ip().octets();
        let port = client.port().to_be_bytes();
        let sequence = number.wrapping_mul(0x9e37_79b9).to_be_bytes();
        let address_sum = sum(&source);
        self.packet[SOURCE_AT..][..4].copy_from_slice(&source);
        self.packet[PORT_AT..][..2].copy_from_slice(&port);
        self.packet[SEQUENCE_AT..][..4].copy_from_slice(&sequence);
        let ip = fold(self.ip_sum + address_sum);
        let tcp = fold(self.tcp_sum + address_sum + sum(&port) + sum(&sequence));
        self.packet[IP_CHECKSUM_AT..][..2].copy_from_slice(&ip.to_be_bytes());
        self.packet[TCP_CHECKSUM_AT..][..2].copy_from_slice(&tcp.to_be_bytes());
        self.wire.put(&self.packet)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::namespace::{Family, Namespace, half_open};
    use crate::traffic::Listen;

    #[test]
    fn clients_differ() {
        let clients: BTreeSet<_> = (0..200_000).map(Flood::client).collect();
        assert_eq!(clients.len(), 200_000);
    }

    #[test]
    fn the_kernel_takes_the_syns() -> Result<()> {
        let namespace = Namespace::enter()?;
        let wire = Wire::open(&namespace)?;
        let listener = Listen::new(64).on(Wire::server(Family::V4)).open()?;
        let mut flood = Flood::new(&wire, listener.address())?;
        (0..7).try_for_each(|number| flood.send(number))?;
        assert_eq!(half_open(listener.port())?, 7);
        Ok(())
    }
}
