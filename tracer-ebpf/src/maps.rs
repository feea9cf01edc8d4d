//! Every map, with the reason for its size and what happens when it is full.
//!
//! Sizes here are those of the object; the collector lowers some at load, by the number of CPUs, so that all of them together
//! stay within its memory bound.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use tracer_abi::abi::{
    Global, Group, GroupKey, ListenerInfo, NetCounters, Port, PortKey, Process, SlotCounters, Tuple, Watch,
};

use crate::kernel::Segment;

/// Namespaces that can be followed. A host with more containers than this that all listen reports `NetsUnseen`.
pub(crate) const NETS_MAX: u32 = 512;

/// Events of troubled attempts. 8 MiB hold 70,000: what a burst can leave behind while the collector is not scheduled.
/// Full: the event is counted as lost, and the watch map still has the attempt's last state.
#[map]
pub(crate) static RING: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Troubled attempts, and connections that began before counting did. A hash map, because that is what a troubled attempt
/// is looked up by; a healthy connection looks here only while [`WATCHED`] is not 0. 131,072 entries of about 110 bytes:
/// more than the ephemeral ports of one client address. Full: counted as `Unwatched`; repetitions can no longer be told
/// from new attempts, and the report says so.
#[map]
pub(crate) static WATCH: HashMap<Tuple, Watch> = HashMap::with_max_entries(131_072, 0);

/// How many entries [`WATCH`] has, so that healthy connections need not look.
#[map]
pub(crate) static WATCHED: Array<u64> = Array::with_max_entries(1, 0);

/// Attempts that are counted and not told, in buckets of eight: see `untold`. An array of 16 MiB for two million attempts, each of
/// which has two buckets to be in; one cache line is looked at, most often. Full: counted as `Unwatched`.
#[map]
pub(crate) static UNTOLD: Array<[u64; UNTOLD_PLACES]> = Array::with_max_entries(UNTOLD_BUCKETS, 0);

/// Buckets of [`UNTOLD`]; a power of two.
pub(crate) const UNTOLD_BUCKETS: u32 = 1 << 18;

/// Places in a bucket: those of a cache line.
pub(crate) const UNTOLD_PLACES: usize = 8;

/// How many attempts [`UNTOLD`] has, so that nobody need look while there is none.
#[map]
pub(crate) static UNTOLD_TOTAL: Array<u64> = Array::with_max_entries(1, 0);

/// The tuple that the control program is asked to forget.
#[map]
pub(crate) static FORGET: Array<Tuple> = Array::with_max_entries(1, 0);

/// The kernel's counters as last seen, per namespace and CPU, by the namespace's number in [`NET_LIST`].
#[map]
pub(crate) static NETS: PerCpuArray<NetCounters> = PerCpuArray::with_max_entries(NETS_MAX, 0);

/// Addresses of the namespaces that are followed, by number, from 1; at index 0 is the number that was given last, as a hint. 0: nobody
/// has this number, or who had it is gone. The collector walks it.
#[map]
pub(crate) static NET_LIST: Array<u64> = Array::with_max_entries(NETS_MAX, 0);

/// The number of a namespace by its address. Hash, because a namespace is known by address only; looked up only where the last
/// packet of that CPU was another namespace's.
#[map]
pub(crate) static NET_NUMBERS: HashMap<u64, u32> = HashMap::with_max_entries(NETS_MAX, 0);

/// What listens on a port of a namespace. Hash: one look-up per SYN and per connection. Full: the listener counts as unseen.
#[map]
pub(crate) static PORTS: HashMap<PortKey, Port> = HashMap::with_max_entries(2048, 0);

/// Where to look before [`LISTENERS`] and [`PORTS`]: the slot that was taken last for a port with this place. A slot says itself whose
/// it is, so that a wrong one costs a look and nothing else. Written where a listener opens.
#[map]
pub(crate) static NEAR: Array<u32> = Array::with_max_entries(NEAR_LEN, 0);

/// Places in [`NEAR`]; a power of two.
pub(crate) const NEAR_LEN: u32 = 1024;

