//! What the scenarios of the field notes share: the notes' server and clients as processes of their own (`tracer-load`), and
//! a comparison of what these counted with what the tracer says.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::namespace::{clients_closing, half_open};
use crate::report::{ClientProcess, Counts, Report};
use crate::session::Finished;
use crate::tracer::Start;
use crate::{sys, wait};

/// Lets Ctrl-C end this process, whatever it has inherited: what a shell starts in the background ignores SIGINT.
///
/// # Errors
/// Fails when the kernel refuses.
pub fn end_by_interrupts() -> Result<()> {
    sys::default_interrupt().context("cannot give SIGINT its default")
}

/// How much of the notes' traffic is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// As much as shows the same effects in seconds.
    Small,
    /// The notes' own numbers, with `FIELD_NOTES=full`.
    Full,
}

impl Scale {
    /// The scale that the environment asks for.
    #[must_use]
    pub fn from_env() -> Self {
        if std::env::var_os("FIELD_NOTES").is_some_and(|it| it == "full") { Self::Full } else { Self::Small }
    }

    /// The number for this scale.
    #[must_use]
    pub fn of<T>(self, small: T, full: T) -> T {
        match self {
            Self::Small => small,
            Self::Full => full,
        }
    }

    /// How long everything that one note does may take in one step.
    #[must_use]
    pub fn patience(self) -> Duration {
        self.of(Duration::from_secs(60), Duration::from_secs(1_800))
    }
}

/// What the server says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// How many connections `accept()` has returned.
    pub accepted: u64,
    /// To how many of them all 256 bytes were written.
    pub written: u64,
    /// To how many that failed.
    pub write_errors: u64,
    /// How many of them the client had ended before `accept()` returned them.
    pub dead: u64,
    /// How many were ended by a FIN before anything else.
    pub peer_fin: u64,
    /// How many were ended by a RST.
    pub peer_reset: u64,
    /// How many wait in the accept queue.
    pub waiting: u64,
    /// The clients, in the order of their coming, where they were asked for.
    pub peers: Vec<SocketAddr>,
}

impl Served {
    /// The clients, each once.
    #[must_use]
    pub fn peer_set(&self) -> BTreeSet<SocketAddr> {
        self.peers.iter().copied().collect()
    }
}

/// What a process of clients says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// Whether all threads are through with their `connect()`s.
    pub done: bool,
    /// How many `connect()`s were called.
    pub connects: u64,
    /// How many of them returned success.
    pub connected: u64,
    /// How many failed, by the name of the error.
    pub failed: Counts,
    /// How many connections were given up because of that.
    pub given_up: u64,
    /// The local ends of the connected.
    pub local: Vec<SocketAddr>,
    /// Of these, the ones whose SYN had to be sent again.
    pub resent: Vec<SocketAddr>,
    /// How many were closed with nothing unread, which sends a FIN.
    pub closed_clean: u64,
    /// How many were closed with bytes unread, which sends a RST.
    pub closed_unread: u64,
    /// How many are open, where that was asked for.
    pub open: u64,
    /// How many of these have bytes unread: the server has accepted them.
    pub unread: u64,
}

impl Connected {
    /// Adds what another thread or process has seen.
    pub fn add(&mut self, other: Self) {
        self.connects += other.connects;
        self.connected += other.connected;
        for (name, count) in other.failed {
            *self.failed.entry(name).or_default() += count;
        }
        self.given_up += other.given_up;
        self.local.extend(other.local);
        self.resent.extend(other.resent);
        self.closed_clean += other.closed_clean;
        self.closed_unread += other.closed_unread;
        self.open += other.open;
        self.unread += other.unread;
    }

    /// How many `connect()`s failed with this error.
    #[must_use]
    pub fn failed_by(&self, name: &str) -> u64 {
        self.failed.get(name).copied().unwrap_or(0)
    }

    /// How many failed with whatever error.
    #[must_use]
    pub fn all_failed(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Both together.
    #[must_use]
    pub fn sum(parts: &[Self]) -> Self {
        let mut sum = Self::default();
        parts.iter().cloned().for_each(|part| sum.add(part));
        sum
    }
}

/// The name of an error of `connect()`, as the notes' programs print it.
#[must_use]
pub fn errno_name(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => "EADDRNOTAVAIL".into(),
        Some(libc::ETIMEDOUT) => "ETIMEDOUT".into(),
        Some(libc::ECONNREFUSED) => "ECONNREFUSED".into(),
        Some(libc::ECONNRESET) => "ECONNRESET".into(),
        Some(libc::EINTR) => "EINTR".into(),
        _ => error.to_string(),
    }
}

