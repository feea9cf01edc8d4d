//! `client-reset`: the client takes its half-open request back.

use anyhow::Result;
use tracer_tests::namespace::{Family, Namespace, half_open};
use tracer_tests::rawtcp::{Peer, Wire, addresses, await_synacks, syn_all};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::Listen;

#[test]
fn a_reset_before_the_final_ack_loses_the_attempt_without_a_phantom() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let namespace = Namespace::enter()?;
        let wire = Wire::open(&namespace)?;
        let listener = Listen::new(16).on(Wire::server(family)).open()?;
        let session = Session::start(&namespace, listener.port())?;

        let mut clients = Peer::several(&wire, listener.address(), 0, 5);
        syn_all(&clients)?;
        await_synacks(&mut clients)?;
        clients[..2].iter().try_for_each(Peer::reset)?;
        clients[2].ack()?;
        assert_eq!(listener.accept_all()?.len(), 1);
        assert_eq!(half_open(listener.port())?, 2);
        assert_eq!(session.kernel()?.get("EmbryonicRsts"), 2);

        let finished = session.finish()?;
        finished.expect(&Outcomes {
            attempts: 5,
            accepted: 1,
            pending: 2,
            lost: counts([("client-reset", 2)]),
            ..Outcomes::default()
        })?;
        assert_eq!(finished.lost("client-reset"), addresses(&clients[..2]));
    }
    Ok(())
}
