//! What has become of each scenario in one guest.

use std::{collections::BTreeMap, time::Duration};

use guest_init::line::{Line, Verdict};

use super::qemu::End;

/// What has become of a scenario in a combination of kernel and flavour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// Every one of its tests ran and passed.
    Passed(Duration),
    /// Some of its tests did not pass.
    Failed {
        /// How many there are.
        tests: u64,
        /// Those that did not pass, and how they ended.
        failed: Vec<String>,
    },
    /// Not all of its tests came to an end, for this reason.
    Unfinished(String),
    /// It was not to run, for this reason.
    Absent(String),
}

impl Cell {
    /// Whether it has to fail the run.
    pub(super) fn is_bad(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::Unfinished(_))
    }
}

/// Everything that one guest has told.
#[derive(Default)]
pub(super) struct Record {
    /// `uname -r` and the time to boot.
    pub(super) ready: Option<(String, Duration)>,
    /// Name, exit code and last words of each probe.
    pub(super) probes: Vec<(String, Option<i32>, String)>,
    trouble: Option<String>,
    scenarios: BTreeMap<String, Tests>,
    running: Vec<(String, String)>,
}

#[derive(Default)]
struct Tests {
    listed: u64,
    ended: Vec<(String, Verdict)>,
    took: Duration,
}

impl Record {
    /// Takes note of a line.
    pub(super) fn note(&mut self, line: Line) {
        match line {
            Line::Ready { release, uptime_ms } => self.ready = Some((release, Duration::from_millis(uptime_ms))),
            Line::Probed { name, code, message } => self.probes.push((name, code, message)),
            Line::Listed { scenario, tests } => self.scenarios.entry(scenario).or_default().listed = tests,
            Line::Begun { scenario, test } => self.running.push((scenario, test)),
            Line::Ended { scenario, test, verdict, took_ms } => {
                self.running.retain(|it| (&it.0, &it.1) != (&scenario, &test));
                let tests = self.scenarios.entry(scenario).or_default();
                tests.ended.push((test, verdict));
                tests.took += Duration::from_millis(took_ms);
            }
            Line::Trouble { message } => self.trouble = Some(message),
            Line::File { .. } | Line::Done => {}
        }
    }

    /// What has become of a scenario that was to run, now that the guest has ended.
    pub(super) fn cell(&self, scenario: &str, end: &End) -> Cell {
        let Some(tests) = self.scenarios.get(scenario) else {
            return Cell::Unfinished(format!("never began: {}", self.why(end)));
        };
        let failed = tests.ended.iter().filter(|it| it.1 != Verdict::Passed);
        let mut failed: Vec<_> = failed.map(|(test, verdict)| format!("{test} ({})", verdict.word())).collect();
        for (_, test) in self.running.iter().filter(|it| it.0 == scenario) {
            failed.push(format!("{test} ({})", self.why(end)));
        }
        if !failed.is_empty() {
            return Cell::Failed { tests: tests.listed, failed };
        }
        if tests.listed == 0 {
            return Cell::Unfinished("it has no tests".into());
        }
        if (tests.ended.len() as u64) < tests.listed {
            let why = self.why(end);
            return Cell::Unfinished(format!("only {} of {} tests ran: {why}", tests.ended.len(), tests.listed));
        }
        Cell::Passed(tests.took)
    }

    /// Why something is missing.
    fn why(&self, end: &End) -> String {
        match (&self.trouble, end) {
            (Some(trouble), _) => trouble.clone(),
            (None, End::Success) => "the guest left it out".into(),
            (None, End::Failure) => "the guest gave up without a reason".into(),
            (None, End::Crash) => "the guest's kernel panicked or rebooted".into(),
            (None, End::Hang) => "the guest fell silent and was killed".into(),
            (None, End::Qemu(reason)) => format!("the machine broke down: {reason}"),
        }
    }

    /// What is wrong with the guest as a whole, if anything.
    pub(super) fn fault(&self, end: &End) -> Option<String> {
        (*end != End::Success).then(|| self.why(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str) -> Record {
        let mut record = Record::default();
        text.lines().for_each(|line| record.note(Line::parse(line).unwrap()));
        record
    }

    const BOTH: &str = "listed\texpiry\t2\nbegun\texpiry\ta\nended\texpiry\ta\tpassed\t10\nbegun\texpiry\tb\n";

    #[test]
    fn a_scenario_has_passed_when_all_its_tests_have() {
        let record = record(&format!("{BOTH}ended\texpiry\tb\tpassed\t20\ndone\n"));
        assert_eq!(record.cell("expiry", &End::Success), Cell::Passed(Duration::from_millis(30)));
        assert_eq!(record.fault(&End::Success), None);
    }

    #[test]
    fn every_test_that_did_not_pass_is_named() {
        let record = record(&format!("{BOTH}ended\texpiry\tb\thung\t20\ndone\n"));
        assert_eq!(record.cell("expiry", &End::Success), Cell::Failed { tests: 2, failed: vec!["b (hung)".into()] });
    }

    #[test]
    fn the_test_that_a_panic_interrupted_is_named() {
        let cell = record(BOTH).cell("expiry", &End::Crash);
        assert_eq!(cell, Cell::Failed { tests: 2, failed: vec!["b (the guest's kernel panicked or rebooted)".into()] });
    }

    #[test]
    fn what_was_left_out_is_no_success() {
        for (text, missing) in [
            ("done\n", "never began"),
            ("listed\texpiry\t0\ndone\n", "no tests"),
            ("listed\texpiry\t2\nbegun\texpiry\ta\nended\texpiry\ta\tpassed\t1\ndone\n", "only 1 of 2"),
        ] {
            let Cell::Unfinished(why) = record(text).cell("expiry", &End::Success) else { panic!("{text}") };
            assert!(why.contains(missing), "{why}");
        }
    }

    #[test]
    fn trouble_that_the_guest_tells_is_the_reason() {
        let record = record("trouble\tcannot load /modules/tun.ko\n");
        assert_eq!(record.fault(&End::Failure).as_deref(), Some("cannot load /modules/tun.ko"));
        assert_eq!(record.fault(&End::Hang).as_deref(), Some("cannot load /modules/tun.ko"));
    }
}
