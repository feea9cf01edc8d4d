//! A tracer that is started when things have long been going on: what began
//! before is no attempt, what begins later is counted exactly.

use std::sync::mpsc::channel;
use std::thread;

use anyhow::{Context, Result};
use rustix::thread::{Pid, gettid};
use tracer_tests::load::{Load, THREADS};
use tracer_tests::namespace::{Family, Namespace, half_open};
use tracer_tests::rawtcp::{Peer, Wire, addresses, await_synacks, syn_all};
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::Session;
use tracer_tests::traffic::{Client, Listen};
use tracer_tests::wait;

#[test]
fn connections_from_before_the_start_are_no_attempts() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let namespace = Namespace::enter()?;
        let wire = Wire::open(&namespace)?;
        let listener = Listen::new(16).on(Wire::server(family)).open()?;
        let mut earlier = Peer::several(&wire, listener.address(), 0, 6);
        syn_all(&earlier)?;
        await_synacks(&mut earlier)?;
        earlier[..4].iter().try_for_each(Peer::ack)?;
        listener.set_backlog(3)?;
        assert_eq!((listener.waiting()?, half_open(listener.port())?), (4, 2));
        let session = Session::start(&namespace, listener.port())?;

        // The queue is full: five new clients lose their SYN, sent twice, and
        // an earlier one its final ACK; another earlier one resets.
        let dropped = Peer::several(&wire, listener.address(), 100, 5);
        syn_all(&dropped)?;
        syn_all(&dropped)?;
        earlier[4].ack()?;
        earlier[5].reset()?;
        assert_eq!(session.kernel()?.get("ListenOverflows"), 11);
        // The earlier ones are accepted, the one with the dropped ACK later.
        assert_eq!(listener.accept_all()?.len(), 4);
        earlier[4].ack()?;
        assert_eq!(listener.accept_all()?.len(), 1);
        // Three new clients come through, two of them are accepted.
        let mut clients = Peer::several(&wire, listener.address(), 200, 3);
        syn_all(&clients)?;
        await_synacks(&mut clients)?;
        clients.iter().try_for_each(Peer::ack)?;
        let accepted = [listener.accept()?, listener.accept()?];
        assert!(accepted.iter().all(Option::is_some));

        let finished = session.finish()?;
        finished.expect(&Outcomes {
            attempts: 8,
            accepted: 2,
            pending: 1,
            lost: counts([("accept-queue-full", 5)]),
            ..Outcomes::default()
        })?;
        assert_eq!(finished.all_lost(), addresses(&dropped));
        assert_eq!(finished.listener()?.accept_queue.now, 1);
        assert_eq!(finished.listener()?.accept_queue.max, 4);
    }
    Ok(())
}

#[test]
fn requests_from_before_the_start_that_expire_or_lose_their_listener_are_no_losses() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_synack_retries", "1")?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(16).on(Wire::server(Family::V4)).open()?;
    let mut earlier = Peer::several(&wire, listener.address(), 0, 4);
    syn_all(&earlier)?;
    await_synacks(&mut earlier)?;
    earlier[..2].iter().try_for_each(Peer::ack)?;
    let session = Session::start(&namespace, listener.port())?;
    let mut clients = Peer::several(&wire, listener.address(), 100, 1);
    syn_all(&clients)?;
    await_synacks(&mut clients)?;
    clients[0].ack()?;
    wait::until("two requests to expire", || Ok(half_open(listener.port())? == 0))?;
    drop(listener);
    for client in earlier[..2].iter().chain(&clients) {
        assert!(client.was_reset()?);
    }

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 1,
        lost: counts([("listener-closed", 1)]),
        phantom: 1,
        ..Outcomes::default()
    })?;
    assert_eq!(finished.all_lost(), addresses(&clients));
    Ok(())
}

