//! What is read from a kernel's type information, against other readings of it.

use std::{collections::HashMap, fs, mem::offset_of};

use tracer_abi::abi::{Counter, Kfunc, Offsets, TCP_RULES, places};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Fixture, Host, KERNELS, LINUX_6_18, edit, host_with, host_with_btf};
use crate::kernel::{KernelError, Layout, types::Types};

/// What a C compiler makes of a kernel's types.
fn expected(kernel: &Fixture) -> HashMap<&'static str, u32> {
    let lines = kernel.expected.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').unwrap()).map(|(name, n)| (name, n.parse().unwrap())).collect()
}

fn read(btf: &[u8]) -> Result<Layout, KernelError> {
    let (_root, host) = host_with_btf(btf);
    Layout::read(&host)
}

fn error(btf: &[u8]) -> String {
    read(btf).unwrap_err().to_string()
}

fn fields(offsets: &Offsets) -> Vec<(String, u32)> {
    let names = Offsets::FIELDS.iter().map(|(_, strukt, path)| format!("{strukt}.{path}"));
    names.zip(<[u32]>::ref_from_bytes(offsets.as_bytes()).unwrap().iter().copied()).collect()
}

#[test]
fn fields_lie_where_a_c_compiler_puts_them() {
    for kernel in &KERNELS {
        let expected = expected(kernel);
        for (field, offset) in fields(&read(kernel.btf).unwrap().offsets) {
            assert_eq!(expected.get(field.as_str()), Some(&offset), "{field} of {}", kernel.version);
        }
        let written_down = expected.keys().filter(|name| name.contains('.')).count();
        assert_eq!(written_down, Offsets::FIELDS.len(), "a field that is not read any more is still in the list");
    }
}

#[test]
fn counters_have_the_indices_of_the_kernels_enumeration() {
    for kernel in &KERNELS {
        let (expected, layout) = (expected(kernel), read(kernel.btf).unwrap());
        for counter in Counter::ALL {
            let found = expected.get(counter.enumerator());
            assert_eq!(found, Some(&layout.mib[counter as usize]), "{counter:?} of {}", kernel.version);
        }
    }
}

#[test]
fn drop_reasons_have_the_numbers_of_the_kernels_enumeration() {
    for kernel in &KERNELS {
        let (expected, layout) = (expected(kernel), read(kernel.btf).unwrap());
        // What this kernel does not tell apart matches nothing.
        let number = |name: &str| expected.get(name).copied().unwrap_or(u32::MAX);
        assert_eq!(layout.reasons.no_socket, number("SKB_DROP_REASON_NO_SOCKET"), "{}", kernel.version);
        assert_eq!(layout.reasons.not_specified, number("SKB_DROP_REASON_NOT_SPECIFIED"), "{}", kernel.version);
        assert_eq!(layout.reasons.tcp_rules, TCP_RULES.map(number), "{}", kernel.version);
        for (name, number) in expected.iter().filter(|(name, _)| name.starts_with("SKB_")) {
            let short = name.strip_prefix("SKB_DROP_REASON_").unwrap_or(name);
            assert_eq!(layout.drop_reasons.name(*number), Some(short), "{}", kernel.version);
        }
        assert_eq!(layout.drop_reasons.name(100_000), None);
    }
}

