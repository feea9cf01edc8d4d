//! Runs a script against the model of the kernel side and the ledger, and prints what the ledger makes of it.
//!
//! A step is a line or a part between semicolons; each takes a millisecond. Letters are clients.
//! ```text
//! a syn queue | cookie | drop CAUSE | refused | filtered REASON a ack child [data] [fin] | drop CAUSE [reset] |
//! invalid a synack (again) a expire a rst a accept a again (new attempt, same port) a at SLOT a timeout exhaust close
//! [SLOT] wait SECONDS lose | keep (events) ``` After every step the account must balance; as long as no event was
//! lost, it must be the true one.

use std::collections::BTreeMap;
use std::fmt::Write;

use expect_test::Expect;
use tracer_abi::abi::{Cause, flag};

use super::attempt::{Ack, SECOND, Syn};
use super::kernel::Kernel;
use super::truth::essence;
use crate::ledger::{Account, ByCause, Decision, Ledger, Outcome};

#[track_caller]
pub(super) fn check(script: &str, expected: Expect) {
    expected.assert_eq(&run(script));
}

fn run(script: &str) -> String {
    let mut kernel = Kernel::new();
    kernel.slots.entry(1).or_default();
    let mut ledger = Ledger::new(1000);
    let mut clients: BTreeMap<&str, usize> = BTreeMap::new();
    let mut out = String::new();
    let mut lossy = false;
    for step in script.split(['\n', ';']).map(str::trim).filter(|step| !step.is_empty()) {
        kernel.now_ns += SECOND / 1000;
        let words: Vec<&str> = step.split_whitespace().collect();
        assert!(take_step(&mut kernel, &mut clients, &words), "impossible step: {step}");
        lossy |= kernel.ring_full;
        let mut lines = Vec::new();
        for event in kernel.ring.drain(..) {
            ledger.apply(&event, &mut |decision| lines.push(decision));
        }
        ledger.tick(kernel.now_ns, &mut |decision| lines.push(decision));
        for decision in &lines {
            line(&mut out, decision);
        }
        for (slot, account) in ledger.snapshot(&kernel.totals()) {
            assert!(account.balances(), "after {step}: {account:?}");
            if !lossy {
                assert_eq!(Some(&essence(&account)), kernel.truth().get(&slot), "slot {slot} after {step}");
            }
        }
    }
    for _ in 0..2 {
        for (tuple, watch) in &kernel.watch {
            ledger.reconcile(tuple, watch);
        }
    }
    out.push_str("end\n");
    let mut lines = Vec::new();
    let accounts = ledger.finish(&kernel.totals(), kernel.now_ns, &mut |decision| lines.push(decision));
    for decision in &lines {
        line(&mut out, decision);
    }
    for (slot, account) in &accounts {
        if *slot != 0 || account.attempts > 0 {
            print(&mut out, *slot, account);
        }
        if !lossy {
            assert_eq!(Some(&essence(account)), kernel.truth().get(slot), "slot {slot} at the end");
        }
    }
    out
}

fn take_step<'s>(kernel: &mut Kernel, clients: &mut BTreeMap<&'s str, usize>, words: &[&'s str]) -> bool {
    match *words {
        ["exhaust"] => kernel.exhaust(),
        ["close"] => return kernel.close(1),
        ["close", slot] => return kernel.close(number(slot)),
        ["wait", seconds] => kernel.now_ns += u64::from(number(seconds)) * SECOND,
        ["lose"] => kernel.ring_full = true,
        ["keep"] => kernel.ring_full = false,
        [name, ref rest @ ..] => {
            let port = u16::from(name.as_bytes()[0]);
            let client = *clients.entry(name).or_insert_with(|| kernel.client(port, 1));
            return client_step(kernel, clients, name, client, rest);
        }
        [] => {}
    }
    true
}

