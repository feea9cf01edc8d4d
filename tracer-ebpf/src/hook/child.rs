//! A connection between its handshake and `accept()`.
//!
//! `tcp_child_process()` lets a new child handle the segment that created it: SYN_RECV to ESTABLISHED, then its data or FIN, then
//! `parent->sk_data_ready(parent)`, all in one softirq and with the child locked; it is in the accept queue already. So between
//! these two moments "the child" of this CPU is one, and what is heard of it there is what completed the handshake.
//!
//! Read from: net/ipv4/tcp_minisocks.c, net/ipv4/tcp_input.c, net/ipv4/inet_connection_sock.c (6.18).

use tracer_abi::abi::{Counter, Deltas, EventKind, NO_LISTENER, Phase, SlotCounters, Tuple, flag, state};

use super::listener;
use crate::{
    emit::{emit, queues, slot_counters},
    kernel::{Sock, config, cpu, current, only},
    maps::{CHILDREN, CpuState},
    untold, watch,
};

/// The listener of the child of the moment, where a function hook knows it and the SYN was counted for that very listener; else 0.
#[inline(always)]
fn parent() -> u64 {
    match cpu() {
        Some(cpu) if config!(syn_by_function) != 0 => cpu.parent,
        _ => 0,
    }
}

/// Whether the child of the moment is in a function whose hooks see what becomes of it; not, if a probe there was missed.
#[inline(always)]
pub(super) fn is_seen_by_function() -> bool {
    match cpu() {
        Some(cpu) => config!(child_by_function) != 0 && cpu.parent != 0,
        None => false,
    }
}

/// A connection is in the accept queue, and is established now or in a moment.
#[inline(always)]
pub(super) fn queued(phase: Phase, sk: Sock) -> Option<()> {
    let net = sk.net();
    let known = net.counters()?;
    let mut deltas = Deltas::default();
    net.take(known, only(Counter::SyncookiesRecv), &mut deltas)?;
    let cookie = deltas.of(Counter::SyncookiesRecv) != 0;

    let parent = parent();
    if parent != 0 && phase == Phase::Counting && !cookie && !watch::any() {
        // Nothing would be looked up, so that nobody need know whose it is.
        let slot = listener::slot_of(parent)?;
        let counters = slot_counters(slot)?;
        counters.children += 1;
        waits(counters, slot, sk);
        return Some(());
    }
    let tuple = sk.server_tuple(sk.local_port(), known.inum);
    let (slot, certain) = if parent != 0 {
        (listener::slot_of(parent)?, true)
    } else {
        let listed = listener::of_port(net, tuple.port)?;
        (listener::find(listed, net, tuple.port, &tuple.server), listed.listeners == 1)
    };
    if slot == NO_LISTENER {
        return None;
    }
    let counters = slot_counters(slot)?;
    if cookie && phase == Phase::Counting {
        counters.cookie_acks += 1;
    }

    let mut watched = false;
    let found = match watch::find(&tuple) {
        None if cookie => untold::promote(&tuple, None, slot),
        found => found,
    };
    match found {
        Some(known) if known.state & state::EARLIER != 0 => return Some(()),
        Some(known) => {
            watched = true;
            known.state = known.state & !state::HALF_OPEN | state::QUEUED | state::ANSWERED;
            emit(EventKind::ChildQueued, &tuple, |e| {
                e.slot = slot;
                e.isn = known.isn;
                e.flags = if cookie { flag::COOKIE } else { 0 };
                e.detail = sk.total_retrans();
                queues(e, listener::sock(slot));
            });
        }
        None if cookie || phase == Phase::Earlier => {
            // A cookie that nobody saw being sent, or a connection under way: it began before counting did.
            if let Some(earlier) = watch::note(&tuple, 0, false, slot).watch {
                earlier.state |= state::EARLIER | state::QUEUED;
            }
            return Some(());
        }
        None => {}
    }
    if !cookie {
        counters.children += 1;
    }
    waits(counters, slot, sk);
    // What follows is needed for a watched child, and where it is not certain which listener it is.
    if watched || !certain {
        let cpu = cpu()?;
        cpu.child = sk.0;
        cpu.child_slot = slot;
        cpu.child_flags = if watched { CpuState::WATCHED } else { 0 } | if cookie { CpuState::COOKIE } else { 0 };
    }
    Some(())
}

/// A connection is in the accept queue of this slot's listener.
#[inline(always)]
pub(super) fn waits(counters: &mut SlotCounters, slot: u32, sk: Sock) {
    counters.queued += 1;
    if config!(accept_by_function) != 0 && listener::has_company(slot) {
        let _ = CHILDREN.insert(sk.0, slot, 0);
    }
    if let Some(listener) = listener::sock(slot) {
        longest(counters, listener);
    }
}