/// How many ports have, or had, several listeners at a time, so that nobody need look while none has.
#[map]
pub(crate) static SHARED_PORTS: Array<u64> = Array::with_max_entries(1, 0);

/// The listeners of an address and port of a namespace. Looked up only where a port has several listeners. Full: as above.
#[map]
pub(crate) static GROUPS: HashMap<GroupKey, Group> = HashMap::with_max_entries(2048, 0);

/// A zero value of [`GROUPS`], to insert.
#[map]
pub(crate) static NO_GROUP: Array<Group> = Array::with_max_entries(1, 0);

/// Slot of a listener by the address of its `struct sock`: one look-up per `accept()`. As many as there are slots.
#[map]
pub(crate) static LISTENERS: HashMap<u64, u32> = HashMap::with_max_entries(4096, 0);

/// Who the listeners are, by slot. Slot 0 is nobody. Full: counted as `ListenersUnseen`.
#[map]
pub(crate) static SLOTS: Array<ListenerInfo> = Array::with_max_entries(1024, 0);

/// The last slot that was taken, as a hint.
#[map]
pub(crate) static LAST_SLOT: Array<u32> = Array::with_max_entries(1, 0);

/// The slots that are taken, and the numbers of namespaces, which begin at [`NETS_FROM`]. An entry can be inserted once, which is what
/// decides between two CPUs: kernels before 5.12 have no atomic addition that tells its result. As many as there are of both.
#[map]
pub(crate) static TAKEN: HashMap<u32, u64> = HashMap::with_max_entries(1024 + NETS_MAX, 0);

/// What is added to a namespace's number in [`TAKEN`].
pub(crate) const NETS_FROM: u32 = 1 << 31;

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

/// When the collector had seen every listener and half-open request, `CLOCK_MONOTONIC` nanoseconds: what was established before is
/// earlier, without an entry in [`WATCH`].
#[map]
pub(crate) static EPOCH: Array<u64> = Array::with_max_entries(1, 0);

/// Local connects by process. Hash by thread group: one look-up per local connect. Full: the process is left out, the
/// totals in [`GLOBALS`] stay exact.
#[map]
pub(crate) static PROCESSES: HashMap<u32, Process> = HashMap::with_max_entries(4096, 0);

/// A zero value of [`PROCESSES`], to insert: on the stack it would leave no room for anything else.
#[map]
pub(crate) static NO_PROCESS: Array<Process> = Array::with_max_entries(1, 0);

/// Local connects that are under way, by the address of their `struct sock`: what establishes or fails them runs in a
/// softirq, where nobody can tell whose they are. Only where client and server share the host; one entry for the
/// duration of a handshake. Full: counted as `ConnectsUnseen`.
#[map]
pub(crate) static CONNECTING: HashMap<u64, Connecting> = HashMap::with_max_entries(65_536, 0);

/// The listener's slot of a child that waits, where a port has several and the function hook that sees it accepted is told
/// the child only.
/// Least recently used: of more waiting children than this, the oldest are counted for the group's first member.
#[map]
pub(crate) static CHILDREN: LruHashMap<u64, u32> = LruHashMap::with_max_entries(16_384, 0);

/// Children that TCP Fast Open put into the accept queue at their SYN, until their last ACK or their end: they are counted already.
/// Looked at only while [`FAST_OPENED`] is not 0. Least recently used: of more than this at once, the oldest would be counted twice
/// when its ACK comes, which the report notices.
#[map]
pub(crate) static FAST_OPEN: LruHashMap<u64, u32> = LruHashMap::with_max_entries(8192, 0);

/// How many connections were opened fast.
#[map]
pub(crate) static FAST_OPENED: Array<u64> = Array::with_max_entries(1, 0);

/// What the first of equal programs has done for a thread, by thread: thread and kind of event, and object; see `kernel::first_did`. Two
/// threads with one place would both have to be between two programs of one event, and one of them preempted there.
#[map]
pub(crate) static DONE: Array<[u64; 2]> = Array::with_max_entries(DONE_LEN, 0);

