//! The line to the host: the second serial port.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use guest_init::line::Line;
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

const PORT: &str = "/dev/ttyS1";

/// The line to the host. Several threads use it: a line, and a file with its line, go out as a whole.
pub(crate) struct Host {
    port: Mutex<File>,
}

impl Host {
    /// Opens the port so that bytes pass unchanged.
    pub(crate) fn connect() -> anyhow::Result<Self> {
        let port = OpenOptions::new().read(true).write(true).open(PORT);
        let port = port.with_context(|| format!("cannot open {PORT}"))?;
        let mut settings = tcgetattr(&port).with_context(|| format!("{PORT} is no terminal"))?;
        settings.make_raw();
        tcsetattr(&port, OptionalActions::Now, &settings).with_context(|| format!("cannot set up {PORT}"))?;
        Ok(Self { port: Mutex::new(port) })
    }

    /// Sends one line.
    pub(crate) fn tell(&self, line: &Line) -> anyhow::Result<()> {
        write(&mut self.port(), line)
    }

    /// Sends a file.
    pub(crate) fn send(&self, scenario: &str, path: &Path) -> anyhow::Result<()> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut port = self.port();
        write(&mut port, &Line::File { scenario: scenario.into(), name, length: bytes.len() as u64 })?;
        port.write_all(&bytes).context("cannot write to the host")
    }

    /// Waits until the host has everything.
    pub(crate) fn drain(&self) -> anyhow::Result<()> {
        tcdrain(&*self.port()).with_context(|| format!("cannot drain {PORT}"))
    }

    fn port(&self) -> MutexGuard<'_, File> {
        // A thread that panicked cannot have left the port in a bad state.
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(port: &mut File, line: &Line) -> anyhow::Result<()> {
    port.write_all(format!("{line}\n").as_bytes()).context("cannot write to the host")
}
