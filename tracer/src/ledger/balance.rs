//! The arithmetic: from the kernel side's exact counters and the verdicts on single attempts to accounts that balance.

use std::collections::{BTreeMap, BTreeSet};

use tracer_abi::abi::{Cause, Stage};

use super::account::{Account, ByCause, CompletedBy, Packets};
use super::entry::{Entry, Loss, Verdict, mark};
use super::totals::{SlotTotals, at_least_zero};

/// The verdicts on the attempts of one slot that are known one by one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Lost, except with an accept queue.
    lost: ByCause,
    lost_with_reset: u64,
    lost_at_syn: u64,
    phantom: u64,
    late: ByCause,
    completed_by: CompletedBy,
    /// Went with the accept queue of a listener that closed.
    queue_gone: u64,
    /// Of the lost, the ones whose request is still queued.
    lost_half_open: u64,
    /// Answered with a cookie, never dropped, cookie still good.
    cookie: u64,
    /// Attempts that the kernel side counted more than once here.
    pub(super) recounted: u64,
    /// Local connects without a port that were seen as events.
    pub(super) port_exhausted: u64,
}

impl Tally {
    /// Adds one attempt.
    pub(super) fn add(&mut self, entry: &Entry, verdict: Verdict) {
        match verdict {
            Verdict::Accepted { late: true } => {
                self.late[entry.cause] += 1;
                let by = &mut self.completed_by;
                *(if entry.has(mark::FIN) {
                    &mut by.fin
                } else if entry.has(mark::DATA) {
                    &mut by.data
                } else {
                    &mut by.ack
                }) += 1;
            }
            Verdict::Lost(loss) => self.lose(loss),
            Verdict::QueueGone => self.queue_gone += 1,
            Verdict::Cookie => self.cookie += 1,
            // These are in the kernel side's counters.
            Verdict::Accepted { late: false } | Verdict::Queued | Verdict::HalfOpen => {}
        }
    }

    /// Adds one attempt of which nothing more will be heard.
    pub(super) fn add_final(&mut self, entry: &Entry, verdict: Verdict) {
        match verdict {
            Verdict::Lost(loss) => self.lose(Loss { half_open: false, ..loss }),
            verdict => self.add(entry, verdict),
        }
    }

    fn lose(&mut self, loss: Loss) {
        self.lost[loss.cause] += 1;
        self.lost_half_open += u64::from(loss.half_open);
        self.lost_with_reset += u64::from(loss.reset);
        self.lost_at_syn += u64::from(loss.cause == Cause::AcceptQueueFull && loss.stage == Stage::Syn);
        self.phantom += u64::from(loss.phantom);
    }
}

/// How often attempts were counted in one slot and went on in another, by both.
pub(super) type Moves = BTreeMap<(u32, u32), u64>;

/// The accounts of all slots that have counters or verdicts, by slot.
pub(super) fn accounts(
    tallies: &BTreeMap<u32, Tally>,
    slots: &[(u32, SlotTotals)],
    closed: impl Fn(u32) -> bool,
    moves: &Moves,
) -> Vec<(u32, Account)> {
    let counters: BTreeMap<u32, &SlotTotals> = slots.iter().map(|(slot, totals)| (*slot, totals)).collect();
    let nothing = SlotTotals::default();
    let all: BTreeSet<u32> = counters.keys().chain(tallies.keys()).copied().collect();
    let mut drafts: BTreeMap<u32, Draft> = all
        .into_iter()
        .map(|slot| {
            let totals = counters.get(&slot).copied().unwrap_or(&nothing);
            (slot, Draft::new(totals, tallies.get(&slot).copied().unwrap_or_default(), closed(slot)))
        })
        .collect();
    settle_requests(&mut drafts);
    settle_queues(&mut drafts);
    let mut drafts: BTreeMap<u32, Sum> = drafts.into_iter().map(|(slot, draft)| (slot, draft.add_up())).collect();
    settle_attempts(&mut drafts, moves);
    drafts.into_iter().map(|(slot, sum)| (slot, sum.balance())).collect()
}

/// The counters and verdicts of a slot, before they are put together.
struct Draft<'a> {
    totals: &'a SlotTotals,
    tally: Tally,
    closed: bool,
    /// Requests that were never dropped.
    healthy: i64,
    /// Connections in the accept queue, or of which it is not known yet where they went from there.
    left: i64,
    /// Connections that went with the listener from its accept queue.
    gone: u64,
    /// Connections that left the accept queue by an `accept()` that was not seen.
    unseen: u64,
}

