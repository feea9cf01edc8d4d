//! Kernel modules: where they are, what they depend on, in which order to load them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use object::{Object as _, ObjectSection as _};

use crate::host;

/// The modules of one kernel.
pub(super) struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: String,
}

/// A module, ready to be loaded.
pub(super) struct Module {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

impl Modules {
    /// Finds the modules below `directory`, which holds what `/lib/modules/<release>` holds.
    pub(super) fn find(directory: &Path) -> anyhow::Result<Self> {
        let mut files = BTreeMap::new();
        let mut pending = vec![directory.to_owned()];
        while let Some(directory) = pending.pop() {
            let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
            for entry in entries {
                let entry = entry.with_context(|| format!("cannot read {}", directory.display()))?;
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    pending.push(path);
                } else if let Some(name) = module_name(&path) {
                    files.insert(name, path);
                }
            }
        }
        let builtin = directory.join("modules.builtin");
        let builtin = fs::read_to_string(&builtin).with_context(|| format!("cannot read {}", builtin.display()))?;
        Ok(Self { files, builtin })
    }

    /// The wanted modules and all that they need, each after those that it depends on. What is built into the kernel is
    /// left out; what the kernel does not have at all is an error.
    pub(super) fn closure(&self, wanted: &[&str]) -> anyhow::Result<Vec<Module>> {
        let mut loaded = Vec::new();
        for name in wanted {
            self.add(name, &mut loaded)?;
        }
        Ok(loaded)
    }

    fn add(&self, name: &str, loaded: &mut Vec<Module>) -> anyhow::Result<()> {
        if loaded.iter().any(|it| it.name == name) || is_builtin(&self.builtin, name) {
            return Ok(());
        }
        let path = self.files.get(name).with_context(|| format!("this kernel has no module {name}"))?;
        let bytes = content(path)?;
        let info = modinfo(&bytes).with_context(|| format!("cannot read the dependencies of {}", path.display()))?;
        // Modules cannot depend on each other in a circle: the kernel's build refuses that.
        for dependency in depends(&info) {
            self.add(&dependency, loaded)?;
        }
        loaded.push(Module { name: name.into(), bytes });
        Ok(())
    }
}

/// `nf_tables` of `.../nf-tables.ko.xz`: file names may have hyphens, modules' own names have none.
fn module_name(path: &Path) -> Option<String> {
    let (stem, compression) = path.file_name()?.to_str()?.split_once(".ko")?;
    matches!(compression, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}

fn is_builtin(list: &str, name: &str) -> bool {
    list.lines().any(|line| module_name(Path::new(line)).is_some_and(|it| it == name))
}

/// The module as the kernel takes it.
fn content(path: &Path) -> anyhow::Result<Vec<u8>> {
    match path.extension().and_then(|it| it.to_str()) {
        Some("ko") => fs::read(path).with_context(|| format!("cannot read {}", path.display())),
        Some("xz") => host::output_bytes(Command::new("xz").args(["--decompress", "--stdout"]).arg(path)),
        _ => bail!("{} is compressed in a way that is not known here", path.display()),
    }
}

/// The section `.modinfo`: `key=value` strings, each with a zero at its end.
fn modinfo(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let file = object::File::parse(bytes).context("no ELF file")?;
    let section = file.section_by_name(".modinfo").context("no section .modinfo")?;
    Ok(section.data().context("the section .modinfo cannot be read")?.to_owned())
}

fn depends(modinfo: &[u8]) -> Vec<String> {
    let strings = modinfo.split(|&byte| byte == 0).filter_map(|string| str::from_utf8(string).ok());
    let names = strings.filter_map(|string| string.strip_prefix("depends="));
    names.flat_map(|list| list.split(',')).filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_those_of_the_depends_string() {
        let modinfo = b"license=GPL\0softdep=pre: crc32c\0depends=nfnetlink,libcrc32c,x-tables\0name=nf_tables\0\0";
        assert_eq!(depends(modinfo), ["nfnetlink", "libcrc32c", "x_tables"]);
        assert_eq!(depends(b"license=GPL\0depends=\0"), Vec::<String>::new());
        assert_eq!(depends(b""), Vec::<String>::new());
    }

    #[test]
    fn a_module_is_named_by_its_file_whatever_the_compression() {
        let name = |path: &str| module_name(Path::new(path));
        assert_eq!(name("kernel/drivers/net/tun.ko.xz").as_deref(), Some("tun"));
        assert_eq!(name("kernel/crypto/sha256-generic.ko").as_deref(), Some("sha256_generic"));
        assert_eq!(name("modules.order"), None);
        assert_eq!(name("tun.ko.sig"), None);
    }

    #[test]
    fn builtin_modules_are_found_by_their_whole_name() {
        let list = "kernel/net/ipv6/ipv6.ko\nkernel/lib/crc-t10dif.ko\n";
        assert!(is_builtin(list, "ipv6") && is_builtin(list, "crc_t10dif"));
        assert!(!is_builtin(list, "ipv") && !is_builtin(list, "tun"));
    }

    #[test]
    fn a_module_that_the_kernel_has_nowhere_is_named() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
        let modules = Modules { files: BTreeMap::new(), builtin: "kernel/tun.ko\n".into() };
        assert!(modules.closure(&["tun"]).unwrap().is_empty());
        let error = modules.closure(&["veth"]).err().unwrap().to_string();
        assert!(error.contains("veth"), "{error}");
        assert!(Modules::find(directory).is_err(), "no modules.builtin there");
    }
}
