//! Which process holds a socket.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its id.
    pub pid: u32,
    /// Its name, up to 15 bytes.
    pub comm: String,
}

/// Finds the processes that hold the sockets with these inode numbers; of several, the one with the lowest id, which is
/// most often the parent of the others. `proc` is `/proc`. What may not be read or has just gone is passed over.
#[must_use]
pub fn find(proc: &Path, inodes: &BTreeSet<u64>) -> BTreeMap<u64, Owner> {
    let mut owners = BTreeMap::new();
    for pid in pids(proc) {
        if owners.len() == inodes.len() {
            break;
        }
        let dir = proc.join(pid.to_string());
        let Ok(fds) = fs::read_dir(dir.join("fd")) else { continue };
        for fd in fds.flatten() {
            let Ok(target) = fs::read_link(fd.path()) else { continue };
            let Some(inode) = target.to_str().and_then(socket_inode) else { continue };
            if inodes.contains(&inode) {
                owners.entry(inode).or_insert_with(|| Owner { pid, comm: comm(proc, pid).unwrap_or_default() });
            }
        }
    }
    owners
}

/// The name of a process, or `None` if it has gone.
#[must_use]
pub fn comm(proc: &Path, pid: u32) -> Option<String> {
    let name = fs::read(proc.join(format!("{pid}/comm"))).ok()?;
    Some(String::from_utf8_lossy(name.trim_ascii_end()).into_owned())
}

/// The ids of all processes, ascending.
pub(super) fn pids(proc: &Path) -> BTreeSet<u32> {
    let Ok(entries) = fs::read_dir(proc) else { return BTreeSet::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn socket_inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn process(proc: &Path, pid: &str, name: &str, fds: &[&str]) {
        let fd = proc.join(pid).join("fd");
        fs::create_dir_all(&fd).expect("a writable directory");
        fs::write(proc.join(pid).join("comm"), format!("{name}\n")).expect("a writable file");
        for (n, target) in fds.iter().enumerate() {
            symlink(target, fd.join(n.to_string())).expect("a new link");
        }
    }

    #[test]
    fn the_lowest_pid_owns_a_shared_socket() {
        let proc = tempfile::tempdir().expect("a temporary directory");
        process(proc.path(), "1000", "worker", &["/dev/null", "socket:[7]", "socket:[8]"]);
        process(proc.path(), "99", "the master", &["socket:[7]", "pipe:[9]"]);
        fs::create_dir(proc.path().join("98")).expect("a process that has just gone");
        fs::create_dir(proc.path().join("self")).expect("no number");
        let owners = find(proc.path(), &BTreeSet::from([7, 8, 9, 10]));
        let expected = BTreeMap::from([
            (7, Owner { pid: 99, comm: "the master".into() }),
            (8, Owner { pid: 1000, comm: "worker".into() }),
        ]);
        assert_eq!(owners, expected);
    }

    #[test]
    fn a_socket_of_this_process_is_found() {
        use std::os::fd::AsRawFd;
        use std::os::linux::fs::MetadataExt;
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let inode = fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).expect("open").st_ino();
        let owners = find(Path::new("/proc"), &BTreeSet::from([inode]));
        assert_eq!(owners[&inode].pid, std::process::id());
    }
}
