//! The same reports from a recording; needs no privilege.

use std::{fs::File, io::BufReader};

use anyhow::{Context, Result, bail};

use tracer_abi::abi::EventKind;

use super::{FAIL_ON, assemble::assemble, facts::Facts, sink::Sink, story::Story};
use crate::{
    cli::ReplayPlan,
    stream::recording::{Chunk, Reader},
};

pub(super) fn replay(plan: &ReplayPlan) -> Result<u8> {
    let shown = plan.file.display();
    let file = File::open(&plan.file).with_context(|| format!("cannot open the recording {shown}"))?;
    let damaged = || format!("cannot read the recording {shown}");
    let facts = facts(Reader::new(BufReader::new(&file)).with_context(damaged)?).with_context(damaged)?;
    // Read twice: what the events need to be printed comes after them.
    let file = File::open(&plan.file).with_context(|| format!("cannot open the recording {shown}"))?;
    let mut reader = Reader::new(BufReader::new(file)).with_context(damaged)?;

    let mut sink = Sink::open(&plan.output, plan.format, plan.color)?;
    let mut story = Story::new();
    let mut result = Ok(());
    let reason = |r: u32| facts.drop_reasons.get(&r).cloned();
    while let Some(chunk) = reader.next_chunk().with_context(damaged)? {
        let Chunk::Events(events) = chunk else { continue };
        for event in &events {
            if EventKind::from_u8(event.kind) == Some(EventKind::ClientEnded) && result.is_ok() {
                result = sink.ending(event, facts.start_ns);
            }
            story.apply(event, &mut |decision| {
                if result.is_ok() {
                    result = sink.decision(decision, facts.start_ns, reason);
                }
            });
        }
    }
    let report = assemble(&facts, story, &mut |decision| {
        if result.is_ok() {
            result = sink.decision(decision, facts.start_ns, reason);
        }
    });
    result?;
    sink.report(&report)?;
    Ok(if plan.fail_on.met(&report.totals.lost).is_some() { FAIL_ON } else { 0 })
}

/// The facts that a recording ends with.
fn facts(mut reader: Reader<BufReader<&File>>) -> Result<Facts> {
    let mut facts = None;
    while let Some(chunk) = reader.next_chunk()? {
        if let Chunk::Json(value) = chunk {
            facts = Some(serde_json::from_value(value).context("what it says of the run is not understood")?);
        }
    }
    match facts {
        Some(facts) => Ok(facts),
        None => bail!("it has no summary of the run: the tracer was ended before it could write one"),
    }
}
