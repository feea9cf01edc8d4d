//! A fresh network namespace for the calling thread.

use std::fs::{self, File};
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{netfilter, sys};

/// A network namespace that the thread which made it has moved into.
///
/// Threads and processes started from that thread begin in it too. Dropping the
/// value moves the thread back; the kernel removes the namespace when the last
/// socket and the last thread in it are gone. The value cannot leave its thread,
/// since it is the thread that has moved.
#[derive(Debug)]
pub struct Namespace {
    own: File,
    host: File,
    not_send: PhantomData<*const ()>,
}

impl Namespace {
    /// Makes a namespace with the loopback interface up and moves the calling
    /// thread into it.
    ///
    /// # Errors
    /// Fails without root, or when the kernel refuses a namespace.
    pub fn enter() -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "the scenarios make network namespaces and trace the kernel: run them as root, \
             for example with `sudo -E cargo xtask test`"
        );
        let host = File::open(CURRENT).context("cannot open this thread's network namespace")?;
        sys::unshare_network().context("cannot make a network namespace")?;
        let own = File::open(CURRENT).context("cannot open the new network namespace")?;
        let namespace = Self { own, host, not_send: PhantomData };
        sys::bring_up("lo").context("cannot bring lo up in the new namespace")?;
        // A namespace may inherit its host's sysctls: begin from known values.
        for (name, value) in [
            ("net/core/somaxconn", "4096"),
            ("net/ipv4/tcp_max_syn_backlog", "2048"),
            ("net/ipv4/tcp_syncookies", "1"),
            ("net/ipv4/tcp_abort_on_overflow", "0"),
            ("net/ipv4/tcp_synack_retries", "5"),
            ("net/ipv4/tcp_syn_retries", "6"),
            ("net/ipv4/ip_local_port_range", "32768 60999"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ] {
            namespace.set(name, value)?;
        }
        Ok(namespace)
    }

    /// Writes a sysctl of this namespace, named by its path below `/proc/sys`.
    ///
    /// # Errors
    /// Fails when the kernel has no such sysctl or refuses the value.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        // The kernel shows each thread the sysctls of its own namespace.
        fs::write(format!("/proc/sys/{name}"), value).with_context(|| format!("cannot set sysctl {name} to {value}"))
    }

    /// Makes netfilter drop every packet that arrives in this namespace from now
    /// on, on loopback too.
    ///
    /// # Errors
    /// Fails when this kernel has no nf_tables.
    pub fn drop_input_by_netfilter(&self) -> Result<()> {
        netfilter::drop_input().context("cannot make an nf_tables chain: load the module with `modprobe nf_tables`")
    }

    /// A path that opens this namespace from anywhere on the machine, as
    /// `--netns` takes it, for as long as this value lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.own.as_raw_fd()).into()
    }

    /// The namespace's inode number, as reports name it.
    ///
    /// # Errors
    /// Fails when the namespace's file cannot be examined.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.own.metadata().context("cannot examine the namespace")?.ino())
    }

    /// The namespace that the thread came from.
    #[must_use]
    pub fn host(&self) -> BorrowedFd<'_> {
        self.host.as_fd()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        move_into_link_name_space(self.host.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("a thread may return to the namespace that it came from");
    }
}

/// The calling thread's network namespace (`/proc/self` would be the main thread's).
const CURRENT: &str = "/proc/thread-self/ns/net";

/// How many half-open requests the kernel holds for local port `port` in the
/// calling thread's namespace: the `SYN_RECV` lines of `/proc/net/tcp` and `tcp6`.
///
/// # Errors
/// Fails when the tables cannot be read.
pub fn half_open(port: u16) -> Result<usize> {
    const SYN_RECV: u8 = 3;
    let sockets = tcp_sockets()?;
    Ok(sockets.iter().filter(|it| it.local == port && it.state == SYN_RECV).count())
}

