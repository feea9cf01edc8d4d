//! Everything that a report needs besides the events: what a recording ends with.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracer_abi::abi::{Address, COUNTERS, ENDERS, Tuple, Watch};

use crate::{
    ledger::SlotTotals,
    report::{Cost, EndedBy, Mark, PortsInUse},
};

/// One run, without its events.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) kernel: String,
    pub(super) hooks: BTreeMap<String, String>,
    pub(super) own_netns: u32,
    pub(super) start: Timestamp,
    pub(super) end: Timestamp,
    /// `CLOCK_MONOTONIC` nanoseconds, the clock of the events.
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    pub(super) ended_by: Ending,
    pub(super) command: Option<CommandFacts>,
    /// Ranges asked for; `None` for every listener.
    pub(super) ports: Option<Vec<(u16, u16)>>,
    pub(super) slots: Vec<(u32, SlotTotals)>,
    pub(super) listeners: Vec<ListenerFacts>,
    pub(super) namespaces: Vec<NamespaceFacts>,
    pub(super) counters: Vec<CounterFacts>,
    /// By `Global`.
    pub(super) globals: Vec<u64>,
    pub(super) processes: Vec<ProcessFacts>,
    pub(super) marks: Vec<MarkFacts>,
    /// What held the ports where they ran out.
    #[serde(default)]
    pub(super) ports_in_use: Vec<PortsFacts>,
    /// Names of the kernel's drop reasons that the events use.
    pub(super) drop_reasons: BTreeMap<u32, String>,
    pub(super) watched: Vec<WatchFacts>,
    /// Why the ledger is not exact, besides what the numbers show.
    pub(super) doubts: Vec<String>,
    /// What the tracing itself cost.
    #[serde(default)]
    pub(super) cost: Option<Cost>,
}

/// See [`EndedBy`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Ending {
    Signal,
    Duration,
    Command,
}

impl From<Ending> for EndedBy {
    fn from(ending: Ending) -> EndedBy {
        match ending {
            Ending::Signal => EndedBy::Signal,
            Ending::Duration => EndedBy::Duration,
            Ending::Command => EndedBy::Command,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CommandFacts {
    pub(super) argv: Vec<String>,
    pub(super) status: i32,
}

/// A listener; see `ListenerInfo`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ListenerFacts {
    pub(super) slot: u32,
    pub(super) port: u16,
    pub(super) address: [u8; 16],
    pub(super) family: u16,
    pub(super) v6only: bool,
    pub(super) reuseport: bool,
    pub(super) netns: u32,
    pub(super) pid: Option<u32>,
    pub(super) comm: Option<String>,
    pub(super) open: bool,
    pub(super) backlog: u32,
    pub(super) asked: Option<u32>,
    pub(super) accept_queue: u32,
    pub(super) half_open: u32,
}

/// Settings of a namespace that a listener or a client is in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct NamespaceFacts {
    pub(super) netns: u32,
    /// Where it is bound, if it is.
    pub(super) path: Option<PathBuf>,
    pub(super) somaxconn: u32,
    pub(super) max_syn_backlog: u32,
    pub(super) syncookies: u32,
    pub(super) local_port_range: Option<(u16, u16)>,
}

/// The cross-check of a namespace, by `Counter`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CounterFacts {
    pub(super) netns: u32,
    pub(super) kernel: [u64; COUNTERS],
    pub(super) tracer: [u64; COUNTERS],
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ProcessFacts {
    pub(super) pid: u32,
    pub(super) comm: String,
    pub(super) connects: u64,
    pub(super) established: u64,
    pub(super) failed: u64,
    /// By [`Ender`](tracer_abi::abi::Ender); recordings of earlier versions do not have them.
    #[serde(default)]
    pub(super) fins: Option<[u64; ENDERS]>,
    #[serde(default)]
    pub(super) resets: Option<[u64; ENDERS]>,
}

/// Local ports towards a destination, soon after the first `connect()` that found none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PortsFacts {
    pub(super) netns: u32,
    pub(super) server: IpAddr,
    pub(super) port: u16,
    pub(super) by_state: BTreeMap<String, u64>,
    /// Process, name, and how many it holds.
    pub(super) by_process: Vec<(u32, String, u64)>,
    pub(super) reserved_ports: u16,
    pub(super) tw_reuse: u32,
}

impl PortsFacts {
    pub(super) fn ports(&self) -> PortsInUse {
        PortsInUse {
            by_state: self.by_state.clone(),
            by_process: self.by_process.clone(),
            reserved: self.reserved_ports,
            tw_reuse: self.tw_reuse,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MarkFacts {
    pub(super) at_ns: u64,
    pub(super) label: String,
    /// Recordings of earlier versions do not tell.
    #[serde(default)]
    pub(super) asked: bool,
    pub(super) accepted: u64,
    pub(super) lost: u64,
}

impl MarkFacts {
    pub(super) fn mark(&self) -> Mark {
        Mark {
            at: std::time::Duration::from_nanos(self.at_ns),
            label: self.label.clone(),
            asked: self.asked,
            accepted: self.accepted,
            lost: self.lost,
        }
    }
}

/// An entry of the kernel side's watch map.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct WatchFacts {
    client: [u8; 16],
    server: [u8; 16],
    client_port: u16,
    port: u16,
    netns: u32,
    first_ns: u64,
    last_ns: u64,
    isn: u32,
    slot: u32,
    state: u16,
    cause: u8,
}

impl From<&(Tuple, Watch)> for WatchFacts {
    fn from((tuple, watch): &(Tuple, Watch)) -> WatchFacts {
        WatchFacts {
            client: tuple.client.octets(),
            server: tuple.server.octets(),
            client_port: tuple.client_port,
            port: tuple.port,
            netns: tuple.netns,
            first_ns: watch.first_ns,
            last_ns: watch.last_ns,
            isn: watch.isn,
            slot: watch.slot,
            state: watch.state,
            cause: watch.cause,
        }
    }
}

impl WatchFacts {
    pub(super) fn entry(&self) -> (Tuple, Watch) {
        let tuple = Tuple {
            client: Address::new(self.client),
            server: Address::new(self.server),
            client_port: self.client_port,
            port: self.port,
            netns: self.netns,
        };
        let watch = Watch {
            first_ns: self.first_ns,
            last_ns: self.last_ns,
            isn: self.isn,
            slot: self.slot,
            state: self.state,
            cause: self.cause,
            padding: [0; 5],
        };
        (tuple, watch)
    }
}
