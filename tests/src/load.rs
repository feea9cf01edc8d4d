//! Many connections at once, against an accepter that cannot quite keep up.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::namespace::{busy_sockets, is_quiet};
use crate::traffic::{Client, Fleet, Listener, State};
use crate::wait;

/// How many connections a client thread keeps open before it ends the oldest.
const OPEN: usize = 32;
/// How many client threads there are.
pub const THREADS: u64 = 3;
/// After so many the accepter rests, so that it cannot keep up on one CPU either, where it otherwise has its turn before the queue is full.
const IN_A_ROW: u64 = 100;
/// Its rest.
const REST: Duration = Duration::from_millis(2);

/// A load, and what the sockets themselves have said about it so far.
#[derive(Debug)]
pub struct Load {
    /// When to stop, if nobody says so before.
    limit: u64,
    stop: AtomicBool,
    begun: AtomicU64,
    attempts: AtomicU64,
    accepted: AtomicU64,
    unanswered: AtomicU64,
}

impl Load {
    /// A load of `limit` attempts in all.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            limit,
            stop: AtomicBool::new(false),
            begun: zero(),
            attempts: zero(),
            accepted: zero(),
            unanswered: zero(),
        }
    }

    /// How many `connect` calls have returned.
    pub fn attempts(&self) -> u64 {
        self.attempts.load(SeqCst)
    }

    /// How many connections the server has accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(SeqCst)
    }

    /// How many clients have timed out without an answer to their SYN.
    pub fn unanswered(&self) -> u64 {
        self.unanswered.load(SeqCst)
    }

    /// Lets the clients begin nothing new.
    pub fn stop(&self) {
        self.stop.store(true, SeqCst);
    }

    /// Makes the load and returns when all of it is over in the kernel too.
    ///
    /// # Errors
    /// Fails when a socket does, or when the kernel does not come to rest.
    pub fn run(&self, listener: &Listener) -> Result<()> {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let accepter = scope.spawn(|| self.accept(listener, &done));
            let clients: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| self.connect(listener))).collect();
            let results: Vec<_> = clients.into_iter().map(ScopedJoinHandle::join).collect();
            done.store(true, SeqCst);
            accepter.join().expect("the accepter does not panic")?;
            results.into_iter().try_for_each(|it| it.expect("client threads do not panic"))
        })
    }

    /// Connects again and again. An answered client stays for a while and ends
    /// by RST, every fourth by FIN; an unanswered one stays until it is answered
    /// or times out. Nobody gives up early: a SYN may still be under way then,
    /// and nobody could tell whether it was answered.
    fn connect(&self, listener: &Listener) -> Result<()> {
        let mut open = VecDeque::new();
        let mut patient = Fleet::default();
        while !self.stop.load(SeqCst) {
            let number = self.begun.fetch_add(1, SeqCst);
            if number >= self.limit {
                break;
            }
            let client = Client::connect(listener.address()).context("cannot connect")?;
            self.attempts.fetch_add(1, SeqCst);
            if client.state()? == State::SynSent {
                patient.0.push(client);
                // Let the accepter have its turn, or all would be lost.
                while listener.waiting()? > 0 && !self.stop.load(SeqCst) {
                    thread::yield_now();
                }
                continue;
            }
            open.push_back(client);
            if open.len() > OPEN {
                let oldest = open.pop_front().filter(|_| !number.is_multiple_of(4));
                oldest.map_or(Ok(()), Client::reset)?;
            }
        }
        drop(open);
        patient.wait_for(0, State::SynSent)?;
        for client in &patient.0 {
            // The server ends what it accepts with a FIN, so that only a timeout closes these, or a RST. The error tells whom it came
            // to (`tcp_reset()`): ECONNREFUSED before an answer, EPIPE after the server's FIN, ECONNRESET in between. The latter two
            // were answered, and have waited long for others; whether they count as accepted or as phantoms is the server's to say.
            if client.state()? == State::Closed {
                match client.error()?.and_then(|error| error.raw_os_error()) {
                    Some(libc::ETIMEDOUT) => _ = self.unanswered.fetch_add(1, SeqCst),
                    Some(libc::EPIPE | libc::ECONNRESET) => {}
                    error => bail!("a client ended with {error:?}"),
                }
            }
        }
        // So many FINs at once would meet a full queue again and again.
        patient.0.into_iter().try_for_each(Client::reset)
    }

    /// Accepts and closes until `done` is set and nothing is left in the kernel.
    fn accept(&self, listener: &Listener, done: &AtomicBool) -> Result<()> {
        while !done.load(SeqCst) {
            match listener.accept()? {
                Some(_) => {
                    let before = self.accepted.fetch_add(1, SeqCst);
                    if before % IN_A_ROW == IN_A_ROW - 1 {
                        thread::sleep(REST);
                    }
                }
                None => thread::yield_now(),
            }
        }
        wait::until("the last request to end", || {
            self.accepted.fetch_add(listener.accept_all()?.len() as u64, SeqCst);
            is_quiet(listener.port())
        })
        .with_context(|| format!("{self:?}\n{}", busy_sockets(listener.port())))
    }
}
