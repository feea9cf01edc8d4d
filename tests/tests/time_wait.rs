//! A client that uses its port again while the server still keeps the old connection in TIME_WAIT: the SYN begins a new
//! connection, and so a new attempt.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tracer_tests::namespace::{Namespace, server_ends};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::{Client, Fleet, Listen, Listener, State};
use tracer_tests::wait;

/// TIME_WAIT, as `/proc/net/tcp` and `TCP_INFO` number it.
const SERVER_ENDS_IN_TIME_WAIT: usize = 1;

/// A client whose connection the server closes first; the client's port is free again, the server's end is in TIME_WAIT.
fn once(local: SocketAddr, listener: &Listener) -> Result<()> {
    let client = Client::connect_from(Some(local), listener.address())?;
    let accepted = listener.accept()?.context("nothing to accept")?;
    assert_eq!(accepted.peer, client.address());
    drop(accepted);
    wait::until("the server's FIN", || Ok(client.state()? == State::CloseWait))?;
    drop(client);
    assert_eq!(server_ends(listener.port())?, SERVER_ENDS_IN_TIME_WAIT);
    Ok(())
}

#[test]
fn a_second_connection_from_the_port_of_one_in_time_wait_is_a_second_attempt() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(16).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let local: SocketAddr = "127.0.0.1:20000".parse()?;
    once(local, &listener)?;
    let client = Client::connect_from(Some(local), listener.address())?;
    assert_eq!(client.state()?, State::Established);
    assert_eq!(server_ends(listener.port())?, 1, "the new connection has taken the place of the old one");
    let accepted = listener.accept()?.context("nothing to accept")?;
    assert_eq!((accepted.peer, accepted.state()?), (local, State::Established));

    let finished = session.finish()?;
    finished.expect(&Outcomes { attempts: 2, accepted: 2, ..Outcomes::default() })?;
    let packets = &finished.report.totals.packets;
    assert_eq!((packets.syn, packets.synack), (2, 2));
    let clients = &finished.report.clients;
    assert_eq!((clients.connects, clients.established), (2, 2));
    Ok(())
}

#[test]
fn a_syn_to_a_connection_in_time_wait_can_be_lost_and_come_late_as_any_other() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(0).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let local: SocketAddr = "127.0.0.1:20000".parse()?;
    once(local, &listener)?;
    let first = Fleet::connect(1, listener.address())?;
    assert_eq!(listener.waiting()?, 1, "a backlog of 0 holds one");
    let again = Fleet(vec![Client::connect_from(Some(local), listener.address())?]);
    assert_eq!(again.in_state(State::SynSent)?, [local].into());
    assert_eq!(session.kernel()?.get("ListenOverflows"), 1);
    let accepted = listener.accept_many(2)?;
    assert_eq!(accepted.iter().map(|it| it.peer).collect::<Vec<_>>(), [first.0[0].address(), local]);

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 3,
        accepted: 3,
        late: counts([("accept-queue-full", 1)]),
        completed_by: counts([("ack", 1)]),
        ..Outcomes::default()
    })?;
    assert_eq!(finished.late("accept-queue-full"), [local].into());
    Ok(())
}
