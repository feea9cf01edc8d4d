//! The server of the field notes.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tracer_tests::notes::Served;
use tracer_tests::traffic::{Listen, Listener, canonical, own_descriptors};
use tracer_tests::uring::{By, Ring};

/// What each client is sent.
const GREETING: [u8; 256] = [0x55; 256];
/// More than one destination can ever have connections from one address.
const DESCRIPTORS: u64 = 66_000;
/// Descriptors that are no connections.
const OTHERS: u64 = 64;
/// How long a thread that has nothing to accept for the moment waits until it looks again.
const PAUSE: Duration = Duration::from_millis(2);
const NO_PANIC: &str = "no thread panics while it holds a lock";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The address to listen on
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST.into())]
    address: IpAddr,
    /// The port, 0 for one that the kernel chooses
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// What listen() is given
    #[arg(long, default_value_t = 128)]
    backlog: i32,
    /// Sleep after each so many accepted connections
    #[arg(long, value_name = "CONNECTIONS", requires = "sleep")]
    sleep_every: Option<NonZeroU64>,
    /// How long, in seconds
    #[arg(long, value_name = "SECONDS", requires = "sleep_every", value_parser = seconds)]
    sleep: Option<Duration>,
    /// Accept no more than so many, until told otherwise
    #[arg(long, value_name = "CONNECTIONS", default_value_t = u64::MAX, hide_default_value = true)]
    stop_after: u64,
    /// How many threads accept in turn. Each has a descriptor table of its own, so that the limit counts for each
    #[arg(long, default_value_t = 1)]
    threads: u16,
    /// How connections are accepted
    #[arg(long, value_enum, default_value_t = How::Accept)]
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    /// By accept4(), which blocks
    Accept,
    /// By accept4() when epoll says so
    Epoll,
    /// By one io_uring request for each connection
    IoUring,
}

fn seconds(text: &str) -> Result<Duration> {
    let seconds: f64 = text.parse().context("not a number of seconds")?;
    Duration::try_from_secs_f64(seconds).context("not a length of time")
}

/// What all threads share.
struct Server {
    options: Options,
    listener: Listener,
    /// Held by the thread that may accept: of several, only one does at a time, and when it sleeps nobody accepts.
    turn: Mutex<()>,
    stop_after: AtomicU64,
    accepted: AtomicU64,
    written: AtomicU64,
    write_errors: AtomicU64,
    dead: AtomicU64,
    peer_fin: AtomicU64,
    peer_reset: AtomicU64,
    peers: Mutex<Vec<SocketAddr>>,
}

pub(crate) fn run(options: Options) -> Result<()> {
    let limit = raise_limit()?;
    let listener = Listen::new(options.backlog).on(options.address).port(options.port).open()?;
    // A blocking accept() blocks; io_uring waits by itself only for a socket that would block.
    rustix::io::ioctl_fionbio(&listener, options.how == How::Epoll).context("cannot set the listener's mode")?;
    let zero = || AtomicU64::new(0);
    let server = Arc::new(Server {
        turn: Mutex::default(),
        stop_after: AtomicU64::new(options.stop_after),
        accepted: zero(),
        written: zero(),
        write_errors: zero(),
        dead: zero(),
        peer_fin: zero(),
        peer_reset: zero(),
        peers: Mutex::default(),
        options,
        listener,
    });
    println!("listening {}", server.listener.port());
    for _ in 0..server.options.threads {
        let server = Arc::clone(&server);
        thread::spawn(move || {
            let room = limit.saturating_sub(OTHERS);
            or_exit(own_descriptors(|| server.serve(usize::try_from(room)?)));
        });
    }
    for line in io::stdin().lines() {
        match line.context("cannot read stdin")?.trim() {
            "count" => crate::tell(&server.served(false)?)?,
            "report" => crate::tell(&server.served(true)?)?,
            "go" => server.stop_after.store(u64::MAX, SeqCst),
            other => anyhow::bail!("unknown request {other:?}"),
        }
    }
    crate::tell(&server.served(true)?)?;
    // The threads are in accept(): the kernel ends them, and closes what they hold.
    std::process::exit(0);
}

fn raise_limit() -> Result<u64> {
    crate::raise_descriptor_limit(DESCRIPTORS)
}