/// How often the kernel has sent anything of this TCP socket's again: of a client that sends no data, its SYN.
///
/// # Errors
/// Fails when `TCP_INFO` does.
pub fn retransmits(socket: &impl AsFd) -> io::Result<u32> {
    Ok(sys::tcp_info(socket.as_fd())?.tcpi_total_retrans)
}

/// How many RSTs were sent in the calling thread's namespace so far, by the kernel's own count.
///
/// # Errors
/// Fails when the counters cannot be read.
pub fn resets_sent() -> Result<u64> {
    const PATH: &str = "/proc/thread-self/net/snmp";
    let text = fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, values) = (lines.next(), lines.next());
    let mut pairs = names.into_iter().flat_map(str::split_whitespace).zip(values.unwrap_or("").split_whitespace());
    let value = pairs.find(|(name, _)| *name == "OutRsts").and_then(|(_, value)| value.parse().ok());
    value.with_context(|| format!("{PATH} has no OutRsts"))
}

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
        self.lines.recv_timeout(patience).map_err(|error| match error {
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

/// How a process of clients has ended all its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The process.
    pub pid: u32,
    /// By what, as `clients.fins` names it.
    pub by: &'static str,
    /// How many sent a FIN.
    pub fins: u64,
    /// How many sent a RST, as there was something unread.
    pub resets: u64,
}

impl End {
    /// The end of the connections that were looked at just before, and of those that the process has closed itself.
    #[must_use]
    pub fn of(pid: u32, by: &'static str, seen: &Connected) -> Self {
        let fins = seen.open.saturating_sub(seen.unread) + seen.closed_clean;
        Self { pid, by, fins, resets: seen.unread + seen.closed_unread }
    }
}

/// Counts of the workload beside those of the tracer.
#[derive(Debug)]
pub struct Comparison {
    title: String,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    low: u64,
    high: u64,
    tracer: u64,
}

impl Row {
    fn holds(&self) -> bool {
        (self.low..=self.high).contains(&self.tracer)
    }
}

impl Comparison {
    /// An empty one.
    #[must_use]
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), rows: Vec::new() }
    }

    /// A count that both know.
    pub fn equal(&mut self, name: &str, workload: u64, tracer: u64) {
        self.between(name, workload, workload, tracer);
    }

    /// A count of which the workload knows only bounds.
    pub fn between(&mut self, name: &str, low: u64, high: u64, tracer: u64) {
        self.rows.push(Row { name: name.to_owned(), low, high, tracer });
    }

    /// What `connect()` returned in each of these processes, and in all of them together.
    pub fn clients(&mut self, report: &Report, processes: &[(u32, Connected)]) {
        let clients = &report.clients;
        let mut sum = Connected::default();
        for (pid, seen) in processes {
            let found = clients.by_process.iter().find(|it| it.pid == *pid);
            let (connects, established, failed) =
                found.map_or((0, 0, 0), |it| (it.connects, it.established, it.failed));
            self.equal(&format!("connects of process {pid}"), seen.connects, connects);
            self.equal(&format!("established of process {pid}"), seen.connected, established);
            self.equal(&format!("failed of process {pid}"), seen.all_failed(), failed);
            sum.add(seen.clone());
        }
        self.equal("connects", sum.connects, clients.connects);
        self.equal("established", sum.connected, clients.established);
        self.equal("in progress", 0, clients.in_progress);
        let failed = |name: &str| clients.failed.get(name).copied().unwrap_or(0);
        self.equal("failed: port-exhaustion", sum.failed_by("EADDRNOTAVAIL"), failed("port-exhaustion"));
        self.equal("failed: ETIMEDOUT", sum.failed_by("ETIMEDOUT"), failed("ETIMEDOUT"));
        self.equal("failed", sum.all_failed(), clients.failed.values().sum());
    }

    /// The FINs and RSTs of local clients by who caused them, in each process and in all of them together.
    pub fn ends(&mut self, report: &Report, expected: &[End]) {
        type Side<'a> = (&'a str, Option<&'a Counts>, fn(&End) -> u64, fn(&ClientProcess) -> &Counts);
        let clients = &report.clients;
        let sides: [Side<'_>; 2] = [
            ("FINs", clients.fins.as_ref(), |it| it.fins, |it| &it.fins),
            ("RSTs", clients.resets.as_ref(), |it| it.resets, |it| &it.resets),
        ];
        let count = |counts: Option<&Counts>, by: &str| counts.and_then(|it| it.get(by)).copied().unwrap_or(0);
        for (what, totals, workload, tracer) in sides {
            for end in expected {
                let process = clients.by_process.iter().find(|it| it.pid == end.pid);
                let name = format!("{what} by {} of process {}", end.by, end.pid);
                self.equal(&name, workload(end), count(process.map(tracer), end.by));
            }
            for by in ["close", "shutdown", "exit", "signal", "other"] {
                let sum = expected.iter().filter(|it| it.by == by).map(workload).sum();
                self.equal(&format!("{what} by {by}"), sum, count(totals, by));
            }
        }
    }

    /// The table, one line for each count.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = format!("{:<58}{:>16}{:>12}\n", self.title, "workload", "tracer");
        for row in &self.rows {
            let workload = if row.low == row.high { row.low.to_string() } else { format!("{}..{}", row.low, row.high) };
            let verdict = if row.holds() { "ok" } else { "DIFFERS" };
            // Writing to a string cannot fail.
            let _ = writeln!(table, "  {:<56}{workload:>16}{:>12}  {verdict}", row.name, row.tracer);
        }
        table
    }

    /// Prints the table to stderr, and fails if any count differs.
    ///
    /// # Errors
    /// Shows the table and what the kernel may have hidden.
    pub fn verdict(&self, finished: &Finished) -> Result<()> {
        let table = self.table();
        eprint!("{table}");
        if self.rows.iter().all(Row::holds) {
            return Ok(());
        }
        bail!("the tracer's counts differ\n{table}{}\n{:#?}", finished.evidence, finished.report)
    }
}

