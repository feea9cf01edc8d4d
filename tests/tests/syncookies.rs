//! `syncookie-ack-dropped` and `syncookie-invalid`, and cookie connections that
//! get through.

use std::collections::BTreeSet;

use anyhow::Result;
use tracer_tests::namespace::{Family, Namespace, half_open, held_requests, server_ends};
use tracer_tests::netstat::CHECKED;
use tracer_tests::rawtcp::{Peer, Wire, addresses, await_synacks, syn_all};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::{Fleet, Listen, State, peers};
use tracer_tests::wait;
use tracer_tests::workload::cookies;

#[test]
fn valid_cookies_and_ordinary_acks_meet_a_full_accept_queue_and_one_ack_is_bogus() -> Result<()> {
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(5).on(Wire::server(Family::V4)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let truth = cookies(&wire, &listener)?;
    let (ordinary, cookie) = (&truth.ordinary[truth.waiting..], &truth.cookie[truth.waiting..]);
    let kernel = session.kernel()?;
    let valid = truth.cookie.len() as u64;
    assert_eq!((kernel.get("SyncookiesSent"), kernel.get("TCPReqQFullDoCookies")), (valid + 1, valid + 1));
    assert_eq!((kernel.get("SyncookiesRecv"), kernel.get("SyncookiesFailed")), (valid, 2));
    let dropped = (ordinary.len() + cookie.len()) as u64;
    assert_eq!((kernel.get("ListenOverflows"), kernel.get("ListenDrops")), (dropped, dropped));

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 31,
        pending: 6,
        lost: counts([
            ("accept-queue-full", ordinary.len() as u64),
            ("syncookie-ack-dropped", cookie.len() as u64),
            ("syncookie-invalid", 1),
        ]),
        // A wrong cookie answers no SYN-ACK: that client is no phantom. The ACK out of the blue is no attempt.
        phantom: dropped,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("accept-queue-full"), ordinary.iter().copied().collect());
    assert_eq!(finished.stages("accept-queue-full"), [Some("ack")].into());
    assert_eq!(finished.lost("syncookie-ack-dropped"), cookie.iter().copied().collect());
    assert_eq!(finished.lost("syncookie-invalid"), [truth.wrong].into());
    let packets = &finished.report.totals.packets;
    assert_eq!((packets.syn, packets.synack, packets.synack_cookie), (31, 30 - valid, valid + 1));
    assert_eq!((packets.cookie_ack_accepted, packets.cookie_ack_invalid), (3, 2));
    Ok(())
}

#[test]
fn a_dropped_cookie_connection_comes_late_with_its_data() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", "2")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(3).on(Wire::server(Family::V4)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let mut clients = Peer::several(&wire, listener.address(), 0, 10);
    syn_all(&clients)?;
    await_synacks(&mut clients)?;
    assert_eq!(half_open(listener.port())?, 0, "cookies keep no request");
    clients.iter().try_for_each(Peer::ack)?;
    let first = listener.accept_all()?;
    assert_eq!(peers(&first), addresses(&clients[..4]));
    for client in &mut clients[4..8] {
        client.data(b"anybody there?")?;
    }
    let second = listener.accept_all()?;
    assert_eq!(peers(&second), addresses(&clients[4..8]));
    let kernel = session.kernel()?;
    assert_eq!((kernel.get("SyncookiesSent"), kernel.get("SyncookiesRecv")), (10, 14));
    assert_eq!(kernel.get("ListenOverflows"), 6);

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 10,
        accepted: 8,
        lost: counts([("syncookie-ack-dropped", 2)]),
        late: counts([("syncookie-ack-dropped", 4)]),
        completed_by: counts([("data", 4)]),
        phantom: 2,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.late("syncookie-ack-dropped"), addresses(&clients[4..8]));
    assert_eq!(finished.lost("syncookie-ack-dropped"), addresses(&clients[8..]));
    Ok(())
}

#[test]
fn a_cookie_that_is_not_answered_yet_is_pending() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", "2")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(3).on(Wire::server(Family::V4)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let mut clients = Peer::several(&wire, listener.address(), 0, 5);
    syn_all(&clients)?;
    await_synacks(&mut clients)?;
    clients[..2].iter().try_for_each(Peer::ack)?;
    assert_eq!(listener.accept_all()?.len(), 2);
    assert_eq!(session.kernel()?.get("SyncookiesSent"), 5);

    let finished = session.finish()?;
    finished.expect(&Outcomes { attempts: 5, accepted: 2, pending: 3, ..Outcomes::default() })
}

