//! The raw BTF format, read and written whole, as `include/uapi/linux/btf.h` and `Documentation/bpf/btf.rst` of the kernel
//! define it: a header, the types, numbered from 1 in their order (0 is `void`), and the strings that they name.

use std::collections::HashMap;

use anyhow::{Context as _, bail, ensure};

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
/// Magic, version, flags, the header's length, and offset and length of the types and of the strings.
const HEADER: usize = 24;

/// What a type is: `BTF_KIND_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Int = 1,
    Ptr,
    Array,
    Struct,
    Union,
    Enum,
    Fwd,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Func,
    FuncProto,
    Var,
    Datasec,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

impl Kind {
    /// All kinds, by number from 1.
    pub(super) const ALL: [Kind; 19] = [
        Kind::Int,
        Kind::Ptr,
        Kind::Array,
        Kind::Struct,
        Kind::Union,
        Kind::Enum,
        Kind::Fwd,
        Kind::Typedef,
        Kind::Volatile,
        Kind::Const,
        Kind::Restrict,
        Kind::Func,
        Kind::FuncProto,
        Kind::Var,
        Kind::Datasec,
        Kind::Float,
        Kind::DeclTag,
        Kind::TypeTag,
        Kind::Enum64,
    ];

    fn from_number(number: u32) -> Option<Kind> {
        Kind::ALL.get((number as usize).checked_sub(1)?).copied()
    }

    /// Whether the third word is a type's number rather than a size.
    fn head_is_type(self) -> bool {
        matches!(
            self,
            Kind::Ptr
                | Kind::Typedef
                | Kind::Volatile
                | Kind::Const
                | Kind::Restrict
                | Kind::Func
                | Kind::FuncProto
                | Kind::Var
                | Kind::DeclTag
                | Kind::TypeTag
        )
    }

    /// What the words of one item after the first three are.
    fn item(self) -> &'static [Role] {
        use Role::{Name, Plain, Type};
        match self {
            Kind::Int | Kind::Var | Kind::DeclTag => &[Plain],
            Kind::Array => &[Type, Type, Plain],
            Kind::Struct | Kind::Union => &[Name, Type, Plain],
            Kind::Enum => &[Name, Plain],
            Kind::FuncProto => &[Name, Type],
            Kind::Datasec => &[Type, Plain, Plain],
            Kind::Enum64 => &[Name, Plain, Plain],
            _ => &[],
        }
    }

    /// How many items there are. A function's `vlen` is its linkage.
    fn items(self, vlen: u16) -> usize {
        match self {
            Kind::Int | Kind::Var | Kind::DeclTag | Kind::Array => 1,
            Kind::Struct | Kind::Union | Kind::Enum | Kind::FuncProto | Kind::Datasec | Kind::Enum64 => vlen.into(),
            _ => 0,
        }
    }
}

/// What a word of a type is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Where a name begins among the strings.
    Name,
    /// A type's number.
    Type,
    /// Anything else.
    Plain,
}

/// One type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Type {
    pub(super) kind: Kind,
    /// Of a structure: its members' offsets hold bit-field sizes in their upper 8 bits. Of a forward declaration: it is a
    /// union. Of an enumeration: it is signed.
    pub(super) kind_flag: bool,
    /// The number of items; of a function its linkage.
    pub(super) vlen: u16,
    /// Where its name begins among the strings; 0 if it has none.
    pub(super) name: u32,
    /// The size in bytes, or the number of the type that it is made from.
    pub(super) head: u32,
    /// The words of its items.
    pub(super) words: Vec<u32>,
}

impl Type {
    /// Its items: members, enumerators, parameters. Their first word is the name in all of these.
    pub(super) fn items(&self) -> std::slice::ChunksExact<'_, u32> {
        self.words.chunks_exact(self.kind.item().len().max(1))
    }

    /// Replaces every name and every type's number.
    pub(super) fn translate(&mut self, mut name: impl FnMut(u32) -> u32, mut id: impl FnMut(u32) -> u32) {
        self.name = name(self.name);
        if self.kind.head_is_type() {
            self.head = id(self.head);
        }
        for (word, role) in self.words.iter_mut().zip(self.kind.item().iter().cycle()) {
            match role {
                Role::Name => *word = name(*word),
                Role::Type => *word = id(*word),
                Role::Plain => {}
            }
        }
    }
}

/// A whole BTF.
pub(super) struct Btf {
    strings: Vec<u8>,
    types: Vec<Type>,
}

