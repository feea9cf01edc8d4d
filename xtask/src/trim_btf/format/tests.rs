use super::*;

/// One type of every kind, each with all that its kind can have. Names are texts here.
fn every_kind() -> Vec<(&'static str, Type, Vec<&'static str>)> {
    let t = |kind, kind_flag, vlen, head, words: &[u32]| Type {
        kind,
        kind_flag,
        vlen,
        name: 0,
        head,
        words: words.to_vec(),
    };
    vec![
        ("int", t(Kind::Int, false, 0, 4, &[1 << 24 | 32]), vec![]),
        ("", t(Kind::Ptr, false, 0, 1, &[]), vec![]),
        ("", t(Kind::Array, false, 0, 0, &[2, 1, 16]), vec![]),
        // Members' offsets with the size of a bit-field in the upper 8 bits: 3 bits from bit 5.
        ("sock", t(Kind::Struct, true, 2, 8, &[0, 1, 3 << 24 | 5, 0, 1, 32]), vec!["state", "mark"]),
        ("", t(Kind::Union, false, 2, 8, &[0, 1, 0, 0, 2, 0]), vec!["state", ""]),
        ("color", t(Kind::Enum, true, 2, 4, &[0, 0, 0, u32::MAX]), vec!["RED", "NONE"]),
        ("later", t(Kind::Fwd, true, 0, 0, &[]), vec![]),
        ("u32", t(Kind::Typedef, false, 0, 1, &[]), vec![]),
        ("", t(Kind::Volatile, false, 0, 1, &[]), vec![]),
        ("", t(Kind::Const, false, 0, 0, &[]), vec![]),
        ("", t(Kind::Restrict, false, 0, 2, &[]), vec![]),
        // A function's linkage stands where others have their number of items.
        ("main", t(Kind::Func, false, 1, 13, &[]), vec![]),
        ("", t(Kind::FuncProto, false, 2, 1, &[0, 1, 0, 0]), vec!["count", ""]),
        ("jiffies", t(Kind::Var, false, 0, 1, &[1]), vec![]),
        (".data", t(Kind::Datasec, false, 1, 64, &[14, 8, 4]), vec![]),
        ("double", t(Kind::Float, false, 0, 8, &[]), vec![]),
        ("bpf_kfunc", t(Kind::DeclTag, false, 0, 12, &[u32::MAX]), vec![]),
        ("user", t(Kind::TypeTag, false, 0, 1, &[]), vec![]),
        ("big", t(Kind::Enum64, false, 1, 8, &[0, 1, 2]), vec!["HUGE"]),
    ]
}

fn written(types: Vec<(&'static str, Type, Vec<&'static str>)>) -> Vec<u8> {
    let mut writer = Writer::new();
    for (name, mut t, items) in types {
        t.name = writer.name(name);
        let stride = t.kind.item().len();
        for (i, item) in items.into_iter().enumerate() {
            t.words[i * stride] = writer.name(item);
        }
        writer.push(&t);
    }
    writer.finish()
}

fn with_word(bytes: &[u8], at: usize, value: u32) -> Vec<u8> {
    let mut edited = bytes.to_vec();
    edited[at..at + 4].copy_from_slice(&value.to_le_bytes());
    edited
}

fn error(bytes: &[u8]) -> String {
    format!("{:#}", Btf::read(bytes).err().expect("the bytes are no BTF"))
}

#[test]
fn a_type_of_every_kind_is_read_as_it_was_written() {
    let bytes = written(every_kind());
    let btf = Btf::read(&bytes).unwrap();
    let kinds: Vec<_> = btf.types().map(|(_, t)| t.kind).collect();
    assert_eq!(kinds, Kind::ALL, "the list has every kind in the order of their numbers");
    for ((id, read), (name, written, items)) in btf.types().zip(every_kind()) {
        assert_eq!(btf.name(read.name), name, "type {id}");
        assert_eq!(
            (read.kind_flag, read.vlen, read.head),
            (written.kind_flag, written.vlen, written.head),
            "type {id}"
        );
        assert_eq!(read.words.len(), written.words.len(), "type {id}");
        if !items.is_empty() {
            assert_eq!(read.items().map(|item| btf.name(item[0])).collect::<Vec<_>>(), items);
            for (item, original) in read.items().zip(written.items()) {
                assert_eq!(item[1..], original[1..], "type {id}");
            }
        } else {
            assert_eq!(read.words, written.words, "type {id}");
        }
    }
}

