//! The command line: as typed (`args`), as meant ([`Plan`]), and what explains it (help, completions, the manual page).
//!
//! The only room that knows clap. Nothing here touches the machine: values are checked for sense, not for existence.

mod args;
mod manual;
mod plan;
mod ports;
mod values;

use std::ffi::OsString;
use std::io::{self, Write};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};
pub use clap_complete::Shell;

pub use plan::{DoctorPlan, Invocation, ListenersPlan, Plan, ReplayPlan, Verbosity};
pub use ports::PortSet;
pub use values::{ColorWhen, FailOn, Format, Hooks, ListFormat, NetnsSelector, Output};

/// The command line was not understood, or asked only for help or the version.
#[derive(Debug)]
pub struct Refused(clap::Error);

impl Refused {
    /// Prints what there is to say: help and version to stdout, errors to stderr. A closed pipe is not an error.
    pub fn print(&self) {
        // There is nobody left to tell when stderr cannot be written.
        let _ = self.0.print();
    }

    /// 2 for a usage error, 0 for help and version.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.0.use_stderr() { 2 } else { 0 }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Parses the arguments, the program's name first.
///
/// # Errors
/// For whatever the program cannot act upon; the message names the bad item and what to write instead.
pub fn parse(argv: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Invocation, Refused> {
    let mut command = args::Args::command();
    let matches = command.try_get_matches_from_mut(argv).map_err(|e| Refused(with_hint(e, &mut command)))?;
    if let Some((name, _)) = matches.subcommand()
        && let Some(option) = misplaced(&command, &matches)
    {
        let message = format!("{option} before '{name}' belongs to tracing; options of '{name}' come after it");
        return Err(Refused(command.error(ErrorKind::ArgumentConflict, message)));
    }
    let args = args::Args::from_arg_matches(&matches).map_err(|e| Refused(e.format(&mut command)))?;
    Invocation::from_args(args).map_err(|e| Refused(command.error(ErrorKind::ArgumentConflict, e)))
}

/// An option of tracing that was given although a subcommand was too.
fn misplaced(command: &Command, matches: &ArgMatches) -> Option<String> {
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    command
        .get_arguments()
        .find(|arg| !arg.is_global_set() && given(arg.get_id().as_str()))
        .map(|arg| arg.get_long().map_or_else(|| "COMMAND".to_owned(), |long| format!("--{long}")))
}

/// A bare word is most often a command without the `--` before it.
fn with_hint(error: clap::Error, command: &mut Command) -> clap::Error {
    match (error.kind(), error.get(ContextKind::InvalidArg).or_else(|| error.get(ContextKind::InvalidSubcommand))) {
        (ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand, Some(ContextValue::String(word)))
            if !word.starts_with('-') =>
        {
            let message = format!("unexpected word '{word}'; to run it while tracing, put -- before it: -- {word}");
            command.error(error.kind(), message)
        }
        _ => error,
    }
}

/// Writes the completion script for this shell.
///
/// # Errors
/// When `out` cannot be written.
pub fn completions(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    // The generator panics when it cannot write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::Args::command(), "tracer", &mut script);
    out.write_all(&script)
}

/// Writes the manual page, in roff.
///
/// # Errors
/// When `out` cannot be written.
pub fn manual(out: &mut dyn Write) -> io::Result<()> {
    manual::render(args::Args::command(), out)
}

#[cfg(test)]
mod tests;
