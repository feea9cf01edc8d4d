//! Field note 7: clients at a remote site, with a long round trip and some loss. One client program: `connect` times out,
//! and `accept` stops short.
//!
//! What the server's side can know is what arrived there, and the path tells that; what the clients know they say themselves.
//! The tracer watches the server's namespace alone, as on a server.

use std::collections::BTreeSet;
use std::io;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tracer_tests::namespace::{Namespace, clients_closing, half_open, held_requests};
use tracer_tests::path::{Direction, Flow, Path, Settings};
use tracer_tests::remote_site::{
    PATIENCE, Server, compare_packets, compare_with_cookies, remote_site, settle, unaccepted,
};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::{Client, Listen, State, connect_blocking, raise_descriptor_limit};
use tracer_tests::wait;

#[test]
fn note_7_with_syncookies_a_long_path_makes_connections_that_only_the_client_knows_of() -> Result<()> {
    const THREADS: usize = 24;
    const CONNECTIONS: usize = 8;
    const ALL: usize = THREADS * CONNECTIONS;
    const BACKLOG: i32 = 8;
    raise_descriptor_limit(4 * ALL as u64)?;
    let namespace = Namespace::enter()?;
    let path = Path::open(&namespace, remote_site()?)?;
    let listener = Listen::new(BACKLOG).on(Path::server()).open()?;
    let start = || Session::start(&namespace, listener.port());
    let (until_ctrl_c, to_the_end) = (start()?, start()?);
    let server = Server::default();
    server.during(&listener, || {
        let begin = Barrier::new(THREADS);
        let work = || -> Result<Vec<Client>> {
            begin.wait();
            path.join_clients()?;
            (0..CONNECTIONS).map(|_| connect_blocking(listener.address()).context("cannot connect")).collect()
        };
        let clients: Vec<Client> = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
            let results = threads.into_iter().map(|thread| thread.join().expect("a client does not panic"));
            results.collect::<Result<Vec<_>>>().map(|parts| parts.into_iter().flatten().collect())
        })?;
        settle(&path, &listener)?;
        for client in &clients {
            assert_eq!(client.state()?, State::Established);
        }
        let kernel = until_ctrl_c.kernel()?;
        let (truth, accepted) = (path.truth(), server.accepted());
        let before = until_ctrl_c.finish().context("before Ctrl-C")?;

        assert_eq!((clients.len(), truth.attempts().count()), (ALL, ALL), "every connect returned");
        compare_packets(&before, &truth, kernel.get("TCPSynRetrans"));
        compare_with_cookies(&before, &truth, &accepted)?;
        let late = before.all_late();
        let ignored = truth.attempts().filter(|(_, flow)| flow.ignored_syns() > 0).map(|((client, _), _)| *client);
        let ignored: BTreeSet<_> = ignored.filter(|client| accepted.contains(client)).collect();
        assert!(late.is_superset(&ignored), "not late: {:?}", &ignored - &late);
        assert!(late.len() as u64 <= kernel.get("ListenDrops"), "{} came late", late.len());
        assert_eq!(before.report.totals.dead_on_arrival, 0);
        // The path was as meant: the round trip filled the half-open queue, and packets were lost.
        let reported = before.listener()?;
        assert_eq!(reported.half_open_queue.max, held_requests(BACKLOG as usize) as u64);
        assert!(kernel.get("SyncookiesSent") > 0, "the half-open queue was never full");
        assert!(truth.lost(Direction::ToServer).chance > 0 && truth.lost(Direction::ToClients).chance > 0);
        assert!(kernel.get("TCPSynRetrans") > 0, "no SYN-ACK was sent again");
        let missing: BTreeSet<_> = unaccepted(&truth, &accepted).into_iter().map(|(client, _)| client).collect();
        eprintln!(
            "note 7 | syncookies 1, backlog {BACKLOG}, round trip 80 ms | {ALL} connects returned, {} accepted, {} only the \
             client knows of ({} lost, {} pending, {} by a cookie whose ACK was lost on the path) | {} cookies, {} SYN-ACKs repeated",
            accepted.len(),
            missing.len(),
            before.report.totals.lost.total,
            before.report.totals.pending,
            missing.len() as u64 - before.report.totals.lost.total,
            kernel.get("SyncookiesSent"),
            kernel.get("TCPSynRetrans"),
        );

        // Ctrl-C: each FIN carries its cookie, and makes the connection real.
        let expired = before.lost("handshake-expired");
        to_the_end.mark()?;
        drop(clients);
        wait::until_within(PATIENCE, "every FIN to be acknowledged", || {
            Ok(path.among_clients(|| clients_closing(listener.port()))? == 0)
        })?;
        settle(&path, &listener)?;
        let (truth, rise) = (path.truth(), server.accepted()[accepted.len()..].to_vec());
        let after = to_the_end.finish().context("after Ctrl-C")?;
        let rise: BTreeSet<_> = rise.into_iter().collect();
        assert_eq!(rise, &missing - &expired, "whom a FIN made known to the server");
        let outcomes = after.listener()?.ledger.outcomes();
        assert_eq!((outcomes.attempts, outcomes.accepted), (ALL as u64, (accepted.len() + rise.len()) as u64));
        assert_eq!(outcomes.dead_on_arrival, rise.len() as u64, "{outcomes:#?}");
        assert_eq!(outcomes.pending, 0, "{outcomes:#?}");
        let [mark] = after.report.marks.as_slice() else { anyhow::bail!("not one mark: {:?}", after.report.marks) };
        assert!((accepted.len()..=accepted.len() + rise.len()).contains(&(mark.accepted as usize)), "{mark:?}");
        assert!(truth.sum(|flow| flow.fin.arrived) >= rise.len() as u64);
        eprintln!("note 7 | after Ctrl-C | {} more accepted, all dead on arrival", rise.len());
        Ok(())
    })?;
    path.finish()?;
    Ok(())
}

