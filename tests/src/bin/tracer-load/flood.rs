//! SYNs from addresses that nobody has, as fast as one thread can send them.

use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use tracer_tests::flood::Flood;
use tracer_tests::namespace::{Family, Namespace};
use tracer_tests::rawtcp::Wire;
use tracer_tests::traffic::Listen;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The port to listen on and to send to
    #[arg(long)]
    port: u16,
    /// How many SYNs, each of another client
    #[arg(long, default_value_t = 1_000_000)]
    syns: u32,
    /// net.ipv4.tcp_syncookies of the namespace
    #[arg(long, default_value_t = 1)]
    syncookies: u8,
    /// The listener's backlog
    #[arg(long, default_value_t = 128)]
    backlog: i32,
}

/// What was sent.
#[derive(Debug, Serialize)]
struct Sent {
    syns: u32,
    seconds: f64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let namespace = Namespace::enter()?;
    namespace.set("net/ipv4/tcp_syncookies", &options.syncookies.to_string())?;
    let wire = Wire::open(&namespace)?;
    let server = Wire::server(Family::V4);
    let listener = Listen::new(options.backlog).on(server).port(options.port).open()?;
    let mut flood = Flood::new(&wire, listener.address())?;
    crate::wait_for_go()?;
    let begin = Instant::now();
    (0..options.syns).try_for_each(|number| flood.send(number))?;
    crate::tell(&Sent { syns: options.syns, seconds: begin.elapsed().as_secs_f64() })
}
