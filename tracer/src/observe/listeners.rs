//! The listening sockets of now.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use super::namespaces::{self, Namespace};
use super::owners::{self, Owner};
use super::sock_diag::{self, Socket};
use super::sysctl::{self, Sysctls};

/// A listening TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Port.
    pub port: u16,
    /// Address that it is bound to; an IPv4 address as such.
    pub address: IpAddr,
    /// An IPv6 socket that takes IPv4 as well.
    pub dual_stack: bool,
    /// Inode number of its network namespace.
    pub netns: u32,
    /// Its own inode number.
    pub inode: u64,
    /// The process that holds it, if that may be looked at.
    pub owner: Option<Owner>,
    /// Connections that wait for `accept()`.
    pub accept_queue: u32,
    /// Limit of the accept queue (`sk_max_ack_backlog`); a listener with limit N holds N + 1.
    pub backlog: u32,
    /// Half-open requests; `None` where several listeners share the port and the requests cannot be told apart.
    pub half_open: Option<u32>,
    /// Settings of its namespace.
    pub sysctls: Sysctls,
}

/// What was found, and what could not be looked at.
#[derive(Debug, Default)]
pub struct Scan {
    /// Listening sockets by namespace, port and address.
    pub listeners: Vec<Listening>,
    /// One sentence for each namespace that could not be looked at.
    pub missed: Vec<String>,
}

/// Lists the listening sockets of these namespaces whose port is wanted; `proc` is `/proc`.
#[must_use]
pub fn scan(proc: &Path, namespaces: &[Namespace], wanted: impl Fn(u16) -> bool + Sync) -> Scan {
    let mut scan = Scan::default();
    for namespace in namespaces {
        let sockets =
            namespaces::in_namespace(namespace, || Ok((sock_diag::sockets()?, sysctl::read(&proc.join("sys"))?)));
        match sockets {
            Ok((sockets, sysctls)) => scan.listeners.extend(join(namespace.inode, &sockets, sysctls, &wanted)),
            Err(error) => scan.missed.push(format!("{error:#}")),
        }
    }
    scan.listeners.sort_by_key(|l| (l.netns, l.port, l.address, l.inode));
    let inodes: BTreeSet<u64> = scan.listeners.iter().map(|l| l.inode).collect();
    let owners = owners::find(proc, &inodes);
    for listener in &mut scan.listeners {
        listener.owner = owners.get(&listener.inode).cloned();
    }
    scan
}

fn join<'a>(
    netns: u32,
    sockets: &'a [Socket],
    sysctls: Sysctls,
    wanted: &'a impl Fn(u16) -> bool,
) -> impl Iterator<Item = Listening> + 'a {
    let listeners = || sockets.iter().filter(|s| s.listening);
    listeners().filter(|s| wanted(s.port)).map(move |socket| {
        let alone = listeners().filter(|other| other.port == socket.port).count() == 1;
        let half_open = sockets.iter().filter(|s| !s.listening && s.port == socket.port).count();
        Listening {
            port: socket.port,
            address: socket.local,
            dual_stack: socket.local.is_ipv6() && socket.local.is_unspecified() && !socket.v6only,
            netns,
            inode: socket.inode,
            owner: None,
            accept_queue: socket.accept_queue,
            backlog: socket.backlog,
            half_open: alone.then(|| u32::try_from(half_open).unwrap_or(u32::MAX)),
            sysctls,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    fn own(wanted: u16) -> Vec<Listening> {
        let proc = Path::new("/proc");
        let namespace = namespaces::current(proc).expect("/proc is mounted");
        let scan = scan(proc, &[namespace], |port| port == wanted);
        assert!(scan.missed.is_empty(), "{:?}", scan.missed);
        scan.listeners
    }

    #[test]
    fn a_listener_of_this_process_is_found_with_its_queue_limit_and_owner() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let _waiting = TcpStream::connect(address).expect("room in the queue");
        // The client may return before its ACK has reached the other side.
        let deadline = Instant::now() + Duration::from_secs(10);
        let found = loop {
            let found = own(address.port());
            assert_eq!(found.len(), 1, "{found:?}");
            if found[0].accept_queue > 0 || Instant::now() > deadline {
                break found[0].clone();
            }
            std::thread::yield_now();
        };
        assert_eq!((found.address, found.port), (address.ip(), address.port()));
        // std asks for 128 (or for -1, which is cut down to somaxconn, in later versions).
        assert!(found.backlog == found.sysctls.somaxconn.min(128) || found.backlog == found.sysctls.somaxconn);
        assert_eq!((found.accept_queue, found.half_open), (1, Some(0)));
        assert_eq!(found.owner.as_ref().map(|o| o.pid), Some(std::process::id()));
        assert!(!found.dual_stack);
    }

    #[test]
    fn a_dual_stack_listener_is_told_apart() {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("a free port");
        let found = own(listener.local_addr().expect("bound").port());
        assert_eq!(found.len(), 1);
        assert!(found[0].dual_stack);
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).expect("a free port");
        let found = own(listener.local_addr().expect("bound").port());
        assert!(!found[0].dual_stack);
    }

    fn socket(local: Ipv4Addr, port: u16, listening: bool) -> Socket {
        Socket { local: local.into(), port, listening, accept_queue: 0, backlog: 5, inode: 1, v6only: false }
    }

    #[test]
    fn half_open_requests_count_for_the_only_listener_of_their_port() {
        let (any, one) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST);
        let sysctls = Sysctls {
            somaxconn: 4096,
            max_syn_backlog: 2048,
            syncookies: 1,
            abort_on_overflow: false,
            synack_retries: 5,
            local_port_range: (32768, 60999),
            reserved_ports: 0,
            tw_reuse: 2,
        };
        let sockets = [
            socket(any, 80, true),
            socket(one, 80, false),
            socket(one, 80, false),
            socket(any, 81, true),
            socket(one, 81, true),
            socket(one, 81, false),
        ];
        let half_open: Vec<_> = join(1, &sockets, sysctls, &|_| true).map(|l| (l.port, l.half_open)).collect();
        assert_eq!(half_open, [(80, Some(2)), (81, None), (81, None)]);
    }
}