#[inline(always)]
fn longest(counters: &mut SlotCounters, listener: Sock) {
    let waiting = listener.accept_queue();
    if waiting > counters.max_accept_queue {
        counters.max_accept_queue = waiting;
    }
}

/// The child of the moment has received data (`flag::DATA`) or a FIN (`flag::FIN`).
#[inline(always)]
pub(super) fn completed_by(sk: Sock, what: u8) -> Option<()> {
    let cpu = cpu()?;
    if cpu.child != sk.0 || cpu.child_flags & CpuState::WATCHED == 0 {
        return None;
    }
    let tuple = sk.server_tuple(sk.local_port(), sk.net().inum());
    let known = watch::find(&tuple)?;
    let by = if what == flag::FIN { state::BY_FIN } else { state::BY_DATA };
    if known.state & by != 0 {
        return None;
    }
    known.state |= by;
    emit(EventKind::CompletedBy, &tuple, |e| {
        e.slot = cpu.child_slot;
        e.flags = what;
    });
    Some(())
}

/// ESTABLISHED to CLOSE_WAIT. The hooks at the function that it happens in see it themselves.
#[inline(always)]
pub(super) fn fin(sk: Sock) -> Option<()> {
    if is_seen_by_function() || cpu()?.child != sk.0 {
        return None;
    }
    completed_by(sk, flag::FIN)
}

/// The listener is told of its new connection: the moment is over, and the listener is known for certain.
#[inline(always)]
pub(super) fn announced(listener: Sock) -> Option<()> {
    let cpu = cpu()?;
    if cpu.child == 0 {
        return None;
    }
    let child = core::mem::replace(&mut cpu.child, 0);
    let actual = listener::slot_of(listener.0)?;
    if actual == cpu.child_slot {
        return Some(());
    }
    if config!(accept_by_function) != 0 {
        let _ = CHILDREN.insert(child, actual, 0);
    }
    // A member of a group: it was counted for the first member when its SYN came, and is moved now.
    let request = (cpu.child_flags & CpuState::COOKIE == 0) as u64;
    let attempt = (cpu.child_flags & CpuState::WATCHED == 0) as u64;
    let from = slot_counters(cpu.child_slot)?;
    from.queued = from.queued.wrapping_sub(1);
    from.children = from.children.wrapping_sub(request);
    from.requests = from.requests.wrapping_sub(request);
    from.attempts = from.attempts.wrapping_sub(attempt);
    from.syn = from.syn.wrapping_sub(1);
    let to = slot_counters(actual)?;
    to.queued = to.queued.wrapping_add(1);
    to.children = to.children.wrapping_add(request);
    to.requests = to.requests.wrapping_add(request);
    to.attempts = to.attempts.wrapping_add(attempt);
    to.syn = to.syn.wrapping_add(1);
    longest(to, listener);
    Some(())
}

/// A connection that nobody had accepted was closed.
#[inline(always)]
pub(super) fn closed(phase: Phase, sk: Sock) -> Option<()> {
    if phase != Phase::Counting {
        return None;
    }
    let net = sk.net();
    let listed = listener::of_port(net, sk.local_port())?;
    let tuple: Tuple = sk.server_tuple(sk.local_port(), net.inum());
    // inet_csk_listen_stop() runs in the task that closed the listener; a client's RST in a softirq, or in whatever task.
    let slot = listener::closed_by(listed, net, tuple.port, &tuple.server, current().id);
    let listener_closed = slot != NO_LISTENER;
    if super::accept::is_earlier(sk, Some(&tuple)) {
        // What its client reset still waits, and is accepted dead: until then it has to be known as earlier.
        if listener_closed {
            watch::forget(&tuple);
        }
        return None;
    }
    let slot = if listener_closed { slot } else { listener::find(listed, net, tuple.port, &tuple.server) };
    let counters = slot_counters(slot)?;
    if listener_closed {
        counters.children_dropped += 1;
    } else {
        counters.children_reset += 1;
    }
    let isn = match watch::find(&tuple) {
        Some(known) => known.isn,
        None => 0,
    };
    emit(EventKind::ChildClosed, &tuple, |e| {
        e.slot = slot;
        e.isn = isn;
        e.flags = if listener_closed { flag::LISTENER_CLOSED } else { 0 };
    });
    if listener_closed {
        watch::forget(&tuple);
    }
    Some(())
}