/// Places in [`DONE`]; a power of two.
pub(crate) const DONE_LEN: u32 = 4096;

/// The segment that the cookie check of this CPU is looking at, which it may free.
#[map]
pub(crate) static SEGMENT: PerCpuArray<Segment> = PerCpuArray::with_max_entries(1, 0);

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
    /// The request whose SYN-ACK was sent again last, until a request's timer has run; written and read in one softirq.
    pub(crate) resent: u64,
    /// The listener whose new child handles its first segment; written and read in one softirq, in the function flavours.
    pub(crate) parent: u64,
    /// The child that was made last and is not established yet; written and read in one softirq.
    pub(crate) newborn: u64,
    /// The packet that a request refused last; written and read in one softirq.
    pub(crate) refused: u64,
    /// Arguments of a function that is running, for its end; see [`Call`].
    pub(crate) calls: [[u64; 2]; CALLED],
    /// The connection that has just entered the accept queue, until its listener is told; written and read in one softirq.
    pub(crate) child: u64,
    /// The slot that `child` was counted for.
    pub(crate) child_slot: u32,
    /// [`CpuState::WATCHED`], [`CpuState::COOKIE`], [`CpuState::FIN`].
    pub(crate) child_flags: u32,
    /// The packet, or the socket, that the first of equal programs has handled; see [`Twin`].
    pub(crate) handled: [u64; TWINS],
    /// [`Phase`](tracer_abi::abi::Phase); written by the control program on this CPU.
    pub(crate) phase: u32,
    /// The number of the namespace that was looked up last, as a hint: what is in [`NET_LIST`] there says whether it is that.
    pub(crate) net: u32,
}

impl CpuState {
    /// `child` is watched.
    pub(crate) const WATCHED: u32 = 1;
    /// `child` came of a cookie.
    pub(crate) const COOKIE: u32 = 2;
    /// The segment that made `child` has a FIN.
    pub(crate) const FIN: u32 = 4;
}

/// Number of functions whose arguments are kept.
const CALLED: usize = 4;

/// Functions that run in a softirq, or with bottom halves off, from beginning to end: there is one at a time on a CPU.
#[derive(Clone, Copy)]
pub(crate) enum Call {
    /// `tcp_conn_request`: listener and packet.
    ConnRequest = 0,
    /// `tcp_check_req`, `cookie_v4_check` and `cookie_v6_check`: socket and packet.
    CheckReq = 1,
    /// `tcp_child_process`: listener and child.
    ChildProcess = 2,
    /// `tcp_rtx_synack`: listener and request. It is called in `tcp_check_req` and in the timer.
    RtxSynack = 3,
}

/// Number of places with several equal programs.
const TWINS: usize = 5;

/// Places where events of a process and of a softirq come to the same program.
///
/// The kernel does not run a program that is already running on that CPU (`bpf_trace_run`, since 6.1): what a softirq does while
/// it interrupts our program is not shown to it. Under load that is hundreds of events a minute. So these places have two equal
/// programs, one after the other: the first says what it has handled, and the second handles what the first was not run for. A
/// softirq interrupts one of them at most, so that the other sees its events. Processes too can interrupt one another in a program
/// (trampolines always; tracepoints on preemptible kernels since 7.0), and then the program sees nobody's events on that CPU, softirqs'
/// neither, until the first process goes on. What only processes do is noted in [`DONE`]; and where it can be, preemption is disabled
/// while a program runs (`kernel::unpreempted`), for several processes would soon hold both programs. A few instructions before and
/// after stay: the changes of state, which are the most frequent of these events, have three programs.
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
    /// `kfree_skb` again, for what never came to a listener.
    Unheard = 4,
}

/// A local connect that is under way.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Connecting {
    /// Thread group.
    pub(crate) pid: u32,
    /// 1 once the socket has left SYN_SENT without a pending error: the system call is about to say why.
    pub(crate) closed: u32,
    /// Who it is between, once the socket has left SYN_SENT; before, the namespace only.
    pub(crate) tuple: Tuple,
    /// The caller's name.
    pub(crate) comm: [u8; 16],
}
