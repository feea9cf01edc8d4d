//! Many connections at once, against an accepter that cannot quite keep up.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Context, Result};

use crate::namespace::is_quiet;
use crate::traffic::{Client, Fleet, Listener, State};
use crate::wait;

/// How many connections a client thread keeps open before it ends the oldest.
const OPEN: usize = 32;
/// How many client threads there are.
pub const THREADS: u64 = 3;

/// A load, and what the sockets themselves have said about it so far.
#[derive(Debug)]
pub struct Load {
    /// When to stop, if nobody says so before.
    limit: u64,
    /// How many clients of each thread wait until their SYN, sent again, is
    /// answered; others give up at once.
    patient: usize,
    stop: AtomicBool,
    begun: AtomicU64,
    attempts: AtomicU64,
    accepted: AtomicU64,
    unanswered: AtomicU64,
}

impl Load {
    /// A load of `limit` attempts in all.
    #[must_use]
    pub fn new(limit: u64, patient: usize) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            limit,
            patient,
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

    /// How many clients gave up without ever having seen an answer to their SYN.
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
            let clients: Vec<_> =
                (0..THREADS).map(|_| scope.spawn(|| self.connect(listener))).collect();
            let results: Vec<_> = clients.into_iter().map(ScopedJoinHandle::join).collect();
            done.store(true, SeqCst);
            accepter.join().expect("the accepter does not panic")?;
            results.into_iter().try_for_each(|it| it.expect("client threads do not panic"))
        })
    }

    /// Connects again and again. An answered client stays for a while and ends
    /// by RST, every fourth by FIN; an unanswered one is patient or gives up at
    /// once, in turn.
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
                if number.is_multiple_of(2) && patient.0.len() < self.patient {
                    patient.0.push(client);
                } else {
                    let unanswered = u64::from(client.state()? == State::SynSent);
                    self.unanswered.fetch_add(unanswered, SeqCst);
                }
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
        // The server ends what it accepts with a FIN: only a timeout closes these.
        let timed_out = patient.in_state(State::Closed)?.len() as u64;
        self.unanswered.fetch_add(timed_out, SeqCst);
        Ok(())
    }

    /// Accepts and closes until `done` is set and nothing is left in the kernel.
    fn accept(&self, listener: &Listener, done: &AtomicBool) -> Result<()> {
        while !done.load(SeqCst) {
            match listener.accept()? {
                Some(_) => {
                    self.accepted.fetch_add(1, SeqCst);
                }
                None => thread::yield_now(),
            }
        }
        wait::until("the last request to end", || {
            self.accepted.fetch_add(listener.accept_all()?.len() as u64, SeqCst);
            is_quiet(listener.port())
        })
    }
}
