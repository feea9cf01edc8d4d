//! Who watches the load: nobody, the tracer in each flavour, and other programs of Debian with the nearest job.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::process::Process;
use crate::host;

/// Counts states, drops and accepts in the kernel: the least of what the tracer does that a bpftrace script would.
const BPFTRACE: &str = "BEGIN { printf(\"ready\\n\"); } \
    tracepoint:sock:inet_sock_set_state /args->dport == PORT || args->sport == PORT/ { @state[args->newstate] = count(); } \
    tracepoint:skb:kfree_skb { @drop[args->reason] = count(); } \
    tracepoint:syscalls:sys_exit_accept4 { @accept = count(); }";

/// A program that does nothing at the end of `accept4()`: what it costs to be told of accepts at all where no function can be hooked, for
/// one such program sends every system call of every process on the kernel's slow way.
const EMPTY: &str =
    "BEGIN { printf(\"ready\\n\"); } tracepoint:syscalls:sys_exit_accept4 /pid == 0/ { @never = count(); }";

/// Beside whom a load is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// The tracer, in a flavour.
    Tracer(&'static str),
    /// A capture that keeps nothing.
    Tcpdump,
    /// A script that counts.
    Bpftrace,
    /// [`EMPTY`].
    Empty,
}

impl Peer {
    pub(super) const ALL: [Peer; 6] = [
        Peer::Tracer("tracepoint"),
        Peer::Tracer("fentry"),
        Peer::Tracer("kprobe"),
        Peer::Tcpdump,
        Peer::Bpftrace,
        Peer::Empty,
    ];

    pub(super) fn name(self) -> String {
        match self {
            Peer::Tracer(flavour) => format!("tracer, {flavour}"),
            Peer::Tcpdump => "tcpdump -w /dev/null".into(),
            Peer::Bpftrace => "bpftrace, three tracepoints".into(),
            Peer::Empty => "bpftrace, nothing at sys_exit_accept4".into(),
        }
    }

    /// Starts it on a port of a namespace and waits until it watches. The error is why it cannot.
    pub(super) fn start(self, tracer: &Path, netns: &str, port: u16) -> anyhow::Result<Process> {
        let port = port.to_string();
        let (mut command, ready) = match self {
            Peer::Tracer(flavour) => {
                let mut command = Command::new(tracer);
                command.args(["--port", &port, "--netns", netns, "--hooks", flavour, "--format", "json"]);
                (command, "tracing ")
            }
            Peer::Tcpdump => {
                let mut command = within(netns, &program("tcpdump")?);
                command.args(["-i", "any", "-w", "/dev/null", "port", &port]);
                (command, "listening on")
            }
            Peer::Bpftrace | Peer::Empty => {
                let script = if self == Peer::Empty { EMPTY } else { BPFTRACE };
                let mut command = Command::new(program("bpftrace")?);
                command.args(["-e", &script.replace("PORT", &port)]);
                (command, "ready")
            }
        };
        let mut process = Process::start(&mut command)?;
        process.line_within(ready, Duration::from_secs(20))?;
        Ok(process)
    }
}

/// A program that runs in a namespace.
fn within(netns: &str, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={netns}")).arg(program);
    command
}

fn program(name: &str) -> anyhow::Result<PathBuf> {
    host::find_program(name).ok_or_else(|| anyhow::anyhow!("{name} is not installed"))
}
