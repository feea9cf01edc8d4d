//! This program in the place of rustc, so that the object's bytes do not depend on who builds it where.
//!
//! File names reach the BTF line information. Here each crate's directory is replaced by its name, crate by crate: so it
//! holds for rust-src, registry mirrors and vendored sources too, whose directories no list could name in advance.

use std::{env, ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use anyhow::Context as _;

/// Set for the inner cargo: tells this program that it is called in the place of rustc.
const REQUEST: &str = "XTASK_RUSTC_WRAPPER";

/// Makes `command`, a cargo build, call this program for each crate.
pub(super) fn request(command: &mut Command) -> anyhow::Result<()> {
    let this = env::current_exe().context("cannot find this program's own file")?;
    command.env("RUSTC_WRAPPER", this).env(REQUEST, "1").env_remove("RUSTC_WORKSPACE_WRAPPER");
    Ok(())
}

/// Whether this process was started by the cargo of [`request`].
pub(crate) fn is_requested() -> bool {
    env::var_os(REQUEST).is_some()
}

/// Becomes rustc (first argument) with the arguments rewritten; returns only when that fails.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut args = env::args_os().skip(1);
    let rustc = args.next().context("called in the place of rustc, but without rustc's path")?;
    let args: Vec<OsString> = args.collect();
    let args = match Crate::from_environment() {
        Some(this) => rewrite(args, &this),
        // Questions about the compiler (`rustc -vV`) concern no crate.
        None => args,
    };
    let error = Command::new(&rustc).args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", rustc.display()))
}

/// What cargo tells in the environment about the crate that it wants compiled.
struct Crate {
    package: String,
    manifest_dir: String,
    current_dir: String,
}

impl Crate {
    fn from_environment() -> Option<Self> {
        Some(Self {
            package: env::var("CARGO_PKG_NAME").ok()?,
            manifest_dir: env::var("CARGO_MANIFEST_DIR").ok()?,
            current_dir: env::current_dir().ok()?.into_os_string().into_string().ok()?,
        })
    }
}

/// Host crates (build scripts, macros) keep their arguments: nothing of them reaches the object.
fn rewrite(mut args: Vec<OsString>, this: &Crate) -> Vec<OsString> {
    let Crate { package, manifest_dir, current_dir } = this;
    if !args.windows(2).any(|pair| pair[0] == "--target" && pair[1] == super::TARGET) {
        return args;
    }
    // The later rule wins where both fit. The new names exist on no machine, so that no source text gets in either.
    args.push(format!("--remap-path-prefix={current_dir}=/tracer-build").into());
    args.push(format!("--remap-path-prefix={manifest_dir}=/tracer-build/{package}").into());
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn this() -> Crate {
        Crate {
            package: "aya-ebpf".into(),
            manifest_dir: "/home/u/registry/aya-ebpf-0.2.1".into(),
            current_dir: "/home/u/registry".into(),
        }
    }

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_directory_of_a_kernel_side_crate_becomes_its_name() {
        let before = words("--crate-name aya_ebpf --target bpfel-unknown-none");
        let after = words(
            "--crate-name aya_ebpf --target bpfel-unknown-none \
             --remap-path-prefix=/home/u/registry=/tracer-build \
             --remap-path-prefix=/home/u/registry/aya-ebpf-0.2.1=/tracer-build/aya-ebpf",
        );
        assert_eq!(rewrite(before, &this()), after);
    }

    #[test]
    fn a_host_crate_is_left_alone() {
        let args = words("--crate-name syn");
        assert_eq!(rewrite(args.clone(), &this()), args);
    }
}
