//! Waiting for a fact that the kernel shows, never for time to pass.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The longest that any scenario waits for one fact. Generous, because it is
/// only ever used up by a failing test.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A patience as it is on this machine: `TESTS_PATIENCE` says how many times as slow as hardware it is, which an emulated one is.
#[must_use]
pub fn here(patience: Duration) -> Duration {
    patience * slowness()
}

/// How many times as slow as hardware this machine is.
#[must_use]
pub fn slowness() -> u32 {
    let times = std::env::var("TESTS_PATIENCE").ok().and_then(|times| times.parse().ok());
    times.unwrap_or(1)
}

/// Asks `condition` again and again until it holds.
///
/// # Errors
/// Fails with `what` when the condition does not hold within [`PATIENCE`], and
/// passes on an error of the condition itself at once.
pub fn until(what: &str, condition: impl FnMut() -> Result<bool>) -> Result<()> {
    until_within(PATIENCE, what, condition)
}

/// The same with another patience.
///
/// # Errors
/// As [`until`].
pub fn until_within(patience: Duration, what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let patience = here(patience);
    let deadline = Instant::now() + patience;
    while !condition()? {
        if Instant::now() > deadline {
            bail!("waited {} s in vain for: {what}", patience.as_secs());
        }
        // The pause between two looks only spares the CPU for the traffic.
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Waits until the packets that were sent over loopback before, and the answers to them, have been handled.
///
/// The kernel handles a packet on loopback at once, but on a busy machine leaves it to a thread (`ksoftirqd`): then a `connect()`
/// has returned, and nobody has seen its SYN yet. Each CPU handles its packets in their order, so that a datagram that was sent
/// after them on the same CPU has them behind it. A handshake takes three packets, each sent while the one before is handled.
///
/// # Errors
/// Fails when the thread may not move between CPUs, or has no loopback.
pub fn for_loopback() -> Result<()> {
    const ROUNDS: usize = 4;
    // A namespace that drops what arrives drops the datagram too, and then there is nothing to wait for.
    const ANSWER: Duration = Duration::from_millis(100);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot bind to loopback")?;
    socket.set_read_timeout(Some(ANSWER))?;
    let own = socket.local_addr()?;
    let allowed = sched_getaffinity(None).context("cannot read the thread's CPUs")?;
    let visit = |cpu: usize| -> Result<()> {
        let mut only = CpuSet::new();
        only.set(cpu);
        sched_setaffinity(None, &only).with_context(|| format!("cannot move to CPU {cpu}"))?;
        for _ in 0..ROUNDS {
            socket.send_to(&[0], own).context("cannot send over loopback")?;
            if socket.recv(&mut [0]).is_err() {
                break;
            }
        }
        Ok(())
    };
    let visited = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).try_for_each(visit);
    sched_setaffinity(None, &allowed).context("cannot restore the thread's CPUs")?;
    visited
}
