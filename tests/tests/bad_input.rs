//! Bad input and trouble: a clear message on stderr, the documented exit code,
//! nothing on stdout that looks like a report, and nothing left behind.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::Signal;
use tracer_tests::namespace::Namespace;
use tracer_tests::report::{Outcomes, Report, counts};
use tracer_tests::session::Session;
use tracer_tests::tracer::{Outcome, Output, Start, closed_pipe, program};
use tracer_tests::traffic::{Fleet, Listen, State};
use tracer_tests::{wait, workload};

/// Runs a tracer that has to refuse: nothing on stdout, never ready.
fn refused(start: Start<'_>, code: i32) -> Result<Outcome> {
    let outcome = start.spawn()?.wait()?;
    assert_eq!(outcome.code()?, code, "{}", outcome.stderr);
    assert_eq!(outcome.stdout, "");
    assert!(!outcome.stderr.lines().any(|line| line.starts_with("tracing ")), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    Ok(outcome)
}

fn expect_words(outcome: &Outcome, words: &[&str]) {
    for word in words {
        assert!(outcome.stderr.contains(word), "no `{word}` in: {}", outcome.stderr);
    }
}

#[test]
fn a_port_that_is_none_is_named_and_is_a_usage_error() -> Result<()> {
    for ports in ["0", "70000", "abc", "9010-9000", "8000,", "8000-", "-1", "80,0"] {
        let outcome = refused(Start::inside()?.args([format!("--port={ports}")]), 2)?;
        let item = ports.split(',').rfind(|it| !it.is_empty() && *it != "80" && *it != "8000");
        expect_words(&outcome, &["--port", item.unwrap_or("empty")]);
    }
    let outcome = refused(Start::inside()?.args(["--port", ""]), 2)?;
    expect_words(&outcome, &["--port", "no port"]);
    Ok(())
}

#[test]
fn other_values_that_are_none_are_named_and_are_usage_errors() -> Result<()> {
    for (option, value) in [
        ("--format", "xml"),
        ("--duration", "soon"),
        ("--settle", "-3s"),
        ("--fail-on", "bad-luck"),
        ("--hooks", "magic"),
        ("--nonsense", "x"),
    ] {
        let outcome = refused(Start::inside()?.args(["-p", "8000", &format!("{option}={value}")]), 2)?;
        expect_words(&outcome, &[option]);
    }
    Ok(())
}

#[test]
fn a_namespace_that_is_none_is_named() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let missing = directory.path().join("nowhere");
    let file = directory.path().join("file");
    fs::write(&file, "")?;
    for path in [&missing, &file] {
        let path = path.to_str().context("no UTF-8")?;
        let start = Start::inside()?.args(["-p", "8000", "--netns", path]);
        let outcome = start.spawn()?.wait()?;
        assert!(matches!(outcome.code()?, 1 | 2), "{}", outcome.stderr);
        expect_words(&outcome, &[path]);
    }
    Ok(())
}

#[test]
fn without_privilege_the_message_names_the_capability_or_sudo() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let outcome = refused(Start::by_nobody(directory.path())?.args(["-p", "8000"]), 1)?;
    assert!(outcome.stderr.contains("CAP_") || outcome.stderr.contains("sudo"), "no remedy in: {}", outcome.stderr);
    Ok(())
}

/// A root for `$TRACER_ROOT` that holds what this machine has.
fn copy_of_the_kernels_description() -> Result<tempfile::TempDir> {
    let root = tempfile::tempdir()?;
    for path in ["sys/kernel/btf", "proc"] {
        fs::create_dir_all(root.path().join(path))?;
    }
    for path in ["sys/kernel/btf/vmlinux", "proc/kallsyms"] {
        fs::copy(Path::new("/").join(path), root.path().join(path)).context(path)?;
    }
    Ok(root)
}

#[test]
fn a_kernel_without_btf_is_refused_by_name() -> Result<()> {
    let root = copy_of_the_kernels_description()?;
    fs::remove_file(root.path().join("sys/kernel/btf/vmlinux"))?;
    let start = Start::inside()?.env("TRACER_ROOT", root.path()).args(["-p", "8000"]);
    let outcome = refused(start, 1)?;
    expect_words(&outcome, &["BTF", "CONFIG_DEBUG_INFO_BTF"]);
    Ok(())
}

#[test]
fn a_kernel_whose_btf_is_damaged_is_refused() -> Result<()> {
    let root = copy_of_the_kernels_description()?;
    let path = root.path().join("sys/kernel/btf/vmlinux");
    let whole = fs::read(&path)?;
    for damaged in [&whole[..0], &whole[..100], &whole[..whole.len() / 2]] {
        fs::write(&path, damaged)?;
        let start = Start::inside()?.env("TRACER_ROOT", root.path()).args(["-p", "8000"]);
        let outcome = refused(start, 1)?;
        expect_words(&outcome, &["sys/kernel/btf/vmlinux", "type information"]);
    }
    Ok(())
}

