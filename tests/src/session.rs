//! One traced workload: counters, tracer, workload, report, laws.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::hidden::Evidence;
use crate::laws::{event_laws, hidden_laws, kernel_laws, laws};
use crate::namespace::Namespace;
use crate::netstat::{CHECKED, Netstat};
use crate::report::{ClientEnd, Event, Lines, ListenerReport, Outcomes, Report, clients_of, parse_events};
use crate::tracer::{Output, Start, Tracer};

/// The flavour under test, if one is forced: `TRACER_HOOKS`, as `cargo xtask vm` sets it.
#[must_use]
pub fn forced_flavour() -> Option<String> {
    std::env::var("TRACER_HOOKS").ok()
}

/// Where to record the next session, if anybody keeps the recordings of a test that fails: in the directory `TRACER_RECORDINGS`, which
/// `cargo xtask vm` sets.
fn recording() -> Option<PathBuf> {
    static SESSIONS: AtomicU32 = AtomicU32::new(0);
    let directory = std::env::var_os("TRACER_RECORDINGS")?;
    Some(PathBuf::from(directory).join(format!("session-{}", SESSIONS.fetch_add(1, Relaxed))))
}

/// How the tracer is told which namespaces to trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `--netns PATH`, from the host's namespace.
    Path,
    /// `--netns self`, from inside.
    Inside,
    /// No `--netns`: every namespace of the machine.
    Everywhere,
}

/// A tracer that watches the calling thread's namespace.
#[derive(Debug)]
pub struct Session {
    tracer: Tracer,
    output: Output,
    netns: u64,
    port: u16,
    scope: Scope,
    spawned: Netstat,
    ready: Netstat,
}

impl Session {
    /// Starts the tracer on one port of `namespace` and waits until it is ready.
    ///
    /// # Errors
    /// Fails when the tracer does not get ready.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        Self::start_with(namespace, port, Scope::Path, |start| start)
    }

    /// The same with another scope and further options.
    ///
    /// # Errors
    /// As [`Session::start`].
    pub fn start_with(
        namespace: &Namespace,
        port: u16,
        scope: Scope,
        options: impl FnOnce(Start<'_>) -> Start<'_>,
    ) -> Result<Self> {
        let output = Output::new()?;
        let spawned = Netstat::read()?;
        let start = match scope {
            Scope::Path => Start::on_host(namespace)?.args(["--netns".into(), namespace.path()]),
            Scope::Inside => Start::inside()?.args(["--netns", "self"]),
            Scope::Everywhere => Start::on_host(namespace)?,
        };
        let start = start.port(port).args(["--format", "events"]).args(["--output".into(), output.path()]);
        let start = options(start);
        let start = match forced_flavour() {
            Some(flavour) if !start.has("--hooks") => start.args(["--hooks", &flavour]),
            _ => start,
        };
        let start = match recording() {
            Some(path) if !start.has("--record") => start.args(["--record".into(), path]),
            _ => start,
        };
        let tracer = start.spawn()?.ready()?;
        let ready = Netstat::read()?;
        Ok(Self { tracer, output, netns: namespace.inode()?, port, scope, spawned, ready })
    }

    /// Starts the tracer in one flavour; `None` if the kernel does not take it and the tracer says so, naming the hook.
    ///
    /// # Errors
    /// Fails when the tracer does not get ready for another reason.
    pub fn start_by(namespace: &Namespace, port: u16, flavour: &str) -> Result<Option<Self>> {
        match Self::start_with(namespace, port, Scope::Path, |start| start.args(["--hooks", flavour])) {
            Ok(session) => Ok(Some(session)),
            Err(error) if format!("{error:#}").contains(&format!("cannot be attached by {flavour}")) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The port that is traced.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The most memory that the tracer had resident so far, in KiB.
    ///
    /// # Errors
    /// Fails when the tracer is gone.
    pub fn peak_memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.tracer.pid());
        let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in a status file")?;
        peak.trim().trim_end_matches(" kB").parse().context("VmHWM is no number")
    }

    /// What the kernel has counted in this namespace since the start.
    ///
    /// # Errors
    /// Fails when the counters cannot be read.
    pub fn kernel(&self) -> Result<Netstat> {
        Ok(Netstat::read()?.since(&self.ready))
    }

    /// Sets a mark in the timeline.
    ///
    /// # Errors
    /// Fails when the tracer is gone.
    pub fn mark(&self) -> Result<()> {
        self.tracer.signal(Signal::USR1)
    }

    /// Sends the tracer a signal.
    ///
    /// # Errors
    /// Fails when the tracer is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.tracer.signal(signal)
    }

    /// Stops the tracer and holds its report against every law: it has to be
    /// exact, with nothing lost and nothing unattributed.
    ///
    /// # Errors
    /// Names every law that the report breaks.
    pub fn finish(self) -> Result<Finished> {
        self.finish_inexact()?.exact()
    }

    /// The same, where the tracer was made to lose events.
    ///
    /// # Errors
    /// Names every law that the report breaks.
    pub fn finish_inexact(self) -> Result<Finished> {
        let stopping = Netstat::read()?;
        let outcome = self.tracer.stop()?;
        let stopped = Netstat::read()?;
        let code = outcome.code()?;
        ensure!(code == 0, "the tracer ended with {code}: {}", outcome.stderr);
        let text = self.output.read().with_context(|| outcome.stderr.clone())?;
        let Lines { events, ends, report } = parse_events(&text).with_context(|| outcome.stderr.clone())?;
        ensure!(outcome.stdout.is_empty(), "stdout is not empty: {}", outcome.stdout);

        let mut broken = laws(&report);
        broken.extend(hidden_laws(&report, outcome.hidden.packets()));
        if self.scope != Scope::Everywhere {
            let low = stopping.since(&self.ready);
            let high = stopped.since(&self.spawned);
            broken.extend(kernel_laws(&report, &low, &high, true, outcome.hidden.packets()));
        }
        ensure!(
            broken.is_empty(),
            "{broken:#?}\n{report:#?}\nstderr: {}\nkernel: {:?}\n{}",
            outcome.stderr,
            stopped.since(&self.ready).nonzero(&CHECKED),
            outcome.hidden
        );
        let (netns, port) = (self.netns, self.port);
        let (hidden, evidence) = (outcome.hidden.events(), outcome.hidden);
        Ok(Finished { report, events, ends, hidden, netns, port, stderr: outcome.stderr, evidence })
    }
}

