//! Which types are kept, and how much of each.

use std::collections::{BTreeMap, BTreeSet};

use super::format::{Btf, Kind, Type, Writer};

/// How much of a type is kept. More includes less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Extent {
    /// What a pointer needs: a structure becomes a forward declaration.
    Name,
    /// What an embedding structure needs: a structure loses its members, but not its size.
    Size,
    /// Everything.
    Whole,
}

/// Types of a BTF that are kept, together with all that they refer to.
pub(super) struct Selection<'a> {
    btf: &'a Btf,
    kept: BTreeMap<u32, Extent>,
    /// Of these enumerations, only the enumerators of these names.
    enumerators: BTreeMap<u32, BTreeSet<String>>,
}

impl<'a> Selection<'a> {
    /// Nothing of it yet.
    pub(super) fn of(btf: &'a Btf) -> Self {
        Self { btf, kept: BTreeMap::new(), enumerators: BTreeMap::new() }
    }

    /// Keeps at least this much of a type, and what it needs of others.
    pub(super) fn keep(&mut self, id: u32, extent: Extent) {
        let mut pending = vec![(id, extent)];
        while let Some((id, extent)) = pending.pop() {
            let Some(t) = self.btf.get(id) else { continue };
            // Without a name there is nothing to declare.
            let extent = if is_aggregate(t) && t.name == 0 { extent.max(Extent::Size) } else { extent };
            if self.kept.get(&id).is_some_and(|kept| *kept >= extent) {
                continue;
            }
            self.kept.insert(id, extent);
            match t.kind {
                Kind::Struct | Kind::Union if extent == Extent::Whole => {
                    // The members of a member without a name belong to the structure itself.
                    let of = |name: u32| if name == 0 { Extent::Whole } else { Extent::Size };
                    pending.extend(t.items().map(|member| (member[1], of(member[0]))));
                }
                Kind::Typedef | Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag => {
                    pending.push((t.head, extent));
                }
                Kind::Array => pending.extend([(t.words[0], extent), (t.words[1], Extent::Size)]),
                Kind::Ptr => pending.push((t.head, Extent::Name)),
                Kind::Func => pending.push((t.head, Extent::Whole)),
                Kind::FuncProto if extent == Extent::Whole => {
                    pending.push((t.head, Extent::Size));
                    pending.extend(t.items().map(|parameter| (parameter[1], Extent::Size)));
                }
                _ => {}
            }
        }
    }

    /// Keeps the structures between this one and the field with this path whole; false if there is no such field.
    pub(super) fn keep_path(&mut self, id: u32, path: &str) -> bool {
        let mut here = id;
        for part in path.split('.') {
            let Some(aggregate) = self.aggregate(here) else { return false };
            let Some(member) = self.member(aggregate, part) else { return false };
            self.keep(aggregate, Extent::Whole);
            here = member;
        }
        true
    }

    /// Keeps an enumeration with only those of its enumerators that have these names.
    pub(super) fn keep_enumerators(&mut self, id: u32, names: &[&str]) {
        self.keep(id, Extent::Whole);
        self.enumerators.entry(id).or_default().extend(names.iter().map(|name| (*name).to_owned()));
    }

    /// Keeps the prototype behind a `btf_trace_*` typedef, which is a pointer to it; false if there is none.
    pub(super) fn keep_prototype(&mut self, typedef: u32) -> bool {
        let mut here = typedef;
        while let Some(t) = self.btf.get(here) {
            match t.kind {
                Kind::FuncProto => {
                    self.keep(typedef, Extent::Whole);
                    self.keep(here, Extent::Whole);
                    return true;
                }
                Kind::Typedef | Kind::Ptr => here = t.head,
                _ => break,
            }
        }
        false
    }

    /// The type of a member of a structure or of its members without names.
    fn member(&self, aggregate: u32, name: &str) -> Option<u32> {
        self.btf.get(aggregate)?.items().find_map(|member| {
            if self.btf.name(member[0]) == name {
                return Some(member[1]);
            }
            let inner = if member[0] == 0 { self.aggregate(member[1]) } else { None };
            self.member(inner?, name)
        })
    }

    /// The structure or union that a type is another name or an array of.
    fn aggregate(&self, id: u32) -> Option<u32> {
        let t = self.btf.get(id)?;
        match t.kind {
            Kind::Struct | Kind::Union => Some(id),
            Kind::Typedef | Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag => self.aggregate(t.head),
            Kind::Array => self.aggregate(t.words[0]),
            _ => None,
        }
    }

    /// The kept types in their old order, as a BTF of their own.
    pub(super) fn write(&self) -> Vec<u8> {
        let kept: Vec<(u32, Type)> =
            self.kept.iter().filter_map(|(id, extent)| Some((*id, self.reduced(*id, *extent)?))).collect();
        let new: BTreeMap<u32, u32> = kept.iter().map(|(id, _)| *id).zip(1..).collect();
        let mut writer = Writer::new();
        for (_, mut t) in kept {
            // What was not kept is a function behind a pointer, or `void` from the start.
            t.translate(|name| writer.name(self.btf.name(name)), |id| new.get(&id).copied().unwrap_or(0));
            writer.push(&t);
        }
        writer.finish()
    }

    /// A type with only so much of it, and only the enumerators that are wanted.
    fn reduced(&self, id: u32, extent: Extent) -> Option<Type> {
        let t = reduced(self.btf.get(id)?, extent)?;
        let Some(wanted) = self.enumerators.get(&id) else { return Some(t) };
        let items = t.items().filter(|item| wanted.contains(self.btf.name(item[0])));
        let words: Vec<u32> = items.clone().flatten().copied().collect();
        Some(Type { vlen: items.count() as u16, words, ..t })
    }
}

fn is_aggregate(t: &Type) -> bool {
    matches!(t.kind, Kind::Struct | Kind::Union)
}

/// A type with only so much of it; nothing of a function's prototype, to which a pointer may lead but no name.
fn reduced(t: &Type, extent: Extent) -> Option<Type> {
    let without_items = || Type { vlen: 0, words: Vec::new(), ..t.clone() };
    match t.kind {
        Kind::FuncProto if extent < Extent::Whole => None,
        Kind::Struct | Kind::Union if extent == Extent::Name => {
            Some(Type { kind: Kind::Fwd, kind_flag: t.kind == Kind::Union, head: 0, ..without_items() })
        }
        Kind::Struct | Kind::Union if extent < Extent::Whole => Some(without_items()),
        _ => Some(t.clone()),
    }
}
