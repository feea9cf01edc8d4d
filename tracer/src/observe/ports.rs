//! What holds the local ports towards one destination.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;

use super::{Owner, owners, sock_diag};

/// Local ports in use towards one destination, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortsInUse {
    /// By state, named as `ss` names them.
    pub by_state: BTreeMap<&'static str, u64>,
    /// By process, the greatest number first; what no process holds (TIME_WAIT, orphans) is in none.
    pub by_process: Vec<(Owner, u64)>,
}

/// Looks at the sockets of the network namespace that this thread is in. `proc` is `/proc`.
///
/// # Errors
/// When the kernel does not list them.
pub fn in_use(proc: &Path, server: IpAddr, port: u16) -> Result<PortsInUse> {
    let held = sock_diag::connections_to(server, port)?;
    let mut ports = PortsInUse::default();
    for socket in &held {
        *ports.by_state.entry(state_name(socket.state)).or_default() += 1;
    }
    let inodes: BTreeSet<u64> = held.iter().map(|socket| socket.inode).filter(|inode| *inode != 0).collect();
    let mut by_process: BTreeMap<u32, (Owner, u64)> = BTreeMap::new();
    for owner in owners::find(proc, &inodes).into_values() {
        by_process.entry(owner.pid).or_insert_with(|| (owner, 0)).1 += 1;
    }
    ports.by_process = by_process.into_values().collect();
    ports.by_process.sort_by_key(|(owner, n)| (std::cmp::Reverse(*n), owner.pid));
    Ok(ports)
}

/// The name of a TCP state (`include/net/tcp_states.h`), as `ss` writes it.
fn state_name(state: u8) -> &'static str {
    const NAMES: [&str; 13] = [
        "UNKNOWN",
        "ESTAB",
        "SYN-SENT",
        "SYN-RECV",
        "FIN-WAIT-1",
        "FIN-WAIT-2",
        "TIME-WAIT",
        "CLOSE",
        "CLOSE-WAIT",
        "LAST-ACK",
        "LISTEN",
        "CLOSING",
        "SYN-RECV",
    ];
    NAMES.get(usize::from(state)).copied().unwrap_or(NAMES[0])
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn ports_are_counted_by_state_and_by_who_holds_them() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(address).expect("a listener")).collect();
        let found = in_use(Path::new("/proc"), address.ip(), address.port()).expect("sock_diag");
        assert_eq!(found.by_state, BTreeMap::from([("ESTAB", 3)]));
        let own = std::process::id();
        let held: Vec<_> = found.by_process.iter().map(|(owner, n)| (owner.pid, *n)).collect();
        assert_eq!(held, [(own, 3)]);
        drop(clients);
    }
}
