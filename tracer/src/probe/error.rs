//! Why tracing cannot begin.

/// Each names the object and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Not privileged enough.
    #[error(
        "not permitted to load eBPF programs: run with sudo, or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_SYSLOG{0}"
    )]
    NotPermitted(String),
    /// The object does not parse, or its maps cannot be made.
    #[error("cannot prepare the eBPF object: {0}")]
    Object(String),
    /// The kernel does not say what the programs have to know.
    #[error(transparent)]
    Kernel(#[from] crate::kernel::KernelError),
    /// A program was refused.
    #[error("hook {hook}: the kernel refused program {program}: {reason}")]
    Refused {
        /// The hook.
        hook: &'static str,
        /// The program.
        program: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// A program could not be attached.
    #[error("hook {hook}: cannot attach to {place}: {reason}")]
    Attach {
        /// The hook.
        hook: &'static str,
        /// Where.
        place: String,
        /// What the kernel said.
        reason: String,
    },
    /// tracefs is not there.
    #[error(
        "cannot use tracefs, which lists the system call tracepoints: {0}; mount it with `mount -t tracefs tracefs /sys/kernel/tracing`"
    )]
    Tracefs(std::io::Error),
    /// A map could not be read or written.
    #[error("cannot use map {map}: {reason}")]
    Map {
        /// The map.
        map: &'static str,
        /// What went wrong.
        reason: String,
    },
    /// The control program could not be run.
    #[error("cannot run the control program on CPU {cpu}: {reason}")]
    Control {
        /// The CPU.
        cpu: usize,
        /// What went wrong.
        reason: String,
    },
    /// A namespace's sockets could not be listed.
    #[error("cannot list the TCP sockets of network namespace {netns}: {reason}")]
    Snapshot {
        /// Its inode number.
        netns: u32,
        /// What went wrong.
        reason: String,
    },
    /// The kernel does not count and time the runs of programs.
    #[error("the kernel does not time programs: {0}")]
    Timing(String),
    /// Nothing that this kernel takes does for a hook.
    #[error("hook {hook} ({without}) cannot be attached {reasons}{remedy}")]
    NoWay {
        /// The hook.
        hook: &'static str,
        /// What cannot be told without it.
        without: &'static str,
        /// Why each flavour was ruled out.
        reasons: String,
        /// What may help, where there is something.
        remedy: &'static str,
    },
}
