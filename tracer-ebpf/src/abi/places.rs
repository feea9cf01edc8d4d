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
pub const FUNCTIONS: [&str; 12] = [
    "tcp_conn_request",
    "tcp_check_req",
    "cookie_v4_check",
    "cookie_v6_check",
    "tcp_child_process",
    "inet_accept",
    "mptcp_stream_accept",
    "security_sock_graft",
    "reqsk_timer_handler",
    "tcp_rtx_synack",
    "tcp_v4_connect",
    "tcp_v6_connect",
];

/// The enumeration of helpers that programs may call.
pub const HELPERS: &str = "bpf_func_id";

/// Helpers that not every kernel has: `bpf_task_pt_regs()` (5.15).
pub const TASK_REGS: &str = "BPF_FUNC_task_pt_regs";

/// `bpf_map_lookup_percpu_elem()` (5.19).
pub const PERCPU_LOOKUP: &str = "BPF_FUNC_map_lookup_percpu_elem";