#[test]
fn a_kernel_without_a_hook_that_matters_is_refused_by_its_name() -> Result<()> {
    const HOOK: &str = "inet_sock_set_state";
    let root = copy_of_the_kernels_description()?;
    let path = root.path().join("sys/kernel/btf/vmlinux");
    let mut btf = fs::read(&path)?;
    // Names of BTF are strings with an end: rename, and the hook is gone.
    let name = format!("btf_trace_{HOOK}\0").into_bytes();
    let positions: Vec<_> = btf.windows(name.len()).enumerate().filter(|(_, it)| *it == name).map(|it| it.0).collect();
    assert!(!positions.is_empty(), "this kernel has no tracepoint {HOOK}");
    for position in positions {
        btf[position] = b'x';
    }
    fs::write(&path, btf)?;
    let symbols = root.path().join("proc/kallsyms");
    let text = fs::read_to_string(&symbols)?;
    let kept = text.lines().filter(|line| !line.contains(HOOK)).collect::<Vec<_>>().join("\n");
    fs::write(&symbols, kept)?;
    let start = Start::inside()?.env("TRACER_ROOT", root.path()).args(["-p", "8000"]);
    let outcome = refused(start, 1)?;
    expect_words(&outcome, &[HOOK]);
    Ok(())
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_anything_is_attached() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let missing = directory.path().join("no/such/directory/report");
    let link = directory.path().join("link");
    symlink(&link, &link)?;
    for path in [missing.as_path(), directory.path(), &link] {
        let path = path.to_str().context("no UTF-8")?;
        let outcome = refused(Start::inside()?.args(["-p", "8000", "-o", path]), 1)?;
        expect_words(&outcome, &[path]);
    }
    Ok(())
}

#[test]
fn a_full_output_is_an_error_and_not_a_silent_loss() -> Result<()> {
    for to_stdout in [true, false] {
        let namespace = Namespace::enter()?;
        let start = Start::on_host(&namespace)?.args(["-p", "8000", "-f", "json", "-d", "100ms"]);
        let start = if to_stdout {
            start.stdout(OpenOptions::new().write(true).open("/dev/full")?)
        } else {
            start.args(["-o", "/dev/full"])
        };
        let outcome = start.spawn()?.wait()?;
        assert_eq!(outcome.code()?, 1, "{}", outcome.stderr);
        expect_words(&outcome, &["No space left on device"]);
    }
    Ok(())
}

#[test]
fn a_closed_stdout_is_no_error() -> Result<()> {
    for format in ["human", "json", "events"] {
        let namespace = Namespace::enter()?;
        let listener = Listen::new(0).open()?;
        let port = listener.port().to_string();
        let tracer = Start::on_host(&namespace)?
            .args(["-p", &port, "-f", format, "--netns"])
            .args([namespace.path()])
            .stdout(closed_pipe()?)
            .spawn()?
            .ready()?;
        let fleet = Fleet::connect(3, listener.address())?;
        assert_eq!(fleet.in_state(State::SynSent)?.len(), 2);
        let outcome = tracer.stop()?;
        assert_eq!(outcome.code()?, 0, "{format}: {}", outcome.stderr);
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    }
    Ok(())
}

#[test]
fn two_tracers_at_once_are_both_exact() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(3).open()?;
    let first = Session::start(&namespace, listener.port())?;
    let second = Session::start(&namespace, listener.port())?;
    let truth = workload::FullAcceptQueue::run(listener.address(), 10)?;
    let expected =
        Outcomes { attempts: 10, pending: 4, lost: counts([("accept-queue-full", 6)]), ..Outcomes::default() };
    for session in [first, second] {
        let finished = session.finish()?;
        finished.expect(&expected)?;
        assert_eq!(finished.all_lost(), truth.unanswered);
    }
    Ok(())
}

#[test]
fn ctrl_c_twice_ends_at_once_and_leaves_the_kernel_clean() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(3).open()?;
    let output = Output::new()?;
    let tracer = Start::on_host(&namespace)?
        .args(["-p", &listener.port().to_string(), "-f", "json", "-o"])
        .args([output.path()])
        .args(["--netns".into(), namespace.path()])
        .spawn()?
        .ready()?;
    tracer.signal(Signal::INT)?;
    // The tracer may have ended between the two.
    let _ = tracer.signal(Signal::INT);
    let outcome = tracer.wait()?;
    match outcome.status.code() {
        // Quick enough for the whole report.
        Some(0) => {
            Report::parse(&output.read()?)?;
        }
        // Given up half-way, as asked.
        code => assert_eq!(code, Some(130), "{:?}: {}", outcome.status, outcome.stderr),
    }
    // The next one finds nothing in its way.
    let session = Session::start(&namespace, listener.port())?;
    let _client = Fleet::connect(1, listener.address())?;
    session.finish()?.expect(&Outcomes { attempts: 1, pending: 1, ..Outcomes::default() })
}

#[test]
fn ctrl_c_before_the_tracer_is_ready_ends_it() -> Result<()> {
    let namespace = Namespace::enter()?;
    let tracer = Start::on_host(&namespace)?.args(["-p", "8000", "-f", "json"]).spawn()?;
    let maps = format!("/proc/{}/maps", tracer.pid());
    let executable = program()?;
    let executable = executable.to_str().context("no UTF-8")?;
    wait::until("the tracer's program to run", || {
        Ok(fs::read_to_string(&maps).is_ok_and(|text| text.contains(executable)))
    })?;
    tracer.signal(Signal::INT)?;
    let outcome = tracer.wait()?;
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    Ok(())
}

#[test]
fn a_recording_or_report_is_not_left_half_written_in_place_of_an_old_one() -> Result<()> {
    let output = Output::new()?;
    File::create(output.path())?;
    let path = output.path();
    let path = path.to_str().context("no UTF-8")?;
    let outcome = refused(Start::inside()?.args(["-p", "70000", "-o", path]), 2)?;
    expect_words(&outcome, &["70000"]);
    assert_eq!(output.read()?, "", "a usage error does not touch the output");
    Ok(())
}
