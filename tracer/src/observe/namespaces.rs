//! Network namespaces: which there are, and how to look at one from inside.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::fs::MetadataExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::owners;

/// `NSFS_MAGIC` of `include/uapi/linux/magic.h`.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// A network namespace, and one way to open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its inode number, which identifies it on this machine (`net:[N]`).
    pub inode: u32,
    /// The last part of the path where it is bound, as `ip netns` and container runtimes name it.
    pub name: Option<String>,
    /// A path to open it by.
    pub path: PathBuf,
}

impl Namespace {
    /// Opens the namespace. As long as the file is open, the namespace stays.
    ///
    /// # Errors
    /// When it has gone, or may not be opened.
    pub fn open(&self) -> Result<File> {
        let file = File::open(&self.path).with_context(|| format!("cannot open {}", self))?;
        let found = file.metadata().with_context(|| format!("cannot look at {}", self))?.st_ino();
        if found != u64::from(self.inode) {
            bail!("{self} has gone: its path now leads to net:[{found}]");
        }
        Ok(file)
    }
}

impl std::fmt::Display for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "network namespace {} ({})", self.inode, self.path.display())
    }
}

/// The network namespace that this thread is in; `proc` is `/proc`.
///
/// # Errors
/// When /proc is not mounted.
pub fn current(proc: &Path) -> Result<Namespace> {
    let path = proc.join("thread-self/ns/net");
    let inode = link(&path).with_context(|| format!("cannot read {}", path.display()))?;
    // A path that means the same in every thread and does not end with this one.
    let path = proc.join("self/ns/net");
    Ok(Namespace { inode, name: None, path })
}

/// The network namespace of a process; `proc` is `/proc`.
///
/// # Errors
/// When there is no such process, or it may not be looked at.
pub fn of_process(proc: &Path, pid: u32) -> Result<Namespace> {
    let path = proc.join(format!("{pid}/ns/net"));
    let inode = link(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!("there is no process {pid}"),
        _ => anyhow::Error::new(error).context(format!("cannot look at the network namespace of process {pid}")),
    })?;
    Ok(Namespace { inode, name: None, path })
}

/// The network namespace at a path: a bind mount such as `/run/netns/NAME`, or a file such as `/proc/PID/ns/net`.
///
/// # Errors
/// When there is nothing at the path, or no network namespace.
pub fn at_path(path: &Path) -> Result<Namespace> {
    if let Ok(inode) = link(path) {
        return Ok(Namespace { inode, name: None, path: path.to_owned() });
    }
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let on_nsfs = rustix::fs::fstatfs(&file).is_ok_and(|fs| fs.f_type as u64 == NSFS_MAGIC);
    let inode = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?.st_ino();
    // A bind mount does not say which kind of namespace it is; the list of mounts does.
    match mounted(Path::new("/proc"))?.into_iter().find(|namespace| u64::from(namespace.inode) == inode) {
        Some(namespace) if on_nsfs => Ok(Namespace { path: path.to_owned(), ..namespace }),
        _ => bail!("{} is no network namespace; `ip netns` lists those with a name", path.display()),
    }
}

/// All network namespaces that a thread lives in or that are bound to a path that this process can see, by inode.
/// `proc` is `/proc`. What may not be read or has just gone is passed over.
///
/// # Errors
/// When /proc is not mounted.
pub fn all(proc: &Path) -> Result<Vec<Namespace>> {
    let mut found = BTreeMap::new();
    for namespace in mounted(proc)? {
        found.entry(namespace.inode).or_insert(namespace);
    }
    // A thread can be in another namespace than its process: that is how a program serves several.
    for pid in owners::pids(proc) {
        let threads = owners::pids(&proc.join(format!("{pid}/task"))).into_iter().filter(|tid| *tid != pid);
        let paths = threads.map(|tid| format!("{pid}/task/{tid}/ns/net"));
        for path in std::iter::once(format!("{pid}/ns/net")).chain(paths) {
            let path = proc.join(path);
            if let Ok(inode) = link(&path) {
                found.entry(inode).or_insert(Namespace { inode, name: None, path });
            }
        }
    }
    let own = current(proc)?;
    // The shortest way in, and one that does not vanish.
    found.entry(own.inode).and_modify(|namespace| namespace.path.clone_from(&own.path)).or_insert(own);
    Ok(found.into_values().collect())
}

fn mounted(proc: &Path) -> Result<Vec<Namespace>> {
    let path = proc.join("self/mountinfo");
    let mountinfo = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bound(&mountinfo))
}

/// Bind mounts of network namespaces in the text of a mountinfo file (`show_mountinfo()` in `fs/proc_namespace.c`).
fn bound(mountinfo: &str) -> Vec<Namespace> {
    let mut namespaces = Vec::new();
    for line in mountinfo.lines() {
        // id parent major:minor root mount-point options [optional ...] - type source super-options
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut fields = left.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
        if !right.starts_with("nsfs ") {
            continue;
        }
        if let Some(inode) = inode_of(root) {
            let path = PathBuf::from(unescape(point));
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            namespaces.push(Namespace { inode, name, path });
        }
    }
    namespaces
}

/// Undoes `mangle()` of `fs/seq_file.c`: blank, tab, newline and backslash are written as three octal digits.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .into_iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

fn link(path: &Path) -> io::Result<u32> {
    let target = fs::read_link(path)?;
    target
        .to_str()
        .and_then(inode_of)
        .ok_or_else(|| io::Error::other(format!("it leads to {}, not to a network namespace", target.display())))
}

