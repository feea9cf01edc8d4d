//! Programs that run beside each other: started, listened to, told something, ended.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

/// The longest that a program may take to say that it is ready, to do its work, or to end.
const PATIENCE: Duration = Duration::from_secs(120);

/// A program under way. It is ended when this is dropped.
pub(super) struct Process {
    name: String,
    child: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Process {
    /// Starts a program; what it says on stdout and stderr can be waited for.
    pub(super) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let program = Path::new(command.get_program());
        let name = program.file_name().unwrap_or(command.get_program()).to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let (sender, lines) = channel();
        listen(child.stdout.take(), sender.clone());
        listen(child.stderr.take(), sender);
        Ok(Self { name, child, lines, heard: Vec::new() })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line with this in it, and gives that line.
    pub(super) fn line_with(&mut self, text: &str) -> anyhow::Result<String> {
        self.line_within(text, PATIENCE)
    }

    /// The same, for not longer than this.
    pub(super) fn line_within(&mut self, text: &str, patience: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return Ok(line),
                Ok(line) => self.heard.push(line),
                Err(RecvTimeoutError::Timeout) => bail!("{} does not say {text:?}", self.name),
                Err(RecvTimeoutError::Disconnected) => {
                    let last = self.heard.last().map_or("nothing", String::as_str).to_owned();
                    bail!("{} has ended, and said last: {last}", self.name)
                }
            }
        }
    }

    /// Sends a line to its stdin.
    pub(super) fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let stdin = self.child.stdin.as_mut().context("no stdin")?;
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).with_context(|| format!("{} does not listen", self.name))
    }

    /// Asks it to end, and waits for that.
    pub(super) fn end(&mut self) -> anyhow::Result<ExitStatus> {
        if let Some(id) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process(id, Signal::TERM);
        }
        self.ended()
    }

    /// Waits until it ends.
    pub(super) fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        // Until both its outputs are closed.
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.heard.push(line);
        }
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().context("cannot wait for a program")? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
        bail!("{} does not end", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn listen(output: Option<impl std::io::Read + Send + 'static>, sender: Sender<String>) {
    let Some(output) = output else { return };
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_heard_told_and_ended() {
        let mut cat = Process::start(&mut Command::new("cat")).unwrap();
        cat.tell("ready or not").unwrap();
        assert_eq!(cat.line_with("ready").unwrap(), "ready or not");
        assert!(cat.line_within("more", Duration::from_millis(10)).is_err());
        assert!(!cat.end().unwrap().success());
    }

    #[test]
    fn a_program_that_ends_too_early_is_quoted() {
        let mut sh = Process::start(Command::new("sh").args(["-c", "echo no such kernel; exit 3"])).unwrap();
        let error = sh.line_with("ready").unwrap_err().to_string();
        assert!(error.ends_with("and said last: no such kernel"), "{error}");
        assert_eq!(sh.ended().unwrap().code(), Some(3));
    }
}
