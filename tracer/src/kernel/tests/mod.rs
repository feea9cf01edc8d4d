//! Tests against kernels that are not running: trimmed type information and made-up symbol tables.

use std::fs;

use tempfile::TempDir;

use super::Host;

mod damage;
mod edit;
mod kallsyms;
mod layout;

/// What `cargo xtask trim-btf` made of a kernel's type information.
const LINUX_6_18: &[u8] = include_bytes!("../fixtures/linux-6.18.btf");

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
