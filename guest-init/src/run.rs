//! Running probes and tests, each for a limited time.
//!
//! Orphans that end are not waited for: that could take another thread's child from it, and a guest does not live long.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use guest_init::{
    line::{Line, Verdict},
    plan::{Plan, Probe, Scenario},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use crate::host::Host;

/// Where each running test has a directory, for what it writes and for recordings: those of a test that did not pass are
/// sent to the host.
const WORK: &str = "/tmp/guest-init";

/// A test, and where it comes from.
struct Test<'a> {
    scenario: &'a Scenario,
    name: String,
}

/// Runs every test of every scenario in a process of its own: first those that do not mind company, as many at a time as the
/// plan wants, then the others one after another.
pub(crate) fn scenarios(host: &Host, plan: &Plan) -> anyhow::Result<()> {
    let mut tests = Vec::new();
    for scenario in &plan.scenarios {
        let names = list(scenario)?;
        host.tell(&Line::Listed { scenario: scenario.name.clone(), tests: names.len() as u64 })?;
        tests.extend(names.into_iter().map(|name| Test { scenario, name }));
    }
    let (alone, together): (Vec<_>, Vec<_>) = tests.into_iter().partition(|test| test.scenario.alone);
    for (tests, workers) in [(together, plan.workers.max(1)), (alone, 1)] {
        let queue = Mutex::new(tests.into_iter());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || std::iter::from_fn(next).try_for_each(|test| run(host, &test, plan));
        thread::scope(|scope| {
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let mut outcomes = workers.into_iter().map(ScopedJoinHandle::join);
            outcomes.try_for_each(|it| it.unwrap_or_else(|_| bail!("a thread of guest-init panicked")))
        })?;
    }
    Ok(())
}

fn list(scenario: &Scenario) -> anyhow::Result<Vec<String>> {
    let path = &scenario.path;
    let listing = Command::new(path).args(["--list", "--format", "terse"]).stdin(Stdio::null()).output();
    let listing = listing.with_context(|| format!("cannot start {path}"))?;
    ensure!(listing.status.success(), "cannot list the tests of {path}: {}", listing.status);
    let text = String::from_utf8_lossy(&listing.stdout);
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

fn run(host: &Host, test: &Test<'_>, plan: &Plan) -> anyhow::Result<()> {
    let scenario = &test.scenario.name;
    let label = format!("{scenario}::{}", test.name);
    let directory = Path::new(WORK).join(label.replace(':', "-"));
    let recordings = directory.join("recordings");
    fs::create_dir_all(&recordings).with_context(|| format!("cannot make {}", recordings.display()))?;
    host.tell(&Line::Begun { scenario: scenario.clone(), test: test.name.clone() })?;
    let begun = Instant::now();
    let output = directory.join("output");
    let file = File::create(&output).with_context(|| format!("cannot make {}", output.display()))?;
    let also = file.try_clone().context("cannot use a file twice")?;
    let mut command = Command::new(&test.scenario.path);
    // A test that is switched off runs all the same: nothing is skipped in silence.
    command.args(["--exact", &test.name, "--include-ignored", "--test-threads=1"]);
    command.env("TRACER_RECORDINGS", &recordings).stdout(file).stderr(also);
    let verdict = match limited(&mut command, plan)? {
        None => Verdict::Hung,
        Some(status) if status.success() => Verdict::Passed,
        Some(_) => Verdict::Failed,
    };
    let took_ms = milliseconds(begun.elapsed());
    if verdict != Verdict::Passed {
        let text = fs::read(&output).with_context(|| format!("cannot read {}", output.display()))?;
        println!("== {label} {} after {took_ms} ms\n{}", verdict.word(), String::from_utf8_lossy(&text));
        send_all(host, &label, &recordings)?;
    }
    fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    host.tell(&Line::Ended { scenario: scenario.clone(), test: test.name.clone(), verdict, took_ms })
}

/// Runs a command for its exit code and its last words.
pub(crate) fn probe(host: &Host, probe: &Probe, plan: &Plan) -> anyhow::Result<()> {
    const STDERR: &str = "/tmp/probe";
    println!("== probe {}: {}", probe.name, probe.argv.join(" "));
    let stderr = File::create(STDERR).with_context(|| format!("cannot make {STDERR}"))?;
    let [program, arguments @ ..] = &probe.argv[..] else { unreachable!("a parsed probe has a program") };
    let mut command = Command::new(program);
    command.args(arguments).stderr(stderr);
    let status = limited(&mut command, plan)?;
    let said = fs::read(STDERR).with_context(|| format!("cannot read {STDERR}"))?;
    let said = String::from_utf8_lossy(&said);
    println!("{said}== probe {}: {status:?}", probe.name);
    let message = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().to_owned();
    host.tell(&Line::Probed { name: probe.name.clone(), code: status.and_then(|it| it.code()), message })
}

/// Runs a command in a process group of its own, and kills the group when the plan's limit is over: then there is no status.
fn limited(command: &mut Command, plan: &Plan) -> anyhow::Result<Option<ExitStatus>> {
    command.envs(plan.environment.iter().cloned()).stdin(Stdio::null()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("the kernel gave no process id")?;
    if ends_within(pid, plan.limit)? {
        return wait_for(&mut child).map(Some);
    }
    println!("== still running after {} s, killed", plan.limit.as_secs());
    kill_process_group(pid, Signal::KILL).context("cannot kill what hangs")?;
    wait_for(&mut child)?;
    Ok(None)
}

fn ends_within(pid: Pid, limit: Duration) -> anyhow::Result<bool> {
    let handle = pidfd_open(pid, PidfdFlags::empty()).context("cannot watch a process")?;
    let limit = Timespec::try_from(limit).context("the limit is too long")?;
    // Readable means ended; nothing interrupts a process that handles no signal.
    let ended = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit)).context("cannot wait for a process")?;
    Ok(ended > 0)
}

fn wait_for(child: &mut Child) -> anyhow::Result<ExitStatus> {
    child.wait().context("cannot wait for a process")
}

fn send_all(host: &Host, label: &str, directory: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", directory.display()))?.path();
        if path.is_file() {
            host.send(label, &path)?;
        }
    }
    Ok(())
}

/// Whole milliseconds.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
