//! `struct sock`, with the parts of `inet_sock`, `inet_connection_sock` and `tcp_sock` that follow it.

use tracer_abi::abi::{Address, ListenerInfo, Tuple};

use super::{INET, INET6, Net, Plain, config, read_or_zero};

/// A `struct sock *` that is not null.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sock(pub(crate) u64);

impl Sock {
    #[inline(always)]
    fn field<T: Plain>(self, offset: u32) -> T {
        read_or_zero(self.0 + offset as u64)
    }

    #[inline(always)]
    pub(crate) fn family(self) -> u16 {
        self.field(config!(offsets.sk_family))
    }

    #[inline(always)]
    pub(crate) fn state(self) -> i32 {
        self.field::<u8>(config!(offsets.sk_state)) as i32
    }

    /// Whether this is a TCP socket of IPv4 or IPv6; the state tracepoint also tells of SCTP and DCCP.
    #[inline(always)]
    pub(crate) fn is_tcp(self) -> bool {
        let family = self.family();
        (family == INET || family == INET6) && self.field::<u16>(config!(offsets.sk_protocol)) == super::TCP
    }

    /// The TCP socket that does the work of this one, which a process holds: of MPTCP the first, and before `accept()` the only one.
    #[inline(always)]
    pub(crate) fn tcp(self) -> Option<Sock> {
        let protocol: u16 = self.field(config!(offsets.sk_protocol));
        if protocol != super::MPTCP || config!(mptcp_first) == u32::MAX {
            return Some(self);
        }
        let first: u64 = self.field(config!(mptcp_first));
        if first == 0 { None } else { Some(Sock(first)) }
    }

    /// Its namespace.
    #[inline(always)]
    pub(crate) fn net(self) -> Net {
        Net(self.field(config!(offsets.sk_net)))
    }

    /// Whether a process holds it: not so for a request's child that nobody has accepted.
    #[inline(always)]
    pub(crate) fn is_held(self) -> bool {
        self.field::<u64>(config!(offsets.sk_socket)) != 0
    }

    /// Of a socket in SYN_SENT: whether the function that sends its SYN has not returned yet. `socket->state` is `SS_UNCONNECTED` until
    /// then, and `SS_CONNECTING` after. A further subflow of MPTCP has the socket of its connection, which is connected.
    #[inline(always)]
    pub(crate) fn is_unconnected(self) -> bool {
        const SS_UNCONNECTED: u32 = 1;
        let socket: u64 = self.field(config!(offsets.sk_socket));
        // Of a pointer that is null, nothing can be read either.
        read_or_zero::<u32>(socket + config!(offsets.socket_state) as u64) == SS_UNCONNECTED
    }

    /// Local port. `inet_sport`, which stays when `inet_num` is given back on the way to CLOSE.
    #[inline(always)]
    pub(crate) fn local_port(self) -> u16 {
        u16::from_be(self.field(config!(offsets.inet_sport)))
    }

    #[inline(always)]
    pub(crate) fn remote_port(self) -> u16 {
        u16::from_be(self.field(config!(offsets.sk_dport)))
    }

    #[inline(always)]
    fn address(self, v4: u32, v6: u32) -> Address {
        if self.family() == INET6 { self.field(v6) } else { Address::of_v4(self.field(v4)) }
    }

    #[inline(always)]
    pub(crate) fn local_address(self) -> Address {
        self.address(config!(offsets.sk_rcv_saddr), config!(offsets.sk_v6_rcv_saddr))
    }

    #[inline(always)]
    pub(crate) fn remote_address(self) -> Address {
        self.address(config!(offsets.sk_daddr), config!(offsets.sk_v6_daddr))
    }

    /// The tuple of a socket on the server's side. `port` is given, because a request has it elsewhere than a socket.
    #[inline(always)]
    pub(crate) fn server_tuple(self, port: u16, netns: u32) -> Tuple {
        Tuple {
            client: self.remote_address(),
            server: self.local_address(),
            client_port: self.remote_port(),
            port,
            netns,
        }
    }

