//! Changes to type information in place, so that it stays as it was in all but one respect.

/// One type in the raw format.
#[derive(Clone, Copy)]
pub(crate) struct Record {
    /// Its number.
    pub(crate) id: u32,
    /// Where its first word is: name, then kind and count, then size or type, then the items.
    pub(crate) at: usize,
    pub(crate) kind: u32,
    pub(crate) items: usize,
}

pub(crate) const STRUCT: u32 = 4;
pub(crate) const ENUM: u32 = 6;
pub(crate) const TYPEDEF: u32 = 8;
pub(crate) const FUNC: u32 = 12;

/// Kinds from `BTF_KIND_INT` on: words of each item, and whether the count is the number of items.
const ITEMS: [(usize, bool); 20] = [
    (0, false),
    (1, false),
    (0, false),
    (3, false),
    (3, true),
    (3, true),
    (2, true),
    (0, false),
    (0, false),
    (0, false),
    (0, false),
    (0, false),
    (0, false),
    (2, true),
    (1, false),
    (3, true),
    (0, false),
    (1, false),
    (0, false),
    (3, true),
];

pub(crate) fn word(btf: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(btf[at..at + 4].try_into().unwrap())
}

pub(crate) fn set_word(btf: &mut [u8], at: usize, value: u32) {
    btf[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn records(btf: &[u8]) -> Vec<Record> {
    let start = (word(btf, 4) + word(btf, 8)) as usize;
    let end = start + word(btf, 12) as usize;
    let mut records = Vec::new();
    let (mut at, mut id) = (start, 1);
    while at < end {
        let info = word(btf, at + 4);
        let kind = info >> 24 & 0x1f;
        let (words, counted) = ITEMS[kind as usize];
        let items = if counted { (info & 0xffff) as usize } else { 1 };
        records.push(Record { id, at, kind, items });
        at += 12 + 4 * words * items;
        id += 1;
    }
    records
}

fn strings(btf: &[u8]) -> std::ops::Range<usize> {
    let start = (word(btf, 4) + word(btf, 16)) as usize;
    start..start + word(btf, 20) as usize
}

pub(crate) fn name(btf: &[u8], offset: u32) -> &str {
    let rest = &btf[strings(btf)][offset as usize..];
    std::str::from_utf8(rest.split(|byte| *byte == 0).next().unwrap()).unwrap()
}

/// The type of this kind and name.
pub(crate) fn record(btf: &[u8], kind: u32, called: &str) -> Record {
    *records(btf).iter().find(|r| r.kind == kind && name(btf, word(btf, r.at)) == called).unwrap()
}

/// Where the member of a structure begins: name, type, offset in bits.
pub(crate) fn member(btf: &[u8], strukt: &str, called: &str) -> usize {
    let record = record(btf, STRUCT, strukt);
    let mut members = (0..record.items).map(|i| record.at + 12 + 12 * i);
    members.find(|at| name(btf, word(btf, *at)) == called).unwrap()
}

/// The fixture with a name, wherever it is used, replaced by one that is no longer.
pub(crate) fn renamed(btf: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert!(to.len() <= from.len());
    let sought = [b"\0", from.as_bytes(), b"\0"].concat();
    let start = strings(btf).start;
    let found: Vec<_> = btf[start..].windows(sought.len()).enumerate().filter(|(_, w)| *w == sought).collect();
    assert_eq!(found.len(), 1, "{from} is to be there once");
    let at = start + found[0].0 + 1;
    let mut edited = btf.to_vec();
    edited[at..at + from.len()].fill(0);
    edited[at..at + to.len()].copy_from_slice(to.as_bytes());
    edited
}
