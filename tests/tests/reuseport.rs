//! Two listeners on one port: each loss belongs to the right one.

use anyhow::{Context, Result};
use tracer_tests::namespace::Namespace;
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::{Fleet, Listen, State};

#[test]
fn of_two_listeners_only_the_one_with_the_small_backlog_loses_connections() -> Result<()> {
    const CLIENTS: usize = 40;
    let namespace = Namespace::enter()?;
    let wanted = Listen { reuse_port: true, ..Listen::new(2) };
    let small = wanted.open()?;
    let large = Listen { backlog: 100, ..wanted }.port(small.port()).open()?;
    let session = Session::start(&namespace, small.port())?;

    let mut fleet = Fleet::connect(CLIENTS, small.address())?;
    let established = fleet.in_state(State::Established)?;
    let dropped = fleet.in_state(State::SynSent)?;
    // The kernel deals clients out by a hash with a secret: 40 that all go to
    // one side would take a coin that falls 40 times alike.
    assert_eq!(small.waiting()?, 3);
    assert_eq!(large.waiting()? as usize, established.len() - 3);
    assert_eq!(established.len() + dropped.len(), CLIENTS);
    assert!(!dropped.is_empty());
    fleet.0.retain(|client| established.contains(&client.address()));
    let accepted = large.accept_all()?.len() as u64;

    let finished = session.finish()?;
    let listeners = finished.listeners();
    assert_eq!(listeners.len(), 2);
    let of = |limit| {
        let found = listeners.iter().find(|listener| listener.backlog.effective == limit);
        found.with_context(|| format!("no listener with limit {limit}"))
    };
    let lost = dropped.len() as u64;
    assert_eq!(
        of(2)?.ledger.outcomes(),
        Outcomes { attempts: 3 + lost, pending: 3, lost: counts([("accept-queue-full", lost)]), ..Outcomes::default() }
    );
    assert_eq!(of(100)?.ledger.outcomes(), Outcomes { attempts: accepted, accepted, ..Outcomes::default() });
    assert_eq!(finished.lost("accept-queue-full"), dropped);
    Ok(())
}
