//! The current task, and the system call that it is in.

use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf, bpf_task_pt_regs,
};

use tracer_abi::abi::Ender;

use super::{Sock, config, read, read_or_zero};

/// Thread group and thread, as `bpf_get_current_pid_tgid()` packs them.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    /// Thread group in the upper half, thread in the lower.
    pub(crate) id: u64,
}

/// The current task.
#[inline(always)]
pub(crate) fn current() -> Task {
    Task { id: bpf_get_current_pid_tgid() }
}

/// Address of the current `struct task_struct`.
#[inline(always)]
fn address() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

impl Task {
    /// What user space calls the pid.
    #[inline(always)]
    pub(crate) fn pid(self) -> u32 {
        (self.id >> 32) as u32
    }

    /// What it ends with, as `wait()` will give it, once it does: the signal in the low seven bits, else the status above.
    #[inline(always)]
    pub(crate) fn exit_code(self) -> u32 {
        read_or_zero(address() + config!(offsets.task_exit_code) as u64)
    }

    /// How many threads its process has left, besides those that are ending.
    #[inline(always)]
    pub(crate) fn threads_left(self) -> u32 {
        let shared: u64 = read_or_zero(address() + config!(offsets.task_signal) as u64);
        read_or_zero(shared + config!(offsets.signal_live) as u64)
    }

    /// How it comes to close a socket. Meaningful in process context only.
    #[inline(always)]
    pub(crate) fn ender(self) -> Ender {
        let flags = read_or_zero(address() + config!(offsets.task_flags) as u64);
        Ender::of(flags, self.exit_code(), Syscall::current().number())
    }

    /// The thread's name.
    #[inline(always)]
    pub(crate) fn comm(self) -> [u8; 16] {
        bpf_get_current_comm().unwrap_or([0; 16])
    }
}

/// The registers that the current task brought into the kernel.
#[derive(Clone, Copy)]
pub(crate) struct Syscall(u64);

impl Syscall {
    /// The current one. Meaningful in process context only. Without the helper (before 5.15) they are taken from where they lie:
    /// at the upper end of the kernel stack, 16 KiB on x86_64 (more only with KASAN).
    #[inline(always)]
    pub(crate) fn current() -> Syscall {
        const REGS_AT: u64 = 16384 - 168;
        if config!(has_task_regs) == 0 {
            return Syscall(read_or_zero::<u64>(address() + config!(offsets.task_stack) as u64) + REGS_AT);
        }
        // SAFETY: the current task always exists, and the helper takes exactly this pointer.
        Syscall(unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64)
    }

    /// The system call's number, as it was asked for.
    #[inline(always)]
    pub(crate) fn number(self) -> u64 {
        read_or_zero(self.0 + config!(offsets.regs_nr) as u64)
    }

    /// Its first argument, which the kernel leaves in place.
    #[inline(always)]
    pub(crate) fn arg0(self) -> u64 {
        read_or_zero(self.0 + config!(offsets.regs_arg0) as u64)
    }

    /// Its second argument.
    #[inline(always)]
    pub(crate) fn arg1(self) -> u64 {
        read_or_zero(self.0 + config!(offsets.regs_arg1) as u64)
    }
}

/// The sock behind a file descriptor of the current task, which must be one of a socket.
#[inline(always)]
pub(crate) fn sock_of_fd(fd: u32) -> Option<Sock> {
    let files: u64 = read(address() + config!(offsets.task_files) as u64)?;
    let table: u64 = read(files + config!(offsets.files_fdt) as u64)?;
    let fds: u64 = read(table + config!(offsets.fdt_fd) as u64)?;
    let file: u64 = read(fds + 8 * fd as u64)?;
    sock_of(read(file + config!(offsets.file_private) as u64)?)
}

/// The sock behind a `struct socket`.
#[inline(always)]
fn sock_of(socket: u64) -> Option<Sock> {
    let sk: u64 = read(socket + config!(offsets.socket_sk) as u64)?;
    if sk == 0 { None } else { Some(Sock(sk)) }
}
