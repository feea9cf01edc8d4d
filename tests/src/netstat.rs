//! The kernel's own counters, read from `/proc/net/netstat`.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// The `TcpExt` counters of one namespace at one moment, or their change
/// between two moments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netstat(BTreeMap<String, u64>);

impl Netstat {
    /// Reads the counters of the calling thread's namespace.
    ///
    /// # Errors
    /// Fails when the file cannot be read or has another form than a line of
    /// names followed by a line of numbers.
    pub fn read() -> Result<Self> {
        const PATH: &str = "/proc/thread-self/net/netstat";
        let text = fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?;
        Self::parse(&text).with_context(|| format!("{PATH} has an unknown form"))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
        let names = lines.next().context("no line of TcpExt names")?;
        let values = lines.next().context("no line of TcpExt values")?;
        let counters = names
            .split_ascii_whitespace()
            .zip(values.split_ascii_whitespace())
            .map(|(name, value)| Ok((name.to_owned(), value.parse()?)))
            .collect::<Result<_>>()?;
        Ok(Self(counters))
    }

    /// What was added since `earlier`, which was read in the same namespace.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let change = |(name, value): (&String, &u64)| {
            (name.clone(), value.wrapping_sub(earlier.0.get(name).copied().unwrap_or(0)))
        };
        Self(self.0.iter().map(change).collect())
    }

    /// One counter, by the name that `nstat` shows without its `TcpExt` prefix.
    ///
    /// # Panics
    /// Panics when this kernel has no such counter: a scenario that needs it
    /// would prove nothing.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        *self.0.get(name).unwrap_or_else(|| panic!("this kernel has no TcpExt counter {name}"))
    }

    /// Whether this kernel has a counter.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The counters of `names` that are not 0, for one comparison of several.
    #[must_use]
    pub fn nonzero<'a>(&self, names: &[&'a str]) -> BTreeMap<&'a str, u64> {
        names.iter().map(|name| (*name, self.get(name))).filter(|(_, value)| *value > 0).collect()
    }
}

/// The counters that a report's `check` has to hold, in the contract's names.
pub const CHECKED: [&str; 7] = [
    "ListenDrops",
    "ListenOverflows",
    "TCPReqQFullDrop",
    "TCPReqQFullDoCookies",
    "SyncookiesSent",
    "SyncookiesRecv",
    "SyncookiesFailed",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_named_by_the_line_before_and_differences_are_by_name() -> Result<()> {
        let earlier = Netstat::parse("TcpExt: A B\nTcpExt: 1 20\nIpExt: A\nIpExt: 9\n")?;
        let later = Netstat::parse("TcpExt: A B\nTcpExt: 4 20\nIpExt: A\nIpExt: 9\n")?;
        let change = later.since(&earlier);
        assert_eq!((change.get("A"), change.get("B")), (3, 0));
        assert_eq!(change.nonzero(&["A", "B"]), [("A", 3)].into());
        assert!(Netstat::parse("TcpExt: A B\n").is_err());
        Ok(())
    }
}
