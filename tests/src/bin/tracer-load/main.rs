//! The two programs of the field notes: a server that counts what `accept()` returns, and clients that open long-lived
//! connections from many threads; and the loads of the benchmarks.
//!
//! All tell what they have done as lines of JSON on stdout, when a line on stdin asks for it. They know nothing of the tracer:
//! their own counts are what its report is held against.

use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use tracer_tests::notes::end_by_interrupts;

mod churn;
mod client;
mod flood;
mod server;

#[derive(Parser)]
#[command(name = "tracer-load", about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Accept, write 256 bytes to each connection, and hold it open until the client ends it
    ///
    /// Prints `listening PORT` when it listens. On stdin, `count` and `report` ask for the counts of now, without and with
    /// the clients' addresses; `go` takes back --stop-after; the end of stdin asks for the last report and ends the program.
    Server(server::Options),
    /// Open connections from many threads, each one after the other, and keep them
    ///
    /// Prints a report when all threads are through. On stdin, `count` asks for the counts of now; and when the threads are
    /// through, `look` for the connections still open, `shutdown` and `close` do just that to each. The end of stdin ends
    /// the program, which leaves what is open to the kernel, as SIGINT does.
    Client(client::Options),
    /// Open, accept and close connections in a namespace of this process's own, and say how long it took
    ///
    /// Prints `ready` when the tracers can be started, and begins with the first line of stdin.
    Churn(churn::Options),
    /// Send SYNs of clients that do not exist, in a namespace of this process's own, and say how long it took
    ///
    /// Prints `ready` when the tracers can be started, and begins with the first line of stdin.
    Flood(flood::Options),
}

fn main() -> ExitCode {
    let role = Cli::parse().role;
    let outcome = end_by_interrupts().and_then(|()| match role {
        Role::Server(options) => server::run(options),
        Role::Client(options) => client::run(&options),
        Role::Churn(options) => churn::run(&options),
        Role::Flood(options) => flood::run(&options),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Lets this process have as many descriptors as it wants, or as many as it may. Returns how many each table may hold.
fn raise_descriptor_limit(wanted: u64) -> Result<u64> {
    let maximum = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let raised = Rlimit { current: Some(wanted), maximum: Some(wanted.max(maximum)) };
    // Only with CAP_SYS_RESOURCE beyond the hard limit; without it, threads have tables of their own.
    if wanted > maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        return Ok(wanted);
    }
    let current = wanted.min(maximum);
    let limit = Rlimit { current: Some(current), maximum: getrlimit(Resource::Nofile).maximum };
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of descriptors")?;
    Ok(current)
}

/// Says that the load can begin, and waits for a line on stdin.
fn wait_for_go() -> Result<()> {
    println!("ready");
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("cannot read from stdin")?;
    ensure!(!line.is_empty(), "stdin ended before the load was to begin");
    Ok(())
}

/// Prints one line of JSON, and lets it go at once.
fn tell(report: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(report).context("cannot write a report")?;
    line.push('\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to stdout")
}
