//! The read-only configuration that the collector sets before the programs are loaded.

use tracer_abi::abi::{Config, Offsets, Reasons};

/// Zero in the object; replaced at load, then frozen, so that the verifier sees constants.
#[unsafe(no_mangle)]
pub(crate) static CONFIG: Config = Config {
    rcv_state_process: 0,
    rcv_state_process_end: 0,
    rcv: [0; 4],
    netfilter: [0; 2],
    reqsk_timer_handler: 0,
    hash_seed: 0,
    mib: [0; tracer_abi::abi::COUNTERS],
    cpus: 0,
    netns: 0,
    slots: 0,
    namespaces: 0,
    wake_bytes: 0,
    nr_connect: 0,
    nr_listen: 0,
    every_port: 0,
    syn_by_function: 0,
    ack_by_function: 0,
    child_by_function: 0,
    connect_by_function: 0,
    accept_by_function: 0,
    connect_by_probe: 0,
    has_task_regs: 0,
    has_percpu_lookup: 0,
    mptcp_first: 0,
    told_max: 0,
    preempted: 0,
    plain_reads: 0,
    read_as: 0,
    reasons: Reasons { no_socket: 0, not_specified: 0, tcp_rules: [0; tracer_abi::abi::TCP_RULES.len()] },
    offsets: Offsets::ZERO,
};

/// A field of the configuration, as the kernel holds it.
macro_rules! config {
    ($($field:tt)+) => {{
        // SAFETY: the address is that of a field of a live static; the read is volatile because the loader, not this
        // program, writes the value.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::config::CONFIG.$($field)+) }
    }};
}
pub(crate) use config;
