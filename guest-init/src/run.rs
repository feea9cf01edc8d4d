//! Running probes and tests, each for a limited time.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use guest_init::{
    line::{Line, Verdict},
    plan::{Plan, Probe, Scenario},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, wait},
};

use crate::host::Host;

/// Tests may leave recordings here; those of a scenario that failed are sent to the host.
const RECORDINGS: &str = "/tmp/recordings";

/// Runs every test of a scenario in a process of its own, so that each has its own time limit.
pub(crate) fn scenario(host: &mut Host, scenario: &Scenario, plan: &Plan) -> anyhow::Result<()> {
    let listing = Command::new(&scenario.path).args(["--list", "--format", "terse"]).stdin(Stdio::null()).output();
    let listing = listing.with_context(|| format!("cannot start {}", scenario.path))?;
    let text = String::from_utf8_lossy(&listing.stdout);
    ensure!(listing.status.success(), "cannot list the tests of {}: {}", scenario.path, listing.status);
    let tests: Vec<&str> = text.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    host.tell(&Line::Listed { scenario: scenario.name.clone(), tests: tests.len() as u64 })?;
    for test in tests {
        fs::create_dir_all(RECORDINGS).with_context(|| format!("cannot make {RECORDINGS}"))?;
        let name = &scenario.name;
        host.tell(&Line::Begun { scenario: name.clone(), test: test.into() })?;
        println!("== {name}::{test}");
        let begun = Instant::now();
        let verdict = self::test(&scenario.path, test, plan)?;
        let took_ms = milliseconds(begun.elapsed());
        println!("== {name}::{test} {} after {took_ms} ms", verdict.word());
        if verdict != Verdict::Passed {
            send_recordings(host, name)?;
        }
        fs::remove_dir_all(RECORDINGS).with_context(|| format!("cannot remove {RECORDINGS}"))?;
        host.tell(&Line::Ended { scenario: name.clone(), test: test.into(), verdict, took_ms })?;
        reap();
    }
    Ok(())
}

fn test(path: &str, test: &str, plan: &Plan) -> anyhow::Result<Verdict> {
    let mut command = Command::new(path);
    // A test that is switched off runs all the same: nothing is skipped in silence.
    command.args(["--exact", test, "--include-ignored", "--test-threads=1"]);
    command.env("TRACER_RECORDINGS", RECORDINGS);
    Ok(match limited(&mut command, plan)? {
        None => Verdict::Hung,
        Some(status) if status.success() => Verdict::Passed,
        Some(_) => Verdict::Failed,
    })
}

/// Runs a command for its exit code and its last words.
pub(crate) fn probe(host: &mut Host, probe: &Probe, plan: &Plan) -> anyhow::Result<()> {
    const STDERR: &str = "/tmp/probe";
    println!("== probe {}: {}", probe.name, probe.argv.join(" "));
    let stderr = fs::File::create(STDERR).with_context(|| format!("cannot make {STDERR}"))?;
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

fn send_recordings(host: &mut Host, scenario: &str) -> anyhow::Result<()> {
    for entry in fs::read_dir(RECORDINGS).with_context(|| format!("cannot read {RECORDINGS}"))? {
        let path = entry.with_context(|| format!("cannot read {RECORDINGS}"))?.path();
        if Path::is_file(&path) {
            host.send(scenario, &path)?;
        }
    }
    Ok(())
}

/// Orphans become children of PID 1. Called while nobody else waits for any.
fn reap() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

/// Whole milliseconds.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
