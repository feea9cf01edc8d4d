//! The ledger: what became of every connection attempt. Pure: time arrives in events, and nothing is read or printed
//! here.
//!
//! ```text
//! SlotTotals (exact, healthy and troubled alike) ---------+
//! Event -> Entry (one per troubled attempt) -> Verdict -> Tally -> Account, which balances
//!                                                 +----> Decision, once per lost or late attempt
//! ```
//!
//! The kernel side counts attempts, requests, queued and accepted connections exactly, and tells of trouble in events.
//! So the ledger keeps an `Entry` for a troubled attempt only, and takes the healthy ones as what the
//! counters have beyond the entries. What no entry explains is `unattributed`.

mod account;
mod balance;
mod decision;
mod entry;
mod forgotten;
#[cfg(test)]
mod tests;
mod totals;

use std::collections::BTreeMap;

use indexmap::IndexMap;
use tracer_abi::abi::{Cause, Event, EventKind, NO_LISTENER, Stage, Tuple, Watch, flag, state};

pub use account::{Account, ByCause, CompletedBy, Packets};
use balance::{Moves, Tally};
pub use decision::{Decision, Outcome};
use entry::{At, Entry, Phase, Verdict, mark};
use forgotten::Forgotten;
pub use totals::SlotTotals;

/// `errno` of a `connect()` that found no free local port.
const EADDRNOTAVAIL: u32 = 99;
/// `errno` of a `connect()` that timed out.
const ETIMEDOUT: u32 = 110;

/// How long an attempt may be silent before [`Ledger::tick`] closes it, nanoseconds: longer than the longest pause
/// between two retransmissions (`TCP_RTO_MAX`, 120 s).
pub const IDLE_NS: u64 = 130_000_000_000;

/// Attempts that there is room for from the start: as many as the kernel side remembers.
const AT_ONCE: usize = 131_072;

/// Attempts that [`Ledger::tick`] looks at, at least, and how many calls make a round of all of them.
const TICK_VISITS: usize = 1024;
const TICK_ROUND: usize = 16;

/// Entries looked at to make room for a new one when the ledger is full.
const EVICT_VISITS: usize = 64;

/// One entry per troubled attempt, and the arithmetic that turns them and the kernel side's counters into accounts.
#[derive(Debug)]
pub struct Ledger {
    /// The latest attempt of each tuple.
    entries: IndexMap<Tuple, Entry>,
    /// Earlier attempts of a tuple that still wait in an accept queue: the client reset them, and `accept()` will
    /// return them.
    waiting: BTreeMap<(Tuple, u32), Entry>,
    /// Attempts of which nothing more will be heard.
    settled: BTreeMap<u32, Tally>,
    forgotten: Forgotten,
    moves: Moves,
    /// When listeners closed; 0 if that is not known.
    closed: BTreeMap<u32, u64>,
    capacity: usize,
    /// Where the next look at idle entries begins.
    cursor: usize,
    latest_ns: u64,
    unstored: u64,
    unreadable: u64,
}

impl Ledger {
    /// A ledger that keeps at most `capacity` attempts at a time, about 130 bytes each. Verdicts on attempts beyond
    /// that are `unattributed`.
    #[must_use]
    pub fn new(capacity: usize) -> Ledger {
        Ledger {
            // Pages that nothing is written to take no memory, and a table that grows would be there twice.
            entries: IndexMap::with_capacity(capacity.min(AT_ONCE)),
            waiting: BTreeMap::new(),
            settled: BTreeMap::new(),
            forgotten: Forgotten::default(),
            moves: Moves::new(),
            closed: BTreeMap::new(),
            capacity,
            cursor: 0,
            latest_ns: 0,
            unstored: 0,
            unreadable: 0,
        }
    }

