//! A run: until a signal, a duration or a command ends it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufWriter, IsTerminal},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use log::info;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant as Deadline, sleep_until},
};
use tracer_abi::abi::{Cause, Event, EventKind};

use super::{
    FAIL_ON, FAILED,
    assemble::assemble,
    command::Running,
    facts::{CommandFacts, Ending, MarkFacts, PortsFacts},
    session::{Session, monotonic_ns},
    sink::Sink,
    story::{Destination, Story, exit_label},
};
use crate::{
    cli::{NetnsSelector, Plan, PortSet, Verbosity},
    ledger::Account,
    report::Report,
    stream::{Ring, recording},
};

/// Events are recorded in batches of this many.
const BATCH: usize = 1024;

/// Destinations whose local ports are looked at when they run out: the first ones.
const PORTS_LOOKED_AT: usize = 8;

/// Of a process number that comes back after so long it is another process that ends.
const SAME_EXIT_NS: u64 = 1_000_000_000;

/// Ends of client processes that become marks: of more, the first.
const EXIT_MARKS: usize = 100;

/// After a command was asked to end, it has this long before the report is written without it.
const GRACE: Duration = Duration::from_secs(5);

pub(super) fn trace(plan: &Plan) -> Result<u8> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    runtime.block_on(traced(plan))
}

async fn traced(plan: &Plan) -> Result<u8> {
    // Signals first: one that comes while hooks are being attached ends the run in good order.
    let mut signals = Signals::new()?;
    let mut sink = Sink::open(&plan.output, plan.format, plan.color)?;
    let recorder = plan.record.as_ref().map(|path| Recorder::create(path)).transpose()?;
    let begun = Instant::now();
    let (session, ring) = Session::start(plan)?;
    ready(plan, &session, begun.elapsed());
    let mut run = Run {
        session,
        ring,
        story: Story::new(),
        recorder,
        marks: Vec::new(),
        ports_in_use: Vec::new(),
        looked_at: BTreeSet::new(),
        exits: 0,
        exited: BTreeMap::new(),
        reasons: BTreeSet::new(),
    };

    let mut command = None;
    if let Some(argv) = &plan.command {
        match Running::start(argv) {
            Ok(running) => command = Some(running),
            Err(not_started) => {
                eprintln!("tracer: {}", not_started.message);
                return Ok(not_started.status);
            }
        }
    }
    let (ended_by, command) = run.until_the_end(plan, &mut sink, &mut signals, command).await?;
    let status = command.as_ref().map_or(0, |c| c.status);
    let report = run.report(ended_by, command, &mut sink)?;
    sink.report(&report)?;
    Ok(exit_status(plan, &report, status))
}

/// The command's own failure comes first, then `--fail-on`.
fn exit_status(plan: &Plan, report: &Report, command: i32) -> u8 {
    match u8::try_from(command) {
        Ok(0) => {}
        Ok(status) => return status,
        Err(_) => return FAILED,
    }
    match plan.fail_on.met(&report.totals.lost) {
        Some(cause) => {
            if plan.verbosity >= Verbosity::Normal {
                eprintln!("tracer: --fail-on: {} lost by {}", report.totals.lost[cause], cause.id());
            }
            FAIL_ON
        }
        None => 0,
    }
}

/// The one line that says that every hook is attached.
fn ready(plan: &Plan, session: &Session, took: Duration) {
    let netns = match &plan.netns {
        NetnsSelector::All => "all network namespaces".to_owned(),
        NetnsSelector::SelfNs => "this network namespace".to_owned(),
        NetnsSelector::Path(path) => format!("network namespace {}", path.display()),
        NetnsSelector::Pid(pid) => format!("the network namespace of process {pid}"),
    };
    let flavours: Vec<&str> = session.flavours().into_iter().collect();
    let hint = if plan.command.is_none() && plan.duration.is_none() { "; Ctrl-C for the report" } else { "" };
    eprintln!(
        "tracing {}, {netns} (hooks: {}; attached in {} ms){hint}",
        ports(&plan.ports),
        flavours.join(", "),
        took.as_millis()
    );
}

fn ports(ports: &PortSet) -> String {
    if ports.is_every() {
        return "every listener".to_owned();
    }
    let ranges: Vec<String> = ports
        .ranges()
        .iter()
        .map(|r| if r.start() == r.end() { r.start().to_string() } else { format!("{}-{}", r.start(), r.end()) })
        .collect();
    format!("{} {}", if ports.len() == 1 { "port" } else { "ports" }, ranges.join(","))
}

