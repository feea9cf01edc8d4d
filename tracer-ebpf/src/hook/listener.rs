//! Listeners: opening, closing, and which of them a segment belongs to.
//!
//! `inet_csk_listen_start()` takes a socket from CLOSE to LISTEN; `tcp_close()`, `tcp_disconnect()` and `tcp_shutdown()` take
//! it back, and `inet_csk_listen_stop()` then ends what waited. A second `listen()` on a listener only changes its limit, without
//! a change of state: limits are read when they are needed.
//!
//! Read from: net/ipv4/inet_connection_sock.c, net/ipv4/tcp.c, net/ipv4/inet_hashtables.c (6.18).

use tracer_abi::abi::{
    Address, EventKind, Global, Group, GroupKey, ListenerInfo, MEMBERS, NO_LISTENER, Port, PortKey, RIVALS, Tuple, flag,
};

use crate::{
    emit::{count, emit, now, slot_counters},
    kernel::{Net, Sock, Syscall, atomic, config, current},
    maps::{GROUPS, LAST_SLOT, LISTENERS, NEAR, NEAR_LEN, NO_GROUP, PORTS, SHARED_PORTS, SLOTS, TAKEN, TRACED},
};

/// Whether this port is traced.
#[inline(always)]
pub(crate) fn is_traced(port: u16) -> bool {
    match TRACED.get(port as u32 / 64) {
        Some(word) => *word >> (port % 64) & 1 != 0,
        None => false,
    }
}

/// What is known of the listener in a slot.
#[inline(always)]
pub(crate) fn info(slot: u32) -> Option<&'static mut ListenerInfo> {
    let info = SLOTS.get_ptr_mut(slot)?;
    // SAFETY: a live value of an array map; a slot is written when its listener opens or closes, which the kernel serialises
    // by the socket's lock, and `drops` under load, where two writers at once are tolerated (see `member`).
    Some(unsafe { &mut *info })
}

/// What may be the slot of a listener of this port; see [`NEAR`].
#[inline(always)]
fn near(port: u16) -> Option<u32> {
    match *NEAR.get(port as u32 & (NEAR_LEN - 1))? {
        NO_LISTENER => None,
        slot => Some(slot),
    }
}

/// By its port: the verifier lets nobody calculate with an address that a function was given.
#[inline(always)]
fn slot_nearby(sk: Sock) -> Option<u32> {
    let slot = near(sk.local_port())?;
    let info = info(slot)?;
    if info.sk == sk.0 && info.closed_ns == 0 { Some(slot) } else { None }
}

/// The slot of a listening socket.
#[inline(always)]
pub(crate) fn slot_of(sk: u64) -> Option<u32> {
    if let Some(slot) = slot_nearby(Sock(sk)) {
        return Some(slot);
    }
    // SAFETY: the value is read at once; entries are replaced, never removed, while programs are attached.
    unsafe { LISTENERS.get(sk) }.copied()
}

/// Makes a listener known; `seen` if its `listen()` is happening now.
#[inline(always)]
pub(crate) fn open(sk: Sock, seen: bool) -> Option<u32> {
    let port = sk.local_port();
    let net = sk.net();
    // Every namespace with a listener is followed, whatever the port: the cross-check is by namespace.
    net.follow()?;
    if port == 0 || !is_traced(port) {
        return None;
    }
    if !seen
        && let Some(slot) = slot_of(sk.0)
        && let Some(known) = info(slot)
        && known.closed_ns == 0
        && known.sk == sk.0
    {
        return Some(slot);
    }
    let slot = allocate(sk)?;
    let info = info(slot)?;
    sk.describe(info);
    info.port = port;
    info.netns = net.inum();
    info.asked = u32::MAX;
    if seen {
        info.opened_ns = now();
        let task = current();
        info.pid = task.pid();
        info.comm = task.comm();
        let call = Syscall::current();
        if call.number() == config!(nr_listen) as u64 {
            info.asked = call.arg1() as u32;
        }
    }
    if let Some(counters) = slot_counters(slot) {
        counters.max_accept_queue = sk.accept_queue();
        counters.max_half_open = sk.half_open();
    }
    if LISTENERS.insert(sk.0, slot, 0).is_err() || enlist(net, port, &info.address, slot).is_none() {
        count(Global::ListenersUnseen);
        return None;
    }
    NEAR.set(port as u32 & (NEAR_LEN - 1), slot, 0).ok()?;
    if seen {
        emit(EventKind::ListenerOpened, &own_tuple(sk, port, info.netns), |e| e.slot = slot);
    }
    Some(slot)
}

#[inline(always)]
fn own_tuple(sk: Sock, port: u16, netns: u32) -> Tuple {
    Tuple { client: Address::ANY, server: sk.local_address(), client_port: 0, port, netns }
}