    /// Attempts that are kept now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len() + self.waiting.len()
    }

    /// Whether no attempt is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Events, and entries of the kernel's watch map, that told of a new attempt when the ledger was full.
    #[must_use]
    pub fn unstored(&self) -> u64 {
        self.unstored
    }

    /// Events of a kind that this version does not know.
    #[must_use]
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// Takes note of an event, and hands out what it decides.
    ///
    /// Late connections are decided when they are accepted. Lost ones are decided here only if nothing can bring them
    /// back: a connect without a free port, a refused SYN, a connection that went with its listener's accept queue, and
    /// an attempt whose tuple begins another one. The others are decided by [`tick`](Ledger::tick) and
    /// [`finish`](Ledger::finish).
    pub fn apply(&mut self, event: &Event, decide: &mut dyn FnMut(Decision)) {
        self.latest_ns = self.latest_ns.max(event.time_ns);
        let Some(kind) = EventKind::from_u8(event.kind) else {
            self.unreadable += 1;
            return;
        };
        match kind {
            // A slot is not used twice.
            EventKind::ListenerOpened => {}
            EventKind::ListenerClosed => {
                self.closed.entry(event.slot).or_insert(event.time_ns);
            }
            EventKind::ConnectFailed => self.connect_failed(event, decide),
            // The client reset it while it waited: accept() will return it all the same.
            EventKind::ChildClosed if event.flags & flag::LISTENER_CLOSED == 0 => {}
            _ => self.attempt(event, kind, decide),
        }
    }

    fn attempt(&mut self, event: &Event, kind: EventKind, decide: &mut dyn FnMut(Decision)) {
        let closed = event.flags & flag::LISTENER_CLOSED != 0
            || self.closed.get(&event.slot).is_some_and(|closed_ns| *closed_ns <= event.time_ns);
        let at = At { time_ns: event.time_ns, pid: 0, comm: [0; _] };
        let mut fresh = false;
        let is_waiting = |ledger: &Ledger| event.isn != 0 && ledger.waiting.contains_key(&(event.tuple, event.isn));
        let entry = match self.entries.get_index_of(&event.tuple) {
            Some(index) if !is_waiting(self) && self.entries[index].is_meant_by(event, kind) => {
                &mut self.entries[index]
            }
            _ if let Some(key) = self.waiting_key(event) => {
                self.waiting_attempt(key, event, kind, decide);
                return;
            }
            _ if kind == EventKind::ChildClosed => {
                // A healthy one: nothing was known of it, and nothing more will be.
                if !self.forgotten.has(&event.tuple, event.isn) {
                    self.unheard_of(event.isn, event.slot);
                    let mut entry = Entry::new(event.isn, event.slot, event.time_ns);
                    entry.phase = Phase::QueueGone;
                    self.settle(&event.tuple, entry, at, decide);
                }
                return;
            }
            // About an attempt before this one, and too late to tell of it.
            Some(index)
                if matches!(kind, EventKind::Accepted | EventKind::CompletedBy)
                    || event.time_ns < self.entries[index].first_ns =>
            {
                return;
            }
            Some(index) => {
                self.supersede(index, &event.tuple, at, decide);
                fresh = true;
                let (index, _) =
                    self.entries.insert_full(event.tuple, Entry::new(event.isn, event.slot, event.time_ns));
                &mut self.entries[index]
            }
            None if kind == EventKind::CompletedBy => return,
            // It was lost, after the longest silence there can be.
            None if event.flags & flag::NEW_ATTEMPT == 0 && self.forgotten.has(&event.tuple, event.isn) => return,
            None => {
                if !self.make_room() {
                    self.unstored += 1;
                    return;
                }
                fresh = true;
                if event.flags & flag::NEW_ATTEMPT == 0 {
                    self.unheard_of(event.isn, event.slot);
                }
                self.entries.entry(event.tuple).or_insert(Entry::new(event.isn, event.slot, event.time_ns))
            }
        };

        let new = event.flags & flag::NEW_ATTEMPT != 0;
        if entry.only_at_client() {
            // The client counted it where no listener is, and the server counted it too.
            self.settled.entry(NO_LISTENER).or_default().recounted += 1;
            entry.slot = event.slot;
        } else if !fresh && new && event.isn != 0 && event.time_ns > entry.counted_ns.max(entry.first_ns) {
            // The kernel side had forgotten it, for want of room in its map, and took a resent SYN for a first one.
            self.settled.entry(event.slot).or_default().recounted += 1;
        }
        if event.time_ns >= entry.last_ns
            && let Some(left) = entry.follow(event.slot)
        {
            *self.moves.entry((left, event.slot)).or_default() += 1;
        }
        entry.take(event, kind, closed, fresh);

        let at = if kind == EventKind::Accepted { At { pid: event.pid, comm: event.comm, ..at } } else { at };
        if entry.phase == Phase::Accepted || entry.is_lost_for_good() {
            let verdict = entry.verdict(None, event.time_ns);
            if let Some(decision) = entry.decide(&event.tuple, verdict, at) {
                decide(decision);
            }
        }
    }

    /// The attempt of this tuple in the accept queue, other than the latest one, that an event means.
    fn waiting_key(&self, event: &Event) -> Option<(Tuple, u32)> {
        let isns = if event.isn == 0 { 0..=u32::MAX } else { event.isn..=event.isn };
        let keys = (event.tuple, *isns.start())..=(event.tuple, *isns.end());
        self.waiting.range(keys).next().map(|(key, _)| *key)
    }

    /// An event about an attempt whose tuple has begun another one, while it waits in the accept queue.
    fn waiting_attempt(&mut self, key: (Tuple, u32), event: &Event, kind: EventKind, decide: &mut dyn FnMut(Decision)) {
        let Some(entry) = self.waiting.get_mut(&key) else { return };
        if let Some(left) = entry.follow(event.slot) {
            *self.moves.entry((left, event.slot)).or_default() += 1;
        }
        entry.take(event, kind, false, false);
        if entry.is_final() {
            let entry = *entry;
            self.waiting.remove(&key);
            self.settle(&event.tuple, entry, At { time_ns: event.time_ns, pid: event.pid, comm: event.comm }, decide);
        }
    }

    /// A local `connect()` failed, and the kernel side counted it as an attempt of its own.
    fn connect_failed(&mut self, event: &Event, decide: &mut dyn FnMut(Decision)) {
        if event.flags & flag::NEW_ATTEMPT == 0 {
            return;
        }
        let cause = match event.detail {
            EADDRNOTAVAIL => Cause::PortExhaustion,
            ETIMEDOUT => Cause::Unanswered,
            _ => Cause::Unattributed,
        };
        let at = At { time_ns: event.time_ns, pid: event.pid, comm: event.comm };
        if cause == Cause::PortExhaustion {
            // It has no client port, so its tuple is that of every other one.
            let mut entry = Entry::new(0, NO_LISTENER, event.time_ns);
            entry.trouble(cause, Stage::None, event.time_ns);
            self.settled.entry(NO_LISTENER).or_default().port_exhausted += 1;
            let verdict = entry.verdict(None, event.time_ns);
            if let Some(decision) = entry.decide(&event.tuple, verdict, at) {
                decide(decision);
            }
            return;
        }
        match self.entries.get_index_of(&event.tuple) {
            Some(index) if self.entries[index].failed_in(event) => {
                let entry = &mut self.entries[index];
                if entry.has(mark::AT_SERVER) && !entry.has(mark::AT_CLIENT) {
                    entry.marks |= mark::AT_CLIENT;
                    self.settled.entry(NO_LISTENER).or_default().recounted += 1;
                }
                return;
            }
            Some(index) if event.time_ns < self.entries[index].first_ns => return,
            Some(index) => self.supersede(index, &event.tuple, at, decide),
            None if !self.make_room() => {
                self.unstored += 1;
                return;
            }
            None => {}
        }
        let mut entry = Entry::new(event.isn, NO_LISTENER, event.time_ns);
        entry.trouble(cause, Stage::None, event.time_ns);
        entry.marks |= mark::AT_CLIENT;
        entry.pid = event.pid;
        self.entries.insert(event.tuple, entry);
    }

    /// Closes gaps that lost events left, from the kernel side's own memory of a troubled attempt, at the end of a run.
    ///
    /// What the ledger knows already is left as it is, so the whole watch map can be given, more than once.
    pub fn reconcile(&mut self, tuple: &Tuple, watch: &Watch) {
        if watch.state & state::EARLIER != 0 {
            return;
        }
        let entry = match self.entries.get_index_of(tuple) {
            Some(index) if watch.isn == 0 || [0, watch.isn].contains(&self.entries[index].isn) => {
                self.entries[index].isn = watch.isn.max(self.entries[index].isn);
                &mut self.entries[index]
            }
            Some(_) if self.waiting.contains_key(&(*tuple, watch.isn)) => {
                if let Some(entry) = self.waiting.get_mut(&(*tuple, watch.isn)) {
                    entry.reconcile(watch, false);
                }
                return;
            }
            Some(index) if watch.first_ns < self.entries[index].first_ns => return,
            None if self.forgotten.may_have(tuple, watch.isn) => return,
            _ => {
                if !self.make_room() {
                    self.unstored += 1;
                    return;
                }
                if let Some(older) = self.entries.get(tuple).copied() {
                    // Its line falls due at the end, with the others.
                    self.waiting.insert((*tuple, older.isn), older);
                }
                self.unheard_of(watch.isn, watch.slot);
                let mut entry = Entry::new(watch.isn, watch.slot, watch.first_ns);
                entry.reconcile(watch, true);
                self.entries.insert(*tuple, entry);
                return;
            }
        };
        if entry.only_at_client() {
            self.settled.entry(NO_LISTENER).or_default().recounted += 1;
            entry.slot = watch.slot;
        } else if let Some(left) = entry.follow(watch.slot) {
            *self.moves.entry((left, watch.slot)).or_default() += 1;
        }
        entry.reconcile(watch, false);
    }

    /// Closes attempts that have been silent for [`IDLE_NS`]: decides the lost ones, and forgets what is over.
    ///
    /// Bounded work: a call looks at a sixteenth of the attempts (at least 1024). What waits in an accept queue is kept
    /// for as long as it waits. `now_ns` is of `CLOCK_MONOTONIC`.
    pub fn tick(&mut self, now_ns: u64, decide: &mut dyn FnMut(Decision)) {
        self.latest_ns = self.latest_ns.max(now_ns);
        let visits = (self.entries.len() / TICK_ROUND).max(TICK_VISITS).min(self.entries.len());
        for _ in 0..visits {
            let Some((tuple, entry)) = self.at_cursor() else { return };
            if entry.phase != Phase::Queued && entry.last_ns.saturating_add(IDLE_NS) <= now_ns {
                // The last entry takes its place, so the cursor stays.
                self.entries.swap_remove_index(self.cursor);
                self.settle(&tuple, entry, At { time_ns: now_ns, ..At::default() }, decide);
            } else {
                self.cursor += 1;
            }
        }
    }

    /// The accounts of all slots now, by slot: those given, and those that events told of.
    ///
    /// Every account balances. The kernel side's counters and the events are read one after the other, so while
    /// connections are made, the difference shows as `unattributed` or `inconsistent` for a moment.
    #[must_use]
    pub fn snapshot(&self, slots: &[(u32, SlotTotals)]) -> Vec<(u32, Account)> {
        let mut closed = self.closed.clone();
        for (slot, _) in slots.iter().filter(|(_, totals)| totals.closed) {
            closed.entry(*slot).or_insert(0);
        }
        let mut tallies = self.settled.clone();
        for entry in self.entries.values().chain(self.waiting.values()) {
            let verdict = entry.verdict(closed.get(&entry.slot).copied(), self.latest_ns);
            tallies.entry(entry.slot).or_default().add(entry, verdict);
        }
        balance::accounts(&tallies, slots, |slot| closed.contains_key(&slot), &self.moves)
    }

    /// The final accounts, by slot, after the last decisions. `slots` are the counters after counting ended.
    ///
    /// Decisions come in the order in which the attempts began.
    pub fn finish(
        mut self,
        slots: &[(u32, SlotTotals)],
        now_ns: u64,
        decide: &mut dyn FnMut(Decision),
    ) -> Vec<(u32, Account)> {
        self.latest_ns = self.latest_ns.max(now_ns);
        for (slot, _) in slots.iter().filter(|(_, totals)| totals.closed) {
            self.closed.entry(*slot).or_insert(0);
        }
        let accounts = self.snapshot(slots);
        let waiting = std::mem::take(&mut self.waiting).into_iter().map(|((tuple, _), entry)| (tuple, entry));
        let mut rest: Vec<(Tuple, Entry)> = self.entries.drain(..).chain(waiting).collect();
        rest.sort_unstable_by_key(|(tuple, entry)| (entry.first_ns, *tuple, entry.isn));
        for (tuple, mut entry) in rest {
            let closed_ns = self.closed.get(&entry.slot).copied();
            let verdict = entry.verdict(closed_ns, self.latest_ns);
            let at = At { time_ns: self.latest_ns, ..At::default() };
            if let Some(decision) = entry.decide(&tuple, verdict, at) {
                decide(decision);
            }
        }
        accounts
    }

    /// Another attempt begins where this one was: it is over, unless it still waits in an accept queue.
    fn supersede(&mut self, index: usize, tuple: &Tuple, at: At, decide: &mut dyn FnMut(Decision)) {
        let entry = self.entries[index];
        if entry.phase == Phase::Queued && !self.closed.contains_key(&entry.slot) {
            if self.make_room() {
                self.waiting.insert((*tuple, entry.isn), entry);
            } else {
                self.unstored += 1;
            }
        } else {
            self.settle(tuple, entry, at, decide);
        }
    }

    /// Of an attempt, the beginning was not told: it went well, or its event was lost, and then it was perhaps counted
    /// where nobody listened. The latter is assumed only if an attempt is missing here and one is left over there.
    fn unheard_of(&mut self, isn: u32, slot: u32) {
        if isn != 0 {
            *self.moves.entry((NO_LISTENER, slot)).or_default() += 1;
        }
    }

    /// Takes an attempt of which nothing more will be heard into the sums.
    fn settle(&mut self, tuple: &Tuple, mut entry: Entry, at: At, decide: &mut dyn FnMut(Decision)) {
        let closed_ns = self.closed.get(&entry.slot).copied();
        // A cookie that was not used by now will not be.
        let verdict = entry.verdict(closed_ns, u64::MAX);
        self.settled.entry(entry.slot).or_default().add_final(&entry, verdict);
        if entry.isn != 0 && matches!(verdict, Verdict::Lost(_) | Verdict::QueueGone) {
            // The kernel side can still have it in its map.
            self.forgotten.insert(tuple, entry.isn, self.capacity);
        }
        if let Some(decision) = entry.decide(tuple, verdict, at) {
            decide(decision);
        }
    }

    /// Whether there is room for one more attempt, after forgetting one that is over if need be.
    fn make_room(&mut self) -> bool {
        if self.len() < self.capacity {
            return true;
        }
        for _ in 0..EVICT_VISITS.min(self.entries.len()) {
            let Some((tuple, entry)) = self.at_cursor() else { return false };
            if entry.is_final() && (entry.has(mark::DECIDED) || !entry.has(mark::TROUBLED)) {
                self.entries.swap_remove_index(self.cursor);
                self.settle(&tuple, entry, At::default(), &mut |_| {});
                return true;
            }
            self.cursor += 1;
        }
        false
    }

    /// The entry at the cursor, which goes round.
    fn at_cursor(&mut self) -> Option<(Tuple, Entry)> {
        if self.cursor >= self.entries.len() {
            self.cursor = 0;
        }
        self.entries.get_index(self.cursor).map(|(tuple, entry)| (*tuple, *entry))
    }
}
