//! Tests against kernels that are not running: trimmed type information and made-up symbol tables.

use std::fs;

use tempfile::TempDir;

use super::{Host, Layout, Signatures};

mod damage;
pub(crate) mod edit;
mod kallsyms;
mod layout;

/// What `cargo xtask trim-btf` made of a kernel's type information, and what a C compiler makes of the same (fixtures/expect.sh).
/// 6.18 is a microVM's kernel, the others are those of Debian for clouds.
pub(crate) struct Fixture {
    /// The kernel's version.
    pub(crate) version: &'static str,
    /// The type information.
    pub(crate) btf: &'static [u8],
    /// What is in it, one a line.
    expected: &'static str,
}

macro_rules! fixture {
    ($version:literal) => {
        Fixture {
            version: $version,
            btf: include_bytes!(concat!("../fixtures/linux-", $version, ".btf")),
            expected: include_str!(concat!("../fixtures/linux-", $version, ".offsets")),
        }
    };
}

/// Every kernel whose type information is here, the oldest first.
pub(crate) const KERNELS: [Fixture; 5] =
    [fixture!("5.10"), fixture!("6.1"), fixture!("6.12"), fixture!("6.18"), fixture!("7.2")];

/// The one that damage is done to.
pub(crate) const LINUX_6_18: &[u8] = KERNELS[3].btf;

/// What this type information says of places in the kernel.
pub(crate) fn signatures(btf: &[u8]) -> Signatures {
    let (_root, host) = host_with_btf(btf);
    Layout::read(&host).unwrap().signatures
}

/// A host whose only file is this one, which is removed with it.
fn host_with(path: &str, content: &[u8]) -> (TempDir, Host) {
    let root = TempDir::new().unwrap();
    let file = root.path().join(path);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, content).unwrap();
    let host = Host::at(root.path());
    (root, host)
}

/// A host with this type information.
fn host_with_btf(btf: &[u8]) -> (TempDir, Host) {
    host_with("sys/kernel/btf/vmlinux", btf)
}
