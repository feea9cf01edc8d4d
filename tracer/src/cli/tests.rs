//! The command line as a user meets it: what is accepted, what is refused and how, what help says.

use std::time::Duration;

use expect_test::{Expect, expect};

use super::*;

fn parse_line(line: &str) -> Result<Invocation, Refused> {
    parse(std::iter::once("tracer").chain(line.split_whitespace()))
}

fn plan(line: &str) -> Plan {
    match parse_line(line) {
        Ok(Invocation::Trace(plan)) => *plan,
        other => panic!("{line}: {other:?}"),
    }
}

/// The first line of the message; the rest is usage.
fn refused(line: &str, expected: Expect) {
    let error = parse_line(line).expect_err(line);
    assert_eq!(error.exit_code(), 2, "{line}");
    let text = error.to_string();
    expected.assert_eq(text.lines().next().unwrap_or_default());
}

#[test]
fn clap_finds_the_definition_consistent() {
    args::Args::command().debug_assert();
}

#[test]
fn without_options_every_listener_is_traced_until_a_signal() {
    let plan = plan("");
    assert!(plan.ports.is_every());
    assert_eq!(plan.netns, NetnsSelector::All);
    assert_eq!(plan.hooks, Hooks::Auto);
    assert_eq!((plan.duration, plan.settle), (None, Duration::from_secs(1)));
    assert_eq!((plan.format, plan.output), (Format::Human, Output::Stdout));
    assert_eq!((plan.command, plan.record), (None, None));
    assert_eq!(plan.verbosity, Verbosity::Normal);
}

#[test]
fn every_option_arrives_in_the_plan() {
    let plan = plan(
        "-p 80 --port 90-92,80 --netns /run/netns/blue --hooks tracepoint -d 2m -i 500ms --settle 0 -f json -o out \
         --record raw --fail-on client-reset,filtered -vv --color never -- ./load -p 1 -- x",
    );
    assert_eq!(plan.ports.to_string(), "80,90-92");
    assert_eq!(plan.netns, NetnsSelector::Path("/run/netns/blue".into()));
    assert_eq!(plan.hooks, Hooks::Tracepoint);
    assert_eq!(plan.duration, Some(Duration::from_secs(120)));
    assert_eq!((plan.interval, plan.settle), (Duration::from_millis(500), Duration::ZERO));
    assert_eq!((plan.format, plan.output), (Format::Json, Output::File("out".into())));
    assert_eq!(plan.record, Some("raw".into()));
    let mut lost = crate::ledger::ByCause::default();
    lost[tracer_abi::abi::Cause::Filtered] = 1;
    assert!(plan.fail_on.met(&lost).is_some());
    assert_eq!((plan.verbosity, plan.color), (Verbosity::Debug, ColorWhen::Never));
    let words = ["./load", "-p", "1", "--", "x"].map(OsString::from).to_vec();
    assert_eq!(plan.command, Some(words));
}

#[test]
fn the_doctor_has_flavours_and_formats_of_its_own() {
    let doctor = |line: &str| match parse_line(line) {
        Ok(Invocation::Doctor(plan)) => plan,
        other => panic!("{line}: {other:?}"),
    };
    let plan = doctor("doctor");
    assert_eq!((plan.hooks, plan.format, plan.color), (Hooks::Auto, ListFormat::Human, ColorWhen::Auto));
    let plan = doctor("-v doctor --hooks kprobe -f json --color never");
    assert_eq!((plan.hooks, plan.format, plan.color), (Hooks::Kprobe, ListFormat::Json, ColorWhen::Never));
    assert_eq!(plan.verbosity, Verbosity::Verbose);
    refused(
        "--hooks kprobe doctor",
        expect!["error: --hooks before 'doctor' belongs to tracing; options of 'doctor' come after it"],
    );
    refused("doctor -p 80", expect!["error: unexpected argument '-p' found"]);
}

#[test]
fn a_dash_is_the_standard_output() {
    assert_eq!(plan("-o -").output, Output::Stdout);
}

#[test]
fn subcommands_take_the_common_options_on_either_side() {
    for line in ["-q listeners -p 80 -f json", "listeners -q -p 80 -f json"] {
        let Ok(Invocation::Listeners(plan)) = parse_line(line) else { panic!("{line}") };
        assert_eq!((plan.verbosity, plan.format), (Verbosity::Quiet, ListFormat::Json), "{line}");
        assert_eq!(plan.ports.to_string(), "80");
    }
    let Ok(Invocation::Replay(plan)) = parse_line("replay raw -f events --fail-on loss") else { panic!() };
    assert_eq!((plan.file, plan.format), ("raw".into(), Format::Events));
    assert!(matches!(parse_line("completions bash"), Ok(Invocation::Completions(Shell::Bash))));
    assert!(matches!(parse_line("man"), Ok(Invocation::Man)));
}