#[test]
fn note_7_without_syncookies_a_long_path_fills_the_half_open_queue_and_connects_time_out() -> Result<()> {
    const THREADS: usize = 32;
    const CONNECTIONS: usize = 3;
    const ALL: usize = THREADS * CONNECTIONS;
    const BACKLOG: i32 = 3;
    raise_descriptor_limit(4 * ALL as u64)?;
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", "0")?;
    let path = Path::open(&namespace, remote_site()?)?;
    // Given up after two SYNs: in 2 or 3 seconds, by the kernel's version.
    path.set_for_clients("net/ipv4/tcp_syn_retries", "1")?;
    let listener = Listen::new(BACKLOG).on(Path::server()).open()?;
    let session = Session::start(&namespace, listener.port())?;
    let server = Server::default();
    server.during(&listener, || {
        let begin = Barrier::new(THREADS);
        let work = || -> Result<Vec<io::Result<Client>>> {
            begin.wait();
            path.join_clients()?;
            Ok((0..CONNECTIONS).map(|_| connect_blocking(listener.address())).collect())
        };
        let results: Vec<io::Result<Client>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
            let results = threads.into_iter().map(|thread| thread.join().expect("a client does not panic"));
            results.collect::<Result<Vec<_>>>().map(|parts| parts.into_iter().flatten().collect())
        })?;
        settle(&path, &listener)?;
        let kernel = session.kernel()?;
        let (truth, accepted) = (path.truth(), server.accepted());
        let finished = session.finish()?;

        let connected: BTreeSet<_> = results.iter().flatten().map(Client::address).collect();
        let errors = results.iter().filter_map(|it| it.as_ref().err());
        let (timed_out, others): (Vec<_>, Vec<_>) = errors.partition(|it| it.kind() == io::ErrorKind::TimedOut);
        assert!(others.is_empty(), "other errors: {others:?}");
        assert_eq!((truth.flows.len(), connected.len() + timed_out.len()), (ALL, ALL), "an attempt for each connect");
        let addresses: BTreeSet<_> = truth.flows.keys().map(|(client, _)| *client).collect();
        assert_eq!(addresses.len(), ALL, "a port was used twice");

        let outcomes = finished.listener()?.ledger.outcomes();
        let attempts = truth.attempts().count() as u64;
        assert_eq!((outcomes.attempts, outcomes.accepted), (attempts, accepted.len() as u64), "{outcomes:#?}");
        assert_eq!(outcomes.pending, 0, "{outcomes:#?}");
        compare_packets(&finished, &truth, kernel.get("TCPSynRetrans"));
        let packets = &finished.report.totals.packets;
        assert_eq!(kernel.get("TCPSynRetrans"), truth.sum(Flow::repeated_synacks));
        assert_eq!(packets.synack, truth.sum(|flow| flow.synack_by_isn.len() as u64));
        let dropped = |cause: &str| packets.syn_dropped.get(cause).copied().unwrap_or(0);
        assert_eq!(dropped("half-open-queue-full"), kernel.get("TCPReqQFullDrop"));

        // Who is lost, and by what.
        let missing = unaccepted(&truth, &accepted);
        assert_eq!(finished.all_lost(), missing.iter().map(|(client, _)| *client).collect());
        for (client, flow) in &missing {
            let queues = ["half-open-queue-full", "accept-queue-full"].as_slice();
            let possible = match flow {
                _ if flow.synack.sent == 0 => queues,
                _ if flow.was_answered() => &["accept-queue-full"],
                // A client that has given up answers with a RST, if the request is still there.
                _ if flow.reset.arrived > 0 => &["client-reset", "handshake-expired"],
                // A SYN may have come again after that.
                _ => &["handshake-expired", "half-open-queue-full", "accept-queue-full"],
            };
            let line = finished.events.iter().find(|it| it.event == "lost" && it.client_address() == Some(*client));
            let line = line.with_context(|| format!("no line for {client}"))?;
            assert!(possible.contains(&line.cause.as_str()), "{line:?}: {flow:?}");
        }
        // Who came late: whoever's first SYN was given no answer, and, only where ACKs were dropped, others.
        let accepted: BTreeSet<_> = accepted.into_iter().collect();
        let ignored = truth.attempts().filter(|(_, flow)| flow.ignored_syns() > 0).map(|((client, _), _)| *client);
        let ignored: BTreeSet<_> = ignored.filter(|client| accepted.contains(client)).collect();
        let late = finished.all_late();
        assert!(late.is_superset(&ignored), "not late: {:?}", &ignored - &late);
        assert!(late == ignored || kernel.get("ListenOverflows") > 0, "late: {:?}", &late - &ignored);

        // A client that timed out never was one of the server's; the others may not have been either.
        assert!(accepted.is_subset(&connected), "{:?}", &accepted - &connected);
        assert!(dropped("half-open-queue-full") > 0, "the half-open queue was never full: {packets:?}");
        assert!(!timed_out.is_empty() && !ignored.is_empty(), "{} timed out, {} late", timed_out.len(), ignored.len());
        eprintln!(
            "note 7 | syncookies 0, backlog {BACKLOG}, round trip 80 ms | {ALL} connects, {} accepted ({} late), {} timed out, \
             {:?} | {} SYNs dropped, {} SYN-ACKs repeated",
            accepted.len(),
            late.len(),
            timed_out.len(),
            outcomes.lost,
            kernel.get("ListenDrops"),
            packets.synack_retransmitted,
        );
        Ok(())
    })?;
    path.finish()?;
    Ok(())
}

