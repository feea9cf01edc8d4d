//! What the collector tells the kernel side: layouts of this kernel, bounds, and when to count.

/// When the programs count. Held per CPU, and changed from process context on that CPU, so that no packet is half handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    /// Attached, and doing nothing.
    Idle = 0,
    /// Remember every connection that is under way as an earlier one; count nothing.
    Earlier = 1,
    /// Count.
    Counting = 2,
    /// Ended.
    Ended = 3,
}

/// What the control program is asked to do; the first word of its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum ControlOp {
    /// Set this CPU's phase to [`Phase::Earlier`].
    Remember = 1,
    /// Take this CPU's counters of the namespace at address `argument` as their start.
    BeginNet = 2,
    /// Set the phase to [`Phase::Counting`].
    Count = 3,
    /// Take this CPU's counters of the namespace at address `argument` as their end.
    EndNet = 4,
    /// Set the phase to [`Phase::Ended`].
    End = 5,
    /// Read the queue lengths of the listener in slot `argument`.
    Queues = 6,
    /// Forget the attempt whose tuple stands in the map `FORGET`, if nothing was heard of it since `argument`
    /// (`CLOCK_MONOTONIC` nanoseconds).
    Forget = 7,
}

/// Context of the control program: two arguments, as a raw tracepoint would have them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Control {
    /// [`ControlOp`].
    pub op: u64,
    /// Its argument.
    pub argument: u64,
}

/// Numbers of `enum skb_drop_reason` on this kernel that are told apart; `u32::MAX` where the kernel has no such reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
#[repr(C)]
pub struct Reasons {
    /// `SKB_DROP_REASON_NO_SOCKET`: nobody listens.
    pub no_socket: u32,
    /// `SKB_DROP_REASON_NOT_SPECIFIED`.
    pub not_specified: u32,
    /// Reasons that TCP itself gives for a segment of a request or listener, and that are therefore no filter's:
    /// flags, resets, sequence numbers, out-of-date timestamps, overflow.
    pub tcp_rules: [u32; TCP_RULES.len()],
}

/// The enumerators of [`Reasons::tcp_rules`].
pub const TCP_RULES: [&str; 12] = [
    "SKB_DROP_REASON_TCP_FLAGS",
    "SKB_DROP_REASON_TCP_RESET",
    "SKB_DROP_REASON_TCP_INVALID_SYN",
    "SKB_DROP_REASON_TCP_INVALID_SEQUENCE",
    "SKB_DROP_REASON_TCP_OLD_SEQUENCE",
    "SKB_DROP_REASON_TCP_RFC7323_PAWS",
    "SKB_DROP_REASON_TCP_RFC7323_TW_PAWS",
    "SKB_DROP_REASON_TCP_RFC7323_TSECR",
    "SKB_DROP_REASON_TCP_LISTEN_OVERFLOW",
    "SKB_DROP_REASON_TCP_OLD_ACK",
    "SKB_DROP_REASON_TCP_INVALID_ACK_SEQUENCE",
    "SKB_DROP_REASON_TCP_OVERWINDOW",
];

