//! Where the report goes.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
};

use anyhow::{Context, Result};
use tracer_abi::abi::Event;

use crate::{
    cli::{ColorWhen, Format, Output},
    ledger::Decision,
    report::{self, Report, Style},
};

/// An open output. Opened before anything is attached, so that a bad path is known at once.
pub(super) struct Sink {
    out: BufWriter<Box<dyn Write>>,
    name: String,
    format: Format,
    style: Style,
    /// The reader has gone: nothing more is written, and that is no error.
    closed: bool,
}

impl Sink {
    pub(super) fn open(output: &Output, format: Format, color: ColorWhen) -> Result<Sink> {
        let env = |name: &str| std::env::var(name).ok();
        let (out, name, terminal): (Box<dyn Write>, String, bool) = match output {
            Output::Stdout => {
                let stdout = io::stdout();
                let terminal = stdout.is_terminal();
                (Box::new(stdout), "the standard output".to_owned(), terminal)
            }
            Output::File(path) => {
                let file =
                    File::create(path).with_context(|| format!("cannot write the report to {}", path.display()))?;
                (Box::new(file), path.display().to_string(), false)
            }
        };
        let style = Style::new(color.decide(terminal, env));
        Ok(Sink { out: BufWriter::new(out), name, format, style, closed: false })
    }

    /// Whether the reader has gone.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Writes a decision, if the format has lines for them.
    pub(super) fn decision(
        &mut self,
        decision: &Decision,
        start_ns: u64,
        reason: impl Fn(u32) -> Option<String>,
    ) -> Result<()> {
        if self.format != Format::Events {
            return Ok(());
        }
        let name = reason(decision.reason);
        self.write(|out, _| report::write_decision(decision, start_ns, |_| name.as_deref(), out))
    }

    /// Writes who ended a client's connection, if the format has lines for it.
    pub(super) fn ending(&mut self, event: &Event, start_ns: u64) -> Result<()> {
        if self.format != Format::Events {
            return Ok(());
        }
        self.write(|out, _| report::write_ending(event, start_ns, out))
    }

    /// Makes what was written visible.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.write(|out, _| out.flush())
    }

    /// Writes the report.
    pub(super) fn report(&mut self, report: &Report) -> Result<()> {
        let format = self.format;
        self.write(|out, style| {
            match format {
                Format::Human => report::write_human(report, style, out)?,
                Format::Json | Format::Events => report::write_json(report, out)?,
            }
            out.flush()
        })
    }

    fn write(&mut self, write: impl FnOnce(&mut dyn Write, Style) -> io::Result<()>) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        match write(&mut self.out, self.style) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            other => other.with_context(|| format!("cannot write the report to {}", self.name)),
        }
    }
}
