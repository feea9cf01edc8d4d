//! A recording of a real run gives the same report again, from the file alone.

use anyhow::{Context, Result};
use tracer_tests::namespace::Namespace;
use tracer_tests::report::{Lines, Outcomes, counts, parse_events};
use tracer_tests::session::{Scope, Session};
use tracer_tests::tracer::Start;
use tracer_tests::traffic::Listen;
use tracer_tests::workload::FullAcceptQueue;

#[test]
fn a_recording_replays_to_the_same_ledger_and_the_same_lines() -> Result<()> {
    let namespace = Namespace::enter()?;
    let listener = Listen::new(3).open()?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("run.rec");
    let path = path.to_str().context("no UTF-8")?;
    let session =
        Session::start_with(&namespace, listener.port(), Scope::Path, |start| start.args(["--record", path]))?;
    FullAcceptQueue::run(listener.address(), 10)?;
    let live = session.finish()?;
    live.expect(&Outcomes {
        attempts: 10,
        pending: 4,
        lost: counts([("accept-queue-full", 6)]),
        ..Outcomes::default()
    })?;

    let outcome = Start::inside()?.args(["replay", path, "--format", "events"]).spawn()?.wait()?;
    assert_eq!(outcome.code()?, 0, "{}", outcome.stderr);
    let Lines { events, ends, report } = parse_events(&outcome.stdout)?;
    assert_eq!(format!("{:?}", report.totals), format!("{:?}", live.report.totals));
    assert_eq!(format!("{:?}", report.listeners), format!("{:?}", live.report.listeners));
    assert_eq!(format!("{:?}", report.check), format!("{:?}", live.report.check));
    assert_eq!(format!("{events:?}"), format!("{:?}", live.events));
    assert_eq!(format!("{ends:?}"), format!("{:?}", live.ends));
    Ok(())
}

#[test]
fn a_recording_that_is_cut_off_is_refused_with_its_name() -> Result<()> {
    let _namespace = Namespace::enter()?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("run.rec");
    std::fs::write(&path, b"no recording")?;
    let path = path.to_str().context("no UTF-8")?;
    let outcome = Start::inside()?.args(["replay", path]).spawn()?.wait()?;
    assert_eq!(outcome.code()?, 1, "{}", outcome.stderr);
    assert!(outcome.stderr.contains(path), "{}", outcome.stderr);
    assert_eq!(outcome.stdout, "");
    Ok(())
}
