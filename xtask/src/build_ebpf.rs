//! `cargo xtask build-ebpf`: from the Rust source of the kernel side to `tracer/ebpf/tracer.bpf.o`.
//!
//! The object is committed, so that users need stable Rust only. Its bytes depend on the sources and on the tools named in
//! the record beside it, and on nothing else: not on the directory, the user, or where the registry lies.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};

use crate::host::{self, Workspace};

mod object_file;
mod record;
pub(crate) mod rustc_wrapper;
mod toolchain;

use record::{Record, Tools};
use toolchain::Toolchain;

/// The package and its binary.
const PACKAGE: &str = "tracer-ebpf";
const TARGET: &str = "bpfel-unknown-none";
const PROFILE: &str = "ebpf";
const OBJECT: &str = "tracer/ebpf/tracer.bpf.o";
const RECORD: &str = "tracer/ebpf/tracer.bpf.o.sources.sha256";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rebuild and compare with the committed object instead of replacing it; fail if they differ
    #[arg(long)]
    check: bool,
    /// Run clippy on the kernel side's programs, warnings being errors, instead of building
    #[arg(long, conflicts_with = "check")]
    lint: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let workspace = Workspace::locate()?;
    if options.check {
        return check(&workspace);
    }
    if options.lint {
        return lint(&workspace);
    }
    let toolchain = Toolchain::obtain(&workspace.target)?;
    let directory = workspace.target.join("ebpf");
    let sources = record::sources_digest(&workspace.root)?;
    forget_own_package(&workspace, &directory)?;
    let object = build(&workspace, &toolchain, &directory)?;
    ensure!(
        sources == record::sources_digest(&workspace.root)?,
        "the kernel side's sources were changed while they were built; run the command again"
    );
    let record = Record { sources, object: record::digest(&object), tools: toolchain.tools };
    write(&workspace.root.join(OBJECT), &object)?;
    write(&workspace.root.join(RECORD), record.to_text().as_bytes())?;
    println!("{OBJECT}: {} bytes, sha256 {}, by {}", object.len(), record.object, record.tools);
    Ok(())
}

fn check(workspace: &Workspace) -> anyhow::Result<()> {
    let committed = read(&workspace.root.join(OBJECT))?;
    let text = String::from_utf8(read(&workspace.root.join(RECORD))?).context("the record is not text")?;
    let recorded = Record::parse(&text).with_context(|| format!("cannot read {RECORD}; {REMEDY}"))?;
    // First what needs no tools, so that a forgotten build is told at once.
    compare_digests(&recorded, &record::sources_digest(&workspace.root)?, &record::digest(&committed))?;
    let toolchain = match Toolchain::obtain(&workspace.target) {
        Ok(toolchain) => toolchain,
        Err(reason) => {
            println!("{}", without_rebuild(&format!("{reason:#}")));
            return Ok(());
        }
    };
    let directory = workspace.target.join("ebpf-check");
    // Nothing that an earlier build left may stand in for a rebuild.
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", directory.display()));
        }
        _ => {}
    }
    let rebuilt = build(workspace, &toolchain, &directory)?;
    println!("{}", judge(&recorded.tools, &toolchain.tools, &committed, &rebuilt)?);
    Ok(())
}

const REMEDY: &str = "run `cargo xtask build-ebpf` and commit what changes under tracer/ebpf/";

fn compare_digests(recorded: &Record, sources: &str, object: &str) -> anyhow::Result<()> {
    ensure!(
        recorded.sources == sources,
        "the kernel side's sources (sha256 {sources}) are not those that {OBJECT} was built from (sha256 {}); {REMEDY}",
        recorded.sources
    );
    ensure!(
        recorded.object == object,
        "{OBJECT} (sha256 {object}) is not the object that its record names (sha256 {}); {REMEDY}",
        recorded.object
    );
    Ok(())
}

/// The verdict after a rebuild: the line to print, or why the check failed.
fn judge(recorded: &Tools, present: &Tools, committed: &[u8], rebuilt: &[u8]) -> anyhow::Result<String> {
    if committed == rebuilt {
        return Ok(format!("{OBJECT} was rebuilt with {present}: the same {} bytes", rebuilt.len()));
    }
    if recorded == present {
        bail!(
            "{OBJECT} ({} bytes, sha256 {}) differs from what its sources give ({} bytes, sha256 {}); {REMEDY}",
            committed.len(),
            record::digest(committed),
            rebuilt.len(),
            record::digest(rebuilt)
        );
    }
    // Another compiler makes other bytes of the same source: that proves neither a fault nor its absence.
    Ok(without_rebuild(&format!("it was built with {recorded}, here are {present}, which give other bytes")))
}

/// The last line of a check that could only compare digests.
fn without_rebuild(reason: &str) -> String {
    // One line, whatever the reason looks like.
    let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{OBJECT} was not rebuilt, only the recorded digests of sources and object were compared (equal): {reason}")
}

