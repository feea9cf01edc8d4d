//! The programs: loading them, attaching them, and reading what they counted. With `stream`, the only user of aya.

mod catalogue;
mod control;
mod error;
mod load;
mod tallies;

pub use catalogue::{Flavour, HOOKS, Hook};
pub use error::ProbeError;
pub use load::{Bounds, Probe, Settings};
pub use tallies::{NetTally, Tallies};
