//! `cargo xtask test`: the one command that sets up, builds and runs every test.
//!
//! First the unit tests of all packages, then the scenarios on the running kernel (package `tracer-tests`), which need root
//! and the built `tracer`, whose path they get in `TRACER_BIN`. They call no other program: namespaces, routes and packets
//! are made by system calls, so that Rust is all that has to be installed. The scenarios compare the kernel's counters with the
//! tracer's, some under load, so that they run one after another.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};

use crate::{host, vm};

/// The package of the scenarios.
const SCENARIOS: &str = "tracer-tests";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only the tests whose name contains this
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Then also run the scenarios on other kernels, as `cargo xtask vm` does
    #[arg(long, conflicts_with = "filter")]
    guests: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    check_tracefs()?;
    if !host::is_root() {
        println!("not root: the scenarios on the running kernel are going to fail; run: sudo -E cargo xtask test");
    }
    let tracer = build_tracer()?;

    // Both parts always run: a failure in the first must not hide one in the second.
    let mut unit = host::cargo();
    unit.args(["test", "--workspace", "--exclude", SCENARIOS, "--no-fail-fast"]);
    let unit = run_tests(unit, &["--"], &options.filter).and_then(Run::passed);
    let scenarios = run_scenarios(&tracer, options).and_then(Run::passed);

    let (unit, scenarios) = match (unit, scenarios) {
        (Ok(unit), Ok(scenarios)) => (unit, scenarios),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => return Err(error),
        (Err(unit), Err(scenarios)) => bail!("{unit:#}; {scenarios:#}"),
    };
    let all = unit.plus(scenarios);
    // Neither a misspelt filter nor a test that is switched off may look like success.
    ensure!(all.passed > 0, "no test has a name that contains {:?}", options.filter.as_deref().unwrap_or(""));
    ensure!(all.ignored == 0, "{} tests are marked as ignored; every test has to run", all.ignored);
    println!("every test passed: {} unit, {} on the running kernel", unit.passed, scenarios.passed);
    if options.guests { vm::run(&vm::Options::default()) } else { Ok(()) }
}

/// The tracer reads its tracepoints' ids there and mounts it where it is not mounted; the kernel has to have it.
fn check_tracefs() -> anyhow::Result<()> {
    let filesystems = fs::read_to_string("/proc/filesystems").context("cannot read /proc/filesystems")?;
    ensure!(has_tracefs(&filesystems), "this kernel has no tracefs (CONFIG_TRACING); run the tests on one that has it");
    Ok(())
}

fn has_tracefs(filesystems: &str) -> bool {
    filesystems.lines().any(|line| line.split_whitespace().next_back() == Some("tracefs"))
}

/// Builds the program under test as users do and returns its path.
fn build_tracer() -> anyhow::Result<PathBuf> {
    println!("building tracer");
    let mut build = host::cargo();
    build.args(["build", "--release", "--package", "tracer", "--message-format", "json-render-diagnostics"]);
    let messages = host::output(&mut build)?;
    executable(&messages).context("cargo built no executable from package tracer")
}

/// The path of the executable among cargo's JSON messages.
fn executable(messages: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "tracer").then_some(())?;
        message["executable"].as_str().map(PathBuf::from)
    })
}

/// What the closing lines of test binaries add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    ignored: u64,
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self { passed: self.passed + other.passed, ignored: self.ignored + other.ignored }
    }
}

/// How many scenarios may be run a second time.
const REPEATED: usize = 2;

/// Runs the scenarios; what fails because the tracer itself declares its report inexact is run once more, and said aloud.
///
/// The kernel was seen not to show a packet to any program, about once in a hundred runs of a scenario (ARCHITECTURE.md, "What we
/// found out"). The tracer notices and says so, and a scenario that demands an exact report then fails. A report that claims to be
/// exact and is not is never given a second chance.
fn run_scenarios(tracer: &Path, options: &Options) -> anyhow::Result<Run> {
    let cargo_test = || {
        let mut command = host::cargo();
        command.args(["test", "--package", SCENARIOS, "--no-fail-fast"]).env("TRACER_BIN", tracer);
        command
    };
    let mut first = run_tests(cargo_test(), &["--", "--test-threads=1"], &options.filter)?;
    if first.failed.is_empty() || first.failed.len() > REPEATED || !first.declared_inexact {
        return Ok(first);
    }
    println!("NOT EXACT, and declared so by the tracer: {}; once more", first.failed.join(", "));
    let again = run_tests(cargo_test(), &["--", "--test-threads=1", "--exact"], &first.failed)?;
    if again.failed.is_empty() && again.error.is_none() {
        println!("exact when repeated: {}", first.failed.join(", "));
        first.error = None;
        first.counts = first.counts.plus(again.counts);
    }
    Ok(first)
}

