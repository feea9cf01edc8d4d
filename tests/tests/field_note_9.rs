//! Field note 9: a theory of what a listener does that nobody accepts from, settled claim by claim. Every claim is tested by
//! handshakes by hand, step by step, against the kernel's own tables and counters and the segments that it sends; the tracer,
//! which runs beside, has to tell the same.
//!
//! | claim | asserted by |
//! |---|---|
//! | a. the half-open queue fills first | clients that acknowledge at once, and clients that acknowledge late |
//! | b. then cookies are sent and nothing is stored | the late ones |
//! | c. a client counts itself connected on the SYN-ACK | the client of a SYN-ACK alone |
//! | d. SYNs are dropped outright while the accept queue is full | both of a |
//! | e. final ACKs are dropped then, and the SYN-ACK is sent again until the request times out | the late ones |
//! | f. for a cookie nothing is sent again | the late ones |

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tracer_tests::namespace::{Family, Namespace, half_open, held_requests, server_ends};
use tracer_tests::netstat::Netstat;
use tracer_tests::rawtcp::{Peer, Segment, Wire, addresses, flag};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::{Client, Listen, Listener, State};
use tracer_tests::wait;

/// What `listen` is asked for.
const BACKLOG: u16 = 4;
/// The accept queue holds one connection more, on every kernel.
const ACCEPT_QUEUE: u16 = BACKLOG + 1;
/// What the kernel shows of a listener at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Queues {
    half_open: u16,
    accept: u16,
}

fn queues(listener: &Listener) -> Result<Queues> {
    Ok(Queues { half_open: half_open(listener.port())?.try_into()?, accept: listener.waiting()?.try_into()? })
}

/// The counters that the claims are about, in the kernel's names.
const COUNTED: [&str; 6] =
    ["ListenOverflows", "ListenDrops", "TCPReqQFullDoCookies", "TCPReqQFullDrop", "SyncookiesSent", "SyncookiesRecv"];

/// How often the kernel has sent a SYN-ACK again. Nobody in the namespace sends SYNs, which this counter counts too.
fn repeated_synacks(kernel: &Netstat) -> u64 {
    kernel.get("TCPSynRetrans")
}

/// How many SYN-ACKs each client has been sent.
fn synacks(peers: &[Peer<'_>]) -> Result<Vec<usize>> {
    peers.iter().map(Peer::synacks).collect()
}

/// A line of the table of claims, for whoever runs this with `--nocapture`.
fn tell(claim: &str, verdict: &str, numbers: &str) {
    eprintln!("note 9 | {claim} | {verdict} | {numbers}");
}

#[test]
fn note_9_clients_that_acknowledge_at_once_fill_the_accept_queue_and_never_the_half_open_queue() -> Result<()> {
    const MORE: u16 = 6;
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(BACKLOG.into()).on(Wire::server(Family::V4)).open()?;
    let session = Session::start(&namespace, listener.port())?;

    let mut clients = Peer::several(&wire, listener.address(), 0, ACCEPT_QUEUE);
    for (before, client) in (0..).zip(&mut clients) {
        client.syn()?;
        ensure!(client.take_synack()?, "no SYN-ACK for client {before}");
        assert_eq!(queues(&listener)?, Queues { half_open: 1, accept: before });
        client.ack()?;
        assert_eq!(queues(&listener)?, Queues { half_open: 0, accept: before + 1 });
    }
    // The accept queue is full, and the half-open queue has never held more than one.
    let late = Peer::several(&wire, listener.address(), ACCEPT_QUEUE, MORE);
    for client in &late {
        client.syn()?;
        assert_eq!(queues(&listener)?, Queues { half_open: 0, accept: ACCEPT_QUEUE });
    }
    assert_eq!(synacks(&late)?, [0; MORE as usize]);
    let kernel = session.kernel()?;
    let dropped = u64::from(MORE);
    // Nobody asked for cookies, as the half-open queue is not full.
    assert_eq!(kernel.nonzero(&COUNTED), [("ListenOverflows", dropped), ("ListenDrops", dropped)].into());

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: (ACCEPT_QUEUE + MORE).into(),
        pending: ACCEPT_QUEUE.into(),
        lost: counts([("accept-queue-full", dropped)]),
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("accept-queue-full"), addresses(&late));
    assert_eq!(finished.stages("accept-queue-full"), [Some("syn")].into());
    let packets = &finished.report.totals.packets;
    assert_eq!((packets.synack, packets.synack_cookie), (ACCEPT_QUEUE.into(), 0));
    let reported = finished.listener()?;
    assert_eq!((reported.half_open_queue.max, reported.accept_queue.max), (1, ACCEPT_QUEUE.into()));
    tell(
        "a. half-open queue fills first",
        "refuted for clients that acknowledge at once",
        &format!("backlog {BACKLOG}: accept queue {ACCEPT_QUEUE} (full), half-open queue at most 1"),
    );
    tell(
        "d. accept queue full: SYN dropped, no cookie",
        "confirmed (half-open queue empty)",
        &format!("{MORE} SYNs: {MORE} dropped, 0 SYN-ACKs, 0 cookies"),
    );
    Ok(())
}

