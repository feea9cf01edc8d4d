//! `accept-queue-full`, stage `syn`: a listener that accepts nothing.

use anyhow::Result;
use tracer_tests::namespace::Namespace;
use tracer_tests::report::{Outcomes, counts};
use tracer_tests::session::{Scope, Session};
use tracer_tests::traffic::Listen;
use tracer_tests::wait;
use tracer_tests::workload::FullAcceptQueue;

/// Ten clients, backlog 3, nobody accepts: the queue holds one more than its
/// limit, and every other client's SYN is dropped, again and again.
fn ten_clients_and_backlog_3(syncookies: &str, scope: Scope) -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", syncookies)?;
    let listener = Listen::new(3).open()?;
    let session = Session::start_with(&namespace, listener.port(), scope, |start| start)?;

    let truth = FullAcceptQueue::run(listener.address(), 10)?;
    assert_eq!((truth.established.len(), truth.unanswered.len()), (4, 6));
    assert_eq!(listener.waiting()?, 4);
    // A busy machine handles a SYN some time after it was sent.
    wait::until("six SYNs, each sent three times, to be dropped", || Ok(session.kernel()?.get("ListenDrops") >= 18))?;
    let kernel = session.kernel()?;
    let dropped = kernel.get("ListenDrops");
    assert_eq!(kernel.get("ListenOverflows"), dropped);
    assert_eq!(kernel.get("SyncookiesSent"), 0);

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 10,
        pending: 4,
        lost: counts([("accept-queue-full", 6)]),
        ..Outcomes::default()
    })?;
    assert_eq!(finished.lost("accept-queue-full"), truth.unanswered);
    assert_eq!(finished.stages("accept-queue-full"), [Some("syn")].into());
    let resent: u64 = finished.events.iter().filter_map(|line| line.syn_retransmits).sum();
    assert_eq!(resent, dropped - 6, "each dropped SYN but the first of a client is one sent again");

    let packets = &finished.report.totals.packets;
    assert_eq!(packets.syn, 4 + dropped);
    assert_eq!(packets.syn_dropped.get("accept-queue-full"), Some(&dropped));
    assert_eq!(packets.synack, 4);
    let reported = finished.listener()?;
    assert_eq!(reported.address, listener.address().ip());
    assert_eq!(reported.pid, Some(std::process::id()));
    assert_eq!(reported.backlog.effective, 3);
    assert_eq!(reported.backlog.syncookies.to_string(), syncookies);
    assert_eq!((reported.accept_queue.now, reported.accept_queue.max), (4, 4));
    assert!(
        finished.report.advice.iter().any(|advice| advice.cause == "accept-queue-full"),
        "no advice: {:?}",
        finished.report.advice
    );
    Ok(())
}

#[test]
fn without_syncookies_six_of_ten_are_lost_at_their_syn() -> Result<()> {
    ten_clients_and_backlog_3("0", Scope::Path)
}

#[test]
fn with_syncookies_six_of_ten_are_lost_at_their_syn_and_no_cookie_is_sent() -> Result<()> {
    ten_clients_and_backlog_3("1", Scope::Path)
}

#[test]
fn from_inside_the_namespace_the_answer_is_the_same() -> Result<()> {
    ten_clients_and_backlog_3("1", Scope::Inside)
}

#[test]
fn a_tracer_of_every_namespace_says_the_same_of_this_listener() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(3).open()?;
    let port = listener.port();
    let session = Session::start_with(&namespace, port, Scope::Everywhere, |start| start)?;
    let truth = FullAcceptQueue::run(listener.address(), 10)?;
    // Other namespaces of the machine may be busy: only this listener is known.
    let finished = session.finish_inexact()?;
    assert_eq!(
        finished.listener()?.ledger.outcomes(),
        Outcomes { attempts: 10, pending: 4, lost: counts([("accept-queue-full", 6)]), ..Outcomes::default() }
    );
    let lines = finished.lost("accept-queue-full");
    assert!(lines.is_superset(&truth.unanswered), "{lines:?} lack some of {:?}", truth.unanswered);
    Ok(())
}

#[test]
fn a_small_somaxconn_is_the_limit_in_force() -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/core/somaxconn", "2")?;
    let listener = Listen::new(1000).open()?;
    assert_eq!(listener.limit()?, 2);
    let session = Session::start(&namespace, listener.port())?;
    let truth = FullAcceptQueue::run(listener.address(), 5)?;
    assert_eq!((truth.established.len(), truth.unanswered.len()), (3, 2));

    let finished = session.finish()?;
    finished.expect(&Outcomes {
        attempts: 5,
        pending: 3,
        lost: counts([("accept-queue-full", 2)]),
        ..Outcomes::default()
    })?;
    let backlog = &finished.listener()?.backlog;
    assert_eq!((backlog.effective, backlog.somaxconn), (2, 2));
    let advice = finished.report.advice.iter().find(|it| it.cause == "accept-queue-full");
    assert!(
        advice.is_some_and(|it| it.text.contains("somaxconn")),
        "the advice does not name somaxconn: {:?}",
        finished.report.advice
    );
    Ok(())
}
