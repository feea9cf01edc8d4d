//! What the kernel side needs beyond stable Rust: rust-src and bpf-linker; both are installed where that is possible.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use super::record::Tools;
use crate::host;

/// The version that the committed object is built with.
const BPF_LINKER: &str = "0.13.0";
/// Where Debian keeps the LLVM that reads the bitcode of Rust 1.95 (`rustc -vV`: LLVM 22).
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LLVM_PACKAGES: [&str; 3] = ["llvm-22-dev", "zlib1g-dev", "libzstd-dev"];

/// A toolchain that can build the kernel side.
pub(super) struct Toolchain {
    pub(super) linker: PathBuf,
    pub(super) tools: Tools,
}

impl Toolchain {
    /// Finds both pieces, installing what is missing; the error says which piece cannot be had and what to run.
    pub(super) fn obtain(target_dir: &Path) -> anyhow::Result<Self> {
        let rustc = host::output(Command::new("rustc").arg("--version"))?;
        obtain_rust_src()?;
        let linker = obtain_bpf_linker(target_dir)?;
        let tools = Tools {
            rustc: rustc.trim().trim_start_matches("rustc ").to_owned(),
            bpf_linker: BPF_LINKER.to_owned(),
            llvm: llvm_version(),
        };
        Ok(Self { linker, tools })
    }
}

fn obtain_rust_src() -> anyhow::Result<()> {
    if has_rust_src()? {
        return Ok(());
    }
    let mut add = Command::new("rustup");
    add.args(["component", "add", "rust-src"]);
    // Set by rustup's own cargo: the toolchain in use, which need not be the default one.
    if let Some(toolchain) = env::var_os("RUSTUP_TOOLCHAIN") {
        add.arg("--toolchain").arg(toolchain);
    }
    println!("installing rust-src: the kernel side's target has no ready-made core library");
    host::execute(&mut add)
        .context("the source of Rust's core library (rust-src) is missing; run: rustup component add rust-src")?;
    ensure!(has_rust_src()?, "rust-src was added, but the rustc in use does not have it; compare `rustup show`");
    Ok(())
}

fn has_rust_src() -> anyhow::Result<bool> {
    let sysroot = host::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file())
}

fn obtain_bpf_linker(target_dir: &Path) -> anyhow::Result<PathBuf> {
    let own_root = target_dir.join("tools");
    let own = own_root.join("bin/bpf-linker");
    let mut install = host::cargo();
    install.args([
        "install",
        "bpf-linker",
        "--version",
        BPF_LINKER,
        "--locked",
        "--no-default-features",
        "--features",
        "llvm-22",
    ]);
    match host::find_program("bpf-linker") {
        Some(found) => {
            let version = version_of(&found)?;
            if version == BPF_LINKER {
                return Ok(found);
            }
            if own.is_file() {
                return Ok(own);
            }
            // Somebody else's build may depend on theirs: it stays.
            println!(
                "bpf-linker {version} is installed ({}), but the object is built with {BPF_LINKER}",
                found.display()
            );
            install.arg("--root").arg(&own_root);
        }
        None if own.is_file() => return Ok(own),
        None => {}
    }
    if !Path::new(LLVM_PREFIX).join("bin/llvm-config").is_file() {
        host::install_packages(&LLVM_PACKAGES, "building bpf-linker, which makes BPF code of what rustc compiles,")?;
    }
    println!("installing bpf-linker {BPF_LINKER}: it makes BPF code of what rustc compiles");
    let how = format!(
        "bpf-linker {BPF_LINKER} cannot be installed; run: LLVM_PREFIX={LLVM_PREFIX} cargo install bpf-linker --version \
         {BPF_LINKER} --locked --no-default-features --features llvm-22"
    );
    host::execute(install.env("LLVM_PREFIX", LLVM_PREFIX)).context(how)?;
    let installed = if own.is_file() { Some(own) } else { host::find_program("bpf-linker") };
    installed.context("bpf-linker was installed, but is not found; put cargo's bin directory into PATH")
}

fn version_of(linker: &Path) -> anyhow::Result<String> {
    let text = host::output(Command::new(linker).arg("--version"))?;
    Ok(text.trim().trim_start_matches("bpf-linker ").to_owned())
}

/// bpf-linker does not tell which LLVM is in it; the one installed beside it is what `cargo install` took.
fn llvm_version() -> String {
    let config = Path::new(LLVM_PREFIX).join("bin/llvm-config");
    let version = host::output(Command::new(config).arg("--version"));
    version.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
