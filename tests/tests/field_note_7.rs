//! Field notes 7 and 8: clients at a remote site, with a long round trip and some loss. In 7, one client program: `connect`
//! times out, and `accept` stops short. In 8, four of them: the count pauses, and after Ctrl-C of three of them SYNs arrive
//! again.
//!
//! What the server's side can know is what arrived there, and the path tells that; what the clients know they say themselves.
//! The tracer watches the server's namespace alone, as on a server.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tracer_tests::namespace::{Namespace, clients_closing, half_open, held_requests};
use tracer_tests::path::{Direction, Flow, Path, Settings, Truth};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::{Finished, Session};
use tracer_tests::traffic::{Accepted, Client, Listen, Listener, State, connect_blocking, raise_descriptor_limit};
use tracer_tests::wait;

const GREETING: [u8; 256] = [0x55; 256];
/// How long all clients together may take: a lost or dropped SYN costs its thread a second, then two, then four.
const PATIENCE: Duration = Duration::from_secs(120);

/// 80 ms there and back, and one packet in twelve is lost in each direction. `PATH_SEED` makes other chances.
fn remote_site() -> Result<Settings> {
    let seed = match std::env::var("PATH_SEED") {
        Ok(seed) => seed.parse().context("PATH_SEED is no number")?,
        Err(_) => 20_260_417,
    };
    eprintln!("seed of the path: {seed}");
    Ok(Settings { delay: Duration::from_millis(40), loss: 0.08, seed, queue: 1000 })
}

/// A server that accepts at once and speaks first.
#[derive(Debug, Default)]
struct Server {
    held: Mutex<Vec<Accepted>>,
    over: AtomicBool,
}

impl Server {
    fn serve(&self, listener: &Listener) -> Result<()> {
        while !self.over.load(SeqCst) {
            match listener.accept()? {
                Some(mut connection) => {
                    connection.write(&GREETING)?;
                    self.held.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
                }
                None => listener.poll(Duration::from_millis(20))?,
            }
        }
        Ok(())
    }

    /// Runs `work` while this server serves.
    fn during<T>(&self, listener: &Listener, work: impl FnOnce() -> Result<T>) -> Result<T> {
        thread::scope(|scope| {
            let server = scope.spawn(|| self.serve(listener));
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            self.over.store(true, SeqCst);
            server.join().expect("the server does not panic")?;
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The clients of all connections so far; an address may come twice.
    fn accepted(&self) -> Vec<SocketAddr> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|it| it.peer).collect()
    }
}

/// Waits until nothing can happen any more by itself: nothing is under way, no timer of a request runs, all is accepted.
fn settle(path: &Path, listener: &Listener) -> Result<()> {
    wait::until_within(PATIENCE, "everything to arrive and to be accepted", || {
        // With nothing under way and no request left, nothing is sent any more that matters here.
        let still = || path.truth().sum(Flow::under_way) == 0;
        Ok(still() && half_open(listener.port())? == 0 && still() && listener.waiting()? == 0)
    })
}

/// The attempts that reached the server and were not accepted, given whom it accepted. Of several attempts from one address,
/// those are taken for accepted that were answered: no other can be.
fn unaccepted<'truth>(truth: &'truth Truth, accepted: &[SocketAddr]) -> Vec<(SocketAddr, &'truth Flow)> {
    let mut attempts: Vec<_> = truth.attempts().map(|((client, _), flow)| (*client, flow)).collect();
    attempts.sort_by_key(|(client, flow)| (*client, !flow.was_answered()));
    let mut left = accepted.to_vec();
    attempts.retain(|(client, _)| match left.iter().position(|it| it == client) {
        Some(at) => {
            left.swap_remove(at);
            false
        }
        None => true,
    });
    attempts
}

/// Holds the packet counts of a report against what the path has seen at the server's end, and against the kernel's own count
/// of SYN-ACKs that it sent again (nobody in the server's namespace sends SYNs, which that counter counts too).
fn compare_packets(finished: &Finished, truth: &Truth, repeated: u64) {
    let packets = &finished.report.totals.packets;
    let told = packets.synack_retransmitted;
    // A timer's doing is hidden where this kernel runs no BPF program: by as much as that happened.
    assert!(told <= repeated && repeated - told <= finished.hidden, "{repeated} SYN-ACKs sent again: {packets:?}");
    let sent = truth.sum(|flow| flow.synack.sent);
    assert_eq!(packets.synack + packets.synack_cookie + repeated, sent, "{packets:?}");
    let arrived = truth.sum(|flow| flow.syn.arrived);
    // A SYN that finds a request or a connection of its own is not the listener's.
    assert!((finished.report.totals.attempts..=arrived).contains(&packets.syn), "{arrived} arrived: {packets:?}");
    // All of these clients are remote: their calls are not seen here.
    assert_eq!(finished.report.clients.connects, 0, "{:?}", finished.report.clients);
}

