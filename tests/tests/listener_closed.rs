//! `listener-closed`: what a closing listener takes with it.

use anyhow::Result;
use tracer_tests::namespace::{Family, Namespace};
use tracer_tests::rawtcp::{Peer, Wire, addresses, await_synacks, syn_all};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::{Fleet, Listen, State};

#[test]
fn four_clients_that_wait_to_be_accepted_are_lost() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(16).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let fleet = Fleet::connect(6, listener.address())?;
    assert_eq!(fleet.in_state(State::Established)?.len(), 6);
    let accepted = [listener.accept()?, listener.accept()?];
    assert!(accepted.iter().all(Option::is_some));
    let accepted = accepted.into_iter().flatten().map(|it| (it.peer, it)).collect::<Vec<_>>();
    drop(listener);
    let reset = fleet.in_state(State::Closed)?;
    assert_eq!(reset.len(), 4, "the kernel resets whoever waited");
    assert!(accepted.iter().all(|(peer, _)| !reset.contains(peer)));

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 6,
        accepted: 2,
        lost: counts([("listener-closed", 4)]),
        phantom: 4,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("listener-closed"), reset);
    Ok(())
}

#[test]
fn half_open_requests_are_lost_with_those_that_wait() -> Result<()> {
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(16).on(Wire::server(Family::V4)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let mut clients = Peer::several(&wire, listener.address(), 0, 6);
    syn_all(&clients)?;
    await_synacks(&mut clients)?;
    clients[..4].iter().try_for_each(Peer::ack)?;
    assert_eq!(listener.waiting()?, 4);
    drop(listener);
    for (number, client) in clients.iter().enumerate() {
        assert_eq!(client.was_reset()?, number < 4, "client {number}");
    }

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 6,
        lost: counts([("listener-closed", 6)]),
        phantom: 4,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("listener-closed"), addresses(&clients));
    Ok(())
}
