//! The hooks: which programs go where in each flavour, and what is lost without them.

/// How a hook is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// Where one program is attached, with the number of arguments that it is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A typed raw tracepoint (`tp_btf`) with at least so many arguments.
    Btf(&'static str, usize),
    /// A tracepoint of tracefs: category and name.
    Classic(&'static str, &'static str),
    /// The entry of a function with exactly so many arguments.
    Fentry(&'static str, usize),
    /// The end of a function with exactly so many arguments: the result follows the last.
    Fexit(&'static str, usize),
    /// The entry of a function with at least so many arguments.
    Kprobe(&'static str, usize),
    /// The end of a function.
    Kretprobe(&'static str),
}

impl Point {
    /// The place, for people.
    #[must_use]
    pub fn place(self) -> String {
        match self {
            Point::Btf(name, _) => format!("tracepoint {name}"),
            Point::Classic(category, name) => format!("tracepoint {category}:{name}"),
            Point::Fentry(name, _) => format!("the entry of {name}()"),
            Point::Fexit(name, _) => format!("the end of {name}()"),
            Point::Kprobe(name, _) => format!("a probe at the entry of {name}()"),
            Point::Kretprobe(name) => format!("a probe at the end of {name}()"),
        }
    }
}

/// Programs that are needed only on kernels with preempted tracepoints: elsewhere, what they are for is done by the first of their pair,
/// or by `tp_set_state`.
const FOR_PREEMPTED: [&str; 7] =
    ["tp_set_state3", "tp_own_state", "tp_own_state2", "tp_own_state3", "tp_accept_b", "tp_accept4b", "tp_connect_b"];

/// Programs that are needed only where a program can be missed, of hooks that kernels without that have too.
const FOR_MISSED: [&str; 1] = ["tp_set_state2"];

/// How a kernel runs programs at tracepoints.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tracepoints {
    /// A process can be preempted in one (7.0).
    pub(super) preempted: bool,
    /// A program that is running on a CPU is not run for what interrupts it there (6.1).
    pub(super) missed: bool,
}

impl Tracepoints {
    /// Whether a program is needed on such a kernel.
    pub(super) fn need(self, program: &str) -> bool {
        (self.preempted || !FOR_PREEMPTED.contains(&program)) && (self.missed || !FOR_MISSED.contains(&program))
    }
}

/// One way to attach a hook.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Its flavour.
    pub flavour: Flavour,
    /// Its programs and where they go, in the order in which they are attached. Of two at one tracepoint, what is attached first runs
    /// first; of two at one function's end, what is attached last.
    pub programs: &'static [(&'static str, Point)],
}

/// A place in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Its name: the function that it stands for.
    pub name: &'static str,
    /// How it can be attached, the best first; several of one flavour where kernels differ.
    pub ways: &'static [Way],
    /// What cannot be told without it.
    pub without: &'static str,
}

impl Hook {
    /// Whether it can be attached in this flavour on some kernel.
    #[must_use]
    pub fn has(&self, flavour: Flavour) -> bool {
        self.ways.iter().any(|way| way.flavour == flavour)
    }

    /// What is not seen, or not told as it was, when it is attached in this flavour.
    #[must_use]
    pub fn limit(&self, flavour: Flavour) -> Option<&'static str> {
        match (self.name, flavour) {
            ("tcp_conn_request", Flavour::Tracepoint) => Some(
                "a queued SYN of a SO_REUSEPORT group is counted at the group's first member until its connection is \
                 established; sums are exact",
            ),
            ("inet_csk_accept", Flavour::Tracepoint) => Some(
                "accepts through io_uring or within the kernel are not seen; the report says how many connections left an \
                     accept queue without one, and is not exact",
            ),
            ("tcp_v4_connect", Flavour::Tracepoint) => {
                Some("errors of connects through io_uring are not seen: their port exhaustion is not counted")
            }
            _ => None,
        }
    }
}

use Flavour::{Fentry, Kprobe, Tracepoint};