impl Btf {
    /// Reads a BTF of little-endian byte order that rests on no other; every name and number in it is checked.
    pub(super) fn read(bytes: &[u8]) -> anyhow::Result<Btf> {
        ensure!(bytes.len() >= HEADER, "{} bytes are fewer than a BTF header has", bytes.len());
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let magic = u16::from_le_bytes([bytes[0], bytes[1]]);
        ensure!(magic != MAGIC.swap_bytes(), "the BTF is big-endian, which is not supported");
        ensure!(magic == MAGIC, "it begins with {magic:#06x}, not with BTF's {MAGIC:#06x}");
        ensure!(bytes[2] == VERSION, "BTF version {} is not known", bytes[2]);
        ensure!(bytes[3] == 0, "BTF flags {:#x} are not known", bytes[3]);
        let section = |what: &str, offset: u32, length: u32| {
            let start = u64::from(word(4)) + u64::from(offset);
            let end = start + u64::from(length);
            bytes
                .get(usize::try_from(start)?..usize::try_from(end)?)
                .with_context(|| format!("the {what} are to end at byte {end}, the file has {}", bytes.len()))
        };
        let words: Vec<u32> = {
            let types = section("types", word(8), word(12))?;
            ensure!(types.len().is_multiple_of(4), "the types' length {} is no multiple of 4", types.len());
            types.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        };
        let strings = section("strings", word(16), word(20))?.to_vec();
        ensure!(strings.first() == Some(&0), "the strings do not begin with the empty one");
        ensure!(strings.last() == Some(&0), "the last string has no end");
        let mut types = Vec::new();
        let mut rest = words.as_slice();
        while !rest.is_empty() {
            let id = types.len() + 1;
            let ([name, info, head], tail) =
                rest.split_first_chunk().with_context(|| format!("type {id} is cut short"))?;
            let kind = Kind::from_number(info >> 24 & 0x1f)
                .with_context(|| format!("type {id} has the unknown kind {}", info >> 24 & 0x1f))?;
            let vlen = (info & 0xffff) as u16;
            let length = kind.item().len() * kind.items(vlen);
            let (words, after) = tail.split_at_checked(length).with_context(|| format!("type {id} is cut short"))?;
            types.push(Type {
                kind,
                kind_flag: info >> 31 == 1,
                vlen,
                name: *name,
                head: *head,
                words: words.to_vec(),
            });
            rest = after;
        }
        let btf = Btf { strings, types };
        btf.check()?;
        Ok(btf)
    }

    fn check(&self) -> anyhow::Result<()> {
        for (id, t) in self.types() {
            let (mut bad_name, mut bad_id) = (None, None);
            t.clone().translate(
                |name| {
                    bad_name = bad_name.or(self.text(name).is_none().then_some(name));
                    name
                },
                |id| {
                    bad_id = bad_id.or((id as usize > self.types.len()).then_some(id));
                    id
                },
            );
            if let Some(name) = bad_name {
                bail!("type {id} has a name at {name}, where no text is");
            }
            if let Some(other) = bad_id {
                bail!("type {id} refers to type {other}, and there are {}", self.types.len());
            }
        }
        Ok(())
    }

    fn text(&self, offset: u32) -> Option<&str> {
        let rest = self.strings.get(offset as usize..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&rest[..end]).ok()
    }

    /// All types with their numbers, in their order.
    pub(super) fn types(&self) -> impl Iterator<Item = (u32, &Type)> {
        (1..).zip(&self.types)
    }

    /// The type with this number; none for 0, which is `void`.
    pub(super) fn get(&self, id: u32) -> Option<&Type> {
        self.types.get((id as usize).checked_sub(1)?)
    }

    /// The text of a name that a type of this BTF holds; empty for 0.
    pub(super) fn name(&self, offset: u32) -> &str {
        self.text(offset).expect("every name was checked when the BTF was read")
    }
}

/// A BTF in the making. Equal names are stored once.
pub(super) struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
    known: HashMap<String, u32>,
}

impl Writer {
    pub(super) fn new() -> Writer {
        Writer { types: Vec::new(), strings: vec![0], known: HashMap::from([(String::new(), 0)]) }
    }

    /// Where `name` begins among the strings.
    pub(super) fn name(&mut self, name: &str) -> u32 {
        if let Some(offset) = self.known.get(name) {
            return *offset;
        }
        let offset = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        self.known.insert(name.to_owned(), offset);
        offset
    }

    /// Adds a type, whose names are offsets from [`Writer::name`].
    pub(super) fn push(&mut self, t: &Type) {
        let info = u32::from(t.kind_flag) << 31 | (t.kind as u32) << 24 | u32::from(t.vlen);
        for word in [t.name, info, t.head].iter().chain(&t.words) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
    }

    /// The bytes of the file.
    pub(super) fn finish(self) -> Vec<u8> {
        let types = self.types.len() as u32;
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend([VERSION, 0]);
        for word in [HEADER as u32, 0, types, types, self.strings.len() as u32] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend(self.types);
        bytes.extend(self.strings);
        bytes
    }
}

#[cfg(test)]
mod tests;
