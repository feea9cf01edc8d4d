//! What a guest tells about itself.

use std::fmt;

/// One line from a guest. Fields are separated by tabs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// The guest is set up.
    Ready {
        /// `uname -r`.
        release: String,
        /// Milliseconds since the kernel started.
        uptime_ms: u64,
    },
    /// A probe has ended.
    Probed {
        /// The probe's name.
        name: String,
        /// Its exit code; absent when a signal or the time limit ended it.
        code: Option<i32>,
        /// The last line that it wrote to stderr.
        message: String,
    },
    /// A scenario's tests are known.
    Listed {
        /// The scenario's name.
        scenario: String,
        /// How many tests it has.
        tests: u64,
    },
    /// A test has begun.
    Begun {
        /// The scenario's name.
        scenario: String,
        /// The test's name.
        test: String,
    },
    /// A test has ended.
    Ended {
        /// The scenario's name.
        scenario: String,
        /// The test's name.
        test: String,
        /// How.
        verdict: Verdict,
        /// Milliseconds that it took.
        took_ms: u64,
    },
    /// That many bytes of a file follow this line.
    File {
        /// The scenario that left it.
        scenario: String,
        /// Its name, without any directory.
        name: String,
        /// Its length in bytes.
        length: u64,
    },
    /// The guest could not do something that it was asked to do.
    Trouble {
        /// What.
        message: String,
    },
    /// Everything was done; nothing follows.
    Done,
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It failed, or could not be run.
    Failed,
    /// It was still running when its time was up, and was killed.
    Hung,
}

impl Verdict {
    const ALL: [Self; 3] = [Self::Passed, Self::Failed, Self::Hung];

    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Hung => "hung",
        }
    }
}

impl Line {
    /// Reads one line, with or without its end; `None` when it is no such line.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.trim_end_matches(['\r', '\n']).split('\t').collect();
        Some(match fields[..] {
            ["ready", release, uptime] => Self::Ready { release: release.into(), uptime_ms: uptime.parse().ok()? },
            ["probed", name, code, message] => {
                let code = if code == "-" { None } else { Some(code.parse().ok()?) };
                Self::Probed { name: name.into(), code, message: message.into() }
            }
            ["listed", scenario, tests] => Self::Listed { scenario: scenario.into(), tests: tests.parse().ok()? },
            ["begun", scenario, test] => Self::Begun { scenario: scenario.into(), test: test.into() },
            ["ended", scenario, test, verdict, took] => Self::Ended {
                scenario: scenario.into(),
                test: test.into(),
                verdict: Verdict::ALL.into_iter().find(|it| it.word() == verdict)?,
                took_ms: took.parse().ok()?,
            },
            ["file", scenario, name, length] => {
                Self::File { scenario: scenario.into(), name: name.into(), length: length.parse().ok()? }
            }
            ["trouble", message] => Self::Trouble { message: message.into() },
            ["done"] => Self::Done,
            _ => return None,
        })
    }
}

/// Without the line's end.
impl fmt::Display for Line {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { release, uptime_ms } => write!(out, "ready\t{release}\t{uptime_ms}"),
            Self::Probed { name, code, message } => {
                let code = code.map_or_else(|| "-".into(), |code| code.to_string());
                write!(out, "probed\t{name}\t{code}\t{}", plain(message))
            }
            Self::Listed { scenario, tests } => write!(out, "listed\t{scenario}\t{tests}"),
            Self::Begun { scenario, test } => write!(out, "begun\t{scenario}\t{test}"),
            Self::Ended { scenario, test, verdict, took_ms } => {
                write!(out, "ended\t{scenario}\t{test}\t{}\t{took_ms}", verdict.word())
            }
            Self::File { scenario, name, length } => write!(out, "file\t{scenario}\t{}\t{length}", plain(name)),
            Self::Trouble { message } => write!(out, "trouble\t{}", plain(message)),
            Self::Done => out.write_str("done"),
        }
    }
}

/// Free text that cannot be taken for the end of a field or a line.
fn plain(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_survives_the_way_through_its_text() {
        let scenario = || "expiry".to_owned();
        let test = || "late_is_late".to_owned();
        for line in [
            Line::Ready { release: "6.12.107+deb13-cloud-amd64".into(), uptime_ms: 1870 },
            Line::Probed { name: "refusal".into(), code: Some(1), message: "error: no hooks".into() },
            Line::Probed { name: "refusal".into(), code: None, message: String::new() },
            Line::Listed { scenario: scenario(), tests: 5 },
            Line::Begun { scenario: scenario(), test: test() },
            Line::Ended { scenario: scenario(), test: test(), verdict: Verdict::Hung, took_ms: 90_000 },
            Line::File { scenario: scenario(), name: "a recording".into(), length: 12 },
            Line::Trouble { message: "cannot load /modules/tun.ko".into() },
            Line::Done,
        ] {
            assert_eq!(Line::parse(&format!("{line}\r\n")), Some(line));
        }
    }

    #[test]
    fn a_message_of_several_lines_stays_one_line() {
        let line = Line::Trouble { message: "first\nsecond\tthird".into() };
        assert_eq!(line.to_string(), "trouble\tfirst second third");
    }

    #[test]
    fn what_no_guest_says_is_no_line() {
        for text in ["", "ready", "ended\texpiry\ttest\tskipped\t1", "[    0.1] Linux version 6.12", "listed\tx\t-1"] {
            assert_eq!(Line::parse(text), None, "{text:?}");
        }
    }
}