/// Of a SO_REUSEPORT group, the kernel side counts a queued SYN for one member, because it cannot tell which one took
/// it, and the end of the request for the right one. So what is missing at the one is too much at the other.
fn settle_requests(drafts: &mut BTreeMap<u32, Draft<'_>>) {
    let mut spare: BTreeMap<u32, i64> = BTreeMap::new();
    for draft in drafts.values().filter(|draft| draft.totals.group != 0) {
        *spare.entry(draft.totals.group).or_default() += draft.healthy.max(0);
    }
    let mut taken: BTreeMap<u32, i64> = BTreeMap::new();
    for draft in drafts.values_mut().filter(|draft| draft.healthy < 0) {
        if let Some(spare) = spare.get_mut(&draft.totals.group) {
            let n = (*spare).min(-draft.healthy);
            *spare -= n;
            draft.healthy += n;
            *taken.entry(draft.totals.group).or_default() += n;
        }
    }
    for draft in drafts.values_mut().filter(|draft| draft.healthy > 0) {
        if let Some(taken) = taken.get_mut(&draft.totals.group) {
            let n = (*taken).min(draft.healthy);
            *taken -= n;
            draft.healthy -= n;
        }
    }
}

/// What became of the connections that nobody was seen to accept: at their end accept queues are as long as the kernel says.
///
/// They can be at another member of a SO_REUSEPORT group than the one where they were queued, if that has closed
/// (`tcp_migrate_req`). The kernel's queues can be longer than what is counted, by connections that waited before counting
/// began, but not shorter.
fn settle_queues(drafts: &mut BTreeMap<u32, Draft<'_>>) {
    let mut groups: BTreeMap<(u32, u32), Vec<&mut Draft<'_>>> = BTreeMap::new();
    for (slot, draft) in drafts {
        let group = draft.totals.group;
        groups.entry(if group == 0 { (0, *slot) } else { (group, 0) }).or_default().push(draft);
    }
    for (_, mut members) in groups {
        // Closed ones give first: from an open one nothing migrates.
        members.sort_by_key(|member| !member.closed);
        let mut missing: i64 = members.iter().map(|member| member.left.min(0)).sum();
        for member in &mut members {
            let n = member.left.max(0).min(-missing);
            member.left = member.left.max(0) - n;
            missing += n;
        }
        let closed = members.partition_point(|member| member.closed);
        let alone = members.len() == 1;
        let (closed, open) = members.split_at_mut(closed);
        if open.is_empty() {
            closed.iter_mut().for_each(|member| member.close_queue(alone));
        } else {
            migrate(closed, open);
            find_unseen(open);
        }
    }
}

/// What closed members of a group had, and is neither closed nor accepted, waits at the open ones, as far as these have it.
fn migrate(closed: &mut [&mut Draft<'_>], open: &mut [&mut Draft<'_>]) {
    for member in closed {
        let dead = member.dead();
        if member.totals.waiting.is_none() {
            member.lose(dead);
        }
        for other in open.iter_mut() {
            let length = other.totals.waiting.map_or(i64::MAX, u64::cast_signed);
            let n = member.left.min(length.saturating_sub(other.left).max(0));
            member.left -= n;
            other.left += n;
            let length = other.totals.half_open.map_or(0, u64::cast_signed);
            let n = member.healthy.min(length.saturating_sub(other.healthy.max(0))).max(0);
            member.healthy -= n;
            other.healthy = other.healthy.max(0) + n;
        }
        // The kernel tells nobody when it closes a connection that its client has reset.
        member.lose(dead);
        member.unseen = member.left.unsigned_abs();
        member.left = 0;
    }
}

