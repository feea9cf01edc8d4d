//! Events on their way from the kernel side to the ledger, or to a file and back.

pub mod recording;
mod ring;

pub use ring::{EVENT_BYTES, Ring, decode};
