//! What a connection costs in instructions, which are the same on every machine.
//!
//! The guest's clock advances by one nanosecond with each instruction (QEMU's icount), so that the load's own clock counts them. One
//! fresh boot for each flavour and one without the tracer; the median over the connections leaves out timers and softirqs that come
//! in between.

use std::fmt::Write as _;

use anyhow::Context as _;
use guest_init::plan::{self, Plan};

use super::{
    guests::{Host, end_in_words},
    initramfs::{LOAD, TRACER},
    matrix::{Flavour, Kernel, Support, support},
    qemu::Accelerator,
};

const CONNECTIONS: &str = "3000";

pub(super) fn measure(host: &Host) -> anyhow::Result<String> {
    let mut text = String::from("| kernel | alone | fentry | kprobe | tracepoint |\n|---|---|---|---|---|\n");
    for kernel in Kernel::ALL {
        let prepared = host.prepare(kernel)?;
        let median = |flavour: Option<Flavour>| -> anyhow::Result<u64> {
            let mut plan = Plan { ..host.plan(&prepared) };
            plan.probes.push(plan::Probe { name: "churn".into(), argv: churn(flavour) });
            let name = format!("{}-instructions", kernel.name());
            let (record, end, files) = host.boot(&name, &prepared, &plan, Accelerator::Counting)?;
            let said = record.probes.iter().find(|probe| probe.0 == "churn");
            let (_, _, message) =
                said.with_context(|| format!("the load did not run: {}", end_in_words(&record, &end)))?;
            let measured: serde_json::Value =
                serde_json::from_str(message).with_context(|| format!("the load failed: {message}"))?;
            files.remove()?;
            measured["median_ns"].as_u64().context("the load did not say its median")
        };
        let alone = median(None)?;
        let _ = write!(text, "| {} | {alone} |", prepared.image.release);
        for flavour in Flavour::FORCED {
            match support(kernel, flavour) {
                Support::Expected => {
                    let _ = write!(text, " +{} |", median(Some(flavour))?.cast_signed() - alone.cast_signed());
                }
                Support::Absent(_) => text.push_str(" absent |"),
            }
        }
        text.push('\n');
    }
    Ok(text)
}

/// The load, alone or beside the tracer.
fn churn(flavour: Option<Flavour>) -> Vec<String> {
    let mut argv = vec![LOAD, "churn", "--port", "8000", "--connections", CONNECTIONS, "--beside"];
    if let Some(flavour) = flavour {
        argv.extend([TRACER, "--port", "8000", "--netns", "all", "--hooks", flavour.name(), "--format", "json"]);
    }
    argv.into_iter().map(str::to_owned).collect()
}