/// A report that has passed the laws.
#[derive(Debug)]
pub struct Finished {
    /// The summary.
    pub report: Report,
    /// The lines before it.
    pub events: Vec<Event>,
    /// Who ended the clients of troubled connections.
    pub ends: Vec<ClientEnd>,
    /// The tracer's messages.
    pub stderr: String,
    /// How many events the kernel may have hidden from the tracer. It was not, if this is 0.
    pub hidden: u64,
    /// Where they were, in words.
    pub evidence: Evidence,
    netns: u64,
    port: u16,
}

impl Finished {
    /// Demands an exact report, with nothing lost and nothing unattributed.
    ///
    /// # Errors
    /// Says what is missing, or which event line disagrees with the summary.
    pub fn exact(self) -> Result<Self> {
        let check = &self.report.check;
        let hidden = &self.evidence;
        ensure!(
            check.exact && check.events_lost == 0,
            "the tracer itself says that it is not exact: {check:#?}\n{hidden}"
        );
        let unattributed = self.report.totals.lost_by("unattributed");
        ensure!(unattributed == 0, "{unattributed} unattributed: {:#?}\n{hidden}", self.report.totals);
        let broken = event_laws(&self.report, &self.events, &self.ends);
        ensure!(broken.is_empty(), "{broken:#?}\n{:#?}\n{hidden}", self.report);
        Ok(self)
    }

    /// The only listener on the session's port and namespace.
    ///
    /// # Errors
    /// Fails when there is none or more than one.
    pub fn listener(&self) -> Result<&ListenerReport> {
        self.report.listener(self.netns, self.port)
    }

    /// All listeners on the session's port and namespace.
    #[must_use]
    pub fn listeners(&self) -> Vec<&ListenerReport> {
        self.report.listeners_on(self.netns, self.port)
    }

    /// Fails unless the totals and the only listener both say `expected`.
    ///
    /// # Errors
    /// Shows both sides.
    pub fn expect(&self, expected: &Outcomes) -> Result<()> {
        let listener = self.listener()?.ledger.outcomes();
        ensure!(listener == *expected, "listener: {listener:#?}\nis not {expected:#?}\n{}", self.evidence);
        self.expect_totals(expected)
    }

    /// Fails unless the totals say `expected`.
    ///
    /// # Errors
    /// Shows both sides.
    pub fn expect_totals(&self, expected: &Outcomes) -> Result<()> {
        let totals = self.report.totals.outcomes();
        ensure!(totals == *expected, "totals: {totals:#?}\nis not {expected:#?}\n{}", self.evidence);
        Ok(())
    }

    /// The clients that were lost by `cause`.
    #[must_use]
    pub fn lost(&self, cause: &str) -> BTreeSet<SocketAddr> {
        clients_of(&self.events, "lost", Some(cause))
    }

    /// The clients that came late because of `cause`.
    #[must_use]
    pub fn late(&self, cause: &str) -> BTreeSet<SocketAddr> {
        clients_of(&self.events, "late", Some(cause))
    }

    /// The clients that came late for whatever cause.
    #[must_use]
    pub fn all_late(&self) -> BTreeSet<SocketAddr> {
        clients_of(&self.events, "late", None)
    }

    /// The clients that were lost for whatever cause.
    #[must_use]
    pub fn all_lost(&self) -> BTreeSet<SocketAddr> {
        clients_of(&self.events, "lost", None)
    }

    /// The stages named by the lines of clients that were lost by `cause`.
    #[must_use]
    pub fn stages(&self, cause: &str) -> BTreeSet<Option<&str>> {
        let lines = self.events.iter().filter(|it| it.event == "lost" && it.cause == cause);
        lines.map(|line| line.stage.as_deref()).collect()
    }
}
