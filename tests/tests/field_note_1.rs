//! Field note 1: 20 threads with 1,000 long-lived connections each, against a
//! server with `listen(128)` that writes 256 bytes to each. Every `connect`
//! returns, `accept` counts less, and after Ctrl-C on the client a little more.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tracer_tests::namespace::{Namespace, clients_closing, is_quiet};
use tracer_tests::report::counts;
use tracer_tests::session::{Scope, Session};
use tracer_tests::traffic::{Listen, Listener, State, connect_blocking, own_descriptors, raise_descriptor_limit};
use tracer_tests::wait;

const THREADS: usize = 20;
const CONNECTIONS: usize = 1_000;
const ALL: u64 = (THREADS * CONNECTIONS) as u64;
const GREETING: [u8; 256] = [0x55; 256];
/// How long all clients together may take: a dropped SYN costs its thread a second.
const PATIENCE: Duration = Duration::from_secs(120);
/// How many connections one of the two server threads holds. One process may
/// not have descriptors enough for all, but each thread has its own table here.
const SHARE: usize = 12_000;

/// What the clients of one thread saw.
#[derive(Debug, Default)]
struct Seen {
    /// Clients that are connected by their own account.
    connected: BTreeSet<SocketAddr>,
    /// Those of them that had to send their SYN again.
    resent: BTreeSet<SocketAddr>,
}

/// Connects, tells what it has seen, and keeps everything open until Ctrl-C,
/// which is the end of `ctrl_c`'s sender.
fn client(server: SocketAddr, seen: &Sender<Result<Seen>>, ctrl_c: &Receiver<()>) {
    let mut open = Vec::new();
    let mut connect = || -> Result<Seen> {
        let mut seen = Seen::default();
        for _ in 0..CONNECTIONS {
            let client = connect_blocking(server).context("cannot connect")?;
            ensure!(client.state()? == State::Established, "connected and not established");
            seen.connected.insert(client.address());
            if client.retransmits()? > 0 {
                seen.resent.insert(client.address());
            }
            open.push(client);
        }
        Ok(seen)
    };
    if seen.send(connect()).is_ok() {
        // Ends with an error when Ctrl-C has come, as it is meant to.
        let _ = ctrl_c.recv();
    }
}

/// What the server has done so far.
#[derive(Debug, Default)]
struct Server {
    count: AtomicU64,
    over: AtomicBool,
}

impl Server {
    /// Accepts and greets, holding at most `share` connections; then the next
    /// thread takes over.
    fn serve(&self, listener: &Listener, share: usize) -> Result<Vec<SocketAddr>> {
        own_descriptors(|| {
            let mut held = Vec::new();
            while !self.over.load(SeqCst) && held.len() < share {
                match listener.accept()? {
                    Some(mut connection) => {
                        connection.write(&GREETING)?;
                        held.push(connection);
                        self.count.fetch_add(1, SeqCst);
                    }
                    None => listener.poll(Duration::from_millis(20))?,
                }
            }
            let peers = held.iter().map(|connection| connection.peer).collect();
            // Connections are long-lived: they last until the clients are gone.
            wait::until_within(PATIENCE, "the end", || Ok(self.over.load(SeqCst)))?;
            Ok(peers)
        })
    }

    fn count(&self) -> u64 {
        self.count.load(SeqCst)
    }
}

