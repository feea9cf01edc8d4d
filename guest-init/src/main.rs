//! PID 1 of a test guest.
//!
//! Mounts what a distribution would mount, loads the planned modules, runs the plan and tells the host about it on the
//! second serial port. The console (the first) gets what the tests print and the kernel's messages. The machine ends through
//! QEMU's isa-debug-exit device: whatever ends it otherwise (a panic, a reboot) gives QEMU another status.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use guest_init::{
    line::Line,
    plan::{self, Plan},
};

mod host;
mod run;
mod setup;

use host::Host;

fn main() -> ! {
    let outcome = work();
    if let Err(error) = &outcome {
        println!("guest-init: {error:#}");
    }
    end(outcome.is_ok());
}

fn work() -> anyhow::Result<()> {
    setup::mounts()?;
    let mut host = Host::connect()?;
    let outcome = follow_plan(&mut host);
    if let Err(error) = &outcome {
        host.tell(&Line::Trouble { message: format!("{error:#}") })?;
    } else {
        host.tell(&Line::Done)?;
    }
    host.drain()?;
    outcome
}

fn follow_plan(host: &mut Host) -> anyhow::Result<()> {
    let text = fs::read_to_string(plan::PATH).with_context(|| format!("cannot read {}", plan::PATH))?;
    let plan = Plan::parse(&text)?;
    setup::modules(&plan.modules)?;
    setup::loopback()?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let uptime = Duration::new(uptime.tv_sec.cast_unsigned(), u32::try_from(uptime.tv_nsec).unwrap_or(0));
    host.tell(&Line::Ready { release, uptime_ms: run::milliseconds(uptime) })?;
    for probe in &plan.probes {
        run::probe(host, probe, &plan)?;
    }
    for scenario in &plan.scenarios {
        run::scenario(host, scenario, &plan)?;
    }
    if plan.shell {
        shell(&plan)?;
    }
    Ok(())
}

/// A shell with job control: it needs a session and a controlling terminal of its own.
fn shell(plan: &Plan) -> anyhow::Result<()> {
    const BUSYBOX: &str = "/bin/busybox";
    let applets = Command::new(BUSYBOX).args(["--install", "-s", "/bin"]).status().context("cannot start busybox")?;
    ensure!(applets.success(), "busybox cannot install its applets: {applets}");
    let mut command = Command::new(BUSYBOX);
    command.args(["setsid", "cttyhack", "sh", "-l"]).envs(plan.environment.iter().cloned());
    command.stdin(Stdio::inherit()).status().context("cannot start a shell")?;
    Ok(())
}

/// Ends the machine: QEMU's status is 3 after success and 5 after failure.
fn end(success: bool) -> ! {
    // Writing to /dev/port at an offset is an `outb` to that port.
    const PORT: u64 = 0xf4;
    let value = if success { 1 } else { 2 };
    let port = fs::OpenOptions::new().write(true).open("/dev/port");
    if let Err(error) = port.and_then(|port| port.write_all_at(&[value], PORT)) {
        println!("guest-init: cannot end the machine: {error}");
    }
    // Without that device the end of PID 1 is a panic, which ends the machine too.
    std::process::exit(value.into())
}
