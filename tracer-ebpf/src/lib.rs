//! What the kernel side and the collector share: events, counters, configuration and the verdicts.
//!
//! Everything here is `no_std`, free of aya and of `unsafe`, and unit-tested on the host. All structures are
//! `repr(C)` with explicit padding: they cross the boundary as bytes, and their sizes are asserted at compile time.
#![no_std]

pub mod abi;