/// How many half-open requests a listener with this limit holds. Its accept queue holds one more than the limit on every kernel;
/// its requests are one more too, but not on 5.10, where `inet_csk_reqsk_queue_is_full()` compares with `>=` instead of `>`.
#[must_use]
pub fn held_requests(limit: usize) -> usize {
    let release = rustix::system::uname();
    let is_old = release.release().to_str().is_ok_and(|release| release.starts_with("5."));
    if is_old { limit } else { limit + 1 }
}

/// Whether nothing can happen any more on port `port` of the calling thread's
/// namespace unless somebody begins something new: there are only listeners
/// whose queues are empty, and connections of which this end has been closed.
///
/// # Errors
/// Fails when the tables cannot be read.
pub fn is_quiet(port: u16) -> Result<bool> {
    Ok(!tcp_sockets()?.iter().any(|it| it.is_busy(port)))
}

/// What keeps [`is_quiet`] from being true, for a message.
#[must_use]
pub fn busy_sockets(port: u16) -> String {
    let sockets = tcp_sockets().unwrap_or_default();
    format!("{:?}", sockets.iter().filter(|it| it.is_busy(port)).collect::<Vec<_>>())
}

/// How many connections of server port `port` the kernel still knows at the
/// server's end, in whatever state.
///
/// # Errors
/// Fails when the tables cannot be read.
pub fn server_ends(port: u16) -> Result<usize> {
    Ok(tcp_sockets()?.iter().filter(|it| it.local == port && it.state != LISTEN).count())
}

/// How many closed clients of remote port `port` still wait for the server to
/// acknowledge their FIN.
///
/// # Errors
/// Fails when the tables cannot be read.
pub fn clients_closing(port: u16) -> Result<usize> {
    const FIN_WAIT_1: u8 = 4;
    let sockets = tcp_sockets()?;
    Ok(sockets.iter().filter(|it| it.remote == port && it.state == FIN_WAIT_1).count())
}

const LISTEN: u8 = 10;

/// A line of `/proc/net/tcp` or `tcp6`.
#[derive(Debug)]
struct TcpSocket {
    local: u16,
    remote: u16,
    state: u8,
    /// Bytes to read; for a listener, connections to accept.
    receive_queue: u32,
}

impl TcpSocket {
    fn is_busy(&self, port: u16) -> bool {
        const FIN_WAIT_2: u8 = 5;
        const TIME_WAIT: u8 = 6;
        let of_this_port = self.local == port || self.remote == port;
        of_this_port
            && match self.state {
                FIN_WAIT_2 | TIME_WAIT => false,
                LISTEN => self.receive_queue > 0,
                _ => true,
            }
    }
}

fn tcp_sockets() -> Result<Vec<TcpSocket>> {
    let mut sockets = Vec::new();
    for table in ["tcp", "tcp6"] {
        let path = format!("/proc/thread-self/net/{table}");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        for line in text.lines().skip(1) {
            sockets.push(tcp_socket(line).with_context(|| format!("unknown line in {path}: {line}"))?);
        }
    }
    Ok(sockets)
}

fn tcp_socket(line: &str) -> Option<TcpSocket> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let local = port(fields.next()?)?;
    let remote = port(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let receive_queue = u32::from_str_radix(fields.next()?.rsplit(':').next()?, 16).ok()?;
    Some(TcpSocket { local, remote, state, receive_queue })
}

/// The two IP versions, so that a workload can be written once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The loopback address.
    #[must_use]
    pub fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// The wildcard address.
    #[must_use]
    pub fn any(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_fresh_and_the_thread_returns_from_it() -> Result<()> {
        let inode = || -> Result<u64> { Ok(fs::metadata(CURRENT)?.ino()) };
        let host = inode()?;
        let namespace = Namespace::enter()?;
        assert_eq!(inode()?, namespace.inode()?);
        assert_ne!(inode()?, host);
        namespace.set("net/core/somaxconn", "7")?;
        assert_eq!(fs::read_to_string("/proc/sys/net/core/somaxconn")?.trim(), "7");
        assert_eq!(fs::metadata(namespace.path())?.ino(), namespace.inode()?);
        drop(namespace);
        assert_eq!(inode()?, host);
        Ok(())
    }
}
