//! A long path between clients in one network namespace and a server in another: delay, loss and a bounded queue.
//!
//! Each namespace has a TUN device, and a thread carries IPv4 packets between the two. It needs no queueing discipline of the
//! kernel (`netem`), which many kernels lack, and knows better: it has read the header of every segment, so that it can tell
//! which SYN arrived at the server, which SYN-ACK the server sent, and what was lost between. That is the truth which a report
//! about the server is held against: of a client on another host, the server's side knows no more than what arrived.
//!
//! Loss is by chance, from a seed that belongs into the message of each failure. The same seed does not make the same run, as
//! the order of the packets is the kernel's and the scheduler's.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::namespace::Namespace;
use crate::tun;

mod carrier;
mod truth;

use carrier::{carry, transmissions_dropped};
pub use truth::{Crossing, Flow, Losses, Truth};

/// The name of the device in both namespaces.
const DEVICE: &str = "path0";
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 1);

/// What a path is like.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long a packet takes from one end to the other, at least.
    pub delay: Duration,
    /// The probability, from 0 to 1, that a packet is lost, in each direction.
    pub loss: f64,
    /// Where the chances come from.
    pub seed: u64,
    /// How many packets may be under way in each direction; what comes then is lost, as at a router.
    pub queue: usize,
}

/// The directions of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the clients to the server.
    ToServer,
    /// From the server to the clients.
    ToClients,
}

/// A path that carries packets; dropping it takes it down.
#[derive(Debug)]
pub struct Path {
    settings: Settings,
    shared: Arc<Shared>,
    clients: File,
    carrier: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    truth: Mutex<Truth>,
    cut: AtomicBool,
    over: AtomicBool,
}

