//! `-- COMMAND`, and the other ways for a trace to end.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::process::Signal;
use tracer_tests::namespace::Namespace;
use tracer_tests::report::{Lines, Outcomes, Report, counts, parse_events};
use tracer_tests::tracer::{Outcome, Output, Start, Tracer};
use tracer_tests::traffic::{Fleet, Listen, Listener, State};
use tracer_tests::wait;

/// Starts a tracer of `listener` with a JSON report on stdout.
fn start(namespace: &Namespace, listener: &Listener, arguments: &[&str]) -> Result<Tracer> {
    Start::on_host(namespace)?
        .port(listener.port())
        .args(["--format", "json", "--netns"])
        .args([namespace.path()])
        .args(arguments.iter().copied())
        .spawn()
}

/// Runs a command to its end without any traffic.
fn run(arguments: &[&str]) -> Result<(i32, Outcome)> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(3).open()?;
    let outcome = start(&namespace, &listener, arguments)?.wait()?;
    Ok((outcome.code()?, outcome))
}

/// Backlog 3, six clients: four connected, two SYNs dropped.
fn lose_two(server: SocketAddr) -> Result<Fleet> {
    let mut fleet = Fleet::connect(6, server)?;
    assert_eq!(fleet.in_state(State::SynSent)?.len(), 2);
    let established = fleet.in_state(State::Established)?;
    fleet.0.retain(|client| established.contains(&client.address()));
    Ok(fleet)
}

fn two_lost_of_six() -> Outcomes {
    Outcomes { attempts: 6, pending: 4, lost: counts([("accept-queue-full", 2)]), ..Outcomes::default() }
}

/// A pipe with a name, which a shell command waits on.
struct Gate {
    directory: tempfile::TempDir,
}

impl Gate {
    fn new() -> Result<Self> {
        let gate = Self { directory: tempfile::tempdir()? };
        rustix::fs::mknodat(
            rustix::fs::CWD,
            gate.path(),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )?;
        Ok(gate)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("gate")
    }

    /// A shell command that waits for the gate to open, then ends with `status`.
    fn command(&self, status: i32) -> String {
        format!("read line < {}; exit {status}", self.path().display())
    }

    /// Waits until the command waits, then opens the gate.
    fn open(&self) -> Result<()> {
        let mut opening = OpenOptions::new();
        opening.write(true).custom_flags(libc::O_NONBLOCK);
        wait::until("the command to wait at its gate", || match opening.open(self.path()) {
            Ok(mut pipe) => pipe.write_all(b"go\n").map(|()| true).context("cannot open the gate"),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(false),
            Err(error) => Err(error).context("no gate"),
        })
    }
}

#[test]
fn a_command_ends_the_trace_and_its_status_is_passed_on() -> Result<()> {
    for status in [0, 7] {
        let namespace = Namespace::enter()?;
        let listener = Listen::new(3).open()?;
        let gate = Gate::new()?;
        let command = gate.command(status);
        let tracer = start(&namespace, &listener, &["--settle", "100ms", "--", "sh", "-c", &command])?.ready()?;
        let _clients = lose_two(listener.address())?;
        gate.open()?;

        let outcome = tracer.wait()?;
        assert_eq!(outcome.code()?, status, "{}", outcome.stderr);
        let report = Report::parse(&outcome.stdout)?;
        assert_eq!(tracer_tests::laws::laws(&report), Vec::<String>::new());
        assert_eq!(report.window.ended_by, "command");
        assert_eq!(report.totals.outcomes(), two_lost_of_six());
        let ran = report.command.context("the command is not in the report")?;
        assert_eq!((ran.argv, ran.status), (vec!["sh".into(), "-c".into(), command], status));
    }
    Ok(())
}

#[test]
fn the_trace_goes_on_for_the_settle_time_after_the_command() -> Result<()> {
    let (code, outcome) = run(&["--settle", "700ms", "--", "true"])?;
    assert_eq!(code, 0, "{}", outcome.stderr);
    let report = Report::parse(&outcome.stdout)?;
    assert!(report.window.seconds >= 0.7, "{:?}", report.window);
    assert_eq!(report.window.ended_by, "command");
    Ok(())
}

#[test]
fn a_command_killed_by_a_signal_gives_128_and_the_signal() -> Result<()> {
    let (code, outcome) = run(&["--settle", "0s", "--", "sh", "-c", "kill -TERM $$"])?;
    assert_eq!(code, 128 + 15, "{}", outcome.stderr);
    let report = Report::parse(&outcome.stdout)?;
    assert_eq!(report.window.ended_by, "command");
    Ok(())
}