/// Holds a report against the truth where cookies are on and the server accepts at once: what is not accepted was most often
/// answered with a cookie. Its ACK came back into a full accept queue (lost), or got lost on the path. Then nobody here can know
/// more than that a SYN-ACK was sent: pending, or, if an earlier SYN of this attempt was dropped, lost to that. Or it was an
/// ordinary request that timed out after two repetitions or more, or its client was closed meanwhile and answered with a RST.
fn compare_with_cookies(finished: &Finished, truth: &Truth, accepted: &[SocketAddr]) -> Result<()> {
    let outcomes = finished.listener()?.ledger.outcomes();
    let attempts = truth.attempts().count();
    assert_eq!((outcomes.attempts, outcomes.accepted), (attempts as u64, accepted.len() as u64), "{outcomes:#?}");
    let missing = unaccepted(truth, accepted);
    let of = |answered: bool| -> BTreeSet<SocketAddr> {
        missing.iter().filter(|(_, flow)| flow.was_answered() == answered).map(|(client, _)| *client).collect()
    };
    let (answered, silent) = (of(true), of(false));
    let (expired, dropped) = (finished.lost("handshake-expired"), finished.lost("accept-queue-full"));
    let reset = finished.lost("client-reset");
    assert_eq!(finished.lost("syncookie-ack-dropped"), answered, "{outcomes:#?}");
    assert_eq!(finished.all_lost(), &(&answered | &expired) | &(&dropped | &reset), "{outcomes:#?}");
    let known = expired.len() + dropped.len() + reset.len();
    assert_eq!(outcomes.pending as usize + known, silent.len(), "{outcomes:#?}");
    assert_eq!(outcomes.phantom as usize, answered.len(), "{outcomes:#?}");
    for (client, flow) in missing.iter().filter(|(client, _)| silent.contains(client)) {
        let may_be_dropped = flow.syn.arrived > 1;
        assert!(flow.synack.sent >= 3 || !expired.contains(client), "{client} cannot have expired: {flow:?}");
        assert!(may_be_dropped || !dropped.contains(client), "{client} cannot have been dropped: {flow:?}");
        // A client that was closed before its SYN-ACK came. Its request is gone with its RST, if not before.
        let is_reset = flow.reset.arrived > 0;
        assert!(is_reset || !reset.contains(client), "{client} was not reset: {flow:?}");
        assert!(!is_reset || reset.contains(client) || expired.contains(client), "{client} was reset: {flow:?}");
        assert!(flow.ignored_syns() == 0 || finished.all_lost().contains(client), "{client} was dropped: {flow:?}");
    }
    Ok(())
}

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

/// A client program of note 8: threads that connect one after the other and keep what they have until Ctrl-C.
#[derive(Debug, Default)]
struct Program {
    interrupted: AtomicBool,
    /// How many connections were begun.
    begun: AtomicUsize,
    established: AtomicUsize,
    /// How often `connect` failed for want of a port since somebody set this to 0.
    no_port: AtomicUsize,
}

impl Program {
    /// One thread's work: `count` connections, kept until Ctrl-C. As in the notes nobody reads the greetings, so that the kernel
    /// resets a connection that is closed, and its port is free at once.
    fn run(&self, server: SocketAddr, count: usize) -> Result<()> {
        let mut open = Vec::new();
        while !self.interrupted.load(SeqCst) {
            if open.len() == count {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            match Client::connect(server) {
                Ok(client) => {
                    self.begun.fetch_add(1, SeqCst);
                    while client.state()? == State::SynSent && !self.interrupted.load(SeqCst) {
                        thread::sleep(Duration::from_millis(2));
                    }
                    if client.state()? == State::Established {
                        self.established.fetch_add(1, SeqCst);
                    } else {
                        ensure!(self.interrupted.load(SeqCst), "a client failed: {:?}", client.error()?);
                    }
                    open.push(client);
                }
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
                    self.no_port.fetch_add(1, SeqCst);
                    thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error).context("cannot connect"),
            }
        }
        Ok(())
    }
}