/// A server that waits in `accept()` is the ordinary case. What a thread returns with that has been in there since before the hooks were
/// is seen all the same.
#[test]
fn what_a_thread_gets_that_slept_in_accept_at_the_start_is_accepted() -> Result<()> {
    const SLEEPERS: usize = 3;
    let namespace = Namespace::enter()?;
    let listener = Listen::new(16).open()?;
    rustix::io::ioctl_fionbio(&listener, false)?;
    thread::scope(|scope| -> Result<()> {
        let accept = || -> Result<_> { listener.accept()?.context("a blocking accept() has nothing") };
        let (say, hear) = channel();
        let sleepers: Vec<_> = (0..SLEEPERS)
            .map(|_| {
                let say = say.clone();
                scope.spawn(move || -> Result<_> {
                    say.send(gettid())?;
                    accept()
                })
            })
            .collect();
        let threads: Vec<_> = hear.iter().take(SLEEPERS).collect();
        wait::until("the threads to sleep in accept()", || {
            threads.iter().try_fold(true, |all, it| Ok(all && in_accept(*it)?))
        })?;
        let session = Session::start(&namespace, listener.port())?;
        // One at a time, and two that nobody waits for yet.
        let mut clients = Vec::new();
        for at in 0..SLEEPERS {
            clients.push(Client::connect(listener.address())?);
            wait::until(
                "one thread to return",
                || Ok(sleepers.iter().filter(|it| it.is_finished()).count() == at + 1),
            )?;
        }
        let mut accepted: Vec<_> =
            sleepers.into_iter().map(|it| it.join().expect("no panic")).collect::<Result<_>>()?;
        clients.push(Client::connect(listener.address())?);
        accepted.push(accept()?);
        clients.push(Client::connect(listener.address())?);
        wait::until("the last client to wait", || Ok(listener.waiting()? == 1))?;

        let finished = session.finish()?;
        finished.expect(&Outcomes { attempts: 5, accepted: 4, pending: 1, ..Outcomes::default() })?;
        Ok(())
    })
}

/// Whether a thread of this process is in `accept()`, and asleep.
fn in_accept(thread: Pid) -> Result<bool> {
    let path = format!("/proc/self/task/{thread}/syscall");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // "running", or the system call's number and arguments.
    let number = text.split(' ').next().and_then(|number| number.parse().ok());
    Ok(number.is_some_and(|number: i64| [libc::SYS_accept, libc::SYS_accept4].contains(&number)))
}

#[test]
fn a_start_in_the_middle_of_a_load_is_exact_from_then_on() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_synack_retries", "1")?;
    namespace.set("net/ipv4/ip_local_port_range", "1024 65535")?;
    let listener = Listen::new(12).open()?;
    let load = Load::new(u64::MAX);
    let (session, before, at_start) = thread::scope(|scope| -> Result<_> {
        let running = scope.spawn(|| load.run(&listener));
        let started = || -> Result<_> {
            wait::until("the load to run", || Ok(load.attempts() > 1_000))?;
            let before = (load.attempts(), load.accepted());
            let session = Session::start(&namespace, listener.port())?;
            let at_start = (load.attempts(), load.accepted());
            // An emulated CPU makes some tens of connections a second beside another guest.
            let enough = u64::from(5_000 / wait::slowness());
            wait::until("the load to go on", || Ok(load.attempts() > at_start.0 + enough))?;
            Ok((session, before, at_start))
        };
        let started = started();
        load.stop();
        running.join().expect("the load does not panic")?;
        started
    })?;

    let finished = session.finish()?;
    let outcomes = finished.listener()?.ledger.outcomes();
    // Each thread may have been between its `connect` and its count, and what
    // waited or was on its way at the start may be accepted later.
    let attempts = load.attempts() - at_start.0 - THREADS..=load.attempts() - before.0;
    let accepted = load.accepted() - at_start.1 - 12 - 2 - THREADS..=load.accepted() - before.1;
    assert!(attempts.contains(&outcomes.attempts), "{outcomes:?} not in {attempts:?}");
    assert!(accepted.contains(&outcomes.accepted), "{outcomes:?} not in {accepted:?}");
    assert_eq!(outcomes.pending, 0);
    Ok(())
}
