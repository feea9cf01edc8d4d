//! What `cargo xtask vm` and the first process of its guests say to each other.
//!
//! The host puts a [`plan::Plan`] into the initial file system; the guest answers with [`line::Line`]s on a serial port of
//! their own, so that kernel messages cannot come between. Both sides use this library: there is one form and one parser.

pub mod line;
pub mod plan;
