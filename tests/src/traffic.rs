//! Listeners with an exact backlog and clients that can be asked how they fare.
//!
//! On loopback a SYN, its SYN-ACK and the final ACK are handled before
//! `connect` returns, so that a client's fate is known at once, by `TCP_INFO`.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::{sys, wait};

/// How a listener is to be made. Start from [`Listen::new`].
#[derive(Debug, Clone)]
pub struct Listen {
    /// The address to bind; `::` takes IPv4 clients too.
    pub address: IpAddr,
    /// The port, 0 for one that the kernel chooses.
    pub port: u16,
    /// What `listen` is asked for. The accept queue holds one connection more.
    pub backlog: i32,
    /// `TCP_DEFER_ACCEPT` in seconds, 0 for off.
    pub defer_accept: i32,
    /// `SO_REUSEPORT`.
    pub reuse_port: bool,
}

impl Listen {
    /// A listener on the IPv4 loopback address.
    #[must_use]
    pub fn new(backlog: i32) -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), port: 0, backlog, defer_accept: 0, reuse_port: false }
    }

    /// The same on another address.
    #[must_use]
    pub fn on(self, address: impl Into<IpAddr>) -> Self {
        Self { address: address.into(), ..self }
    }

    /// The same on a given port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Makes the listener in the calling thread's namespace.
    ///
    /// # Errors
    /// Fails when the kernel refuses the address or an option.
    pub fn open(&self) -> Result<Listener> {
        let address = SocketAddr::new(self.address, self.port);
        let make = || -> io::Result<Listener> {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(self.reuse_port)?;
            if address.is_ipv6() {
                socket.set_only_v6(false)?;
            }
            if self.defer_accept > 0 {
                sys::set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, self.defer_accept)?;
            }
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(self.backlog)?;
            Listener::of(socket)
        };
        make().with_context(|| format!("cannot listen on {address}"))
    }
}

/// A listening socket; dropping it closes it.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: SocketAddr,
}

impl Listener {
    fn of(socket: Socket) -> io::Result<Self> {
        let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        Ok(Self { socket, address })
    }

    /// The bound address, with the port that the kernel chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The bound port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Another handle on the same listening socket.
    ///
    /// # Errors
    /// Fails when descriptors have run out.
    pub fn share(&self) -> Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, address: self.address })
    }

    /// Calls `listen` again with another backlog; what waits stays.
    ///
    /// # Errors
    /// Fails when the kernel refuses.
    pub fn set_backlog(&self, backlog: i32) -> Result<()> {
        self.socket.listen(backlog).context("cannot change the backlog")
    }

    /// Accepts one connection if one waits.
    ///
    /// # Errors
    /// Fails on any error but an empty queue.
    pub fn accept(&self) -> Result<Option<Accepted>> {
        match self.socket.accept() {
            Ok((socket, peer)) => {
                let peer = peer.as_socket().context("a client without an IP address")?;
                Ok(Some(Accepted { socket, peer: canonical(peer) }))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("cannot accept"),
        }
    }

    /// Waits until a connection can be accepted or `patience` is over.
    ///
    /// # Errors
    /// Fails when the kernel refuses to wait.
    pub fn poll(&self, patience: Duration) -> Result<()> {
        let mut wanted = [PollFd::new(&self.socket, PollFlags::IN)];
        let patience = Timespec::try_from(patience)?;
        rustix::event::poll(&mut wanted, Some(&patience)).context("cannot poll")?;
        Ok(())
    }

    /// Accepts until the queue is empty.
    ///
    /// # Errors
    /// As [`Listener::accept`].
    pub fn accept_all(&self) -> Result<Vec<Accepted>> {
        wait::for_loopback()?;
        std::iter::from_fn(|| self.accept().transpose()).collect()
    }

    /// Accepts until `count` connections have come, waiting for them.
    ///
    /// # Errors
    /// As [`Listener::accept`]; also when they do not come.
    pub fn accept_many(&self, count: usize) -> Result<Vec<Accepted>> {
        let mut accepted = Vec::new();
        wait::until(&format!("{count} connections to accept"), || {
            while accepted.len() < count {
                match self.accept()? {
                    Some(connection) => accepted.push(connection),
                    None => return Ok(false),
                }
            }
            Ok(true)
        })?;
        Ok(accepted)
    }

    /// The accept queue's length now, as the kernel tells it.
    ///
    /// # Errors
    /// Fails when `TCP_INFO` does.
    pub fn waiting(&self) -> Result<u64> {
        Ok(sys::tcp_info(self.socket.as_fd())?.tcpi_unacked.into())
    }

    /// The accept queue's limit in force: the smaller of what `listen` asked
    /// and somaxconn.
    ///
    /// # Errors
    /// Fails when `TCP_INFO` does.
    pub fn limit(&self) -> Result<u64> {
        Ok(sys::tcp_info(self.socket.as_fd())?.tcpi_sacked.into())
    }

    /// Attaches a socket filter that drops every packet for this listener.
    ///
    /// # Errors
    /// Fails when the kernel refuses the filter.
    pub fn drop_everything(&self) -> Result<()> {
        sys::drop_everything(self.socket.as_fd()).context("cannot attach a socket filter")
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The server's end of a connection; dropping it closes it.
#[derive(Debug)]
pub struct Accepted {
    socket: Socket,
    /// The client's address, IPv4 also on a dual-stack listener.
    pub peer: SocketAddr,
}

impl Accepted {
    /// Writes `bytes`; whether the client still takes them.
    ///
    /// # Errors
    /// Fails on any error that does not mean that the client is gone.
    pub fn write(&mut self, bytes: &[u8]) -> Result<bool> {
        match self.socket.write_all(bytes) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Ok(false)
            }
            Err(error) => Err(error).context("cannot write to an accepted connection"),
        }
    }

    /// The connection's state, as the kernel tells it.
    ///
    /// # Errors
    /// Fails when `TCP_INFO` does.
    pub fn state(&self) -> Result<State> {
        State::of(self.socket.as_fd())
    }
}

