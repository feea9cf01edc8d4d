//! Servers and clients that use io_uring. It comes to the same functions of the kernel as `accept()` and `connect()`, but not by
//! the system calls of these names.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};
use tracer_tests::namespace::Namespace;
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::{Finished, Session};
use tracer_tests::tracer::Start;
use tracer_tests::traffic::{Fleet, Listen, Listener};
use tracer_tests::uring::{By, Ring};

/// A ring, or `None` where the kernel has none or its sysctl forbids it, which is asserted and said.
fn ring() -> Result<Option<Ring>> {
    const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";
    let error = match Ring::open() {
        Ok(ring) => return Ok(Some(ring)),
        Err(error) => error,
    };
    match error.raw_os_error() {
        Some(libc::ENOSYS) => eprintln!("this kernel has no io_uring (ENOSYS): there is nothing to trace"),
        Some(libc::EPERM) => {
            let disabled = std::fs::read_to_string(SYSCTL).with_context(|| format!("{error}, and no {SYSCTL}"))?;
            ensure!(disabled.trim() != "0", "io_uring is enabled, and the kernel says: {error}");
            eprintln!(
                "io_uring is switched off here (EPERM, {SYSCTL} is {}): there is nothing to trace",
                disabled.trim()
            );
        }
        _ => return Err(error).context("cannot make a ring"),
    }
    Ok(None)
}

/// A listener whose `accept` waits: io_uring answers at once where a descriptor is non-blocking.
fn blocking_listener() -> Result<Listener> {
    let listener = Listen::new(16).open()?;
    rustix::io::ioctl_fionbio(&listener, false)?;
    Ok(listener)
}

/// Whether the tracer sees what io_uring accepts: the tracepoint flavour has nothing but the system calls' ends.
fn sees_accepts(finished: &Finished) -> bool {
    finished.report.host.hooks["inet_csk_accept"] != "tracepoint"
}

/// Demands that `tracer doctor` names this limit of the tracepoint flavour.
fn doctor_says(limit: &str) -> Result<()> {
    let outcome = Start::inside()?.args(["doctor", "--hooks", "tracepoint", "--format", "json"]).spawn()?.wait()?;
    let doctor: serde_json::Value = serde_json::from_str(&outcome.stdout).with_context(|| outcome.stderr.clone())?;
    let limits = doctor["limits"].as_array().context("no limits")?;
    let named = limits.iter().filter_map(|it| it.as_str()).any(|it| it.contains(limit));
    ensure!(named, "{limits:?} does not say: {limit}");
    Ok(())
}

/// Ends the session and holds it to `expected`. The flavour that sees no accept through io_uring sees that the accept queue is shorter
/// than it can be, and has to say of `taken` connections that this is all that it knows of them.
fn expect_accepted(session: Session, taken: u64, expected: &Outcomes) -> Result<()> {
    let finished = session.finish_inexact()?;
    finished.expect(expected)?;
    assert_eq!(finished.listener()?.accept_queue.now, 0);
    if sees_accepts(&finished) {
        finished.exact()?;
        return Ok(());
    }
    eprintln!(
        "the tracepoint flavour does not see accepts through io_uring: {taken} connections are only known to be gone"
    );
    let check = &finished.report.check;
    let note = format!("{taken} of the {} connections", expected.accepted);
    ensure!(!check.exact && check.notes.len() == 1 && check.notes[0].starts_with(&note), "{check:?} without: {note}");
    ensure!(check.notes[0].contains("without an accept() that was seen"), "{check:?}");
    doctor_says("accepts through io_uring or within the kernel are not seen")
}

#[test]
fn connections_accepted_one_by_one_through_io_uring() -> Result<()> {
    let namespace = Namespace::enter()?;
    let Some(mut ring) = ring()? else { return Ok(()) };
    let listener = blocking_listener()?;
    let session = Session::start(&namespace, listener.port())?;

    let mut accepted: Vec<OwnedFd> = Vec::new();
    // A connection that waits already; then one that is waited for, by the submitting thread and by a worker of the kernel's.
    let mut fleet = Fleet::connect(1, listener.address())?;
    ring.begin_accept(&listener, By::Submitter)?;
    accepted.push(ring.accepted()?);
    for by in [By::Submitter, By::Worker] {
        ring.begin_accept(&listener, by)?;
        fleet.0.extend(Fleet::connect(1, listener.address())?.0);
        accepted.push(ring.accepted()?);
    }
    assert_eq!(listener.waiting()?, 0);

    expect_accepted(session, 3, &Outcomes { attempts: 3, accepted: 3, ..Outcomes::default() })
}

