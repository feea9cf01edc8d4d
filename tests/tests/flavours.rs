//! However the tracer is attached, the same traffic gives the same ledger.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use tracer_tests::namespace::{Family, Namespace};
use tracer_tests::rawtcp::Wire;
use tracer_tests::report::{Counts, Outcomes};
use tracer_tests::session::{Finished, Session, forced_flavour};
use tracer_tests::traffic::{Listen, Listener};
use tracer_tests::workload::{ack_overflow, cookies};

/// All that the tracer says of one workload and that does not depend on time.
#[derive(Debug, PartialEq, Eq)]
struct Account {
    outcomes: Outcomes,
    syn: u64,
    syn_dropped: Counts,
    ack_dropped: Counts,
    cookies: (u64, u64, u64),
}

impl Account {
    fn of(finished: &Finished) -> Self {
        let totals = &finished.report.totals;
        let packets = &totals.packets;
        Self {
            outcomes: totals.outcomes(),
            syn: packets.syn,
            syn_dropped: packets.syn_dropped.clone(),
            ack_dropped: packets.ack_dropped.clone(),
            cookies: (packets.synack_cookie, packets.cookie_ack_accepted, packets.cookie_ack_invalid),
        }
    }
}

/// One workload in a namespace of its own; `None` if the kernel does not take the flavour. Nothing is left to chance: the segments
/// are made by hand and sent one after the other.
fn account(flavour: &str, backlog: i32, work: impl Fn(&Wire, &Listener) -> Result<()>) -> Result<Option<Account>> {
    let namespace = Namespace::enter()?;
    let wire = Wire::open(&namespace)?;
    let listener = Listen::new(backlog).on(Wire::server(Family::V4)).open()?;
    let Some(session) = Session::start_by(&namespace, listener.port(), flavour)? else { return Ok(None) };
    work(&wire, &listener)?;
    let finished = session.finish()?;
    let used = finished.report.host.hooks.values().filter(|used| *used == flavour).count();
    ensure!(used > 0, "nothing is attached by {flavour}: {:?}", finished.report.host.hooks);
    Ok(Some(Account::of(&finished)))
}

/// Dropped final ACKs that are completed late in every way; then cookies of every fate.
fn accounts(flavour: &str) -> Result<Option<[Account; 2]>> {
    let overflow = account(flavour, 16, |wire, listener| ack_overflow(wire, listener).map(drop))?;
    let Some(overflow) = overflow else { return Ok(None) };
    let cookies = account(flavour, 5, |wire, listener| {
        cookies(wire, listener)?;
        listener.accept_all().map(drop)
    })?;
    Ok(cookies.map(|cookies| [overflow, cookies]))
}

#[test]
fn the_same_traffic_gives_the_same_ledger_in_every_flavour_that_this_kernel_takes() -> Result<()> {
    let mut found = BTreeMap::new();
    for flavour in ["fentry", "kprobe", "tracepoint"] {
        match accounts(flavour)? {
            Some(accounts) => {
                found.insert(flavour, accounts);
            }
            None => println!("this kernel does not take {flavour}"),
        }
    }
    println!("compared: {:?}", found.keys());
    // Where a flavour is under test, the kernel has it.
    if let Some(forced) = forced_flavour().filter(|forced| forced != "auto") {
        assert!(found.contains_key(forced.as_str()), "{forced} is missing");
    }
    let Some((_, first)) = found.first_key_value() else { panic!("this kernel takes no flavour") };
    assert_eq!((first[0].outcomes.attempts, first[1].outcomes.attempts), (10, 31), "{first:#?}");
    for (flavour, accounts) in &found {
        assert_eq!(accounts, first, "{flavour}");
    }
    Ok(())
}
