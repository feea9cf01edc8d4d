//! What the scenarios of field notes 7 and 8 share: a path to a remote site, a server that accepts at once, and a
//! comparison of the tracer's report with what the path has seen.
//!
//! What the server's side can know is what arrived there, and the path tells that; what the clients know they say themselves.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::namespace::half_open;
use crate::path::{Flow, Path, Settings, Truth};
use crate::session::Finished;
use crate::traffic::{Accepted, Listener};
use crate::wait;

const GREETING: [u8; 256] = [0x55; 256];
/// How long all clients together may take: a lost or dropped SYN costs its thread a second, then two, then four.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// 80 ms there and back, and one packet in twelve is lost in each direction. `PATH_SEED` makes other chances.
///
/// # Errors
/// Fails when `PATH_SEED` is no number.
pub fn remote_site() -> Result<Settings> {
    let seed = match std::env::var("PATH_SEED") {
        Ok(seed) => seed.parse().context("PATH_SEED is no number")?,
        Err(_) => 20_260_417,
    };
    eprintln!("seed of the path: {seed}");
    Ok(Settings { delay: Duration::from_millis(40), loss: 0.08, seed, queue: 1000 })
}

/// A server that accepts at once and speaks first.
#[derive(Debug, Default)]
pub struct Server {
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
    ///
    /// # Errors
    /// Fails when the server cannot serve, and as `work` does.
    pub fn during<T>(&self, listener: &Listener, work: impl FnOnce() -> Result<T>) -> Result<T> {
        thread::scope(|scope| {
            let server = scope.spawn(|| self.serve(listener));
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            self.over.store(true, SeqCst);
            server.join().expect("the server does not panic")?;
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The clients of all connections so far; an address may come twice.
    #[must_use]
    pub fn accepted(&self) -> Vec<SocketAddr> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|it| it.peer).collect()
    }
}

/// Waits until nothing can happen any more by itself: nothing is under way, no timer of a request runs, all is accepted.
///
/// # Errors
/// Fails when that does not happen.
pub fn settle(path: &Path, listener: &Listener) -> Result<()> {
    wait::until_within(PATIENCE, "everything to arrive and to be accepted", || {
        // With nothing under way and no request left, nothing is sent any more that matters here.
        let still = || path.truth().sum(Flow::under_way) == 0;
        Ok(still() && half_open(listener.port())? == 0 && still() && listener.waiting()? == 0)
    })
}

/// The attempts that reached the server and were not accepted, given whom it accepted. Of several attempts from one address,
/// those are taken for accepted that were answered: no other can be.
#[must_use]
pub fn unaccepted<'truth>(truth: &'truth Truth, accepted: &[SocketAddr]) -> Vec<(SocketAddr, &'truth Flow)> {
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
///
/// # Panics
/// If they differ.
pub fn compare_packets(finished: &Finished, truth: &Truth, repeated: u64) {
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
///
/// # Errors
/// Fails when the report is not of one listener.
///
/// # Panics
/// If they differ.
pub fn compare_with_cookies(finished: &Finished, truth: &Truth, accepted: &[SocketAddr]) -> Result<()> {
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
