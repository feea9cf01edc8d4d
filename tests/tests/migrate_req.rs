//! `net.ipv4.tcp_migrate_req`: what a listener of a group leaves behind when it closes goes to another member.

use std::fs;

use anyhow::{Context, Result, ensure};
use tracer_tests::namespace::{Family, Namespace, half_open};
use tracer_tests::netstat::Netstat;
use tracer_tests::rawtcp::{Peer, Wire, addresses, await_synacks, syn_all};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::{Listen, Listener, peers};
use tracer_tests::wait;

/// Switches migration on. Where the kernel cannot do it, says so, after having held it to being an old one.
fn migrates(namespace: &Namespace) -> Result<bool> {
    // By the counter: 5.10.y has the sysctl, and nothing that reads it.
    if Netstat::read()?.has("TCPMigrateReqSuccess") {
        namespace.set("net/ipv4/tcp_migrate_req", "1")?;
        return Ok(true);
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let release = release.trim();
    let mut numbers = release.split('.').map(str::parse::<u32>);
    let version = (numbers.next().context("no version")??, numbers.next().context("no version")??);
    ensure!(version < (5, 14), "Linux {release} does not count migrations, which came with 5.14");
    eprintln!("Linux {release} does not count migrations: nothing migrates there");
    Ok(false)
}

/// A listener that everything comes to, for it is alone, on a kernel that migrates.
fn alone() -> Result<Option<(Namespace, Wire, Listener)>> {
    let namespace = Namespace::enter()?;
    if !migrates(&namespace)? {
        return Ok(None);
    }
    let wire = Wire::open(&namespace)?;
    let first = Listen { reuse_port: true, ..Listen::new(16) }.on(Wire::server(Family::V4)).open()?;
    Ok(Some((namespace, wire, first)))
}

/// Another member of its group.
fn member(first: &Listener, backlog: i32) -> Result<Listener> {
    Listen { reuse_port: true, ..Listen::new(backlog) }.on(first.address().ip()).port(first.port()).open()
}

#[test]
fn what_waits_at_a_closing_listener_is_accepted_by_another_of_its_group() -> Result<()> {
    let Some((namespace, wire, first)) = alone()? else { return Ok(()) };
    let session = Session::start(&namespace, first.port())?;

    let mut clients = Peer::several(&wire, first.address(), 0, 6);
    syn_all(&clients)?;
    await_synacks(&mut clients)?;
    clients.iter().try_for_each(Peer::ack)?;
    assert_eq!(first.waiting()?, 6);
    let second = member(&first, 16)?;
    drop(first);
    assert_eq!(session.kernel()?.get("TCPMigrateReqSuccess"), 6);
    assert_eq!(second.waiting()?, 6);
    let accepted = [second.accept()?, second.accept()?, second.accept()?, second.accept()?];
    assert!(accepted.iter().all(Option::is_some));
    for client in &clients {
        assert!(!client.was_reset()?);
    }

    let finished = session.finish()?;
    finished.expect_totals(&Outcomes { attempts: 6, accepted: 4, pending: 2, ..Outcomes::default() })
}

#[test]
fn what_is_half_open_at_a_closing_listener_is_completed_at_another_of_its_group() -> Result<()> {
    let Some((namespace, wire, first)) = alone()? else { return Ok(()) };
    let port = first.port();
    let session = Session::start(&namespace, port)?;

    let mut clients = Peer::several(&wire, first.address(), 0, 6);
    syn_all(&clients)?;
    await_synacks(&mut clients)?;
    let second = member(&first, 16)?;
    drop(first);
    // Three go with their ACK, the others when their SYN-ACK is to be sent again.
    clients[..3].iter().try_for_each(Peer::ack)?;
    assert_eq!(second.waiting()?, 3);
    assert_eq!(session.kernel()?.get("TCPMigrateReqSuccess"), 3);
    wait::until(
        "three requests to migrate by their timers",
        || Ok(session.kernel()?.get("TCPMigrateReqSuccess") == 6),
    )?;
    assert_eq!(half_open(port)?, 3);
    clients[3..5].iter().try_for_each(Peer::ack)?;
    assert_eq!(peers(&second.accept_all()?), addresses(&clients[..5]));
    assert_eq!(half_open(port)?, 1);

    let finished = session.finish()?;
    finished.expect_totals(&Outcomes { attempts: 6, accepted: 5, pending: 1, ..Outcomes::default() })
}

#[test]
fn an_ack_that_finds_the_other_listener_full_is_dropped_there() -> Result<()> {
    let Some((namespace, wire, first)) = alone()? else { return Ok(()) };
    let session = Session::start(&namespace, first.port())?;

    let mut clients = Peer::several(&wire, first.address(), 0, 4);
    syn_all(&clients)?;
    await_synacks(&mut clients)?;
    // Room for one.
    let second = member(&first, 0)?;
    drop(first);
    clients.iter().try_for_each(Peer::ack)?;
    assert_eq!(session.kernel()?.get("ListenOverflows"), 3);
    assert_eq!(peers(&second.accept_all()?), addresses(&clients[..1]));
    // One of the three tries again.
    clients[1].ack()?;
    assert_eq!(peers(&second.accept_all()?), addresses(&clients[1..2]));

    let finished = session.finish()?;
    finished.expect_totals(&Outcomes {
        attempts: 4,
        accepted: 2,
        lost: counts([("accept-queue-full", 2)]),
        late: counts([("accept-queue-full", 1)]),
        completed_by: counts([("ack", 1)]),
        phantom: 2,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("accept-queue-full"), addresses(&clients[2..]));
    Ok(())
}

#[test]
fn what_has_nowhere_to_go_is_lost_with_its_listener() -> Result<()> {
    let Some((namespace, wire, first)) = alone()? else { return Ok(()) };
    let session = Session::start(&namespace, first.port())?;

    let mut clients = Peer::several(&wire, first.address(), 0, 4);
    syn_all(&clients)?;
    await_synacks(&mut clients)?;
    clients[..2].iter().try_for_each(Peer::ack)?;
    assert_eq!(first.waiting()?, 2);
    drop(first);
    assert_eq!(session.kernel()?.get("TCPMigrateReqSuccess"), 0);
    assert!(clients[0].was_reset()? && clients[1].was_reset()?);

    let finished = session.finish()?;
    finished.expect_totals(&Outcomes {
        attempts: 4,
        lost: counts([("listener-closed", 4)]),
        phantom: 2,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("listener-closed"), addresses(&clients));
    Ok(())
}