#[test]
fn older_kernels_tell_fewer_drop_reasons_apart() {
    let missing = KERNELS.each_ref().map(|kernel| {
        let reasons = read(kernel.btf).unwrap().reasons;
        let rules = TCP_RULES.iter().zip(reasons.tcp_rules).filter(|(_, n)| *n == u32::MAX);
        let rules: Vec<_> = rules.map(|(name, _)| name.trim_start_matches("SKB_DROP_REASON_TCP_")).collect();
        (kernel.version, reasons.no_socket == u32::MAX, rules)
    });
    let all: Vec<_> = TCP_RULES.iter().map(|name| name.trim_start_matches("SKB_DROP_REASON_TCP_")).collect();
    let of_6_12 = vec!["RFC7323_TW_PAWS", "RFC7323_TSECR", "LISTEN_OVERFLOW"];
    let of_6_1 = vec!["OLD_SEQUENCE", of_6_12[0], of_6_12[1], of_6_12[2], "INVALID_ACK_SEQUENCE"];
    let expected = [
        ("5.10", true, all),
        ("6.1", false, of_6_1),
        ("6.12", false, of_6_12),
        ("6.18", false, Vec::new()),
        ("7.2", false, Vec::new()),
    ];
    assert_eq!(missing, expected);
}

#[test]
fn helpers_are_known_where_the_kernel_has_them() {
    for kernel in &KERNELS {
        let (expected, signatures) = (expected(kernel), read(kernel.btf).unwrap().signatures);
        assert_eq!(signatures.task_regs, expected.contains_key(places::TASK_REGS), "{}", kernel.version);
        assert_eq!(signatures.percpu_lookup, expected.contains_key(places::PERCPU_LOOKUP), "{}", kernel.version);
        assert_eq!(signatures.task_regs, kernel.version != "5.10", "{}: since 5.15", kernel.version);
        assert_eq!(signatures.percpu_lookup, kernel.version != "5.10", "{}: since 5.19", kernel.version);
    }
}

#[test]
fn programs_at_system_calls_run_apart_in_7() {
    for kernel in &KERNELS {
        let apart = read(kernel.btf).unwrap().signatures.calls_apart;
        assert_eq!(apart, kernel.version == "7.2", "{}", kernel.version);
    }
}

#[test]
fn what_is_not_run_is_noted_since_6_1() {
    for kernel in &KERNELS {
        let notes = read(kernel.btf).unwrap().signatures.notes_misses;
        assert_eq!(notes, kernel.version != "5.10", "{}", kernel.version);
    }
}

#[test]
fn preemption_can_be_disabled_where_the_kernel_has_all_that_it_takes() {
    for kernel in &KERNELS {
        let found = read(kernel.btf).unwrap().preemption;
        assert_eq!(found.is_some(), ["6.18", "7.2"].contains(&kernel.version), "{}: since 6.15", kernel.version);
    }
    let numbers = Kfunc::PREEMPTION.map(|it| edit::record(LINUX_6_18, edit::FUNC, it.name()).id);
    assert_eq!(read(LINUX_6_18).unwrap().preemption, Some(numbers));
    for kfunc in Kfunc::PREEMPTION {
        let without = edit::renamed(LINUX_6_18, kfunc.name(), &kfunc.name().to_uppercase());
        assert_eq!(read(&without).unwrap().preemption, None, "{kfunc:?}");
    }
    let without = edit::renamed(LINUX_6_18, "might_sleep", "might_slip_");
    assert_eq!(read(&without).unwrap().preemption, None, "6.12 has the first two functions, but forbids other calls");
}

#[test]
fn an_address_can_be_cast_where_the_kernel_has_the_function() {
    for kernel in &KERNELS {
        let found = read(kernel.btf).unwrap();
        assert_eq!(
            found.cast.is_some(),
            ["6.12", "6.18", "7.2"].contains(&kernel.version),
            "{}: since 6.2",
            kernel.version
        );
        assert!(found.two_words.is_some(), "{}", kernel.version);
    }
    let without = edit::renamed(LINUX_6_18, "tv_nsec", "tv_xsec");
    assert_eq!(read(&without).unwrap().two_words, None);
}

