//! Connections that are opened, accepted and closed as fast as one thread, or two, can: the load of the benchmarks.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;
use socket2::{Domain, Socket, Type};
use tracer_tests::namespace::Namespace;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The port to listen on
    #[arg(long)]
    port: u16,
    /// How many connections are made and timed
    #[arg(long, default_value_t = 20_000)]
    connections: u32,
    /// How many are made before `go`
    #[arg(long, default_value_t = 1_000)]
    warm_up: u32,
    /// How many of those that have ended stay in TIME_WAIT
    #[arg(long, default_value_t = 0)]
    time_wait: u32,
    /// Connect on CPU 0 and accept on CPU 1, instead of both in one thread on CPU 0
    #[arg(long, conflicts_with = "lose_half")]
    two_cpus: bool,
    /// Have every other SYN meet a full accept queue, whose client then gives up
    #[arg(long)]
    lose_half: bool,
    /// Do not wait for `go`, but start this program, if any, and begin when it has said its first line on stderr; end it
    /// afterwards, and tell what was measured on stderr
    #[arg(long, num_args = 0.., allow_hyphen_values = true, value_name = "PROGRAM")]
    beside: Option<Vec<String>>,
    /// That program says nothing: begin when it waits for something, and interrupt it afterwards
    #[arg(long)]
    silent: bool,
    /// That program is a tracer that reports as JSON: pass on what it says of its own programs
    #[arg(long, conflicts_with = "silent")]
    programs: bool,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Measured {
    /// connect() calls that were timed.
    connections: u32,
    /// Of these, the ones whose SYN was left unanswered.
    lost: u32,
    /// From the first to the last.
    seconds: f64,
    /// Half of the connections took no longer, nanoseconds. Of a lost and its accepted neighbour: the time of both.
    median_ns: u64,
    /// `cost.programs` of the tracer's report.
    #[serde(skip_serializing_if = "Option::is_none")]
    programs: Option<serde_json::Value>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_max_tw_buckets", &options.time_wait.to_string())?;
    // Else those of a second ago are used again on loopback, and how long the tracers take to start would count.
    namespace.set("net/ipv4/tcp_tw_reuse", "0")?;
    namespace.set("net/ipv4/ip_local_port_range", "1024 65535")?;
    on_cpu(0)?;
    let mut watcher = None;
    let mut begin = || -> Result<()> {
        let Some(argv) = &options.beside else { return crate::wait_for_go() };
        if let [program, arguments @ ..] = argv.as_slice() {
            let started = Watcher::start(program, arguments, options.programs)?;
            watcher = Some(match options {
                Options { silent: true, .. } => started.idle()?,
                // It may say other things before, if it is asked to say more.
                Options { programs: true, .. } => started.heard("tracing ")?,
                _ => started.heard("")?,
            });
        }
        Ok(())
    };
    let mut measured = if options.two_cpus { two_cpus(options, &mut begin)? } else { one_cpu(options, &mut begin)? };
    if let Some(watcher) = watcher {
        if options.silent {
            watcher.interrupt()?;
        } else {
            let said = watcher.end()?;
            if options.programs {
                let report: serde_json::Value = serde_json::from_slice(&said).context("cannot read the report")?;
                measured.programs = Some(report["cost"]["programs"].clone());
            }
        }
    }
    if options.beside.is_none() {
        return crate::tell(&measured);
    }
    eprintln!("{}", serde_json::to_string(&measured).context("cannot write what was measured")?);
    Ok(())
}

/// A program that watches the load.
struct Watcher {
    program: String,
    child: Child,
}

/// System calls in which a program that has set itself up waits for events, or for time to pass.
const WAITING: [i64; 6] = [
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
];

impl Watcher {
    /// Starts it; what it writes to stdout is kept if it is a report.
    fn start(program: &str, arguments: &[String], report: bool) -> Result<Self> {
        let child = Command::new(program)
            .args(arguments)
            .stdout(if report { Stdio::piped() } else { Stdio::null() })
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        Ok(Self { program: program.to_owned(), child })
    }

    /// Until it has said a line that begins so.
    fn heard(mut self, beginning: &str) -> Result<Self> {
        let mut stderr = BufReader::new(self.child.stderr.as_mut().context("no stderr")?);
        let mut line = String::new();
        while line.is_empty() || !line.starts_with(beginning) {
            line.clear();
            stderr.read_line(&mut line).with_context(|| format!("cannot hear {}", self.program))?;
            ensure!(!line.is_empty(), "{} has ended", self.program);
        }
        Ok(self)
    }

    /// Until it waits, and goes on waiting.
    fn idle(mut self) -> Result<Self> {
        const LOOKS: u32 = 10;
        let call = format!("/proc/{}/syscall", self.child.id());
        let mut waiting = 0;
        while waiting < LOOKS {
            thread::sleep(Duration::from_millis(20));
            if let Some(status) = self.child.try_wait().with_context(|| format!("cannot wait for {}", self.program))? {
                let mut said = String::new();
                self.child
                    .stderr
                    .take()
                    .context("no stderr")?
                    .read_to_string(&mut said)
                    .context("cannot read stderr")?;
                bail!("{} ended with {status}: {}", self.program, said.trim_end().replace('\n', "; "));
            }
            let now = fs::read_to_string(&call).with_context(|| format!("cannot read {call}"))?;
            let number = now.split_whitespace().next().and_then(|it| it.parse().ok());
            waiting = if number.is_some_and(|it: i64| WAITING.contains(&it)) { waiting + 1 } else { 0 };
        }
        Ok(self)
    }

