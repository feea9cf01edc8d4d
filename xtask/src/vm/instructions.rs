//! What a connection costs in instructions, which are the same on every machine.
//!
//! The guest's clock advances by one nanosecond with each instruction (QEMU's icount), so that the load's own clock counts them. One
//! fresh boot for each flavour and one without the tracer; the median over the connections leaves out timers and softirqs that come
//! in between.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::Context as _;
use guest_init::plan;

use super::{
    guests::{Host, Prepared, end_in_words},
    initramfs::{self, LOAD, TRACER},
    matrix::{Flavour, Kernel, Support, support},
    qemu::Accelerator,
};

const CONNECTIONS: u32 = 3000;

/// What of bcc's libbpf-tools watches connections: how long `connect()` takes, each change of state, the lengths of accept queues, and
/// connects, accepts and closes.
const PEERS: [&str; 4] = ["tcpconnlat", "tcpstates", "tcpsynbl", "tcptracer"];

pub(super) fn measure(kernels: &[Kernel], host: &Host) -> anyhow::Result<String> {
    let peers = host.cache.peers().and_then(|unpacked| initramfs::peers(&unpacked, &PEERS));
    if let Err(error) = &peers {
        println!("bcc's libbpf-tools are left out: {error:#}");
    }
    let mut own = String::from("| kernel | alone | fentry | kprobe | tracepoint |\n|---|---|---|---|---|\n");
    let mut others = format!("| kernel | {} |\n|---|{}\n", PEERS.join(" | "), "---|".repeat(PEERS.len()));
    let mut notes = String::new();
    let mut programs = Programs::default();
    for &kernel in kernels {
        let mut prepared = host.prepare(kernel)?;
        if let Ok(archive) = &peers {
            prepared.add(archive);
        }
        let release = prepared.image.release.clone();
        let run = |argv: Vec<String>| measured(host, kernel, &prepared, argv).and_then(|it| median(&it));
        let alone = run(churn(&[], &[]))?;
        let more = |with: u64| format!(" +{} |", with.cast_signed() - alone.cast_signed());
        let _ = write!(own, "| {release} | {alone} |");
        for flavour in Flavour::FORCED {
            own += &match support(kernel, flavour) {
                Support::Expected => more(run(churn(&[], &tracer(flavour)))?),
                Support::Absent(_) => " absent |".into(),
            };
        }
        own.push('\n');
        let counting = [&tracer(Flavour::Fentry)[..], &["-v"]].concat();
        programs.add(&release, &measured(host, kernel, &prepared, churn(&["--programs"], &counting))?)?;
        let _ = write!(others, "| {release} |");
        if peers.is_ok() {
            for peer in PEERS {
                // What others do not run on is theirs to say.
                others += &run(churn(&["--silent"], &[&initramfs::peer_path(peer)])).map_or_else(
                    |error| {
                        let _ = writeln!(notes, "- {peer} was left out on {release}: {error:#}");
                        " - |".into()
                    },
                    more,
                );
            }
        }
        others.push('\n');
    }
    let others = match peers {
        Ok(_) => format!("bcc's libbpf-tools beside the same load, their output thrown away:\n\n{others}\n{notes}"),
        Err(error) => format!("bcc's libbpf-tools were left out: {error:#}\n"),
    };
    let programs = programs.table();
    Ok(format!("{own}\n{others}\nRuns per connection, and instructions of each, by fentry:\n\n{programs}"))
}

/// What the load says of itself, in a fresh guest.
fn measured(host: &Host, kernel: Kernel, prepared: &Prepared, argv: Vec<String>) -> anyhow::Result<serde_json::Value> {
    let mut plan = host.plan(prepared);
    plan.environment.push(("LD_LIBRARY_PATH".into(), initramfs::PEERS_LIBRARIES.into()));
    plan.probes.push(plan::Probe { name: "churn".into(), argv });
    let name = format!("{}-instructions", kernel.name());
    let (record, end, files) = host.boot(&name, prepared, &plan, Accelerator::Counting)?;
    let said = record.probes.iter().find(|probe| probe.0 == "churn");
    let (_, _, message) = said.with_context(|| format!("the load did not run: {}", end_in_words(&record, &end)))?;
    let measured = serde_json::from_str(message).with_context(|| format!("the load failed: {message}"))?;
    files.remove()?;
    Ok(measured)
}

/// Instructions of the median connection.
fn median(measured: &serde_json::Value) -> anyhow::Result<u64> {
    measured["median_ns"].as_u64().context("the load did not say its median")
}

/// What the kernel says of each of the tracer's programs (`bpf_stats`), by name and kernel: runs per connection, instructions per run.
/// Entering and leaving them is not counted.
#[derive(Default)]
struct Programs {
    kernels: Vec<String>,
    runs: BTreeMap<String, BTreeMap<String, (f64, u64)>>,
}

impl Programs {
    /// Of what is run less often per connection, nothing is said.
    const SELDOM: f64 = 0.1;

    fn add(&mut self, kernel: &str, measured: &serde_json::Value) -> anyhow::Result<()> {
        self.kernels.push(kernel.to_owned());
        for program in measured["programs"].as_array().context("the tracer says nothing of its programs")? {
            let number = |field: &str| program[field].as_u64().with_context(|| format!("a program without {field}"));
            let (runs, nanoseconds) = (number("runs")?, number("nanoseconds")?);
            let each = runs as f64 / f64::from(CONNECTIONS);
            if each >= Self::SELDOM {
                let name = program["name"].as_str().context("a program without a name")?;
                self.runs.entry(name.to_owned()).or_default().insert(kernel.to_owned(), (each, nanoseconds / runs));
            }
        }
        Ok(())
    }

    fn table(&self) -> String {
        let mut text =
            format!("| program | {} |\n|---|{}\n", self.kernels.join(" | "), "---|".repeat(self.kernels.len()));
        for (name, runs) in &self.runs {
            let cell = |kernel: &String| runs.get(kernel).map_or(String::new(), |(n, each)| format!("{n:.1} x {each}"));
            let cells: Vec<_> = self.kernels.iter().map(cell).collect();
            let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
        }
        text
    }
}

fn tracer(flavour: Flavour) -> [&'static str; 9] {
    [TRACER, "--port", "8000", "--netns", "all", "--hooks", flavour.name(), "--format", "json"]
}

/// The load, alone or beside a program.
fn churn(options: &[&str], beside: &[&str]) -> Vec<String> {
    let load = [LOAD, "churn", "--port", "8000", "--connections", &CONNECTIONS.to_string()];
    load.iter().chain(options).chain(&["--beside"]).chain(beside).map(|&word| word.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_by_connection_and_run() {
        let said = |runs: u64| {
            serde_json::json!({"programs": [
                {"name": "tp_set_state", "runs": runs, "nanoseconds": runs * 300, "missed": 0},
                {"name": "tp_seldom", "runs": 30, "nanoseconds": 3000, "missed": 0},
            ]})
        };
        let mut programs = Programs::default();
        programs.add("5.10", &said(33_000)).unwrap();
        programs.add("7.2", &said(31_500)).unwrap();
        let expected = "| program | 5.10 | 7.2 |\n|---|---|---|\n| tp_set_state | 11.0 x 300 | 10.5 x 300 |\n";
        assert_eq!(programs.table(), expected);
        assert!(programs.add("6.1", &serde_json::json!({"programs": null})).is_err());
    }
}
