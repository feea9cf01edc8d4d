//! Type information that is none: every answer is an error or a layout, and comes soon.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{LINUX_6_18, edit, host_with_btf};
use crate::kernel::{KernelError, Layout, types::Types};

/// Reads a file, mapped, and its bytes. On damaged names the two can differ: only mapped, a name may begin within another.
fn read(btf: &[u8]) -> Result<Layout, KernelError> {
    let _ = Types::parse(btf).map(|types| Layout::of(&types));
    let (_root, host) = host_with_btf(btf);
    Layout::read(&host)
}

#[track_caller]
fn reason(btf: &[u8]) -> String {
    match read(btf) {
        Err(KernelError::BadBtf { reason, path }) => {
            assert!(path.ends_with("sys/kernel/btf/vmlinux"));
            reason
        }
        other => panic!("expected damaged type information, found {other:?}"),
    }
}

#[test]
fn an_empty_file_is_damaged_type_information() {
    assert_eq!(reason(b""), "it has 0 bytes, fewer than its header");
}

#[test]
fn a_file_of_something_else_is_damaged_type_information() {
    let other = "it does not begin as BTF of this machine's byte order does";
    assert_eq!(reason(b"\x7fELF\x02\x01\x01 and what follows"), other);
    assert_eq!(reason(&[0xff; 4096]), other);
    let mut swapped = LINUX_6_18.to_vec();
    swapped.swap(0, 1);
    assert_eq!(reason(&swapped), other);
}

#[test]
fn a_version_or_flags_that_nobody_knows_are_damaged_type_information() {
    for at in [2, 3] {
        let mut edited = LINUX_6_18.to_vec();
        edited[at] = 9;
        assert!(reason(&edited).contains('9'), "{}", reason(&edited));
    }
}

#[test]
fn a_file_that_is_cut_short_is_damaged_type_information() {
    for length in [1, 2, 23, 24, 25, 36, LINUX_6_18.len() / 2, LINUX_6_18.len() - 1] {
        assert!(reason(&LINUX_6_18[..length]).contains(&format!("it has {length} bytes")), "{length}");
    }
}

#[test]
fn a_header_whose_sums_exceed_32_bits_is_damaged_type_information() {
    for at in [4, 8, 12, 16, 20] {
        let mut edited = LINUX_6_18.to_vec();
        edit::set_word(&mut edited, at, u32::MAX);
        assert!(reason(&edited).contains("too few"), "{at}");
    }
}

#[test]
fn a_type_of_unknown_kind_is_damaged_type_information() {
    let mut edited = LINUX_6_18.to_vec();
    let at = edit::record(&edited, edit::STRUCT, "sock").at + 4;
    edit::set_word(&mut edited, at, 31 << 24);
    assert_eq!(reason(&edited), "Unsupported BTF type 31");
}

#[test]
fn a_structure_within_itself_ends_the_search() {
    let mut edited = LINUX_6_18.to_vec();
    let strukt = edit::record(&edited, edit::STRUCT, "sock_common");
    for member in (0..strukt.items).map(|i| strukt.at + 12 + 12 * i) {
        if edit::name(LINUX_6_18, edit::word(LINUX_6_18, member)).is_empty() {
            edit::set_word(&mut edited, member + 4, strukt.id);
        }
    }
    let found = read(&edited);
    assert!(matches!(found, Err(KernelError::NoField { strukt: "sock_common", .. })), "{found:?}");
}

#[test]
fn a_typedef_of_itself_ends_the_search() {
    let mut edited = LINUX_6_18.to_vec();
    let typedef = edit::record(&edited, edit::TYPEDEF, "btf_trace_sk_data_ready");
    edit::set_word(&mut edited, typedef.at + 8, typedef.id);
    assert_eq!(read(&edited).unwrap().signatures.tracepoint("sk_data_ready"), None);

    let around = edit::member(&edited, "net", "ns");
    edit::set_word(&mut edited, around + 4, typedef.id);
    let found = read(&edited);
    assert!(matches!(found, Err(KernelError::NoField { strukt: "net", field: "ns.inum" })), "{found:?}");
}

#[test]
fn a_function_that_is_its_own_prototype_is_no_function() {
    let mut edited = LINUX_6_18.to_vec();
    let function = edit::record(&edited, edit::FUNC, "tcp_check_req");
    edit::set_word(&mut edited, function.at + 8, function.id);
    assert_eq!(read(&edited).unwrap().signatures.function("tcp_check_req"), None);
}

#[test]
fn an_offset_beyond_32_bits_is_no_field() {
    // The field within lies behind the structure's start, so that the sum does not fit.
    let mut edited = LINUX_6_18.to_vec();
    let around = edit::member(&edited, "net", "ns");
    edit::set_word(&mut edited, around + 8, u32::MAX);
    let found = read(&edited);
    assert!(matches!(found, Err(KernelError::NoField { strukt: "net", field: "ns.inum" })), "{found:?}");
}

/// A header that fits, around any words as types and any bytes as names.
fn well_framed() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        4 => 0u32..32,
        // Kind and count.
        4 => (0u32..20, 0u32..4, 0u32..2).prop_map(|(kind, vlen, flag)| flag << 31 | kind << 24 | vlen),
        1 => any::<u32>(),
    ];
    (vec(word, 0..64), vec(prop_oneof![3 => Just(0u8), 2 => b'a'..b'e', 1 => any::<u8>()], 0..64)).prop_map(
        |(types, names)| {
            let types: Vec<u8> = types.iter().flat_map(|word| word.to_le_bytes()).collect();
            let mut btf = vec![0x9f, 0xeb, 1, 0];
            for word in [24, 0, types.len(), types.len(), names.len()] {
                btf.extend_from_slice(&(word as u32).to_le_bytes());
            }
            btf.extend(types);
            btf.extend(names);
            btf
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_reading_panic(bytes in vec(any::<u8>(), 0..256)) {
        let _ = read(&bytes);
    }

    #[test]
    fn no_types_and_names_make_reading_panic(btf in well_framed()) {
        let _ = read(&btf);
    }
}

proptest! {
    // Each case reads a whole kernel's types twice.
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_change_to_a_kernels_types_makes_reading_panic(
        changes in vec((0..LINUX_6_18.len() / 4, prop_oneof![any::<u32>(), 0u32..1000, Just(u32::MAX)]), 1..24),
    ) {
        let mut edited = LINUX_6_18.to_vec();
        for (at, value) in changes {
            // The header is changed in other tests; here what is behind it is to be reached.
            edit::set_word(&mut edited, 24.max(4 * at), value);
        }
        let _ = read(&edited);
    }

    #[test]
    fn no_change_to_where_types_lead_makes_reading_panic(
        changes in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..64),
    ) {
        let records = edit::records(LINUX_6_18);
        let mut edited = LINUX_6_18.to_vec();
        for (from, to) in changes {
            let (from, to) = (from.get(&records), to.get(&records));
            // A structure's first member, or what a name or pointer stands for.
            let at = if from.kind == edit::STRUCT && from.items > 0 { from.at + 16 } else { from.at + 8 };
            edit::set_word(&mut edited, at, to.id);
        }
        let _ = read(&edited);
    }

    #[test]
    fn every_file_that_is_cut_short_is_damaged_type_information(length in 0..LINUX_6_18.len()) {
        let reason = reason(&LINUX_6_18[..length]);
        let beginning = format!("it has {length} bytes, ");
        prop_assert!(reason.starts_with(&beginning), "{reason}");
    }
}