/// What the queues of open listeners ought to have, and do not, was accepted unseen. A group is looked at as a whole, because an
/// `accept()` can be counted for another member.
fn find_unseen(open: &mut [&mut Draft<'_>]) {
    let excess = |member: &Draft<'_>| member.totals.waiting.map_or(0, |length| member.left - length.cast_signed());
    let mut unseen: i64 = open.iter().map(|member| excess(member)).sum();
    for member in open {
        let n = excess(member).min(unseen).max(0);
        member.left -= n;
        member.unseen += n.unsigned_abs();
        unseen -= n;
    }
}

impl<'a> Draft<'a> {
    fn new(totals: &'a SlotTotals, tally: Tally, closed: bool) -> Draft<'a> {
        let healthy = totals.half_open_now().saturating_sub_unsigned(tally.lost_half_open);
        let gone = totals.children_dropped.max(tally.queue_gone);
        let left = totals.not_accepted().saturating_sub_unsigned(gone);
        // Without a group there is nobody that it could be missing for.
        let left = if totals.group == 0 { left.max(0) } else { left };
        Draft { totals, tally, closed, healthy, left, gone, unseen: 0 }
    }

    /// Connections that could have gone with the listener though it was not told: their clients had reset them.
    fn dead(&self) -> u64 {
        self.totals.children_reset
    }

    /// Takes at most `n` connections as gone with their listener.
    fn lose(&mut self, n: u64) {
        let n = self.left.max(0).unsigned_abs().min(n);
        self.left -= n.cast_signed();
        self.gone += n;
    }

    /// Nothing can have migrated: what was in the queue when the listener closed went with it.
    fn close_queue(&mut self, alone: bool) {
        let most = match self.totals.waiting {
            None => u64::MAX,
            Some(length) => {
                // Of the last member of a group, not every connection is told.
                let known = if alone { self.dead() } else { u64::MAX };
                length.saturating_sub(self.gone).min(known)
            }
        };
        self.lose(most);
        self.unseen = self.left.max(0).unsigned_abs();
        self.left = 0;
    }

    fn add_up(self) -> Sum {
        let Draft { totals, tally, closed, healthy, left, gone, unseen } = self;
        let mut account = Account {
            accepted: at_least_zero(totals.accepted) + unseen,
            accepted_unseen: unseen,
            lost: tally.lost,
            lost_with_reset: tally.lost_with_reset,
            lost_at_syn: tally.lost_at_syn,
            late: tally.late,
            completed_by: tally.completed_by,
            phantom: tally.phantom,
            dead_on_arrival: totals.dead_on_arrival,
            packets: packets(totals),
            ..Account::default()
        };

        // The accept queue: what left it with the listener is lost, and every client believed itself connected.
        account.lost[Cause::ListenerClosed] += gone;
        account.phantom += gone;
        account.unlisted += gone - tally.queue_gone;

        // The requests that were never dropped: pending, unless their listener has closed.
        let healthy = healthy.max(0).unsigned_abs();
        if closed {
            account.lost[Cause::ListenerClosed] += healthy;
            account.unlisted += healthy;
        } else {
            account.pending = left.max(0).unsigned_abs() + healthy + tally.cookie;
        }

        // What was counted and not told: its cause is known, and nobody's address.
        for (cause, n) in totals.untold_lost() {
            account.lost[cause] += n;
            account.unlisted += n;
            account.untold += n;
        }
        account.lost_at_syn += at_least_zero(totals.untold[Cause::AcceptQueueFull as usize]);
        let cookies = totals.untold_cookies();
        if closed {
            account.lost[Cause::ListenerClosed] += cookies;
            account.unlisted += cookies;
            account.untold += cookies;
        } else {
            account.pending += cookies;
        }

        // Connects without a port: the counter is exact, whatever became of the events.
        account.lost[Cause::PortExhaustion] += totals.port_exhausted;
        account.unlisted += totals.port_exhausted.saturating_sub(tally.port_exhausted);

        Sum { account, group: totals.group, attempts: totals.attempts_here().saturating_sub(tally.recounted) }
    }
}

/// An account that need not balance yet.
struct Sum {
    account: Account,
    group: u32,
    attempts: u64,
}

/// Moves attempts to where they went on: where entries say so, and within groups, as far as an attempt is missing
/// there.
fn settle_attempts(sums: &mut BTreeMap<u32, Sum>, moves: &Moves) {
    for ((from, to), times) in moves {
        transfer(sums, *from, *to, *times);
    }
    let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (slot, sum) in sums.iter().filter(|(_, sum)| sum.group != 0) {
        groups.entry(sum.group).or_default().push(*slot);
    }
    for members in groups.values() {
        let has = |which: fn(&Sum) -> u64| members.iter().copied().filter(|slot| which(&sums[slot]) > 0).collect();
        let (spare, short): (Vec<u32>, Vec<u32>) = (has(Sum::spare), has(Sum::short));
        for to in short {
            for from in &spare {
                transfer(sums, *from, to, u64::MAX);
            }
        }
    }
}

fn transfer(sums: &mut BTreeMap<u32, Sum>, from: u32, to: u32, limit: u64) {
    let (Some(source), Some(target)) = (sums.get(&from), sums.get(&to)) else { return };
    let n = source.spare().min(target.short()).min(limit);
    for (slot, attempts) in [(from, source.attempts - n), (to, target.attempts + n)] {
        if let Some(sum) = sums.get_mut(&slot) {
            sum.attempts = attempts;
        }
    }
}

impl Sum {
    fn explained(&self) -> u64 {
        self.account.accepted + self.account.pending + self.account.lost.total()
    }

    /// Attempts that nothing explains.
    fn spare(&self) -> u64 {
        self.attempts.saturating_sub(self.explained())
    }

    /// Attempts that are missing.
    fn short(&self) -> u64 {
        self.explained().saturating_sub(self.attempts)
    }

    fn balance(self) -> Account {
        let (spare, short) = (self.spare(), self.short());
        let Sum { mut account, attempts, .. } = self;
        account.attempts = attempts;
        account.lost[Cause::Unattributed] += spare;
        account.unlisted += spare;
        let counted_twice = short.min(account.pending);
        account.pending -= counted_twice;
        account.attempts += short - counted_twice;
        account.inconsistent = short;
        account
    }
}

fn packets(totals: &SlotTotals) -> Packets {
    Packets {
        syn: at_least_zero(totals.syn),
        syn_dropped: ByCause(totals.syn_dropped),
        syn_dropped_reserve: totals.reserve,
        synack: totals.requests_here(),
        synack_cookie: totals.cookies,
        synack_retransmitted: totals.synack_retransmitted,
        ack_dropped: ByCause(totals.ack_dropped),
        cookie_ack_accepted: totals.cookie_acks,
        cookie_ack_invalid: totals.cookie_invalid,
        cookie_ack_unused: totals.cookie_unused,
    }
}
