//! `cargo xtask field-notes`: makes the field notes' traffic again and shows what the tracer says beside what the programs counted.
//!
//! The notes are scenarios of package `tracer-tests`, small by default; `--full` makes as many connections as notes 1 to 6 did, which
//! takes minutes for each. Notes 7 to 9 have one size: the first two are about the path, the third is about single packets. Like all
//! scenarios they need root.
//!
//! Some minutes of traffic on all CPUs always meet process 1 somewhere, while which one kernel shows no packets to programs
//! (ARCHITECTURE.md, "What we found out"): there `--one-cpu` keeps process 1 away from the traffic.

use std::{process::Command, thread};

use anyhow::{Context as _, ensure};
use clap::value_parser;

use crate::{host, test};

/// The notes that the scenarios re-create.
const FIRST: u8 = 1;
const LAST: u8 = 9;

/// The files of `tests/tests` that have them.
const FILES: [&str; 4] = ["field_notes", "field_note_7", "field_note_8", "field_note_9"];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which notes, all if none is named
    #[arg(value_name = "N", value_parser = value_parser!(u8).range(i64::from(FIRST)..=i64::from(LAST)))]
    notes: Vec<u8>,
    /// With the notes' own numbers of threads and connections
    #[arg(long)]
    full: bool,
    /// On one CPU, which other processes hardly get meanwhile (real-time priority): where the kernel hides packets that come while
    /// process 1 runs
    #[arg(long)]
    one_cpu: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    test::check_tracefs()?;
    ensure!(host::is_root(), "the scenarios trace the kernel; run: sudo -E cargo xtask field-notes");
    let tracer = test::build_tracer()?;
    let test = |mut command: Command| {
        command.args(["test", "--package", test::SCENARIOS]).args(FILES.map(|file| format!("--test={file}")));
        command
    };
    // What has to be compiled is nothing that other processes should wait for.
    host::execute(test(host::cargo()).arg("--no-run"))?;
    let cargo = host::cargo();
    let mut command = test(if options.one_cpu { alone(&cargo)? } else { cargo });
    command.args(["--", "--nocapture", "--test-threads=1"]).args(names(&options.notes)).env("TRACER_BIN", tracer);
    scale(&mut command, options.full);
    host::execute(&mut command)
}

/// The same program, on the last CPU and before whatever has no real-time priority there.
fn alone(program: &Command) -> anyhow::Result<Command> {
    let cpus = thread::available_parallelism().context("cannot tell the number of CPUs")?.get();
    ensure!(cpus > 1, "--one-cpu leaves one CPU to all others, and this machine has no other");
    let mut command = Command::new("chrt");
    command.args(["--rr", "1", "taskset", "--cpu-list", &(cpus - 1).to_string()]).arg(program.get_program());
    Ok(command)
}

/// What the names of these notes' scenarios begin with; none stands for all.
fn names(notes: &[u8]) -> Vec<String> {
    notes.iter().map(|note| format!("note_{note}_")).collect()
}

/// Says how much traffic is wanted. What the environment says by chance must not count.
fn scale(command: &mut Command, full: bool) {
    if full {
        command.env("FIELD_NOTES", "full");
    } else {
        command.env_remove("FIELD_NOTES");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_known_by_the_beginning_of_its_scenarios_names() {
        assert_eq!(names(&[1, 6]), ["note_1_", "note_6_"]);
        assert_eq!(names(&[]), Vec::<String>::new());
    }

    #[test]
    fn every_note_in_the_range_has_a_scenario() {
        let scenarios = [
            include_str!("../../tests/tests/field_notes.rs"),
            include_str!("../../tests/tests/field_note_7.rs"),
            include_str!("../../tests/tests/field_note_8.rs"),
            include_str!("../../tests/tests/field_note_9.rs"),
        ]
        .concat();
        for note in FIRST..=LAST {
            assert!(scenarios.contains(&format!("fn note_{note}_")), "note {note} has none");
        }
        assert!(!scenarios.contains(&format!("fn note_{}_", LAST + 1)), "note {} cannot be asked for", LAST + 1);
    }

    #[test]
    fn the_scale_is_what_was_asked_for() {
        let of = |full| {
            let mut command = Command::new("cargo");
            scale(&mut command, full);
            let value = command.get_envs().find(|(name, _)| *name == "FIELD_NOTES").map(|(_, value)| value);
            value.map(|value| value.map(|it| it.to_string_lossy().into_owned()))
        };
        assert_eq!(of(true), Some(Some("full".into())));
        assert_eq!(of(false), Some(None));
    }
}
