//! `accept-queue-full` under `tcp_abort_on_overflow`: the client is told.

use std::collections::BTreeSet;

use anyhow::Result;
use tracer_tests::namespace::{Family, Namespace, half_open};
use tracer_tests::rawtcp::{Peer, Wire};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::{Listen, peers};
use tracer_tests::workload;

#[test]
fn ten_acks_for_four_places_make_six_resets() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_abort_on_overflow", "1")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(16).on(Wire::server(Family::V4)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let clients = workload::half_open(&wire, &listener, 10, 3)?;
    clients.iter().try_for_each(Peer::ack)?;
    let mut reset = BTreeSet::new();
    for client in &clients {
        if client.was_reset()? {
            reset.insert(client.address);
        }
    }
    assert_eq!(reset.len(), 6);
    assert_eq!(half_open(listener.port())?, 0, "a reset request is gone");
    let kernel = session.kernel()?;
    assert_eq!((kernel.get("ListenOverflows"), kernel.get("ListenDrops")), (6, 6));
    let accepted = listener.accept_all()?;
    assert!(peers(&accepted).is_disjoint(&reset));

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 10,
        accepted: 4,
        lost: counts([("accept-queue-full", 6)]),
        phantom: 6,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("accept-queue-full"), reset);
    assert_eq!(finished.stages("accept-queue-full"), [Some("ack")].into());
    assert!(finished.events.iter().all(|line| line.reset), "{:#?}", finished.events);
    Ok(())
}