#[test]
fn note_9_clients_that_acknowledge_late_fill_the_half_open_queue_first_and_the_rest_follows() -> Result<()> {
    const COOKIES: u16 = ACCEPT_QUEUE + 3;
    const PHANTOMS: u16 = COOKIES - ACCEPT_QUEUE;
    const REFUSED: u16 = 4;
    let requests: u16 = held_requests(BACKLOG.into()).try_into()?;
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(BACKLOG.into()).on(Wire::server(Family::V4)).open()?;
    let port = listener.port();
    let session = Session::start(&namespace, port)?;
    let server = listener.address();

    // a. Requests whose ACK is still on its way fill the half-open queue, one by one, while the accept queue is empty.
    let began = Instant::now();
    let mut ordinary = Peer::several(&wire, server, 0, requests);
    for (held, client) in (1..).zip(&mut ordinary) {
        client.syn()?;
        ensure!(client.take_synack()?, "no SYN-ACK for request {held}");
        assert_eq!(queues(&listener)?, Queues { half_open: held, accept: 0 });
    }
    assert_eq!(session.kernel()?.nonzero(&COUNTED), [].into(), "nobody was dropped or sent a cookie yet");

    // b. From now on cookies are sent, and nothing more is stored.
    let mut cookie = Peer::several(&wire, server, requests, COOKIES);
    for client in &mut cookie {
        client.syn()?;
        ensure!(client.take_synack()?, "no cookie for {}", client.address);
        assert_eq!(queues(&listener)?, Queues { half_open: requests, accept: 0 });
        assert_eq!(server_ends(port)?, usize::from(requests), "the kernel keeps something of a cookie");
    }
    let sent = u64::from(COOKIES);
    let kernel = session.kernel()?;
    assert_eq!(kernel.nonzero(&COUNTED), [("TCPReqQFullDoCookies", sent), ("SyncookiesSent", sent)].into());

    // Five cookies come back and fill the accept queue; the half-open queue stays full.
    let (waiting, phantoms) = cookie.split_at(ACCEPT_QUEUE.into());
    for (already, client) in (0..).zip(waiting) {
        assert_eq!(queues(&listener)?, Queues { half_open: requests, accept: already });
        client.ack()?;
    }
    let full = Queues { half_open: requests, accept: ACCEPT_QUEUE };
    assert_eq!(queues(&listener)?, full);

    // f. The other cookies are as valid, and their ACKs are dropped.
    phantoms.iter().try_for_each(Peer::ack)?;
    let cookie_acks_dropped = Instant::now();
    let kernel = session.kernel()?;
    assert_eq!((kernel.get("SyncookiesRecv"), kernel.get("ListenOverflows")), (sent, PHANTOMS.into()));
    assert_eq!(queues(&listener)?, full);

    // d. Both queues are full. The kernel decides for a cookie first, and counts that, then looks at the accept queue, and
    // drops: TCPReqQFullDoCookies rises, SyncookiesSent does not.
    let refused = Peer::several(&wire, server, requests + COOKIES, REFUSED);
    refused.iter().try_for_each(Peer::syn)?;
    let kernel = session.kernel()?;
    assert_eq!(kernel.get("SyncookiesSent"), sent, "a cookie was sent while the accept queue was full");
    assert_eq!(kernel.get("TCPReqQFullDoCookies"), sent + u64::from(REFUSED));
    assert_eq!(kernel.get("ListenOverflows"), u64::from(PHANTOMS + REFUSED));
    assert_eq!(synacks(&refused)?, [0; REFUSED as usize]);
    assert_eq!(queues(&listener)?, full);

    // e. The final ACKs of the ordinary requests are dropped; the requests stay.
    let mut seen = synacks(&ordinary)?;
    ordinary.iter().try_for_each(Peer::ack)?;
    let mut acks = u64::from(requests);
    let kernel = session.kernel()?;
    assert_eq!(kernel.get("ListenOverflows"), u64::from(PHANTOMS + REFUSED) + acks);
    assert_eq!(queues(&listener)?, full);
    // One more SYN-ACK each, then they may time out: without this, that takes up to 63 seconds. The first comes after 1 s, and 2 s
    // after it this request times out. (On a machine so slow that it has come already there is another, and then 4 s.)
    let retries = seen.iter().max().copied().unwrap_or(1);
    namespace.set("net/ipv4/tcp_synack_retries", &retries.to_string())?;
    // The SYN-ACKs that come again are answered again, as any client would, and that ACK is dropped too.
    let mut repeated_after = Duration::ZERO;
    wait::until("the ordinary requests to time out", || {
        for (client, seen) in ordinary.iter().zip(&mut seen) {
            let now = client.synacks()?;
            if now > *seen {
                client.ack()?;
                acks += 1;
                repeated_after = began.elapsed();
            }
            *seen = now;
        }
        Ok(half_open(port)? == 0)
    })?;
    let repeated = seen.iter().map(|sent| *sent as u64 - 1).sum::<u64>();
    assert_eq!(session.kernel()?.get("ListenOverflows"), u64::from(PHANTOMS + REFUSED) + acks);
    assert!(acks > requests.into() && repeated >= requests.into(), "{acks} ACKs, {repeated} SYN-ACKs repeated");
    let expired_after = began.elapsed();

    // f. Waited at least as long, nothing was sent to the cookies' clients a second time, nor to anybody else.
    wait::until("as long for cookies as for requests", || Ok(cookie_acks_dropped.elapsed() >= expired_after))?;
    assert_eq!(synacks(&ordinary)?, seen);
    assert_eq!(synacks(&cookie)?, [1; COOKIES as usize], "a SYN-ACK was sent again for a cookie");
    assert_eq!(synacks(&refused)?, [0; REFUSED as usize]);
    for client in ordinary.iter().chain(&cookie).chain(&refused) {
        assert!(!client.was_reset()?, "{} was reset", client.address);
    }
    let kernel = session.kernel()?;
    assert_eq!(repeated_synacks(&kernel), repeated);
    assert_eq!(queues(&listener)?, Queues { half_open: 0, accept: ACCEPT_QUEUE });
    // Timers of the kernel may be late, never early.
    assert!(repeated_after >= Duration::from_millis(900), "repeated after {repeated_after:?}");
    assert!(expired_after >= Duration::from_millis(2800), "timed out after {expired_after:?}");

    // d. once more, now that the half-open queue is empty: nobody even thinks of a cookie.
    let last = Peer::several(&wire, server, requests + COOKIES + REFUSED, 1);
    last[0].syn()?;
    assert_eq!(last[0].synacks()?, 0);
    let kernel = session.kernel()?;
    assert_eq!(kernel.get("TCPReqQFullDoCookies"), sent + u64::from(REFUSED));
    assert_eq!(kernel.get("ListenOverflows"), u64::from(PHANTOMS + REFUSED + 1) + acks);

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: (requests + COOKIES + REFUSED + 1).into(),
        pending: ACCEPT_QUEUE.into(),
        lost: counts([
            ("accept-queue-full", (requests + REFUSED + 1).into()),
            ("syncookie-ack-dropped", PHANTOMS.into()),
        ]),
        phantom: (requests + PHANTOMS).into(),
        ..Outcomes::default()
    })?;
    let dropped_syns = &addresses(&refused) | &addresses(&last);
    assert_eq!(finished.lost("accept-queue-full"), &addresses(&ordinary) | &dropped_syns);
    assert_eq!(finished.lost("syncookie-ack-dropped"), addresses(phantoms));
    for line in finished.events.iter().filter(|line| line.event == "lost") {
        let client = line.client_address().context("a lost client without an address")?;
        let by_syn = dropped_syns.contains(&client);
        let told = (line.stage.as_deref(), line.phantom, line.synack_retransmits.unwrap_or(0));
        let expected = match line.cause.as_str() {
            // Timed out in the end, and yet no `handshake-expired`: it had been acknowledged.
            "accept-queue-full" if by_syn => (Some("syn"), false, 0),
            "accept-queue-full" => {
                let at = ordinary.iter().position(|it| it.address == client).context("lost, but by what?")?;
                (Some("ack"), true, seen[at] as u64 - 1)
            }
            _ => (line.stage.as_deref(), true, 0),
        };
        assert_eq!(told, expected, "{line:?}");
    }
    let packets = &finished.report.totals.packets;
    assert_eq!(packets.synack, u64::from(requests));
    assert_eq!(packets.synack_cookie, sent);
    assert_eq!(packets.synack_retransmitted, repeated);
    assert_eq!(packets.syn_dropped.get("accept-queue-full"), Some(&(REFUSED + 1).into()));
    assert_eq!(packets.ack_dropped.get("accept-queue-full"), Some(&acks));
    assert_eq!(packets.ack_dropped.get("syncookie-ack-dropped"), Some(&PHANTOMS.into()));
    let reported = finished.listener()?;
    assert_eq!((reported.half_open_queue.now, reported.half_open_queue.max), (0, requests.into()));
    assert_eq!((reported.accept_queue.now, reported.accept_queue.max), (ACCEPT_QUEUE.into(), ACCEPT_QUEUE.into()));

    tell(
        "a. half-open queue fills first",
        "confirmed for clients that acknowledge late",
        &format!("backlog {BACKLOG}: half-open queue {requests} (full) while the accept queue held 0"),
    );
    tell(
        "b. then cookies are sent, nothing is stored",
        "confirmed",
        &format!("{COOKIES} more SYNs: {COOKIES} cookies, still {requests} requests"),
    );
    tell(
        "d. accept queue full: SYN dropped, no cookie",
        "confirmed (half-open queue full and empty)",
        &format!("{} SYNs: all dropped, 0 cookies; TCPReqQFullDoCookies rose by {REFUSED} all the same", REFUSED + 1),
    );
    tell(
        "e. final ACKs dropped, SYN-ACK repeated until timeout",
        "confirmed",
        &format!(
            "{requests} requests, tcp_synack_retries {retries}: {acks} ACKs dropped, {repeated} SYN-ACKs repeated by {:.1} s, timed out \
             by {:.1} s, no RST",
            repeated_after.as_secs_f64(),
            expired_after.as_secs_f64()
        ),
    );
    tell(
        "f. cookies: nothing stored, nothing repeated",
        "confirmed",
        &format!(
            "{PHANTOMS} valid ACKs dropped, 0 SYN-ACKs repeated in {:.1} s",
            cookie_acks_dropped.elapsed().as_secs_f64()
        ),
    );
    Ok(())
}