/// Every hook.
///
/// Two have tracepoints only, in every flavour: states change in dozens of functions, and a tracepoint tells of all of them; and
/// packets are dropped in hundreds.
pub const HOOKS: &[Hook] = &[
    Hook {
        name: "tcp_conn_request",
        ways: &[
            Way {
                flavour: Fentry,
                programs: &[
                    ("fe_conn_req", Point::Fentry("tcp_conn_request", 4)),
                    ("fx_conn_req", Point::Fexit("tcp_conn_request", 4)),
                ],
            },
            Way {
                flavour: Kprobe,
                programs: &[
                    ("kr_conn_req", Point::Kretprobe("tcp_conn_request")),
                    ("kp_conn_req", Point::Kprobe("tcp_conn_request", 4)),
                ],
            },
            Way {
                flavour: Tracepoint,
                programs: &[
                    ("tp_consume_skb", Point::Btf("consume_skb", 2)),
                    ("tp_consume_skb2", Point::Btf("consume_skb", 2)),
                ],
            },
        ],
        without: "what became of each SYN",
    },
    Hook {
        name: "tcp_check_req",
        ways: &[
            Way {
                flavour: Fentry,
                programs: &[
                    ("fe_check_req", Point::Fentry("tcp_check_req", 5)),
                    ("fx_check_req5", Point::Fexit("tcp_check_req", 5)),
                    ("fe_cookie_v4", Point::Fentry("cookie_v4_check", 2)),
                    ("fx_cookie_v4", Point::Fexit("cookie_v4_check", 2)),
                    ("fe_cookie_v6", Point::Fentry("cookie_v6_check", 2)),
                    ("fx_cookie_v6", Point::Fexit("cookie_v6_check", 2)),
                ],
            },
            Way {
                flavour: Fentry,
                programs: &[
                    ("fe_check_req", Point::Fentry("tcp_check_req", 6)),
                    ("fx_check_req6", Point::Fexit("tcp_check_req", 6)),
                    ("fe_cookie_v4", Point::Fentry("cookie_v4_check", 2)),
                    ("fx_cookie_v4", Point::Fexit("cookie_v4_check", 2)),
                    ("fe_cookie_v6", Point::Fentry("cookie_v6_check", 2)),
                    ("fx_cookie_v6", Point::Fexit("cookie_v6_check", 2)),
                ],
            },
            Way {
                flavour: Kprobe,
                programs: &[
                    ("kr_check_req", Point::Kretprobe("tcp_check_req")),
                    ("kp_check_req", Point::Kprobe("tcp_check_req", 2)),
                    ("kr_cookie", Point::Kretprobe("cookie_v4_check")),
                    ("kp_cookie", Point::Kprobe("cookie_v4_check", 2)),
                    ("kr_cookie", Point::Kretprobe("cookie_v6_check")),
                    ("kp_cookie", Point::Kprobe("cookie_v6_check", 2)),
                ],
            },
            Way {
                flavour: Tracepoint,
                programs: &[
                    ("tp_kfree_skb", Point::Btf("kfree_skb", 4)),
                    ("tp_kfree_skb2", Point::Btf("kfree_skb", 4)),
                ],
            },
        ],
        without: "final ACKs dropped, resets, repeated SYNs",
    },
    Hook {
        name: "tcp_v4_rcv",
        ways: &[
            Way {
                flavour: Tracepoint,
                programs: &[("tp_unheard", Point::Btf("kfree_skb", 4)), ("tp_unheard_b", Point::Btf("kfree_skb", 4))],
            },
            Way { flavour: Tracepoint, programs: &[("tp_unheard3", Point::Btf("kfree_skb", 3))] },
            Way { flavour: Tracepoint, programs: &[("tp_unheard2", Point::Btf("kfree_skb", 2))] },
        ],
        without: "SYNs that were refused or filtered before a listener saw them",
    },
    Hook {
        name: "inet_sk_set_state",
        ways: &[Way {
            flavour: Tracepoint,
            programs: &[
                ("tp_set_state", Point::Btf("inet_sock_set_state", 3)),
                ("tp_set_state2", Point::Btf("inet_sock_set_state", 3)),
                ("tp_set_state3", Point::Btf("inet_sock_set_state", 3)),
                ("tp_own_state", Point::Btf("inet_sock_set_state", 3)),
                ("tp_own_state2", Point::Btf("inet_sock_set_state", 3)),
                ("tp_own_state3", Point::Btf("inet_sock_set_state", 3)),
            ],
        }],
        without: "connections entering the accept queue, listeners, local clients",
    },
    Hook {
        name: "do_exit",
        ways: &[Way { flavour: Tracepoint, programs: &[("tp_process_exit", Point::Btf("sched_process_exit", 1))] }],
        without: "marks where client processes end",
    },
    Hook {
        name: "tcp_child_process",
        ways: &[
            Way {
                flavour: Fentry,
                programs: &[
                    ("fe_child", Point::Fentry("tcp_child_process", 3)),
                    ("fx_child", Point::Fexit("tcp_child_process", 3)),
                ],
            },
            Way {
                flavour: Kprobe,
                programs: &[
                    ("kr_child", Point::Kretprobe("tcp_child_process")),
                    ("kp_child", Point::Kprobe("tcp_child_process", 2)),
                ],
            },
            Way {
                flavour: Tracepoint,
                programs: &[
                    ("tp_data_ready", Point::Btf("sk_data_ready", 1)),
                    ("tp_data_ready2", Point::Btf("sk_data_ready", 1)),
                ],
            },
        ],
        without: "what completed late connections; members of SO_REUSEPORT groups",
    },
    Hook {
        name: "inet_csk_accept",
        ways: &[
            Way { flavour: Fentry, programs: &[("fe_graft", Point::Fentry("security_sock_graft", 2))] },
            Way { flavour: Kprobe, programs: &[("kp_graft", Point::Kprobe("security_sock_graft", 2))] },
            Way {
                flavour: Tracepoint,
                programs: &[
                    ("tp_accept", Point::Classic("syscalls", "sys_exit_accept")),
                    ("tp_accept_b", Point::Classic("syscalls", "sys_exit_accept")),
                    ("tp_accept4", Point::Classic("syscalls", "sys_exit_accept4")),
                    ("tp_accept4b", Point::Classic("syscalls", "sys_exit_accept4")),
                ],
            },
        ],
        without: "accepts",
    },
    Hook {
        name: "reqsk_timer_handler",
        ways: &[
            Way { flavour: Fentry, programs: &[("fx_timer", Point::Fexit("reqsk_timer_handler", 1))] },
            Way {
                flavour: Kprobe,
                programs: &[
                    ("kr_timer", Point::Kretprobe("reqsk_timer_handler")),
                    ("kp_timer", Point::Kprobe("reqsk_timer_handler", 1)),
                ],
            },
            Way {
                flavour: Tracepoint,
                programs: &[
                    ("tp_timer_entry", Point::Btf("timer_expire_entry", 1)),
                    ("tp_timer_exit", Point::Btf("timer_expire_exit", 1)),
                ],
            },
        ],
        without: "half-open requests that expired",
    },
    Hook {
        name: "tcp_rtx_synack",
        ways: &[
            Way { flavour: Fentry, programs: &[("fx_rtx_synack", Point::Fexit("tcp_rtx_synack", 2))] },
            Way {
                flavour: Kprobe,
                programs: &[
                    ("kr_rtx_synack", Point::Kretprobe("tcp_rtx_synack")),
                    ("kp_rtx_synack", Point::Kprobe("tcp_rtx_synack", 2)),
                ],
            },
            Way { flavour: Tracepoint, programs: &[("tp_rtx_synack", Point::Btf("tcp_retransmit_synack", 2))] },
        ],
        without: "repeated SYN-ACKs",
    },
    Hook {
        name: "tcp_v4_connect",
        ways: &[
            Way {
                flavour: Fentry,
                programs: &[
                    ("fx_connect_v4", Point::Fexit("tcp_v4_connect", 3)),
                    ("fx_connect_v4b", Point::Fexit("tcp_v4_connect", 3)),
                    ("fx_connect_v6", Point::Fexit("tcp_v6_connect", 3)),
                    ("fx_connect_v6b", Point::Fexit("tcp_v6_connect", 3)),
                ],
            },
            // Nothing need be attached: `tp_set_state` sees what connect() takes back, and a probe at its end would see no more for certain.
            Way { flavour: Kprobe, programs: &[] },
            Way {
                flavour: Tracepoint,
                programs: &[
                    ("tp_connect", Point::Classic("syscalls", "sys_exit_connect")),
                    ("tp_connect_b", Point::Classic("syscalls", "sys_exit_connect")),
                ],
            },
        ],
        without: "port exhaustion",
    },
];