/// A place for a recording of one run, whose report people can read.
#[derive(Debug)]
pub struct Recording {
    directory: tempfile::TempDir,
}

impl Recording {
    /// Makes the directory; the file is the tracer's to make.
    ///
    /// # Errors
    /// Fails when there is no place for temporary files.
    pub fn new() -> Result<Self> {
        Ok(Self { directory: tempfile::tempdir().context("cannot make a temporary directory")? })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("recording")
    }

    /// The option that makes the tracer record.
    #[must_use]
    pub fn of<'a>(&self, start: Start<'a>) -> Start<'a> {
        start.args(["--record".into(), self.path()])
    }

    /// Prints the report to stderr, for people.
    ///
    /// # Errors
    /// Fails when the tracer cannot read its own recording.
    pub fn print(&self) -> Result<()> {
        let start = Start::inside()?.args(["replay".into(), self.path()]).args(["--color", "never"]);
        let outcome = start.spawn()?.wait()?;
        let code = outcome.code()?;
        ensure!(code == 0, "replay ended with {code}: {}", outcome.stderr);
        eprintln!("{}", outcome.stdout);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_out_of_its_bounds_differs_and_is_marked_as_such() {
        let mut comparison = Comparison::new("one run");
        comparison.equal("accepted", 3, 3);
        comparison.between("late", 2, 5, 5);
        assert!(!comparison.table().contains("DIFFERS"), "{}", comparison.table());
        comparison.between("late", 2, 5, 6);
        comparison.equal("lost", 0, 1);
        let table = comparison.table();
        let differing: Vec<_> = table.lines().filter(|line| line.ends_with("DIFFERS")).collect();
        assert_eq!(differing.len(), 2, "{table}");
        assert!(differing[0].contains("2..5") && differing[1].contains("lost"), "{table}");
    }

    #[test]
    fn processes_add_up_by_error() {
        let of = |name: &str, count| Connected {
            connects: 10,
            connected: 10 - count,
            failed: [(name.to_owned(), count)].into(),
            ..Connected::default()
        };
        let sum = Connected::sum(&[of("ETIMEDOUT", 2), of("EADDRNOTAVAIL", 3), of("ETIMEDOUT", 4)]);
        assert_eq!((sum.connects, sum.connected, sum.all_failed()), (30, 21, 9));
        assert_eq!((sum.failed_by("ETIMEDOUT"), sum.failed_by("EADDRNOTAVAIL")), (6, 3));
    }
}
