//! What a distribution has done before anybody logs in.

use std::{
    fs::{self, File},
    process::Command,
};

use anyhow::{Context as _, ensure};
use rustix::{
    io::Errno,
    mount::{MountFlags, mount},
    process::{Resource, Rlimit, setrlimit},
};

/// File systems: type and place.
const MOUNTS: [(&str, &str); 8] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("tracefs", "/sys/kernel/tracing"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
];

/// Mounts them.
pub(crate) fn mounts() -> anyhow::Result<()> {
    for (kind, place) in MOUNTS {
        // Those below /sys are there already and cannot be made.
        let _ = fs::create_dir_all(place);
        match mount(kind, place, kind, MountFlags::empty(), None) {
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot mount {kind} on {place}")),
        }
    }
    Ok(())
}

/// Lets processes open as many files as scenarios with thousands of connections need; a kernel begins with 4096 at most.
pub(crate) fn limits() -> anyhow::Result<()> {
    const FILES: Option<u64> = Some(65_536);
    setrlimit(Resource::Nofile, Rlimit { current: FILES, maximum: FILES })
        .context("cannot raise the limit of open files")
}

/// Loads modules in the given order.
pub(crate) fn modules(paths: &[String]) -> anyhow::Result<()> {
    for path in paths {
        let file = File::open(path).with_context(|| format!("cannot open {path}"))?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot load {path}")),
        }
    }
    Ok(())
}

/// Brings `lo` up.
pub(crate) fn loopback() -> anyhow::Result<()> {
    let mut command = Command::new("/bin/busybox");
    let status = command.args(["ip", "link", "set", "lo", "up"]).status().context("cannot start busybox")?;
    ensure!(status.success(), "cannot bring lo up: {status}");
    Ok(())
}
