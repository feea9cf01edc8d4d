//! The laws, over histories that nobody thought of.

use std::collections::{BTreeMap, HashSet};

use proptest::collection::vec;
use proptest::prelude::*;
use tracer_abi::abi::{CAUSES, Cause, Event, Watch, flag};

use super::attempt::{Ack, SECOND, Syn, tuple};
use super::kernel::Kernel;
use super::truth::essence;
use crate::ledger::{Account, Decision, Ledger, Outcome, SlotTotals};

const SLOTS: [u32; 2] = [1, 2];
const CLIENTS: u16 = 4;

/// One step of the model; impossible ones do nothing.
#[derive(Clone, Copy, Debug)]
enum Step {
    Syn(usize, Syn),
    Ack(usize, Ack),
    SynAckAgain(usize),
    Expire(usize),
    Rst(usize),
    Accept(usize),
    Again(usize),
    Unanswered(usize),
    Exhaust,
    Close(u32),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..usize::from(CLIENTS);
    let cause = || prop::sample::select(vec![Cause::HalfOpenQueueFull, Cause::AcceptQueueFull, Cause::NoMemory]);
    let syn = prop_oneof![
        3 => Just(Syn::Queued),
        2 => Just(Syn::Cookie),
        2 => cause().prop_map(Syn::Dropped),
        1 => Just(Syn::Refused),
        1 => (1u32..100).prop_map(Syn::Filtered),
    ];
    let ack = prop_oneof![
        3 => prop::sample::select(vec![0, flag::DATA, flag::FIN, flag::DATA | flag::FIN]).prop_map(Ack::Child),
        2 => cause().prop_map(Ack::Dropped),
        1 => cause().prop_map(Ack::DroppedWithReset),
        1 => Just(Ack::Invalid),
    ];
    prop_oneof![
        12 => (client.clone(), syn).prop_map(|(i, syn)| Step::Syn(i, syn)),
        12 => (client.clone(), ack).prop_map(|(i, ack)| Step::Ack(i, ack)),
        3 => client.clone().prop_map(Step::SynAckAgain),
        3 => client.clone().prop_map(Step::Expire),
        3 => client.clone().prop_map(Step::Rst),
        8 => client.clone().prop_map(Step::Accept),
        6 => client.clone().prop_map(Step::Again),
        1 => client.prop_map(Step::Unanswered),
        1 => Just(Step::Exhaust),
        1 => prop::sample::select(SLOTS.to_vec()).prop_map(Step::Close),
        3 => (1u64..150).prop_map(Step::Wait),
    ]
}

/// The model with one current attempt for each client.
struct Run {
    kernel: Kernel,
    current: Vec<usize>,
    /// When something happened to each attempt.
    touched_ns: BTreeMap<usize, u64>,
    /// Whether clients come back after a silence that is longer than any retransmission timer.
    patient: bool,
}

impl Run {
    fn new() -> Run {
        let mut kernel = Kernel::new();
        let current = (0..CLIENTS).map(|n| kernel.client(1000 + n, SLOTS[usize::from(n) % SLOTS.len()])).collect();
        for slot in SLOTS {
            kernel.slots.entry(slot).or_default();
        }
        Run { kernel, current, touched_ns: BTreeMap::new(), patient: true }
    }

    fn take(&mut self, step: Step) {
        self.kernel.now_ns += SECOND / 1000;
        let now_ns = self.kernel.now_ns;
        let client = match step {
            Step::Syn(i, _) | Step::Ack(i, _) | Step::SynAckAgain(i) | Step::Expire(i) | Step::Rst(i) => {
                Some(self.current[i])
            }
            _ => None,
        };
        if let Some(at) = client {
            let silent_ns = now_ns - self.touched_ns.get(&at).copied().unwrap_or(now_ns);
            if !self.patient && !self.kernel.attempts[at].is_queued() && silent_ns > 120 * SECOND {
                return;
            }
        }
        if self.happens(step)
            && let Some(at) = client
        {
            self.touched_ns.insert(at, now_ns);
        }
    }

