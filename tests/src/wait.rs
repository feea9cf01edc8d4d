//! Waiting for a fact that the kernel shows, never for time to pass.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The longest that any scenario waits for one fact. Generous, because it is
/// only ever used up by a failing test.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks `condition` again and again until it holds.
///
/// # Errors
/// Fails with `what` when the condition does not hold within [`PATIENCE`], and
/// passes on an error of the condition itself at once.
pub fn until(what: &str, condition: impl FnMut() -> Result<bool>) -> Result<()> {
    until_within(PATIENCE, what, condition)
}

/// The same with another patience.
///
/// # Errors
/// As [`until`].
pub fn until_within(patience: Duration, what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !condition()? {
        if Instant::now() > deadline {
            bail!("waited {} s in vain for: {what}", patience.as_secs());
        }
        // The pause between two looks only spares the CPU for the traffic.
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
