//! The hooks: which program goes where, and what is lost without it.

/// How a hook is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `fentry`/`fexit`.
    Fentry,
    /// `kprobe`/`kretprobe`.
    Kprobe,
    /// A tracepoint.
    Tracepoint,
}

impl Flavour {
    /// The name in reports and for `--hooks`.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Flavour::Fentry => "fentry",
            Flavour::Kprobe => "kprobe",
            Flavour::Tracepoint => "tracepoint",
        }
    }
}

/// How one program of the tracepoint flavour is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A typed raw tracepoint (`tp_btf`).
    Btf(&'static str),
    /// A tracepoint of tracefs: category and name.
    Classic(&'static str, &'static str),
}

/// A place in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Its name: the function that it stands for.
    pub name: &'static str,
    /// Its programs in the tracepoint flavour, and where they go. Of two at one place, the first is attached first, and so
    /// runs first.
    pub tracepoints: &'static [(&'static str, Point)],
    /// What cannot be told without it.
    pub without: &'static str,
}

/// Every hook.
pub const HOOKS: &[Hook] = &[
    Hook {
        name: "tcp_conn_request",
        tracepoints: &[("tp_consume_skb", Point::Btf("consume_skb")), ("tp_consume_skb2", Point::Btf("consume_skb"))],
        without: "what became of each SYN",
    },
    Hook {
        name: "tcp_check_req",
        tracepoints: &[("tp_kfree_skb", Point::Btf("kfree_skb")), ("tp_kfree_skb2", Point::Btf("kfree_skb"))],
        without: "final ACKs dropped, resets, refused and filtered SYNs",
    },
    Hook {
        name: "inet_sk_set_state",
        tracepoints: &[
            ("tp_set_state", Point::Btf("inet_sock_set_state")),
            ("tp_set_state2", Point::Btf("inet_sock_set_state")),
        ],
        without: "connections entering the accept queue, listeners, local clients",
    },
    Hook {
        name: "tcp_child_process",
        tracepoints: &[("tp_data_ready", Point::Btf("sk_data_ready")), ("tp_data_ready2", Point::Btf("sk_data_ready"))],
        without: "what completed late connections; members of SO_REUSEPORT groups",
    },
    Hook {
        name: "inet_csk_accept",
        tracepoints: &[
            ("tp_accept", Point::Classic("syscalls", "sys_exit_accept")),
            ("tp_accept4", Point::Classic("syscalls", "sys_exit_accept4")),
        ],
        without: "accepts",
    },
    Hook {
        name: "reqsk_timer_handler",
        tracepoints: &[
            ("tp_timer_entry", Point::Btf("timer_expire_entry")),
            ("tp_timer_exit", Point::Btf("timer_expire_exit")),
        ],
        without: "half-open requests that expired",
    },
    Hook {
        name: "tcp_rtx_synack",
        tracepoints: &[("tp_rtx_synack", Point::Btf("tcp_retransmit_synack"))],
        without: "repeated SYN-ACKs",
    },
    Hook {
        name: "tcp_v4_connect",
        tracepoints: &[("tp_connect", Point::Classic("syscalls", "sys_exit_connect"))],
        without: "port exhaustion",
    },
];
