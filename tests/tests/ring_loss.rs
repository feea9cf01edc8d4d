//! The tracer's own losses: with a ring buffer that is far too small the counts
//! stay exact, and the report says that details are missing.

use anyhow::Result;
use rustix::process::Signal;
use tracer_tests::namespace::{Family, Namespace, held_requests};
use tracer_tests::rawtcp::{Peer, Wire, await_synacks, syn_all};
use tracer_tests::session::{Scope, Session};
use tracer_tests::traffic::Listen;

#[test]
fn a_tiny_ring_loses_details_and_no_counts() -> Result<()> {
    const CLIENTS: u16 = 2_000;
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", "0")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(9).on(Wire::server(Family::V4)).open()?;
    let session =
        Session::start_with(&namespace, listener.port(), Scope::Path, |start| start.env("TRACER_RING_BYTES", "4096"))?;

    // Three clients come through and are accepted.
    let mut healthy = Peer::several(&wire, listener.address(), 10_000, 3);
    syn_all(&healthy)?;
    await_synacks(&mut healthy)?;
    healthy.iter().try_for_each(Peer::ack)?;
    let accepted = listener.accept_all()?.len() as u64;
    assert_eq!(accepted, 3);
    // While the tracer stands still, nobody empties the ring.
    session.signal(Signal::STOP)?;
    let clients = Peer::several(&wire, listener.address(), 0, CLIENTS);
    syn_all(&clients)?;
    let dropped = session.kernel()?.get("TCPReqQFullDrop");
    let held = held_requests(9) as u64;
    assert_eq!(dropped, u64::from(CLIENTS) - held);
    session.signal(Signal::CONT)?;

    let finished = session.finish_inexact()?;
    let check = &finished.report.check;
    assert!(check.events_lost > 0, "{check:?}");
    assert!(!check.exact, "{check:?}");
    let pair = check.counters["TCPReqQFullDrop"];
    assert_eq!((pair.kernel, pair.tracer), (dropped, dropped));
    for ledger in [&finished.report.totals, &finished.listener()?.ledger] {
        assert_eq!(ledger.attempts, u64::from(CLIENTS) + 3);
        assert_eq!(ledger.accepted, accepted);
        assert_eq!(ledger.pending, held);
        assert_eq!(ledger.lost.total, dropped);
    }
    Ok(())
}
