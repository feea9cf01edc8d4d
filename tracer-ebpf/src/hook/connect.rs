//! The client's side, where it is on this host.
//!
//! ```c
//! int tcp_v4_connect(struct sock *sk, struct sockaddr *uaddr, int addr_len);    // and tcp_v6_connect
//! ```
//! It takes the socket to SYN_SENT, then looks for a local port (`inet_hash_connect()`); without one it takes the socket back to
//! CLOSE and returns -EADDRNOTAVAIL, and no SYN is ever sent. Later failures (refused, timed out) come from softirq, with
//! `sk_err` set before the socket is closed.
//!
//! As a function: its end, with its result. A probe there cannot be trusted: the function can sleep while it looks for a port, and a probe
//! at an end has a frame for as few calls as there are CPUs. So by probes nothing is attached: what connect() takes back had no port (or,
//! far more seldom, its route went away in between). That it is connect() which takes it back is seen from the socket: until the
//! function has returned without an error, `__inet_stream_connect()` does not say that it is connecting.
//!
//! As tracepoints: the change of state (see `sock_state`), and `sys_exit_connect` for the error that only the call returns.
//!
//! A process can be preempted in the programs at functions' ends, and since 7.x in those at system calls: they are pairs, and disable
//! preemption where they can (`kernel::unpreempted`).
//!
//! Read from: net/ipv4/tcp_ipv4.c, net/ipv6/tcp_ipv6.c, net/ipv4/inet_hashtables.c (6.18).

use aya_ebpf::{
    macros::{fexit, tracepoint},
    programs::{FExitContext, TracePointContext},
};
use tracer_abi::abi::{Cause, Ender, EventKind, Global, NO_LISTENER, Phase, Process, Tuple, flag};

use super::listener::{is_traced, of_port};
use crate::{
    emit::{count, emit, slot_counters},
    kernel::{Net, Sock, Syscall, Task, atomic, config, current, sock_of_fd, unpreempted, unpreempted_at_tracepoint},
    maps::{CONNECTING, Connecting, NO_PROCESS, PROCESSES},
    untold, watch,
};

#[fexit(function = "tcp_v4_connect")]
fn fx_connect_v4(ctx: FExitContext) -> i32 {
    ended(ctx.arg(0), ctx.arg(3));
    0
}

#[fexit(function = "tcp_v6_connect")]
fn fx_connect_v6(ctx: FExitContext) -> i32 {
    ended(ctx.arg(0), ctx.arg(3));
    0
}

/// The same, for what the first was not run for: another thread was preempted in it. What the first has done leaves nothing to do.
#[fexit(function = "tcp_v4_connect")]
fn fx_connect_v4b(ctx: FExitContext) -> i32 {
    ended(ctx.arg(0), ctx.arg(3));
    0
}

#[fexit(function = "tcp_v6_connect")]
fn fx_connect_v6b(ctx: FExitContext) -> i32 {
    ended(ctx.arg(0), ctx.arg(3));
    0
}

/// The function returns: the SYN is sent, or never will be.
#[inline(always)]
fn ended(sk: u64, error: i32) {
    if error != 0 {
        unpreempted(|| returned(Sock(sk), -error as u32));
    }
}

const EADDRNOTAVAIL: u32 = 99;
const ETIMEDOUT: u32 = 110;
const EINPROGRESS: u32 = 115;

/// Where a connection of this client is counted: while counting, to a destination that is traced, in a namespace that is.
/// That namespace, with its number.
#[inline(always)]
pub(super) fn traced(sk: Sock) -> Option<(Net, u32)> {
    let port = sk.remote_port();
    if watch::phase()? != Phase::Counting || !is_traced(port) {
        return None;
    }
    // Where every listener is traced, a connection counts if its own namespace listens on that port.
    let net = sk.net();
    if config!(every_port) != 0 && of_port(net, port).is_none() {
        return None;
    }
    let netns = net.inum();
    let wanted = config!(netns);
    if wanted != 0 && wanted != netns {
        return None;
    }
    Some((net, netns))
}

/// CLOSE to SYN_SENT, in the process that calls `connect()`.
#[inline(always)]
pub(super) fn started(sk: Sock) -> Option<()> {
    let (_, netns) = traced(sk)?;
    let task = current();
    let entry =
        Connecting { pid: task.pid(), closed: 0, tuple: Tuple { netns, ..Tuple::default() }, comm: task.comm() };
    count(Global::Connects);
    if CONNECTING.insert(sk.0, entry, 0).is_err() {
        count(Global::ConnectsUnseen);
        return None;
    }
    by_process(&entry, |process| &mut process.connects);
    Some(())
}

/// What is counted for a process.
pub(super) struct OfProcess(*mut Process);

impl OfProcess {
    #[inline(always)]
    fn get(pid: u32, comm: [u8; 16]) -> Option<OfProcess> {
        if let Some(process) = PROCESSES.get_ptr_mut(pid) {
            return Some(OfProcess(process));
        }
        // BPF_NOEXIST: another thread of the process may have been faster.
        let _ = PROCESSES.insert(pid, NO_PROCESS.get(0)?, 1);
        let process = PROCESSES.get_ptr_mut(pid)?;
        // SAFETY: a preallocated element that is never removed while programs are attached; all threads write the same name.
        unsafe { (*process).comm = comm };
        Some(OfProcess(process))
    }

