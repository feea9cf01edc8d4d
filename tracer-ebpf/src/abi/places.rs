//! The places in the kernel whose signatures decide how a hook is attached. They are looked up in the kernel's BTF, and kept when
//! BTF is trimmed for tests.

/// Tracepoints.
pub const TRACEPOINTS: [&str; 8] = [
    "consume_skb",
    "kfree_skb",
    "inet_sock_set_state",
    "tcp_retransmit_synack",
    "sk_data_ready",
    "timer_expire_entry",
    "timer_expire_exit",
    "sched_process_exit",
];

/// Functions.
pub const FUNCTIONS: [&str; 10] = [
    "tcp_conn_request",
    "tcp_check_req",
    "cookie_v4_check",
    "cookie_v6_check",
    "tcp_child_process",
    "security_sock_graft",
    "reqsk_timer_handler",
    "tcp_rtx_synack",
    "tcp_v4_connect",
    "tcp_v6_connect",
];

/// A field that the verifier has where it lets a program call global functions while preemption is disabled (6.15).
pub const MIGHT_SLEEP: (&str, &str) = ("bpf_subprog_info", "might_sleep");

/// A structure of two whole words: what `bpf_rdonly_cast()` makes of an address where it must be told a type (up to 6.16),
/// and its second word.
pub const TWO_WORDS: (&str, &str) = ("timespec64", "tv_nsec");

/// A function that runs programs at system calls' tracepoints apart (7.x): a program is then kept from itself only, and of a pair one
/// sees what the other does not. Before, it is not run while any program at such a tracepoint or at a probe runs on that CPU, and one
/// of a pair is run as seldom as the other.
pub const CALLS_APART: &str = "trace_call_bpf_faultable";

/// A function by which a kernel notes that it did not run a program: since 6.1 it does not at a tracepoint where that program is running
/// already on that CPU. Before, a program can interrupt itself there, and needs no equal that is run when it is not.
pub const NOTES_MISSES: &str = "bpf_prog_inc_misses_counter";

/// The enumeration of helpers that programs may call.
pub const HELPERS: &str = "bpf_func_id";

/// Helpers that not every kernel has: `bpf_task_pt_regs()` (5.15).
pub const TASK_REGS: &str = "BPF_FUNC_task_pt_regs";

/// `bpf_map_lookup_percpu_elem()` (5.19).
pub const PERCPU_LOOKUP: &str = "BPF_FUNC_map_lookup_percpu_elem";
