//! `tracer` as a library: the rooms of the collector, wired together only by [`run`].
//!
//! ```text
//! ring -> stream -> ledger -> report -> human | json | events
//! kernel (BTF, symbols) -> probe (load, attach, maps)      observe (netstat, namespaces, owners) -> report
//! ```
//!
//! Dependencies go one way: `abi <- stream <- ledger <- report`, `kernel <- probe`, `run -> all`. `aya` is used by `probe` and
//! `stream` only, `clap` by `cli` only, and /proc and /sys are read by `kernel` and `observe`.

pub mod cli;
pub mod kernel;
pub mod ledger;
pub mod observe;
pub mod probe;
pub mod report;
pub mod run;
pub mod stream;
