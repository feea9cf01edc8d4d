//! `struct request_sock`: a half-open connection.

use tracer_abi::abi::Tuple;

use super::{Sock, config, read_or_zero};

/// A `struct request_sock *` that is not null. It begins with a `sock_common`, as a socket does.
#[derive(Clone, Copy)]
pub(crate) struct Request(pub(crate) u64);

impl Request {
    /// The listener it belongs to, as an address.
    #[inline(always)]
    pub(crate) fn listener(self) -> u64 {
        read_or_zero(self.0 + config!(offsets.req_listener) as u64)
    }

    /// Its tuple. `inet_request_sock.ir_num` is `skc_num`.
    #[inline(always)]
    pub(crate) fn tuple(self, netns: u32) -> Tuple {
        let sock = Sock(self.0);
        let port = read_or_zero::<u16>(self.0 + config!(offsets.sk_num) as u64);
        sock.server_tuple(port, netns)
    }

    /// The client's initial sequence number.
    #[inline(always)]
    pub(crate) fn isn(self) -> u32 {
        read_or_zero(self.0 + config!(offsets.treq_rcv_isn) as u64)
    }

    /// How often its SYN-ACK was sent again.
    #[inline(always)]
    pub(crate) fn retransmits(self) -> u32 {
        read_or_zero::<u8>(self.0 + config!(offsets.req_num_retrans) as u64) as u32
    }

    /// The request whose SYN-ACK timer this is.
    #[inline(always)]
    pub(crate) fn of_timer(timer: u64) -> Request {
        Request(timer - config!(offsets.req_timer) as u64)
    }

    /// Whether its SYN-ACK timer is armed. After its handler has run, an unarmed timer means that the request is gone: the
    /// handler re-arms the timer of every request that it keeps (`reqsk_timer_handler()`).
    #[inline(always)]
    pub(crate) fn timer_armed(self) -> bool {
        let timer = self.0 + config!(offsets.req_timer) as u64;
        read_or_zero::<u64>(timer + config!(offsets.timer_pprev) as u64) != 0
    }
}
