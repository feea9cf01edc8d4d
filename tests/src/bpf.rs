//! What BPF keeps in the kernel, by the kernel's own listings.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A kind of thing that the kernel lists by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Loaded programs.
    Program,
    /// Maps.
    Map,
    /// Links, which hold programs at their places.
    Link,
}

impl Kind {
    /// The command of `bpf(2)` that names the next one after a number.
    fn next(self) -> libc::c_int {
        const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
        const BPF_MAP_GET_NEXT_ID: libc::c_int = 12;
        const BPF_LINK_GET_NEXT_ID: libc::c_int = 31;
        match self {
            Self::Program => BPF_PROG_GET_NEXT_ID,
            Self::Map => BPF_MAP_GET_NEXT_ID,
            Self::Link => BPF_LINK_GET_NEXT_ID,
        }
    }
}

/// The part of `union bpf_attr` that the commands of [`Kind`] read and write.
#[repr(C)]
struct NextId {
    start: u32,
    next: u32,
    flags: u32,
}

/// The numbers of everything of this kind that is in the kernel now, whoever owns it.
///
/// # Errors
/// Fails without root, and on kernels without BPF.
pub fn ids(kind: Kind) -> Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    let mut last = 0;
    loop {
        match next_id(kind, last) {
            Ok(id) => {
                found.insert(id);
                last = id;
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(found),
            Err(error) => return Err(error).with_context(|| format!("cannot list what BPF has of kind {kind:?}")),
        }
    }
}

fn next_id(kind: Kind, after: u32) -> io::Result<u32> {
    let mut attributes = NextId { start: after, next: 0, flags: 0 };
    // SAFETY: the kernel reads and writes as many bytes of `attributes` as it is told, and that outlives the call.
    let status =
        unsafe { libc::syscall(libc::SYS_bpf, kind.next(), &raw mut attributes, size_of::<NextId>() as libc::c_uint) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(attributes.next) }
}

/// The numbers that process `pid` holds descriptors of.
///
/// # Errors
/// Fails when the process is gone.
pub fn held_by(pid: u32, kind: Kind) -> Result<BTreeSet<u32>> {
    let field = match kind {
        Kind::Program => "prog_id:",
        Kind::Map => "map_id:",
        Kind::Link => "link_id:",
    };
    let directory = PathBuf::from(format!("/proc/{pid}/fdinfo"));
    let mut held = BTreeSet::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
        // A descriptor may be closed while they are looked at.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        // A link's text names its program too, which need not be held by a descriptor of its own.
        let own =
            text.lines().filter_map(|line| line.strip_prefix(field)).filter_map(|id| id.trim().parse::<u32>().ok());
        held.extend(own);
    }
    Ok(held)
}

/// Every file in the file system where BPF can be pinned; none where that is not mounted.
///
/// # Errors
/// Fails when a directory there cannot be read.
pub fn pins() -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut directories = vec![PathBuf::from("/sys/fs/bpf")];
    while let Some(directory) = directories.pop() {
        for entry in read_directory(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    Ok(found)
}

fn read_directory(path: &Path) -> Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    match fs::read_dir(path) {
        Ok(entries) => Ok(Some(entries).into_iter().flatten()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None.into_iter().flatten()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The probes that were made by way of tracefs; empty on kernels without kprobes.
///
/// # Errors
/// Fails when the file is there and cannot be read.
pub fn kprobe_events() -> Result<String> {
    const PATH: &str = "/sys/kernel/tracing/kprobe_events";
    match fs::read_to_string(PATH) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {PATH}")),
    }
}