/// What kernels changed, from their sources: the columns are those of [`KERNELS`], and no number is no such place.
#[test]
fn places_have_the_arguments_of_the_kernels_sources() {
    let all = KERNELS.each_ref().map(|kernel| read(kernel.btf).unwrap().signatures);
    for (tracepoint, expected) in [
        ("consume_skb", [Some(1), Some(1), Some(2), Some(2), Some(2)]),
        ("kfree_skb", [Some(2), Some(3), Some(4), Some(4), Some(4)]),
        ("sk_data_ready", [None, None, Some(1), Some(1), Some(1)]),
        ("inet_sock_set_state", [Some(3); 5]),
        ("tcp_retransmit_synack", [Some(2); 5]),
        ("timer_expire_entry", [Some(2); 5]),
        ("timer_expire_exit", [Some(1); 5]),
    ] {
        assert_eq!(all.each_ref().map(|it| it.tracepoint(tracepoint)), expected, "{tracepoint}");
    }
    for function in places::FUNCTIONS {
        let expected = match function {
            "tcp_conn_request" => [4; 5],
            "tcp_check_req" => [5, 5, 5, 6, 6],
            "tcp_child_process" | "tcp_v4_connect" | "tcp_v6_connect" => [3; 5],
            "cookie_v4_check" | "cookie_v6_check" | "security_sock_graft" | "tcp_rtx_synack" => [2; 5],
            "reqsk_timer_handler" => [1; 5],
            other => panic!("how many arguments {other}() has is to be read in the kernels' sources"),
        };
        assert_eq!(all.each_ref().map(|it| it.function(function)), expected.map(Some), "{function}");
    }
    assert_eq!(all[0].tracepoint("sched_switch"), None, "it is none of those that are looked up");
}

#[test]
fn a_mapped_file_and_its_bytes_give_the_same_layout() {
    for kernel in &KERNELS {
        let from_bytes = Layout::of(&Types::parse(kernel.btf).unwrap()).unwrap();
        assert_eq!(read(kernel.btf).unwrap(), from_bytes, "{}", kernel.version);
    }
}

#[test]
fn the_running_kernels_layout_agrees_with_what_user_space_knows_of_it() {
    let layout = Layout::read(&Host::at("/")).unwrap();
    let bytes = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    assert_eq!(layout, Layout::of(&Types::parse(&bytes).unwrap()).unwrap(), "mapped against read");
    let at = layout.offsets;
    // `struct pt_regs` is what ptrace shows (arch/x86/include/uapi/asm/ptrace.h).
    assert_eq!(at.regs_arg0 as usize, offset_of!(libc::user_regs_struct, rdi));
    assert_eq!(at.regs_arg1 as usize, offset_of!(libc::user_regs_struct, rsi));
    assert_eq!(at.regs_nr as usize, offset_of!(libc::user_regs_struct, orig_rax));
    // The pairs that the kernel's hash tables compare as one word (include/net/inet_hashtables.h).
    assert_eq!(at.sk_rcv_saddr, at.sk_daddr + 4);
    assert_eq!(at.sk_num, at.sk_dport + 2);
    let mut indices = layout.mib.to_vec();
    indices.sort_unstable();
    indices.dedup();
    assert_eq!(indices.len(), Counter::ALL.len(), "no two counters have one index");
}

#[test]
fn a_field_that_was_renamed_is_named() {
    let edited = edit::renamed(LINUX_6_18, "sk_ack_backlog", "sk_ack_backlox");
    assert_eq!(
        error(&edited),
        "this kernel's struct sock has no field sk_ack_backlog, which tracer reads; please report it with `uname -r`"
    );
    // The offset of what is within depends on the name of what is around it.
    let edited = edit::renamed(LINUX_6_18, "rcvq_space", "rcvq_spice");
    let found = read(&edited);
    assert!(matches!(found, Err(KernelError::NoField { strukt: "tcp_sock", field: "rcvq_space.time" })), "{found:?}");
}

#[test]
fn a_structure_that_is_not_there_is_named() {
    let found = read(&edit::renamed(LINUX_6_18, "bpf_array", "bpf_erray"));
    assert!(matches!(found, Err(KernelError::NoField { strukt: "bpf_array", field: "pptrs" })), "{found:?}");
}

