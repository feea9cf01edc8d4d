//! A server that takes its time: late connections with their delay, and how
//! long connections waited to be accepted.

use std::time::Instant;

use anyhow::{Context, Result};
use tracer_tests::namespace::Namespace;
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::{Fleet, Listen, State, peers};

#[test]
fn with_a_backlog_of_one_two_of_four_clients_come_late() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(1).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let began = Instant::now();
    let fleet = Fleet::connect(4, listener.address())?;
    let connected = Instant::now();
    assert_eq!(fleet.in_state(State::Established)?.len(), 2);
    let dropped = fleet.in_state(State::SynSent)?;
    fleet.wait_for_syn_retransmits(1)?;
    assert_eq!(fleet.in_state(State::SynSent)?, dropped, "the queue is full until now");
    // The first two have waited at least this long when they are accepted.
    let waited = connected.elapsed();
    let accepted = listener.accept_many(4)?;
    fleet.wait_for(4, State::Established)?;
    let whole = began.elapsed();
    assert_eq!(peers(&accepted).len(), 4);

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 4,
        accepted: 4,
        late: counts([("accept-queue-full", 2)]),
        completed_by: counts([("ack", 2)]),
        ..Outcomes::default()
    })?;
    assert_eq!(finished.late("accept-queue-full"), dropped);
    for line in finished.events.iter().filter(|line| line.event == "late") {
        // A SYN is sent again after a second; timers may fire a tick early.
        let delay = line.delay_ms.context("a late line without its delay")?;
        assert!((990.0..=whole.as_secs_f64() * 1000.0).contains(&delay), "{line:?} in {whole:?}");
        assert!(line.syn_retransmits.is_some_and(|times| times >= 1), "{line:?}");
    }
    let wait = finished.listener()?.accept_wait_us.clone().context("no accept wait")?;
    let bounds = waited.as_micros() as u64..=whole.as_micros() as u64;
    assert!(bounds.contains(&wait.max), "{wait:?} is not in {bounds:?}");
    Ok(())
}