#[inline(always)]
fn allocate(sk: Sock) -> Option<u32> {
    let last = LAST_SLOT.get_ptr_mut(0)?;
    // SAFETY: a live value of an array map. It is a hint: who inserts the entry has the slot.
    let last = unsafe { &mut *last };
    let first = *last + 1;
    for i in 0..RIVALS {
        let slot = first + i;
        if slot >= config!(slots) {
            break;
        }
        // BPF_NOEXIST
        if TAKEN.insert(slot, sk.0, 1).is_ok() {
            *last = slot;
            return Some(slot);
        }
    }
    count(Global::ListenersUnseen);
    None
}

/// Adds a slot to those of its address and of its port, in the place of one that has closed if there is one.
#[inline(always)]
fn enlist(net: Net, port: u16, address: &Address, slot: u32) -> Option<()> {
    let key = GroupKey { net: net.0, address: *address, port: port as u32, padding: 0 };
    match group(&key) {
        None => {
            GROUPS.insert(key, NO_GROUP.get(0)?, 0).ok()?;
            let first = group(&key)?;
            first.slots[0] = slot;
            first.len = 1;
            first.leader = slot;
        }
        Some(group) => join(group, slot)?,
    }
    let key = PortKey { net: net.0, port: port as u32, padding: 0 };
    let Some(known) = PORTS.get_ptr_mut(key) else {
        return PORTS.insert(key, Port { slot, listeners: 1 }, 0).ok();
    };
    // SAFETY: a preallocated element that is never removed; opening listeners of one port at the same instant on two CPUs both
    // leave it with more than one, which sends every look-up to the groups.
    let known = unsafe { &mut *known };
    if known.listeners == 1 && is_closed(known.slot) {
        known.slot = slot;
    } else {
        if known.listeners == 1
            && let Some(shared) = SHARED_PORTS.get_ptr_mut(0)
        {
            // SAFETY: a live value of an array map, only ever changed by atomic addition.
            unsafe { atomic::add(shared, 1) };
        }
        known.listeners += 1;
    }
    Some(())
}

#[inline(always)]
fn is_closed(slot: u32) -> bool {
    match info(slot) {
        Some(info) => info.closed_ns != 0,
        None => true,
    }
}

/// The listeners of an address and port.
#[inline(always)]
fn group(key: &GroupKey) -> Option<&'static mut Group> {
    let group = GROUPS.get_ptr_mut(key)?;
    // SAFETY: a preallocated element that is never removed. Two members that open at the same instant on two CPUs could take one
    // place; the loser is found again by `slot_of` at its first `accept()`.
    Some(unsafe { &mut *group })
}

#[inline(always)]
fn join(group: &mut Group, slot: u32) -> Option<()> {
    if is_closed(group.leader) {
        group.leader = slot;
    }
    for i in 0..MEMBERS {
        if i >= group.len as usize {
            group.slots[i] = slot;
            group.len = i as u32 + 1;
            return Some(());
        }
        if is_closed(group.slots[i]) {
            group.slots[i] = slot;
            return Some(());
        }
    }
    None
}

/// A listener has left LISTEN.
#[inline(always)]
pub(crate) fn close(sk: Sock) -> Option<()> {
    let slot = slot_of(sk.0)?;
    let info = info(slot)?;
    info.accept_queue = sk.accept_queue();
    info.half_open = sk.half_open();
    info.backlog = sk.accept_limit();
    info.closed_by = current().id;
    info.closed_ns = now();
    let key = GroupKey { net: info.net, address: info.address, port: info.port as u32, padding: 0 };
    if let Some(group) = group(&key) {
        leave(group, slot);
    }
    emit(EventKind::ListenerClosed, &own_tuple(sk, info.port, info.netns), |e| {
        e.slot = slot;
        e.pid = current().pid();
        e.flags = flag::LISTENER_CLOSED;
    });
    Some(())
}

#[inline(always)]
fn leave(group: &mut Group, slot: u32) {
    group.closed = slot;
    if group.leader != slot {
        return;
    }
    for i in 0..MEMBERS {
        if i >= group.len as usize {
            return;
        }
        if !is_closed(group.slots[i]) {
            group.leader = group.slots[i];
            return;
        }
    }
}

/// Whether some port has, or had, several listeners at a time.
#[inline(always)]
fn is_some_port_shared() -> bool {
    !matches!(SHARED_PORTS.get(0), Some(0) | None)
}

/// While no port is shared, an open listener of a port is the only one.
#[inline(always)]
fn port_nearby(net: Net, port: u16) -> Option<Port> {
    let slot = near(port)?;
    let info = info(slot)?;
    let is_it = info.net == net.0 && info.port == port && info.closed_ns == 0;
    if is_it && !is_some_port_shared() { Some(Port { slot, listeners: 1 }) } else { None }
}

