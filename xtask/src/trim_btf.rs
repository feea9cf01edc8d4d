//! `cargo xtask trim-btf`: from a kernel's type information (BTF) to the small part of it that `tracer` reads.
//!
//! The collector's tests read such files instead of a running kernel. What is kept means the same as in the whole: sizes,
//! offsets, bit-fields, enumerators, numbers of arguments, helpers. What this kernel does not have is absent from the result too.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::Context as _;
use tracer_abi::abi::{Counter, Kfunc, Offsets, places};

mod format;
mod selection;

use format::{Btf, Kind, Type};
use selection::{Extent, Selection};

const DROP_REASONS: &str = "skb_drop_reason";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The kernel's type information
    #[arg(long, value_name = "FILE", default_value = "/sys/kernel/btf/vmlinux")]
    from: PathBuf,
    /// Where to write the part that tracer reads
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let from = options.from.display();
    let bytes = fs::read(&options.from).with_context(|| format!("cannot read {from}"))?;
    let whole = Btf::read(&bytes).with_context(|| format!("cannot use the type information in {from}"))?;
    let trimmed = trim(&whole);
    for absent in &trimmed.absent {
        println!("{from} has no {absent}");
    }
    // Nothing is written that cannot be read back.
    let types = Btf::read(&trimmed.bytes).context("the trimmed type information is not valid")?.types().count();
    fs::write(&options.to, &trimmed.bytes).with_context(|| format!("cannot write {}", options.to.display()))?;
    println!("{}: {types} types, {} bytes", options.to.display(), trimmed.bytes.len());
    Ok(())
}

struct Trimmed {
    bytes: Vec<u8>,
    /// What the kernel lacks of what tracer reads.
    absent: Vec<String>,
}

fn trim(btf: &Btf) -> Trimmed {
    let mut selection = Selection::of(btf);
    let mut absent = Vec::new();
    for strukt in Offsets::FIELDS.iter().map(|(_, strukt, _)| *strukt).collect::<BTreeSet<_>>() {
        for (id, _) in named(btf, Kind::Struct, strukt) {
            selection.keep(id, Extent::Whole);
        }
    }
    let fields = Offsets::FIELDS.iter().map(|(_, strukt, path)| (*strukt, *path));
    for (strukt, path) in fields.chain([places::MIGHT_SLEEP, places::TWO_WORDS]) {
        // Two structures can have one name; what tracer makes of that is for it to show.
        let found = named(btf, Kind::Struct, strukt).filter(|(id, _)| selection.keep_path(*id, path)).count();
        if found == 0 {
            absent.push(format!("field {path} in struct {strukt}"));
        }
    }
    let counters = Counter::ALL.map(Counter::enumerator);
    let mut missing = BTreeSet::from(counters);
    let has_counter = |t: &&Type| t.items().any(|item| counters.contains(&btf.name(item[0])));
    for (id, t) in btf.types().filter(|(_, t)| is_enum(t) && has_counter(t)) {
        selection.keep(id, Extent::Whole);
        for item in t.items() {
            missing.remove(btf.name(item[0]));
        }
    }
    absent.extend(missing.into_iter().map(str::to_owned));
    let reasons: Vec<u32> = named(btf, Kind::Enum, DROP_REASONS).map(|(id, _)| id).collect();
    if reasons.is_empty() {
        absent.push(format!("enum {DROP_REASONS}"));
    }
    for id in reasons {
        selection.keep(id, Extent::Whole);
    }
    for tracepoint in places::TRACEPOINTS {
        let prototypes = named(btf, Kind::Typedef, &format!("btf_trace_{tracepoint}"))
            .filter(|(id, _)| selection.keep_prototype(*id))
            .count();
        if prototypes == 0 {
            absent.push(format!("tracepoint {tracepoint}"));
        }
    }
    let tellers = [places::CALLS_APART, places::NOTES_MISSES];
    let functions = places::FUNCTIONS.into_iter().chain(Kfunc::ALL.map(Kfunc::name)).chain(tellers);
    for function in functions {
        let mut found = false;
        // Static functions can share a name; what tracer makes of that is for it to show.
        for (id, _) in named(btf, Kind::Func, function) {
            selection.keep(id, Extent::Whole);
            found = true;
        }
        if !found {
            absent.push(format!("function {function}"));
        }
    }
    let helpers = [places::TASK_REGS, places::PERCPU_LOOKUP];
    let mut missing = BTreeSet::from(helpers);
    for (id, t) in named(btf, Kind::Enum, places::HELPERS) {
        // There are hundreds, and each that is not asked for by name means the same to tracer.
        selection.keep_enumerators(id, &helpers);
        for item in t.items() {
            missing.remove(btf.name(item[0]));
        }
    }
    absent.extend(missing.into_iter().map(|helper| format!("{helper} in enum {}", places::HELPERS)));
    Trimmed { bytes: selection.write(), absent }
}

fn named<'a>(btf: &'a Btf, kind: Kind, name: &str) -> impl Iterator<Item = (u32, &'a Type)> {
    btf.types().filter(move |(_, t)| t.kind == kind && btf.name(t.name) == name)
}

fn is_enum(t: &Type) -> bool {
    matches!(t.kind, Kind::Enum | Kind::Enum64)
}

#[cfg(test)]
mod tests;
