//! `handshake-expired`, and what is not one.

use anyhow::Result;
use tracer_tests::namespace::{Family, Namespace, half_open};
use tracer_tests::rawtcp::{Peer, Wire, addresses, await_synacks, syn_all};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::Listen;
use tracer_tests::{wait, workload};

#[test]
fn clients_that_never_acknowledge_expire_and_the_others_do_not() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let namespace = Namespace::enter()?;
        namespace.set("net/ipv4/tcp_synack_retries", "1")?;
        let wire = Wire::open(&namespace)?;
        let listener = Listen::new(16).on(Wire::server(family)).open()?;
        let session = Session::start(&namespace, listener.port())?;

        let mut clients = Peer::several(&wire, listener.address(), 0, 5);
        syn_all(&clients)?;
        await_synacks(&mut clients)?;
        clients[..2].iter().try_for_each(Peer::ack)?;
        assert_eq!(listener.accept_all()?.len(), 2);
        wait::until("three requests to expire", || Ok(half_open(listener.port())? == 0))?;

        let finished = session.finish()?;
        finished.expect(&Outcomes {
            attempts: 5,
            accepted: 2,
            lost: counts([("handshake-expired", 3)]),
            ..Outcomes::default()
        })?;
        assert_eq!(finished.lost("handshake-expired"), addresses(&clients[2..]));
        let lines = || finished.events.iter().filter(|line| line.event == "lost");
        assert!(lines().all(|line| line.synack_retransmits == Some(1)), "{:?}", finished.events);
    }
    Ok(())
}

#[test]
fn a_request_whose_ack_was_dropped_stays_lost_to_the_full_queue_when_it_expires() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_synack_retries", "1")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(16).on(Wire::server(Family::V4)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let clients = workload::half_open(&wire, &listener, 2, 0)?;
    clients.iter().try_for_each(Peer::ack)?;
    assert_eq!((listener.waiting()?, half_open(listener.port())?), (1, 1));
    wait::until("the request to expire", || Ok(half_open(listener.port())? == 0))?;

    let finished = session.finish()?;
    // It was acknowledged, so it is no handshake that nobody completed.
    finished.expect(&Outcomes {
        attempts: 2,
        pending: 1,
        lost: counts([("accept-queue-full", 1)]),
        phantom: 1,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("accept-queue-full"), addresses(&clients[1..]));
    Ok(())
}
