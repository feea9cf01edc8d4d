//! Look-ups in a kernel's type information (BTF).
//!
//! Every walk is bounded: what a file claims about its types may be anything.

use std::{
    collections::HashSet,
    fs::File,
    io::{ErrorKind, Read as _},
    path::Path,
};

use btf_rs::{Backend, Btf, BtfType, Enum, FuncProto, Struct, Type};

use super::KernelError;

/// How many typedefs, qualifiers and arrays may lie between a name and its structure; kernels have about five.
const LINKS: usize = 32;

/// A kernel's types.
pub(super) struct Types {
    btf: Btf,
}

impl Types {
    pub(super) fn read(path: &Path) -> Result<Types, KernelError> {
        let shown = || path.display().to_string();
        let no_btf = |source| KernelError::NoBtf { path: shown(), source };
        let bad_btf = |reason| KernelError::BadBtf { path: shown(), reason };
        let mut file = File::open(path).map_err(no_btf)?;
        let length = file.metadata().map_err(no_btf)?.len();
        let mut header = [0; HEADER];
        match file.read_exact(&mut header) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(bad_btf(format!("it has {length} bytes, fewer than its header")));
            }
            result => result.map_err(no_btf)?,
        }
        // btf-rs indexes a mapped file by what the header says.
        check_header(&header, length).map_err(bad_btf)?;
        // Mapped, it takes a third of the time and 3 instead of 47 MB. The kernel's own file can be mapped since 6.16.
        if let Ok(btf) = Btf::from_file_with_backend(path, Backend::Mmap) {
            return Ok(Types { btf });
        }
        let bytes = std::fs::read(path).map_err(no_btf)?;
        Types::parse(&bytes).map_err(bad_btf)
    }

    /// As [`Types::read`], from memory; the error says what is wrong.
    pub(super) fn parse(bytes: &[u8]) -> Result<Types, String> {
        let Some(header) = bytes.first_chunk() else {
            return Err(format!("it has {} bytes, fewer than its header", bytes.len()));
        };
        check_header(header, bytes.len() as u64)?;
        Btf::from_bytes(bytes).map(|btf| Types { btf }).map_err(|error| error.to_string())
    }

    /// The first structure with this name that has members.
    pub(super) fn strukt(&self, name: &str) -> Option<u32> {
        let ids = self.btf.resolve_ids_by_name(name).ok()?;
        ids.into_iter().find(|id| matches!(self.get(*id), Some(Type::Struct(s)) if !s.members.is_empty()))
    }

    /// Byte offset in a structure of a field given by its path; structures and unions without names are looked through.
    pub(super) fn offset(&self, strukt: u32, path: &str) -> Option<u32> {
        let mut bits = 0u32;
        let mut here = strukt;
        for part in path.split('.') {
            let (at, member) = self.member(here, part)?;
            bits = bits.checked_add(at)?;
            here = member;
        }
        Some(bits / 8)
    }

    /// A member's offset in bits, and its type.
    fn member(&self, aggregate: u32, name: &str) -> Option<(u32, u32)> {
        let mut pending = vec![(aggregate, 0u32)];
        let mut seen = HashSet::new();
        while let Some((id, base)) = pending.pop() {
            let Some((id, aggregate)) = self.aggregate(id) else { continue };
            if !seen.insert(id) {
                continue;
            }
            for member in &aggregate.members {
                let (Some(at), Some(of)) = (base.checked_add(member.bit_offset()), member.get_type_id()) else {
                    continue;
                };
                let own = self.name(member);
                if own == name {
                    return Some((at, of));
                }
                if own.is_empty() {
                    pending.push((of, at));
                }
            }
        }
        None
    }

    /// The structure or union that a type is another name or an array of.
    fn aggregate(&self, mut id: u32) -> Option<(u32, Struct)> {
        for _ in 0..LINKS {
            id = match self.get(id)? {
                Type::Struct(s) | Type::Union(s) => return Some((id, s)),
                Type::Typedef(t) => t.get_type_id()?,
                Type::Volatile(t) | Type::Const(t) | Type::Restrict(t) => t.get_type_id()?,
                Type::TypeTag(t) => t.get_type_id()?,
                Type::Array(t) => t.get_type_id()?,
                _ => return None,
            };
        }
        None
    }

    /// The enumerators of the first enumeration of that name.
    pub(super) fn enumerators(&self, name: &str) -> Option<Vec<(String, u32)>> {
        let ids = self.btf.resolve_ids_by_name(name).ok()?;
        ids.into_iter().find_map(|id| match self.get(id) {
            Some(Type::Enum(e)) if !e.members.is_empty() => Some(self.values(&e)),
            _ => None,
        })
    }

    /// The enumerators of the enumeration that has this one among at least `least`.
    pub(super) fn enumerators_with(&self, enumerator: &str, least: usize) -> Option<Vec<(String, u32)>> {
        // Those that are looked for have no name themselves; the others are many.
        let unnamed = self.btf.resolve_ids_by_name("").unwrap_or_default();
        let (first, last) = self.btf.base().type_id_range();
        unnamed.into_iter().chain(first..=last).find_map(|id| match self.get(id) {
            Some(Type::Enum(e)) if e.members.len() >= least => {
                e.members.iter().any(|member| self.name(member) == enumerator).then(|| self.values(&e))
            }
            _ => None,
        })
    }

    /// The prototype that a typedef of this name points to.
    pub(super) fn prototype(&self, typedef: &str) -> Option<FuncProto> {
        let ids = self.btf.resolve_ids_by_name(typedef).ok()?;
        ids.into_iter().find_map(|id| match self.get(id) {
            Some(Type::Typedef(t)) => self.btf.chained_type_iter(&t).take(LINKS).find_map(|t| match t {
                Type::FuncProto(prototype) => Some(prototype),
                _ => None,
            }),
            _ => None,
        })
    }

    /// The prototype of a function.
    pub(super) fn function(&self, name: &str) -> Option<FuncProto> {
        let ids = self.btf.resolve_ids_by_name(name).ok()?;
        ids.into_iter().find_map(|id| match self.get(id) {
            Some(Type::Func(function)) => match self.get(function.get_type_id()?) {
                Some(Type::FuncProto(prototype)) => Some(prototype),
                _ => None,
            },
            _ => None,
        })
    }

    /// The number of a function among the types.
    pub(super) fn function_id(&self, name: &str) -> Option<u32> {
        let ids = self.btf.resolve_ids_by_name(name).ok()?;
        ids.into_iter().find(|id| matches!(self.get(*id), Some(Type::Func(_))))
    }

    fn get(&self, id: u32) -> Option<Type> {
        self.btf.resolve_type_by_id(id).ok()
    }

    fn name(&self, of: &dyn BtfType) -> String {
        self.btf.resolve_name(of).unwrap_or_default()
    }

    fn values(&self, of: &Enum) -> Vec<(String, u32)> {
        of.members.iter().map(|member| (self.name(member), member.val())).collect()
    }
}

/// Length of `struct btf_header` (`include/uapi/linux/btf.h`) as far as every kernel has it.
const HEADER: usize = 24;

/// Checks that a file of this length can hold what its header describes.
fn check_header(header: &[u8; HEADER], length: u64) -> Result<(), String> {
    const MAGIC: [u8; 2] = 0xeb9f_u16.to_ne_bytes();
    if header[..2] != MAGIC {
        return Err("it does not begin as BTF of this machine's byte order does".to_owned());
    }
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    for (what, offset, size) in [("types", word(8), word(12)), ("names", word(16), word(20))] {
        // In 32 bits, as btf-rs adds them up.
        let end = word(4).checked_add(offset).and_then(|start| start.checked_add(size));
        if end.is_none_or(|end| u64::from(end) > length) {
            return Err(format!(
                "it has {length} bytes, too few for the {size} bytes of {what} that its header describes"
            ));
        }
    }
    Ok(())
}
