//! Every map, with the reason for its size and what happens when it is full.
//!
//! Sizes here are those of the object; the collector lowers some at load, by the number of CPUs, so that all of them together
//! stay within its memory bound.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, RingBuf},
};
use tracer_abi::abi::{
    Global, Group, GroupKey, ListenerInfo, NetCounters, Port, PortKey, Process, SlotCounters, Tuple, Watch,
};

/// Namespaces that can be followed. A host with more containers than this that all listen reports `NetsUnseen`.
pub(crate) const NETS_MAX: u32 = 512;

/// Events of troubled attempts. 16 MiB hold 150,000: what a burst can leave behind while the collector is not scheduled.
/// Full: the event is counted as lost, and the watch map still has the attempt's last state.
#[map]
pub(crate) static RING: RingBuf = RingBuf::with_byte_size(16 << 20, 0);

/// Troubled attempts, and connections that began before counting did. A hash map, because that is what a troubled attempt
/// is looked up by; a healthy connection looks here only while [`WATCHED`] is not 0. 131,072 entries of about 110 bytes:
/// more than the ephemeral ports of one client address. Full: counted as `Unwatched`; repetitions can no longer be told
/// from new attempts, and the report says so.
#[map]
pub(crate) static WATCH: HashMap<Tuple, Watch> = HashMap::with_max_entries(131_072, 0);

/// How many entries [`WATCH`] has, so that healthy connections need not look.
#[map]
pub(crate) static WATCHED: Array<u64> = Array::with_max_entries(1, 0);

/// The tuple that the control program is asked to forget.
#[map]
pub(crate) static FORGET: Array<Tuple> = Array::with_max_entries(1, 0);

/// The kernel's counters as last seen, per namespace and CPU. Hash, because a namespace is known by address only.
#[map]
pub(crate) static NETS: PerCpuHashMap<u64, NetCounters> = PerCpuHashMap::with_max_entries(NETS_MAX, 0);

/// A zero value of [`NETS`], to insert.
#[map]
pub(crate) static NO_COUNTERS: Array<NetCounters> = Array::with_max_entries(1, 0);

/// The addresses that are keys of [`NETS`], from index 1; index 0 is their number. The collector walks it.
#[map]
pub(crate) static NET_LIST: Array<u64> = Array::with_max_entries(NETS_MAX + 1, 0);

/// What listens on a port of a namespace. Hash: one look-up per SYN and per connection. Full: the listener counts as unseen.
#[map]
pub(crate) static PORTS: HashMap<PortKey, Port> = HashMap::with_max_entries(2048, 0);

/// The listeners of an address and port of a namespace. Looked up only where a port has several listeners. Full: as above.
#[map]
pub(crate) static GROUPS: HashMap<GroupKey, Group> = HashMap::with_max_entries(2048, 0);

/// Slot of a listener by the address of its `struct sock`: one look-up per `accept()`. As many as there are slots.
#[map]
pub(crate) static LISTENERS: HashMap<u64, u32> = HashMap::with_max_entries(4096, 0);

/// Who the listeners are, by slot. Slot 0 is nobody. Full: counted as `ListenersUnseen`.
#[map]
pub(crate) static SLOTS: Array<ListenerInfo> = Array::with_max_entries(1024, 0);

/// The next free slot.
#[map]
pub(crate) static NEXT_SLOT: Array<u64> = Array::with_max_entries(1, 0);

/// What is counted per listener: all that a healthy connection costs is an addition here, at each step.
#[map]
pub(crate) static COUNTERS: PerCpuArray<SlotCounters> = PerCpuArray::with_max_entries(1024, 0);

/// The ports to trace, one bit each.
#[map]
pub(crate) static TRACED: Array<u64> = Array::with_max_entries(1024, 0);

/// [`CpuState`].
#[map]
pub(crate) static CPU: PerCpuArray<CpuState> = PerCpuArray::with_max_entries(1, 0);

/// [`Global`] counters.
#[map]
pub(crate) static GLOBALS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Global::COUNT as u32, 0);

/// When the collector had every CPU remember earlier connections, `CLOCK_MONOTONIC` nanoseconds: what was established
/// before is earlier, without an entry in [`WATCH`].
#[map]
pub(crate) static EPOCH: Array<u64> = Array::with_max_entries(1, 0);

/// Local connects by process. Hash by thread group: one look-up per local connect. Full: the process is left out, the
/// totals in [`GLOBALS`] stay exact.
#[map]
pub(crate) static PROCESSES: HashMap<u32, Process> = HashMap::with_max_entries(4096, 0);

/// Local connects that are under way, by the address of their `struct sock`: what establishes or fails them runs in a
/// softirq, where nobody can tell whose they are. Only where client and server share the host; one entry for the
/// duration of a handshake. Full: counted as `ConnectsUnseen`.
#[map]
pub(crate) static CONNECTING: HashMap<u64, Connecting> = HashMap::with_max_entries(65_536, 0);

/// A copy of a map's head, from which the address of per-CPU values is taken.
#[map]
pub(crate) static SCRATCH: Array<[u8; 1024]> = Array::with_max_entries(1, 0);

/// State of one CPU.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct CpuState {
    /// What to add to a per-CPU address; 0 until it is known.
    pub(crate) percpu_offset: u64,
    /// The request whose timer runs now; written and read in the timer softirq.
    pub(crate) timer_request: u64,
    /// The connection that has just entered the accept queue, until its listener is told; written and read in one softirq.
    pub(crate) child: u64,
    /// The slot that `child` was counted for.
    pub(crate) child_slot: u32,
    /// Whether `child` is watched.
    pub(crate) child_watched: u32,
    /// The packet, or the socket, that the first of a pair of programs has handled; see [`Twin`].
    pub(crate) handled: [u64; TWINS],
    /// [`Phase`](tracer_abi::abi::Phase); written by the control program on this CPU.
    pub(crate) phase: u32,
    /// Zero.
    pub(crate) padding: u32,
}

/// Number of places with a pair of programs.
const TWINS: usize = 4;

/// Places where events of a process and of a softirq come to the same program.
///
/// The kernel does not run a program that is already running on that CPU (`bpf_trace_run`, since 6.1): what a softirq does while
/// it interrupts our program is not shown to it. Under load that is hundreds of events a minute. So these places have two equal
/// programs, one after the other: the first says what it has handled, and the second handles what the first was not run for. A
/// softirq interrupts one of them at most, so that the other sees its events.
#[derive(Clone, Copy)]
pub(crate) enum Twin {
    /// `consume_skb`; only what a softirq does matters.
    Syn = 0,
    /// `kfree_skb`; a process drops packets too, but none of a handshake, except to a filter of its own output.
    Drop = 1,
    /// `inet_sock_set_state` to ESTABLISHED on the server's side.
    Child = 2,
    /// `inet_sock_set_state` to CLOSE of what waits for `accept()`.
    Gone = 3,
}

/// A local connect that is under way.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Connecting {
    /// Thread group.
    pub(crate) pid: u32,
    /// 1 once the socket has left SYN_SENT without a pending error: the system call is about to say why.
    pub(crate) closed: u32,
    /// Destination.
    pub(crate) tuple: Tuple,
    /// The caller's name.
    pub(crate) comm: [u8; 16],
}
