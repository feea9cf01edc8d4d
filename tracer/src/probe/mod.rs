//! The programs: loading them, attaching them, and reading what they counted. With `stream`, the only user of aya.

mod bounds;
mod catalogue;
mod choice;
mod control;
mod error;
mod kfunc;
mod load;
mod obstacle;
mod runs;
mod tallies;
mod verify;

pub use bounds::Bounds;
pub(crate) use bounds::WATCH_ENTRIES;
pub use catalogue::{Flavour, HOOKS, Hook, Point, Way};
pub use choice::{Choice, Reason, Rejected, Wanted};
pub use error::ProbeError;
pub use load::{Probe, Settings, Survey};
pub use obstacle::Obstacle;
pub use runs::{ProgramRuns, Timing};
pub use tallies::{NetTally, Tallies};
