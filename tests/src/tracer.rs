//! The program under test: how it is started, stopped and heard.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::hidden::{Evidence, Hidden};
use crate::namespace::Namespace;
use crate::{sys, wait};

/// The longest that the tracer may take to become ready or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test.
///
/// # Errors
/// Fails when it is not there, and says how to build it.
pub fn program() -> Result<PathBuf> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/tracer");
    let path = std::env::var_os("TRACER_BIN").map_or_else(|| built.into(), PathBuf::from);
    path.canonicalize()
        .with_context(|| format!("no tracer at {}: build it with `cargo build --release`", path.display()))
}

/// How to start the program. Start from [`Start::on_host`] or [`Start::inside`].
#[derive(Debug)]
pub struct Start<'a> {
    command: Command,
    host: Option<BorrowedFd<'a>>,
    stdout: Option<Stdio>,
    port: Option<u16>,
}

impl<'a> Start<'a> {
    /// From the namespace that the test came from, as a user would.
    ///
    /// # Errors
    /// Fails when the program is not there.
    pub fn on_host(namespace: &'a Namespace) -> Result<Self> {
        Ok(Self { host: Some(namespace.host()), ..Self::inside()? })
    }

    /// From the namespace that the calling thread is in.
    ///
    /// # Errors
    /// Fails when the program is not there.
    pub fn inside() -> Result<Self> {
        Ok(Self::program(&program()?))
    }

    /// Another program file, from the namespace that the calling thread is in.
    #[must_use]
    pub fn program(path: &Path) -> Self {
        Self { command: Command::new(path), host: None, stdout: None, port: None }
    }

    /// Traces one port, and gathers evidence beside the tracer of what of this port it may not have been shown.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self.args(["--port", &port.to_string()])
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.command.args(arguments.into_iter().map(Into::into));
        self
    }

    /// Whether this argument is among those that were added.
    #[must_use]
    pub fn has(&self, argument: &str) -> bool {
        self.command.get_args().any(|it| it == argument)
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.command.env(name, value.into());
        self
    }

    /// A copy of the tracer in this directory, run by nobody, without any capability: the build directory may be closed to others.
    ///
    /// # Errors
    /// Fails when it cannot be copied.
    pub fn by_nobody(directory: &Path) -> Result<Self> {
        const NOBODY: u32 = 65534;
        let all = || Permissions::from_mode(0o755);
        fs::set_permissions(directory, all())?;
        let copy = directory.join("tracer");
        if !copy.exists() {
            fs::copy(program()?, &copy)?;
            fs::set_permissions(&copy, all())?;
        }
        let mut start = Self::program(&copy);
        start.command.uid(NOBODY).gid(NOBODY);
        Ok(start)
    }

    /// Gives it another stdout than the pipe that the outcome reads.
    #[must_use]
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// Starts it, without waiting for anything.
    ///
    /// # Errors
    /// Fails when it cannot be started.
    pub fn spawn(mut self) -> Result<Tracer> {
        if let Some(host) = self.host {
            let host = host.as_raw_fd();
            let enter = move || {
                // SAFETY: the namespace that `host` belongs to is borrowed for
                // as long as this value lives, and `spawn` returns after this ran.
                let host = unsafe { BorrowedFd::borrow_raw(host) };
                Ok(move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Network))?)
            };
            // SAFETY: the closure makes one system call and allocates nothing,
            // which is all that is allowed between fork and exec.
            unsafe { self.command.pre_exec(enter) };
        }
        // What a shell starts in the background ignores Ctrl-C, and so would the tracer until it handles it.
        // SAFETY: the closure makes one system call and allocates nothing, which is all that is allowed between fork and exec.
        unsafe { self.command.pre_exec(sys::default_interrupt) };
        self.command
            .stdin(Stdio::null())
            .stdout(self.stdout.take().unwrap_or_else(Stdio::piped))
            .stderr(Stdio::piped());
        let hidden = self.port.map(Hidden::open);
        let mut child = self.command.spawn().context("cannot start the tracer")?;
        let stdout = child.stdout.take().map(read_all);
        let stderr = child.stderr.take().context("the tracer has no stderr")?;
        let (sender, ready) = channel();
        let stderr = reader(move || follow(stderr, &sender));
        Ok(Tracer { child, ready, stdout, stderr, hidden })
    }
}

/// A running tracer; dropping it kills it.
#[derive(Debug)]
pub struct Tracer {
    child: Child,
    ready: Receiver<()>,
    stdout: Option<Receiver<String>>,
    stderr: Receiver<String>,
    hidden: Option<Hidden>,
}