/// Everything that is fixed for one run, set as a read-only global before the programs are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
#[repr(C)]
pub struct Config {
    /// Start of `tcp_rcv_state_process` in the kernel's text.
    pub rcv_state_process: u64,
    /// End of it.
    pub rcv_state_process_end: u64,
    /// Start and end of `tcp_v4_rcv` and of `tcp_v6_rcv`; used where a drop has no reason.
    pub rcv: [u64; 4],
    /// Start and end of `nf_hook_slow`; used where a drop has no reason.
    pub netfilter: [u64; 2],
    /// Address of `reqsk_timer_handler`.
    pub reqsk_timer_handler: u64,
    /// What the hashes of tuples begin with: a random number.
    pub hash_seed: u64,
    /// Indices into `linux_mib.mibs`, by [`Counter`](super::Counter).
    pub mib: [u32; super::COUNTERS],
    /// CPUs whose counters can exist.
    pub cpus: u32,
    /// Namespace to trace, or 0 for all.
    pub netns: u32,
    /// Listener slots that the maps have room for.
    pub slots: u32,
    /// Numbers of namespaces that the maps have room for.
    pub namespaces: u32,
    /// Bytes in the ring before the reader is woken.
    pub wake_bytes: u32,
    /// The `connect` system call's number.
    pub nr_connect: u32,
    /// The `listen` system call's number.
    pub nr_listen: u32,
    /// 1 if no ports were given: every listener is traced.
    pub every_port: u32,
    /// 1 if SYNs are judged in a function hook, which knows the listener itself.
    pub syn_by_function: u32,
    /// 1 if segments for requests are judged in function hooks.
    pub ack_by_function: u32,
    /// 1 if what enters the accept queue is seen by function hooks.
    pub child_by_function: u32,
    /// 1 if the errors of `connect()` come from a function hook.
    pub connect_by_function: u32,
    /// 1 if a function hook sees what is accepted, and is told the child only.
    pub accept_by_function: u32,
    /// 1 if nothing sees the result of `connect()`.
    pub connect_by_probe: u32,
    /// 1 if the kernel has `bpf_task_pt_regs()` (5.15).
    pub has_task_regs: u32,
    /// 1 if the kernel has `bpf_map_lookup_percpu_elem()` (5.19).
    pub has_percpu_lookup: u32,
    /// Offset of `first`, the first TCP connection, in `struct mptcp_sock`; `u32::MAX` where the kernel has no MPTCP.
    pub mptcp_first: u32,
    /// Troubled attempts that are told at a time; of those beyond only counts are kept.
    pub told_max: u32,
    /// 1 if a process can be preempted in a program at a tracepoint (7.0).
    pub preempted: u32,
    /// 1 if programs can read kernel memory without a helper (6.2).
    pub plain_reads: u32,
    /// As what they read it: 0, anything (6.17), or the number of [`TWO_WORDS`](crate::abi::places::TWO_WORDS) among the kernel's types.
    pub read_as: u32,
    /// Drop reasons.
    pub reasons: Reasons,
    /// Layouts.
    pub offsets: Offsets,
}

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident: $strukt:literal, $path:literal;)*) => {
        /// Where fields lie in this kernel's structures, in bytes, from its BTF.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[cfg_attr(feature = "user", derive(zerocopy::IntoBytes, zerocopy::Immutable))]
        #[repr(C)]
        pub struct Offsets { $($(#[$doc])* pub $name: u32,)* }

        impl Offsets {
            /// All zero: what the object holds before the collector sets it.
            pub const ZERO: Offsets = Offsets { $($name: 0,)* };

            /// Name here, structure and path of each field, in the order of the structure.
            pub const FIELDS: &'static [(&'static str, &'static str, &'static str)] =
                &[$((stringify!($name), $strukt, $path),)*];

            /// Sets the field with this index in [`Offsets::FIELDS`].
            pub fn set(&mut self, index: usize, offset: u32) {
                let fields: &mut [&mut u32] = &mut [$(&mut self.$name,)*];
                *fields[index] = offset;
            }
        }
    };
}

