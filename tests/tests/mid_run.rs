//! A tracer that is started when things have long been going on: what began
//! before is no attempt, what begins later is counted exactly.

use std::thread;

use anyhow::Result;
use tracer_tests::load::{Load, THREADS};
use tracer_tests::namespace::{Family, Namespace, half_open};
use tracer_tests::rawtcp::{Peer, Wire, addresses, await_synacks, syn_all};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::Listen;
use tracer_tests::wait;

#[test]
fn connections_from_before_the_start_are_no_attempts() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let namespace = Namespace::enter()?;
        let wire = Wire::open(&namespace)?;
        let listener = Listen::new(16).on(Wire::server(family)).open()?;
        let mut earlier = Peer::several(&wire, listener.address(), 0, 6);
        syn_all(&earlier)?;
        await_synacks(&mut earlier)?;
        earlier[..4].iter().try_for_each(Peer::ack)?;
        listener.set_backlog(3)?;
        assert_eq!((listener.waiting()?, half_open(listener.port())?), (4, 2));
        let session = Session::start(&namespace, listener.port())?;

        // The queue is full: five new clients lose their SYN, sent twice, and
        // an earlier one its final ACK; another earlier one resets.
        let dropped = Peer::several(&wire, listener.address(), 100, 5);
        syn_all(&dropped)?;
        syn_all(&dropped)?;
        earlier[4].ack()?;
        earlier[5].reset()?;
        assert_eq!(session.kernel()?.get("ListenOverflows"), 11);
        // The earlier ones are accepted, the one with the dropped ACK later.
        assert_eq!(listener.accept_all()?.len(), 4);
        earlier[4].ack()?;
        assert_eq!(listener.accept_all()?.len(), 1);
        // Three new clients come through, two of them are accepted.
        let mut clients = Peer::several(&wire, listener.address(), 200, 3);
        syn_all(&clients)?;
        await_synacks(&mut clients)?;
        clients.iter().try_for_each(Peer::ack)?;
        let accepted = [listener.accept()?, listener.accept()?];
        assert!(accepted.iter().all(Option::is_some));

        let finished = session.finish()?;
        finished.expect(&Outcomes {
            attempts: 8,
            accepted: 2,
            pending: 1,
            lost: counts([("accept-queue-full", 5)]),
            ..Outcomes::default()
        })?;
        assert_eq!(finished.all_lost(), addresses(&dropped));
        assert_eq!(finished.listener()?.accept_queue.now, 1);
        assert_eq!(finished.listener()?.accept_queue.max, 4);
    }
    Ok(())
}

#[test]
fn requests_from_before_the_start_that_expire_or_lose_their_listener_are_no_losses() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_synack_retries", "1")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(16).on(Wire::server(Family::V4)).open()?;
    let mut earlier = Peer::several(&wire, listener.address(), 0, 4);
    syn_all(&earlier)?;
    await_synacks(&mut earlier)?;
    earlier[..2].iter().try_for_each(Peer::ack)?;
    let session = Session::start(&namespace, listener.port())?;
    let mut clients = Peer::several(&wire, listener.address(), 100, 1);
    syn_all(&clients)?;
    await_synacks(&mut clients)?;
    clients[0].ack()?;
    wait::until("two requests to expire", || Ok(half_open(listener.port())? == 0))?;
    drop(listener);
    for client in earlier[..2].iter().chain(&clients) {
        assert!(client.was_reset()?);
    }

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 1,
        lost: counts([("listener-closed", 1)]),
        phantom: 1,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.all_lost(), addresses(&clients));
    Ok(())
}

#[test]
fn a_start_in_the_middle_of_a_load_is_exact_from_then_on() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_synack_retries", "1")?;
    namespace.set("net/ipv4/ip_local_port_range", "1024 65535")?;
    let listener = Listen::new(12).open()?;
    let load = Load::new(u64::MAX);
    let (session, before, at_start) = thread::scope(|scope| -> Result<_> {
        let running = scope.spawn(|| load.run(&listener));
        let started = || -> Result<_> {
            wait::until("the load to run", || Ok(load.attempts() > 1_000))?;
            let before = (load.attempts(), load.accepted());
            let session = Session::start(&namespace, listener.port())?;
            let at_start = (load.attempts(), load.accepted());
            wait::until("the load to go on", || Ok(load.attempts() > at_start.0 + 5_000))?;
            Ok((session, before, at_start))
        };
        let started = started();
        load.stop();
        running.join().expect("the load does not panic")?;
        started
    })?;

    let finished = session.finish()?;
    let outcomes = finished.listener()?.ledger.outcomes();
    // Each thread may have been between its `connect` and its count, and what
    // waited or was on its way at the start may be accepted later.
    let attempts = load.attempts() - at_start.0 - THREADS..=load.attempts() - before.0;
    let accepted = load.accepted() - at_start.1 - 12 - 2 - THREADS..=load.accepted() - before.1;
    assert!(attempts.contains(&outcomes.attempts), "{outcomes:?} not in {attempts:?}");
    assert!(accepted.contains(&outcomes.accepted), "{outcomes:?} not in {accepted:?}");
    assert_eq!(outcomes.pending, 0);
    Ok(())
}
