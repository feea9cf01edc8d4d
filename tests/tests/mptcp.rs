//! MPTCP: a listener of another protocol, with TCP below. Each subflow is a TCP connection, and so an attempt.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use tracer_tests::namespace::Namespace;
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::Listen;

/// Whether this kernel has MPTCP. If not, says so, after having held the kernel to the one error that means that.
fn has_mptcp(namespace: &Namespace) -> Result<bool> {
    match Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)) {
        Ok(_) => {
            // New namespaces may have it off.
            namespace.set("net/mptcp/enabled", "1")?;
            Ok(true)
        }
        Err(error) => {
            ensure!(error.raw_os_error() == Some(libc::EPROTONOSUPPORT), "an MPTCP socket: {error}");
            eprintln!("this kernel has no MPTCP (EPROTONOSUPPORT): there is nothing to trace");
            Ok(false)
        }
    }
}

fn listen(protocol: Protocol) -> Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(protocol))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(16)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn connect(protocol: Protocol, server: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(protocol))?;
    socket.connect(&server.into()).with_context(|| format!("cannot connect with {protocol:?}"))?;
    Ok(socket)
}

/// How many connections have been accepted as MPTCP in this namespace: without it at one end, a connection falls back to TCP.
fn accepted_as_mptcp() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("MPTcpExt:"));
    let (names, values) = (lines.next().context("no MPTcpExt")?, lines.next().context("no MPTcpExt values")?);
    let mut counters = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
    let (_, value) = counters.find(|(name, _)| *name == "MPCapableACKRX").context("no MPCapableACKRX")?;
    Ok(value.parse()?)
}

/// Four connections between these two, of which three are accepted.
fn expect_both_ends(listener: Protocol, client: Protocol) -> Result<()> {
    const CLIENTS: u64 = 3;
    let namespace = Namespace::enter()?;
    if !has_mptcp(&namespace)? {
        return Ok(());
    }
    let (server, address) = listen(listener)?;
    let session = Session::start(&namespace, address.port())?;

    let clients = (0..CLIENTS + 1).map(|_| connect(client, address)).collect::<Result<Vec<_>>>()?;
    for socket in &clients[..CLIENTS as usize] {
        let (_, peer) = server.accept()?;
        assert_eq!(Some(peer), socket.local_addr()?.as_socket());
    }
    let mptcp = listener == Protocol::MPTCP && client == Protocol::MPTCP;
    assert_eq!(accepted_as_mptcp()?, if mptcp { CLIENTS } else { 0 });

    let finished = session.finish()?;
    finished.expect(&Outcomes { attempts: CLIENTS + 1, accepted: CLIENTS, pending: 1, ..Outcomes::default() })?;
    let report = &finished.report.clients;
    assert_eq!((report.connects, report.established), (CLIENTS + 1, CLIENTS + 1));
    Ok(())
}

#[test]
fn tcp_clients_of_an_mptcp_listener_are_attempts() -> Result<()> {
    expect_both_ends(Protocol::MPTCP, Protocol::TCP)
}

#[test]
fn mptcp_clients_of_an_mptcp_listener_are_attempts() -> Result<()> {
    expect_both_ends(Protocol::MPTCP, Protocol::MPTCP)
}

#[test]
fn mptcp_clients_of_a_tcp_listener_are_attempts() -> Result<()> {
    expect_both_ends(Protocol::TCP, Protocol::MPTCP)
}

#[test]
fn an_mptcp_client_without_a_free_port_is_port_exhaustion() -> Result<()> {
    let namespace = Namespace::enter()?;
    if !has_mptcp(&namespace)? {
        return Ok(());
    }
    let listener = Listen::new(16).open()?;
    namespace.set("net/ipv4/ip_local_port_range", "20000 20000")?;
    let session = Session::start(&namespace, listener.port())?;

    let _first = connect(Protocol::MPTCP, listener.address())?;
    let second = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP))?;
    let error = second.connect(&listener.address().into()).err().context("two clients with one port")?;
    assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    assert_eq!(listener.accept_all()?.len(), 1);

    let finished = session.finish()?;
    finished.expect_totals(&Outcomes {
        attempts: 2,
        accepted: 1,
        lost: counts([("port-exhaustion", 1)]),
        ..Outcomes::default()
    })?;
    let report = &finished.report.clients;
    assert_eq!((report.connects, report.established, report.in_progress), (2, 1, 0));
    Ok(())
}

#[test]
fn mptcp_connections_that_nobody_accepts_are_lost_with_their_listener() -> Result<()> {
    let namespace = Namespace::enter()?;
    if !has_mptcp(&namespace)? {
        return Ok(());
    }
    let (server, address) = listen(Protocol::MPTCP)?;
    let session = Session::start(&namespace, address.port())?;

    let clients = [connect(Protocol::MPTCP, address)?, connect(Protocol::TCP, address)?];
    drop(server);

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 2,
        lost: counts([("listener-closed", 2)]),
        phantom: 2,
        ..Outcomes::default()
    })?;
    drop(clients);
    Ok(())
}
