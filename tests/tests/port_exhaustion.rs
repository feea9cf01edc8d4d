//! `port-exhaustion`: `connect` fails before any SYN.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use tracer_tests::namespace::Namespace;
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::{Finished, Session};
use tracer_tests::traffic::{Client, Listen, peers};

fn expect_this_process(finished: &Finished, connects: u64, failed: u64) -> Result<()> {
    let clients = &finished.report.clients;
    assert_eq!(clients.failed, counts([("port-exhaustion", failed)]));
    assert_eq!(clients.connects, connects);
    let process = clients
        .by_process
        .iter()
        .find(|process| process.pid == std::process::id())
        .with_context(|| format!("this process is not named: {:?}", clients.by_process))?;
    assert_eq!((process.connects, process.failed), (connects, failed));
    assert!(!process.comm.is_empty());
    Ok(())
}

#[test]
fn ten_local_ports_are_enough_for_ten_of_fifteen_clients() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(128).open()?;
    namespace.set("net/ipv4/ip_local_port_range", "20000 20011")?;
    namespace.set("net/ipv4/ip_local_reserved_ports", "8000,20004,20009")?;
    let session = Session::start(&namespace, listener.port())?;

    let (connected, failed): (Vec<_>, Vec<_>) =
        (0..15).map(|_| Client::connect(listener.address())).partition(Result::is_ok);
    assert_eq!((connected.len(), failed.len()), (10, 5));
    for error in failed.into_iter().filter_map(Result::err) {
        assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    }
    let accepted = listener.accept_all()?;
    assert_eq!(peers(&accepted).len(), 10);

    let finished = session.finish()?;
    let [exhausted] = finished.report.clients.port_exhaustion.as_slice() else {
        bail!("not one destination: {:?}", finished.report.clients.port_exhaustion);
    };
    assert_eq!((exhausted.server, exhausted.port, exhausted.failed), (listener.address().ip(), listener.port(), 5));
    let in_use = exhausted.in_use.as_ref().context("what holds the ports was not looked at")?;
    assert_eq!(in_use.by_state, counts([("ESTAB", 10)]));
    let held: Vec<_> = in_use.by_process.iter().map(|holder| (holder.pid, holder.ports)).collect();
    assert_eq!(held, [(std::process::id(), 10)]);
    assert_eq!(in_use.reserved_ports, 2);
    finished.expect_totals(&Outcomes {
        attempts: 15,
        accepted: 10,
        lost: counts([("port-exhaustion", 5)]),
        ..Outcomes::default()
    })?;
    assert_eq!(finished.report.totals.packets.syn, 10);
    expect_this_process(&finished, 15, 5)?;
    let advice = finished.report.advice.iter().find(|it| it.cause == "port-exhaustion");
    assert!(
        advice.is_some_and(|it| it.text.contains("20000") && it.text.contains("20011")),
        "the advice does not name the port range in force: {:?}",
        finished.report.advice
    );
    Ok(())
}

#[test]
fn a_bound_local_port_that_is_taken_for_this_destination_is_port_exhaustion() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(128).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let local: SocketAddr = "127.0.0.1:20000".parse()?;
    let first = Client::connect_from(Some(local), listener.address())?;
    let second = Client::connect_from(Some(local), listener.address());
    let error = second.err().context("two connections with one pair of addresses")?;
    assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    assert_eq!(peers(&listener.accept_all()?), [first.address()].into());

    let finished = session.finish()?;
    finished.expect_totals(&Outcomes {
        attempts: 2,
        accepted: 1,
        lost: counts([("port-exhaustion", 1)]),
        ..Outcomes::default()
    })?;
    expect_this_process(&finished, 2, 1)
}
