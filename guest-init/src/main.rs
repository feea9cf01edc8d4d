//! PID 1 of a test guest.
//!
//! Mounts what a distribution would mount, loads the planned modules, runs the plan and tells the host about it on the
//! second serial port. The console (the first) gets what the tests print and the kernel's messages. The machine ends through
//! QEMU's isa-debug-exit device: whatever ends it otherwise (a panic, a reboot) gives QEMU another status.

use std::{
    fs,
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
    let host = Host::connect()?;
    let outcome = follow_plan(&host);
    if let Err(error) = &outcome {
        host.tell(&Line::Trouble { message: format!("{error:#}") })?;
    } else {
        host.tell(&Line::Done)?;
    }
    host.drain()?;
    outcome
}

fn follow_plan(host: &Host) -> anyhow::Result<()> {
    let text = fs::read_to_string(plan::PATH).with_context(|| format!("cannot read {}", plan::PATH))?;
    let plan = Plan::parse(&text)?;
    setup::limits()?;
    setup::modules(&plan.modules)?;
    setup::loopback()?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let uptime = Duration::new(uptime.tv_sec.cast_unsigned(), u32::try_from(uptime.tv_nsec).unwrap_or(0));
    host.tell(&Line::Ready { release, uptime_ms: run::milliseconds(uptime) })?;
    for probe in &plan.probes {
        run::probe(host, probe, &plan)?;
    }
    run::scenarios(host, &plan)?;
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
    const PORT: u16 = 0xf4;
    let value: u8 = if success { 1 } else { 2 };
    // SAFETY: ioperm takes no pointer; the guest has nothing else at this port.
    if unsafe { libc::ioperm(PORT.into(), 1, 1) } == 0 {
        // SAFETY: the kernel has just allowed this process that port; the instruction touches no memory.
        unsafe {
            std::arch::asm!("out dx, al", in("dx") PORT, in("al") value, options(nomem, nostack, preserves_flags))
        };
    } else {
        println!("guest-init: cannot end the machine: {}", std::io::Error::last_os_error());
    }
    // Without that device the end of PID 1 is a panic, which ends the machine too.
    std::process::exit(value.into())
}
