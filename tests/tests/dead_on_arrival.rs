//! `dead_on_arrival`: accepted after the client had gone.

use anyhow::Result;
use tracer_tests::namespace::Namespace;
use tracer_tests::report::Outcomes;
use tracer_tests::session::Session;
use tracer_tests::traffic::{Fleet, Listen, State};

#[test]
fn three_clients_that_closed_and_two_that_reset_are_accepted_dead() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(16).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let mut fleet = Fleet::connect(7, listener.address())?;
    assert_eq!(fleet.in_state(State::Established)?.len(), 7);
    drop(fleet.0.drain(..3));
    fleet.0.drain(..2).try_for_each(|client| client.reset())?;
    let mut accepted = listener.accept_all()?;
    let count = |state| -> Result<usize> {
        let states = accepted.iter().map(|it| it.state()).collect::<Result<Vec<_>>>()?;
        Ok(states.into_iter().filter(|it| *it == state).count())
    };
    assert_eq!(count(State::CloseWait)?, 3);
    assert_eq!(count(State::Closed)?, 2);
    assert_eq!(count(State::Established)?, 2);
    // As the field notes saw it: the server writes to them all the same.
    for connection in &mut accepted {
        connection.write(&[0; 256])?;
    }

    let finished = session.finish()?;
    finished.expect(&Outcomes { attempts: 7, accepted: 7, dead_on_arrival: 5, ..Outcomes::default() })
}
