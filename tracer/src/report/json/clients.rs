//! The connecting side.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use super::super::model::{self, Report};

#[derive(Serialize)]
pub(super) struct Clients<'a> {
    connects: u64,
    established: u64,
    in_progress: u64,
    failed: &'a BTreeMap<String, u64>,
    by_process: Vec<Process<'a>>,
    port_exhaustion: Vec<Exhaustion<'a>>,
    /// Null: a recording of a version that did not follow them.
    fins: Option<BTreeMap<&'static str, u64>>,
    resets: Option<BTreeMap<&'static str, u64>>,
}

#[derive(Serialize)]
struct Process<'a> {
    pid: u32,
    comm: &'a str,
    connects: u64,
    established: u64,
    failed: u64,
    failed_by: &'a BTreeMap<String, u64>,
    fins: BTreeMap<&'static str, u64>,
    resets: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Exhaustion<'a> {
    netns: u32,
    server: IpAddr,
    port: u16,
    failed: u64,
    local_port_range: Option<(u16, u16)>,
    in_use: Option<InUse<'a>>,
}

/// What held the ports soon after the first failure.
#[derive(Serialize)]
struct InUse<'a> {
    by_state: &'a BTreeMap<String, u64>,
    by_process: Vec<Holder<'a>>,
    reserved_ports: u16,
    tcp_tw_reuse: u32,
}

#[derive(Serialize)]
struct Holder<'a> {
    pid: u32,
    comm: &'a str,
    ports: u64,
}

impl<'a> Clients<'a> {
    pub(super) fn new(report: &'a Report) -> Clients<'a> {
        let clients = &report.clients;
        let process = |p: &'a model::ClientProcess| Process {
            pid: p.pid,
            comm: &p.comm,
            connects: p.connects,
            established: p.established,
            failed: p.failed,
            failed_by: &p.failed_by,
            fins: by_ender(p.fins),
            resets: by_ender(p.resets),
        };
        let exhaustion = |e: &'a model::Exhaustion| Exhaustion {
            netns: e.netns,
            server: e.server,
            port: e.port,
            failed: e.failed,
            local_port_range: report.namespaces.get(&e.netns).and_then(|ns| ns.local_port_range),
            in_use: e.in_use.as_ref().map(|ports| InUse {
                by_state: &ports.by_state,
                by_process: ports
                    .by_process
                    .iter()
                    .map(|(pid, comm, ports)| Holder { pid: *pid, comm, ports: *ports })
                    .collect(),
                reserved_ports: ports.reserved,
                tcp_tw_reuse: ports.tw_reuse,
            }),
        };
        Clients {
            connects: clients.connects,
            established: clients.established,
            in_progress: clients.in_progress,
            failed: &clients.failed,
            by_process: clients.by_process.iter().map(process).collect(),
            port_exhaustion: clients.exhausted.iter().map(exhaustion).collect(),
            fins: clients.fins.map(by_ender),
            resets: clients.resets.map(by_ender),
        }
    }
}

/// Every ender, also those that are 0.
fn by_ender(by: model::ByEnder) -> BTreeMap<&'static str, u64> {
    by.iter().map(|(ender, n)| (ender.id(), n)).collect()
}