    #[inline(always)]
    fn add(self, field: impl FnOnce(&mut Process) -> &mut u64) {
        // SAFETY: a preallocated element that is never removed while programs are attached; its counters are only ever changed by
        // atomic addition.
        unsafe { atomic::add(field(&mut *self.0), 1) };
    }

    /// It has ended a connection.
    #[inline(always)]
    pub(super) fn ended(self, ender: Ender, reset: bool) {
        self.add(|process| {
            let by = if reset { &mut process.resets } else { &mut process.fins };
            &mut by[ender as usize]
        });
    }
}

/// The current process's.
#[inline(always)]
pub(super) fn process_of(task: Task) -> Option<OfProcess> {
    OfProcess::get(task.pid(), task.comm())
}

#[inline(always)]
fn by_process(entry: &Connecting, field: impl FnOnce(&mut Process) -> &mut u64) -> Option<()> {
    OfProcess::get(entry.pid, entry.comm)?.add(field);
    Some(())
}

#[inline(always)]
fn pending(sk: Sock) -> Option<&'static mut Connecting> {
    let entry = CONNECTING.get_ptr_mut(sk.0)?;
    // SAFETY: a preallocated element; a socket's changes of state are serialised by its lock.
    Some(unsafe { &mut *entry })
}

/// SYN_SENT to ESTABLISHED, in softirq.
#[inline(always)]
pub(super) fn established(sk: Sock) -> Option<()> {
    let entry = pending(sk)?;
    count(Global::Established);
    by_process(entry, |process| &mut process.established);
    let _ = CONNECTING.remove(sk.0);
    Some(())
}

/// SYN_SENT to CLOSE.
#[inline(always)]
pub(super) fn closed(sk: Sock) -> Option<()> {
    let entry = pending(sk)?;
    entry.tuple = sk.client_tuple(entry.tuple.netns);
    let error = sk.error();
    if error != 0 {
        return failed(sk, entry, error);
    }
    let inside = if config!(connect_by_function) != 0 {
        sk.is_unconnected()
    } else {
        Syscall::current().number() == config!(nr_connect) as u64
    };
    if inside && config!(connect_by_probe) != 0 {
        return failed(sk, entry, EADDRNOTAVAIL);
    }
    if inside {
        // connect() itself gives up; what it returns says why.
        entry.closed = 1;
        return Some(());
    }
    // The program closed the socket before it was connected: no error of the network's.
    failed(sk, entry, 0)
}

#[inline(always)]
fn failed(sk: Sock, entry: &Connecting, error: u32) -> Option<()> {
    let exhausted = error == EADDRNOTAVAIL;
    if watch::phase()? == Phase::Counting {
        count(Global::ConnectFailed);
        if exhausted {
            count(Global::PortExhausted);
        }
        by_process(entry, |process| &mut process.failed);
        // Nothing came back, and no listener here has seen a SYN of it that it did not queue: unanswered, as far as is known.
        let unanswered = error == ETIMEDOUT && watch::find(&entry.tuple).is_none() && !untold::knows(&entry.tuple);
        if exhausted || unanswered {
            let counter = &raw mut slot_counters(NO_LISTENER)?.attempts;
            // SAFETY: a live map value. A softirq that counts a refused SYN here does so between two instructions of a process.
            unsafe { atomic::add(counter, 1) };
        }
        emit(EventKind::ConnectFailed, &entry.tuple, |e| {
            e.slot = NO_LISTENER;
            e.isn = sk.snd_una();
            e.detail = error;
            e.pid = entry.pid;
            e.comm = entry.comm;
            e.flags = if exhausted || unanswered { flag::NEW_ATTEMPT } else { 0 };
            e.cause = if exhausted {
                Cause::PortExhaustion as u8
            } else if unanswered {
                Cause::Unanswered as u8
            } else {
                Cause::Unattributed as u8
            };
        });
    }
    let _ = CONNECTING.remove(sk.0);
    Some(())
}

/// The end of `connect()`.
#[tracepoint]
fn tp_connect(ctx: TracePointContext) -> u32 {
    exited(&ctx);
    0
}

/// The same, for what the first was not run for: another thread was preempted in it. What the first has done leaves nothing to do.
#[tracepoint]
fn tp_connect_b(ctx: TracePointContext) -> u32 {
    exited(&ctx);
    0
}

#[inline(always)]
fn exited(ctx: &TracePointContext) {
    // SAFETY: every record of a sys_exit tracepoint has its result at this offset.
    let ret: i64 = unsafe { ctx.read_at(16) }.unwrap_or(0);
    if ret < 0 && -ret != EINPROGRESS as i64 {
        unpreempted_at_tracepoint(|| returned(sock_of_fd(Syscall::current().arg0() as u32)?.tcp()?, -ret as u32));
    }
}

/// `connect()` failed.
#[inline(always)]
fn returned(sk: Sock, error: u32) -> Option<()> {
    let entry = pending(sk)?;
    if entry.closed == 0 {
        // Still under way: interrupted by a signal, or a second call.
        return None;
    }
    failed(sk, entry, error)
}
