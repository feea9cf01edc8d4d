//! A tracer that is killed leaves nothing in the kernel: no program, no map, no link, no probe, no pinned file.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tracer_tests::bpf::{self, Kind};
use tracer_tests::load::Load;
use tracer_tests::namespace::Namespace;
use tracer_tests::tracer::Start;
use tracer_tests::traffic::Listen;
use tracer_tests::wait;

/// What is in the kernel at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listing {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
    pins: BTreeSet<PathBuf>,
    probes: String,
}

impl Listing {
    fn read() -> Result<Self> {
        Ok(Self {
            programs: bpf::ids(Kind::Program)?,
            maps: bpf::ids(Kind::Map)?,
            links: bpf::ids(Kind::Link)?,
            pins: bpf::pins()?,
            probes: bpf::kprobe_events()?,
        })
    }

    /// What is here and was not there. Numbers are given out in rising order, so that none is met again.
    fn since(&self, earlier: &Self) -> [BTreeSet<u32>; 3] {
        [&self.programs - &earlier.programs, &self.maps - &earlier.maps, &self.links - &earlier.links]
    }
}

#[test]
fn a_tracer_killed_in_the_middle_of_traffic_leaves_nothing_behind() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(12).open()?;
    let load = Load::new(u64::MAX);
    let before = Listing::read()?;
    let hooks = std::env::var_os("TRACER_HOOKS").map_or_else(Vec::new, |flavour| vec!["--hooks".into(), flavour]);
    let tracer = Start::on_host(&namespace)?
        .port(listener.port())
        .args(["--netns".into(), namespace.path()])
        .args(hooks)
        .spawn()?
        .ready()?;

    let (during, outcome) = thread::scope(|scope| -> Result<_> {
        let running = scope.spawn(|| load.run(&listener));
        let kill = || -> Result<_> {
            wait::until("the load to run", || Ok(load.attempts() > 1_000))?;
            let during = Listing::read()?;
            // Its descriptors say what of all this is certainly its own.
            for (kind, listed) in
                [(Kind::Program, &during.programs), (Kind::Map, &during.maps), (Kind::Link, &during.links)]
            {
                let own = bpf::held_by(tracer.pid(), kind)?;
                ensure!(!own.is_empty(), "the tracer runs without anything of kind {kind:?}");
                ensure!(own.is_subset(listed), "{kind:?}: the listing {listed:?} lacks the tracer's {own:?}");
            }
            tracer.signal(Signal::KILL)?;
            let killed = load.attempts();
            let outcome = tracer.wait()?;
            wait::until("the load to go on", || Ok(load.attempts() > killed + 1_000))?;
            Ok((during, outcome))
        };
        let killed = kill();
        load.stop();
        running.join().expect("the load does not panic")?;
        killed
    })?;
    assert_eq!(outcome.status.signal(), Some(Signal::KILL.as_raw()), "{}", outcome.stderr);

    let begun = during.since(&before);
    assert!(begun.iter().all(|ids| !ids.is_empty()), "the listings do not show a running tracer: {begun:?}");
    // Programs and maps are freed after a grace period, in a thread of the kernel's.
    let gone = wait::until("everything that began with the tracer to be gone", || {
        let left = Listing::read()?.since(&before);
        Ok(left.iter().zip(&begun).all(|(left, begun)| left.is_disjoint(begun)))
    });
    gone.with_context(|| format!("programs, maps, links: {:?}", Listing::read().map(|it| it.since(&before))))?;
    let after = Listing::read()?;
    assert_eq!((after.pins, after.probes), (before.pins, before.probes));
    Ok(())
}
