//! The notes' server and clients as processes, which are told by lines what to do, and say by lines what they counted.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

use super::counts::{Connected, Served};
use crate::namespace::{clients_closing, half_open};
use crate::wait;

/// The program `tracer-load`: `$TRACER_LOAD`, else the one that cargo has built for the test.
#[derive(Debug, Clone)]
pub struct Load(PathBuf);

impl Load {
    /// Finds the program. `built` is `env!("CARGO_BIN_EXE_tracer-load")`, which only a test has.
    ///
    /// # Errors
    /// Fails when it is not there.
    pub fn find(built: &str) -> Result<Self> {
        let path = std::env::var_os("TRACER_LOAD").map_or_else(|| built.into(), PathBuf::from);
        ensure!(path.is_file(), "no program at {}: set TRACER_LOAD to where tracer-load is", path.display());
        Ok(Self(path))
    }

    /// Starts a server in the calling thread's namespace and waits until it listens.
    ///
    /// # Errors
    /// Fails when it does not get that far.
    pub fn server<T: Into<OsString>>(&self, arguments: impl IntoIterator<Item = T>) -> Result<Server> {
        let process = Process::start(self, "server", arguments)?;
        let line = process.line(wait::PATIENCE)?;
        let port = line.strip_prefix("listening ").and_then(|port| port.parse().ok());
        let port = port.with_context(|| format!("the server said {line:?}"))?;
        Ok(Server { process, port })
    }

    /// Starts a process of clients in the calling thread's namespace.
    ///
    /// # Errors
    /// Fails when it cannot be started.
    pub fn clients<T: Into<OsString>>(&self, arguments: impl IntoIterator<Item = T>) -> Result<Clients> {
        Ok(Clients { process: Process::start(self, "client", arguments)? })
    }
}

