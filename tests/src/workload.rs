//! Traffic that more than one scenario needs, with what it was seen to do.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use crate::namespace::held_requests;
use crate::rawtcp::{Peer, Wire, await_synacks, syn_all};
use crate::traffic::{Accepted, Fleet, Listener, State, peers};

/// Ten clients against a listener whose backlog is 3 and who accepts nothing.
#[derive(Debug)]
pub struct FullAcceptQueue {
    /// The clients that are connected by their own account.
    pub established: BTreeSet<SocketAddr>,
    /// The clients whose SYN was not answered, though sent at least twice more.
    pub unanswered: BTreeSet<SocketAddr>,
    /// All of them; the unanswered ones have given up.
    pub fleet: Fleet,
}

impl FullAcceptQueue {
    /// Makes the traffic and ends with no timer of it running.
    ///
    /// # Errors
    /// Fails when the sockets do.
    pub fn run(server: SocketAddr, clients: usize) -> Result<Self> {
        let mut fleet = Fleet::connect(clients, server)?;
        fleet.wait_for_syn_retransmits(2)?;
        let established = fleet.in_state(State::Established)?;
        let unanswered = fleet.in_state(State::SynSent)?;
        ensure!(established.len() + unanswered.len() == clients, "a client is in a third state");
        fleet.0.retain(|client| established.contains(&client.address()));
        Ok(Self { established, unanswered, fleet })
    }
}

/// Clients on the wire whose handshakes wait for their last ACK, at a listener
/// that has been given a smaller backlog since.
///
/// # Errors
/// Fails when the handshakes do not get that far.
pub fn half_open<'wire>(
    wire: &'wire Wire,
    listener: &Listener,
    count: u16,
    shrink_to: i32,
) -> Result<Vec<Peer<'wire>>> {
    let mut clients = Peer::several(wire, listener.address(), 0, count);
    syn_all(&clients)?;
    await_synacks(&mut clients)?;
    listener.set_backlog(shrink_to)?;
    Ok(clients)
}

/// What became of the clients of [`ack_overflow`].
#[derive(Debug)]
pub struct AckOverflow {
    /// Accepted at once and later, in order.
    pub accepted: Vec<Accepted>,
    /// Accepted after their first ACK had been dropped.
    pub late: BTreeSet<SocketAddr>,
    /// The client that reset its half-open request.
    pub reset: BTreeSet<SocketAddr>,
    /// The clients that were never heard of again.
    pub silent: BTreeSet<SocketAddr>,
}

/// Ten half-open requests completed at once into an accept queue that holds
/// four; four accepts; then one of the dropped six sends data, one a FIN, one a
/// bare ACK, one a RST, and two nothing.
///
/// # Errors
/// Fails when the kernel treats them in another way than described.
pub fn ack_overflow(wire: &Wire, listener: &Listener) -> Result<AckOverflow> {
    let mut clients = half_open(wire, listener, 10, 3)?;
    clients.iter().try_for_each(Peer::ack)?;
    ensure!(listener.waiting()? == 4, "a limit of 3 holds {}", listener.waiting()?);

    let mut accepted = listener.accept_all()?;
    let first = peers(&accepted);
    clients.retain(|client| !first.contains(&client.address));
    ensure!(clients.len() == 6, "{} final ACKs were dropped", clients.len());

    clients[0].data(b"late")?;
    clients[1].fin()?;
    clients[2].ack()?;
    clients[3].reset()?;
    let of = |range: std::ops::Range<usize>| clients[range].iter().map(|it| it.address).collect();
    let late = of(0..3);
    let completed = listener.accept_all()?;
    ensure!(peers(&completed) == late, "data, FIN and ACK did not complete: {completed:?}");
    accepted.extend(completed);
    Ok(AckOverflow { accepted, late, reset: of(3..4), silent: of(4..6) })
}

/// What became of the clients of [`cookies`].
#[derive(Debug)]
pub struct Cookies {
    /// Got an ordinary SYN-ACK; the first ones of them wait to be accepted.
    pub ordinary: Vec<SocketAddr>,
    /// Got a cookie; the first ones of them wait to be accepted.
    pub cookie: Vec<SocketAddr>,
    /// Got a cookie and returned a wrong one.
    pub wrong: SocketAddr,
    /// How many of each wait to be accepted.
    pub waiting: usize,
}

/// 31 clients on the wire against a backlog of 5 with syncookies: as many requests
/// as the kernel holds fit, the others get cookies. Three of each kind then acknowledge and fill
/// the accept queue, then all others do but the last, which returns a wrong
/// cookie. At last somebody who never sent a SYN acknowledges out of the blue:
/// no connection attempt, as far as anybody can tell.
///
/// # Errors
/// Fails when the kernel treats them in another way than described.
pub fn cookies(wire: &Wire, listener: &Listener) -> Result<Cookies> {
    const WAITING: usize = 3;
    let mut clients = Peer::several(wire, listener.address(), 0, 31);
    syn_all(&clients)?;
    await_synacks(&mut clients)?;
    let held = crate::namespace::half_open(listener.port())?;
    ensure!(held == held_requests(5), "{held} requests are held");
    // The queue fills in order: a request is kept while there is room.
    let (ordinary, cookie) = clients.split_at(held);
    let (wrong, cookie) = cookie.split_last().context("no cookie was sent")?;
    for group in [ordinary, cookie] {
        group[..WAITING].iter().try_for_each(Peer::ack)?;
    }
    ensure!(listener.waiting()? == 6, "{} connections wait", listener.waiting()?);
    for group in [ordinary, cookie] {
        group[WAITING..].iter().try_for_each(Peer::ack)?;
    }
    wrong.bogus_ack()?;
    Peer::new(wire, listener.address(), 900).bogus_ack()?;
    let addresses = |group: &[Peer<'_>]| group.iter().map(|peer| peer.address).collect();
    Ok(Cookies { ordinary: addresses(ordinary), cookie: addresses(cookie), wrong: wrong.address, waiting: WAITING })
}
