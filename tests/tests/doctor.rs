//! `tracer doctor`: what it says is what a trace would meet, and it leaves nothing behind.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Deserialize;
use tracer_tests::bpf::{self, Kind};
use tracer_tests::namespace::Namespace;
use tracer_tests::report::Report;
use tracer_tests::tracer::{Outcome, Start, closed_pipe};
use tracer_tests::wait;

#[derive(Debug, Deserialize)]
struct Doctor {
    schema: String,
    works: bool,
    reason: Option<String>,
    attached: bool,
    hooks: Vec<Hook>,
    machine: Vec<Finding>,
}

#[derive(Debug, Deserialize)]
struct Hook {
    name: String,
    flavour: Option<String>,
    attached_to: Vec<String>,
    not_by: Vec<NotBy>,
    without: String,
}

#[derive(Debug, Deserialize)]
struct NotBy {
    flavour: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Finding {
    name: String,
    state: String,
    text: String,
}

impl Doctor {
    fn parse(outcome: &Outcome) -> Result<Self> {
        let doctor: Self = serde_json::from_str(&outcome.stdout).with_context(|| outcome.stdout.clone())?;
        assert_eq!(doctor.schema, "tracer-doctor/1");
        assert_eq!(doctor.works, doctor.reason.is_none(), "{doctor:#?}");
        Ok(doctor)
    }

    fn flavours(&self) -> BTreeMap<String, String> {
        let attached = self.hooks.iter().filter_map(|hook| Some((hook.name.clone(), hook.flavour.clone()?)));
        attached.collect()
    }

    fn finding(&self, name: &str) -> Result<&Finding> {
        self.machine.iter().find(|it| it.name == name).with_context(|| format!("nothing about {name}: {self:#?}"))
    }
}

fn run(arguments: &[&str]) -> Result<Outcome> {
    let outcome = Start::inside()?.args(["doctor"]).args(arguments.iter().copied()).spawn()?.wait()?;
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    assert!(!outcome.stderr.lines().any(|line| line.starts_with("tracing ")), "{}", outcome.stderr);
    Ok(outcome)
}

#[test]
fn every_hook_is_named_with_the_flavour_that_a_trace_takes() -> Result<()> {
    let outcome = run(&["--format", "json"])?;
    let doctor = Doctor::parse(&outcome)?;
    assert_eq!(outcome.code()?, 0, "{:?}", doctor.reason);
    assert!(doctor.works && doctor.attached, "{doctor:#?}");

    let namespace = Namespace::enter()?;
    let trace = Start::on_host(&namespace)?.args(["-p", "1", "-d", "100ms", "-f", "json", "--netns"]);
    let trace = trace.args([namespace.path()]).spawn()?.wait()?;
    assert_eq!(trace.code()?, 0, "{}", trace.stderr);
    assert_eq!(doctor.flavours(), Report::parse(&trace.stdout)?.host.hooks);

    for hook in &doctor.hooks {
        assert!(!hook.attached_to.is_empty() && !hook.without.is_empty(), "{hook:?}");
        for not_by in &hook.not_by {
            assert!(!not_by.reason.is_empty() && !not_by.flavour.is_empty(), "{hook:?}");
            assert!(!not_by.reason.ends_with([' ', ':']), "an empty end: {not_by:?}");
        }
    }
    for name in ["kernel", "privileges", "type information", "kernel addresses", "BPF ring buffer"] {
        assert_eq!(doctor.finding(name)?.state, "good", "{name}: {doctor:#?}");
    }
    for name in ["kprobes", "lockdown", "tracefs"] {
        assert!(!doctor.finding(name)?.text.is_empty(), "{name}");
    }
    Ok(())
}

#[test]
fn the_page_names_every_hook_once_in_its_table() -> Result<()> {
    let page = run(&[])?;
    let doctor = Doctor::parse(&run(&["-f", "json"])?)?;
    assert_eq!(page.code()?, 0, "{}", page.stdout);
    for hook in &doctor.hooks {
        let flavour = hook.flavour.as_deref().unwrap_or("none");
        let rows = page.stdout.lines().filter(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(hook.name.as_str()) && words.next() == Some(flavour) && line.ends_with(&hook.without)
        });
        assert_eq!(rows.count(), 1, "{}:\n{}", hook.name, page.stdout);
    }
    assert!(page.stdout.starts_with("tracing works: "), "{}", page.stdout);
    assert!(!page.stdout.contains('\u{1b}'), "colours without a terminal");
    assert_eq!(page.stderr, "");
    Ok(())
}

/// Hooks that have no other flavour, whatever is asked for.
const TRACEPOINTS_ONLY: [&str; 3] = ["tcp_v4_rcv", "inet_sk_set_state", "do_exit"];