struct Run {
    session: Session,
    ring: Ring,
    story: Story,
    recorder: Option<Recorder>,
    marks: Vec<MarkFacts>,
    /// What held the ports where they ran out.
    ports_in_use: Vec<PortsFacts>,
    looked_at: BTreeSet<Destination>,
    /// How many of the marks are ends of client processes.
    exits: usize,
    /// When each process ended that has a mark.
    exited: BTreeMap<u32, u64>,
    /// Drop reasons that were met.
    reasons: BTreeSet<u32>,
}

impl Run {
    async fn until_the_end(
        &mut self,
        plan: &Plan,
        sink: &mut Sink,
        signals: &mut Signals,
        mut command: Option<Running>,
    ) -> Result<(Ending, Option<CommandFacts>)> {
        let mut end = plan.duration.map(|d| Deadline::now() + d);
        let mut ended_by = Ending::Duration;
        let mut finished: Option<CommandFacts> = None;
        let mut stopping = false;
        let mut next_tick = Deadline::now() + plan.interval;
        loop {
            tokio::select! {
                biased;
                got = signals.next() => {
                    if got == Asked::Mark {
                        self.mark(vec![(monotonic_ns(), "SIGUSR1".to_owned())], true)?;
                        continue;
                    }
                    let running = command.as_ref().filter(|_| finished.is_none());
                    if stopping || running.is_none() {
                        if finished.is_none() { ended_by = Ending::Signal; }
                        break;
                    }
                    // The command comes to its own end first. Ctrl-C on a terminal reaches it too; a signal to us alone does not.
                    stopping = true;
                    ended_by = Ending::Signal;
                    let by_keyboard = got == Asked::Interrupt && std::io::stdin().is_terminal();
                    if let (false, Some(running)) = (by_keyboard, running) {
                        running.terminate();
                    }
                    end = Some(Deadline::now() + GRACE);
                }
                result = ended(&mut command), if command.is_some() && finished.is_none() => {
                    finished = Some(result.context("cannot wait for the command")?);
                    if !stopping { ended_by = Ending::Command; }
                    end = Some(Deadline::now() + plan.settle);
                }
                () = sleep_until(end.unwrap_or_else(Deadline::now)), if end.is_some() => break,
                () = sleep_until(next_tick) => {
                    next_tick = Deadline::now() + plan.interval;
                    self.tick(sink)?;
                }
                result = self.ring.ready() => {
                    result.context("cannot poll the ring buffer")?;
                    self.drain(sink)?;
                }
            }
            if sink.is_closed() {
                ended_by = Ending::Signal;
                break;
            }
        }
        if finished.is_none()
            && let Some(running) = &command
        {
            finished = Some(running.unfinished());
        }
        Ok((ended_by, finished))
    }

    /// Takes in what is in the ring.
    fn drain(&mut self, sink: &mut Sink) -> Result<()> {
        let Run { session, ring, story, recorder, reasons, exited, .. } = self;
        let mut result = Ok(());
        let mut any = false;
        let mut exits = Vec::new();
        ring.drain(|event| {
            match EventKind::from_u8(event.kind) {
                Some(EventKind::ClientEnded) => {
                    any = true;
                    keep(&mut result, sink.ending(event, session.start_ns()));
                }
                Some(EventKind::ProcessExited) => {
                    // Its last threads can end on several CPUs at once, and each of them then sees that none is left.
                    let last = exited.insert(event.pid, event.time_ns);
                    if last.is_none_or(|last| event.time_ns.abs_diff(last) > SAME_EXIT_NS) {
                        exits.push((event.time_ns, exit_label(event)));
                    }
                }
                _ => {}
            }
            if event.cause == Cause::Filtered as u8 {
                reasons.insert(event.detail);
            }
            if let Some(recorder) = recorder {
                keep(&mut result, recorder.event(event));
            }
            story.apply(event, &mut |decision| {
                any = true;
                keep(&mut result, sink.decision(decision, session.start_ns(), |r| session.drop_reason(r)));
            });
        });
        if any {
            sink.flush()?;
        }
        result?;
        let room = EXIT_MARKS.saturating_sub(self.exits);
        exits.truncate(room);
        self.exits += exits.len();
        self.mark(exits, false)?;
        self.look_at_ports();
        Ok(())
    }

    /// Where local ports have run out for the first time: what holds them, while they are held.
    fn look_at_ports(&mut self) {
        let new = |d: &&Destination| !self.looked_at.contains(*d);
        let destinations: Vec<Destination> =
            self.story.destinations().filter(new).take(PORTS_LOOKED_AT - self.looked_at.len()).copied().collect();
        for destination in destinations {
            self.ports_in_use.extend(self.session.ports_in_use(&destination));
            self.looked_at.insert(destination);
        }
    }