impl Shared {
    fn truth(&self) -> MutexGuard<'_, Truth> {
        // A panic elsewhere leaves the counts as they are: no call here can leave them half written.
        self.truth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Path {
    /// Connects the server's namespace, which the calling thread is in, with a fresh one for clients.
    ///
    /// # Errors
    /// Fails without root, when this kernel has no TUN device, or when the loss is no probability.
    pub fn open(_server: &Namespace, settings: Settings) -> Result<Self> {
        ensure!((0.0..=1.0).contains(&settings.loss), "a loss of {} is no probability", settings.loss);
        let server = tun::open(DEVICE, SERVER).context("the server's end of the path")?;
        let shared = Arc::new(Shared::default());
        let (sender, ready) = channel();
        let carrier = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || carry(settings, &server, &shared, &sender))
        };
        match ready.recv() {
            Ok(clients) => Ok(Self { settings, shared, clients, carrier: Some(carrier) }),
            Err(_) => {
                carrier.join().expect("the carrier does not panic")?;
                anyhow::bail!("the carrier has ended before it began")
            }
        }
    }

    /// The server's address on the path.
    #[must_use]
    pub fn server() -> IpAddr {
        SERVER.into()
    }

    /// The clients' address on the path.
    #[must_use]
    pub fn client() -> IpAddr {
        CLIENT.into()
    }

    /// What the path is like, for messages: above all the seed.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Moves the calling thread into the clients' namespace for good: for threads that are made for a client's work.
    ///
    /// # Errors
    /// Fails without root.
    pub fn join_clients(&self) -> Result<()> {
        move_into_link_name_space(self.clients.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot move a thread into the clients' namespace")
    }

    /// Runs `work` in the clients' namespace, on a thread of its own, and waits for its end.
    ///
    /// # Errors
    /// Fails as [`Path::join_clients`] and as `work` does.
    pub fn among_clients<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.join_clients()?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Writes a sysctl of the clients' namespace, named by its path below `/proc/sys`.
    ///
    /// # Errors
    /// Fails when the kernel has no such sysctl or refuses the value.
    pub fn set_for_clients(&self, name: &str, value: &str) -> Result<()> {
        // The kernel shows each thread the sysctls of its own namespace.
        let write = || fs::write(format!("/proc/sys/{name}"), value);
        self.among_clients(|| write().with_context(|| format!("cannot set the clients' sysctl {name} to {value}")))
    }

    /// Cuts the line: what is under way and what is sent from now on, in both directions, gets lost.
    pub fn cut(&self) {
        // With the counts locked, no packet is being handed over.
        let _truth = self.shared.truth();
        self.shared.cut.store(true, SeqCst);
    }

    /// What the path has carried and lost so far.
    #[must_use]
    pub fn truth(&self) -> Truth {
        self.shared.truth().clone()
    }

    /// Takes the path down.
    ///
    /// # Errors
    /// Fails when a packet went missing outside of what the path counts, which would make it no truth.
    pub fn finish(mut self) -> Result<Truth> {
        let dropped = transmissions_dropped().context("the server's end of the path")?;
        ensure!(dropped == 0, "the server's device has dropped {dropped} packets: the path was too slow for it");
        self.shared.over.store(true, SeqCst);
        if let Some(carrier) = self.carrier.take() {
            carrier.join().expect("the carrier does not panic").context("the path has broken down")?;
        }
        Ok(self.truth())
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.shared.over.store(true, SeqCst);
        if let Some(carrier) = self.carrier.take() {
            // A broken path shows itself in what the test asserts; here another error is on its way already.
            let _ = carrier.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::traffic::{Client, Listen, State, connect_blocking};
    use crate::wait;

    fn settings(delay_ms: u64, loss: f64) -> Settings {
        Settings { delay: Duration::from_millis(delay_ms), loss, seed: 7, queue: 1000 }
    }

    #[test]
    fn a_handshake_takes_a_round_trip_and_is_counted_at_both_ends() -> Result<()> {
        let namespace = Namespace::enter()?;
        let path = Path::open(&namespace, settings(30, 0.0))?;
        let listener = Listen::new(5).on(Path::server()).open()?;
        let (client, took) = path.among_clients(|| {
            let began = Instant::now();
            let client = connect_blocking(listener.address())?;
            Ok((client, began.elapsed()))
        })?;
        assert!(took >= Duration::from_millis(60), "{took:?}");
        let accepted = listener.accept_many(1)?;
        assert_eq!((accepted[0].peer, client.address().ip()), (client.address(), Path::client()));
        let truth = path.finish()?;
        let flows: Vec<_> = truth.flows.iter().collect();
        let [((address, _), flow)] = flows.as_slice() else { anyhow::bail!("not one attempt: {truth:?}") };
        assert_eq!(*address, client.address());
        let once = Crossing { sent: 1, arrived: 1, lost: 0 };
        assert_eq!((flow.syn, flow.synack, flow.final_ack), (once, once, once));
        assert_eq!((flow.fin, flow.reset), (Crossing::default(), Crossing::default()));
        assert_eq!((flow.ignored_syns(), flow.repeated_synacks(), flow.was_answered()), (0, 0, true));
        assert_eq!((truth.lost_to_server, truth.lost_to_clients), (Losses::default(), Losses::default()));
        Ok(())
    }

    #[test]
    fn a_cut_line_carries_nothing_and_a_full_queue_drops() -> Result<()> {
        let namespace = Namespace::enter()?;
        let path = Path::open(&namespace, Settings { queue: 2, ..settings(200, 0.0) })?;
        let listener = Listen::new(5).on(Path::server()).open()?;
        let clients: Vec<_> =
            path.among_clients(|| (0..3).map(|_| Ok(Client::connect(listener.address())?)).collect())?;
        wait::until("three SYNs on the path", || Ok(path.truth().sum(|flow| flow.syn.sent) >= 3))?;
        path.cut();
        wait::until("both packets to be lost", || Ok(path.truth().lost(Direction::ToServer).cut >= 2))?;
        for client in &clients {
            assert_eq!(client.state()?, State::SynSent);
        }
        let truth = path.finish()?;
        assert_eq!((truth.lost_to_server.queue, truth.sum(|flow| flow.syn.arrived)), (1, 0));
        assert_eq!(truth.attempts().count(), 0);
        Ok(())
    }

    #[test]
    fn what_was_sent_and_did_not_arrive_was_lost_by_chance() -> Result<()> {
        const CLIENTS: usize = 100;
        let namespace = Namespace::enter()?;
        let path = Path::open(&namespace, settings(1, 0.3))?;
        let listener = Listen::new(1000).on(Path::server()).open()?;
        let _clients: Vec<_> =
            path.among_clients(|| (0..CLIENTS).map(|_| Ok(Client::connect(listener.address())?)).collect())?;
        // Some may need longer than a test can wait.
        let accepted = listener.accept_many(CLIENTS / 2)?;
        wait::until("a lost SYN to be sent again", || Ok(path.truth().sum(|flow| flow.syn.sent) > CLIENTS as u64))?;
        wait::until("every packet to arrive or be lost", || Ok(path.truth().sum(Flow::under_way) == 0))?;
        let truth = path.finish()?;
        let answered = truth.flows.values().filter(|flow| flow.was_answered()).count();
        assert!(answered >= accepted.len() && truth.attempts().count() >= answered, "{answered} answered: {truth:?}");
        let lost = truth.sum(|flow| flow.syn.lost + flow.final_ack.lost);
        assert!(lost > 0 && lost <= truth.lost(Direction::ToServer).chance, "{lost} lost: {truth:?}");
        let lost = truth.sum(|flow| flow.synack.lost);
        assert!(lost > 0 && lost <= truth.lost(Direction::ToClients).chance, "{lost} lost: {truth:?}");
        Ok(())
    }
}
