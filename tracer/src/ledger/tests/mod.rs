//! The ledger against a small model of the kernel side, which knows the truth about every attempt.

mod attempt;
mod causes;
mod events;
mod interplay;
mod kernel;
mod laws;
mod script;
mod truth;
mod untold;