#[test]
fn note_8_four_programs_use_up_the_ports_and_after_ctrl_c_of_three_syns_arrive_again() -> Result<()> {
    const PROGRAMS: usize = 4;
    const THREADS: usize = 2;
    const EACH: usize = 15;
    const WANTED: usize = THREADS * EACH;
    const PORTS: usize = 64;
    const BACKLOG: i32 = 4;
    let namespace = Namespace::enter()?;
    let path = Path::open(&namespace, remote_site()?)?;
    path.set_for_clients("net/ipv4/ip_local_port_range", &format!("40000 {}", 40_000 + PORTS - 1))?;
    let listener = Listen::new(BACKLOG).on(Path::server()).open()?;
    let start = || Session::start(&namespace, listener.port());
    let (until_ctrl_c, to_the_end) = (start()?, start()?);
    let server = Server::default();
    let programs: [Program; PROGRAMS] = Default::default();
    let [survivor, others @ ..] = &programs;
    let established = || programs.iter().map(|it| it.established.load(SeqCst)).sum::<usize>();
    let begun = || programs.iter().map(|it| it.begun.load(SeqCst)).sum::<usize>();
    let interrupt = |programs: &[Program]| programs.iter().for_each(|it| it.interrupted.store(true, SeqCst));
    server.during(&listener, || {
        thread::scope(|scope| {
            let start = |program| {
                let path = &path;
                let address = listener.address();
                move |_| {
                    scope.spawn(move || {
                        path.join_clients()?;
                        Program::run(program, address, EACH)
                    })
                }
            };
            let staying: Vec<_> = (0..THREADS).map(start(survivor)).collect();
            let leaving: Vec<_> = others.iter().flat_map(|it| (0..THREADS).map(start(it)).collect::<Vec<_>>()).collect();
            let story = || -> Result<()> {
                // The count pauses: all ports are taken, and every program asks in vain for another.
                wait::until_within(PATIENCE, "all ports to be connected", || Ok(established() == PORTS))?;
                settle(&path, &listener)?;
                programs.iter().for_each(|it| it.no_port.store(0, SeqCst));
                wait::until("every program to want a port", || {
                    Ok(programs.iter().all(|it| it.no_port.load(SeqCst) > 0 || it.established.load(SeqCst) == WANTED))
                })?;
                let (first, accepted) = (path.truth(), server.accepted());
                let remaining = WANTED - survivor.established.load(SeqCst);
                ensure!(remaining > 0, "the program that goes on has nothing left to do");
                let kernel = until_ctrl_c.kernel()?;
                let before = until_ctrl_c.finish().context("in the pause")?;
                assert_eq!((first.attempts().count(), begun()), (PORTS, PORTS));
                compare_packets(&before, &first, kernel.get("TCPSynRetrans"));
                compare_with_cookies(&before, &first, &accepted)?;
                let unknown: BTreeSet<_> = unaccepted(&first, &accepted).into_iter().map(|it| it.0).collect();

                // Ctrl-C of three: their ports are free, and the fourth goes on.
                to_the_end.mark()?;
                interrupt(others);
                for thread in leaving {
                    thread.join().expect("a client does not panic")?;
                }
                wait::until_within(PATIENCE, "the last program to have all that it wants", || {
                    Ok(survivor.established.load(SeqCst) == WANTED)
                })?;
                wait::until_within(PATIENCE, "every FIN to be acknowledged", || {
                    Ok(path.among_clients(|| clients_closing(listener.port()))? == 0)
                })?;
                settle(&path, &listener)?;
                let (second, all) = (path.truth(), server.accepted());
                let kernel = to_the_end.kernel()?;
                let after = to_the_end.finish().context("after Ctrl-C of three")?;
                // One of the three may have begun another connection in the moment of its end, and its SYN may have got lost.
                assert_eq!(second.flows.len(), begun());
                let again = second.attempts().count() - PORTS;
                assert!((remaining..=begun() - PORTS).contains(&again), "{again} attempts after Ctrl-C, {remaining} remained");
                compare_packets(&after, &second, kernel.get("TCPSynRetrans"));
                compare_with_cookies(&after, &second, &all)?;
                assert_eq!(after.report.totals.attempts - before.report.totals.attempts, again as u64);
                let [mark] = after.report.marks.as_slice() else {
                    anyhow::bail!("not one mark: {:?}", after.report.marks)
                };
                assert!((accepted.len()..=all.len()).contains(&(mark.accepted as usize)), "{mark:?}");
                // Of those that only their client knew of, a FIN made known whoever was among the three.
                let closed: Vec<_> = first
                    .attempts()
                    .filter(|((client, isn), _)| {
                        unknown.contains(client) && second.flows[&(*client, *isn)].fin.arrived > 0
                    })
                    .collect();
                let expired = before.lost("handshake-expired").len() as u64;
                let dead = after.report.totals.dead_on_arrival;
                assert!(dead <= closed.len() as u64 && dead + expired >= closed.len() as u64, "{dead} dead: {closed:?}");
                eprintln!(
                    "note 8 | {PROGRAMS} programs, {PORTS} ports, backlog {BACKLOG}, round trip 80 ms | pause: {PORTS} connects, \
                     {} accepted, {} only the client knows of | after Ctrl-C of three: {again} new attempts, {} more accepted, \
                     {dead} of them dead on arrival",
                    accepted.len(),
                    unknown.len(),
                    all.len() - accepted.len(),
                );
                Ok(())
            };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(story));
            interrupt(&programs);
            for thread in staying {
                thread.join().expect("a client does not panic")?;
            }
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    path.finish()?;
    Ok(())
}
