//! Every change of a TCP state.
//!
//! ```c
//! void inet_sk_state_store(struct sock *sk, int newstate);
//! void inet_sk_set_state(struct sock *sk, int state);
//! ```
//! As a tracepoint: `inet_sock_set_state(sk, oldstate, newstate)`, before the new state is stored. What matters here:
//!
//! | change | meaning | body |
//! |---|---|---|
//! | CLOSE to LISTEN, LISTEN to CLOSE | a listener opened, closed | `listener` |
//! | SYN_RECV to ESTABLISHED, held by nobody | a connection has entered the accept queue | `child` |
//! | ESTABLISHED to CLOSE_WAIT, right after | completed by a FIN | `child` |
//! | ESTABLISHED or CLOSE_WAIT to CLOSE, held by nobody | it was reset, or its listener closed, before `accept()` | `child` |
//! | CLOSE to SYN_SENT, and from there | a local client | `connect` |
//!
//! LISTEN to SYN_RECV on a clone is a child being created; its ports are not set yet, so the next change is used. SCTP, DCCP and
//! MPTCP sockets come here too and are told by their protocol. The same on all kernels from 4.16.
//!
//! Read from: net/ipv4/af_inet.c, net/ipv4/tcp.c, net/ipv4/tcp_input.c, net/ipv4/inet_connection_sock.c (6.18).

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use super::{child, connect, listener};
use crate::{
    kernel::{Sock, tcp},
    watch,
};

/// Every change of state.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn tp_set_state(ctx: BtfTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    let old: i32 = ctx.arg(1);
    let new: i32 = ctx.arg(2);
    changed(Sock(sk), old, new);
    0
}

#[inline(always)]
fn changed(sk: Sock, old: i32, new: i32) -> Option<()> {
    use tcp::*;
    match (old, new) {
        (SYN_RECV, ESTABLISHED) => {
            let phase = watch::phase()?;
            if sk.is_tcp() && !sk.is_held() {
                child::queued(phase, sk);
            }
        }
        (ESTABLISHED, CLOSE_WAIT) => child::fin(sk)?,
        (ESTABLISHED | CLOSE_WAIT, CLOSE) => {
            let phase = watch::phase()?;
            if sk.is_tcp() && !sk.is_held() {
                child::closed(phase, sk);
            }
        }
        (CLOSE, SYN_SENT) if sk.is_tcp() => connect::started(sk)?,
        (SYN_SENT, ESTABLISHED) if sk.is_tcp() => connect::established(sk)?,
        (SYN_SENT, CLOSE) if sk.is_tcp() => connect::closed(sk)?,
        (CLOSE, LISTEN) if sk.is_tcp() => {
            listener::open(sk, true)?;
        }
        (LISTEN, CLOSE) if sk.is_tcp() => listener::close(sk)?,
        _ => {}
    }
    Some(())
}
