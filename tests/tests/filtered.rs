//! `filtered`: SYNs that something between the wire and the listener dropped.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::Result;
use tracer_tests::namespace::{Family, Namespace};
use tracer_tests::rawtcp::{Peer, Wire, addresses, syn_all};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::{Listen, Listener};

/// One good client, then four whose SYNs `obstacle` keeps from the listener.
fn four_clients_and(
    family: Family,
    obstacle: impl FnOnce(&Namespace, &Listener) -> Result<()>,
    send: impl Fn(&Wire, &Peer<'_>) -> Result<()>,
) -> Result<()> {
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(16).on(Wire::server(family)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let mut good = Peer::new(&wire, listener.address(), 100);
    good.syn()?;
    assert!(good.take_synack()?);
    obstacle(&namespace, &listener)?;
    let clients = Peer::several(&wire, listener.address(), 0, 4);
    for client in &clients {
        send(&wire, client)?;
        // The same SYN again is the same attempt.
        send(&wire, client)?;
        assert_eq!(client.synacks()?, 0);
    }
    assert_eq!(session.kernel()?.get("ListenDrops"), 0, "the listener has not seen them");

    let finished = session.finish()?;
    finished.expect_totals(&Outcomes {
        attempts: 5,
        pending: 1,
        lost: counts([("filtered", 4)]),
        ..Outcomes::default()
    })?;
    let expected: BTreeSet<SocketAddr> = addresses(&clients);
    assert_eq!(finished.lost("filtered"), expected);
    Ok(())
}

fn syn(_wire: &Wire, client: &Peer<'_>) -> Result<()> {
    syn_all(std::slice::from_ref(client))
}

#[test]
fn a_socket_filter_on_the_listener_filters() -> Result<()> {
    four_clients_and(Family::V4, |_, listener| listener.drop_everything(), syn)
}

#[test]
fn a_socket_filter_on_an_ipv6_listener_filters() -> Result<()> {
    four_clients_and(Family::V6, |_, listener| listener.drop_everything(), syn)
}

#[test]
fn netfilter_filters() -> Result<()> {
    four_clients_and(Family::V4, |namespace, _| namespace.drop_input_by_netfilter(), syn)
}

#[test]
fn a_wrong_checksum_filters() -> Result<()> {
    four_clients_and(Family::V4, |_, _| Ok(()), |wire, client| wire.send_corrupted(&client.syn_segment()))
}