/// One call of `cargo test`.
struct Run {
    counts: Counts,
    failed: Vec<String>,
    /// A failing test printed a report that says of itself that it is not exact.
    declared_inexact: bool,
    error: Option<anyhow::Error>,
}

impl Run {
    fn passed(self) -> anyhow::Result<Counts> {
        self.error.map_or(Ok(self.counts), Err)
    }
}

/// Runs `cargo test`, passing its output through, and adds up what it reports.
fn run_tests<'a>(
    mut cargo_test: Command,
    harness: &[&str],
    names: impl IntoIterator<Item = &'a String>,
) -> anyhow::Result<Run> {
    cargo_test.args(harness).args(names);
    let words: Vec<_> = cargo_test.get_args().map(|word| word.to_string_lossy()).collect();
    let shown = format!("cargo {}", words.join(" "));
    println!("$ {shown}");
    let mut child = cargo_test
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let stdout = child.stdout.take().expect("stdout was set to a pipe");
    let mut run = Run { counts: Counts::default(), failed: Vec::new(), declared_inexact: false, error: None };
    let mut terminal = io::stdout().lock();
    let mut lines = BufReader::new(stdout);
    let mut line = Vec::new();
    // Bytes, as a test may print anything.
    while lines.read_until(b'\n', &mut line).with_context(|| format!("cannot read the output of {shown}"))? > 0 {
        terminal.write_all(&line).context("cannot write to stdout")?;
        let text = String::from_utf8_lossy(&line);
        if let Some(more) = closing_line(&text) {
            run.counts = run.counts.plus(more);
        }
        run.failed.extend(failed_test(&text));
        run.declared_inexact |= text.contains("exact: false");
        line.clear();
    }
    let status = child.wait().with_context(|| format!("cannot wait for {shown}"))?;
    if !status.success() {
        run.error = Some(anyhow::anyhow!("tests failed ({shown}: {status})"));
    }
    Ok(run)
}

/// Reads `test NAME ... FAILED`.
fn failed_test(line: &str) -> Option<String> {
    let name = line.trim().strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
    Some(name.to_owned())
}

/// Reads `test result: ok. 4 passed; 0 failed; 1 ignored; ...`.
fn closing_line(line: &str) -> Option<Counts> {
    let (_, numbers) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
    let number = |name: &str| numbers.split("; ").find_map(|part| part.strip_suffix(name)?.trim().parse().ok());
    Some(Counts { passed: number("passed")?, ignored: number("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closing_line_gives_its_counts_and_other_lines_nothing() {
        let line = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s\n";
        assert_eq!(closing_line(line), Some(Counts { passed: 12, ignored: 1 }));
        assert_eq!(closing_line("test ledger::late ... ok\n"), None);
    }

    #[test]
    fn a_failed_test_is_known_by_its_line() {
        assert_eq!(failed_test("test a_b ... FAILED\n").as_deref(), Some("a_b"));
        assert_eq!(failed_test("test a_b ... ok\n"), None);
        assert_eq!(failed_test("test result: FAILED. 0 passed; 1 failed\n"), None);
    }

    #[test]
    fn the_executable_is_the_one_of_package_tracer() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"libc"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"tracer"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"tracer"},"executable":"/t/release/tracer"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/t/release/tracer")));
    }

    #[test]
    fn tracefs_is_found_among_the_kernels_filesystems() {
        assert!(has_tracefs("nodev\tsysfs\nnodev\ttracefs\n\text4\n"));
        assert!(!has_tracefs("nodev\tsysfs\nnodev\tdebugfs\n"));
    }
}
