//! `TCP_DEFER_ACCEPT`: the kernel drops final ACKs on purpose, which is a delay
//! and never a loss.

use anyhow::Result;
use tracer_tests::namespace::{Namespace, half_open};
use tracer_tests::report::Outcomes;
use tracer_tests::session::Session;
use tracer_tests::traffic::{Fleet, Listen, State};

#[test]
fn a_client_that_sends_data_is_accepted_and_a_silent_one_is_pending() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen { defer_accept: 10, ..Listen::new(16) }.open()?;
    let session = Session::start(&namespace, listener.port())?;

    let fleet = Fleet::connect(5, listener.address())?;
    assert_eq!(fleet.in_state(State::Established)?.len(), 5);
    assert_eq!(session.kernel()?.get("TCPDeferAcceptDrop"), 5);
    assert_eq!((listener.waiting()?, half_open(listener.port())?), (0, 5));
    for client in &fleet.0[..3] {
        client.send(b"here I am")?;
    }
    assert_eq!(listener.accept_all()?.len(), 3);
    assert_eq!(half_open(listener.port())?, 2);

    let finished = session.finish()?;
    finished.expect(&Outcomes { attempts: 5, accepted: 3, pending: 2, ..Outcomes::default() })
}

#[test]
fn when_the_time_to_wait_is_over_silent_clients_are_accepted_too() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen { defer_accept: 1, ..Listen::new(16) }.open()?;
    let session = Session::start(&namespace, listener.port())?;

    let fleet = Fleet::connect(3, listener.address())?;
    assert_eq!(fleet.in_state(State::Established)?.len(), 3);
    assert_eq!(session.kernel()?.get("TCPDeferAcceptDrop"), 3);
    let accepted = listener.accept_many(3)?;

    let finished = session.finish()?;
    finished.expect(&Outcomes { attempts: 3, accepted: accepted.len() as u64, ..Outcomes::default() })?;
    assert_eq!(finished.report.totals.packets.synack_retransmitted, 3);
    Ok(())
}
