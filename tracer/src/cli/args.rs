//! The command line as it is typed. The comments on the fields are the help text.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, Subcommand};
use clap_complete::Shell;

use super::ports::PortSet;
use super::values::{self, ColorWhen, FailOnItem, Format, Hooks, ListFormat, NetnsSelector, Output};

const EXAMPLES: &str = "\
Examples:
  sudo tracer -p 8000                              trace until Ctrl-C, then report
  sudo tracer -p 8000 -- ./load-test -c 100        run a load test as perf stat would, then report
  sudo tracer -p 80,443,9000-9010 -d 30s           30 seconds on several ports
  sudo tracer -p 8000 -f json -o report.json       for a script
  sudo tracer -p 8000 -f events | jq .             each lost or late connection as it is decided
  sudo tracer -p 8000 --fail-on loss -- make test  status 3 if a connection was lost
  sudo tracer doctor                               what this kernel and these privileges allow, hook by hook
  tracer listeners                                 who listens, with what limits, how full";

const MORE: &str = "\
Exit status:
  0  done
  1  could not trace; the message says why and what helps
  2  the command line was not understood
  3  a loss named by --fail-on was seen
  With -- COMMAND, a command that fails passes its own status on.

Signals:
  SIGINT and SIGTERM end the trace with the report, SIGUSR1 sets a mark in the timeline.
  One line that starts with \"tracing \" appears on stderr once every hook is attached.

Environment:
  NO_COLOR  if set and not empty: no colour, unless --color always is given";

/// The text after the options, short and long.
pub(super) fn after_help(long: bool) -> String {
    if long { format!("{EXAMPLES}\n\n{MORE}") } else { format!("{EXAMPLES}\n\nMore with --help.") }
}

/// Explains, connection by connection, why accept() counts fewer connections than connect()
///
/// Counts every TCP connection attempt to the traced ports, from the kernel's own counters, and says what became of it:
/// accepted, pending, or lost and why. At the end, attempts = accepted + pending + lost, with the kernel's totals beside
/// the tracer's as proof. Tracing needs root.
#[derive(Debug, Parser)]
#[command(
    name = "tracer",
    bin_name = "tracer",
    version,
    disable_help_subcommand = true,
    override_usage = "tracer [-p LIST] [OPTIONS] [-- COMMAND [ARGS]...]\n       tracer doctor|listeners|replay|completions|man [OPTIONS]",
    after_help = after_help(false),
    after_long_help = after_help(true),
    max_term_width = 100
)]
pub(super) struct Args {
    /// A command, or none to trace.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to trace.
    #[command(flatten)]
    pub trace: TraceArgs,
    /// How to talk.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Options of every command.
#[derive(Debug, clap::Args)]
pub(super) struct CommonArgs {
    /// Say more on stderr; twice for debugging
    #[arg(short, long, action = ArgAction::Count, global = true, help_heading = "Messages")]
    pub verbose: u8,
    /// Say nothing on stderr but errors and the line "tracing ..."
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Messages")]
    pub quiet: bool,
    /// Colour the human report
    #[arg(long, value_name = "WHEN", default_value = "auto", global = true, help_heading = "Messages")]
    pub color: ColorWhen,
}

/// Options of tracing.
#[derive(Debug, clap::Args)]
pub(super) struct TraceArgs {
    /// Listening ports: a comma list with ranges, such as 8000,8080,9000-9010 [default: every listener]
    #[arg(short, long = "port", value_name = "LIST", action = ArgAction::Append, help_heading = "What to trace")]
    pub ports: Vec<PortSet>,
    /// Network namespaces: all, self, a PATH such as /run/netns/NAME, or that of process PID
    #[arg(long, value_name = "all|self|PATH|PID", default_value = "all")]
    #[arg(help_heading = "What to trace")]
    pub netns: NetnsSelector,
    /// How to attach to the kernel; the report says what was used, hook by hook
    #[arg(long, value_name = "FLAVOUR", default_value = "auto", help_heading = "What to trace")]
    pub hooks: Hooks,

    /// Stop after this time, such as 500ms, 10s or 2m
    #[arg(short, long, value_name = "TIME", value_parser = values::duration, help_heading = "When to stop")]
    pub duration: Option<Duration>,
    /// After COMMAND has ended, wait this long for handshakes that are still under way
    #[arg(long, value_name = "TIME", value_parser = values::duration_or_zero, default_value = "1s")]
    #[arg(help_heading = "When to stop")]
    pub settle: Duration,
    /// Sample counters and queue lengths this often
    #[arg(short, long, value_name = "TIME", value_parser = values::interval, default_value = "1s")]
    #[arg(help_heading = "When to stop")]
    pub interval: Duration,

    /// How to report
    #[command(flatten)]
    pub report: ReportArgs,
    /// Also record the raw events to FILE, for `tracer replay`
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub record: Option<PathBuf>,

    /// Command to run while tracing; the trace ends when it does
    #[arg(last = true, value_name = "COMMAND")]
    pub argv: Vec<OsString>,
}

/// Options of whatever ends with a report.
#[derive(Debug, clap::Args)]
pub(super) struct ReportArgs {
    /// Format of the report
    #[arg(short, long, default_value = "human", help_heading = "Report")]
    pub format: Format,
    /// Write the report to FILE instead of stdout
    #[arg(short, long, value_name = "FILE", default_value = "-", hide_default_value = true, help_heading = "Report")]
    pub output: Output,
    /// Exit with status 3 if a connection was lost for one of these causes, or for any (loss)
    ///
    /// CAUSE is a comma list of: loss, half-open-queue-full, accept-queue-full, syncookie-ack-dropped, port-exhaustion,
    /// syncookie-invalid, handshake-expired, client-reset, listener-closed, no-listener, filtered, no-memory, unanswered,
    /// unattributed.
    #[arg(long, value_name = "CAUSE", value_parser = values::fail_on_parser(), value_delimiter = ',')]
    #[arg(hide_possible_values = true, help_heading = "Report")]
    pub fail_on: Vec<FailOnItem>,
}

/// What can be done besides tracing.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show what this kernel and these privileges allow, hook by hook
    ///
    /// Loads and attaches everything as a trace would, counts nothing, and lets it go again. Shows how each hook is attached, why
    /// not in a better way, what is lost without it, and what of this machine matters to that. The first line says whether a trace
    /// would begin, and if not, why and what helps. Exit status: 0 if it would, 1 if not.
    Doctor {
        /// How to attach to the kernel
        #[arg(long, value_name = "FLAVOUR", default_value = "auto")]
        hooks: Hooks,
        /// Format of the findings
        #[arg(short, long, default_value = "human")]
        format: ListFormat,
    },
    /// Show the listening sockets of now: queue lengths, limits, owner
    Listeners {
        /// Only these ports: a comma list with ranges [default: every listener]
        #[arg(short, long = "port", value_name = "LIST", action = ArgAction::Append)]
        ports: Vec<PortSet>,
        /// Network namespaces: all, self, a PATH such as /run/netns/NAME, or that of process PID
        #[arg(long, value_name = "all|self|PATH|PID", default_value = "all")]
        netns: NetnsSelector,
        /// Format of the list
        #[arg(short, long, default_value = "human")]
        format: ListFormat,
    },
    /// Print the report of a recording made with --record; needs no privilege
    Replay {
        /// The recording
        file: PathBuf,
        /// How to report
        #[command(flatten)]
        report: ReportArgs,
    },
    /// Print a completion script for SHELL
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, in roff: tracer man | man -l -
    Man,
}
