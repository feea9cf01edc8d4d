//! What is to be done: validated, defaults filled in.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::Shell;

use super::args::{Args, Command, CommonArgs, ReportArgs, TraceArgs};
use super::ports::PortSet;
use super::values::{ColorWhen, FailOn, Format, Hooks, ListFormat, NetnsSelector, Output};

/// One run of the program.
#[derive(Clone, Debug)]
pub enum Invocation {
    /// Trace.
    Trace(Box<Plan>),
    /// Report from a recording.
    Replay(ReplayPlan),
    /// List the listening sockets.
    Listeners(ListenersPlan),
    /// Show what can be attached here.
    Doctor(DoctorPlan),
    /// Print a completion script.
    Completions(Shell),
    /// Print the manual page.
    Man,
}

/// How much is said on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors and the ready line.
    Quiet,
    /// Warnings too.
    Normal,
    /// What is done, step by step (`-v`).
    Verbose,
    /// Everything (`-vv`).
    Debug,
}

/// How to trace.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Ports whose listeners are traced.
    pub ports: PortSet,
    /// Network namespaces.
    pub netns: NetnsSelector,
    /// Attach flavour.
    pub hooks: Hooks,
    /// Stop after this time.
    pub duration: Option<Duration>,
    /// Between two samples; at least 10 ms.
    pub interval: Duration,
    /// From the command's end to the window's.
    pub settle: Duration,
    /// Format of the report.
    pub format: Format,
    /// Where it goes.
    pub output: Output,
    /// Where raw events are recorded.
    pub record: Option<PathBuf>,
    /// Losses that make the exit status 3.
    pub fail_on: FailOn,
    /// Command and arguments to run, never an empty list.
    pub command: Option<Vec<OsString>>,
    /// How much is said on stderr.
    pub verbosity: Verbosity,
    /// When the report is coloured.
    pub color: ColorWhen,
}

/// How to report from a recording.
#[derive(Clone, Debug)]
pub struct ReplayPlan {
    /// The recording.
    pub file: PathBuf,
    /// Format of the report.
    pub format: Format,
    /// Where it goes.
    pub output: Output,
    /// Losses that make the exit status 3.
    pub fail_on: FailOn,
    /// How much is said on stderr.
    pub verbosity: Verbosity,
    /// When the report is coloured.
    pub color: ColorWhen,
}

/// How to list the listening sockets.
#[derive(Clone, Debug)]
pub struct ListenersPlan {
    /// Ports to list.
    pub ports: PortSet,
    /// Network namespaces.
    pub netns: NetnsSelector,
    /// Format of the list.
    pub format: ListFormat,
    /// How much is said on stderr.
    pub verbosity: Verbosity,
}

/// How to look at what can be attached here.
#[derive(Clone, Debug)]
pub struct DoctorPlan {
    /// Attach flavour.
    pub hooks: Hooks,
    /// Format of the findings.
    pub format: ListFormat,
    /// How much is said on stderr.
    pub verbosity: Verbosity,
    /// When the page is coloured.
    pub color: ColorWhen,
}

/// Options that are each right and do not go together.
#[derive(Debug, thiserror::Error)]
pub(super) enum UsageError {
    #[error("--output and --record both name {0}; give the recording a file of its own")]
    SameFile(String),
    #[error("the recording {0} would be overwritten by the report; give --output another file")]
    OverRecording(String),
    #[error("the command after -- is empty")]
    EmptyCommand,
}

impl Invocation {
    pub(super) fn from_args(args: Args) -> Result<Invocation, UsageError> {
        let Args { command, trace, common } = args;
        Ok(match command {
            None => Invocation::Trace(Box::new(Plan::from_args(trace, &common)?)),
            Some(Command::Replay { file, report }) => Invocation::Replay(ReplayPlan::from_args(file, report, &common)?),
            Some(Command::Listeners { ports, netns, format }) => Invocation::Listeners(ListenersPlan {
                ports: union(&ports),
                netns,
                format,
                verbosity: verbosity(&common),
            }),
            Some(Command::Doctor { hooks, format }) => {
                Invocation::Doctor(DoctorPlan { hooks, format, verbosity: verbosity(&common), color: common.color })
            }
            Some(Command::Completions { shell }) => Invocation::Completions(shell),
            Some(Command::Man) => Invocation::Man,
        })
    }
}

impl Plan {
    fn from_args(args: TraceArgs, common: &CommonArgs) -> Result<Plan, UsageError> {
        let TraceArgs { ports, netns, hooks, duration, settle, interval, report, record, argv } = args;
        if let (Output::File(output), Some(record)) = (&report.output, &record)
            && output == record
        {
            return Err(UsageError::SameFile(output.display().to_string()));
        }
        if argv.first().is_some_and(|program| program.is_empty()) {
            return Err(UsageError::EmptyCommand);
        }
        Ok(Plan {
            ports: union(&ports),
            netns,
            hooks,
            duration,
            interval,
            settle,
            format: report.format,
            output: report.output,
            record,
            fail_on: FailOn::new(&report.fail_on),
            command: (!argv.is_empty()).then_some(argv),
            verbosity: verbosity(common),
            color: common.color,
        })
    }
}

impl ReplayPlan {
    fn from_args(file: PathBuf, report: ReportArgs, common: &CommonArgs) -> Result<ReplayPlan, UsageError> {
        if report.output == Output::File(file.clone()) {
            return Err(UsageError::OverRecording(file.display().to_string()));
        }
        Ok(ReplayPlan {
            file,
            format: report.format,
            output: report.output,
            fail_on: FailOn::new(&report.fail_on),
            verbosity: verbosity(common),
            color: common.color,
        })
    }
}

fn union(sets: &[PortSet]) -> PortSet {
    if sets.is_empty() {
        return PortSet::every();
    }
    let mut all = PortSet::empty();
    for set in sets {
        all.merge(set);
    }
    all
}

fn verbosity(common: &CommonArgs) -> Verbosity {
    match (common.quiet, common.verbose) {
        (true, _) => Verbosity::Quiet,
        (false, 0) => Verbosity::Normal,
        (false, 1) => Verbosity::Verbose,
        (false, _) => Verbosity::Debug,
    }
}
