//! Single events whose meaning depends on what came before, and counters that need each other.

use expect_test::{Expect, expect};
use tracer_abi::abi::{Cause, Event, EventKind, NO_LISTENER, Watch, flag, state};

use super::attempt::{SECOND, event, tuple};
use super::script::{line, print};
use crate::ledger::{Ledger, SlotTotals};

fn at(seconds: u64, kind: EventKind, isn: u32, fill: impl FnOnce(&mut Event)) -> Event {
    let mut event = event(kind, tuple(u16::from(b'a')), isn, 1, seconds * SECOND);
    fill(&mut event);
    event
}

fn new(cause: Cause) -> impl FnOnce(&mut Event) {
    move |e| (e.cause, e.flags) = (cause as u8, flag::NEW_ATTEMPT)
}

fn by(cause: Cause) -> impl FnOnce(&mut Event) {
    move |e| e.cause = cause as u8
}

fn slot(attempts: u64) -> SlotTotals {
    SlotTotals { attempts, ..SlotTotals::default() }
}

#[track_caller]
fn check(events: &[Event], slots: &[(u32, SlotTotals)], expected: Expect) {
    let mut ledger = Ledger::new(100);
    let mut out = String::new();
    for event in events {
        ledger.apply(event, &mut |decision| line(&mut out, &decision));
        assert!(ledger.snapshot(slots).iter().all(|(_, account)| account.balances()));
    }
    finish(ledger, slots, out, &expected);
}

#[track_caller]
fn finish(ledger: Ledger, slots: &[(u32, SlotTotals)], mut out: String, expected: &Expect) {
    let accounts = ledger.finish(slots, 10 * SECOND, &mut |decision| line(&mut out, &decision));
    for (slot, account) in accounts {
        assert!(account.balances());
        print(&mut out, slot, &account);
    }
    expected.assert_eq(&out);
}

