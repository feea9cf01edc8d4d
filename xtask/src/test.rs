//! `cargo xtask test`: the one command that sets up, builds and runs every test.
//!
//! First the unit tests of all packages, then the scenarios on the running kernel (package `tracer-tests`), then a part of them on
//! other kernels in guests (`vm`). The scenarios need root and the built `tracer`, whose path they get in `TRACER_BIN`. They call no
//! other program: namespaces, routes and packets are made by system calls, so that Rust is all that has to be installed. They
//! compare the kernel's counters with the tracer's, some under load, so that they run one after another.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};

use crate::{host, vm};

/// The package of the scenarios.
pub(crate) const SCENARIOS: &str = "tracer-tests";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only the tests whose name contains this
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Then run all scenarios on the other kernels in all flavours, as `cargo xtask vm` does, instead of a part of them
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
    match options.filter {
        Some(_) => {
            println!("the other kernels were left out, as a filter was given");
            Ok(())
        }
        None if options.guests => vm::run(&vm::Options::default()),
        None => vm::run(&vm::Options::short()),
    }
}

/// The tracer reads its tracepoints' ids there and mounts it where it is not mounted; the kernel has to have it.
pub(crate) fn check_tracefs() -> anyhow::Result<()> {
    let filesystems = fs::read_to_string("/proc/filesystems").context("cannot read /proc/filesystems")?;
    ensure!(has_tracefs(&filesystems), "this kernel has no tracefs (CONFIG_TRACING); run the tests on one that has it");
    Ok(())
}

fn has_tracefs(filesystems: &str) -> bool {
    filesystems.lines().any(|line| line.split_whitespace().next_back() == Some("tracefs"))
}

/// Builds the program under test as users do and returns its path.
pub(crate) fn build_tracer() -> anyhow::Result<PathBuf> {
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

/// What a scenario prints when the kernel may have hidden packets from the tracer (`tests/src/hidden.rs`).
const HIDDEN: &str = "HIDDEN: ";

/// Runs the scenarios; what fails while the kernel may have hidden packets from the tracer is run once more, and said aloud.
///
/// A kernel was seen to run no BPF program while a thread of process 1 is current (ARCHITECTURE.md, "What we found out"): about once
/// in a hundred runs of a scenario, a packet that matters is handled just then. The scenarios count that by perf events, in which
/// the tracer has no part, and a failing one prints the evidence. Without it a scenario is never given a second chance, nor is any
/// when a test program did not come to its end.
fn run_scenarios(tracer: &Path, options: &Options) -> anyhow::Result<Run> {
    let cargo_test = || {
        let mut command = host::cargo();
        command.args(["test", "--package", SCENARIOS, "--no-fail-fast"]).env("TRACER_BIN", tracer);
        command
    };
    let mut first = run_tests(cargo_test(), &["--", "--test-threads=1"], &options.filter)?;
    if !first.seen.may_be_repeated() {
        return Ok(first);
    }
    let names = &first.seen.failed;
    println!("packets may have been HIDDEN from the tracer by the kernel: {}; once more", names.join(", "));
    let again = run_tests(cargo_test(), &["--", "--test-threads=1", "--exact"], names)?;
    if again.seen.failed.is_empty() && again.error.is_none() {
        println!("passed when repeated: {}", names.join(", "));
        first.error = None;
        first.seen.counts = first.seen.counts.plus(again.seen.counts);
    }
    Ok(first)
}

/// What the test binaries have printed, line by line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    counts: Counts,
    failed: Vec<String>,
    /// The failed ones that have printed evidence of hidden packets. A name may come from two binaries, and stands here as
    /// often as in `failed` only if both have.
    hidden: Vec<String>,
    /// The failed test whose own output is being printed.
    section: Option<String>,
    /// How many binaries have begun and not ended: one that crashed stays.
    running: usize,
}

impl Seen {
    fn line(&mut self, line: &str) {
        if let Some(more) = closing_line(line) {
            self.counts = self.counts.plus(more);
            self.running = self.running.saturating_sub(1);
            self.section = None;
        } else if opening_line(line) {
            self.running += 1;
        } else if let Some(name) = section(line) {
            self.section = Some(name.to_owned());
        } else if line.trim_end() == "failures:" {
            // The list of names, which is the end of what the tests have printed.
            self.section = None;
        } else if let Some(name) = failed_test(line) {
            self.failed.push(name);
        } else if line.trim_start().starts_with(HIDDEN) {
            // The rest of this section is of no interest: one line is enough.
            self.hidden.extend(self.section.take());
        }
    }

