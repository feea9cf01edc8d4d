//! `accept` and `connect` through io_uring, which does not come by the system calls of these names.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, cqueue, opcode, types};
use socket2::SockAddr;

/// A ring of this process.
pub struct Ring(IoUring);

/// How a request is to be worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The submitting thread: at once, or when the socket gets ready.
    Submitter,
    /// A worker thread of the kernel's, which may sleep in the call.
    Worker,
}

/// What a request that was submitted will have to say.
const ACCEPT: u64 = 1;
const CONNECT: u64 = 2;

impl Ring {
    /// Makes a ring.
    ///
    /// # Errors
    /// Hands back the kernel's error as it is: `ENOSYS` without io_uring, `EPERM` where a sysctl forbids it.
    pub fn open() -> io::Result<Self> {
        IoUring::new(64).map(Self)
    }

    /// Begins to accept one connection.
    ///
    /// # Errors
    /// Fails when the ring takes no request.
    pub fn begin_accept(&mut self, listener: &impl AsFd, by: By) -> io::Result<()> {
        let listener = types::Fd(listener.as_fd().as_raw_fd());
        let request = opcode::Accept::new(listener, std::ptr::null_mut(), std::ptr::null_mut()).build();
        let flags = if by == By::Worker { Flags::ASYNC } else { Flags::empty() };
        // SAFETY: the request holds no pointer, and the kernel keeps the listener's file by itself.
        unsafe { self.submit(&request.flags(flags).user_data(ACCEPT)) }
    }

    /// Begins to accept connections until it is cancelled or the ring is gone.
    ///
    /// # Errors
    /// Fails when the ring takes no request.
    pub fn begin_accept_many(&mut self, listener: &impl AsFd) -> io::Result<()> {
        let listener = types::Fd(listener.as_fd().as_raw_fd());
        let request = opcode::AcceptMulti::new(listener).build().user_data(ACCEPT);
        // SAFETY: as for one connection.
        unsafe { self.submit(&request) }
    }

    /// Waits for the next accepted connection.
    ///
    /// # Errors
    /// Hands back what the kernel says in place of a connection.
    pub fn accepted(&mut self) -> io::Result<OwnedFd> {
        let descriptor = self.result(ACCEPT)?;
        // SAFETY: the kernel has just made this descriptor for us, and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }

    /// Connects `socket` and waits for the outcome.
    ///
    /// # Errors
    /// Hands back the outcome as it is.
    pub fn connect(&mut self, socket: &impl AsFd, server: SocketAddr) -> io::Result<()> {
        let server = SockAddr::from(server);
        let socket = types::Fd(socket.as_fd().as_raw_fd());
        let request = opcode::Connect::new(socket, server.as_ptr().cast(), server.len()).build().user_data(CONNECT);
        // SAFETY: the address lives until the request is complete, which is waited for below.
        unsafe { self.submit(&request) }?;
        self.result(CONNECT).map(drop)
    }

    /// # Safety
    /// Whatever the request points to has to live until it is complete.
    unsafe fn submit(&mut self, request: &Entry) -> io::Result<()> {
        // SAFETY: the caller answers for what the request points to.
        unsafe { self.0.submission().push(request) }.map_err(io::Error::other)?;
        self.0.submit().map(drop)
    }

    /// The next result of requests of one kind, of which others are not awaited at the same time.
    fn result(&mut self, kind: u64) -> io::Result<i32> {
        loop {
            let next: Option<cqueue::Entry> = self.0.completion().next();
            match next {
                Some(entry) if entry.user_data() == kind => {
                    let result = entry.result();
                    return if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) };
                }
                Some(entry) => return Err(io::Error::other(format!("an unexpected completion: {entry:?}"))),
                None => self.0.submit_and_wait(1).map(drop)?,
            }
        }
    }
}
