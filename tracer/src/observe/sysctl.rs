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
    })
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

    const ALL: [(&str, &str); 6] = [
        ("net/core/somaxconn", "4096\n"),
        ("net/ipv4/tcp_max_syn_backlog", "2048\n"),
        ("net/ipv4/tcp_syncookies", "1\n"),
        ("net/ipv4/tcp_abort_on_overflow", "0\n"),
        ("net/ipv4/tcp_synack_retries", "5\n"),
        ("net/ipv4/ip_local_port_range", "32768\t60999\n"),
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
    fn this_kernel_has_them_all() {
        read(Path::new("/proc/sys")).expect("/proc/sys is mounted");
    }
}