#[test]
fn what_cannot_be_meant_is_refused_with_the_remedy() {
    refused(
        "-p 0",
        expect!["error: invalid value '0' for '--port <LIST>': nothing listens on port 0; ports go from 1 to 65535"],
    );
    refused(
        "-p 70000",
        expect!["error: invalid value '70000' for '--port <LIST>': 70000 is no port; ports go from 1 to 65535"],
    );
    refused(
        "-p abc",
        expect![
            "error: invalid value 'abc' for '--port <LIST>': 'abc' is no port; write a number from 1 to 65535, or a range such as 9000-9010"
        ],
    );
    refused(
        "--port=",
        expect![
            "error: invalid value '' for '--port <LIST>': no port is given; write one such as 8000, or a list such as 8000,9000-9010"
        ],
    );
    refused(
        "-p 9010-9000",
        expect![
            "error: invalid value '9010-9000' for '--port <LIST>': the range 9010-9000 runs backwards; write 9000-9010"
        ],
    );
    refused(
        "-d 10",
        expect!["error: invalid value '10' for '--duration <TIME>': the unit is missing; write 10s, 10ms or 10m"],
    );
    refused("-d 0s", expect!["error: invalid value '0s' for '--duration <TIME>': it must be longer than 0"]);
    refused("-i 1ms", expect!["error: invalid value '1ms' for '--interval <TIME>': the shortest interval is 10ms"]);
    refused(
        "--netns blue",
        expect![
            "error: invalid value 'blue' for '--netns <all|self|PATH|PID>': 'blue' is neither all, self, a path nor a pid; for a namespace made by `ip netns add` write /run/netns/blue"
        ],
    );
    refused("-f xml", expect!["error: invalid value 'xml' for '--format <FORMAT>'"]);
    refused("--hooks usdt", expect!["error: invalid value 'usdt' for '--hooks <FLAVOUR>'"]);
    refused("--fail-on lost", expect!["error: invalid value 'lost' for '--fail-on <CAUSE>'"]);
    refused("-q -v", expect!["error: the argument '--quiet' cannot be used with '--verbose...'"]);
    refused(
        "-p 80 ./load-test",
        expect!["error: unexpected word './load-test'; to run it while tracing, put -- before it: -- ./load-test"],
    );
    refused(
        "-p 80 listeners",
        expect!["error: --port before 'listeners' belongs to tracing; options of 'listeners' come after it"],
    );
    refused(
        "-o x --record x",
        expect!["error: --output and --record both name x; give the recording a file of its own"],
    );
    refused(
        "replay x -o x",
        expect!["error: the recording x would be overwritten by the report; give --output another file"],
    );
    refused("replay", expect!["error: the following required arguments were not provided:"]);
    refused("--record=", expect!["error: a value is required for '--record <FILE>' but none was supplied"]);
    refused(
        "--output=",
        expect![
            "error: invalid value '' for '--output <FILE>': no file is given; write a path, or - for the standard output"
        ],
    );
    refused("--bogus", expect!["error: unexpected argument '--bogus' found"]);
    let no_name = parse(["tracer", "--", ""]).expect_err("an empty command");
    assert!(no_name.to_string().contains("the command after -- is empty"));
}

#[test]
fn help_and_version_are_no_errors() {
    for line in ["-h", "--help", "--version", "listeners --help", "replay -h", "doctor --help"] {
        assert_eq!(parse_line(line).expect_err(line).exit_code(), 0, "{line}");
    }
}

#[test]
fn help_names_every_cause_that_fail_on_takes() {
    let help = parse_line("--help").expect_err("help").to_string();
    for cause in tracer_abi::abi::Cause::ALL {
        assert!(help.contains(cause.id()), "{}", cause.id());
    }
}

#[test]
fn every_option_is_in_the_manual_page_and_in_the_completions() {
    let mut page = Vec::new();
    manual(&mut page).expect("memory");
    let page = String::from_utf8(page).expect("UTF-8").replace("\\-", "-");
    let mut script = Vec::new();
    completions(Shell::Bash, &mut script).expect("memory");
    let script = String::from_utf8(script).expect("UTF-8");
    let mut command = args::Args::command();
    command.build();
    for long in command.get_arguments().filter_map(clap::Arg::get_long) {
        assert!(page.contains(&format!("--{long}")), "--{long} in the manual page");
        assert!(script.contains(&format!("--{long}")), "--{long} in the completions");
    }
    for subcommand in command.get_subcommands().map(clap::Command::get_name) {
        assert!(page.contains(&format!("tracer {subcommand}")), "{subcommand} in the manual page");
        assert!(script.contains(subcommand), "{subcommand} in the completions");
    }
    for heading in ["EXAMPLES", "EXIT STATUS", "SIGNALS", "ENVIRONMENT", "COMMANDS"] {
        assert!(page.lines().any(|l| l.starts_with(".SH") && l.contains(heading)), "{heading}");
    }
}