/// What a forced flavour gives is what a trace would give: both begin, or both refuse with the same reason.
#[test]
fn a_forced_flavour_is_taken_or_refused_as_by_a_trace() -> Result<()> {
    let namespace = Namespace::enter()?;
    for flavour in ["fentry", "kprobe", "tracepoint"] {
        let outcome = run(&["--hooks", flavour, "-f", "json"])?;
        let doctor = Doctor::parse(&outcome)?;
        let trace = Start::on_host(&namespace)?.args(["-p", "1", "-d", "100ms", "--hooks", flavour, "--netns"]);
        let trace = trace.args([namespace.path()]).spawn()?.wait()?;
        assert_eq!(outcome.code()?, trace.code()?, "{flavour}: {} against {}", outcome.stdout, trace.stderr);
        assert_eq!(outcome.code()?, i32::from(!doctor.works), "{flavour}");
        let Some(reason) = &doctor.reason else {
            let others = |hook: &&Hook| hook.flavour.as_deref() != Some(flavour);
            let others: BTreeSet<&str> = doctor.hooks.iter().filter(others).map(|hook| hook.name.as_str()).collect();
            assert!(others.is_subset(&TRACEPOINTS_ONLY.into()), "{flavour}: {others:?}");
            continue;
        };
        assert!(trace.stderr.contains(reason.as_str()), "{reason} is not what a trace says: {}", trace.stderr);
        // What cannot be attached is named, and the reason with it.
        let without: Vec<&Hook> = doctor.hooks.iter().filter(|hook| hook.flavour.is_none()).collect();
        let first = without.first().with_context(|| format!("every hook is attached: {doctor:#?}"))?;
        assert!(without.iter().all(|hook| hook.attached_to.is_empty() && !hook.not_by.is_empty()), "{doctor:#?}");
        let helps = !TRACEPOINTS_ONLY.contains(&first.name.as_str());
        assert!(reason.contains(&first.name) && reason.contains("--hooks auto") == helps, "{reason}");
    }
    Ok(())
}

#[test]
fn nothing_stays_attached() -> Result<()> {
    let listing =
        || -> Result<Vec<BTreeSet<u32>>> { [Kind::Program, Kind::Map, Kind::Link].into_iter().map(bpf::ids).collect() };
    let (before, pins, probes) = (listing()?, bpf::pins()?, bpf::kprobe_events()?);
    let outcome = run(&["-f", "json"])?;
    assert!(Doctor::parse(&outcome)?.attached, "there was something to be left behind");
    // Of what began meanwhile nothing may stay; programs and maps are freed after a grace period, in a thread of the kernel's.
    let begun: Vec<BTreeSet<u32>> = listing()?.iter().zip(&before).map(|(now, before)| now - before).collect();
    wait::until("everything that began with the doctor to be gone", || {
        Ok(listing()?.iter().zip(&begun).all(|(now, begun)| now.is_disjoint(begun)))
    })?;
    assert_eq!((bpf::pins()?, bpf::kprobe_events()?), (pins, probes));
    Ok(())
}

#[test]
fn without_privilege_it_says_what_it_can_and_what_was_not_tried() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let outcome = Start::by_nobody(directory.path())?.args(["doctor", "-f", "json"]).spawn()?.wait()?;
    let doctor = Doctor::parse(&outcome)?;
    assert_eq!(outcome.code()?, 1, "{}", outcome.stdout);
    assert!(!doctor.attached, "{doctor:#?}");
    let reason = doctor.reason.clone().unwrap_or_default();
    assert!(reason.contains("sudo") && reason.contains("CAP_BPF"), "{reason}");
    let privileges = doctor.finding("privileges")?;
    assert!(privileges.state == "bad" && privileges.text.contains("CAP_BPF"), "{privileges:?}");
    let ring = doctor.finding("BPF ring buffer")?;
    assert_eq!((ring.state.as_str(), ring.text.as_str()), ("unknown", "not tried"));
    assert_eq!(doctor.flavours().len(), doctor.hooks.len(), "what the type information allows: {doctor:#?}");

    let page = Start::by_nobody(directory.path())?.args(["doctor"]).spawn()?.wait()?;
    assert_eq!(page.code()?, 1);
    assert!(page.stdout.starts_with("tracing does not work: not permitted"), "{}", page.stdout);
    assert!(page.stdout.contains("Nothing was attached"), "{}", page.stdout);
    Ok(())
}

#[test]
fn a_kernel_without_type_information_is_diagnosed() -> Result<()> {
    let root = tempfile::tempdir()?;
    let outcome = Start::inside()?.env("TRACER_ROOT", root.path()).args(["doctor", "-f", "json"]).spawn()?.wait()?;
    let doctor = Doctor::parse(&outcome)?;
    assert_eq!(outcome.code()?, 1, "{}", outcome.stdout);
    let reason = doctor.reason.clone().unwrap_or_default();
    assert!(reason.contains("BTF") && reason.contains("CONFIG_DEBUG_INFO_BTF"), "{reason}");
    assert!(!doctor.hooks.is_empty() && doctor.flavours().is_empty(), "{doctor:#?}");
    assert_eq!(doctor.finding("type information")?.state, "bad");
    Ok(())
}

#[test]
fn a_closed_stdout_is_no_error() -> Result<()> {
    for format in ["human", "json"] {
        let outcome = Start::inside()?.args(["doctor", "-f", format]).stdout(closed_pipe()?).spawn()?.wait()?;
        assert_eq!(outcome.code()?, 0, "{format}: {}", outcome.stderr);
    }
    Ok(())
}