/// The client addresses of accepted connections.
#[must_use]
pub fn peers(accepted: &[Accepted]) -> BTreeSet<SocketAddr> {
    accepted.iter().map(|connection| connection.peer).collect()
}

/// A TCP state, by its number in `net/tcp_states.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The handshake is complete as far as this end knows.
    Established,
    /// The SYN is not answered.
    SynSent,
    /// The peer has closed.
    CloseWait,
    /// Closed, reset or timed out.
    Closed,
    /// Any other.
    Other(u8),
}

impl State {
    fn of(socket: BorrowedFd<'_>) -> Result<Self> {
        Ok(match sys::tcp_info(socket)?.tcpi_state {
            1 => Self::Established,
            2 => Self::SynSent,
            7 => Self::Closed,
            8 => Self::CloseWait,
            other => Self::Other(other),
        })
    }
}

/// A non-blocking client; dropping it closes it.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    address: SocketAddr,
    /// When `connect` was called.
    pub began: Instant,
}

impl Client {
    /// Calls `connect`, which does not wait for the handshake.
    ///
    /// # Errors
    /// Hands back `connect`'s error as it is, `EADDRNOTAVAIL` for instance.
    pub fn connect(server: SocketAddr) -> io::Result<Self> {
        Self::connect_from(None, server)
    }

