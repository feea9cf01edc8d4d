//! Field note 8: clients at a remote site, as in note 7, but four client programs: the count pauses, and after Ctrl-C of
//! three of them SYNs arrive again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tracer_tests::namespace::{Namespace, clients_closing};
use tracer_tests::path::Path;
use tracer_tests::remote_site::{
    PATIENCE, Server, compare_packets, compare_with_cookies, remote_site, settle, unaccepted,
};
use tracer_tests::session::Session;
use tracer_tests::traffic::{Client, Listen, State};
use tracer_tests::wait;

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
    let established = || programs.iter().map(|it| it.established.load(SeqCst)).sum::<usize>();
    let begun = || programs.iter().map(|it| it.begun.load(SeqCst)).sum::<usize>();
    let interrupt = |program: &Program| program.interrupted.store(true, SeqCst);
    server.during(&listener, || {
        thread::scope(|scope| {
            let start = |program| {
                let path = &path;
                let address = listener.address();
                scope.spawn(move || {
                    path.join_clients()?;
                    Program::run(program, address, EACH)
                })
            };
            let each = programs.iter().enumerate().flat_map(|(n, program)| [(n, program); THREADS]);
            let mut threads: Vec<_> = each.map(|(n, program)| (n, start(program))).collect();
            let story = || -> Result<()> {
                // The count pauses: all ports are taken, and every program asks in vain for another.
                wait::until_within(PATIENCE, "all ports to be connected", || Ok(established() == PORTS))?;
                settle(&path, &listener)?;
                programs.iter().for_each(|it| it.no_port.store(0, SeqCst));
                wait::until("every program to want a port", || {
                    Ok(programs.iter().all(|it| it.no_port.load(SeqCst) > 0 || it.established.load(SeqCst) == WANTED))
                })?;
                let (first, accepted) = (path.truth(), server.accepted());
                // The one that goes on is the one that had the least luck: with more ports than two can want, nobody knows who.
                let connected = |n: &usize| programs[*n].established.load(SeqCst);
                let survivor = (0..PROGRAMS).min_by_key(connected).context("no program")?;
                let remaining = WANTED - connected(&survivor);
                let kernel = until_ctrl_c.kernel()?;
                let before = until_ctrl_c.finish().context("in the pause")?;
                assert_eq!((first.attempts().count(), begun()), (PORTS, PORTS));
                compare_packets(&before, &first, kernel.get("TCPSynRetrans"));
                compare_with_cookies(&before, &first, &accepted)?;
                let unknown: BTreeSet<_> = unaccepted(&first, &accepted).into_iter().map(|it| it.0).collect();

                // Ctrl-C of three: their ports are free, and the fourth goes on.
                to_the_end.mark()?;
                programs.iter().enumerate().filter(|(n, _)| *n != survivor).for_each(|(_, program)| interrupt(program));
                for (_, thread) in threads.extract_if(.., |(n, _)| *n != survivor) {
                    thread.join().expect("a client does not panic")?;
                }
                wait::until_within(PATIENCE, "the last program to have all that it wants", || {
                    Ok(connected(&survivor) == WANTED)
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
            programs.iter().for_each(interrupt);
            for (_, thread) in threads {
                thread.join().expect("a client does not panic")?;
            }
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    path.finish()?;
    Ok(())
}
