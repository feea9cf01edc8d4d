//! The line to the host: the second serial port.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::Path,
};

use anyhow::Context as _;
use guest_init::line::Line;
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

const PORT: &str = "/dev/ttyS1";

/// The line to the host.
pub(crate) struct Host {
    port: File,
}

impl Host {
    /// Opens the port so that bytes pass unchanged.
    pub(crate) fn connect() -> anyhow::Result<Self> {
        let port = OpenOptions::new().read(true).write(true).open(PORT);
        let port = port.with_context(|| format!("cannot open {PORT}"))?;
        let mut settings = tcgetattr(&port).with_context(|| format!("{PORT} is no terminal"))?;
        settings.make_raw();
        tcsetattr(&port, OptionalActions::Now, &settings).with_context(|| format!("cannot set up {PORT}"))?;
        Ok(Self { port })
    }

    /// Sends one line.
    pub(crate) fn tell(&mut self, line: &Line) -> anyhow::Result<()> {
        self.port.write_all(format!("{line}\n").as_bytes()).context("cannot write to the host")
    }

    /// Sends a file.
    pub(crate) fn send(&mut self, scenario: &str, path: &Path) -> anyhow::Result<()> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.tell(&Line::File { scenario: scenario.into(), name, length: bytes.len() as u64 })?;
        self.port.write_all(&bytes).context("cannot write to the host")
    }

    /// Waits until the host has everything.
    pub(crate) fn drain(&self) -> anyhow::Result<()> {
        tcdrain(&self.port).with_context(|| format!("cannot drain {PORT}"))
    }
}
