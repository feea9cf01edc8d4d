//! `struct sk_buff`: a TCP segment on its way to a listener.

use tracer_abi::abi::{Address, Tuple};

use super::{Net, Plain, config, read, read_or_zero};

/// A `struct sk_buff *` that is not null.
#[derive(Clone, Copy)]
pub(crate) struct Skb(pub(crate) u64);

/// What a TCP segment says, seen as one from client to server.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Segment {
    pub(crate) tuple: Tuple,
    pub(crate) seq: u32,
    pub(crate) flags: u8,
}

/// The beginning of `struct tcphdr`, in network order.
#[derive(Clone, Copy)]
#[repr(C)]
struct TcpHeader {
    source: u16,
    dest: u16,
    seq: u32,
    ack_seq: u32,
    doff: u8,
    flags: u8,
    window: u16,
}

// SAFETY: integers, without padding.
unsafe impl Plain for TcpHeader {}

impl Segment {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// A SYN, and no SYN-ACK.
    #[inline(always)]
    pub(crate) fn is_syn(&self) -> bool {
        self.flags & (Self::SYN | Self::ACK) == Self::SYN
    }

    #[inline(always)]
    pub(crate) fn is_fin(&self) -> bool {
        self.flags & Self::FIN != 0
    }

    #[inline(always)]
    pub(crate) fn is_rst(&self) -> bool {
        self.flags & Self::RST != 0
    }

    #[inline(always)]
    pub(crate) fn is_ack(&self) -> bool {
        self.flags & (Self::SYN | Self::RST | Self::ACK) == Self::ACK
    }
}

impl Skb {
    /// Its namespace by its route. In `tcp_v4_rcv()` the device is cleared, the route stays.
    #[inline(always)]
    pub(crate) fn net_by_route(self) -> Net {
        let dst: u64 = read_or_zero(self.0 + config!(offsets.skb_dst) as u64);
        // The two lowest bits say whether the reference is counted. Of a pointer that is null, nothing can be read either.
        let device: u64 = read_or_zero((dst & !3) + config!(offsets.dst_dev) as u64);
        Net(read_or_zero(device + config!(offsets.dev_net) as u64))
    }

    /// Its namespace by its device, or by its route where the device is cleared already.
    #[inline(always)]
    pub(crate) fn net(self) -> Net {
        let device: u64 = read_or_zero(self.0 + config!(offsets.skb_dev) as u64);
        if device != 0 {
            return Net(read_or_zero(device + config!(offsets.dev_net) as u64));
        }
        self.net_by_route()
    }

    /// The TCP header and the addresses. `None` for what is neither IPv4 nor IPv6, and for IPv4 that is not TCP.
    #[inline(always)]
    pub(crate) fn segment(self, netns: u32) -> Option<Segment> {
        let head: u64 = read(self.0 + config!(offsets.skb_head) as u64)?;
        let network = head + read::<u16>(self.0 + config!(offsets.skb_network) as u64)? as u64;
        let transport = head + read::<u16>(self.0 + config!(offsets.skb_transport) as u64)? as u64;
        let (client, server) = match u16::from_be(read(self.0 + config!(offsets.skb_protocol) as u64)?) {
            0x0800 => {
                if read::<u8>(network + 9)? as u16 != super::TCP {
                    return None;
                }
                (Address::of_v4(read(network + 12)?), Address::of_v4(read(network + 16)?))
            }
            0x86dd => (read(network + 8)?, read(network + 24)?),
            _ => return None,
        };
        let tcp: TcpHeader = read(transport)?;
        Some(Segment {
            tuple: Tuple { client, server, client_port: u16::from_be(tcp.source), port: u16::from_be(tcp.dest), netns },
            seq: u32::from_be(tcp.seq),
            flags: tcp.flags,
        })
    }
}