    fn tick(&mut self, sink: &mut Sink) -> Result<()> {
        let Run { session, story, .. } = self;
        let mut result = Ok(());
        let now_ns = monotonic_ns();
        session.make_room(now_ns)?;
        story.tick(now_ns, &mut |decision| {
            keep(&mut result, sink.decision(decision, session.start_ns(), |r| session.drop_reason(r)));
        });
        result
    }

    /// Notes the counts of this moment, for each of the given moments and labels.
    fn mark(&mut self, marks: Vec<(u64, String)>, asked: bool) -> Result<()> {
        if marks.is_empty() {
            return Ok(());
        }
        let slots = self.session.slots()?;
        let now = self.story.ledger.snapshot(&slots).into_iter().fold(Account::default(), |sum, (_, a)| sum + a);
        let start_ns = self.session.start_ns();
        self.marks.extend(marks.into_iter().map(|(at_ns, label)| MarkFacts {
            at_ns: at_ns.saturating_sub(start_ns),
            label,
            asked,
            accepted: now.accepted,
            lost: now.lost.total(),
        }));
        Ok(())
    }

    fn report(mut self, ended_by: Ending, command: Option<CommandFacts>, sink: &mut Sink) -> Result<Report> {
        self.session.end()?;
        self.drain(sink)?;
        let mut marks = std::mem::take(&mut self.marks);
        marks.sort_by_key(|mark| mark.at_ns);
        let ports = std::mem::take(&mut self.ports_in_use);
        let reasons = std::mem::take(&mut self.reasons);
        let mut facts =
            self.session.facts(ended_by, command, marks, ports, reasons.into_iter(), self.ring.unreadable)?;
        let cost = self.session.cost(&self.ring, &facts);
        cost.lines().iter().for_each(|line| info!("{line}"));
        facts.cost = Some(cost);
        let Run { session, ring, story, recorder, .. } = self;
        // Nothing stays attached while the report is written.
        let start_ns = session.start_ns();
        drop((session, ring));
        if let Some(recorder) = recorder {
            recorder.finish(&facts)?;
        }
        let mut result = Ok(());
        let report = assemble(&facts, story, &mut |decision| {
            keep(&mut result, sink.decision(decision, start_ns, |r| facts.drop_reasons.get(&r).cloned()));
        });
        result.map(|()| report)
    }
}

/// Keeps the first error of many.
fn keep(first: &mut Result<()>, result: Result<()>) {
    if first.is_ok() {
        *first = result;
    }
}

async fn ended(command: &mut Option<Running>) -> std::io::Result<CommandFacts> {
    match command {
        Some(running) => running.ended().await,
        None => std::future::pending().await,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Interrupt,
    Terminate,
    Mark,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    mark: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let on = |kind| signal(kind).context("cannot handle signals");
        Ok(Signals {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            mark: on(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::Interrupt,
            _ = self.terminate.recv() => Asked::Terminate,
            _ = self.mark.recv() => Asked::Mark,
        }
    }
}

/// A recording that is being written.
struct Recorder {
    writer: recording::Writer<BufWriter<File>>,
    batch: Vec<Event>,
    path: String,
}

impl Recorder {
    fn create(path: &std::path::Path) -> Result<Recorder> {
        let shown = path.display().to_string();
        let failed = || format!("cannot write the recording to {shown}");
        let file = File::create(path).with_context(failed)?;
        let metadata = serde_json::json!({ "tracer": env!("CARGO_PKG_VERSION") });
        let writer = recording::Writer::new(BufWriter::new(file), &metadata).with_context(failed)?;
        Ok(Recorder { writer, batch: Vec::with_capacity(BATCH), path: shown })
    }

    fn event(&mut self, event: &Event) -> Result<()> {
        self.batch.push(*event);
        if self.batch.len() >= BATCH { self.write_batch() } else { Ok(()) }
    }

    fn write_batch(&mut self) -> Result<()> {
        let result = self.writer.events(&self.batch);
        self.batch.clear();
        result.with_context(|| format!("cannot write the recording to {}", self.path))
    }

    fn finish(mut self, facts: &super::facts::Facts) -> Result<()> {
        if !self.batch.is_empty() {
            self.write_batch()?;
        }
        let failed = || format!("cannot write the recording to {}", self.path);
        let facts = serde_json::to_value(facts).with_context(failed)?;
        self.writer.json(&facts).with_context(failed)?;
        self.writer.finish().with_context(failed)?;
        Ok(())
    }
}
