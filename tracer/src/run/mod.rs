//! The only place that wires the rooms together: a plan becomes a run, a run becomes a report and an exit status.

mod assemble;
mod command;
mod cost;
mod doctor;
mod facts;
mod limits;
mod log;
mod privilege;
mod replay;
mod session;
mod sink;
mod story;
mod trace;

use std::io::{self, Write};

use anyhow::{Context, Result};

use crate::{
    cli::{self, Hooks, Invocation, ListFormat, ListenersPlan, NetnsSelector},
    observe::{Namespace, listeners, namespaces},
    probe::{Flavour, Wanted},
    report,
};

/// Could not trace; the reason is on stderr.
pub const FAILED: u8 = 1;
/// A loss that `--fail-on` names was seen.
pub const FAIL_ON: u8 = 3;

/// Does what the command line asked for, and gives the exit status.
///
/// # Errors
/// When it could not be done: the message says what happened, to which object, and what to do.
pub fn run(invocation: Invocation) -> Result<u8> {
    match invocation {
        Invocation::Trace(plan) => {
            log::start(plan.verbosity);
            limits::give_back_what_is_large();
            trace::trace(&plan)
        }
        Invocation::Replay(plan) => replay::replay(&plan),
        Invocation::Listeners(plan) => list(&plan),
        Invocation::Doctor(plan) => {
            log::start(plan.verbosity);
            doctor::doctor(&plan)
        }
        Invocation::Completions(shell) => printed(cli::completions(shell, &mut io::stdout().lock())),
        Invocation::Man => printed(cli::manual(&mut io::stdout().lock())),
    }
}

fn list(plan: &ListenersPlan) -> Result<u8> {
    let proc = std::path::Path::new("/proc");
    let scan = listeners::scan(proc, &selected(&plan.netns)?, |port| plan.ports.contains(port));
    for missed in &scan.missed {
        eprintln!("tracer: {missed}");
    }
    let mut out = io::stdout().lock();
    printed(match plan.format {
        ListFormat::Human => report::write_listeners_table(&scan.listeners, &mut out),
        ListFormat::Json => report::write_listeners_json(&scan.listeners, &mut out),
    })
}

/// The flavours that `--hooks` means.
fn wanted(hooks: Hooks) -> Wanted {
    match hooks {
        Hooks::Auto => Wanted::Best,
        Hooks::Fentry => Wanted::Only(Flavour::Fentry),
        Hooks::Kprobe => Wanted::Only(Flavour::Kprobe),
        Hooks::Tracepoint => Wanted::Only(Flavour::Tracepoint),
    }
}

/// The namespaces that a selector means.
fn selected(selector: &NetnsSelector) -> Result<Vec<Namespace>> {
    let proc = std::path::Path::new("/proc");
    Ok(match selector {
        NetnsSelector::All => namespaces::all(proc)?,
        NetnsSelector::SelfNs => vec![namespaces::current(proc)?],
        NetnsSelector::Path(path) => vec![namespaces::at_path(path)?],
        NetnsSelector::Pid(pid) => vec![namespaces::of_process(proc, *pid)?],
    })
}

/// A closed pipe is not an error: whoever read had enough.
fn printed(result: io::Result<()>) -> Result<u8> {
    match result.and_then(|()| io::stdout().flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        other => other.map(|()| 0).context("cannot write to the standard output"),
    }
}
