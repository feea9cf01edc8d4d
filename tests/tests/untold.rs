//! More attempts in trouble than the tracer remembers: counted exactly all the same, and told when something else happens to them.

use anyhow::Result;
use tracer_tests::flood::Flood;
use tracer_tests::namespace::{Family, Namespace, held_requests};
use tracer_tests::rawtcp::{Peer, Wire, addresses, await_synacks, syn_all};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::{Scope, Session};
use tracer_tests::traffic::{Listen, Listener, peers};

/// A tracer that remembers 64 attempts, and tells of 56 of them as they come.
fn forgetful(namespace: &Namespace, port: u16) -> Result<Session> {
    Session::start_with(namespace, port, Scope::Path, |start| start.env("TRACER_WATCH_ENTRIES", "64"))
}
const TOLD: u64 = 56;

/// SYNs of 100 clients that nobody has, at a listener.
const FLOOD: u32 = 100;

fn flood(wire: &Wire, listener: &Listener) -> Result<()> {
    let mut flood = Flood::new(wire, listener.address())?;
    (0..FLOOD).try_for_each(|number| flood.send(number))
}

#[test]
fn a_dropped_syn_that_is_not_told_is_repeated_and_accepted_late() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", "0")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(3).on(Wire::server(Family::V4)).open()?;
    let session = forgetful(&namespace, listener.port())?;

    // Four wait for accept(), so that every other SYN is dropped.
    let mut first = Peer::several(&wire, listener.address(), 0, 4);
    for client in &mut first {
        client.syn()?;
        await_synacks(std::slice::from_mut(client))?;
        client.ack()?;
    }
    assert_eq!(listener.waiting()?, 4);
    flood(&wire, &listener)?;
    // A SYN that comes again is no other attempt, whether it was told or not.
    flood(&wire, &listener)?;
    let mut late = Peer::several(&wire, listener.address(), 200, 3);
    syn_all(&late)?;
    syn_all(&late)?;
    let dropped = 2 * u64::from(FLOOD) + 6;
    assert_eq!(session.kernel()?.get("ListenOverflows"), dropped);
    assert_eq!(listener.accept_all()?.len(), 4);
    // Now there is room: two of the three are accepted, one only waits.
    syn_all(&late)?;
    await_synacks(&mut late)?;
    late.iter().try_for_each(Peer::ack)?;
    let accepted = [listener.accept()?, listener.accept()?];
    assert!(accepted.iter().all(Option::is_some));

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 4 + u64::from(FLOOD) + 3,
        accepted: 6,
        pending: 1,
        lost: counts([("accept-queue-full", u64::from(FLOOD))]),
        late: counts([("accept-queue-full", 2)]),
        completed_by: counts([("ack", 2)]),
        ..Outcomes::default()
    })?;
    assert_eq!(finished.report.totals.lost.untold, u64::from(FLOOD) - TOLD);
    assert_eq!(finished.late("accept-queue-full"), addresses(&late[..2]));
    Ok(())
}

#[test]
fn a_drop_that_is_not_told_has_the_cause_of_its_last_syn() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", "0")?;
    namespace.set("net/ipv4/tcp_synack_retries", "0")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(5).on(Wire::server(Family::V4)).open()?;
    let session = forgetful(&namespace, listener.port())?;

    // The half-open queue is full; then, with a backlog of 0 and connections that wait, the accept queue.
    let mut first = Peer::several(&wire, listener.address(), 0, held_requests(5) as u16);
    syn_all(&first)?;
    await_synacks(&mut first)?;
    flood(&wire, &listener)?;
    assert_eq!(session.kernel()?.get("TCPReqQFullDrop"), u64::from(FLOOD));
    first[..4].iter().try_for_each(Peer::ack)?;
    first[4..].iter().try_for_each(Peer::reset)?;
    listener.set_backlog(3)?;
    flood(&wire, &listener)?;
    assert_eq!(session.kernel()?.get("ListenOverflows"), u64::from(FLOOD));

    let reset = first.len() as u64 - 4;
    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: first.len() as u64 + u64::from(FLOOD),
        pending: 4,
        lost: counts([("accept-queue-full", u64::from(FLOOD)), ("client-reset", reset)]),
        ..Outcomes::default()
    })?;
    assert_eq!(finished.report.totals.lost.untold, u64::from(FLOOD) - TOLD);
    Ok(())
}

#[test]
fn cookies_that_are_not_told_come_back_good_late_wrong_or_reset() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", "2")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(3).on(Wire::server(Family::V4)).open()?;
    let session = forgetful(&namespace, listener.port())?;

    flood(&wire, &listener)?;
    let mut clients = Peer::several(&wire, listener.address(), 200, 8);
    syn_all(&clients)?;
    syn_all(&clients)?;
    await_synacks(&mut clients)?;
    // Four fill the accept queue, two meet it full, one has a wrong cookie, one resets.
    clients[..6].iter().try_for_each(Peer::ack)?;
    clients[6].bogus_ack()?;
    clients[7].reset()?;
    let kernel = session.kernel()?;
    assert_eq!((kernel.get("SyncookiesSent"), kernel.get("ListenOverflows")), (u64::from(FLOOD) + 16, 2));
    assert_eq!((kernel.get("SyncookiesRecv"), kernel.get("SyncookiesFailed")), (6, 1));
    assert_eq!(peers(&listener.accept_all()?), addresses(&clients[..4]));
    clients[4].data(b"again")?;
    assert_eq!(peers(&listener.accept_all()?), addresses(&clients[4..5]));

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: u64::from(FLOOD) + 8,
        accepted: 5,
        pending: u64::from(FLOOD),
        lost: counts([("client-reset", 1), ("syncookie-ack-dropped", 1), ("syncookie-invalid", 1)]),
        late: counts([("syncookie-ack-dropped", 1)]),
        completed_by: counts([("data", 1)]),
        phantom: 1,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.report.totals.lost.untold, 0);
    assert_eq!(finished.lost("syncookie-ack-dropped"), addresses(&clients[5..6]));
    assert_eq!(finished.lost("syncookie-invalid"), addresses(&clients[6..7]));
    assert_eq!(finished.lost("client-reset"), addresses(&clients[7..]));
    Ok(())
}
