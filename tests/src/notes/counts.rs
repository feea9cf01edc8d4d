//! What the notes' programs count, and what the kernel counts beside them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::report::Counts;
use crate::sys;

/// What the server says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// How many connections `accept()` has returned.
    pub accepted: u64,
    /// To how many of them all 256 bytes were written.
    pub written: u64,
    /// To how many that failed.
    pub write_errors: u64,
    /// How many of them the client had ended before `accept()` returned them.
    pub dead: u64,
    /// How many were ended by a FIN before anything else.
    pub peer_fin: u64,
    /// How many were ended by a RST.
    pub peer_reset: u64,
    /// How many wait in the accept queue.
    pub waiting: u64,
    /// The clients, in the order of their coming, where they were asked for.
    pub peers: Vec<SocketAddr>,
}

impl Served {
    /// The clients, each once.
    #[must_use]
    pub fn peer_set(&self) -> BTreeSet<SocketAddr> {
        self.peers.iter().copied().collect()
    }
}

/// What a process of clients says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// Whether all threads are through with their `connect()`s.
    pub done: bool,
    /// How many `connect()`s were called.
    pub connects: u64,
    /// How many of them returned success.
    pub connected: u64,
    /// How many failed, by the name of the error.
    pub failed: Counts,
    /// How many connections were given up because of that.
    pub given_up: u64,
    /// The local ends of the connected.
    pub local: Vec<SocketAddr>,
    /// Of these, the ones whose SYN had to be sent again.
    pub resent: Vec<SocketAddr>,
    /// How many were closed with nothing unread, which sends a FIN.
    pub closed_clean: u64,
    /// How many were closed with bytes unread, which sends a RST.
    pub closed_unread: u64,
    /// How many are open, where that was asked for.
    pub open: u64,
    /// How many of these have bytes unread: the server has accepted them.
    pub unread: u64,
}

impl Connected {
    /// Adds what another thread or process has seen.
    pub fn add(&mut self, other: Self) {
        self.connects += other.connects;
        self.connected += other.connected;
        for (name, count) in other.failed {
            *self.failed.entry(name).or_default() += count;
        }
        self.given_up += other.given_up;
        self.local.extend(other.local);
        self.resent.extend(other.resent);
        self.closed_clean += other.closed_clean;
        self.closed_unread += other.closed_unread;
        self.open += other.open;
        self.unread += other.unread;
    }

    /// How many `connect()`s failed with this error.
    #[must_use]
    pub fn failed_by(&self, name: &str) -> u64 {
        self.failed.get(name).copied().unwrap_or(0)
    }

    /// How many failed with whatever error.
    #[must_use]
    pub fn all_failed(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Both together.
    #[must_use]
    pub fn sum(parts: &[Self]) -> Self {
        let mut sum = Self::default();
        parts.iter().cloned().for_each(|part| sum.add(part));
        sum
    }
}

/// The name of an error of `connect()`, as the notes' programs print it.
#[must_use]
pub fn errno_name(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => "EADDRNOTAVAIL".into(),
        Some(libc::ETIMEDOUT) => "ETIMEDOUT".into(),
        Some(libc::ECONNREFUSED) => "ECONNREFUSED".into(),
        Some(libc::ECONNRESET) => "ECONNRESET".into(),
        Some(libc::EINTR) => "EINTR".into(),
        _ => error.to_string(),
    }
}

/// How often the kernel has sent anything of this TCP socket's again: of a client that sends no data, its SYN.
///
/// # Errors
/// Fails when `TCP_INFO` does.
pub fn retransmits(socket: &impl AsFd) -> io::Result<u32> {
    Ok(sys::tcp_info(socket.as_fd())?.tcpi_total_retrans)
}

/// How many RSTs were sent in the calling thread's namespace so far, by the kernel's own count.
///
/// # Errors
/// Fails when the counters cannot be read.
pub fn resets_sent() -> Result<u64> {
    const PATH: &str = "/proc/thread-self/net/snmp";
    let text = fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, values) = (lines.next(), lines.next());
    let mut pairs = names.into_iter().flat_map(str::split_whitespace).zip(values.unwrap_or("").split_whitespace());
    let value = pairs.find(|(name, _)| *name == "OutRsts").and_then(|(_, value)| value.parse().ok());
    value.with_context(|| format!("{PATH} has no OutRsts"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_add_up_by_error() {
        let of = |name: &str, count| Connected {
            connects: 10,
            connected: 10 - count,
            failed: [(name.to_owned(), count)].into(),
            ..Connected::default()
        };
        let sum = Connected::sum(&[of("ETIMEDOUT", 2), of("EADDRNOTAVAIL", 3), of("ETIMEDOUT", 4)]);
        assert_eq!((sum.connects, sum.connected, sum.all_failed()), (30, 21, 9));
        assert_eq!((sum.failed_by("ETIMEDOUT"), sum.failed_by("EADDRNOTAVAIL")), (6, 3));
    }
}