    /// Ends it; it has to end well. What it has written.
    fn end(mut self) -> Result<Vec<u8>> {
        self.signal(Signal::TERM)?;
        let mut said = Vec::new();
        if let Some(stdout) = &mut self.child.stdout {
            stdout.read_to_end(&mut said).with_context(|| format!("cannot read what {} writes", self.program))?;
        }
        let status = self.wait()?;
        ensure!(status.success(), "{} ended with {status}", self.program);
        Ok(said)
    }

    /// Ends it, as Ctrl-C would, however it ends: what it does then is not what is measured.
    fn interrupt(mut self) -> Result<()> {
        self.signal(Signal::INT)?;
        self.wait().map(drop)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(id, signal).with_context(|| format!("cannot end {}", self.program))
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().with_context(|| format!("cannot wait for {}", self.program))
    }
}

fn on_cpu(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None::<Pid>, &set).with_context(|| format!("cannot run on CPU {cpu}"))
}

fn listen(port: u16, backlog: i32) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("cannot make a socket")?;
    socket.set_reuse_address(true).context("cannot set SO_REUSEADDR")?;
    socket.bind(&local(port).into()).with_context(|| format!("cannot bind to port {port}"))?;
    socket.listen(backlog).context("cannot listen")?;
    Ok(socket.into())
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn one_cpu(options: &Options, begin: &mut dyn FnMut() -> Result<()>) -> Result<Measured> {
    // A backlog of 0 has room for one connection.
    let listener = listen(options.port, if options.lose_half { 0 } else { 128 })?;
    let server = local(options.port);
    let once =
        || if options.lose_half { lose_one_of_two(&listener, server) } else { open_and_close(&listener, server) };
    let each = if options.lose_half { 2 } else { 1 };
    for _ in 0..options.warm_up / each {
        once()?;
    }
    begin()?;
    let rounds = options.connections / each;
    let mut times = Vec::with_capacity(rounds as usize);
    let begin = Instant::now();
    for _ in 0..rounds {
        let from = Instant::now();
        once()?;
        times.push(from.elapsed());
    }
    let seconds = begin.elapsed().as_secs_f64();
    times.sort_unstable();
    let median_ns = times.get(times.len() / 2).map_or(0, |t| t.as_nanos() as u64);
    let lost = if options.lose_half { rounds } else { 0 };
    Ok(Measured { connections: rounds * each, lost, seconds, median_ns, programs: None })
}

fn open_and_close(listener: &TcpListener, server: SocketAddr) -> Result<()> {
    let client = TcpStream::connect(server).context("cannot connect")?;
    let (accepted, _) = listener.accept().context("cannot accept")?;
    drop(client);
    drop(accepted);
    Ok(())
}

fn lose_one_of_two(listener: &TcpListener, server: SocketAddr) -> Result<()> {
    let client = TcpStream::connect(server).context("cannot connect")?;
    let unanswered = Socket::new(Domain::IPV4, Type::STREAM, None).context("cannot make a socket")?;
    unanswered.set_nonblocking(true).context("cannot make a socket that does not wait")?;
    let outcome = unanswered.connect(&server.into());
    ensure!(outcome.is_err_and(|e| e.raw_os_error() == Some(libc::EINPROGRESS)), "a SYN found room in a full queue");
    drop(unanswered);
    let (accepted, _) = listener.accept().context("cannot accept")?;
    drop(client);
    drop(accepted);
    Ok(())
}

/// The client waits for the server's end of each connection, so that neither is far ahead of the other.
fn two_cpus(options: &Options, ready: &mut dyn FnMut() -> Result<()>) -> Result<Measured> {
    let listener = listen(options.port, 128)?;
    let server = local(options.port);
    let all = options.warm_up + options.connections;
    let accepter = thread::spawn(move || -> Result<()> {
        on_cpu(1)?;
        for _ in 0..all {
            drop(listener.accept().context("cannot accept")?);
        }
        Ok(())
    });
    let mut times = Vec::with_capacity(options.connections as usize);
    let mut begin = Instant::now();
    for n in 0..all {
        if n == options.warm_up {
            ready()?;
            begin = Instant::now();
        }
        let from = Instant::now();
        let mut client = TcpStream::connect(server).context("cannot connect")?;
        let end = client.read(&mut [0]).context("cannot read the end of a connection")?;
        ensure!(end == 0, "the server has sent something");
        drop(client);
        if n >= options.warm_up {
            times.push(from.elapsed());
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    accepter.join().expect("the accepter does not panic")?;
    times.sort_unstable();
    let median_ns = times.get(times.len() / 2).map_or(0, |t| t.as_nanos() as u64);
    Ok(Measured { connections: options.connections, lost: 0, seconds, median_ns, programs: None })
}