    /// Whether the step was possible.
    fn happens(&mut self, step: Step) -> bool {
        let kernel = &mut self.kernel;
        match step {
            Step::Syn(i, syn) => kernel.syn(self.current[i], syn),
            Step::Ack(i, ack) => kernel.ack(self.current[i], ack),
            Step::SynAckAgain(i) => kernel.synack_again(self.current[i]),
            Step::Expire(i) => kernel.expire(self.current[i]),
            Step::Rst(i) => kernel.rst(self.current[i]),
            // The oldest of this client, as the accept queue would give it.
            Step::Accept(i) => (0..kernel.attempts.len())
                .any(|at| usize::from(kernel.attempts[at].client_port()) == 1000 + i && kernel.accept(at)),
            Step::Again(i) => kernel.again(self.current[i]).map(|next| self.current[i] = next).is_some(),
            Step::Unanswered(i) => kernel.unanswered(self.current[i]),
            Step::Exhaust => {
                kernel.exhaust();
                true
            }
            Step::Close(slot) => kernel.close(slot),
            Step::Wait(seconds) => {
                for _ in 0..2 {
                    kernel.now_ns += seconds * SECOND / 2;
                    // A request is never silent for longer than the longest pause between two SYN-ACKs.
                    for at in 0..kernel.attempts.len() {
                        if kernel.synack_again(at) {
                            self.touched_ns.insert(at, kernel.now_ns);
                        }
                    }
                }
                true
            }
        }
    }
}

fn same_key_decided_twice(decisions: &[Decision]) -> bool {
    // A decision does not carry the sequence number; when the attempt began tells two of one tuple apart.
    let mut seen = HashSet::new();
    decisions
        .iter()
        // These have no beginning: several of one tuple can end at once.
        .filter(|d| d.cause != Cause::PortExhaustion && (d.cause != Cause::ListenerClosed || d.delay_ns > 0))
        .any(|d| !seen.insert((d.tuple, d.at_ns.saturating_sub(d.delay_ns))))
}

fn sum(accounts: &[(u32, Account)]) -> Account {
    accounts.iter().fold(Account::default(), |sum, (_, account)| sum + *account)
}

