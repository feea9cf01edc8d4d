//! TCP sockets of the network namespace that this thread is in, as `ss` gets them (`net/ipv4/inet_diag.c`).

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, INET_DIAG_SKV6ONLY, IPPROTO_TCP, TCP_LISTEN, TCP_SYN_RECV,
};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

/// A listening socket or a half-open request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    pub local: IpAddr,
    pub port: u16,
    /// Listening; otherwise half-open.
    pub listening: bool,
    /// Of a listener, connections that wait for `accept()`.
    pub accept_queue: u32,
    /// Of a listener, the limit of its accept queue (`sk_max_ack_backlog`).
    pub backlog: u32,
    /// 0 for a half-open request.
    pub inode: u64,
    /// Of an IPv6 listener, whether it takes no IPv4.
    pub v6only: bool,
}

/// All listening sockets and half-open requests, IPv4 then IPv6.
///
/// # Errors
/// When the kernel has no sock_diag for TCP, or answers what is not understood.
pub(super) fn sockets() -> Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    // Half-open requests are asked for by the state that they had before they were sockets of their own (4.4).
    walk(StateFlags::LISTEN | StateFlags::SYN_RECV, 0, &mut |response| sockets.extend(socket(response)))?;
    Ok(sockets)
}

/// A local port that a connection, or what is left of one, holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// `TCP_*`, as in `net/tcp_states.h`.
    pub state: u8,
    /// 0 where no process holds the socket.
    pub inode: u64,
}

/// The local ends of connections to this destination, in whatever state.
///
/// # Errors
/// As [`sockets`].
pub(super) fn connections_to(server: IpAddr, port: u16) -> Result<Vec<Held>> {
    let mut held = Vec::new();
    walk(StateFlags::all() - StateFlags::LISTEN, port, &mut |response| {
        let header = &response.header;
        let id = &header.socket_id;
        if id.destination_port == port && id.destination_address.to_canonical() == server.to_canonical() {
            held.push(Held { state: header.state, inode: header.inode.into() });
        }
    })?;
    Ok(held)
}

/// Shows all sockets in these states to `see`; with a destination port, only those (0: all).
fn walk(states: StateFlags, port: u16, see: &mut dyn FnMut(&InetResponse)) -> Result<()> {
    for (family, id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let id = SocketId { destination_port: port, ..id };
        dump(family, states.clone(), id, see).context("cannot list TCP sockets (sock_diag)")?;
    }
    Ok(())
}

fn dump(family: u8, states: StateFlags, socket_id: SocketId, see: &mut dyn FnMut(&InetResponse)) -> Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let fd = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::SOCK_DIAG))
        .context("cannot open a netlink socket")?;
    let request = request(family, states, socket_id);
    send(&fd, &request, SendFlags::empty()).context("cannot ask the kernel")?;
    // The kernel fills messages of up to 32 KiB (`netlink_dump()` in net/netlink/af_netlink.c).
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (length, _) = recv(&fd, &mut buffer[..], RecvFlags::empty()).context("no answer from the kernel")?;
        if !messages(&buffer[..length], see)? {
            return Ok(());
        }
    }
}

fn request(family: u8, states: StateFlags, socket_id: SocketId) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions: ExtensionFlags::empty(), states, socket_id };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Shows the sockets in one datagram; whether more will come.
fn messages(mut bytes: &[u8], see: &mut dyn FnMut(&InetResponse)) -> Result<bool> {
    while !bytes.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(bytes).context("a malformed answer")?;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(false),
            NetlinkPayload::Error(error) if error.code.is_some() => {
                let error = error.to_io();
                if error.kind() == std::io::ErrorKind::NotFound {
                    bail!("the kernel's tcp_diag module is missing; try: modprobe tcp_diag");
                }
                return Err(error).context("the kernel refused");
            }
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                see(&response);
            }
            _ => {}
        }
        let length = (message.header.length as usize).next_multiple_of(4);
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(true)
}

fn socket(response: &InetResponse) -> Option<Socket> {
    let header = &response.header;
    let listening = match header.state {
        TCP_LISTEN => true,
        TCP_SYN_RECV => false,
        _ => return None,
    };
    let v6only = response.nlas.iter().any(|nla| match nla {
        Nla::Other(nla) => {
            use netlink_packet_core::Nla as _;
            let mut value = [0; 1];
            if nla.kind() != INET_DIAG_SKV6ONLY || nla.value_len() != 1 {
                return false;
            }
            nla.emit_value(&mut value);
            value[0] == 1
        }
        _ => false,
    });
    Some(Socket {
        local: header.socket_id.source_address,
        port: header.socket_id.source_port,
        listening,
        accept_queue: if listening { header.recv_queue } else { 0 },
        backlog: if listening { header.send_queue } else { 0 },
        inode: header.inode.into(),
        v6only,
    })
}