#[test]
fn a_command_that_cannot_be_run_is_named_and_gives_127_or_126() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let no_program = directory.path().join("data");
    std::fs::write(&no_program, "no program")?;
    std::fs::set_permissions(&no_program, std::fs::Permissions::from_mode(0o644))?;
    let missing = directory.path().join("missing");
    for (path, expected) in [(&missing, 127), (&no_program, 126)] {
        let path = path.to_str().context("no UTF-8")?;
        let (code, outcome) = run(&["--", path])?;
        assert_eq!(code, expected, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(path), "{} does not name {path}", outcome.stderr);
        assert_eq!(outcome.stdout, "", "there is nothing to report");
    }
    Ok(())
}

#[test]
fn ctrl_c_while_a_command_runs_ends_with_the_report() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(3).open()?;
    let gate = Gate::new()?;
    let command = gate.command(0);
    let tracer = start(&namespace, &listener, &["--", "sh", "-c", &command])?.ready()?;
    let _clients = lose_two(listener.address())?;
    // Only the tracer gets this signal: the command must not be left behind.
    let outcome = tracer.stop()?;
    let code = outcome.code()?;
    assert!([0, 128 + 2, 128 + 15].contains(&code), "{code}: {}", outcome.stderr);
    let report = Report::parse(&outcome.stdout).context(outcome.stderr)?;
    assert_eq!(report.totals.outcomes(), two_lost_of_six());
    assert_eq!(report.window.ended_by, "signal");
    Ok(())
}

#[test]
fn a_duration_ends_the_trace() -> Result<()> {
    let (code, outcome) = run(&["--duration", "500ms"])?;
    assert_eq!(code, 0, "{}", outcome.stderr);
    let report = Report::parse(&outcome.stdout)?;
    assert_eq!(report.window.ended_by, "duration");
    assert!(report.window.seconds >= 0.5, "{:?}", report.window);
    assert!(report.command.is_none());
    Ok(())
}

#[test]
fn sigterm_ends_with_the_report() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(3).open()?;
    let tracer = start(&namespace, &listener, &[])?.ready()?;
    let _clients = lose_two(listener.address())?;
    tracer.signal(Signal::TERM)?;
    let outcome = tracer.wait()?;
    assert_eq!(outcome.code()?, 0, "{}", outcome.stderr);
    let report = Report::parse(&outcome.stdout)?;
    assert_eq!(report.window.ended_by, "signal");
    assert_eq!(report.totals.outcomes(), two_lost_of_six());
    Ok(())
}

#[test]
fn fail_on_gives_3_when_such_a_loss_was_seen_and_only_then() -> Result<()> {
    let cases = [
        ("loss", 3),
        ("accept-queue-full", 3),
        ("port-exhaustion,accept-queue-full", 3),
        ("port-exhaustion", 0),
        ("unattributed", 0),
    ];
    let namespace = Namespace::enter()?;
    for (causes, expected) in cases {
        let listener = Listen::new(3).open()?;
        let tracer = start(&namespace, &listener, &["--fail-on", causes])?.ready()?;
        let _clients = lose_two(listener.address())?;
        let outcome = tracer.stop()?;
        assert_eq!(outcome.code()?, expected, "--fail-on {causes}: {}", outcome.stderr);
        assert_eq!(Report::parse(&outcome.stdout)?.totals.outcomes(), two_lost_of_six());
    }
    Ok(())
}

#[test]
fn the_human_report_and_the_event_lines_go_to_stdout_and_messages_do_not() -> Result<()> {
    let namespace = Namespace::enter()?;
    for format in ["human", "events"] {
        let listener = Listen::new(3).open()?;
        // The last of two equal options counts, as usual.
        let tracer = Start::on_host(&namespace)?
            .port(listener.port())
            .args(["--format", format, "--netns"])
            .args([namespace.path()])
            .spawn()?
            .ready()?;
        let _clients = lose_two(listener.address())?;
        let outcome = tracer.stop()?;
        assert_eq!(outcome.code()?, 0, "{}", outcome.stderr);
        if format == "events" {
            let Lines { events, report, .. } = parse_events(&outcome.stdout)?;
            assert_eq!(events.len(), 2);
            assert_eq!(report.totals.outcomes(), two_lost_of_six());
        } else {
            for wanted in ["accept-queue-full", &listener.port().to_string(), "unattributed"] {
                assert!(outcome.stdout.contains(wanted), "no {wanted} in\n{}", outcome.stdout);
            }
            assert!(!outcome.stdout.contains("tracing "), "{}", outcome.stdout);
            assert!(!outcome.stdout.contains('\u{1b}'), "colours without a terminal");
        }
    }
    Ok(())
}

#[test]
fn an_output_file_takes_the_report_and_stdout_stays_empty() -> Result<()> {
    let output = Output::new()?;
    let path = output.path();
    let path = path.to_str().context("no UTF-8")?;
    let (code, outcome) = run(&["--duration", "100ms", "--output", path])?;
    assert_eq!(code, 0, "{}", outcome.stderr);
    assert_eq!(outcome.stdout, "");
    let report = Report::parse(&output.read()?)?;
    assert_eq!(report.totals.outcomes(), Outcomes::default());
    Ok(())
}
