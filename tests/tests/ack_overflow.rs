//! `accept-queue-full`, stage `ack`: final ACKs that meet a full accept queue,
//! and what becomes of those clients; `client-reset` among them.

use anyhow::Result;
use tracer_tests::namespace::{Family, Namespace, half_open};
use tracer_tests::rawtcp::{Peer, Wire, addresses};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::Listen;
use tracer_tests::{wait, workload};

#[test]
fn of_six_dropped_acks_three_come_late_by_data_fin_and_ack_and_one_is_reset() -> Result<()> {
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(16).on(Wire::server(Family::V4)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let truth = workload::ack_overflow(&wire, &listener)?;
    let kernel = session.kernel()?;
    assert_eq!((kernel.get("ListenOverflows"), kernel.get("ListenDrops")), (6, 6));
    assert_eq!(kernel.get("EmbryonicRsts"), 1);
    assert_eq!(half_open(listener.port())?, truth.silent.len());

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 10,
        accepted: truth.accepted.len() as u64,
        lost: counts([("accept-queue-full", 2), ("client-reset", 1)]),
        late: counts([("accept-queue-full", 3)]),
        completed_by: counts([("data", 1), ("fin", 1), ("ack", 1)]),
        // All three lost clients had answered their SYN-ACK.
        phantom: 3,
        // The one that completed with its FIN.
        dead_on_arrival: 1,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.late("accept-queue-full"), truth.late);
    assert_eq!(finished.lost("accept-queue-full"), truth.silent);
    assert_eq!(finished.lost("client-reset"), truth.reset);
    assert_eq!(finished.stages("accept-queue-full"), [Some("ack")].into());
    let packets = &finished.report.totals.packets;
    assert_eq!(packets.ack_dropped.get("accept-queue-full"), Some(&6));
    assert_eq!(finished.listener()?.backlog.effective, 3, "the limit in force at the end");
    Ok(())
}

#[test]
fn a_dropped_ack_makes_the_kernel_resend_its_synack_and_the_client_comes_late_by_ack() -> Result<()> {
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(16).on(Wire::server(Family::V4)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let clients = workload::half_open(&wire, &listener, 3, 0)?;
    clients.iter().try_for_each(Peer::ack)?;
    assert_eq!(listener.waiting()?, 1, "a limit of 0 holds one");
    let _first = listener.accept_many(1)?;
    wait::until("a second SYN-ACK for a client whose ACK was dropped", || {
        Ok(clients[1].synacks()? == 2 && clients[2].synacks()? == 2)
    })?;
    clients[1].ack()?;
    let _second = listener.accept_many(1)?;

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 3,
        accepted: 2,
        lost: counts([("accept-queue-full", 1)]),
        late: counts([("accept-queue-full", 1)]),
        completed_by: counts([("ack", 1)]),
        phantom: 1,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.late("accept-queue-full"), addresses(&clients[1..2]));
    assert_eq!(finished.report.totals.packets.synack_retransmitted, 2);
    let late = finished.events.iter().find(|line| line.event == "late");
    assert!(
        late.is_some_and(|line| { line.synack_retransmits == Some(1) && line.delay_ms.is_some_and(|ms| ms >= 900.0) }),
        "the kernel sends a SYN-ACK again after a second: {late:?}"
    );
    Ok(())
}
