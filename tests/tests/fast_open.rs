//! TCP Fast Open: data in the SYN, and a connection that can be accepted before the handshake has ended.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};
use tracer_tests::namespace::{Family, Namespace};
use tracer_tests::netstat::Netstat;
use tracer_tests::rawtcp::{Peer, Segment, Wire, flag};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::sockets::set_tcp_option;
use tracer_tests::traffic::{Listen, Listener};

const REQUEST: &[u8] = b"hello";

/// A listener that takes data in SYNs.
fn fast_listener(on: impl Into<std::net::IpAddr>) -> Result<Listener> {
    let listener = Listen::new(16).on(on).open()?;
    set_tcp_option(&listener, libc::TCP_FASTOPEN, 16)?;
    Ok(listener)
}

/// How a client asks for it.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// `sendto()` connects and sends.
    MsgFastopen,
    /// `connect()` puts the SYN off until the first `write()`.
    FastopenConnect,
}

/// A client that sends `REQUEST` as early as the kernel lets it.
fn client(way: Way, server: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    let sent = match way {
        Way::MsgFastopen => socket.send_to_with_flags(REQUEST, &server.into(), libc::MSG_FASTOPEN)?,
        Way::FastopenConnect => {
            set_tcp_option(&socket.as_fd(), libc::TCP_FASTOPEN_CONNECT, 1)?;
            socket.connect(&server.into())?;
            socket.send(REQUEST)?
        }
    };
    ensure!(sent == REQUEST.len(), "sent {sent} bytes");
    Ok(socket)
}

/// What the kernel says: connections that began with data at the client and at the server, and cookies asked for.
fn fast_opens(kernel: &Netstat) -> [u64; 3] {
    ["TCPFastOpenActive", "TCPFastOpenPassive", "TCPFastOpenCookieReqd"].map(|name| kernel.get(name))
}

#[test]
fn a_connection_with_data_in_its_syn_is_an_attempt_like_any_other() -> Result<()> {
    for way in [Way::MsgFastopen, Way::FastopenConnect] {
        let namespace = Namespace::enter()?;
        namespace.set("net/ipv4/tcp_fastopen", "3")?;
        let listener = fast_listener(Family::V4.loopback())?;
        let session = Session::start(&namespace, listener.port())?;

        // The first connection brings the cookie, the second one returns it with data.
        let mut clients = Vec::new();
        for passive in [0, 1] {
            let socket = client(way, listener.address())?;
            let accepted = listener.accept_many(1)?;
            let local = socket.local_addr()?.as_socket().context("no address")?;
            assert_eq!(accepted[0].peer, local);
            assert_eq!(fast_opens(&session.kernel()?), [passive, passive, 1], "{way:?}");
            clients.push((socket, accepted));
        }

        let finished = session.finish()?;
        finished.expect(&Outcomes { attempts: 2, accepted: 2, ..Outcomes::default() })?;
        let packets = &finished.report.totals.packets;
        assert_eq!((packets.syn, packets.synack), (2, 2));
        let report = &finished.report.clients;
        assert_eq!((report.connects, report.established, report.in_progress), (2, 2, 0));
    }
    Ok(())
}

/// A client on the wire that sends data in its SYN.
struct FastPeer<'wire> {
    peer: Peer<'wire>,
    wire: &'wire Wire,
    server: SocketAddr,
}

impl<'wire> FastPeer<'wire> {
    /// Sends the SYN with its data; the server has accepted the data, or this fails.
    fn syn(wire: &'wire Wire, server: SocketAddr, number: u16) -> Result<Self> {
        let peer = Peer::new(wire, server, number);
        wire.send(&Segment { payload: REQUEST.to_vec(), ..peer.syn_segment() })?;
        let this = Self { peer, wire, server };
        this.synack()?;
        Ok(this)
    }

    fn next(&self) -> u32 {
        self.peer.isn.wrapping_add(1 + REQUEST.len() as u32)
    }

    /// The sequence number of the SYN-ACK that acknowledges the data.
    fn synack(&self) -> Result<u32> {
        let seen = self.wire.seen_by(self.peer.address)?;
        let whole = |it: &&Segment| it.flags & flag::SYN != 0 && it.acknowledgement == self.next();
        let synack = seen.iter().find(whole);
        Ok(synack.with_context(|| format!("the data was not taken with the SYN: {seen:?}"))?.sequence)
    }

    fn send(&self, flags: u8) -> Result<()> {
        self.wire.send(&Segment {
            source: self.peer.address,
            destination: self.server,
            sequence: self.next(),
            acknowledgement: self.synack()?.wrapping_add(1),
            flags,
            payload: Vec::new(),
        })
    }