#[test]
fn note_7_handshakes_expire_when_the_line_to_their_clients_is_cut() -> Result<()> {
    const CLIENTS: usize = 6;
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_synack_retries", "1")?;
    let path = Path::open(
        &namespace,
        // Long enough to cut the line before an answer comes back, on a busy machine too.
        Settings { delay: Duration::from_millis(400), loss: 0.0, seed: 0, queue: 1000 },
    )?;
    let listener = Listen::new(16).on(Path::server()).open()?;
    let session = Session::start(&namespace, listener.port())?;
    let clients: Vec<_> =
        path.among_clients(|| (0..CLIENTS).map(|_| Ok(Client::connect(listener.address())?)).collect())?;
    wait::until("every SYN-ACK to be on its way", || Ok(path.truth().sum(|flow| flow.synack.sent) == CLIENTS as u64))?;
    path.cut();
    wait::until("the requests to time out", || Ok(half_open(listener.port())? == 0))?;
    for client in &clients {
        assert_eq!(client.state()?, State::SynSent);
    }
    let kernel = session.kernel()?;
    let truth = path.finish()?;
    let arrived = |flow: &Flow| (flow.syn.arrived, flow.synack.arrived, flow.synack.sent, flow.repeated_synacks());
    for (client, flow) in &truth.flows {
        assert_eq!(arrived(flow), (1, 0, 2, 1), "{client:?}: {flow:?}");
    }

    let finished = session.finish()?;
    let all = CLIENTS as u64;
    finished.expect(&Outcomes { attempts: all, lost: counts([("handshake-expired", all)]), ..Outcomes::default() })?;
    assert_eq!(finished.lost("handshake-expired"), clients.iter().map(Client::address).collect());
    assert!(finished.events.iter().all(|line| line.synack_retransmits == Some(1)), "{:?}", finished.events);
    compare_packets(&finished, &truth, kernel.get("TCPSynRetrans"));
    Ok(())
}
