//! IPv6, and IPv4 on an IPv6 listener: the same causes as for IPv4.

use anyhow::Result;
use tracer_tests::namespace::{Family, Namespace, held_requests};
use tracer_tests::rawtcp::{Peer, Wire, addresses, await_synacks, syn_all};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::{Fleet, Listen, State};
use tracer_tests::workload;

#[test]
fn ipv4_and_ipv6_clients_share_the_accept_queue_of_a_dual_stack_listener() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(3).on(Family::V6.any()).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let mut fleet = Fleet::default();
    for _ in 0..5 {
        for family in [Family::V4, Family::V6] {
            let server = (family.loopback(), listener.port()).into();
            fleet.0.extend(Fleet::connect(1, server)?.0);
        }
    }
    let established = fleet.in_state(State::Established)?;
    let dropped = fleet.in_state(State::SynSent)?;
    assert_eq!(established.iter().filter(|client| client.is_ipv4()).count(), 2);
    assert_eq!((established.len(), dropped.len()), (4, 6));
    fleet.wait_for_syn_retransmits(1)?;
    fleet.0.retain(|client| established.contains(&client.address()));

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 10,
        pending: 4,
        lost: counts([("accept-queue-full", 6)]),
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("accept-queue-full"), dropped);
    assert_eq!(finished.listener()?.address, Family::V6.any());
    Ok(())
}

#[test]
fn ipv6_cookies_are_judged_as_ipv4_cookies() -> Result<()> {
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(5).on(Wire::server(Family::V6)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let truth = workload::cookies(&wire, &listener)?;
    let kernel = session.kernel()?;
    assert_eq!((kernel.get("SyncookiesRecv"), kernel.get("SyncookiesFailed")), (truth.cookie.len() as u64, 2));
    let (ordinary, cookie) = (&truth.ordinary[truth.waiting..], &truth.cookie[truth.waiting..]);

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 31,
        pending: 6,
        lost: counts([
            ("accept-queue-full", ordinary.len() as u64),
            ("syncookie-ack-dropped", cookie.len() as u64),
            ("syncookie-invalid", 1),
        ]),
        phantom: (ordinary.len() + cookie.len()) as u64,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("syncookie-ack-dropped"), cookie.iter().copied().collect());
    Ok(())
}

#[test]
fn ipv6_final_acks_that_meet_a_full_queue_are_judged_as_ipv4_ones() -> Result<()> {
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(16).on(Wire::server(Family::V6)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let truth = workload::ack_overflow(&wire, &listener)?;
    assert_eq!(session.kernel()?.get("ListenOverflows"), 6);

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 10,
        accepted: truth.accepted.len() as u64,
        lost: counts([("accept-queue-full", 2), ("client-reset", 1)]),
        late: counts([("accept-queue-full", 3)]),
        completed_by: counts([("data", 1), ("fin", 1), ("ack", 1)]),
        phantom: 3,
        dead_on_arrival: 1,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.late("accept-queue-full"), truth.late);
    assert_eq!(finished.lost("accept-queue-full"), truth.silent);
    Ok(())
}

#[test]
fn ipv6_syns_that_meet_a_full_request_queue_are_judged_as_ipv4_ones() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", "0")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(5).on(Wire::server(Family::V6)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let clients = Peer::several(&wire, listener.address(), 0, 30);
    syn_all(&clients)?;
    let held = held_requests(5);
    let dropped = 30 - held as u64;
    assert_eq!(session.kernel()?.get("TCPReqQFullDrop"), dropped);

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 30,
        pending: held as u64,
        lost: counts([("half-open-queue-full", dropped)]),
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("half-open-queue-full"), addresses(&clients[held..]));
    Ok(())
}

#[test]
fn ipv4_final_acks_on_a_dual_stack_listener_are_judged_too() -> Result<()> {
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(16).on(Family::V6.any()).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let server = (Wire::server(Family::V4), listener.port()).into();
    let mut clients = Peer::several(&wire, server, 0, 6);
    syn_all(&clients)?;
    await_synacks(&mut clients)?;
    listener.set_backlog(1)?;
    clients.iter().try_for_each(Peer::ack)?;
    assert_eq!(listener.waiting()?, 2);
    assert_eq!(session.kernel()?.get("ListenOverflows"), 4);

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 6,
        pending: 2,
        lost: counts([("accept-queue-full", 4)]),
        phantom: 4,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("accept-queue-full"), addresses(&clients[2..]));
    Ok(())
}