    /// The ACK that ends the handshake.
    fn ack(&self) -> Result<()> {
        self.send(flag::ACK)
    }
}

/// A server on the wire that takes data in SYNs without a cookie, so that each client may be a new one.
fn without_cookies(namespace: &Namespace, family: Family) -> Result<Listener> {
    namespace.set("net/ipv4/tcp_fastopen", "514")?;
    fast_listener(Wire::server(family))
}

#[test]
fn a_connection_accepted_before_its_final_ack_is_accepted_once() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let namespace = Namespace::enter()?;
        let wire = Wire::open(&namespace)?;
        let listener = without_cookies(&namespace, family)?;
        let session = Session::start(&namespace, listener.port())?;

        let clients =
            (0..3).map(|number| FastPeer::syn(&wire, listener.address(), number)).collect::<Result<Vec<_>>>()?;
        assert_eq!(fast_opens(&session.kernel()?), [0, 3, 0]);
        let accepted = listener.accept_all()?;
        assert_eq!(accepted.len(), 3);
        clients.iter().try_for_each(FastPeer::ack)?;
        assert!(listener.accept()?.is_none());

        let finished = session.finish()?;
        finished.expect(&Outcomes { attempts: 3, accepted: 3, ..Outcomes::default() })?;
    }
    Ok(())
}

#[test]
fn a_connection_accepted_before_its_final_ack_counts_though_the_ack_never_comes() -> Result<()> {
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = without_cookies(&namespace, Family::V4)?;
    let session = Session::start(&namespace, listener.port())?;

    let _client = FastPeer::syn(&wire, listener.address(), 0)?;
    assert_eq!(listener.accept_all()?.len(), 1);

    let finished = session.finish()?;
    finished.expect(&Outcomes { attempts: 1, accepted: 1, ..Outcomes::default() })
}

#[test]
fn a_connection_that_waits_with_the_data_of_its_syn_is_pending() -> Result<()> {
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = without_cookies(&namespace, Family::V4)?;
    let session = Session::start(&namespace, listener.port())?;

    // Three wait to be accepted; the final ACK of the third one has not come.
    let clients = (0..3).map(|number| FastPeer::syn(&wire, listener.address(), number)).collect::<Result<Vec<_>>>()?;
    clients[..2].iter().try_for_each(FastPeer::ack)?;
    assert_eq!(listener.waiting()?, 3);
    // The kernel hands them out in order.
    assert!(listener.accept()?.is_some_and(|it| it.peer == clients[0].peer.address));

    let finished = session.finish()?;
    finished.expect(&Outcomes { attempts: 3, accepted: 1, pending: 2, ..Outcomes::default() })?;
    assert_eq!(finished.listener()?.accept_queue.now, 2);
    Ok(())
}

#[test]
fn connections_that_wait_with_the_data_of_their_syn_are_lost_with_their_listener() -> Result<()> {
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = without_cookies(&namespace, Family::V4)?;
    let session = Session::start(&namespace, listener.port())?;

    let clients = (0..3).map(|number| FastPeer::syn(&wire, listener.address(), number)).collect::<Result<Vec<_>>>()?;
    clients[0].ack()?;
    assert_eq!(listener.waiting()?, 3);
    drop(listener);
    for client in &clients {
        assert!(client.peer.was_reset()?);
    }

    let finished = session.finish()?;
    // Each has its SYN-ACK, and so reason to believe that it is connected, whether its ACK has come back or not.
    finished.expect(&Outcomes {
        attempts: 3,
        lost: counts([("listener-closed", 3)]),
        phantom: 3,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("listener-closed"), clients.iter().map(|it| it.peer.address).collect());
    Ok(())
}

#[test]
fn a_client_that_resets_before_its_final_ack_is_accepted_dead_or_lost() -> Result<()> {
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = without_cookies(&namespace, Family::V4)?;
    let session = Session::start(&namespace, listener.port())?;

    let client = FastPeer::syn(&wire, listener.address(), 0)?;
    client.send(flag::RST | flag::ACK)?;
    let accepted = listener.accept()?;

    let finished = session.finish()?;
    let expected = match accepted {
        Some(_) => Outcomes { attempts: 1, accepted: 1, dead_on_arrival: 1, ..Outcomes::default() },
        None => Outcomes { attempts: 1, lost: counts([("client-reset", 1)]), ..Outcomes::default() },
    };
    finished.expect(&expected)
}