fn count(decisions: &[Decision], outcome: Outcome) -> u64 {
    decisions.iter().filter(|d| d.outcome == outcome).count() as u64
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_account_is_the_true_one_after_every_event(steps in vec(step(), 0..60), ticks in any::<bool>()) {
        let mut run = Run::new();
        run.patient = !ticks;
        let mut ledger = Ledger::new(1000);
        let mut decisions = Vec::new();
        for step in steps {
            run.take(step);
            for event in run.kernel.ring.drain(..) {
                ledger.apply(&event, &mut |decision| decisions.push(decision));
            }
            if ticks {
                ledger.tick(run.kernel.now_ns, &mut |decision| decisions.push(decision));
            } else {
                // Time passes in events alone.
                run.kernel.exhaust();
                for event in run.kernel.ring.drain(..) {
                    ledger.apply(&event, &mut |decision| decisions.push(decision));
                }
            }
            let truth = run.kernel.truth();
            for (slot, account) in ledger.snapshot(&run.kernel.totals()) {
                prop_assert!(account.balances());
                prop_assert_eq!(Some(&essence(&account)), truth.get(&slot), "slot {} after {:?}", slot, step);
            }
        }
        // Nothing was lost, so the kernel's memory has nothing to add.
        for _ in 0..2 {
            for (tuple, watch) in &run.kernel.watch {
                ledger.reconcile(tuple, watch);
            }
        }
        let truth = run.kernel.truth();
        let accounts = ledger.finish(&run.kernel.totals(), run.kernel.now_ns, &mut |decision| decisions.push(decision));
        for (slot, account) in &accounts {
            prop_assert_eq!(Some(&essence(account)), truth.get(slot), "slot {} at the end", slot);
        }
        let all = sum(&accounts);
        prop_assert_eq!(count(&decisions, Outcome::Late), all.late.total());
        prop_assert_eq!(count(&decisions, Outcome::Lost), all.lost.total() - all.unlisted);
        prop_assert!(!same_key_decided_twice(&decisions));
        // Every line is in the account under its cause.
        for cause in Cause::ALL {
            let lines = decisions.iter().filter(|d| d.outcome == Outcome::Lost && d.cause == cause).count() as u64;
            prop_assert!(lines <= all.lost[cause], "{} lines of {}", lines, cause.id());
        }
    }

    #[test]
    fn what_is_accepted_unseen_is_known_by_the_queues(steps in vec((step(), prop::bool::weighted(0.5)), 0..60)) {
        let mut run = Run::new();
        run.patient = false;
        let mut ledger = Ledger::new(1000);
        let mut decisions = Vec::new();
        for (step, unseen) in steps {
            match step {
                // Of an attempt that nobody saw accepted, the next one of its tuple cannot be told.
                Step::Again(_) | Step::Unanswered(_) => continue,
                Step::Accept(i) if unseen => {
                    run.kernel.accept_unseen(run.current[i]);
                }
                step => run.take(step),
            }
            for event in run.kernel.ring.drain(..) {
                ledger.apply(&event, &mut |decision| decisions.push(decision));
            }
            ledger.tick(run.kernel.now_ns, &mut |decision| decisions.push(decision));
            let truth = run.kernel.truth();
            for (slot, account) in ledger.snapshot(&run.kernel.totals()) {
                prop_assert!(account.balances());
                prop_assert_eq!(Some(&essence(&account)), truth.get(&slot), "slot {} after {:?}", slot, step);
            }
        }
        let accounts = ledger.finish(&run.kernel.totals(), run.kernel.now_ns, &mut |decision| decisions.push(decision));
        let all = sum(&accounts);
        prop_assert_eq!(count(&decisions, Outcome::Late), all.late.total());
        prop_assert_eq!(count(&decisions, Outcome::Lost), all.lost.total() - all.unlisted);
    }

    #[test]
    fn lost_events_are_made_good_by_the_kernels_memory(
        steps in vec((step(), prop::bool::weighted(0.3)), 0..60),
    ) {
        let mut run = Run::new();
        let mut ledger = Ledger::new(1000);
        let mut decisions = Vec::new();
        // Whether a cookie was out when its listener closed, the kernel side's memory does not tell for certain.
        let closes = steps.iter().any(|(step, _)| matches!(step, Step::Close(_)));
        for (step, full) in steps {
            // One attempt for each tuple: of an earlier one, the kernel side remembers nothing. Time stands nearly
            // still: whether a cookie is out or came back wrong, its memory does not tell.
            if matches!(step, Step::Again(_) | Step::Unanswered(_) | Step::Wait(_)) {
                continue;
            }
            run.kernel.ring_full = full;
            run.take(step);
            for event in run.kernel.ring.drain(..) {
                ledger.apply(&event, &mut |decision| decisions.push(decision));
            }
            for (_, account) in ledger.snapshot(&run.kernel.totals()) {
                prop_assert!(account.balances());
            }
        }
        for (tuple, watch) in &run.kernel.watch {
            ledger.reconcile(tuple, watch);
        }
        let truth: Vec<(u32, Account)> = run.kernel.truth().into_iter().collect();
        let accounts = ledger.finish(&run.kernel.totals(), run.kernel.now_ns, &mut |decision| decisions.push(decision));
        for ((slot, account), (_, truth)) in accounts.iter().zip(&truth) {
            prop_assert!(account.balances());
            prop_assert_eq!(account.inconsistent, 0, "slot {}", slot);
            prop_assert_eq!(account.attempts, truth.attempts);
            prop_assert_eq!(account.accepted, truth.accepted);
            prop_assert_eq!(account.pending, truth.pending);
            prop_assert_eq!(account.lost.total(), truth.lost.total());
        }
        let (all, truth) = (sum(&accounts), sum(&truth));
        for cause in Cause::ALL.into_iter().filter(|cause| *cause != Cause::Unattributed && !closes) {
            prop_assert!(all.lost[cause] <= truth.lost[cause], "{}: {} of {}", cause.id(), all.lost[cause], truth.lost[cause]);
        }
        prop_assert!(all.late.total() <= truth.late.total());
        prop_assert_eq!(count(&decisions, Outcome::Late), all.late.total());
        prop_assert_eq!(count(&decisions, Outcome::Lost), all.lost.total() - all.unlisted);
    }

    #[test]
    fn events_that_come_twice_change_nothing(steps in vec((step(), any::<bool>()), 0..60)) {
        let mut run = Run::new();
        let (mut once, mut twice) = (Ledger::new(1000), Ledger::new(1000));
        let mut decisions = Vec::new();
        for (step, again) in steps {
            if matches!(step, Step::Exhaust) {
                continue;
            }
            run.take(step);
            for event in run.kernel.ring.drain(..) {
                once.apply(&event, &mut |_| {});
                twice.apply(&event, &mut |decision| decisions.push(decision));
                // Of two children without a number, nothing says that they are one.
                if again && event.isn != 0 {
                    twice.apply(&event, &mut |decision| decisions.push(decision));
                }
            }
            let totals = run.kernel.totals();
            prop_assert_eq!(once.snapshot(&totals), twice.snapshot(&totals));
        }
        twice.finish(&run.kernel.totals(), run.kernel.now_ns, &mut |decision| decisions.push(decision));
        prop_assert!(!same_key_decided_twice(&decisions));
    }

    #[test]
    fn reordered_events_keep_the_identity(
        steps in vec(step(), 0..60),
        keys in vec(any::<u8>(), 200),
        capacity in 0usize..6,
    ) {
        let mut run = Run::new();
        for step in steps {
            run.take(step);
        }
        let mut events: Vec<(usize, Event)> = run.kernel.ring.drain(..).enumerate().collect();
        // Each event comes up to seven places too early or too late.
        events.sort_by_key(|(at, _)| at + usize::from(keys[at % keys.len()] % 8));
        let totals = run.kernel.totals();
        let mut ledger = Ledger::new(capacity);
        let mut decisions = Vec::new();
        for (_, event) in events {
            ledger.apply(&event, &mut |decision| decisions.push(decision));
            prop_assert!(ledger.len() <= capacity);
            prop_assert!(ledger.snapshot(&totals).iter().all(|(_, account)| account.balances()));
        }
        let accounts = ledger.finish(&totals, run.kernel.now_ns, &mut |decision| decisions.push(decision));
        prop_assert!(accounts.iter().all(|(_, account)| account.balances()));
        prop_assert_eq!(sum(&accounts).accepted, totals.iter().map(|(_, t)| t.accepted).sum::<u64>());
    }

    #[test]
    fn too_small_a_ledger_only_moves_verdicts_to_unattributed(steps in vec(step(), 0..60), capacity in 0usize..4) {
        let mut run = Run::new();
        let mut ledger = Ledger::new(capacity);
        for step in steps {
            // An attempt that begins at no listener and goes on at one is counted at the first: the entry tells.
            let elsewhere = matches!(step, Step::Syn(_, Syn::Filtered(_) | Syn::Refused));
            if elsewhere || matches!(step, Step::Again(_) | Step::Unanswered(_)) {
                continue;
            }
            run.take(step);
            for event in run.kernel.ring.drain(..) {
                ledger.apply(&event, &mut |_| {});
            }
            prop_assert!(ledger.len() <= capacity);
            let truth = run.kernel.truth();
            for (slot, account) in ledger.snapshot(&run.kernel.totals()) {
                prop_assert!(account.balances());
                prop_assert_eq!(account.attempts, truth[&slot].attempts);
                prop_assert_eq!(account.accepted, truth[&slot].accepted);
            }
        }
    }

    #[test]
    fn nonsense_neither_panics_nor_unbalances(
        steps in vec(nonsense(), 0..80),
        totals in vec((0u32..3, vec(0u64..5, 12), any::<bool>()), 0..3),
    ) {
        let totals: BTreeMap<u32, SlotTotals> = totals.into_iter().map(|(slot, n, closed)| (slot, some_totals(&n, closed))).collect();
        let totals: Vec<(u32, SlotTotals)> = totals.into_iter().collect();
        let mut ledger = Ledger::new(6);
        for step in steps {
            match step {
                Nonsense::Event(event) => ledger.apply(&event, &mut |_| {}),
                Nonsense::Watch(port, watch) => ledger.reconcile(&tuple(port), &watch),
                Nonsense::Tick(now_ns) => ledger.tick(now_ns, &mut |_| {}),
            }
            prop_assert!(ledger.len() <= 6);
            prop_assert!(ledger.snapshot(&totals).iter().all(|(_, account)| account.balances()));
        }
        let accounts = ledger.finish(&totals, u64::MAX, &mut |_| {});
        prop_assert!(accounts.iter().all(|(_, account)| account.balances()));
    }
}