    /// The tuple of a socket on the client's side.
    #[inline(always)]
    pub(crate) fn client_tuple(self, netns: u32) -> Tuple {
        Tuple {
            client: self.local_address(),
            server: self.remote_address(),
            client_port: self.local_port(),
            port: self.remote_port(),
            netns,
        }
    }

    /// Retransmissions; of a new child, those of its SYN-ACK.
    #[inline(always)]
    pub(crate) fn total_retrans(self) -> u32 {
        self.field(config!(offsets.tp_total_retrans))
    }

    /// When a child that nobody has read from was established, microseconds of `CLOCK_MONOTONIC`.
    ///
    /// `tcp_init_buffer_space()` sets `rcvq_space.time` to the arrival of the segment that established it, and
    /// `tcp_rcv_space_adjust()` moves it on only when data is copied to a process.
    #[inline(always)]
    pub(crate) fn established_us(self) -> u64 {
        self.field(config!(offsets.tp_rcvq_time))
    }

    /// Bytes received in order that no process has read. A FIN takes one sequence number and is no byte.
    #[inline(always)]
    pub(crate) fn unread(self) -> i32 {
        let next: u32 = self.field(config!(offsets.tp_rcv_nxt));
        let read: u32 = self.field(config!(offsets.tp_copied_seq));
        let fin = (self.state() == super::tcp::CLOSE_WAIT) as u32;
        next.wrapping_sub(read).wrapping_sub(fin) as i32
    }

    /// Pending error (a positive errno).
    #[inline(always)]
    pub(crate) fn error(self) -> u32 {
        self.field(config!(offsets.sk_err))
    }

    /// First unacknowledged sequence number; in SYN_SENT the initial one.
    #[inline(always)]
    pub(crate) fn snd_una(self) -> u32 {
        self.field(config!(offsets.tp_snd_una))
    }

    /// Of a listener: connections waiting for `accept()`.
    #[inline(always)]
    pub(crate) fn accept_queue(self) -> u32 {
        self.field(config!(offsets.sk_ack_backlog))
    }

    /// Of a listener: the limit; the queue holds one more.
    #[inline(always)]
    pub(crate) fn accept_limit(self) -> u32 {
        self.field(config!(offsets.sk_max_ack_backlog))
    }

    /// Of a listener: half-open requests.
    #[inline(always)]
    pub(crate) fn half_open(self) -> u32 {
        self.field(config!(offsets.icsk_qlen))
    }

    /// Drops that the kernel counted on this socket.
    #[inline(always)]
    pub(crate) fn drops(self) -> u32 {
        self.field(config!(offsets.sk_drops))
    }

    /// What is lasting about a listener.
    #[inline(always)]
    pub(crate) fn describe(self, info: &mut ListenerInfo) {
        info.sk = self.0;
        info.net = self.net().0;
        info.address = self.local_address();
        info.drops = self.drops();
        info.backlog = self.accept_limit();
        info.family = self.family();
        // skc_reuse:4, skc_reuseport:1, skc_ipv6only:1 share a byte.
        let bits: u8 = self.field(config!(offsets.sk_flags_byte));
        info.reuseport = bits >> 4 & 1;
        info.v6only = bits >> 5 & 1;
        info.inode = self.inode();
    }

    /// Inode number of the socket's file, as `/proc/<pid>/fd` shows it; 0 if there is none.
    #[inline(always)]
    fn inode(self) -> u64 {
        // Of a pointer that is null, nothing can be read either.
        let socket: u64 = self.field(config!(offsets.sk_socket));
        let file: u64 = read_or_zero(socket + config!(offsets.socket_file) as u64);
        let inode: u64 = read_or_zero(file + config!(offsets.file_inode) as u64);
        read_or_zero(inode + config!(offsets.inode_ino) as u64)
    }
}
