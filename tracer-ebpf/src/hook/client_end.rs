//! The end of a local client's connection: who caused its FIN or its RST.
//!
//! ```c
//! static int tcp_close_state(struct sock *sk);    // from tcp_close() and tcp_shutdown(): ESTABLISHED to FIN_WAIT1, CLOSE_WAIT to LAST_ACK
//! void __tcp_close(struct sock *sk, long timeout);    // to CLOSE, with a RST: data was left unread
//! int tcp_disconnect(struct sock *sk, int flags);    // the same: SO_LINGER with 0 seconds
//! ```
//! All of them run in the process that causes them, as changes of state (see `sock_state`), before the segment is sent. In the
//! process that closes the last descriptor: `close()`, or the kernel itself when the process ends. A change to CLOSE by the
//! network or by a timer has its error set before (`tcp_reset()`, `tcp_write_err()`), one by a process has none yet.
//!
//! Not told: the RST that answers data after the close (the socket has no owner then), and the RST of a second `close()` after
//! `shutdown()`, which looks like the ordinary end of FIN_WAIT2.
//!
//! Read from: net/ipv4/tcp.c (5.10, 6.18).

use tracer_abi::abi::{Ender, EventKind, Global, NO_LISTENER, flag};

use super::{connect, listener};
use crate::{
    emit::{count_by, emit},
    kernel::{Sock, current},
    watch,
};

/// Whether a change to CLOSE is made by a process, which sends a RST.
#[inline(always)]
pub(super) fn is_reset(sk: Sock) -> bool {
    sk.error() == 0 && sk.is_held()
}

/// A process ends the connection: with a FIN, or with a RST.
#[inline(always)]
pub(super) fn ended(sk: Sock, reset: bool) -> Option<()> {
    let (net, netns) = connect::traced(sk)?;
    // The server's end of a connection whose client has a traced port too.
    let own = sk.local_port();
    if listener::is_traced(own) && listener::of_port(net, own).is_some() {
        return None;
    }
    let task = current();
    let ender = task.ender();
    count_by(if reset { Global::Resets } else { Global::Fins }, ender);
    if let Some(process) = connect::process_of(task) {
        process.ended(ender, reset);
    }
    if !watch::any() {
        return Some(());
    }
    let tuple = sk.client_tuple(netns);
    watch::find(&tuple)?;
    emit(EventKind::ClientEnded, &tuple, |e| {
        e.slot = NO_LISTENER;
        e.cause = ender as u8;
        e.detail = if matches!(ender, Ender::Exit | Ender::Signal) { task.exit_code() } else { 0 };
        e.flags = if reset { flag::RESET } else { 0 };
        e.pid = task.pid();
        e.comm = task.comm();
    });
    Some(())
}