/// The listeners of a port of a namespace, if it is traced.
#[inline(always)]
pub(crate) fn of_port(net: Net, port: u16) -> Option<Port> {
    if let Some(only) = port_nearby(net, port) {
        return Some(only);
    }
    let key = PortKey { net: net.0, port: port as u32, padding: 0 };
    // SAFETY: a preallocated element that is never removed; the value is copied at once.
    unsafe { PORTS.get(key) }.copied()
}

/// The listeners that a destination belongs to, where the port has several: those of the exact address, else of the IPv4
/// wildcard, else of the IPv6 wildcard if it takes the family. The order of `__inet_lookup_listener()` and `compute_score()`.
#[inline(always)]
fn group_of(net: Net, port: u16, server: &Address) -> Option<&'static mut Group> {
    let mut key = GroupKey { net: net.0, address: *server, port: port as u32, padding: 0 };
    if let Some(exact) = group(&key)
        && !is_closed(exact.leader)
    {
        return Some(exact);
    }
    let v4 = server.is_v4();
    if v4 {
        key.address = Address::ANY_V4;
        if let Some(any) = group(&key)
            && !is_closed(any.leader)
        {
            return Some(any);
        }
    }
    key.address = Address::ANY;
    let any = group(&key)?;
    if v4 && info(any.leader)?.v6only != 0 { None } else { Some(any) }
}

/// Whether the port of this slot's listener has others.
#[inline(always)]
pub(crate) fn has_company(slot: u32) -> bool {
    if !is_some_port_shared() {
        return false;
    }
    let listed = || {
        let info = info(slot)?;
        of_port(Net(info.net), info.port)
    };
    match listed() {
        Some(listed) => listed.listeners > 1,
        None => false,
    }
}

/// The slot that a connection to this address belongs to; of a SO_REUSEPORT group an open member.
#[inline(always)]
pub(crate) fn find(listed: Port, net: Net, port: u16, server: &Address) -> u32 {
    if listed.listeners == 1 { listed.slot } else { leader(net.0, port, server.words()[0], server.words()[1]) }
}

/// A function of its own: what the verifier has seen of it once, it need not follow again.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn leader(net: u64, port: u16, first: u64, last: u64) -> u32 {
    let server = &Address::of_words([first, last]);
    match group_of(Net(net), port, server) {
        Some(group) => group.leader,
        None => NO_LISTENER,
    }
}

/// The member of a SO_REUSEPORT group that dropped the SYN at hand: the one whose own `sk_drops` rose.
///
/// Two CPUs that drop on one member at the same instant can both see one rise; the second then takes a member whose accept queue
/// is over its limit. The sum over the group is exact either way. Function hooks see the listener itself.
#[inline(always)]
pub(crate) fn member(listed: Port, net: Net, port: u16, server: &Address) -> u32 {
    if listed.listeners == 1 { listed.slot } else { dropping(net.0, port, server.words()[0], server.words()[1]) }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn dropping(net: u64, port: u16, first: u64, last: u64) -> u32 {
    let server = &Address::of_words([first, last]);
    let Some(group) = group_of(Net(net), port, server) else { return NO_LISTENER };
    let mut full = 0;
    for i in 0..MEMBERS {
        if i >= group.len as usize {
            break;
        }
        let slot = group.slots[i];
        if let Some(info) = info(slot)
            && info.closed_ns == 0
        {
            let sk = Sock(info.sk);
            let drops = sk.drops();
            if drops != info.drops {
                info.drops = drops;
                return slot;
            }
            if sk.accept_queue() > sk.accept_limit() {
                full = slot;
            }
        }
    }
    if full == 0 { group.leader } else { full }
}

/// The listener of this address that the given task is closing, if it is.
#[inline(always)]
pub(crate) fn closed_by(listed: Port, net: Net, port: u16, server: &Address, task: u64) -> u32 {
    let closing = |slot: u32| match info(slot) {
        Some(info) => info.closed_ns != 0 && info.closed_by == task,
        None => false,
    };
    if listed.listeners == 1 {
        return if closing(listed.slot) { listed.slot } else { NO_LISTENER };
    }
    match group_of(net, port, server) {
        Some(group) if closing(group.closed) => group.closed,
        _ => NO_LISTENER,
    }
}

/// Notes that drops of this listener up to now have been given to their packets.
#[inline(always)]
pub(crate) fn settle_drops(slot: u32, sk: Sock) {
    if let Some(info) = info(slot) {
        info.drops = sk.drops();
    }
}

/// The open listener in a slot.
#[inline(always)]
pub(crate) fn sock(slot: u32) -> Option<Sock> {
    let info = info(slot)?;
    if info.sk == 0 || info.closed_ns != 0 { None } else { Some(Sock(info.sk)) }
}