#[test]
fn with_cookies_for_everybody_each_of_ten_clients_is_accepted_late_or_dropped() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", "2")?;
    let listener = Listen::new(3).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let fleet = Fleet::connect(10, listener.address())?;
    let at_once = fleet.in_state(State::Established)?;
    let dropped = fleet.in_state(State::SynSent)?;
    assert_eq!((at_once.len(), dropped.len()), (4, 6));
    fleet.wait_for_syn_retransmits(1)?;
    let mut accepted = listener.accept_all()?;
    assert_eq!(peers(&accepted), at_once);
    // The six send their SYNs again at about the same time: all get a cookie,
    // and their ACKs meet a queue with four places.
    wait::until("all ten clients to believe that they are connected", || {
        accepted.extend(listener.accept_all()?);
        Ok(fleet.in_state(State::Established)?.len() == 10)
    })?;
    // A busy machine handles an ACK some time after the client has sent it.
    wait::until("their ACKs to be handled", || Ok(session.kernel()?.get("SyncookiesRecv") >= 10))?;
    accepted.extend(listener.accept_all()?);
    let by_ack = &peers(&accepted) - &at_once;
    let phantoms = &dropped - &by_ack;
    // A cookie leaves nothing behind that could make the kernel ask again:
    // only their own data brings them back. One of them says nothing.
    let silent: BTreeSet<_> = phantoms.iter().take(1).copied().collect();
    for client in fleet.0.iter().filter(|client| !silent.contains(&client.address())) {
        client.send(b"hello")?;
    }
    let by_data = peers(&listener.accept_all()?);
    assert_eq!(by_data, &phantoms - &silent);
    let kernel = session.kernel()?;
    // On a slow machine a client sends its SYN once more, and gets another cookie.
    assert!(kernel.get("SyncookiesSent") >= 10);
    assert_eq!(kernel.get("SyncookiesRecv"), (10 + by_data.len()) as u64);

    let finished = session.finish()?;
    let outcomes = finished.report.totals.outcomes();
    let lost = silent.len() as u64;
    assert_eq!((outcomes.attempts, outcomes.accepted, outcomes.pending), (10, 10 - lost, 0));
    assert_eq!(outcomes.lost, counts([("syncookie-ack-dropped", lost)]));
    assert_eq!(outcomes.phantom, lost);
    assert_eq!(outcomes.completed_by, counts([("ack", by_ack.len() as u64), ("data", by_data.len() as u64)]));
    assert_eq!(finished.all_lost(), silent);
    assert_eq!(finished.all_late(), &by_ack | &by_data);
    assert_eq!(finished.late("syncookie-ack-dropped"), by_data);
    Ok(())
}

#[test]
fn a_fin_that_comes_when_the_server_has_forgotten_the_connection_is_no_attempt() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", "2")?;
    namespace.set("net/ipv4/tcp_fin_timeout", "1")?;
    let listener = Listen::new(3).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let fleet = Fleet::connect(1, listener.address())?;
    let accepted = listener.accept_many(1)?;
    drop(accepted);
    fleet.wait_for(1, State::CloseWait)?;
    wait::until("the server's end to be forgotten", || Ok(server_ends(listener.port())? == 0))?;
    // Nobody but the listener is left to take this FIN, and for it the
    // acknowledgement in it is no valid cookie any more, or never was one.
    drop(fleet);
    let kernel = session.kernel()?;
    let refused = kernel.get("SyncookiesFailed") + kernel.get("SyncookiesRecv") - 1;
    assert_eq!(refused, 1, "{:?}", kernel.nonzero(&CHECKED));

    let finished = session.finish()?;
    let outcomes = finished.report.totals.outcomes();
    assert_eq!((outcomes.attempts, outcomes.accepted, outcomes.pending), (1, 1, 0), "{outcomes:?}");
    Ok(())
}

#[test]
fn a_valid_cookie_beside_an_ordinary_request_of_the_same_client_makes_no_connection() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_synack_retries", "1")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(4).on(Wire::server(Family::V4)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let requests = held_requests(4);
    let mut others = Peer::several(&wire, listener.address(), 0, requests as u16);
    syn_all(&others)?;
    await_synacks(&mut others)?;
    let mut client = Peer::new(&wire, listener.address(), 100);
    client.syn()?;
    assert!(client.take_synack()?);
    let cookie = client.server_isn;
    assert_eq!((session.kernel()?.get("SyncookiesSent"), half_open(listener.port())?), (1, requests));
    // There is room again, and the SYN comes again, as it does where a cookie is under way for longer than a second.
    others[0].ack()?;
    client.syn()?;
    assert!(client.take_synack()?);
    assert_ne!(client.server_isn, cookie);
    assert_eq!((session.kernel()?.get("SyncookiesSent"), half_open(listener.port())?), (1, requests));
    // The client had the cookie first, and acknowledges that.
    client.server_isn = cookie;
    client.ack()?;
    assert_eq!((listener.waiting()?, half_open(listener.port())?), (1, requests));
    assert!(!client.was_reset()?);
    let kernel = session.kernel()?;
    assert_eq!(
        kernel.nonzero(&CHECKED),
        [("SyncookiesRecv", 1), ("SyncookiesSent", 1), ("TCPReqQFullDoCookies", 1)].into()
    );
    // The request in its way times out, as nobody acknowledges that; so do those of the others.
    wait::until("the requests to expire", || Ok(half_open(listener.port())? == 0))?;

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: requests as u64 + 1,
        pending: 1,
        lost: counts([("syncookie-ack-dropped", 1), ("handshake-expired", requests as u64 - 1)]),
        phantom: 1,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("syncookie-ack-dropped"), [client.address].into());
    assert_eq!(finished.report.totals.packets.cookie_ack_unused, 1);
    Ok(())
}
