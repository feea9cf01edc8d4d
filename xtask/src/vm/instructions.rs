//! What a connection costs in instructions, which are the same on every machine.
//!
//! The guest's clock advances by one nanosecond with each instruction (QEMU's icount), so that the load's own clock counts them. One
//! fresh boot for each flavour and one without the tracer; the median over the connections leaves out timers and softirqs that come
//! in between.

use std::fmt::Write as _;

use anyhow::Context as _;
use guest_init::plan;

use super::{
    guests::{Host, Prepared, end_in_words},
    initramfs::{self, LOAD, TRACER},
    matrix::{Flavour, Kernel, Support, support},
    qemu::Accelerator,
};

const CONNECTIONS: &str = "3000";

/// What of bcc's libbpf-tools watches connections: how long `connect()` takes, each change of state, the lengths of accept queues, and
/// connects, accepts and closes.
const PEERS: [&str; 4] = ["tcpconnlat", "tcpstates", "tcpsynbl", "tcptracer"];

pub(super) fn measure(host: &Host) -> anyhow::Result<String> {
    let peers = host.cache.peers().and_then(|unpacked| initramfs::peers(&unpacked, &PEERS));
    if let Err(error) = &peers {
        println!("bcc's libbpf-tools are left out: {error:#}");
    }
    let mut own = String::from("| kernel | alone | fentry | kprobe | tracepoint |\n|---|---|---|---|---|\n");
    let mut others = format!("| kernel | {} |\n|---|{}\n", PEERS.join(" | "), "---|".repeat(PEERS.len()));
    let mut notes = String::new();
    for kernel in Kernel::ALL {
        let mut prepared = host.prepare(kernel)?;
        if let Ok(archive) = &peers {
            prepared.add(archive);
        }
        let release = prepared.image.release.clone();
        let run = |argv: Vec<String>| median(host, kernel, &prepared, argv);
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
    if let Err(error) = peers {
        return Ok(format!("{own}\nbcc's libbpf-tools were left out: {error:#}\n"));
    }
    Ok(format!("{own}\nbcc's libbpf-tools beside the same load, their output thrown away:\n\n{others}\n{notes}"))
}

/// Instructions of the median connection.
fn median(host: &Host, kernel: Kernel, prepared: &Prepared, argv: Vec<String>) -> anyhow::Result<u64> {
    let mut plan = host.plan(prepared);
    plan.probes.push(plan::Probe { name: "churn".into(), argv });
    let name = format!("{}-instructions", kernel.name());
    let (record, end, files) = host.boot(&name, prepared, &plan, Accelerator::Counting)?;
    let said = record.probes.iter().find(|probe| probe.0 == "churn");
    let (_, _, message) = said.with_context(|| format!("the load did not run: {}", end_in_words(&record, &end)))?;
    let measured: serde_json::Value =
        serde_json::from_str(message).with_context(|| format!("the load failed: {message}"))?;
    files.remove()?;
    measured["median_ns"].as_u64().context("the load did not say its median")
}

fn tracer(flavour: Flavour) -> [&'static str; 9] {
    [TRACER, "--port", "8000", "--netns", "all", "--hooks", flavour.name(), "--format", "json"]
}

/// The load, alone or beside a program.
fn churn(options: &[&str], beside: &[&str]) -> Vec<String> {
    let load = [LOAD, "churn", "--port", "8000", "--connections", CONNECTIONS];
    load.iter().chain(options).chain(&["--beside"]).chain(beside).map(|&word| word.to_owned()).collect()
}