/// Builds below `directory` and returns the bytes of the finished object.
fn build(workspace: &Workspace, toolchain: &Toolchain, directory: &Path) -> anyhow::Result<Vec<u8>> {
    host::execute(&mut cargo_for_kernel_side(workspace, toolchain, directory, "build")?)?;
    let linked = directory.join(TARGET).join(PROFILE).join(PACKAGE);
    object_file::without_dwarf(&read(&linked)?).with_context(|| format!("cannot strip {}", linked.display()))
}

/// Makes cargo compile the kernel side's own package anew. Cargo goes by file times, which mislead it where checkouts share
/// a target directory; what is committed must not rest on them.
fn forget_own_package(workspace: &Workspace, directory: &Path) -> anyhow::Result<()> {
    let mut clean = host::cargo();
    clean.current_dir(&workspace.root).env("CARGO_TARGET_DIR", directory);
    host::execute(clean.args(["clean", "--quiet", "--package", PACKAGE, "--target", TARGET, "--profile", PROFILE]))
}

fn lint(workspace: &Workspace) -> anyhow::Result<()> {
    let toolchain = match Toolchain::obtain(&workspace.target) {
        Ok(toolchain) => toolchain,
        Err(reason) => {
            println!("the kernel side's programs were not linted: {reason:#}");
            return Ok(());
        }
    };
    let directory = workspace.target.join("ebpf-lint");
    let mut clippy = cargo_for_kernel_side(workspace, &toolchain, &directory, "clippy")?;
    host::execute(clippy.args(["--", "-D", "warnings"]))
}

fn cargo_for_kernel_side(
    workspace: &Workspace,
    toolchain: &Toolchain,
    directory: &Path,
    subcommand: &str,
) -> anyhow::Result<std::process::Command> {
    // BTF is made from debug information; v3 is the first instruction set with atomic additions that return the old value.
    // No path may stand here: cargo puts the flags into the symbol names' hashes.
    let flags = [
        "-C",
        "link-arg=--btf",
        "-C",
        "link-arg=--disable-expand-memcpy-in-order",
        "-C",
        "debuginfo=2",
        "-C",
        "target-cpu=v3",
    ];
    let mut cargo = host::cargo();
    cargo
        .current_dir(&workspace.root)
        .arg(subcommand)
        .args(["--package", PACKAGE, "--bin", PACKAGE, "--features", "kernel", "--target", TARGET])
        .args(["--profile", PROFILE, "-Z", "build-std=core"])
        // `-Z build-std` on a stable toolchain.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", directory)
        // Else it is the builder's own, and the bytes would depend on it.
        .env("AYA_BPF_TARGET_ARCH", "x86_64")
        .env("CARGO_INCREMENTAL", "0")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker)
        // Takes the place of every other source of flags: the caller's must not reach the object.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTFLAGS");
    // Clippy brings a wrapper of its own, and its output is thrown away.
    if subcommand == "build" {
        rustc_wrapper::request(&mut cargo)?;
    }
    Ok(cargo)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}; {REMEDY}", path.display()))
}

/// Replaces `path` in one step, so that a build that runs meanwhile never embeds half an object.
fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    fs::write(&unfinished, bytes).with_context(|| format!("cannot write {}", unfinished.display()))?;
    fs::rename(&unfinished, path).with_context(|| format!("cannot replace {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(rustc: &str) -> Tools {
        Tools { rustc: rustc.into(), bpf_linker: "0.13.0".into(), llvm: "22.1.8".into() }
    }

    fn recorded() -> Record {
        Record { sources: "aa".into(), object: "bb".into(), tools: tools("1.95.0") }
    }

    #[test]
    fn equal_digests_pass_and_each_difference_is_named() {
        assert!(compare_digests(&recorded(), "aa", "bb").is_ok());
        let sources = compare_digests(&recorded(), "ax", "bb").unwrap_err().to_string();
        assert!(sources.contains("sources (sha256 ax)"), "{sources}");
        let object = compare_digests(&recorded(), "aa", "bx").unwrap_err().to_string();
        assert!(object.contains("tracer.bpf.o (sha256 bx)"), "{object}");
    }

    #[test]
    fn equal_bytes_pass_whatever_tools_gave_them() {
        let line = judge(&tools("1.95.0"), &tools("1.96.0"), b"object", b"object").unwrap();
        assert!(line.contains("was rebuilt with rustc 1.96.0"), "{line}");
    }

    #[test]
    fn other_bytes_from_the_same_tools_fail_with_the_remedy() {
        let error = judge(&tools("1.95.0"), &tools("1.95.0"), b"object", b"other").unwrap_err().to_string();
        assert!(error.contains("differs") && error.contains("run `cargo xtask build-ebpf`"), "{error}");
    }

    #[test]
    fn other_bytes_from_other_tools_are_said_to_prove_nothing() {
        let line = judge(&tools("1.95.0"), &tools("1.96.0"), b"object", b"other").unwrap();
        assert!(line.contains("was not rebuilt") && line.contains("1.96.0"), "{line}");
    }

    #[test]
    fn the_line_about_a_missing_rebuild_is_one_line() {
        let line = without_rebuild("no linker:\n  install it");
        assert!(line.ends_with("(equal): no linker: install it"), "{line}");
    }
}
