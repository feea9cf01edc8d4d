//! `no-listener`: SYNs to a traced port where nobody listens.

use anyhow::Result;
use tracer_tests::namespace::{Family, Namespace};
use tracer_tests::rawtcp::{Peer, Wire, addresses, syn_all};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::{Fleet, Listen, State, peers};

#[test]
fn connections_to_a_port_without_a_listener_are_refused() -> Result<()> {
    let namespace = Namespace::enter()?;
    let free = Listen::new(1).open()?.address();
    let session = Session::start(&namespace, free.port())?;

    let fleet = Fleet::connect(5, free)?;
    for client in &fleet.0 {
        let error = client.error()?.and_then(|error| error.raw_os_error());
        assert_eq!(error, Some(libc::ECONNREFUSED));
    }

    let finished = session.finish()?;
    finished.expect_totals(&Outcomes { attempts: 5, lost: counts([("no-listener", 5)]), ..Outcomes::default() })?;
    let expected = fleet.0.iter().map(|client| client.address()).collect();
    assert_eq!(finished.lost("no-listener"), expected);
    assert_eq!(finished.report.clients.connects, 5);
    assert_eq!(finished.report.clients.established, 0);
    Ok(())
}

#[test]
fn a_listener_that_comes_during_the_run_is_known_from_then_on() -> Result<()> {
    let namespace = Namespace::enter()?;
    let free = Listen::new(1).open()?.address();
    let session = Session::start(&namespace, free.port())?;

    let early = Fleet::connect(2, free)?;
    assert_eq!(early.in_state(State::Closed)?.len(), 2);
    let listener = Listen::new(16).port(free.port()).open()?;
    let fleet = Fleet::connect(3, free)?;
    let accepted = peers(&listener.accept_all()?);
    assert_eq!(accepted, fleet.0.iter().map(|client| client.address()).collect());

    let finished = session.finish()?;
    finished.expect_totals(&Outcomes {
        attempts: 5,
        accepted: 3,
        lost: counts([("no-listener", 2)]),
        ..Outcomes::default()
    })?;
    assert_eq!(finished.listener()?.ledger.accepted, 3);
    assert_eq!(finished.listener()?.backlog.effective, 16);
    Ok(())
}

#[test]
fn clients_from_elsewhere_are_refused_too() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let namespace = Namespace::enter()?;
        let wire = Wire::open(&namespace)?;
        let free = Listen::new(1).on(Wire::server(family)).open()?.address();
        let session = Session::start(&namespace, free.port())?;

        let clients = Peer::several(&wire, free, 0, 3);
        syn_all(&clients)?;
        for client in &clients {
            assert!(client.was_reset()?);
        }

        let finished = session.finish()?;
        finished.expect_totals(&Outcomes { attempts: 3, lost: counts([("no-listener", 3)]), ..Outcomes::default() })?;
        assert_eq!(finished.lost("no-listener"), addresses(&clients));
    }
    Ok(())
}
