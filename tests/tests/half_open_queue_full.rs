//! `half-open-queue-full`: SYNs from addresses that never answer.

use anyhow::Result;
use tracer_tests::namespace::{Family, Namespace, half_open, held_requests};
use tracer_tests::rawtcp::{Peer, Wire, addresses, syn_all};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::Listen;
use tracer_tests::wait;

#[test]
fn a_queue_of_five_holds_what_the_kernel_lets_it_and_drops_the_others() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", "0")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(5).on(Wire::server(Family::V4)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let clients = Peer::several(&wire, listener.address(), 0, 30);
    syn_all(&clients)?;
    let held = held_requests(5);
    assert_eq!(half_open(listener.port())?, held);
    let dropped = 30 - held as u64;
    let kernel = session.kernel()?;
    assert_eq!((kernel.get("TCPReqQFullDrop"), kernel.get("ListenDrops")), (dropped, dropped));
    assert_eq!(kernel.get("ListenOverflows"), 0);

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 30,
        pending: held as u64,
        lost: counts([("half-open-queue-full", dropped)]),
        ..Outcomes::default()
    })?;
    // Requests are kept while there is room: the first ones.
    assert_eq!(finished.lost("half-open-queue-full"), addresses(&clients[held..]));
    assert_eq!(finished.report.totals.packets.syn_dropped_reserve, 0);
    let reported = finished.listener()?;
    assert_eq!((reported.half_open_queue.now, reported.half_open_queue.max), (held as u64, held as u64));
    assert_eq!(reported.backlog.syncookies, 0);
    Ok(())
}

#[test]
fn requests_that_nobody_acknowledges_expire() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", "0")?;
    namespace.set("net/ipv4/tcp_synack_retries", "1")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(5).on(Wire::server(Family::V4)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let clients = Peer::several(&wire, listener.address(), 0, 30);
    syn_all(&clients)?;
    let held = held_requests(5);
    assert_eq!(half_open(listener.port())?, held);
    let (expired, dropped) = (held as u64, 30 - held as u64);
    wait::until("the requests to expire", || Ok(half_open(listener.port())? == 0))?;
    let mut synacks = 0;
    for client in &clients {
        synacks += client.synacks()?;
    }
    assert_eq!(synacks, 2 * held, "one SYN-ACK and one retransmission for each request");

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 30,
        lost: counts([("half-open-queue-full", dropped), ("handshake-expired", expired)]),
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("handshake-expired"), addresses(&clients[..held]));
    assert_eq!(finished.report.totals.packets.synack, expired);
    assert_eq!(finished.report.totals.packets.synack_retransmitted, expired);
    assert_eq!(finished.listener()?.half_open_queue.now, 0);
    Ok(())
}

#[test]
fn the_last_quarter_of_tcp_max_syn_backlog_is_kept_in_reserve() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", "0")?;
    namespace.set("net/ipv4/tcp_max_syn_backlog", "16")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(128).on(Wire::server(Family::V4)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let clients = Peer::several(&wire, listener.address(), 0, 30);
    syn_all(&clients)?;
    let held = half_open(listener.port())?;
    assert_eq!(held, 13, "16 - qlen is below 16 / 4 first when 13 are held");
    let kernel = session.kernel()?;
    // What tells this rule from a full queue: the kernel does not count it there.
    assert_eq!((kernel.get("ListenDrops"), kernel.get("TCPReqQFullDrop")), (17, 0));

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 30,
        pending: 13,
        lost: counts([("half-open-queue-full", 17)]),
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("half-open-queue-full"), addresses(&clients[held..]));
    assert_eq!(finished.report.totals.packets.syn_dropped_reserve, 17);
    let reported = finished.listener()?;
    assert_eq!((reported.backlog.effective, reported.backlog.max_syn_backlog), (128, 16));
    let advice = finished.report.advice.iter().find(|it| it.cause == "half-open-queue-full");
    assert!(
        advice.is_some_and(|it| it.text.contains("tcp_max_syn_backlog")),
        "the advice does not name tcp_max_syn_backlog: {:?}",
        finished.report.advice
    );
    Ok(())
}

#[test]
fn a_syn_sent_again_is_the_same_attempt() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", "0")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(5).on(Wire::server(Family::V4)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let clients = Peer::several(&wire, listener.address(), 0, 10);
    for _ in 0..3 {
        syn_all(&clients)?;
    }
    let held = held_requests(5);
    assert_eq!(half_open(listener.port())?, held);
    let lost = 10 - held as u64;
    assert_eq!(session.kernel()?.get("ListenDrops"), 3 * lost);

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 10,
        pending: held as u64,
        lost: counts([("half-open-queue-full", lost)]),
        ..Outcomes::default()
    })?;
    let lines = finished.events.iter().filter(|line| line.event == "lost");
    assert!(lines.clone().all(|line| line.syn_retransmits == Some(2)), "{:?}", finished.events);
    assert_eq!(lines.count() as u64, lost);
    Ok(())
}
