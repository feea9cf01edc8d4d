//! The linked object without what only a debugger reads.

use anyhow::Context as _;
use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

/// Returns the ELF file `linked` without its DWARF sections. BTF, which the kernel reads, stays.
///
/// bpf-linker makes BTF out of debug information and leaves both in; the DWARF is several times the size of the rest.
pub(super) fn without_dwarf(linked: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut builder = Builder::read(linked).context("cannot read the linked object")?;
    for section in builder.sections.iter_mut() {
        section.delete = is_dwarf(section.name.as_slice());
    }
    // Takes the relocations and section symbols of what went along.
    builder.delete_orphans();
    // LLVM keeps section names and symbol names in one table; the writer wants the former in a table of their own.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the object without DWARF")?;
    Ok(stripped)
}

fn is_dwarf(section: &[u8]) -> bool {
    section.starts_with(b".debug_") || section.starts_with(b".rel.debug_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dwarf_goes_and_btf_programs_and_maps_stay() {
        for name in [".debug_info", ".debug_str", ".rel.debug_line"] {
            assert!(is_dwarf(name.as_bytes()), "{name}");
        }
        for name in [".BTF", ".BTF.ext", ".rel.BTF", "maps", ".text", "tp_btf/consume_skb", ".symtab"] {
            assert!(!is_dwarf(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn what_is_no_elf_file_is_an_error() {
        assert!(without_dwarf(b"no ELF file").is_err());
    }
}
