//! `tracer` as a library: the rooms of the collector, wired together only by [`run`].
//!
//! ```text
//! ring -> stream -> ledger -> report -> human | json | events
//! kernel (BTF, symbols) -> probe (load, attach, maps)      observe (netstat, namespaces, owners) -> report
//! ```

pub mod kernel;

pub mod probe;