fn client_step<'s>(
    kernel: &mut Kernel,
    clients: &mut BTreeMap<&'s str, usize>,
    name: &'s str,
    client: usize,
    words: &[&str],
) -> bool {
    match *words {
        ["syn", "queue"] => kernel.syn(client, Syn::Queued),
        ["syn", "cookie"] => kernel.syn(client, Syn::Cookie),
        ["syn", "drop", by] => kernel.syn(client, Syn::Dropped(cause(by))),
        ["syn", "refused"] => kernel.syn(client, Syn::Refused),
        ["syn", "filtered", reason] => kernel.syn(client, Syn::Filtered(number(reason))),
        ["ack", "child"] => kernel.ack(client, Ack::Child(0)),
        ["ack", "child", "data"] => kernel.ack(client, Ack::Child(flag::DATA)),
        ["ack", "child", "fin"] => kernel.ack(client, Ack::Child(flag::FIN)),
        ["ack", "child", "data", "fin"] => kernel.ack(client, Ack::Child(flag::DATA | flag::FIN)),
        ["ack", "drop", by] => kernel.ack(client, Ack::Dropped(cause(by))),
        ["ack", "drop", by, "reset"] => kernel.ack(client, Ack::DroppedWithReset(cause(by))),
        ["ack", "invalid"] => kernel.ack(client, Ack::Invalid),
        ["synack"] => kernel.synack_again(client),
        ["expire"] => kernel.expire(client),
        ["rst"] => kernel.rst(client),
        ["accept"] => kernel.accept(client),
        ["timeout"] => kernel.unanswered(client),
        ["at", slot] => {
            kernel.attempts[client].slot = number(slot);
            true
        }
        ["again"] => match kernel.again(client) {
            Some(next) => {
                clients.insert(name, next);
                true
            }
            None => false,
        },
        _ => false,
    }
}

fn number(word: &str) -> u32 {
    word.parse().expect("a number in the script")
}

fn cause(id: &str) -> Cause {
    Cause::ALL.into_iter().find(|cause| cause.id() == id).expect("a cause in the script")
}

pub(super) fn line(out: &mut String, d: &Decision) {
    let outcome = match d.outcome {
        Outcome::Lost => "lost",
        Outcome::Late => "late",
    };
    let client = u8::try_from(d.tuple.client_port).map_or('?', char::from);
    write!(out, "{outcome} {} {}", if client == '\0' { '-' } else { client }, d.cause.id()).expect("to a string");
    for (word, said) in
        [(d.stage.id().unwrap_or(""), d.stage.id().is_some()), ("reset", d.reset), ("phantom", d.phantom)]
    {
        if said {
            write!(out, " {word}").expect("to a string");
        }
    }
    for (word, n) in
        [("syn", d.syn_retransmits), ("synack", d.synack_retransmits), ("reason", d.reason), ("pid", d.pid)]
    {
        if n > 0 {
            write!(out, " {word} {n}").expect("to a string");
        }
    }
    writeln!(out, " after {} ms", d.delay_ns / 1_000_000).expect("to a string");
}

pub(super) fn print(out: &mut String, slot: u32, a: &Account) {
    let causes = |by: &ByCause| by.nonzero().map(|(cause, n)| format!(" {} {n}", cause.id())).collect::<String>();
    writeln!(
        out,
        "slot {slot}: {} = {} accepted + {} pending + {} lost",
        a.attempts,
        a.accepted,
        a.pending,
        a.lost.total()
    )
    .expect("to a string");
    if a.lost.total() > 0 {
        writeln!(out, "  lost:{}", causes(&a.lost)).expect("to a string");
    }
    if a.late.total() > 0 {
        let by = a.completed_by;
        writeln!(out, "  late:{}; ack {} data {} fin {}", causes(&a.late), by.ack, by.data, by.fin)
            .expect("to a string");
    }
    for (word, n) in [
        ("at syn", a.lost_at_syn),
        ("with reset", a.lost_with_reset),
        ("phantom", a.phantom),
        ("dead on arrival", a.dead_on_arrival),
        ("unlisted", a.unlisted),
        ("accepted unseen", a.accepted_unseen),
        ("inconsistent", a.inconsistent),
    ] {
        if n > 0 {
            writeln!(out, "  {word}: {n}").expect("to a string");
        }
    }
}