offsets! {
    /// Address family.
    sk_family: "sock_common", "skc_family";
    /// TCP state.
    sk_state: "sock_common", "skc_state";
    /// Local port, host order; 0 once the port has been given back.
    sk_num: "sock_common", "skc_num";
    /// Remote port, network order.
    sk_dport: "sock_common", "skc_dport";
    /// Remote IPv4 address.
    sk_daddr: "sock_common", "skc_daddr";
    /// Local IPv4 address.
    sk_rcv_saddr: "sock_common", "skc_rcv_saddr";
    /// Remote IPv6 address.
    sk_v6_daddr: "sock_common", "skc_v6_daddr";
    /// Local IPv6 address.
    sk_v6_rcv_saddr: "sock_common", "skc_v6_rcv_saddr";
    /// Network namespace.
    sk_net: "sock_common", "skc_net";
    /// Of a request: its listener.
    req_listener: "sock_common", "skc_listener";
    /// Byte with the `skc_reuseport` and `skc_ipv6only` bits.
    sk_flags_byte: "sock_common", "skc_reuseport";
    /// Protocol.
    sk_protocol: "sock", "sk_protocol";
    /// The socket that a process holds; null while nobody has accepted.
    sk_socket: "sock", "sk_socket";
    /// Accept queue length.
    sk_ack_backlog: "sock", "sk_ack_backlog";
    /// Accept queue limit.
    sk_max_ack_backlog: "sock", "sk_max_ack_backlog";
    /// Drops counted on this socket.
    sk_drops: "sock", "sk_drops";
    /// Pending error.
    sk_err: "sock", "sk_err";
    /// Local port, network order; stays after the port has been given back.
    inet_sport: "inet_sock", "inet_sport";
    /// Request queue length.
    icsk_qlen: "inet_connection_sock", "icsk_accept_queue.qlen";
    /// Retransmissions so far; of a new child, those of its SYN-ACK.
    tp_total_retrans: "tcp_sock", "total_retrans";
    /// When the receive buffer was set up: of a child that nobody has read from, when it was established (microseconds).
    tp_rcvq_time: "tcp_sock", "rcvq_space.time";
    /// Next sequence number that is expected.
    tp_rcv_nxt: "tcp_sock", "rcv_nxt";
    /// First sequence number that no process has read.
    tp_copied_seq: "tcp_sock", "copied_seq";
    /// Of a client in SYN_SENT, its initial sequence number.
    tp_snd_una: "tcp_sock", "snd_una";
    /// SYN-ACK retransmissions of a request.
    req_num_retrans: "request_sock", "num_retrans";
    /// SYN-ACK timer of a request.
    req_timer: "request_sock", "rsk_timer";
    /// The client's initial sequence number, of a request.
    treq_rcv_isn: "tcp_request_sock", "rcv_isn";
    /// Links of a timer; null when it is not armed.
    timer_pprev: "timer_list", "entry.pprev";
    /// Callback of a timer.
    timer_function: "timer_list", "function";
    /// Start of the buffer.
    skb_head: "sk_buff", "head";
    /// TCP header, from `head`.
    skb_transport: "sk_buff", "transport_header";
    /// IP header, from `head`.
    skb_network: "sk_buff", "network_header";
    /// Route, with two flag bits.
    skb_dst: "sk_buff", "_skb_refdst";
    /// Device.
    skb_dev: "sk_buff", "dev";
    /// EtherType, network order.
    skb_protocol: "sk_buff", "protocol";
    /// Device of a route.
    dst_dev: "dst_entry", "dev";
    /// Namespace of a device.
    dev_net: "net_device", "nd_net";
    /// Inode number of a namespace.
    net_inum: "net", "ns.inum";
    /// Per-CPU `linux_mib` of a namespace.
    net_mib: "net", "mib.net_statistics";
    /// `tcp_max_syn_backlog`.
    net_max_syn_backlog: "net", "ipv4.sysctl_max_syn_backlog";
    /// `tcp_syncookies`.
    net_syncookies: "net", "ipv4.sysctl_tcp_syncookies";
    /// The counters.
    mib_mibs: "linux_mib", "mibs";
    /// Per-CPU pointers of a map.
    array_pptrs: "bpf_array", "pptrs";
    /// Open files of a task.
    task_files: "task_struct", "files";
    /// Their table.
    files_fdt: "files_struct", "fdt";
    /// Its entries.
    fdt_fd: "fdtable", "fd";
    /// The socket behind a file.
    file_private: "file", "private_data";
    /// The sock behind a socket.
    socket_sk: "socket", "sk";
    /// Whether a socket is being connected: `enum socket_state`.
    socket_state: "socket", "state";
    /// The file of a socket.
    socket_file: "socket", "file";
    /// The inode of a file.
    file_inode: "file", "f_inode";
    /// Its number.
    inode_ino: "inode", "i_ino";
    /// Lowest address of a task's kernel stack.
    task_stack: "task_struct", "stack";
    /// Flags of a task.
    task_flags: "task_struct", "flags";
    /// What a task ends with, once it does.
    task_exit_code: "task_struct", "exit_code";
    /// What the threads of a task share.
    task_signal: "task_struct", "signal";
    /// Of these, how many are left.
    signal_live: "signal_struct", "live";
    /// First system call argument.
    regs_arg0: "pt_regs", "di";
    /// Second system call argument.
    regs_arg1: "pt_regs", "si";
    /// System call number.
    regs_nr: "pt_regs", "orig_ax";
}

const _: () = assert!(size_of::<Offsets>() == Offsets::FIELDS.len() * 4);
