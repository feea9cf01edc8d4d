//! Who ends a local client's connection.

/// Ways in which a process comes to send a FIN or a RST.
pub const ENDERS: usize = 5;

/// What made the kernel send the FIN, or the RST, of a local client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Ender {
    /// The process closed the last descriptor of the socket: `close()`, `close_range()`, or `dup2()` over it.
    Close = 0,
    /// `shutdown()`.
    Shutdown = 1,
    /// The process ended by itself, and the kernel closed what it had open.
    Exit = 2,
    /// A signal ended the process, and the kernel closed what it had open.
    Signal = 3,
    /// Something else: `execve()` with close-on-exec, io_uring, a kernel thread.
    Other = 4,
}

impl Ender {
    /// All, in the order of their numbers.
    pub const ALL: [Ender; ENDERS] = [Ender::Close, Ender::Shutdown, Ender::Exit, Ender::Signal, Ender::Other];

    /// The id in reports.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Ender::Close => "close",
            Ender::Shutdown => "shutdown",
            Ender::Exit => "exit",
            Ender::Signal => "signal",
            Ender::Other => "other",
        }
    }

    /// By a task's `flags` and `exit_code`, and the number of the system call that it is in (x86_64).
    ///
    /// `do_exit()` sets PF_EXITING and the exit code before it closes files. The code is that of the whole process: its low seven
    /// bits are the signal that ended it.
    #[must_use]
    #[inline(always)]
    pub const fn of(task_flags: u32, exit_code: u32, syscall: u64) -> Ender {
        const PF_EXITING: u32 = 4;
        if task_flags & PF_EXITING != 0 {
            return if exit_code & 0x7f != 0 { Ender::Signal } else { Ender::Exit };
        }
        match syscall {
            // close, dup2, dup3, close_range
            3 | 33 | 292 | 436 => Ender::Close,
            48 => Ender::Shutdown,
            _ => Ender::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ends_closes_nothing_itself() {
        // In the middle of a close() or not: the kernel does it.
        assert_eq!(Ender::of(4, 2, 3), Ender::Signal);
        assert_eq!(Ender::of(4 | 0x40, 9 | 0x80, 231), Ender::Signal);
        assert_eq!(Ender::of(4, 1 << 8, 231), Ender::Exit);
        assert_eq!(Ender::of(0, 0, 3), Ender::Close);
        assert_eq!(Ender::of(0, 0, 48), Ender::Shutdown);
        assert_eq!(Ender::of(0x40, 9, 59), Ender::Other);
    }

    #[test]
    fn numbers_are_positions() {
        for (position, ender) in Ender::ALL.into_iter().enumerate() {
            assert_eq!(ender as usize, position);
        }
    }
}