fn inode_of(text: &str) -> Option<u32> {
    text.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// Runs `f` inside the namespace, in a thread of its own that ends with it; this thread stays where it is.
///
/// # Errors
/// When the namespace has gone or may not be entered, and whatever `f` fails with.
pub fn in_namespace<T: Send>(namespace: &Namespace, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    // Entering needs a privilege that staying does not.
    if current(Path::new("/proc")).is_ok_and(|own| own.inode == namespace.inode) {
        return f();
    }
    let file = namespace.open()?;
    inside(file.as_fd(), namespace, f)
}

fn inside<T: Send>(fd: BorrowedFd<'_>, namespace: &Namespace, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let enter = || {
        move_into_link_name_space(fd, Some(LinkNameSpaceType::Network)).map_err(|error| {
            let remedy = match error {
                rustix::io::Errno::PERM => "; it takes CAP_SYS_ADMIN: run with sudo",
                rustix::io::Errno::INVAL => "; it is a namespace of another kind",
                _ => "",
            };
            anyhow::anyhow!("cannot enter {namespace}: {error}{remedy}")
        })?;
        f()
    };
    thread::scope(|scope| scope.spawn(enter).join()).unwrap_or_else(|panic| panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const MOUNTS: &str = "\
24 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw
90 25 0:4 net:[4026532210] /run/netns/blue rw shared:9 - nsfs nsfs rw
91 25 0:4 net:[4026532211] /run/netns/with\\040blank rw - nsfs nsfs rw
92 25 0:4 mnt:[4026532212] /run/snapd/ns/lxd.mnt rw - nsfs nsfs rw
93 25 0:4 net:[4026532210] /run/docker/netns/again rw - nsfs nsfs rw
short line
";

    #[test]
    fn bind_mounts_of_network_namespaces_are_found() {
        let found: Vec<_> = bound(MOUNTS).into_iter().map(|n| (n.inode, n.path)).collect();
        let expected = [
            (4026532210, PathBuf::from("/run/netns/blue")),
            (4026532211, PathBuf::from("/run/netns/with blank")),
            (4026532210, PathBuf::from("/run/docker/netns/again")),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn each_namespace_is_listed_once_and_a_name_is_preferred() {
        let proc = tempfile::tempdir().expect("a temporary directory");
        let process = |name: &str, target: &str| {
            let dir = proc.path().join(name).join("ns");
            fs::create_dir_all(&dir).expect("a writable directory");
            symlink(target, dir.join("net")).expect("a new link");
        };
        process("1", "net:[4026531840]");
        process("7", "net:[4026531840]");
        process("8", "net:[4026532299]");
        process("8/task/8", "net:[4026532299]");
        process("8/task/12", "net:[4026532300]");
        process("9", "net:[4026532210]");
        process("thread-self", "net:[4026531840]");
        fs::create_dir(proc.path().join("10")).expect("a process that has just gone");
        fs::create_dir(proc.path().join("self")).expect("a writable directory");
        fs::write(proc.path().join("self/mountinfo"), MOUNTS).expect("a writable file");
        let found: Vec<_> = all(proc.path())
            .expect("complete")
            .into_iter()
            .map(|n| (n.inode, n.name, n.path.strip_prefix(proc.path()).map(Path::to_owned).unwrap_or(n.path)))
            .collect();
        let expected = [
            (4026531840, None, PathBuf::from("self/ns/net")),
            (4026532210, Some("blue".to_owned()), PathBuf::from("/run/netns/blue")),
            (4026532211, Some("with blank".to_owned()), PathBuf::from("/run/netns/with blank")),
            (4026532299, None, PathBuf::from("8/ns/net")),
            (4026532300, None, PathBuf::from("8/task/12/ns/net")),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_own_namespace_needs_no_privilege() {
        let own = current(Path::new("/proc")).expect("/proc is mounted");
        let by_path = at_path(Path::new("/proc/self/ns/net")).expect("a namespace");
        assert_eq!(by_path.inode, own.inode);
        let seen = in_namespace(&own, || current(Path::new("/proc"))).expect("the own namespace");
        assert_eq!(seen.inode, own.inode);
        assert!(all(Path::new("/proc")).expect("/proc is mounted").iter().any(|n| n.inode == own.inode));
    }

    #[test]
    fn what_is_no_namespace_is_named() {
        let proc = Path::new("/proc");
        let error = at_path(Path::new("/run/no-such-name")).expect_err("nothing there");
        assert!(format!("{error:#}").contains("/run/no-such-name"), "{error:#}");
        for path in ["/dev/null", "/proc/self/ns/mnt"] {
            let error = at_path(Path::new(path)).expect_err("something else");
            assert!(format!("{error:#}").contains(&format!("{path} is no network namespace")), "{error:#}");
        }
        let error = of_process(proc, u32::MAX).expect_err("no such pid");
        assert_eq!(error.to_string(), format!("there is no process {}", u32::MAX));
    }

    #[test]
    fn a_namespace_that_has_gone_is_not_mistaken_for_another() {
        let own = current(Path::new("/proc")).expect("/proc is mounted");
        let gone = Namespace { inode: own.inode ^ 1, ..own };
        let error = in_namespace(&gone, || Ok(())).expect_err("another one");
        assert!(error.to_string().contains("has gone"), "{error:#}");
    }
}