/// What a tracer left behind.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// Its stdout, empty when that was not a pipe of ours.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
    /// What the kernel may have hidden from it: nothing unless it was started with [`Start::port`].
    pub hidden: Evidence,
}

impl Outcome {
    /// The exit code, or why there is none.
    ///
    /// # Errors
    /// Fails when a signal ended the tracer.
    pub fn code(&self) -> Result<i32> {
        self.status
            .code()
            .with_context(|| format!("the tracer was ended by signal {:?}: {}", self.status.signal(), self.stderr))
    }
}

impl Tracer {
    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the line on stderr that says that every hook is attached.
    ///
    /// # Errors
    /// Fails with the tracer's messages when it ends instead.
    pub fn ready(mut self) -> Result<Self> {
        match self.ready.recv_timeout(wait::here(PATIENCE)) {
            Ok(()) => Ok(self),
            Err(RecvTimeoutError::Timeout) => bail!("the tracer was not ready in time"),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().context("cannot wait for the tracer")?;
                bail!("the tracer ended before it was ready, {status}: {}", rest(&self.stderr)?)
            }
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// Fails when it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("no process id")?, signal).context("cannot signal the tracer")
    }

    /// Asks for the report, as Ctrl-C does, and waits for the end.
    ///
    /// # Errors
    /// Fails when it does not end in time.
    pub fn stop(self) -> Result<Outcome> {
        self.signal(Signal::INT)?;
        self.wait()
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// Fails when it does not end in time.
    pub fn wait(mut self) -> Result<Outcome> {
        let deadline = Instant::now() + wait::here(PATIENCE);
        let status = loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for the tracer")? {
                break status;
            }
            if Instant::now() > deadline {
                // Dropping `self` kills it.
                bail!("the tracer did not end in time");
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let hidden = self.hidden.as_ref().map_or_else(|| Ok(Evidence::default()), Hidden::read);
        let hidden = hidden.context("cannot read the counters of what was hidden")?;
        let stdout = self.stdout.as_ref().map_or_else(|| Ok(String::new()), rest)?;
        Ok(Outcome { status, stdout, stderr: rest(&self.stderr)?, hidden })
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Fails only when the process has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file that a test lets the tracer write, next to nothing else.
#[derive(Debug)]
pub struct Output {
    directory: tempfile::TempDir,
}

impl Output {
    /// Makes the directory; the file is the tracer's to make.
    ///
    /// # Errors
    /// Fails when there is no place for temporary files.
    pub fn new() -> Result<Self> {
        Ok(Self { directory: tempfile::tempdir().context("cannot make a temporary directory")? })
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("report")
    }

    /// What the tracer wrote.
    ///
    /// # Errors
    /// Fails when it wrote nothing.
    pub fn read(&self) -> Result<String> {
        let path = self.path();
        std::fs::read_to_string(&path).with_context(|| format!("the tracer left no report at {}", path.display()))
    }
}

/// A pipe's writing end whose reader is gone: what `| head` leaves.
///
/// # Errors
/// Fails when the kernel has no pipe to give.
pub fn closed_pipe() -> Result<File> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    drop(reader);
    Ok(writer.into())
}

fn read_all(mut pipe: impl Read + Send + 'static) -> Receiver<String> {
    reader(move || {
        let mut text = Vec::new();
        // An error here means that the tracer is gone; what came before counts.
        let _ = pipe.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

fn follow(pipe: impl Read, ready: &Sender<()>) -> String {
    let mut text = String::new();
    for line in BufReader::new(pipe).lines().map_while(Result::ok) {
        if line.starts_with("tracing ") {
            // Nobody listens any more when the test has failed meanwhile.
            let _ = ready.send(());
        }
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// Runs `read` on a thread of its own, to the end of a pipe.
fn reader(read: impl FnOnce() -> String + Send + 'static) -> Receiver<String> {
    let (sender, text) = channel();
    std::thread::spawn(move || {
        // Nobody listens any more when the test has failed meanwhile.
        let _ = sender.send(read());
    });
    text
}

/// What a pipe of an ended tracer has held. It ends with the tracer, unless the
/// tracer has left a process behind that holds it open.
fn rest(pipe: &Receiver<String>) -> Result<String> {
    let soon = Duration::from_secs(5);
    pipe.recv_timeout(soon).context("the tracer has ended and left a process behind")
}
