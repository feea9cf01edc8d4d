//! Values of options, each with its way to be written.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::SignedDuration;
use tracer_abi::abi::{CAUSES, Cause};

use crate::ledger::ByCause;

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A page to read
    Human,
    /// One JSON object at the end
    Json,
    /// One JSON line per lost or late connection as it is decided, the summary as last line
    Events,
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// A table
    Human,
    /// One JSON object
    Json,
}

/// How the programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hooks {
    /// The best that this kernel accepts
    Auto,
    /// Function entry and exit, by BPF trampoline
    Fentry,
    /// Function entry and return, by kprobe
    Kprobe,
    /// Tracepoints
    Tracepoint,
}

/// When colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    /// On a terminal that has colours, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl ColorWhen {
    /// The decision, for an output that is a terminal or not. `env` gives the value of an environment variable.
    #[must_use]
    pub fn decide(self, is_terminal: bool, env: impl Fn(&str) -> Option<String>) -> bool {
        match self {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => {
                let no_color = env("NO_COLOR").is_some_and(|v| !v.is_empty());
                let dumb = env("TERM").is_some_and(|v| v == "dumb");
                is_terminal && !no_color && !dumb
            }
        }
    }
}

/// Which network namespaces are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetnsSelector {
    /// All of the machine.
    All,
    /// The one that the tracer runs in.
    SelfNs,
    /// The one bound to this path.
    Path(PathBuf),
    /// The one of this process.
    Pid(u32),
}

impl FromStr for NetnsSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(NetnsSelector::All),
            "self" => Ok(NetnsSelector::SelfNs),
            "" => Err("no namespace is given; write all, self, a path or a pid".into()),
            _ if text.contains('/') => Ok(NetnsSelector::Path(text.into())),
            _ if text.bytes().all(|b| b.is_ascii_digit()) => match text.parse::<i32>() {
                Ok(pid) if pid > 0 => Ok(NetnsSelector::Pid(pid.unsigned_abs())),
                _ => Err(format!("{text} is no process id")),
            },
            _ => Err(format!(
                "'{text}' is neither all, self, a path nor a pid; for a namespace made by `ip netns add` write \
                 /run/netns/{text}"
            )),
        }
    }
}

/// Where the report goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The standard output.
    Stdout,
    /// This file, replaced if it exists.
    File(PathBuf),
}

impl FromStr for Output {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "" => Err("no file is given; write a path, or - for the standard output"),
            "-" => Ok(Output::Stdout),
            path => Ok(Output::File(path.into())),
        }
    }
}

/// One word of `--fail-on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailOnItem {
    Loss,
    Cause(Cause),
}

pub(super) fn fail_on_parser() -> impl TypedValueParser<Value = FailOnItem> {
    PossibleValuesParser::new(std::iter::once("loss").chain(Cause::ALL.map(Cause::id)))
        .map(|word| Cause::ALL.into_iter().find(|c| c.id() == word).map_or(FailOnItem::Loss, FailOnItem::Cause))
}

/// Losses that make the exit status 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailOn([bool; CAUSES]);

impl FailOn {
    pub(super) fn new(items: &[FailOnItem]) -> FailOn {
        let mut on = FailOn::default();
        for item in items {
            match item {
                FailOnItem::Loss => on.0 = [true; CAUSES],
                FailOnItem::Cause(cause) => on.0[*cause as usize] = true,
            }
        }
        on
    }

    /// The first cause asked for that has a loss in `lost`.
    #[must_use]
    pub fn met(&self, lost: &ByCause) -> Option<Cause> {
        lost.nonzero().map(|(cause, _)| cause).find(|cause| self.0[*cause as usize])
    }
}

/// A time above 0.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_zero(text)? {
        Duration::ZERO => Err("it must be longer than 0".into()),
        time => Ok(time),
    }
}

