//! What is read from a kernel's type information, against other readings of it.

use std::{collections::HashMap, fs, mem::offset_of};

use tracer_abi::abi::{Counter, Offsets, TCP_RULES};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Host, LINUX_6_18, edit, host_with, host_with_btf};
use crate::kernel::{KernelError, Layout, types::Types};

/// What a C compiler makes of the same kernel's types: fixtures/expect.sh.
const LINUX_6_18_EXPECTED: &str = include_str!("../fixtures/linux-6.18.offsets");

fn expected() -> HashMap<&'static str, u32> {
    let lines = LINUX_6_18_EXPECTED.lines().filter(|line| !line.starts_with('#'));
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
fn fields_of_linux_6_18_lie_where_a_c_compiler_puts_them() {
    let expected = expected();
    for (field, offset) in fields(&read(LINUX_6_18).unwrap().offsets) {
        assert_eq!(expected.get(field.as_str()), Some(&offset), "{field}");
    }
    let written_down = expected.keys().filter(|name| name.contains('.')).count();
    assert_eq!(written_down, Offsets::FIELDS.len(), "a field that is not read any more is still in the list");
}

#[test]
fn counters_of_linux_6_18_have_the_indices_of_its_enumeration() {
    let (expected, layout) = (expected(), read(LINUX_6_18).unwrap());
    for counter in Counter::ALL {
        assert_eq!(expected.get(counter.enumerator()), Some(&layout.mib[counter as usize]), "{counter:?}");
    }
}

#[test]
fn drop_reasons_of_linux_6_18_have_the_numbers_of_its_enumeration() {
    let (expected, layout) = (expected(), read(LINUX_6_18).unwrap());
    let number = |name: &str| expected[name];
    assert_eq!(layout.reasons.no_socket, number("SKB_DROP_REASON_NO_SOCKET"));
    assert_eq!(layout.reasons.not_specified, number("SKB_DROP_REASON_NOT_SPECIFIED"));
    assert_eq!(layout.reasons.tcp_rules, TCP_RULES.map(number));
    let all: Vec<_> = expected.iter().filter(|(name, _)| name.starts_with("SKB_")).collect();
    assert!(all.len() > 100);
    for (name, number) in all {
        let short = name.strip_prefix("SKB_DROP_REASON_").unwrap_or(name);
        assert_eq!(layout.drop_reasons.name(*number), Some(short));
    }
    assert_eq!(layout.drop_reasons.name(100_000), None);
}

#[test]
fn a_mapped_file_and_its_bytes_give_the_same_layout() {
    let from_bytes = Layout::of(&Types::parse(LINUX_6_18).unwrap()).unwrap();
    assert_eq!(read(LINUX_6_18).unwrap(), from_bytes);
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
fn a_tracepoint_that_is_not_there_is_named_with_the_kernel_that_brought_it() {
    for (hook, since) in [("sk_data_ready", "6.3"), ("kfree_skb", "6.11"), ("timer_expire_entry", "2.6.32")] {
        let typedef = format!("btf_trace_{hook}");
        let edited = edit::renamed(LINUX_6_18, &typedef, &typedef.replace("btf_trace", "btf_truce"));
        assert_eq!(
            error(&edited),
            format!("hook {hook}: this kernel has no such tracepoint (it is there since {since})")
        );
    }
}

#[test]
fn a_tracepoint_with_fewer_arguments_is_told_with_those_that_are_needed() {
    // The prototype of tcp_retransmit_synack, whose two arguments are as many as kfree_skb had before 5.17.
    let mut edited = LINUX_6_18.to_vec();
    let [from, to] = ["btf_trace_tcp_retransmit_synack", "btf_trace_kfree_skb"]
        .map(|name| edit::record(LINUX_6_18, edit::TYPEDEF, name).at + 8);
    edit::set_word(&mut edited, to, edit::word(LINUX_6_18, from));
    assert_eq!(
        error(&edited),
        "hook kfree_skb: the tracepoint has 2 arguments here; tracer needs 4 (skb, location, reason, rx_sk), as kernels \
         since 6.11 have them"
    );
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