/// A thread that cannot go on ends the program: a server that goes on with fewer would count something else than it says.
fn or_exit(outcome: Result<()>) {
    if let Err(error) = outcome {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}

impl Server {
    fn served(&self, peers: bool) -> Result<Served> {
        Ok(Served {
            // The queue first: what leaves it meanwhile is not missed by both.
            waiting: self.listener.waiting()?,
            accepted: self.accepted.load(SeqCst),
            written: self.written.load(SeqCst),
            write_errors: self.write_errors.load(SeqCst),
            dead: self.dead.load(SeqCst),
            peer_fin: self.peer_fin.load(SeqCst),
            peer_reset: self.peer_reset.load(SeqCst),
            peers: if peers { self.peers.lock().expect(NO_PANIC).clone() } else { Vec::new() },
        })
    }

    fn may_accept(&self) -> bool {
        self.accepted.load(SeqCst) < self.stop_after.load(SeqCst)
    }

    /// Accepts whenever it is this thread's turn and there is room for one more connection.
    fn serve(self: &Arc<Self>, room: usize) -> Result<()> {
        let held = Arc::new(Held::new()?);
        // Begun here, it shares this thread's descriptors.
        let (server, closing) = (Arc::clone(self), Arc::clone(&held));
        thread::spawn(move || or_exit(server.close_ended(&closing)));
        let mut door = Door::open(self.options.how, &self.listener)?;
        loop {
            if held.count() >= room || !self.may_accept() {
                thread::sleep(PAUSE);
                continue;
            }
            let _turn = self.turn.lock().expect(NO_PANIC);
            // Somebody else may have accepted the last one meanwhile.
            if self.may_accept() {
                self.accept(&mut door, &held)?;
            }
        }
    }

    fn accept(&self, door: &mut Door, held: &Held) -> Result<()> {
        let (socket, peer) = door.next(&self.listener).context("cannot accept")?;
        let accepted = self.accepted.fetch_add(1, SeqCst) + 1;
        self.peers.lock().expect(NO_PANIC).extend(peer.map(canonical));
        if is_ended(&socket) {
            self.dead.fetch_add(1, SeqCst);
        }
        match send(&socket, &GREETING, SendFlags::NOSIGNAL) {
            Ok(sent) if sent == GREETING.len() => &self.written,
            _ => &self.write_errors,
        }
        .fetch_add(1, SeqCst);
        held.hold(socket)?;
        if let (Some(every), Some(time)) = (self.options.sleep_every, self.options.sleep)
            && accepted % every == 0
        {
            thread::sleep(time);
        }
        Ok(())
    }

    /// Closes the connections that their clients have ended.
    fn close_ended(&self, held: &Held) -> Result<()> {
        let mut events = Vec::with_capacity(256);
        loop {
            match epoll::wait(&held.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for the ends of connections"),
            }
            for event in events.drain(..) {
                let (name, flags) = (event.data.u64(), event.flags);
                let Some(socket) = held.sockets.lock().expect(NO_PANIC).remove(&name) else { continue };
                let end = if flags.contains(EventFlags::ERR) { &self.peer_reset } else { &self.peer_fin };
                end.fetch_add(1, SeqCst);
                drop(socket);
            }
        }
    }
}

/// Whether the client has ended this connection already. The socket's lock is taken for the answer, so that a packet that is
/// being handled counts.
fn is_ended(socket: &OwnedFd) -> bool {
    let mut byte = [0];
    // Clients send nothing: there is an end to read, or nothing.
    recv(socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) != Err(Errno::AGAIN)
}

/// Open connections.
struct Held {
    epoll: OwnedFd,
    sockets: Mutex<HashMap<u64, OwnedFd>>,
}

impl Held {
    fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot make an epoll")?;
        Ok(Self { epoll, sockets: Mutex::default() })
    }

    fn count(&self) -> usize {
        self.sockets.lock().expect(NO_PANIC).len()
    }

    fn hold(&self, socket: OwnedFd) -> Result<()> {
        let name = u64::try_from(socket.as_raw_fd())?;
        // Under the lock, or its end might come before it is known.
        let mut sockets = self.sockets.lock().expect(NO_PANIC);
        epoll::add(&self.epoll, &socket, EventData::new_u64(name), EventFlags::RDHUP).context("cannot watch")?;
        sockets.insert(name, socket);
        Ok(())
    }
}

/// One of the ways to accept.
enum Door {
    Accept,
    Epoll(OwnedFd),
    IoUring(Box<Ring>),
}

impl Door {
    fn open(how: How, listener: &Listener) -> Result<Self> {
        Ok(match how {
            How::Accept => Self::Accept,
            How::Epoll => {
                let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot make an epoll")?;
                epoll::add(&epoll, listener, EventData::new_u64(0), EventFlags::IN).context("cannot watch")?;
                Self::Epoll(epoll)
            }
            How::IoUring => Self::IoUring(Box::new(Ring::open().context("cannot make an io_uring")?)),
        })
    }

    /// The next connection, with its client's address where that is still known.
    fn next(&mut self, listener: &Listener) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
        match self {
            Self::Accept => accept(listener),
            Self::Epoll(epoll) => loop {
                let mut events = Vec::with_capacity(1);
                match epoll::wait(&*epoll, spare_capacity(&mut events), None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
                match accept(listener) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    outcome => return outcome,
                }
            },
            Self::IoUring(ring) => {
                ring.begin_accept(listener, By::Submitter)?;
                let socket = ring.accepted()?;
                let peer = rustix::net::getpeername(&socket).ok().flatten();
                Ok((socket, peer.and_then(|it| SocketAddr::try_from(it).ok())))
            }
        }
    }
}

fn accept(listener: &impl AsFd) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
    let (socket, peer) = rustix::net::acceptfrom(listener)?;
    Ok((socket, peer.and_then(|it| SocketAddr::try_from(it).ok())))
}
