//! Attempts that the kernel side counts and does not tell: only numbers, and they balance.

use tracer_abi::abi::{CAUSES, Cause, UNTOLD_COOKIE};

use crate::ledger::{Account, Ledger, SlotTotals};

fn totals() -> SlotTotals {
    let mut untold = [0; CAUSES + 1];
    untold[Cause::HalfOpenQueueFull as usize] = 6;
    untold[Cause::AcceptQueueFull as usize] = 2;
    untold[UNTOLD_COOKIE] = 3;
    SlotTotals { attempts: 11, untold, ..SlotTotals::default() }
}

fn account(totals: SlotTotals) -> Account {
    let accounts = Ledger::new(16).finish(&[(1, totals)], 1, &mut |decision| panic!("nothing is told: {decision:?}"));
    let [(1, account)] = accounts[..] else { panic!("one listener: {accounts:?}") };
    assert!(account.balances(), "{account:?}");
    assert_eq!(account.inconsistent, 0);
    account
}

#[test]
fn they_are_lost_by_cause_or_wait_for_their_cookie() {
    let account = account(totals());
    assert_eq!((account.attempts, account.accepted, account.pending), (11, 0, 3));
    assert_eq!(account.lost[Cause::HalfOpenQueueFull], 6);
    assert_eq!(account.lost[Cause::AcceptQueueFull], 2);
    assert_eq!((account.lost.total(), account.lost_at_syn), (8, 2));
    assert_eq!((account.untold, account.unlisted), (8, 8));
}

#[test]
fn with_their_listener_the_cookies_are_lost() {
    let account = account(SlotTotals { closed: true, ..totals() });
    assert_eq!((account.pending, account.lost[Cause::ListenerClosed], account.lost.total()), (0, 3, 11));
    assert_eq!(account.untold, 11);
}

#[test]
fn what_one_cpu_adds_and_another_takes_away_is_nothing() {
    let mut totals = totals();
    // Promoted on a CPU that is read before the one where it was counted.
    totals.untold[Cause::NoMemory as usize] = 0u64.wrapping_sub(1);
    assert_eq!(account(totals).lost[Cause::NoMemory], 0);
}