#[test]
fn note_9_a_client_is_connected_by_a_syn_ack_alone() -> Result<()> {
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(BACKLOG.into()).open()?;
    let session = Session::start(&namespace, listener.port())?;

    // Behind the wire there is no kernel: what answers this client is this test, and it keeps nothing.
    let server = SocketAddr::from((Ipv4Addr::new(10, 9, 1, 1), listener.port()));
    let client = Client::connect(server)?;
    assert_eq!(client.state()?, State::SynSent);
    let seen = wire.seen_by(server)?;
    let [syn] = seen.as_slice() else { anyhow::bail!("not one SYN: {seen:?}") };
    assert_eq!(syn.flags, flag::SYN);
    wire.send(&Segment {
        source: server,
        destination: client.address(),
        sequence: 1_000,
        acknowledgement: syn.sequence.wrapping_add(1),
        flags: flag::SYN | flag::ACK,
        payload: Vec::new(),
    })?;
    assert_eq!(client.state()?, State::Established);
    let seen = wire.seen_by(server)?;
    assert!(seen.iter().any(|it| it.flags == flag::ACK && it.acknowledgement == 1_001), "no final ACK: {seen:?}");

    let finished = session.finish()?;
    finished.expect_totals(&Outcomes::default())?;
    let clients = &finished.report.clients;
    assert_eq!((clients.connects, clients.established, clients.in_progress), (1, 1, 0));
    tell(
        "c. a client is connected on the SYN-ACK",
        "confirmed",
        "1 connect to an address without any server: ESTABLISHED on a SYN-ACK written by hand",
    );
    Ok(())
}
