//! What the scenarios of the field notes share: the notes' server and clients as processes of their own (`tracer-load`), and
//! a comparison of what these counted with what the tracer says.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::sys;
use crate::tracer::Start;

mod comparison;
mod counts;
mod programs;

pub use comparison::{Comparison, End};
pub use counts::{Connected, Served, errno_name, resets_sent, retransmits};
pub use programs::{Clients, Load, Server};

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