/// A time between two samples.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    const SHORTEST: Duration = Duration::from_millis(10);
    match duration_or_zero(text)? {
        time if time < SHORTEST => Err("the shortest interval is 10ms".into()),
        time => Ok(time),
    }
}

/// A time, such as 500ms, 1.5s, 2m or 1h30m.
pub(super) fn duration_or_zero(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return if text.bytes().all(|b| b == b'0') {
            Ok(Duration::ZERO)
        } else {
            Err(format!("the unit is missing; write {text}s, {text}ms or {text}m"))
        };
    }
    let bad = || format!("'{text}' is no time; write a number and a unit, such as 500ms, 10s or 2m");
    let time: SignedDuration = text.parse().map_err(|_| bad())?;
    let time = Duration::try_from(time).map_err(|_| bad())?;
    // Far beyond any use, and far below where adding it to a clock could overflow.
    if time > Duration::from_secs(365 * 24 * 3600) {
        return Err("the longest time is a year, 8760h".into());
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration_or_zero("0"), Ok(Duration::ZERO));
        assert_eq!(duration_or_zero("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn a_bad_time_is_refused_with_the_remedy() {
        for (text, names) in [
            ("10", "write 10s, 10ms or 10m"),
            ("", "is no time"),
            ("s", "'s' is no time"),
            ("-3s", "'-3s' is no time"),
            ("3s ago", "'3s ago' is no time"),
            ("ten", "'ten' is no time"),
            ("0s", "longer than 0"),
            ("99999h", "a year"),
            ("1e3s", "'1e3s' is no time"),
        ] {
            let message = duration(text).expect_err(text);
            assert!(message.contains(names), "{text:?}: {message}");
        }
        assert!(interval("9ms").is_err());
        assert!(interval("10ms").is_ok());
    }

    #[test]
    fn namespaces_are_told_apart_by_their_looks() {
        let parse = |text: &str| text.parse::<NetnsSelector>();
        assert_eq!(parse("all"), Ok(NetnsSelector::All));
        assert_eq!(parse("self"), Ok(NetnsSelector::SelfNs));
        assert_eq!(parse("/run/netns/blue"), Ok(NetnsSelector::Path("/run/netns/blue".into())));
        assert_eq!(parse("4242"), Ok(NetnsSelector::Pid(4242)));
        assert!(parse("0").is_err_and(|e| e.contains("0 is no process id")));
        assert!(parse("blue").is_err_and(|e| e.contains("/run/netns/blue")));
    }

    #[test]
    fn colour_needs_a_terminal_or_an_order() {
        let none = |_: &str| None;
        let no_color = |name: &str| (name == "NO_COLOR").then(|| "1".to_owned());
        let empty = |name: &str| (name == "NO_COLOR").then(String::new);
        let dumb = |name: &str| (name == "TERM").then(|| "dumb".to_owned());
        assert!(ColorWhen::Auto.decide(true, none));
        assert!(!ColorWhen::Auto.decide(false, none));
        assert!(!ColorWhen::Auto.decide(true, no_color));
        assert!(ColorWhen::Auto.decide(true, empty));
        assert!(!ColorWhen::Auto.decide(true, dumb));
        assert!(ColorWhen::Always.decide(false, no_color));
        assert!(!ColorWhen::Never.decide(true, none));
    }

    #[test]
    fn fail_on_finds_only_what_was_asked_for() {
        let mut lost = ByCause::default();
        lost[Cause::ClientReset] = 1;
        assert_eq!(FailOn::new(&[]).met(&lost), None);
        assert_eq!(FailOn::new(&[FailOnItem::Loss]).met(&lost), Some(Cause::ClientReset));
        assert_eq!(FailOn::new(&[FailOnItem::Loss]).met(&ByCause::default()), None);
        assert_eq!(FailOn::new(&[FailOnItem::Cause(Cause::Filtered)]).met(&lost), None);
        assert_eq!(FailOn::new(&[FailOnItem::Cause(Cause::ClientReset)]).met(&lost), Some(Cause::ClientReset));
    }
}