#[test]
fn a_field_behind_a_pointer_is_not_taken_for_one_within() {
    // As if `struct net` held a pointer to its counters' structure.
    let mut edited = LINUX_6_18.to_vec();
    let pointer = edit::word(&edited, edit::member(&edited, "socket", "sk") + 4);
    let mib = edit::member(&edited, "net", "mib");
    edit::set_word(&mut edited, mib + 4, pointer);
    let found = read(&edited);
    assert!(matches!(found, Err(KernelError::NoField { strukt: "net", field: "mib.net_statistics" })), "{found:?}");
}

#[test]
fn a_counter_that_was_renamed_is_named() {
    for counter in Counter::ALL {
        let name = counter.enumerator();
        let edited = edit::renamed(LINUX_6_18, name, &name.to_lowercase());
        let found = read(&edited);
        assert!(matches!(found, Err(KernelError::NoEnumerator(missing)) if missing == name), "{name}: {found:?}");
    }
}

#[test]
fn counters_are_found_in_an_enumeration_that_has_a_name() {
    // Named as a structure is; kernels keep the two kinds of names apart.
    let mut edited = LINUX_6_18.to_vec();
    let name = edit::word(&edited, edit::record(&edited, edit::STRUCT, "linux_mib").at);
    for record in edit::records(LINUX_6_18) {
        if record.kind == edit::ENUM && edit::word(LINUX_6_18, record.at) == 0 {
            edit::set_word(&mut edited, record.at, name);
        }
    }
    assert_eq!(read(&edited).unwrap().mib, read(LINUX_6_18).unwrap().mib);
}

#[test]
fn a_drop_reason_that_this_kernel_does_not_tell_apart_matches_no_number() {
    let whole = read(LINUX_6_18).unwrap();
    let without = read(&edit::renamed(LINUX_6_18, "SKB_DROP_REASON_NO_SOCKET", "SKB_DROP_REASON_NO_PACKET")).unwrap();
    assert_eq!(without.reasons.no_socket, u32::MAX);
    assert_eq!(without.reasons.tcp_rules, whole.reasons.tcp_rules);
    assert_eq!(without.drop_reasons.name(whole.reasons.no_socket), Some("NO_PACKET"));
}

#[test]
fn a_place_that_is_not_there_has_no_arguments() {
    let gone = read(&edit::renamed(LINUX_6_18, "btf_trace_kfree_skb", "btf_truce_kfree_skb")).unwrap().signatures;
    assert_eq!((gone.tracepoint("kfree_skb"), gone.tracepoint("consume_skb")), (None, Some(2)));
    let gone = read(&edit::renamed(LINUX_6_18, "tcp_check_req", "tcp_check_rex")).unwrap().signatures;
    assert_eq!((gone.function("tcp_check_req"), gone.function("tcp_conn_request")), (None, Some(4)));
}

#[test]
fn a_helper_that_is_not_there_is_known_to_be_missing() {
    let without = |helper: &str| read(&edit::renamed(LINUX_6_18, helper, "BPF_FUNC_other")).unwrap().signatures;
    let none = without(places::TASK_REGS);
    assert!(!none.task_regs && none.percpu_lookup);
    let none = without(places::PERCPU_LOOKUP);
    assert!(none.task_regs && !none.percpu_lookup);
}

#[test]
fn a_host_without_type_information_is_told_what_the_kernel_needs() {
    let (_root, host) = host_with("proc/version", b"Linux\n");
    let error = Layout::read(&host).unwrap_err();
    assert!(matches!(error, KernelError::NoBtf { .. }), "{error:?}");
    let error = error.to_string();
    assert!(error.contains("sys/kernel/btf/vmlinux: No such file"), "{error}");
    assert!(error.contains("CONFIG_DEBUG_INFO_BTF=y"), "{error}");
}
