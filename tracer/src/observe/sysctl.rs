//! The settings that limit queues and ports, of one network namespace.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Settings of a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sysctls {
    /// `net.core.somaxconn`: what `listen()` is cut down to.
    pub somaxconn: u32,
    /// `net.ipv4.tcp_max_syn_backlog`: with syncookies off, its last quarter is kept for proven peers.
    pub max_syn_backlog: u32,
    /// `net.ipv4.tcp_syncookies`: 0 never, 1 when the half-open queue is full, 2 always.
    pub syncookies: u32,
    /// `net.ipv4.tcp_abort_on_overflow`: whether a client whose final ACK finds the accept queue full is sent a RST.
    pub abort_on_overflow: bool,
    /// `net.ipv4.tcp_synack_retries`: how often a SYN-ACK is sent again.
    pub synack_retries: u32,
    /// `net.ipv4.ip_local_port_range`, first and last.
    pub local_port_range: (u16, u16),
    /// How many ports of that range `net.ipv4.ip_local_reserved_ports` takes out of it.
    pub reserved_ports: u16,
    /// `net.ipv4.tcp_tw_reuse`: whether a new connection may take the port of one in TIME_WAIT: 0 no, 1 yes, 2 over loopback.
    pub tw_reuse: u32,
}

/// Reads the settings of the network namespace that this thread is in; `root` is `/proc/sys`.
///
/// # Errors
/// When a file cannot be read or holds something else than numbers.
pub fn read(root: &Path) -> Result<Sysctls> {
    let range = numbers(root, "net/ipv4/ip_local_port_range")?;
    let [first, last] = range[..] else {
        bail!("net.ipv4.ip_local_port_range holds {} numbers, not two", range.len());
    };
    let port = |n: u32| u16::try_from(n).with_context(|| format!("net.ipv4.ip_local_port_range names port {n}"));
    Ok(Sysctls {
        somaxconn: number(root, "net/core/somaxconn")?,
        max_syn_backlog: number(root, "net/ipv4/tcp_max_syn_backlog")?,
        syncookies: number(root, "net/ipv4/tcp_syncookies")?,
        abort_on_overflow: number(root, "net/ipv4/tcp_abort_on_overflow")? != 0,
        synack_retries: number(root, "net/ipv4/tcp_synack_retries")?,
        local_port_range: (port(first)?, port(last)?),
        reserved_ports: reserved(root, port(first)?, port(last)?)?,
        tw_reuse: number(root, "net/ipv4/tcp_tw_reuse")?,
    })
}

/// How many ports from `first` to `last` are reserved: a list such as `8080,9000-9010`, which the kernel keeps in order and
/// without overlaps.
fn reserved(root: &Path, first: u16, last: u16) -> Result<u16> {
    let path = root.join("net/ipv4/ip_local_reserved_ports");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut count = 0;
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let port = |word: &str| -> Result<u16> {
            word.parse().with_context(|| format!("{} holds '{part}', not a port", path.display()))
        };
        let (from, to) = (port(from)?.max(first), port(to)?.min(last));
        count += if from <= to { to - from + 1 } else { 0 };
    }
    Ok(count)
}

fn number(root: &Path, name: &str) -> Result<u32> {
    match numbers(root, name)?[..] {
        [n] => Ok(n),
        ref other => bail!("{} holds {} numbers, not one", name.replace('/', "."), other.len()),
    }
}

fn numbers(root: &Path, name: &str) -> Result<Vec<u32>> {
    let path = root.join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let parse = |word: &str| word.parse().with_context(|| format!("{} holds '{word}', not a number", path.display()));
    text.split_whitespace().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a file has a parent")).expect("a writable directory");
            fs::write(path, text).expect("a writable file");
        }
        dir
    }

    const ALL: [(&str, &str); 8] = [
        ("net/core/somaxconn", "4096\n"),
        ("net/ipv4/tcp_max_syn_backlog", "2048\n"),
        ("net/ipv4/tcp_syncookies", "1\n"),
        ("net/ipv4/tcp_abort_on_overflow", "0\n"),
        ("net/ipv4/tcp_synack_retries", "5\n"),
        ("net/ipv4/ip_local_port_range", "32768\t60999\n"),
        ("net/ipv4/ip_local_reserved_ports", "8080,32760-32769,40000,60999-61001\n"),
        ("net/ipv4/tcp_tw_reuse", "2\n"),
    ];

    #[test]
    fn every_setting_is_read() {
        let sysctls = read(root(&ALL).path()).expect("complete");
        let expected = Sysctls {
            somaxconn: 4096,
            max_syn_backlog: 2048,
            syncookies: 1,
            abort_on_overflow: false,
            synack_retries: 5,
            local_port_range: (32768, 60999),
            reserved_ports: 4,
            tw_reuse: 2,
        };
        assert_eq!(sysctls, expected);
    }

    #[test]
    fn a_missing_or_odd_file_is_named() {
        let error = read(root(&ALL[1..]).path()).expect_err("no somaxconn");
        assert!(format!("{error:#}").contains("net/core/somaxconn"), "{error:#}");
        let mut odd = ALL;
        odd[5].1 = "32768";
        let error = read(root(&odd).path()).expect_err("half a range");
        assert!(format!("{error:#}").contains("ip_local_port_range"), "{error:#}");
        odd[5].1 = "1 70000";
        assert!(read(root(&odd).path()).is_err());
    }

    #[test]
    fn reserved_ports_count_where_they_are_in_the_range() {
        let mut files = ALL;
        for (list, count) in [("\n", 0), ("1-65535", 28_232), ("32768", 1), ("60999-60999", 1), ("1-100,61000", 0)] {
            files[6].1 = list;
            assert_eq!(read(root(&files).path()).expect("complete").reserved_ports, count, "{list}");
        }
        files[6].1 = "5-x";
        let error = read(root(&files).path()).expect_err("no port");
        assert!(format!("{error:#}").contains("ip_local_reserved_ports holds '5-x'"), "{error:#}");
    }

    #[test]
    fn this_kernel_has_them_all() {
        read(Path::new("/proc/sys")).expect("/proc/sys is mounted");
    }
}
