//! `cargo xtask bench`: what it costs to watch a load, beside nobody and beside other programs that watch.
//!
//! Every load is run again and again, each time beside another watcher and in another order; a ratio is always that of two runs of
//! one round, so that a machine that becomes slower does not count. Nothing is judged here: the figures go to docs/performance.md.

mod figures;
mod load;
mod peers;
mod process;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, ensure};

use self::{
    figures::{Range, grouped},
    load::{LOADS, Load, PORT, Speed},
    peers::Peer,
};
use crate::{
    document, host,
    test::{self, SCENARIOS},
    vm,
};

/// Debian's packages with the peers and the loads, and the program that each is needed for.
const PACKAGES: [(&str, &str); 4] =
    [("wrk", "wrk"), ("nginx-light", "nginx"), ("tcpdump", "tcpdump"), ("bpftrace", "bpftrace")];
/// How the page names this command.
const COMMAND: &str = "cargo xtask bench";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How often each load is run beside each watcher
    #[arg(long, default_value_t = 7, value_name = "N")]
    rounds: usize,
    /// Only the loads whose name contains this
    #[arg(long, value_name = "TEXT")]
    load: Option<String>,
    /// Count instructions per connection in guests instead, on every kernel and in every flavour
    #[arg(long)]
    instructions: bool,
    /// With --instructions: only this kernel; may be given more than once [default: all of them]
    #[arg(long, value_enum, requires = "instructions", conflicts_with = "document")]
    kernel: Vec<vm::Kernel>,
    /// Put the output into docs/performance.md
    #[arg(long)]
    document: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let root = host::Workspace::locate()?.root;
    let (command, text) = if options.instructions {
        (format!("{COMMAND} --instructions"), vm::instructions(&options.kernel)?)
    } else {
        (COMMAND.to_owned(), measure(options)?)
    };
    println!("\n{text}");
    if options.document {
        document::put(&root.join("docs/performance.md"), &command, &|_| text.clone())?;
    }
    Ok(())
}

/// The programs under test.
struct Programs {
    tracer: PathBuf,
    load: PathBuf,
}

fn measure(options: &Options) -> anyhow::Result<String> {
    test::check_tracefs()?;
    ensure!(host::is_root(), "the tracer traces the kernel; run: sudo -E cargo xtask bench");
    let missing = |package: &&(&str, &str)| host::find_program(package.1).is_none();
    let packages: Vec<&str> = PACKAGES.iter().filter(missing).map(|package| package.0).collect();
    if !packages.is_empty()
        && let Err(error) = host::install_packages(&packages, "comparing with other programs")
    {
        println!("{error:#}; what is missing is left out");
    }
    let programs = Programs { tracer: test::build_tracer()?, load: build_load()? };
    let mut text = machine()?;
    for load in LOADS.iter().filter(|load| options.load.as_ref().is_none_or(|part| load.name.contains(part.as_str()))) {
        println!("{}", load.name);
        text.push_str(&compare(&programs, load, options.rounds)?);
    }
    if options.load.is_none() {
        text.push_str(&losses(&programs)?);
        text.push_str(&sizes(&programs)?);
    }
    Ok(text)
}

fn build_load() -> anyhow::Result<PathBuf> {
    let mut build = host::cargo();
    build.args(["build", "--release", "--package", SCENARIOS, "--bin", "tracer-load"]);
    host::execute(&mut build)?;
    Ok(host::Workspace::locate()?.target.join("release/tracer-load"))
}

/// Where and when this was measured.
fn machine() -> anyhow::Result<String> {
    let kernel = host::output(Command::new("uname").arg("-r"))?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(format!("Kernel {}, {cpus} CPUs ({}).\n\n", kernel.trim(), model.unwrap_or("unknown")))
}

/// One load beside everybody.
fn compare(programs: &Programs, load: &Load, rounds: usize) -> anyhow::Result<String> {
    let mut missing = String::new();
    let mut peers = Vec::new();
    for peer in Peer::ALL {
        match once(programs, load, Some(peer)) {
            Ok(_) => peers.push((peer, (Vec::new(), Vec::new()))),
            Err(error) => {
                println!("  {} is left out: {error:#}", peer.name());
                let _ = writeln!(missing, "- {} was left out: {}", peer.name(), first_sentence(&format!("{error:#}")));
            }
        }
    }
    let mut alone = Vec::new();
    for round in 0..rounds {
        let untraced = once(programs, load, None)?;
        alone.push(untraced.rate);
        // Another order each time.
        let places = peers.len().max(1);
        for i in 0..peers.len() {
            let (peer, ratios) = &mut peers[(i + round) % places];
            let beside = once(programs, load, Some(*peer))?;
            ratios.0.push(untraced.rate / beside.rate);
            ratios.1.extend(beside.median_ns.zip(untraced.median_ns).map(|(beside, alone)| beside / alone));
        }
        println!("  round {}: {} {} a second alone", round + 1, grouped(untraced.rate), load.unit);
    }
    let alone = Range::of(&alone).context("no rounds")?;
    let mut text = format!("### {}\n\n{} a second alone: {}; {rounds} rounds.\n\n", load.name, load.unit, alone.rate());
    let timed = peers.iter().any(|(_, (_, medians))| !medians.is_empty());
    let (more, line) = if timed { (" the median connection |", "---|") } else { ("", "") };
    let _ = writeln!(text, "| beside | time alone = 1, median (range) |{more}\n|---|---|{line}");
    for (peer, (ratios, medians)) in &peers {
        let ratio = Range::of(ratios).context("no rounds")?;
        let median = Range::of(medians).map_or_else(String::new, |it| format!(" {} |", it.ratio()));
        let _ = writeln!(text, "| {} | {} |{median}", peer.name(), ratio.ratio());
    }
    Ok(format!("{text}\n{missing}{}", if missing.is_empty() { "" } else { "\n" }))
}