#[derive(Clone, Debug)]
enum Nonsense {
    Event(Box<Event>),
    Watch(u16, Watch),
    Tick(u64),
}

fn times() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0u64..50, 2 => (0u64..400).prop_map(|s| s * SECOND), 1 => any::<u64>()]
}

fn nonsense() -> impl Strategy<Value = Nonsense> {
    let event = (
        times(),
        0u16..3,
        0u32..3,
        0u32..3,
        (0u8..19, any::<u8>(), 0u8..15),
        prop_oneof![Just(99u32), Just(110), any::<u32>()],
    );
    let event = event.prop_map(|(time_ns, port, isn, slot, (kind, flags, cause), detail)| {
        let mut e = super::attempt::event(tracer_abi::abi::EventKind::SynDropped, tuple(port), isn, slot, time_ns);
        (e.kind, e.flags, e.cause, e.detail) = (kind, flags, cause, detail);
        Nonsense::Event(Box::new(e))
    });
    let watch = (times(), 0u16..3, 0u32..3, 0u32..3, any::<u16>(), 0u8..15);
    let watch = watch.prop_map(|(first_ns, port, isn, slot, state, cause)| {
        Nonsense::Watch(port, Watch { first_ns, isn, slot, state, cause, ..Watch::default() })
    });
    prop_oneof![20 => event, 4 => watch, 1 => times().prop_map(Nonsense::Tick)]
}

fn some_totals(n: &[u64], closed: bool) -> SlotTotals {
    SlotTotals {
        attempts: n[0],
        requests: n[1],
        queued: n[2],
        children: n[3],
        expired: n[4],
        reset: n[5],
        accepted: n[6],
        children_dropped: n[7],
        port_exhausted: n[9],
        waiting: n[8].checked_sub(1),
        half_open: n[8].checked_sub(2),
        group: u32::from(n[11] > 2),
        syn_dropped: [n[10]; CAUSES],
        closed,
        ..SlotTotals::default()
    }
}