#[test]
fn what_was_read_is_written_as_it_was() {
    let bytes = written(every_kind());
    let btf = Btf::read(&bytes).unwrap();
    let mut writer = Writer::new();
    for (_, t) in btf.types() {
        let mut t = t.clone();
        t.translate(|name| writer.name(btf.name(name)), |id| id);
        writer.push(&t);
    }
    assert_eq!(writer.finish(), bytes);
}

#[test]
fn numbers_of_types_are_translated_in_every_kind_and_nothing_else_is() {
    for (kind, expected) in [
        (Kind::Int, vec![]),
        (Kind::Ptr, vec![1]),
        (Kind::Array, vec![2, 1]),
        (Kind::Struct, vec![1, 1]),
        (Kind::Union, vec![1, 2]),
        (Kind::Enum, vec![]),
        (Kind::Fwd, vec![]),
        (Kind::Func, vec![13]),
        (Kind::FuncProto, vec![1, 1, 0]),
        (Kind::Var, vec![1]),
        (Kind::Datasec, vec![14]),
        (Kind::Float, vec![]),
        (Kind::DeclTag, vec![12]),
        (Kind::TypeTag, vec![1]),
        (Kind::Enum64, vec![]),
    ] {
        let (_, original, _) = every_kind().into_iter().find(|(_, t, _)| t.kind == kind).unwrap();
        let mut met = Vec::new();
        let mut t = original.clone();
        t.translate(
            |name| name,
            |id| {
                met.push(id);
                id
            },
        );
        assert_eq!(met, expected, "{kind:?}");
        assert_eq!(t, original, "{kind:?}");
    }
}

#[test]
fn bytes_are_laid_out_as_the_kernel_documents_them() {
    let bytes = written(every_kind().into_iter().take(1).collect());
    let mut expected = vec![0x9f, 0xeb, 1, 0];
    for word in [24, 0, 16, 16, 5, 1, 1 << 24, 4, 1 << 24 | 32] {
        expected.extend_from_slice(&u32::to_le_bytes(word));
    }
    expected.extend(b"\0int\0");
    assert_eq!(bytes, expected);
}

#[test]
fn a_header_that_has_grown_is_passed_over() {
    let bytes = written(every_kind());
    let mut grown = with_word(&bytes[..24], 4, 32);
    grown.extend([0xaa; 8]);
    grown.extend(&bytes[24..]);
    assert_eq!(Btf::read(&grown).unwrap().types, Btf::read(&bytes).unwrap().types);
}

#[test]
fn what_is_no_btf_is_told_from_what_is_damaged() {
    let bytes = written(every_kind());
    assert_eq!(error(b""), "0 bytes are fewer than a BTF header has");
    assert!(error(&[0x7f; 64]).contains("not with BTF's 0xeb9f"));
    let mut swapped = bytes.clone();
    swapped.swap(0, 1);
    assert!(error(&swapped).contains("big-endian"));
    assert!(error(&with_word(&bytes, 0, 0x0002_eb9f)).contains("version 2"));
    assert!(error(&with_word(&bytes, 0, 0x0101_eb9f)).contains("flags 0x1"));
    for length in 24..bytes.len() {
        assert!(error(&bytes[..length]).contains(&format!("the file has {length}")), "{length}");
    }
}

#[test]
fn types_that_do_not_add_up_are_damage() {
    let bytes = written(every_kind());
    assert!(error(&with_word(&bytes, 12, word(&bytes, 12) - 4)).contains("type 19 is cut short"));
    assert!(error(&with_word(&bytes, 12, word(&bytes, 12) - 3)).contains("no multiple of 4"));
    assert!(error(&with_word(&bytes, 28, 20 << 24)).contains("type 1 has the unknown kind 20"));
    assert!(error(&with_word(&bytes, 24, 100_000)).contains("type 1 has a name at 100000"));
    // The pointer, which follows the int of four words.
    assert!(error(&with_word(&bytes, 24 + 16 + 8, 20)).contains("type 2 refers to type 20, and there are 19"));
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