/// A process that talks by lines; dropping it kills it.
#[derive(Debug)]
struct Process {
    what: &'static str,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Process {
    fn start<T: Into<OsString>>(
        load: &Load,
        what: &'static str,
        arguments: impl IntoIterator<Item = T>,
    ) -> Result<Self> {
        let mut child = Command::new(&load.0)
            .arg(what)
            .args(arguments.into_iter().map(Into::into))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start the {what}"))?;
        let stdout = child.stdout.take().context("no pipe to read from")?;
        let stdin = child.stdin.take();
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { what, child, stdin, lines })
    }

    fn line(&self, patience: Duration) -> Result<String> {
        self.lines.recv_timeout(wait::here(patience)).map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow::anyhow!("the {} has said nothing for {patience:?}", self.what),
            RecvTimeoutError::Disconnected => anyhow::anyhow!("the {} has ended", self.what),
        })
    }

    fn hear<T: DeserializeOwned>(&self, patience: Duration) -> Result<T> {
        let line = self.line(patience)?;
        serde_json::from_str(&line).with_context(|| format!("the {} said {line:?}", self.what))
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its stdin is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("the {} does not listen", self.what))
    }

    fn ask<T: DeserializeOwned>(&mut self, line: &str, patience: Duration) -> Result<T> {
        self.say(line)?;
        self.hear(patience)
    }

    fn ended(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        wait::until(&format!("the {} to end", self.what), || {
            status = self.child.try_wait().context("cannot wait for a process")?;
            Ok(status.is_some())
        })?;
        status.context("no status")
    }

    fn finish(&mut self) -> Result<()> {
        self.stdin = None;
        let status = self.ended()?;
        ensure!(status.success(), "the {} ended with {status}", self.what);
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only when the process has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running server; dropping it kills it.
#[derive(Debug)]
pub struct Server {
    process: Process,
    port: u16,
}

impl Server {
    /// The port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its counts of now, without its clients' addresses.
    ///
    /// # Errors
    /// Fails when it is gone.
    pub fn count(&mut self) -> Result<Served> {
        self.process.ask("count", wait::PATIENCE)
    }

    /// Its counts of now.
    ///
    /// # Errors
    /// Fails when it is gone.
    pub fn report(&mut self) -> Result<Served> {
        self.process.ask("report", wait::PATIENCE)
    }

    /// Takes back its `--stop-after`.
    ///
    /// # Errors
    /// Fails when it is gone.
    pub fn go(&mut self) -> Result<()> {
        self.process.say("go")
    }

    /// Waits until it has accepted everything that there is, and nothing that is under way can add to that: the accept
    /// queue is empty, no request is half-open, and no closed client waits for its FIN to be acknowledged.
    ///
    /// # Errors
    /// Fails when that does not happen within `patience`, or the server is gone.
    pub fn settle(&mut self, patience: Duration) -> Result<Served> {
        self.rest(patience, |it| it.waiting == 0)?;
        self.report()
    }

    /// The same while it does not accept: what waits in the accept queue stays.
    ///
    /// # Errors
    /// As [`Server::settle`].
    pub fn rest(&mut self, patience: Duration, wanted: impl Fn(&Served) -> bool) -> Result<()> {
        // Between accept() and the server's own count there is a moment, so two looks have to agree. The pause between them
        // also spares the CPU: the kernel's table has a line for every connection.
        const PAUSE: Duration = Duration::from_millis(50);
        let mut last = None;
        let port = self.port;
        wait::until_within(patience, "the server to have nothing left to accept", || {
            if last.is_some() {
                thread::sleep(PAUSE);
            }
            let now = self.count()?;
            let is_still = wanted(&now) && half_open(port)? == 0 && clients_closing(port)? == 0;
            let before = last.replace(now.clone());
            Ok(is_still && before.is_some_and(|it| (it.accepted, it.waiting) == (now.accepted, now.waiting)))
        })
    }

    /// Ends it; what it has done in all.
    ///
    /// # Errors
    /// Fails when it does not end as it should.
    pub fn finish(mut self) -> Result<Served> {
        self.process.stdin = None;
        let served = self.process.hear(wait::PATIENCE)?;
        self.process.finish()?;
        Ok(served)
    }
}

/// A running process of clients; dropping it kills it.
#[derive(Debug)]
pub struct Clients {
    process: Process,
}

impl Clients {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Its counts of now, without addresses.
    ///
    /// # Errors
    /// Fails when it is gone.
    pub fn count(&mut self) -> Result<Connected> {
        self.process.ask("count", wait::PATIENCE)
    }

    /// Waits until every thread is through; what they have seen.
    ///
    /// # Errors
    /// Fails when they are not within `patience`.
    pub fn done(&mut self, patience: Duration) -> Result<Connected> {
        let connected: Connected = self.process.hear(patience)?;
        ensure!(connected.done, "a line before the threads were through: {connected:?}");
        Ok(connected)
    }

    /// How many connections are open, and how many of these have bytes unread. Only when all threads are through.
    ///
    /// # Errors
    /// Fails when it is gone.
    pub fn look(&mut self) -> Result<Connected> {
        self.process.ask("look", wait::PATIENCE)
    }

    /// Lets it close all its connections. Only when all threads are through.
    ///
    /// # Errors
    /// Fails when it is gone.
    pub fn close(&mut self) -> Result<Connected> {
        self.process.ask("close", wait::PATIENCE)
    }

    /// Lets it shut down all its connections for sending, and keep them. Only when all threads are through.
    ///
    /// # Errors
    /// Fails when it is gone.
    pub fn shutdown(&mut self) -> Result<Connected> {
        self.process.ask("shutdown", wait::PATIENCE)
    }

    /// Ctrl-C: the kernel ends the process and closes its connections.
    ///
    /// # Errors
    /// Fails when it ends otherwise.
    pub fn interrupt(mut self) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("no process id")?, Signal::INT).context("cannot interrupt the clients")?;
        let status = self.process.ended()?;
        ensure!(status.signal() == Some(libc::SIGINT), "the clients ended with {status}");
        Ok(())
    }

    /// Lets it call `exit()`, which leaves its connections to the kernel.
    ///
    /// # Errors
    /// Fails when it does not end as it should.
    pub fn finish(mut self) -> Result<()> {
        self.process.finish()
    }
}
