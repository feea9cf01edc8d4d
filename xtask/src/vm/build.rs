//! The programs that go into a guest: statically linked, so that nothing else has to.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

use crate::host;

const TARGET: &str = "x86_64-unknown-linux-musl";
/// Between `dev` and `release`: built in half the time of the one, a tenth of the size of the other.
const PROFILE: &str = "guest";

/// What goes into a guest.
pub(super) struct Programs {
    pub(super) init: PathBuf,
    pub(super) tracer: PathBuf,
    /// The programs of the field notes, which scenarios run.
    pub(super) load: PathBuf,
    pub(super) scenarios: Vec<Scenario>,
}

/// A scenario's test binary.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scenario {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// Builds everything; with names, of the scenarios only those.
pub(super) fn build(only: &[String]) -> anyhow::Result<Programs> {
    add_target()?;
    println!("building the tracer and the scenarios for the guests");
    let tracer = cargo(&["build", "--release", "--package", "tracer", "--bin", "tracer"])?;
    let init = cargo(&["build", "--profile", PROFILE, "--package", "guest-init", "--bin", "guest-init"])?;
    let mut tests = vec!["test", "--no-run", "--profile", PROFILE, "--package", "tracer-tests"];
    let which = if only.is_empty() { &["*".to_owned()] } else { only };
    which.iter().for_each(|name| tests.extend(["--test", name]));
    // With the scenarios come the programs of their package.
    let tests = cargo(&tests)?;
    let mut scenarios = executables(&tests, "test");
    scenarios.sort_by(|one, other| one.name.cmp(&other.name));
    ensure!(!scenarios.is_empty(), "package tracer-tests has no scenarios");
    let program = |messages: &str, name: &str| {
        let found = executables(messages, "bin").into_iter().find(|it| it.name == name);
        found.map(|it| it.path).with_context(|| format!("cargo built no executable {name}"))
    };
    Ok(Programs {
        init: program(&init, "guest-init")?,
        tracer: program(&tracer, "tracer")?,
        load: program(&tests, "tracer-load")?,
        scenarios,
    })
}

fn cargo(arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = host::cargo();
    command.args(arguments).args(["--target", TARGET, "--message-format", "json-render-diagnostics"]);
    host::output(&mut command)
}

/// Adds the target to the toolchain in use, where rustup manages it.
fn add_target() -> anyhow::Result<()> {
    let mut rustc = std::process::Command::new("rustc");
    let library = host::output(rustc.args(["--print", "target-libdir", "--target", TARGET]))?;
    if PathBuf::from(library.trim()).is_dir() {
        return Ok(());
    }
    println!("installing Rust's standard library for {TARGET}: the guests' programs are linked statically");
    host::execute(std::process::Command::new("rustup").args(["target", "add", TARGET]))
        .with_context(|| format!("the toolchain in use has no target {TARGET}; add it by its own means"))
}

/// The executables of one kind among cargo's JSON messages.
fn executables(messages: &str, kind: &str) -> Vec<Scenario> {
    let parsed = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let wanted = parsed.filter(|message| message["target"]["kind"][0] == kind);
    let named = wanted.filter_map(|message| {
        let name = message["target"]["name"].as_str()?.to_owned();
        Some(Scenario { name, path: message["executable"].as_str()?.into() })
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_the_executables_of_test_targets() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"libc"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"tracer_tests"},"executable":"/t/debug/deps/tracer_tests-1"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"tracer-load"},"executable":"/t/debug/tracer-load"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"expiry"},"executable":"/t/debug/deps/expiry-2"}
{"reason":"build-finished","success":true}"#;
        let expected = [Scenario { name: "expiry".into(), path: "/t/debug/deps/expiry-2".into() }];
        assert_eq!(executables(messages, "test"), expected);
        let expected = [Scenario { name: "tracer-load".into(), path: "/t/debug/tracer-load".into() }];
        assert_eq!(executables(messages, "bin"), expected);
        assert_eq!(executables(messages, "example"), []);
    }
}