/// One run of a load beside somebody, or nobody.
fn once(programs: &Programs, load: &Load, peer: Option<Peer>) -> anyhow::Result<Speed> {
    let ready = load.prepare(&programs.load)?;
    let watcher = peer.map(|peer| peer.start(&programs.tracer, &ready.netns(), PORT)).transpose()?;
    let speed = ready.run()?;
    if let Some(mut watcher) = watcher {
        watcher.end()?;
    }
    Ok(speed)
}

fn first_sentence(text: &str) -> &str {
    let end = text.find(['\n', ';']).unwrap_or(text.len());
    &text[..end]
}

/// A hundred thousand lost connections, each with a line; then the recording of them, read again.
fn losses(programs: &Programs) -> anyhow::Result<String> {
    const LOST: u64 = 100_000;
    let scratch = tempfile::tempdir().context("cannot make a directory")?;
    let (lines, recording) = (scratch.path().join("lines"), scratch.path().join("recording"));
    let mut load = process::Process::start(Command::new(&programs.load).args([
        "churn",
        "--lose-half",
        "--connections",
        &(2 * LOST).to_string(),
        "--port",
        &PORT.to_string(),
    ]))?;
    load.line_with("ready")?;
    let netns = format!("/proc/{}/ns/net", load.id());
    let mut command = Command::new(&programs.tracer);
    command.args(["--port", &PORT.to_string(), "--netns", &netns, "--format", "events"]);
    command.arg("--output").arg(&lines).arg("--record").arg(&recording);
    let mut tracer = process::Process::start(&mut command)?;
    tracer.line_with("tracing ")?;
    load.tell("go")?;
    let said: serde_json::Value =
        serde_json::from_str(&load.line_with("seconds")?).context("a load did not say JSON")?;
    load.ended()?;
    tracer.end()?;

    let text = fs::read_to_string(&lines).context("cannot read the tracer's lines")?;
    let (mut clients, mut count) = (std::collections::BTreeSet::new(), 0_u64);
    let mut report = serde_json::Value::Null;
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).context("a line is no JSON")?;
        if line["event"] == "lost" {
            count += 1;
            clients.insert((line["client_port"].as_u64(), line["at_seconds"].as_f64().map(f64::to_bits)));
        } else if line.get("totals").is_some() {
            report = line;
        }
    }
    let seconds = said["seconds"].as_f64().context("a load did not say how long it took")?;
    let cost = |key: &str| report["cost"][key].as_f64().unwrap_or(f64::NAN);
    let spent = cost("cpu_seconds") - cost("attach_cpu_seconds");
    let mut out = format!(
        "### {} lost connections\n\n| figure | measured |\n|---|---|\n| lost in | {seconds:.1} s |\n| lines `lost` | {} |\n\
         | events lost | {} |\n| `check.exact` | {} |\n| the collector's CPU time, report included | {spent:.2} s: {:.1} % of one core |\n\
         | resident at most | {:.1} MiB |\n",
        grouped(LOST as f64),
        grouped(count as f64),
        report["check"]["events_lost"],
        report["check"]["exact"],
        100.0 * spent / seconds,
        cost("peak_memory_bytes") / f64::from(1 << 20)
    );
    let events = report["cost"]["ring"]["events"].as_f64().unwrap_or(f64::NAN);
    let replayed = Instant::now();
    host::output(Command::new(&programs.tracer).arg("replay").arg(&recording).args(["--format", "json"]))?;
    let took = replayed.elapsed().as_secs_f64();
    let _ = writeln!(
        out,
        "| replay of its {} events | {took:.2} s: {} a second, report included |",
        grouped(events),
        grouped(events / took)
    );
    Ok(format!("{out}\n"))
}

/// How long it takes to begin, and how large the programs are.
fn sizes(programs: &Programs) -> anyhow::Result<String> {
    let mut starts = Vec::new();
    for _ in 0..11 {
        let begun = Instant::now();
        let mut tracer = Peer::Tracer("auto").start(&programs.tracer, "self", PORT)?;
        starts.push(begun.elapsed().as_secs_f64() * 1000.0);
        tracer.end()?;
    }
    let starts = Range::of(&starts).context("no starts")?;
    let size = |path: &Path| fs::metadata(path).map(|file| file.len() as f64 / f64::from(1 << 20));
    let mut text = format!(
        "### Size and start\n\n| figure | measured |\n|---|---|\n| start to `tracing ` | {:.0} ms ({:.0} to {:.0}) |\n| release binary | {:.2} MiB |\n",
        starts.median,
        starts.least,
        starts.greatest,
        size(&programs.tracer).context("no tracer")?
    );
    let target = "x86_64-unknown-linux-musl";
    let mut build = host::cargo();
    build.args(["build", "--release", "--package", "tracer", "--target", target]);
    host::execute(&mut build).context("the static build failed")?;
    let path = host::Workspace::locate()?.target.join(target).join("release/tracer");
    let _ = writeln!(text, "| the same, static (musl) | {:.2} MiB |", size(&path).context("no static tracer")?);
    Ok(format!("{text}\n"))
}