    /// The same from a given local address, which other sockets may share.
    ///
    /// # Errors
    /// As [`Client::connect`]; also when the address cannot be bound.
    pub fn connect_from(local: Option<SocketAddr>, server: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if let Some(local) = local {
            socket.set_reuse_address(true)?;
            socket.bind(&local.into())?;
        }
        let began = Instant::now();
        match socket.connect(&server.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        Ok(Self { socket, address: canonical(address), began })
    }

    /// The client's own address and port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The client's state, as its kernel side tells it.
    ///
    /// # Errors
    /// Fails when `TCP_INFO` does.
    pub fn state(&self) -> Result<State> {
        State::of(self.socket.as_fd())
    }

    /// How often the kernel has sent the waiting segment (here: the SYN) again.
    ///
    /// # Errors
    /// Fails when `TCP_INFO` does.
    pub fn retransmits(&self) -> Result<u32> {
        Ok(sys::tcp_info(self.socket.as_fd())?.tcpi_total_retrans)
    }

    /// The error that ended the connection attempt, once.
    ///
    /// # Errors
    /// Fails when the socket cannot be asked.
    pub fn error(&self) -> Result<Option<io::Error>> {
        Ok(self.socket.take_error()?)
    }

    /// Sends `bytes`.
    ///
    /// # Errors
    /// Fails when the kernel takes less.
    pub fn send(&self, bytes: &[u8]) -> Result<()> {
        let sent = self.socket.send(bytes).context("a client cannot send")?;
        ensure!(sent == bytes.len(), "sent only {sent} of {} bytes", bytes.len());
        Ok(())
    }

    /// How many bytes have arrived and not been read, as far as `limit`.
    ///
    /// # Errors
    /// Fails on any error but an empty buffer.
    pub fn readable(&self, limit: usize) -> Result<usize> {
        let mut buffer = vec![MaybeUninit::uninit(); limit];
        match self.socket.peek(&mut buffer) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error).context("a client cannot receive"),
        }
    }

    /// Closes with a RST in place of a FIN.
    ///
    /// # Errors
    /// Fails when the option is refused.
    pub fn reset(self) -> Result<()> {
        Ok(self.socket.set_linger(Some(Duration::ZERO))?)
    }
}

/// Connects as most programs do: the call returns when the handshake is over.
///
/// # Errors
/// Hands back `connect`'s error as it is.
pub fn connect_blocking(server: SocketAddr) -> io::Result<Client> {
    let began = Instant::now();
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    socket.connect(&server.into())?;
    socket.set_nonblocking(true)?;
    let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
    Ok(Client { socket, address: canonical(address), began })
}

/// Clients of one server.
#[derive(Debug, Default)]
pub struct Fleet(pub Vec<Client>);

impl Fleet {
    /// Connects `count` clients, one after the other: on loopback, the first SYN of each and the answer to it have been handled
    /// before the next one is sent.
    ///
    /// # Errors
    /// Fails when one `connect` does.
    pub fn connect(count: usize, server: SocketAddr) -> Result<Self> {
        let connect = |_| {
            let client = Client::connect(server).with_context(|| format!("cannot connect to {server}"))?;
            wait::for_loopback()?;
            Ok(client)
        };
        (0..count).map(connect).collect::<Result<_>>().map(Self)
    }

    /// The addresses of the clients in `state`.
    ///
    /// # Errors
    /// Fails when `TCP_INFO` does.
    pub fn in_state(&self, state: State) -> Result<BTreeSet<SocketAddr>> {
        let mut found = BTreeSet::new();
        for client in &self.0 {
            if client.state()? == state {
                found.insert(client.address());
            }
        }
        Ok(found)
    }

    /// Waits until every client whose SYN is unanswered has sent it again at
    /// least `times` times.
    ///
    /// # Errors
    /// Fails when they do not.
    pub fn wait_for_syn_retransmits(&self, times: u32) -> Result<()> {
        wait::until(&format!("each unanswered SYN to be sent {times} times more"), || {
            for client in &self.0 {
                if client.state()? == State::SynSent && client.retransmits()? < times {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Waits until `count` clients are in `state`.
    ///
    /// # Errors
    /// Fails when they do not get there.
    pub fn wait_for(&self, count: usize, state: State) -> Result<()> {
        wait::until(&format!("{count} clients in state {state:?}"), || Ok(self.in_state(state)?.len() == count))
    }
}

/// An IPv4-mapped address as the IPv4 address that it stands for.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Raises this process's limit of open descriptors as far as it may be, and
/// fails when that is below `needed`.
///
/// # Errors
/// Names the limit when it is too low.
pub fn raise_descriptor_limit(needed: u64) -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the descriptor limit")?;
    if let Some(maximum) = limit.maximum
        && maximum < needed
    {
        bail!("{needed} descriptors are needed and the hard limit is {maximum}: raise `ulimit -Hn`");
    }
    Ok(())
}

/// Runs `work` with a descriptor table of its own, so that the limit of open
/// descriptors counts for this thread alone. Nothing that `work` opens may
/// leave it, and what it was given by reference stays usable.
///
/// # Errors
/// Fails when the kernel refuses, and with `work`'s own error.
pub fn own_descriptors<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    sys::unshare_descriptors().context("cannot get a descriptor table for one thread")?;
    work()
}
