//! What a guest is asked to do.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

/// Where the guest finds its plan.
pub const PATH: &str = "/plan";

/// What a guest is asked to do, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Kernel modules to load, each after those that it depends on: paths in the guest.
    pub modules: Vec<String>,
    /// Environment of everything that is run.
    pub environment: Vec<(String, String)>,
    /// The longest that one test may take.
    pub limit: Duration,
    /// Commands to run to their end, whatever it is.
    pub probes: Vec<Probe>,
    /// Test binaries whose tests to run, each test in a process of its own.
    pub scenarios: Vec<Scenario>,
    /// How many tests may run at a time: at least one does.
    pub workers: usize,
    /// Begin an interactive shell on the console at the end.
    pub shell: bool,
}

/// A command whose exit code and last words are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What the answer is called.
    pub name: String,
    /// Program and arguments, without white space in any.
    pub argv: Vec<String>,
}

/// A test binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// The scenario's name.
    pub name: String,
    /// The binary's path in the guest.
    pub path: String,
    /// Whether its tests want the machine to themselves. They come last.
    pub alone: bool,
}

impl Plan {
    /// The text that [`Plan::parse`] reads.
    ///
    /// # Errors
    /// Fails when a word is empty or has white space in it.
    pub fn to_text(&self) -> anyhow::Result<String> {
        let mut lines = Vec::new();
        lines.extend(self.modules.iter().map(|path| vec!["module", path]));
        lines.extend(self.environment.iter().map(|(name, value)| vec!["env", name, value]));
        let limit = self.limit.as_secs().to_string();
        lines.push(vec!["limit", &limit]);
        for probe in &self.probes {
            let argv = probe.argv.iter().map(String::as_str);
            lines.push(["probe", probe.name.as_str()].into_iter().chain(argv).collect());
        }
        let workers = self.workers.to_string();
        lines.push(vec!["workers", &workers]);
        for scenario in &self.scenarios {
            lines.push(vec![if scenario.alone { "alone" } else { "scenario" }, &scenario.name, &scenario.path]);
        }
        if self.shell {
            lines.push(vec!["shell"]);
        }
        let mut text = String::new();
        for line in &lines {
            for word in line {
                let plain = !word.is_empty() && !word.contains(char::is_whitespace);
                ensure!(plain, "a plan for a guest cannot hold the word {word:?}");
            }
            text += &line.join(" ");
            text.push('\n');
        }
        Ok(text)
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// Names the line that cannot be understood.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut plan = Self::default();
        for line in text.lines() {
            let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match words[..] {
                ["module", path] => plan.modules.push(path.into()),
                ["env", name, value] => plan.environment.push((name.into(), value.into())),
                ["limit", seconds] => {
                    let seconds = seconds.parse().with_context(|| format!("no number in {line:?}"))?;
                    plan.limit = Duration::from_secs(seconds);
                }
                ["probe", name, ref argv @ ..] if !argv.is_empty() => {
                    let argv = argv.iter().map(|&word| word.to_owned()).collect();
                    plan.probes.push(Probe { name: name.into(), argv });
                }
                ["workers", number] => {
                    plan.workers = number.parse().with_context(|| format!("no number in {line:?}"))?;
                }
                [kind @ ("scenario" | "alone"), name, path] => {
                    plan.scenarios.push(Scenario { name: name.into(), path: path.into(), alone: kind == "alone" });
                }
                ["shell"] => plan.shell = true,
                _ => bail!("the plan has a line that means nothing: {line:?}"),
            }
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_survives_the_way_through_its_text() {
        let plan = Plan {
            modules: vec!["/modules/tun.ko".into(), "/modules/veth.ko".into()],
            environment: vec![("TRACER_HOOKS".into(), "kprobe".into())],
            limit: Duration::from_secs(90),
            probes: vec![Probe { name: "refusal".into(), argv: vec!["/bin/tracer".into(), "-d".into(), "1s".into()] }],
            scenarios: vec![
                Scenario { name: "expiry".into(), path: "/scenarios/expiry".into(), alone: false },
                Scenario { name: "load".into(), path: "/scenarios/load".into(), alone: true },
            ],
            workers: 3,
            shell: true,
        };
        assert_eq!(Plan::parse(&plan.to_text().unwrap()).unwrap(), plan);
        assert_eq!(Plan::parse(&Plan::default().to_text().unwrap()).unwrap(), Plan::default());
    }

    #[test]
    fn a_word_that_would_become_two_is_refused() {
        for word in ["two words", "", "a\nb"] {
            let plan = Plan { modules: vec![word.into()], ..Plan::default() };
            assert!(plan.to_text().is_err(), "{word:?}");
        }
    }

    #[test]
    fn a_line_that_means_nothing_is_named() {
        for line in ["dance", "env LONELY", "probe nothing", "limit soon"] {
            let error = Plan::parse(line).unwrap_err().to_string();
            assert!(error.contains(line), "{error}");
        }
    }
}
