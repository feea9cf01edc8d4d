//! A guest's file system.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use guest_init::plan;

use super::{build::Programs, cpio::Archive, modules::Module};

/// Where the tracer is.
pub(super) const TRACER: &str = "/bin/tracer";

/// Where the field notes' programs are.
pub(super) const LOAD: &str = "/bin/tracer-load";

/// What scenarios run besides these.
const APPLETS: [&str; 2] = ["sh", "true"];

/// Where a scenario's binary is.
pub(super) fn scenario_path(name: &str) -> String {
    format!("/scenarios/{name}")
}

/// Where the module at this place of the order is.
pub(super) fn module_path(name: &str) -> String {
    format!("/modules/{name}.ko")
}

/// The part that all guests of a kernel share. Empty archives do: guests that are only to start and end need no more.
pub(super) fn common(programs: &Programs, busybox: &Path, modules: &[Module]) -> anyhow::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "etc", "modules", "proc", "run", "scenarios", "sys", "tmp"] {
        archive.directory(directory);
    }
    // The kernel opens it before there is anybody to mount /dev.
    archive.character_device("dev/console", 5, 1);
    archive.file("init", &program(&programs.init)?);
    archive.file("bin/busybox", &program(busybox)?);
    for applet in APPLETS {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    archive.file(TRACER, &program(&programs.tracer)?);
    archive.file(LOAD, &program(&programs.load)?);
    for scenario in &programs.scenarios {
        archive.file(&scenario_path(&scenario.name), &program(&scenario.path)?);
    }
    for module in modules {
        archive.file(&module_path(&module.name), &module.bytes);
    }
    Ok(archive.finish())
}

/// Where a program of libbpf-tools is.
pub(super) fn peer_path(name: &str) -> String {
    format!("/peers/{name}")
}

/// Where the libraries are that these need.
pub(super) const PEERS_LIBRARIES: &str = "/lib";

/// Programs of libbpf-tools, which are linked dynamically, with every library of the packages that they were unpacked with.
pub(super) fn peers(unpacked: &Path, names: &[&str]) -> anyhow::Result<Vec<u8>> {
    const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
    const LINKER: &str = "lib64/ld-linux-x86-64.so.2";
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut archive = Archive::default();
    for directory in ["peers", PEERS_LIBRARIES, "lib64"] {
        archive.directory(directory);
    }
    for name in names {
        let path = unpacked.join("usr/sbin").join(format!("{name}-libbpf"));
        archive.file(&peer_path(name), &read(&path)?);
    }
    archive.file(LINKER, &read(&unpacked.join(LIBRARIES).join("ld-linux-x86-64.so.2"))?);
    let libraries = unpacked.join(LIBRARIES);
    for entry in fs::read_dir(&libraries).with_context(|| format!("cannot read {}", libraries.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", libraries.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Links lead to files beside them.
        if name.contains(".so.") && entry.path().is_file() {
            archive.file(&format!("{PEERS_LIBRARIES}/{name}"), &read(&entry.path())?);
        }
    }
    Ok(archive.finish())
}

/// The part that holds the plan. The kernel takes archives one after the other.
pub(super) fn with_plan(plan: &plan::Plan) -> anyhow::Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.file(plan::PATH, plan.to_text()?.as_bytes());
    Ok(archive.finish())
}

fn program(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(!needs_interpreter(&bytes), "{} is not linked statically and cannot run in a guest", path.display());
    Ok(bytes)
}

/// Whether an ELF file names a dynamic linker.
fn needs_interpreter(bytes: &[u8]) -> bool {
    use object::{
        Endianness,
        elf::{FileHeader64, PT_INTERP},
        read::elf::{FileHeader as _, ProgramHeader as _},
    };
    let Ok(header) = FileHeader64::<Endianness>::parse(bytes) else { return false };
    let Ok(endian) = header.endian() else { return false };
    header.program_headers(endian, bytes).is_ok_and(|all| all.iter().any(|it| it.p_type(endian) == PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_a_dynamic_linker_is_told_from_one_that_does_not() {
        // This test is such a program, as far as it is not linked against musl.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(needs_interpreter(&own), cfg!(not(target_feature = "crt-static")));
        assert!(!needs_interpreter(b"no program at all"));
    }
}