    fn may_be_repeated(&self) -> bool {
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort_unstable();
            names
        };
        (1..=REPEATED).contains(&self.failed.len()) && sorted(&self.failed) == sorted(&self.hidden) && self.running == 0
    }
}

/// One call of `cargo test`.
struct Run {
    seen: Seen,
    error: Option<anyhow::Error>,
}

impl Run {
    fn passed(self) -> anyhow::Result<Counts> {
        self.error.map_or(Ok(self.seen.counts), Err)
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
    let mut run = Run { seen: Seen::default(), error: None };
    let mut terminal = io::stdout().lock();
    let mut lines = BufReader::new(stdout);
    let mut line = Vec::new();
    // Bytes, as a test may print anything.
    while lines.read_until(b'\n', &mut line).with_context(|| format!("cannot read the output of {shown}"))? > 0 {
        terminal.write_all(&line).context("cannot write to stdout")?;
        run.seen.line(&String::from_utf8_lossy(&line));
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

/// Reads `---- NAME stdout ----`, after which comes what a failed test has printed.
fn section(line: &str) -> Option<&str> {
    line.trim_end().strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// Knows `running 4 tests`.
fn opening_line(line: &str) -> bool {
    let mut words = line.trim_end().split(' ');
    words.next() == Some("running")
        && words.next().is_some_and(|number| number.parse::<u64>().is_ok())
        && matches!(words.next(), Some("test" | "tests"))
        && words.next().is_none()
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

    fn seen(output: &str) -> Seen {
        let mut seen = Seen::default();
        output.lines().for_each(|line| seen.line(line));
        seen
    }

    /// What libtest prints when `a` and `b` have failed, with `a` and `b` as what they have printed.
    fn two_failed(a: &str, b: &str) -> String {
        format!(
            "\nrunning 3 tests\ntest a ... FAILED\ntest b ... FAILED\ntest c ... ok\n\nfailures:\n\n\
             ---- a stdout ----\n{a}\n\n---- b stdout ----\n{b}\n\n\
             failures:\n    a\n    b\n\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n"
        )
    }

    const EVIDENCE: &str =
        "Error: round 3\n\nCaused by:\n    not exact\n    HIDDEN: 6 packets were handled\n    HIDDEN: 1";

    #[test]
    fn failures_are_repeated_if_each_of_them_has_its_own_evidence() {
        let both = seen(&two_failed(EVIDENCE, "HIDDEN: 1 packet was handled"));
        assert_eq!((&both.failed, &both.hidden), (&vec!["a".to_owned(), "b".to_owned()], &both.failed));
        assert!(both.may_be_repeated());
        for (a, b) in [(EVIDENCE, "exact: false"), ("exact: false", EVIDENCE), ("", "nothing was HIDDEN: 0 packets")] {
            assert!(!seen(&two_failed(a, b)).may_be_repeated(), "{a:?} and {b:?}");
        }
    }

    #[test]
    fn evidence_outside_of_a_failed_tests_output_counts_for_nobody() {
        let elsewhere = format!("HIDDEN: 1\n{}HIDDEN: 1\n", two_failed("", ""));
        assert_eq!(seen(&elsewhere).hidden, Vec::<String>::new());
        assert!(
            !seen("running 1 test\ntest c ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n").may_be_repeated()
        );
    }

    #[test]
    fn more_failures_than_two_or_the_same_name_with_half_the_evidence_or_a_crash_are_not_repeated() {
        let two = two_failed(EVIDENCE, EVIDENCE);
        assert!(!seen(&two_failed(EVIDENCE, "").replace(" b ", " a ")).may_be_repeated());
        assert!(seen(&two_failed(EVIDENCE, EVIDENCE).replace(" b ", " a ")).may_be_repeated());
        assert!(!seen(&format!("{two}{two}")).may_be_repeated());
        assert!(!seen(&format!("running 1 test\n{two}")).may_be_repeated());
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