#[test]
fn data_after_the_dropped_ack_does_not_tell_the_sequence_number_and_is_the_same_attempt() {
    check(
        &[
            at(1, EventKind::AckDropped, 7, by(Cause::AcceptQueueFull)),
            at(2, EventKind::AckDropped, 507, by(Cause::AcceptQueueFull)),
            at(3, EventKind::SynAckRetransmitted, 7, |e| e.detail = 2),
            at(4, EventKind::RequestReset, 900, |_| {}),
        ],
        &[(1, SlotTotals { requests: 1, reset: 1, ..slot(1) })],
        expect![[r#"
            lost a client-reset phantom synack 2 after 9000 ms
            slot 1: 1 = 0 accepted + 0 pending + 1 lost
              lost: client-reset 1
              phantom: 1
        "#]],
    );
}

#[test]
fn data_after_a_dropped_cookie_ack_is_no_cookie_and_the_same_attempt() {
    check(
        &[
            at(1, EventKind::CookieSent, 7, |e| e.flags = flag::NEW_ATTEMPT | flag::COOKIE),
            at(2, EventKind::AckDropped, 7, |e| (e.cause, e.flags) = (Cause::SyncookieAckDropped as u8, flag::COOKIE)),
            at(3, EventKind::CookieInvalid, 707, by(Cause::SyncookieInvalid)),
            at(4, EventKind::ClientReset, 808, |_| {}),
        ],
        &[(1, slot(1))],
        expect![[r#"
            lost a client-reset phantom after 9000 ms
            slot 1: 1 = 0 accepted + 0 pending + 1 lost
              lost: client-reset 1
              phantom: 1
        "#]],
    );
}

#[test]
fn an_ack_of_a_later_healthy_request_is_another_attempt() {
    check(
        &[
            at(1, EventKind::SynDropped, 7, new(Cause::HalfOpenQueueFull)),
            at(5, EventKind::AckDropped, 90, by(Cause::AcceptQueueFull)),
        ],
        &[(1, SlotTotals { requests: 1, ..slot(2) })],
        expect![[r#"
            lost a half-open-queue-full syn after 4000 ms
            lost a accept-queue-full ack phantom after 5000 ms
            slot 1: 2 = 0 accepted + 0 pending + 2 lost
              lost: half-open-queue-full 1 accept-queue-full 1
              phantom: 1
        "#]],
    );
}

#[test]
fn a_healthy_child_that_goes_with_its_listener_is_not_the_troubled_attempt_before_it() {
    check(
        &[
            at(1, EventKind::SynDropped, 7, new(Cause::HalfOpenQueueFull)),
            at(5, EventKind::ListenerClosed, 0, |_| {}),
            at(5, EventKind::ChildClosed, 0, |e| e.flags = flag::LISTENER_CLOSED),
        ],
        &[(1, SlotTotals { requests: 1, children: 1, queued: 1, children_dropped: 1, closed: true, ..slot(2) })],
        expect![[r#"
            lost a listener-closed phantom after 0 ms
            lost a half-open-queue-full syn after 9000 ms
            slot 1: 2 = 0 accepted + 0 pending + 2 lost
              lost: half-open-queue-full 1 listener-closed 1
              phantom: 1
        "#]],
    );
}

#[test]
fn a_timed_out_connect_that_the_server_saw_is_one_attempt() {
    let timeout = |seconds| {
        at(seconds, EventKind::ConnectFailed, 7, |e| {
            (e.detail, e.flags, e.slot) = (110, flag::NEW_ATTEMPT, NO_LISTENER)
        })
    };
    let expired = |seconds| at(seconds, EventKind::RequestExpired, 7, |_| {});
    let slots = [(NO_LISTENER, slot(1)), (1, SlotTotals { requests: 1, expired: 1, ..slot(1) })];
    for events in [[timeout(2), expired(3)], [expired(2), timeout(3)], [timeout(3), expired(2)]] {
        check(
            &events,
            &slots,
            expect![[r#"
                lost a handshake-expired after 8000 ms
                slot 0: 0 = 0 accepted + 0 pending + 0 lost
                slot 1: 1 = 0 accepted + 0 pending + 1 lost
                  lost: handshake-expired 1
            "#]],
        );
    }
}

#[test]
fn a_timed_out_connect_and_a_syn_that_both_sides_counted_are_one_attempt() {
    check(
        &[
            at(1, EventKind::SynDropped, 7, new(Cause::AcceptQueueFull)),
            at(2, EventKind::ConnectFailed, 7, |e| (e.detail, e.flags, e.slot) = (110, flag::NEW_ATTEMPT, NO_LISTENER)),
            at(2, EventKind::ConnectFailed, 7, |e| (e.detail, e.flags, e.slot) = (110, flag::NEW_ATTEMPT, NO_LISTENER)),
        ],
        &[(NO_LISTENER, slot(1)), (1, slot(1))],
        expect![[r#"
            lost a accept-queue-full syn after 9000 ms
            slot 0: 0 = 0 accepted + 0 pending + 0 lost
            slot 1: 1 = 0 accepted + 0 pending + 1 lost
              lost: accept-queue-full 1
              at syn: 1
        "#]],
    );
}

#[test]
fn failures_of_connect_that_the_server_side_explains_are_no_attempts() {
    check(&[at(1, EventKind::ConnectFailed, 7, |e| (e.detail, e.slot) = (111, NO_LISTENER))], &[], expect![[""]]);
}

#[test]
fn a_syn_that_the_kernel_side_had_no_room_to_remember_is_counted_once() {
    check(
        &[
            at(1, EventKind::SynDropped, 7, new(Cause::AcceptQueueFull)),
            at(2, EventKind::SynDropped, 7, new(Cause::AcceptQueueFull)),
            at(4, EventKind::SynDropped, 7, new(Cause::AcceptQueueFull)),
        ],
        &[(1, slot(3))],
        expect![[r#"
            lost a accept-queue-full syn syn 2 after 9000 ms
            slot 1: 1 = 0 accepted + 0 pending + 1 lost
              lost: accept-queue-full 1
              at syn: 1
        "#]],
    );
}

#[test]
fn a_filter_before_the_listener_leaves_the_request_where_it_is() {
    check(
        &[
            at(1, EventKind::SynDropped, 7, new(Cause::HalfOpenQueueFull)),
            at(2, EventKind::SynQueued, 7, |_| {}),
            at(3, EventKind::SynDropped, 7, |e| (e.cause, e.detail) = (Cause::Filtered as u8, 9)),
        ],
        &[(1, SlotTotals { requests: 1, ..slot(1) })],
        expect![[r#"
            lost a filtered syn syn 2 reason 9 after 9000 ms
            slot 1: 1 = 0 accepted + 0 pending + 1 lost
              lost: filtered 1
        "#]],
    );
}

#[test]
fn accepted_before_the_queue_was_told_of_is_late_all_the_same() {
    check(
        &[
            at(1, EventKind::SynDropped, 7, new(Cause::AcceptQueueFull)),
            at(2, EventKind::Accepted, 7, |e| e.pid = 5),
            at(2, EventKind::ChildQueued, 7, |_| {}),
            at(2, EventKind::CompletedBy, 0, |e| e.flags = flag::DATA),
        ],
        &[(1, SlotTotals { requests: 1, children: 1, queued: 1, accepted: 1, ..slot(1) })],
        expect![[r#"
            late a accept-queue-full syn pid 5 after 1000 ms
            slot 1: 1 = 1 accepted + 0 pending + 0 lost
              late: accept-queue-full 1; ack 0 data 1 fin 0
        "#]],
    );
}

#[test]
fn counters_that_were_read_before_the_events_are_made_up_for() {
    check(
        &[at(1, EventKind::SynDropped, 7, new(Cause::AcceptQueueFull))],
        &[(1, SlotTotals { requests: 2, ..slot(2) })],
        expect![[r#"
            lost a accept-queue-full syn after 9000 ms
            slot 1: 2 = 0 accepted + 1 pending + 1 lost
              lost: accept-queue-full 1
              at syn: 1
              inconsistent: 1
        "#]],
    );
}

#[test]
fn a_group_counts_a_request_at_one_member_and_its_trouble_at_another() {
    let member = |totals: SlotTotals| SlotTotals { group: 1, ..totals };
    let other = |kind, fill: fn(&mut Event)| {
        at(1, kind, 7, |e| {
            e.slot = 2;
            fill(e);
        })
    };
    // Two SYNs were queued for the group, both counted at member 1. One belongs to member 2, which drops its ACK.
    check(
        &[other(EventKind::AckDropped, |e| e.cause = Cause::AcceptQueueFull as u8)],
        &[(1, member(SlotTotals { requests: 2, ..slot(2) })), (2, member(slot(0)))],
        expect![[r#"
            lost a accept-queue-full ack phantom after 9000 ms
            slot 1: 1 = 0 accepted + 1 pending + 0 lost
            slot 2: 1 = 0 accepted + 0 pending + 1 lost
              lost: accept-queue-full 1
              phantom: 1
        "#]],
    );
    // The same, and the request expires at member 2.
    check(
        &[other(EventKind::RequestExpired, |_| {})],
        &[(1, member(SlotTotals { requests: 2, ..slot(2) })), (2, member(SlotTotals { expired: 1, ..slot(0) }))],
        expect![[r#"
            lost a handshake-expired after 9000 ms
            slot 1: 1 = 0 accepted + 1 pending + 0 lost
            slot 2: 1 = 0 accepted + 0 pending + 1 lost
              lost: handshake-expired 1
        "#]],
    );
}

fn queued(queued: u64, accepted: u64, waiting: u64) -> SlotTotals {
    SlotTotals { requests: queued, children: queued, queued, accepted, waiting: Some(waiting), ..slot(queued) }
}

#[test]
fn what_the_accept_queue_does_not_hold_was_accepted_unseen() {
    check(
        &[],
        &[(1, queued(6, 2, 1))],
        expect![[r#"
            slot 1: 6 = 5 accepted + 1 pending + 0 lost
              accepted unseen: 3
        "#]],
    );
    // Connections from before the start make the queue longer.
    check(
        &[],
        &[(1, queued(6, 2, 7))],
        expect![[r#"
            slot 1: 6 = 2 accepted + 4 pending + 0 lost
        "#]],
    );
}

#[test]
fn what_a_closing_listener_did_not_hold_was_accepted_unseen() {
    let closed = |dropped, reset, totals| SlotTotals {
        closed: true,
        children_dropped: dropped,
        children_reset: reset,
        ..totals
    };
    check(
        &[],
        &[(1, closed(2, 0, queued(3, 0, 2)))],
        expect![[r#"
            slot 1: 3 = 1 accepted + 0 pending + 2 lost
              lost: listener-closed 2
              phantom: 2
              unlisted: 2
              accepted unseen: 1
        "#]],
    );
    // Two of those that went were from before the start.
    check(
        &[],
        &[(1, closed(1, 0, queued(2, 0, 3)))],
        expect![[r#"
            slot 1: 2 = 1 accepted + 0 pending + 1 lost
              lost: listener-closed 1
              phantom: 1
              unlisted: 1
              accepted unseen: 1
        "#]],
    );
    // Nobody tells when one that its client had reset goes with the listener.
    check(
        &[],
        &[(1, closed(1, 1, queued(2, 0, 2)))],
        expect![[r#"
            slot 1: 2 = 0 accepted + 0 pending + 2 lost
              lost: listener-closed 2
              phantom: 2
              unlisted: 2
        "#]],
    );
}

#[test]
fn what_a_closed_member_did_not_drop_has_migrated() {
    let member = |closed, totals| SlotTotals { group: 1, closed, ..totals };
    check(
        &[],
        &[(1, member(true, queued(6, 0, 6))), (2, member(false, queued(0, 4, 2)))],
        expect![[r#"
            slot 1: 0 = 0 accepted + 0 pending + 0 lost
            slot 2: 6 = 4 accepted + 2 pending + 0 lost
        "#]],
    );
    // Three had nowhere to go, and one of those that had was accepted unseen.
    let dropped = SlotTotals { children_dropped: 3, ..queued(6, 0, 6) };
    check(
        &[],
        &[(1, member(true, dropped)), (2, member(false, queued(0, 1, 1)))],
        expect![[r#"
            slot 1: 4 = 1 accepted + 0 pending + 3 lost
              lost: listener-closed 3
              phantom: 3
              unlisted: 3
              accepted unseen: 1
            slot 2: 2 = 1 accepted + 1 pending + 0 lost
        "#]],
    );
    // The other member has closed too.
    check(
        &[],
        &[(1, member(true, queued(6, 0, 6))), (2, member(true, queued(0, 4, 2)))],
        expect![[r#"
            slot 1: 2 = 0 accepted + 0 pending + 2 lost
              lost: listener-closed 2
              phantom: 2
              unlisted: 2
            slot 2: 4 = 4 accepted + 0 pending + 0 lost
        "#]],
    );
    // While counting goes on, nobody knows how long the queues are.
    let running = |closed, n, accepted| member(closed, SlotTotals { waiting: None, ..queued(n, accepted, 0) });
    check(
        &[],
        &[(1, running(true, 6, 0)), (2, running(false, 0, 4))],
        expect![[r#"
            slot 1: 0 = 0 accepted + 0 pending + 0 lost
            slot 2: 6 = 4 accepted + 2 pending + 0 lost
        "#]],
    );
}

#[test]
fn members_that_are_taken_for_each_other_at_accept_miss_nothing() {
    let member = |totals| SlotTotals { group: 1, ..totals };
    check(
        &[],
        &[(1, member(queued(5, 5, 2))), (2, member(queued(5, 1, 2)))],
        expect![[r#"
            slot 1: 5 = 5 accepted + 0 pending + 0 lost
            slot 2: 5 = 1 accepted + 4 pending + 0 lost
        "#]],
    );
}

#[test]
fn requests_of_a_closed_member_that_another_has_are_pending_there() {
    let member =
        |closed, requests, length| SlotTotals { group: 1, closed, requests, half_open: Some(length), ..slot(requests) };
    check(
        &[],
        &[(1, member(true, 3, 3)), (2, member(false, 1, 3))],
        expect![[r#"
            slot 1: 1 = 0 accepted + 0 pending + 1 lost
              lost: listener-closed 1
              unlisted: 1
            slot 2: 3 = 0 accepted + 3 pending + 0 lost
        "#]],
    );
}

#[test]
fn listeners_that_are_no_group_do_not_borrow_from_each_other() {
    check(
        &[at(1, EventKind::AckDropped, 7, |e| (e.cause, e.slot) = (Cause::AcceptQueueFull as u8, 2))],
        &[(1, SlotTotals { requests: 2, ..slot(2) }), (2, slot(1))],
        expect![[r#"
            lost a accept-queue-full ack phantom after 9000 ms
            slot 1: 2 = 0 accepted + 2 pending + 0 lost
            slot 2: 1 = 0 accepted + 0 pending + 1 lost
              lost: accept-queue-full 1
              phantom: 1
        "#]],
    );
}

#[test]
fn a_full_ledger_says_how_much_it_did_not_keep_and_forgets_what_is_over_first() {
    let mut ledger = Ledger::new(1);
    let client = |port: u8, kind, fill: &dyn Fn(&mut Event)| {
        let mut e = event(kind, tuple(u16::from(port)), u32::from(port), 1, SECOND);
        fill(&mut e);
        e
    };
    let dropped = |e: &mut Event| (e.cause, e.flags) = (Cause::AcceptQueueFull as u8, flag::NEW_ATTEMPT);
    let mut out = String::new();
    ledger.apply(&client(b'a', EventKind::SynDropped, &dropped), &mut |decision| line(&mut out, &decision));
    ledger.apply(&client(b'b', EventKind::SynDropped, &dropped), &mut |decision| line(&mut out, &decision));
    assert_eq!((ledger.len(), ledger.unstored()), (1, 1));
    ledger.apply(&client(b'a', EventKind::Accepted, &|_| {}), &mut |decision| line(&mut out, &decision));
    ledger.apply(&client(b'c', EventKind::SynDropped, &dropped), &mut |decision| line(&mut out, &decision));
    assert_eq!((ledger.len(), ledger.unstored()), (1, 1));
    finish(
        ledger,
        &[(1, SlotTotals { queued: 1, accepted: 1, ..slot(3) })],
        out,
        &expect![[r#"
            late a accept-queue-full syn after 0 ms
            lost c accept-queue-full syn after 9000 ms
            slot 1: 3 = 1 accepted + 0 pending + 2 lost
              lost: accept-queue-full 1 unattributed 1
              late: accept-queue-full 1; ack 1 data 0 fin 0
              at syn: 1
              unlisted: 1
        "#]],
    );
}

#[test]
fn a_tick_looks_at_a_bounded_number_and_comes_round() {
    let mut ledger = Ledger::new(100_000);
    let n = 20_000u32;
    for i in 0..n {
        let mut e = event(EventKind::SynDropped, tuple(i as u16), i + 1, 1, SECOND);
        e.flags = flag::NEW_ATTEMPT;
        ledger.apply(&e, &mut |_| {});
    }
    let mut decided = 0;
    ledger.tick(131 * SECOND, &mut |_| decided += 1);
    assert!((1..=n / 8).contains(&decided), "{decided} in one call");
    for _ in 0..32 {
        ledger.tick(131 * SECOND, &mut |_| decided += 1);
    }
    assert_eq!((decided, ledger.len()), (n, 0));
    assert_eq!(ledger.snapshot(&[(1, slot(u64::from(n)))])[0].1.lost[Cause::HalfOpenQueueFull], u64::from(n));
}

#[test]
fn connections_from_before_are_not_reconciled_and_unknown_kinds_are_counted() {
    let mut ledger = Ledger::new(10);
    let watch =
        Watch { isn: 3, slot: 1, state: state::EARLIER | state::TROUBLED | state::HALF_OPEN, ..Watch::default() };
    ledger.reconcile(&tuple(1), &watch);
    assert!(ledger.is_empty());
    ledger.apply(&at(1, EventKind::SynDropped, 1, |e| e.kind = 200), &mut |_| {});
    assert_eq!((ledger.unreadable(), ledger.len()), (1, 0));
}