#[test]
fn connections_accepted_by_one_request_for_many() -> Result<()> {
    const CLIENTS: usize = 6;
    let namespace = Namespace::enter()?;
    let Some(mut ring) = ring()? else { return Ok(()) };
    let listener = blocking_listener()?;
    let session = Session::start(&namespace, listener.port())?;

    // Two wait already, four come later.
    let mut fleet = Fleet::connect(2, listener.address())?;
    ring.begin_accept_many(&listener)?;
    let first = match ring.accepted() {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
            ensure!(release.starts_with("5."), "Linux {} refuses a multishot accept", release.trim());
            eprintln!("Linux {} has no multishot accept (EINVAL; 5.19): there is nothing to trace", release.trim());
            return Ok(());
        }
        first => first?,
    };
    fleet.0.extend(Fleet::connect(CLIENTS - 2, listener.address())?.0);
    let others = (1..CLIENTS).map(|_| ring.accepted()).collect::<io::Result<Vec<_>>>()?;
    assert_eq!(listener.waiting()?, 0);

    let accepted = CLIENTS as u64;
    expect_accepted(session, accepted, &Outcomes { attempts: accepted, accepted, ..Outcomes::default() })?;
    drop((first, others));
    Ok(())
}

#[test]
fn clients_that_connect_through_io_uring_are_counted_with_why_they_fail() -> Result<()> {
    const PORTS: usize = 4;
    let namespace = Namespace::enter()?;
    let Some(mut ring) = ring()? else { return Ok(()) };
    let listener = Listen::new(16).open()?;
    namespace.set("net/ipv4/ip_local_port_range", "20000 20003")?;
    let session = Session::start(&namespace, listener.port())?;

    let client = || Socket::new(Domain::IPV4, Type::STREAM, None);
    let connected: Vec<_> = (0..PORTS).map(|_| client()).collect::<io::Result<_>>()?;
    for socket in &connected {
        ring.connect(socket, listener.address())?;
    }
    let exhausted = client()?;
    let error = ring.connect(&exhausted, listener.address()).err().context("more clients than ports")?;
    assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    // The same port at an address where nobody listens.
    let refused = client()?;
    let nobody = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), listener.port()));
    let error = ring.connect(&refused, nobody).err().context("somebody listens")?;
    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    assert_eq!(listener.accept_all()?.len(), PORTS);

    let finished = session.finish()?;
    // The tracepoint flavour sees that the socket was closed again, but not the error, which only the call returns.
    let seen = u64::from(finished.report.host.hooks["tcp_v4_connect"] != "tracepoint");
    if seen == 0 {
        eprintln!(
            "the tracepoint flavour does not see why connects through io_uring fail: port exhaustion is not counted"
        );
        doctor_says("errors of connects through io_uring are not seen")?;
    }
    finished.expect_totals(&Outcomes {
        attempts: PORTS as u64 + 1 + seen,
        accepted: PORTS as u64,
        lost: counts([("port-exhaustion", seen), ("no-listener", 1)]),
        ..Outcomes::default()
    })?;
    let clients = &finished.report.clients;
    assert_eq!((clients.connects, clients.established, clients.in_progress), (PORTS as u64 + 2, PORTS as u64, 0));
    assert_eq!(clients.failed, counts([("port-exhaustion", seen), ("closed", 1 - seen), ("ECONNREFUSED", 1)]));
    Ok(())
}

#[test]
fn what_io_uring_accepted_is_not_lost_when_its_listener_closes() -> Result<()> {
    let namespace = Namespace::enter()?;
    let Some(mut ring) = ring()? else { return Ok(()) };
    let listener = blocking_listener()?;
    let session = Session::start(&namespace, listener.port())?;

    let _fleet = Fleet::connect(3, listener.address())?;
    ring.begin_accept(&listener, By::Submitter)?;
    let _accepted = ring.accepted()?;
    assert_eq!(listener.waiting()?, 2);
    drop(listener);

    // How many waited when it closed is the kernel's own number, whoever accepted the others.
    expect_accepted(
        session,
        1,
        &Outcomes {
            attempts: 3,
            accepted: 1,
            lost: counts([("listener-closed", 2)]),
            phantom: 2,
            ..Outcomes::default()
        },
    )
}

#[test]
fn what_waited_before_the_start_does_not_hide_what_io_uring_accepts() -> Result<()> {
    let namespace = Namespace::enter()?;
    let Some(mut ring) = ring()? else { return Ok(()) };
    let listener = blocking_listener()?;
    let _earlier = Fleet::connect(2, listener.address())?;
    let session = Session::start(&namespace, listener.port())?;

    let _fleet = Fleet::connect(2, listener.address())?;
    // The two from before and one of the others.
    let accepted = (0..3)
        .map(|_| {
            ring.begin_accept(&listener, By::Submitter)?;
            ring.accepted()
        })
        .collect::<io::Result<Vec<_>>>()?;
    assert_eq!(listener.waiting()?, 1);
    drop(listener);

    let expected = Outcomes {
        attempts: 2,
        accepted: 1,
        lost: counts([("listener-closed", 1)]),
        phantom: 1,
        ..Outcomes::default()
    };
    expect_accepted(session, 1, &expected)?;
    drop(accepted);
    Ok(())
}