/// Everything that happens between the start of the clients and the end.
fn story(namespace: &Namespace, listener: &Listener) -> Result<()> {
    let start = || Session::start_with(namespace, listener.port(), Scope::Path, |start| start);
    let (until_ctrl_c, to_the_end) = (start()?, start()?);
    let server = Server::default();
    let shares = [SHARE, usize::MAX];
    let quiet = || Ok(listener.waiting()? == 0);
    thread::scope(|scope| {
        let servers: Vec<_> = shares
            .iter()
            .enumerate()
            .map(|(turn, share)| {
                let server = &server;
                scope.spawn(move || {
                    let before = (turn * SHARE) as u64;
                    wait::until_within(PATIENCE, "this thread's turn to accept", || {
                        Ok(server.count() >= before || server.over.load(SeqCst))
                    })?;
                    server.serve(listener, *share)
                })
            })
            .collect();
        let (sender, results) = channel();
        let mut interrupts = Vec::new();
        for _ in 0..THREADS {
            let (interrupt, ctrl_c) = channel::<()>();
            interrupts.push(interrupt);
            let sender = sender.clone();
            scope.spawn(move || {
                let work = || {
                    client(listener.address(), &sender, &ctrl_c);
                    Ok(())
                };
                if let Err(error) = own_descriptors(work) {
                    // The receiver is gone only when another thread has failed.
                    let _ = sender.send(Err(error));
                }
            });
        }
        drop(sender);

        let result = (|| -> Result<_> {
            let mut seen = Seen::default();
            for _ in 0..THREADS {
                let part = match results.recv_timeout(wait::here(PATIENCE)) {
                    Ok(part) => part?,
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                        anyhow::bail!("the clients did not get through: {server:?}")
                    }
                };
                seen.connected.extend(part.connected);
                seen.resent.extend(part.resent);
            }
            wait::until("the server to have accepted what there is", quiet)?;
            let accepted = server.count();
            let overflows = until_ctrl_c.kernel()?.get("ListenOverflows");
            ensure!(overflows > 0, "the accept queue was never full: nothing to explain");
            let before = until_ctrl_c.finish().context("before Ctrl-C")?;
            to_the_end.mark()?;
            drop(interrupts);
            wait::until("every phantom's FIN to have been tried", || Ok(clients_closing(listener.port())? == 0))?;
            wait::until("the server to have accepted what there is", quiet)?;
            Ok((seen, accepted, before))
        })();
        server.over.store(true, SeqCst);
        let mut accepted_peers = BTreeSet::new();
        for thread in servers {
            accepted_peers.extend(thread.join().expect("the server does not panic")?);
        }
        let (seen, accepted, before) = result?;
        wait::until("all connections to end", || is_quiet(listener.port()))?;
        let after = to_the_end.finish().context("after Ctrl-C")?;

        // Every connect returned.
        assert_eq!(seen.connected.len() as u64, ALL);
        let outcomes = before.listener()?.ledger.outcomes();
        let phantoms = ALL - accepted;
        assert_eq!((outcomes.attempts, outcomes.accepted, outcomes.pending), (ALL, accepted, 0));
        assert_eq!(outcomes.lost, counts([("syncookie-ack-dropped", phantoms)]));
        assert_eq!(outcomes.phantom, phantoms);
        assert_eq!(outcomes.dead_on_arrival, 0);
        let lost = before.all_lost();
        assert_eq!(before.all_late(), &seen.resent - &lost);
        assert_eq!((before.report.clients.connects, before.report.clients.established), (ALL, ALL));

        // After Ctrl-C the FINs of phantoms made some of them real, too late.
        let rise = accepted_peers.len() as u64 - accepted;
        let outcomes = after.listener()?.ledger.outcomes();
        assert_eq!((outcomes.attempts, outcomes.accepted, outcomes.pending), (ALL, accepted + rise, 0));
        assert_eq!(outcomes.phantom, phantoms - rise);
        assert_eq!(outcomes.dead_on_arrival, rise);
        assert_eq!(outcomes.completed_by.get("fin").copied().unwrap_or(0), rise);
        assert_eq!(after.all_lost(), &seen.connected - &accepted_peers);
        assert!(after.all_lost().is_subset(&lost));
        let [mark] = after.report.marks.as_slice() else {
            anyhow::bail!("not one mark: {:?}", after.report.marks);
        };
        assert!((accepted..=accepted + rise).contains(&mark.accepted), "{mark:?}");
        Ok(())
    })
}

#[test]
fn the_difference_between_connect_and_accept_is_explained_to_the_last_connection() -> Result<()> {
    raise_descriptor_limit(SHARE as u64 + 1_000)?;
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", "2")?;
    namespace.set("net/ipv4/ip_local_port_range", "1024 65535")?;
    let listener = Listen::new(128).open()?;
    story(&namespace, &listener)
}
