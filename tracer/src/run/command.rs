//! The command that is run while tracing.

use std::{ffi::OsString, io, os::unix::process::ExitStatusExt};

use tokio::process::{Child, Command};

use super::facts::CommandFacts;

/// A command that could not be started.
pub(super) struct NotStarted {
    /// What to say.
    pub(super) message: String,
    /// 127 if it was not found, 126 if it could not be executed, as a shell has it.
    pub(super) status: u8,
}

/// A running command. It does not outlive the tracer: dropping this kills it.
pub(super) struct Running {
    child: Child,
    argv: Vec<String>,
}

impl Running {
    pub(super) fn start(argv: &[OsString]) -> Result<Running, NotStarted> {
        let shown: Vec<String> = argv.iter().map(|a| a.to_string_lossy().into_owned()).collect();
        match Command::new(&argv[0]).args(&argv[1..]).kill_on_drop(true).spawn() {
            Ok(child) => Ok(Running { child, argv: shown }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(NotStarted { message: format!("cannot run {}: command not found", shown[0]), status: 127 })
            }
            Err(e) => Err(NotStarted { message: format!("cannot run {}: {e}", shown[0]), status: 126 }),
        }
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> io::Result<CommandFacts> {
        let status = self.child.wait().await?;
        // As a shell has it: 128 + N for signal N.
        let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ok(CommandFacts { argv: self.argv.clone(), status })
    }

    /// Passes on a request to end.
    pub(super) fn terminate(&self) {
        if let Some(pid) =
            self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw)
        {
            // It may have ended by itself just now.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    /// What to report of it if it is still running.
    pub(super) fn unfinished(&self) -> CommandFacts {
        CommandFacts { argv: self.argv.clone(), status: -1 }
    }
}
