//! The system calls that no safe crate wraps, each behind a safe function.

use std::ffi::{CStr, c_int};
use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives SIGINT its default again: to end the process.
pub(crate) fn default_interrupt() -> io::Result<()> {
    // SAFETY: no handler is set, and none was that anybody could still want.
    let before = unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Moves the calling thread into a new network namespace.
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: only CLONE_FILES makes `unshare` unsafe (descriptors of other
    // threads would mean something else); a network namespace does not.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(Into::into)
}

/// Gives the calling thread a descriptor table of its own: a copy of the
/// process's, so that `RLIMIT_NOFILE` counts per thread.
pub(crate) fn unshare_descriptors() -> io::Result<()> {
    // SAFETY: the new table is a copy, so every descriptor that this thread
    // owns or borrows stays valid in it; the callers never hand a descriptor
    // opened afterwards to another thread (see `traffic::own_descriptors`).
    unsafe { unshare_unsafe(UnshareFlags::FILES) }.map_err(Into::into)
}

/// `getsockopt(TCP_INFO)`: the kernel's own view of a TCP socket.
pub(crate) fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    // SAFETY: `tcp_info` consists of integers only, so all zeroes is a value.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which
    // outlives the call.
    let status = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    check(status).map(|()| info)
}

/// `setsockopt` with an integer.
pub(crate) fn set_option(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads exactly one `c_int` from `value`.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    check(status)
}

/// Turns an opened `/dev/net/tun` into the interface `name`, which carries bare
/// IP packets and disappears with the file.
pub(crate) fn make_tun(device: &File, name: &str) -> io::Result<()> {
    let mut request = interface(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &raw mut request) })
}

/// Brings the interface `name` of the calling thread's namespace up.
pub(crate) fn bring_up(name: &str) -> io::Result<()> {
    let control = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let mut request = interface(name);
    // SAFETY: both requests read and write one `ifreq`, which outlives the
    // calls; SIOCGIFFLAGS has set `ifru_flags` before it is read.
    unsafe {
        check(libc::ioctl(control.as_raw_fd(), libc::SIOCGIFFLAGS as libc::Ioctl, &raw mut request))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &raw mut request))
    }
}

/// Gives the interface `name` an IPv4 address and the route to its /16.
pub(crate) fn add_ipv4(name: &str, address: Ipv4Addr) -> io::Result<()> {
    let control = std::net::UdpSocket::bind("0.0.0.0:0")?;
    for (operation, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 0, 0))] {
        let mut request = interface(name);
        let stored = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from(value).to_be() },
            sin_zero: [0; 8],
        };
        // SAFETY: `sockaddr_in` and `sockaddr` have the same size, and the
        // union is large enough for both; the ioctl reads one `ifreq`.
        unsafe {
            (&raw mut request.ifr_ifru.ifru_addr).cast::<libc::sockaddr_in>().write_unaligned(stored);
            check(libc::ioctl(control.as_raw_fd(), operation as libc::Ioctl, &raw mut request))?;
        }
    }
    Ok(())
}

/// Gives the interface `name` an IPv6 address and the route to its /64.
pub(crate) fn add_ipv6(name: &str, address: Ipv6Addr) -> io::Result<()> {
    let control = std::net::UdpSocket::bind("[::]:0")?;
    let index = rustix::net::netdevice::name_to_index(&control, name)?;
    let request = libc::in6_ifreq {
        ifr6_addr: libc::in6_addr { s6_addr: address.octets() },
        ifr6_prefixlen: 64,
        ifr6_ifindex: index as c_int,
    };
    // SAFETY: SIOCSIFADDR on an IPv6 socket reads one `in6_ifreq`.
    check(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCSIFADDR as libc::Ioctl, &raw const request) })
}

/// Attaches a classic BPF filter that drops every packet to `socket`.
pub(crate) fn drop_everything(socket: BorrowedFd<'_>) -> io::Result<()> {
    // BPF_RET | BPF_K with k = 0: accept zero bytes of the packet.
    let mut code = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    // SAFETY: the kernel copies `len` instructions from `filter`; both outlive
    // the call.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    check(status)
}

/// `struct perf_event_attr` in its first version, which every kernel takes.
#[repr(C)]
#[derive(Default)]
struct PerfEvent {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    config1: u64,
}

/// Counts a tracepoint's events that pass `filter` while `thread` is current, and, with `new_threads`, while a thread is that
/// it begins from now on. Kernels before 5.13 can do that only together with child processes, and refuse it (EINVAL).
pub(crate) fn count_tracepoint(
    thread: libc::pid_t,
    tracepoint: u64,
    filter: &CStr,
    new_threads: bool,
) -> io::Result<OwnedFd> {
    const PERF_TYPE_TRACEPOINT: u32 = 2;
    const DISABLED: u64 = 1 << 0;
    const INHERIT: u64 = 1 << 1;
    const INHERIT_THREAD: u64 = 1 << 35;
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    const PERF_EVENT_IOC_ENABLE: libc::Ioctl = 0x2400;
    const PERF_EVENT_IOC_SET_FILTER: libc::Ioctl = 0x4008_2406;
    const ANY_CPU: c_int = -1;
    const NO_GROUP: c_int = -1;
    let event = PerfEvent {
        kind: PERF_TYPE_TRACEPOINT,
        size: size_of::<PerfEvent>() as u32,
        config: tracepoint,
        flags: DISABLED | if new_threads { INHERIT | INHERIT_THREAD } else { 0 },
        ..PerfEvent::default()
    };
    // SAFETY: the kernel reads `size` bytes from `event`, which outlives the call.
    let counter = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const event, thread, ANY_CPU, NO_GROUP, PERF_FLAG_FD_CLOEXEC)
    } as c_int;
    check(counter)?;
    // SAFETY: the kernel has just made this descriptor for us, and nothing else owns it.
    let counter = unsafe { OwnedFd::from_raw_fd(counter) };
    // SAFETY: the kernel reads a string from `filter`, which ends with a zero byte and outlives the call.
    check(unsafe { libc::ioctl(counter.as_raw_fd(), PERF_EVENT_IOC_SET_FILTER, filter.as_ptr()) })?;
    // SAFETY: this request takes no pointer.
    check(unsafe { libc::ioctl(counter.as_raw_fd(), PERF_EVENT_IOC_ENABLE, 0) })?;
    Ok(counter)
}

fn interface(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` consists of integers, so all zeroes is a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    assert!(name.len() < request.ifr_name.len(), "interface name {name} is too long");
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    request
}

fn check(status: c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
